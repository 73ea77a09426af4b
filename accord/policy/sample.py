"""The local sampler: one prefill per prompt shared by its K responses, a cache, finished rows leave the batch.

It runs the training module itself, on the model's own attention. Axes: B rows (prompt × response), V vocabulary.
Row r of prompt p draws its random numbers from a stream of its own, (seed, p, r): the same seed gives the same text
whatever the batch, up to rounding.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache

from accord.data import TokenGroup, encode_groups, encode_prompts
from accord.errors import DataError, PolicyError
from accord.policy.policy import Policy
from accord.records import FinishReason, Group, Message, Response


class NoSampler(PolicyError):
    """The model keeps more than an attention cache, or none: the local sampler cannot share a prefill."""


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """How to draw. temperature 0 = greedy; top_p and top_k cut the tail, and the rest is renormalised."""

    num_responses: int = 1
    max_tokens: int = 128
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0 = no cut
    seed: int = 0
    max_rows: int = 256  # rows decoded together

    def __post_init__(self) -> None:
        for name, is_fine, expected in (
            ("num_responses", self.num_responses >= 1, "≥ 1"),
            ("max_tokens", self.max_tokens >= 1, "≥ 1"),
            ("temperature", self.temperature >= 0, "≥ 0"),
            ("top_p", 0 < self.top_p <= 1, "in (0, 1]"),
            ("top_k", self.top_k >= 0, "≥ 0 (0 = no cut)"),
            ("seed", self.seed >= 0, "≥ 0"),
            ("max_rows", self.max_rows >= 1, "≥ 1"),
        ):
            if not is_fine:
                raise PolicyError(f"got {name}={getattr(self, name)} — expected {name} {expected}")


@torch.no_grad()
def sample_responses(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    settings: SamplingSettings,
    *,
    streams: Sequence[int] | None = None,
    chat_template: str = "auto",
    more_stop_ids: Iterable[int] = (),
) -> list[tuple[Response, ...]]:
    """Draw K responses to each prompt of token ids.

    `streams` names each prompt's stream of random numbers, its position unless given: a process that has a share of
    the prompts gives their positions in the whole. A response ends at any of `stop_ids(policy, chat_template)` and
    `more_stop_ids` (of trained data: `trained_ends`).
    Each response carries its token ids (incl. the id it stopped at, if any), its finish reason and the
    log-probabilities, nats, of the distribution it was actually drawn from (after temperature, top-p, top-k).
    A response also ends, as at `max_tokens`, where the model has no further position.
    Raises PolicyError for a prompt that is empty or fills the model's window and for logits that are not numbers, and
    its child NoSampler for a model that keeps no attention cache, or more than one.
    """
    window, ends = _window(policy), stop_ids(policy, chat_template) | frozenset(more_stop_ids)
    for index, prompt in enumerate(prompts):
        if not prompt:
            raise PolicyError(f"prompt {index} has no tokens — give at least a start token")
        if len(prompt) >= window:
            raise PolicyError(
                f"got prompt {index} of {len(prompt)} tokens — expected fewer than the model's {window} positions"
            )
    per_batch = max(1, settings.max_rows // settings.num_responses)
    by_length = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))  # neighbours pad little
    found: dict[int, tuple[Response, ...]] = {}
    was_training = policy.training
    policy.eval()  # with gradient checkpointing, layers in training mode would drop the cache
    try:
        with policy.attention("plain"), policy.precision():
            for start in range(0, len(by_length), per_batch):
                part = by_length[start : start + per_batch]
                names = part if streams is None else [streams[index] for index in part]
                drawn = _Rows(policy, [prompts[index] for index in part], names, settings, ends).run()
                found.update(zip(part, drawn, strict=True))
    finally:
        policy.train(was_training)
    return [found[index] for index in range(len(prompts))]


def answer_prompts(
    policy: Policy, groups: Sequence[Group], settings: SamplingSettings, *, chat_template: str = "auto"
) -> list[Group]:
    """Return groups with the same prompts and K fresh responses each; earlier responses and judgements are left out."""
    prompts = encode_prompts(groups, policy.tokenizer, chat_template=chat_template)
    drawn = sample_responses(policy, prompts, settings, chat_template=chat_template)
    return [
        replace(group, responses=responses, judgements=(), extra={})
        for group, responses in zip(groups, drawn, strict=True)
    ]


class _Rows:
    """One batch of prompts being continued; rows that have ended are dropped from the cache."""

    def __init__(
        self,
        policy: Policy,
        prompts: list[Sequence[int]],
        names: list[int],
        settings: SamplingSettings,
        stop_ids: frozenset[int],
    ) -> None:
        self.policy, self.settings, self.prompts = policy, settings, prompts
        self.stop_ids = stop_ids
        window = _window(policy)
        self.room = [min(settings.max_tokens, window - len(p)) for p in prompts for _ in range(settings.num_responses)]
        k = settings.num_responses
        self.ids: list[list[int]] = [[] for _ in range(len(prompts) * k)]
        self.logps: list[list[float]] = [[] for _ in self.ids]
        self.ended = [False] * len(self.ids)
        streams = [np.random.Generator(np.random.Philox(key=[settings.seed, name])) for name in names]
        self.uniform = np.concatenate([stream.random((k, settings.max_tokens)) for stream in streams])

    def run(self) -> list[tuple[Response, ...]]:
        """Prefill, then one token a step until every row has ended or is full."""
        k, device = self.settings.num_responses, self.policy.device
        width = max(len(prompt) for prompt in self.prompts)
        ids = torch.full((len(self.prompts), width), self.policy.pad_id)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(self.prompts):  # left padding: all prompts end in the same column
            ids[row, width - len(prompt) :] = torch.tensor(list(prompt))
            mask[row, width - len(prompt) :] = 1
        cache = self._new_cache()
        logits_BV = self._forward(ids.to(device), mask.to(device), cache).repeat_interleave(k, 0)
        cache.batch_repeat_interleave(k)
        mask = mask.repeat_interleave(k, 0).to(device)
        alive = torch.arange(len(self.ids))
        for step in range(self.settings.max_tokens):
            next_B = self._draw(logits_BV, alive, step)
            keep = [i for i, row in enumerate(alive.tolist()) if not self.ended[row]]
            if not keep or step + 1 == self.settings.max_tokens:
                break
            if len(keep) < len(alive):
                chosen = torch.tensor(keep, device=device)
                cache.batch_select_indices(chosen)
                mask, next_B, alive = mask[chosen], next_B[chosen], alive[keep]
            mask = F.pad(mask, (0, 1), value=1)
            logits_BV = self._forward(next_B[:, None], mask, cache)
        rows = [self._response(row) for row in range(len(self.ids))]
        return [tuple(rows[start : start + k]) for start in range(0, len(rows), k)]

    def _new_cache(self) -> DynamicCache:
        cache = DynamicCache(config=self.policy.causal_lm.config)
        try:
            cache.get_seq_length()
        except ValueError as error:  # what a cache without attention layers (state-space models) raises
            raise self._no_cache("no attention cache") from error
        # of a hybrid model: transformers can neither copy nor select the rows of such a state, and padding enters it
        if any(hasattr(layer, "update_recurrent_state") for layer in cache.layers):
            raise self._no_cache("a recurrent state besides its attention cache")
        return cache

    def _no_cache(self, found: str) -> NoSampler:
        return NoSampler(
            f"{type(self.policy.causal_lm).__name__} keeps {found}; the local sampler needs an attention cache alone — "
            "sample from it through an external engine"
        )

    def _forward(self, ids: Tensor, mask: Tensor, cache: DynamicCache) -> Tensor:
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        output = self.policy.causal_lm(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True,
            logits_to_keep=1,
        )  # fmt: skip
        if cache.get_seq_length() != mask.shape[1]:
            raise self._no_cache("no attention cache")
        return output.logits[:, -1]

    def _draw(self, logits_BV: Tensor, alive: Tensor, step: int) -> Tensor:
        logps_BV = tempered_logps(logits_BV, self.settings)
        if self.settings.temperature == 0:
            next_B = logps_BV.argmax(-1)
        else:
            # MPS has no float64
            wide_BV = (logps_BV.cpu() if logps_BV.device.type == "mps" else logps_BV).double()
            u_B1 = torch.from_numpy(self.uniform[alive.numpy(), step, None]).to(wide_BV.device)
            cdf_BV = wide_BV.exp().cumsum(-1)
            next_B = torch.searchsorted(cdf_BV, u_B1 * cdf_BV[:, -1:], right=True).squeeze(-1)
            next_B = next_B.clamp(max=logps_BV.shape[-1] - 1).to(logps_BV.device)
        logps_B = logps_BV.gather(-1, next_B[:, None]).squeeze(-1)
        for row, token, logp in zip(alive.tolist(), next_B.tolist(), logps_B.tolist(), strict=True):
            if not math.isfinite(logp):
                raise PolicyError(
                    f"{type(self.policy.causal_lm).__name__} gave logits that are not numbers, at token {step + 1} of "
                    "a response — look at its weights, or raise the precision"
                )
            self.ids[row].append(token)
            self.logps[row].append(logp)
            self.ended[row] = token in self.stop_ids or len(self.ids[row]) == self.room[row]
        return next_B

    def _response(self, row: int) -> Response:
        ids = self.ids[row]
        has_stopped = ids[-1] in self.stop_ids
        # the mark of the end is no part of the text, also where the tokenizer does not call it special
        text = self.policy.tokenizer.decode(ids[:-1] if has_stopped else ids, skip_special_tokens=True)
        return Response(
            content=str(text),
            token_ids=tuple(ids),
            finish_reason=FinishReason.STOP if has_stopped else FinishReason.LENGTH,
            behaviour_logps=tuple(self.logps[row]),
            source=self.policy.path or None,
        )


def tempered_logps(logits_BV: Tensor, settings: SamplingSettings) -> Tensor:
    """Return the log-probabilities actually sampled from: temperature, then top-k, then top-p, renormalised."""
    logits_BV = logits_BV.to(torch.promote_types(logits_BV.dtype, torch.float32))
    if settings.temperature == 0:
        best = torch.full_like(logits_BV, float("-inf"))
        return best.scatter(-1, logits_BV.argmax(-1, keepdim=True), 0.0)
    logps_BV = F.log_softmax(logits_BV / settings.temperature, dim=-1)
    if settings.top_k and settings.top_k < logps_BV.shape[-1]:
        least = logps_BV.topk(settings.top_k, dim=-1).values[:, -1:]
        logps_BV = F.log_softmax(logps_BV.masked_fill(logps_BV < least, float("-inf")), dim=-1)
    if settings.top_p < 1:
        ordered, index = logps_BV.sort(dim=-1, descending=True)
        mass_before = ordered.exp().cumsum(-1) - ordered.exp()
        cut = (mass_before >= settings.top_p).gather(-1, index.argsort(-1))
        logps_BV = F.log_softmax(logps_BV.masked_fill(cut, float("-inf")), dim=-1)
    return logps_BV


def _window(policy: Policy) -> int:
    """Positions the model was made for; models that set no limit get none."""
    limit = getattr(policy.causal_lm.config.get_text_config(), "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else sys.maxsize


def stop_ids(policy: Policy, chat_template: str = "auto") -> frozenset[int]:
    """Every id that ends a response: the tokenizer's, all of the generation config, and the template's end of turn."""
    listed = getattr(policy.causal_lm.generation_config, "eos_token_id", None)
    ids = [policy.tokenizer.eos_token_id, *(listed if isinstance(listed, list) else [listed])]
    return frozenset(i for i in ids if isinstance(i, int)) | _ends_of_turn(policy, chat_template)


def trained_ends(groups: Iterable[TokenGroup]) -> frozenset[int]:
    """The ids at which encoded responses end: what training on them teaches a model to stop with."""
    return frozenset(response.ids[-1] for group in groups for response in group.responses if response.has_eos)


_CONVERSATION = Group(
    prompt=(Message(role="user", content="a"),),
    responses=(Response(content=(Message(role="assistant", content="b"),)),),
)


def _ends_of_turn(policy: Policy, chat_template: str) -> frozenset[int]:
    """What the template closes an answer with: <|im_end|> is often not the tokenizer's end of sequence."""
    try:
        encoded = encode_groups([_CONVERSATION], policy.tokenizer, chat_template=chat_template, append_eos="never")
    except DataError:  # a template that cannot be trained on teaches no end; who trains on it is told
        return frozenset()
    return trained_ends(encoded.groups)
