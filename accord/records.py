"""What the world says: a prompt, its K responses and the judgements about them. Plain Python, no torch.

A preference pair is a `Group` of two responses and one `Comparison`, a ranking is a group of n and one `Ranking`,
a thumbs-up is a group of one and one `Label`. Responses are referred to by their index in the group.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class FinishReason(Enum):
    """Why a response ended."""

    STOP = "stop"  # an end-of-sequence token or a stop string
    LENGTH = "length"  # the token limit
    UNKNOWN = "unknown"  # the file does not say


class Outcome(Enum):
    """What a verifier found. `UNKNOWN` (timeout, crash, unparsable) is never counted as `FAIL`."""

    PASS = "pass"
    FAIL = "fail"
    UNKNOWN = "unknown"

    def __bool__(self) -> bool:
        raise TypeError("an Outcome has three values; compare it with Outcome.PASS, FAIL or UNKNOWN")


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a conversation; `extra` keeps further keys a chat template may read (`tool_calls`, `name`, …)."""

    role: str
    content: str
    extra: Mapping[str, Any] = field(default_factory=dict)


Text = str | tuple[Message, ...]
"""Plain text, or turns to be rendered through a chat template."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """One answer to a prompt: text or turns as read from a file, or token ids as sampled (never re-encoded)."""

    content: Text | None = None
    token_ids: tuple[int, ...] | None = None
    finish_reason: FinishReason = FinishReason.UNKNOWN
    behaviour_logps: tuple[float, ...] | None = None  # nats per token, of the distribution actually sampled from
    source: str | None = None  # who wrote it: a policy's name, a person, "human"
    token_weights: tuple[float, ...] | None = None  # ≥ 0, one per token of token_ids: how much each one matters

    def __post_init__(self) -> None:
        if self.content is None and self.token_ids is None:
            raise ValueError("a Response needs content or token_ids; got neither")
        if self.token_weights is not None:
            self._check_weights(self.token_weights)

    def _check_weights(self, weights: tuple[float, ...]) -> None:
        if self.token_ids is None:
            raise ValueError(
                f"got {len(weights)} token_weights and no token_ids — expected both: a weight belongs to a token, and "
                "which tokens a text becomes depends on the tokenizer; give the response as token_ids"
            )
        if len(weights) != len(self.token_ids):
            raise ValueError(f"got {len(weights)} token_weights for {len(self.token_ids)} token_ids — expected as many")
        wrong = [weight for weight in weights if not (math.isfinite(weight) and weight >= 0)]
        if wrong:
            raise ValueError(f"got the token weight {wrong[0]} — expected finite numbers ≥ 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What every kind of judgement carries: who gave it and in which order the responses were shown."""

    judge: str | None = None
    shown_order: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison(Judgement):
    """`better` was preferred to `worse`. Equal indices are not allowed; a tie is `is_tie=True`."""

    better: int
    worse: int
    strength: float | None = None  # how much better, on the judge's own scale (a `margin` column, a Likert step)
    is_tie: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Rating(Judgement):
    """A number for one response, on a named attribute."""

    response: int
    value: float
    attribute: str = "overall"


@dataclass(frozen=True, slots=True, kw_only=True)
class Label(Judgement):
    """Thumbs up or down for one response; with `step`, for one step of it."""

    response: int
    is_desirable: bool
    step: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking(Judgement):
    """Responses from best to worst; members of one inner tuple are tied."""

    order: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Critique(Judgement):
    """Free text about one response, optionally with the judge's own edit of it."""

    response: int
    text: str
    edited: Text | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict(Judgement):
    """What a verifier found about one response."""

    response: int
    outcome: Outcome
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A prompt, its K ≥ 1 responses and the judgements about them: the unit of everything.

    `prompt` may be empty (language modelling). `origin` is "file:line" (or a sampler's name) for error messages.
    Raises ValueError when a judgement names a response that is not there.
    """

    prompt: Text
    responses: tuple[Response, ...]
    judgements: tuple[Judgement, ...] = ()
    tools: tuple[Mapping[str, Any], ...] = ()
    origin: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.responses:
            raise ValueError(f"{self.origin or 'a group'}: a Group needs at least one response")
        for judgement in self.judgements:
            for index in judged_responses(judgement):
                if not 0 <= index < len(self.responses):
                    raise ValueError(
                        f"{self.origin or 'a group'}: {type(judgement).__name__} names response {index}, "
                        f"but the group has {len(self.responses)}"
                    )
            if isinstance(judgement, Comparison) and judgement.better == judgement.worse:
                raise ValueError(f"{self.origin or 'a group'}: a Comparison of response {judgement.better} with itself")


def judged_responses(judgement: Judgement) -> tuple[int, ...]:
    """Return the indices of the responses a judgement speaks about."""
    match judgement:
        case Comparison(better=better, worse=worse):
            return (better, worse)
        case Ranking(order=order):
            return tuple(index for tier in order for index in tier)
        case Rating(response=index) | Label(response=index) | Critique(response=index) | Verdict(response=index):
            return (index,)
    raise TypeError(f"unknown kind of judgement: {type(judgement).__name__}")
