"""transformers' continuous batching (paged attention) as a sampler of the policy in this process."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig

from accord.errors import PolicyError
from accord.policy.policy import Policy
from accord.policy.sampling import Samples, SamplingSettings, stop_ids
from accord.records import FinishReason, Response

PAGE = 32  # tokens of one page of the cache
LEFT_OUT = {"min_p": 0.0, "repetition_penalty": 1.0, "min_tokens": 0, "stop": ()}  # what it cannot do, and its absence


class ContinuousBatchingSampler:
    """The policy of this process, sampled by transformers: paged cache, prefix sharing, flash attention where it is.

    One seed serves the whole call: the same call on the same machine gives the same text, but a response depends on
    what else is asked, so `streams` cannot be honoured. Takes num_responses, max_tokens, temperature, top_p, top_k and
    seed; the model runs in the type of its weights, without autocast. A call that gives no token for `patience_seconds`
    is given up.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        chat_template: str = "auto",
        more_stop_ids: Iterable[int] = (),
        policy_version: int = 0,
        patience_seconds: float = 600.0,
        **options: Any,
    ) -> None:
        self.policy, self.policy_version, self.patience_seconds = policy, policy_version, patience_seconds
        self.chat_template, self.more_stop_ids = chat_template, frozenset(more_stop_ids)
        self.options = options  # of ContinuousBatchingConfig

    def sample(
        self, prompts: Sequence[Sequence[int]], settings: SamplingSettings, *, streams: Sequence[int] | None = None
    ) -> Samples:
        """Draw K responses to each prompt of token ids; `streams` goes into the seed of the whole call.

        Raises PolicyError for settings and models that continuous batching cannot do, and where it fails.
        """
        for name, absent in LEFT_OUT.items():
            if getattr(settings, name) != absent:
                raise PolicyError(
                    f"got {name}={getattr(settings, name)!r} for continuous batching — expected {name}={absent!r} — "
                    "leave it out, or sample with the local engine"
                )
        if not prompts:
            return Samples(responses=(), policy_version=self.policy_version, settings=settings)
        rooms = self._rooms(prompts, settings)
        ends = stop_ids(self.policy, self.chat_template) | self.more_stop_ids
        was_training = self.policy.training
        self.policy.eval()
        try:
            with self.policy.attention("plain"):
                drawn = self._run(prompts, rooms, settings, ends, hash((settings.seed, *(streams or ()))))
        finally:
            self.policy.train(was_training)
        k = settings.num_responses
        responses = tuple(tuple(drawn[start : start + k]) for start in range(0, len(drawn), k))
        return Samples(responses=responses, policy_version=self.policy_version, settings=settings)

    def _rooms(self, prompts: Sequence[Sequence[int]], settings: SamplingSettings) -> list[int]:
        limit = getattr(self.policy.causal_lm.config.get_text_config(), "max_position_embeddings", None)
        window = limit if isinstance(limit, int) and limit > 0 else sys.maxsize
        for index, prompt in enumerate(prompts):
            if not 0 < len(prompt) < window:
                raise PolicyError(f"got prompt {index} of {len(prompt)} tokens — expected 1 to {window - 1}")
        return [min(settings.max_tokens, window - len(prompt)) for prompt in prompts]

    def _run(
        self,
        prompts: Sequence[Sequence[int]],
        rooms: Sequence[int],
        settings: SamplingSettings,
        ends: frozenset[int],
        seed: int,
    ) -> list[Response]:
        model: Any = self.policy.causal_lm
        generation = GenerationConfig(
            do_sample=not settings.is_greedy,
            num_return_sequences=settings.num_responses,
            eos_token_id=sorted(ends) or None,
            pad_token_id=self.policy.pad_id,
            **(
                {}
                if settings.is_greedy
                else {"temperature": settings.temperature, "top_p": settings.top_p, "top_k": settings.top_k}
            ),
        )
        found: dict[str, Any] = {}
        devices = [self.policy.device] if self.policy.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed % 2**63)
            try:
                with model.continuous_batching_context_manager(
                    generation_config=generation,
                    continuous_batching_config=self._cache(prompts, rooms, settings, seed),
                    timeout=self.patience_seconds,
                ) as manager:
                    names = [
                        manager.add_request(list(prompt), max_new_tokens=room)
                        for prompt, room in zip(prompts, rooms, strict=True)
                    ]
                    self._collect(manager, found, len(prompts) * settings.num_responses)
            except (ValueError, RuntimeError, NotImplementedError) as error:
                raise PolicyError(
                    f"continuous batching failed for {type(model).__name__}: {type(error).__name__}: {error} — "
                    "sample with the local engine"
                ) from error
        rows = [
            found[row]
            for name in names
            for row in (name, *(f"{name}__child#{i}" for i in range(settings.num_responses - 1)))
        ]
        return [self._response(row, settings, ends) for row in rows]

    def _cache(
        self, prompts: Sequence[Sequence[int]], rooms: Sequence[int], settings: SamplingSettings, seed: int
    ) -> ContinuousBatchingConfig:
        """A cache for what is asked, not for all memory there is: on a CPU that would take minutes to allocate."""
        k = settings.num_responses
        pages = sum(
            k * (math.ceil((len(prompt) + room) / PAGE) + 1) for prompt, room in zip(prompts, rooms, strict=True)
        )
        most = max(math.ceil((len(prompt) + room) / PAGE) + 1 for prompt, room in zip(prompts, rooms, strict=True))
        allowed = max(settings.max_batch_tokens // PAGE, 2 * most)
        longest = max(len(prompt) for prompt in prompts)
        options: dict[str, Any] = {
            "page_size": PAGE, "num_blocks": min(pages, allowed) + 2, "return_logprobs": True,
            "max_batch_tokens": max(2 * longest, min(settings.max_rows, k * len(prompts)), 64),
            "drop_unsupported_processors": False, "seed": seed % 2**31,
        }  # fmt: skip
        return ContinuousBatchingConfig(**(options | self.options))

    def _collect(self, manager: Any, found: dict[str, Any], num_rows: int) -> None:
        last = time.monotonic()
        while len(found) < num_rows:
            output = manager.get_result(timeout=0.2)
            if output is None:
                if not manager.is_running():
                    raise RuntimeError(f"it stopped after {len(found)} of {num_rows} responses")
                if time.monotonic() - last > self.patience_seconds:
                    raise RuntimeError(f"nothing came for {self.patience_seconds:g} s")
                continue
            last = time.monotonic()
            if output.error is not None:
                raise RuntimeError(output.error)
            if output.is_finished():
                found[output.request_id] = output

    def _response(self, output: Any, settings: SamplingSettings, ends: frozenset[int]) -> Response:
        ids = tuple(int(token) for token in output.generated_tokens)
        has_stopped = bool(ids) and ids[-1] in ends
        text = self.policy.tokenizer.decode(list(ids[:-1] if has_stopped else ids), skip_special_tokens=True)
        logps = (0.0,) * len(ids) if settings.is_greedy else tuple(float(logp) for logp in output.logprobs)
        return Response(
            content=str(text), token_ids=ids, behaviour_logps=logps, source=self.policy.path or None,
            finish_reason=FinishReason.STOP if has_stopped else FinishReason.LENGTH,
        )  # fmt: skip
