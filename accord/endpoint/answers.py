"""What an endpoint answers, read from the two shapes the protocol has: chat completions and completions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from accord.errors import FeedbackError


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogp:
    """One token of an answer: its text, log-probability in nats, and the likeliest tokens in its place."""

    text: str
    logp: float
    likeliest: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One choice of an answer; `tokens` and `token_ids` are None where the server did not give them."""

    text: str
    finish_reason: str | None = None  # "stop", "length", or what else the server calls it
    tokens: tuple[TokenLogp, ...] | None = None
    token_ids: tuple[int, ...] | None = None
    is_cached: bool = False


def read_answers(body: Mapping[str, Any], url: str, *, is_cached: bool = False) -> list[Answer]:
    """Return the choices of a response's body, by index. Raises FeedbackError for a body of another shape."""
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices:
        raise FeedbackError(_strange(body, url, "no choices"))
    try:
        ordered = sorted(choices, key=lambda choice: int(choice.get("index") or 0))
        return [_read_choice(choice, is_cached) for choice in ordered]
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise FeedbackError(_strange(body, url, f"{type(error).__name__}: {error}")) from error


def read_usage(body: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return (prompt, completion) tokens as the server counted them, None where it did not."""
    usage = body.get("usage")
    if not isinstance(usage, Mapping):
        return None
    counts = (usage.get("prompt_tokens"), usage.get("completion_tokens"))
    if not all(isinstance(count, int) for count in counts):
        return None
    return int(counts[0]), int(counts[1])  # type: ignore[arg-type]  # both were just seen to be int


def _read_choice(choice: Mapping[str, Any], is_cached: bool) -> Answer:
    logprobs = choice.get("logprobs")
    if "message" in choice:
        text = choice["message"].get("content")
        tokens = _chat_tokens(logprobs) if logprobs else None
    else:
        text = choice["text"]
        tokens = _completion_tokens(logprobs) if logprobs else None
    ids = choice.get("token_ids")
    return Answer(
        text="" if text is None else str(text),  # a refusal or a tool call has no content: an empty answer
        finish_reason=choice.get("finish_reason"),
        tokens=tokens,
        token_ids=None if ids is None else tuple(int(token) for token in ids),
        is_cached=is_cached,
    )


def _chat_tokens(logprobs: Mapping[str, Any]) -> tuple[TokenLogp, ...] | None:
    content = logprobs.get("content")
    if content is None:
        return None
    return tuple(
        TokenLogp(
            text=item["token"],
            logp=_finite(item["logprob"]),
            likeliest=_joined((top["token"], top["logprob"]) for top in item.get("top_logprobs") or ()),
        )
        for item in content
    )


def _completion_tokens(logprobs: Mapping[str, Any]) -> tuple[TokenLogp, ...] | None:
    texts, logps = logprobs.get("tokens"), logprobs.get("token_logprobs")
    if texts is None or logps is None:
        return None
    tops = logprobs.get("top_logprobs") or [{}] * len(texts)
    return tuple(
        TokenLogp(text=text, logp=_finite(logp), likeliest=_joined((top or {}).items()))
        for text, logp, top in zip(texts, logps, tops, strict=True)
    )


def _joined(items: Any) -> dict[str, float]:
    """Several ids may have one text; together they have the sum of their probabilities."""
    found: dict[str, float] = {}
    for text, logp in items:
        found[text] = logp if text not in found else _logaddexp(found[text], logp)
    return found


def _logaddexp(a: float, b: float) -> float:
    high, low = max(a, b), min(a, b)
    return high if math.isinf(high) else high + math.log1p(math.exp(low - high))


def _finite(logp: Any) -> float:
    value = float(logp)
    if not math.isfinite(value):
        raise ValueError(f"a log-probability of {value}")
    return value


def _strange(body: Mapping[str, Any], url: str, what: str) -> str:
    error = body.get("error")
    said = f" (it says: {str(error)[:200]})" if error else ""
    return (
        f"got an answer that does not follow the protocol from {url}: {what}{said} — expected `choices` with a "
        "message or a text each — is this address an OpenAI-compatible endpoint?"
    )
