"""A sampler over any OpenAI-compatible endpoint: text or token ids in, responses out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from accord.endpoint import Answer, Endpoint, TokenLogp
from accord.errors import PolicyError
from accord.policy.sampling import Samples, SamplingSettings
from accord.records import FinishReason, Response

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LogprobsKind = Literal["raw", "processed", "none"]
BEYOND_PROTOCOL = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "min_tokens": 0}  # with what leaves them out


class EndpointSampler:
    """An endpoint's completions as a `Sampler`; the tokenizer must be the served model's.

    Each response is a request of its own, with a seed made of (seed, stream, response): a server that honours seeds
    gives the same text whatever else is asked. `sends_token_ids` for a server that takes them (vLLM); others get the
    prompt's text, after a check that it becomes the same ids again. `logprobs` says what the server's log-probabilities
    are of: "raw" the model's own distribution, "processed" the one sampled from, "none" not asked for. `knows` names
    settings beyond the protocol that the server honours, of top_k, min_p, repetition_penalty and min_tokens; they are
    always sent. A server may have cuts of its own where it is told nothing (llama.cpp: top_k 40, min_p 0.05; vLLM: the
    model's generation config): turn them off in `knows` or `options`, else no log-probability is the sampled one.

    `behaviour_logps` are there only where they are true: the ids are the server's own, or its tokens' texts are the
    ids' texts one by one; and the log-probabilities are of the distribution sampled from. Else they are None, and
    importance weights, the sampler check and objectives that need them cannot be had. Where the server gives text
    alone, `token_ids` are the text's encoding, which is not always what was sampled.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        tokenizer: PreTrainedTokenizerBase,
        *,
        policy_version: int = 0,
        sends_token_ids: bool = False,
        logprobs: LogprobsKind = "raw",
        knows: Sequence[str] = (),
        options: Mapping[str, Any] | None = None,
    ) -> None:
        unknown = sorted(set(knows) - set(BEYOND_PROTOCOL))
        if unknown or logprobs not in ("raw", "processed", "none"):
            raise PolicyError(
                f"got knows={unknown}, logprobs={logprobs!r} — expected of knows {', '.join(BEYOND_PROTOCOL)}, and "
                "logprobs raw, processed or none"
            )
        self.endpoint, self.tokenizer, self.policy_version = endpoint, tokenizer, policy_version
        self.sends_token_ids, self.logprobs, self.knows = sends_token_ids, logprobs, frozenset(knows)
        self.options = dict(options or {})

    def sample(
        self, prompts: Sequence[Sequence[int]], settings: SamplingSettings, *, streams: Sequence[int] | None = None
    ) -> Samples:
        """Draw K responses to each prompt of token ids.

        Raises PolicyError for a setting the server does not know and a prompt that has no text of its own, and
        FeedbackError where the endpoint refuses or stays down.
        """
        names = range(len(prompts)) if streams is None else streams
        options = self._request_options(settings)
        requests = [
            {"prompt": sent, **options} | ({} if settings.is_greedy else {"seed": row_seed(settings.seed, name, k)})
            for sent, name in zip([self._sent(prompt) for prompt in prompts], names, strict=True)
            for k in range(settings.num_responses)
        ]
        found = self.endpoint.ask("/completions", requests)
        answers = []
        for item in found:
            if not isinstance(item, list):
                raise item
            answers.append(item[0])
        rows = [self._response(answer, settings) for answer in answers]
        k = settings.num_responses
        responses = tuple(tuple(rows[start : start + k]) for start in range(0, len(rows), k))
        return Samples(responses=responses, policy_version=self.policy_version, settings=settings)

    def _request_options(self, settings: SamplingSettings) -> dict[str, Any]:
        options: dict[str, Any] = {
            "max_tokens": settings.max_tokens,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
        }
        for name, absent in BEYOND_PROTOCOL.items():
            value = getattr(settings, name)
            if name not in self.knows and value == absent:
                continue
            if name not in self.knows:
                raise PolicyError(
                    f"got {name}={value} for {self.endpoint.url} — expected {name}={absent}: the protocol has no such "
                    f"setting and a server may ignore it — leave it out, or say knows={[name]!r} where it does not"
                )
            options[name] = value
        if settings.stop:
            options["stop"] = list(settings.stop)
        if self.logprobs != "none":
            options["logprobs"] = 1
        return options | self.options

    def _sent(self, prompt: Sequence[int]) -> str | list[int]:
        ids = list(prompt)
        if self.sends_token_ids:
            return ids
        starts = [0, 1] if ids[:1] == [self.tokenizer.bos_token_id] else [0]  # a server puts the start token before
        for start in starts:
            text = str(self.tokenizer.decode(ids[start:], skip_special_tokens=False))
            if self.tokenizer(text).input_ids == ids:
                return text
        raise PolicyError(
            f"got a prompt of {len(ids)} tokens whose text becomes other tokens again — expected one that survives — "
            "use a server that takes token ids (sends_token_ids=True), or prompts of plain text"
        )

    def _response(self, answer: Answer, settings: SamplingSettings) -> Response:
        finish = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH}.get(
            answer.finish_reason or "", FinishReason.UNKNOWN
        )
        if answer.token_ids is not None:
            ids, are_exact = answer.token_ids, True
        else:
            ids, are_exact = self._encoded(answer, finish)
        return Response(
            content=answer.text,
            token_ids=ids,
            finish_reason=finish,
            behaviour_logps=self._behaviour_logps(answer, ids, settings) if are_exact else None,
            source=self.endpoint.settings.model,
        )

    def _encoded(self, answer: Answer, finish: FinishReason) -> tuple[tuple[int, ...], bool]:
        """The text's ids, with the end that stopped it, and whether the server's tokens show that they were sampled."""
        ids = tuple(self.tokenizer.encode(answer.text, add_special_tokens=False))
        end = self.tokenizer.eos_token_id
        if finish is FinishReason.STOP and isinstance(end, int):
            ids = (*ids, end)
        tokens = answer.tokens
        return ids, tokens is not None and self._are_same(tokens, ids)

    def _are_same(self, tokens: Sequence[TokenLogp], ids: Sequence[int]) -> bool:
        return len(tokens) == len(ids) and all(
            token.text in (self.tokenizer.decode([i]), self.tokenizer.convert_ids_to_tokens(i))
            for token, i in zip(tokens, ids, strict=True)
        )

    def _behaviour_logps(
        self, answer: Answer, ids: Sequence[int], settings: SamplingSettings
    ) -> tuple[float, ...] | None:
        if settings.is_greedy:
            return (0.0,) * len(ids)  # the likeliest token was certain to be taken
        tokens = answer.tokens
        if tokens is None or len(tokens) != len(ids):
            return None
        is_own = settings.temperature == 1 and settings.top_p == 1
        is_own = is_own and all(getattr(settings, name) == absent for name, absent in BEYOND_PROTOCOL.items())
        return tuple(token.logp for token in tokens) if is_own or self.logprobs == "processed" else None


def row_seed(seed: int, stream: int, response: int) -> int:
    """Return a seed below 2³¹ of one response's own, the same for the same three numbers on any machine."""
    digest = hashlib.sha256(f"{seed} {stream} {response}".encode()).digest()
    return int.from_bytes(digest[:4]) >> 1
