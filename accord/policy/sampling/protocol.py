"""What a sampler is asked and what it answers, whoever runs the model: this process, another library, a server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from accord.errors import PolicyError
from accord.records import Response


class NoSampler(PolicyError):
    """The model keeps more than an attention cache, or none: the local sampler cannot share a prefill."""


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """How to draw: K responses to a prompt, from which distribution, how long, from which seed, how many at a time.

    The distribution, in this order, each step renormalised: `repetition_penalty` (logits of tokens that occurred are
    divided by it where positive and multiplied where not; CTRL, arXiv 1909.05858), no end before `min_tokens` others,
    `temperature` (0 = greedy), `top_k`, `top_p` (the token that crosses the mass stays; arXiv 1904.09751), `min_p`
    (tokens of at least that share of the likeliest one's probability; arXiv 2407.01082).
    Raises PolicyError for a number out of its range.
    """

    num_responses: int = 1
    max_tokens: int = 128
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0 = no cut
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    min_tokens: int = 0
    stop: tuple[str, ...] = ()  # a response ends when its text contains one
    seed: int = 0
    max_rows: int = 256  # rows decoded together
    max_batch_tokens: int = 131_072  # places in the cache, prompts that are shared counted once

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):  # a tuple of its letters is never what was meant
            object.__setattr__(self, "stop", (self.stop,))
        object.__setattr__(self, "stop", tuple(self.stop))
        for name, is_fine, expected in (
            ("num_responses", self.num_responses >= 1, "≥ 1"),
            ("max_tokens", self.max_tokens >= 1, "≥ 1"),
            ("temperature", self.temperature >= 0, "≥ 0"),
            ("top_p", 0 < self.top_p <= 1, "in (0, 1]"),
            ("top_k", self.top_k >= 0, "≥ 0 (0 = no cut)"),
            ("min_p", 0 <= self.min_p <= 1, "in [0, 1]"),
            ("repetition_penalty", self.repetition_penalty > 0, "> 0 (1 = none)"),
            ("min_tokens", 0 <= self.min_tokens <= self.max_tokens, f"in [0, max_tokens={self.max_tokens}]"),
            ("stop", all(self.stop), "of texts that are not empty"),
            ("seed", self.seed >= 0, "≥ 0"),
            ("max_rows", self.max_rows >= 1, "≥ 1"),
            ("max_batch_tokens", self.max_batch_tokens >= 1, "≥ 1"),
        ):
            if not is_fine:
                raise PolicyError(f"got {name}={getattr(self, name)} — expected {name} {expected}")

    @property
    def is_greedy(self) -> bool:
        """Whether every token is the likeliest one."""
        return self.temperature == 0

    @property
    def is_uncut(self) -> bool:
        """Whether responses come from the model's whole distribution at a temperature, nothing cut or penalised.

        Only then are their log-probabilities those of a scorer at the same temperature.
        """
        return not (
            self.is_greedy or self.top_k or self.top_p < 1 or self.min_p or self.min_tokens
            or self.repetition_penalty != 1
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """K responses to each of P prompts, and whose they are.

    Every response carries `token_ids` as sampled, `behaviour_logps` (nats, of the distribution actually drawn from,
    after every cut and renormalised) and its `finish_reason`.
    """

    responses: tuple[tuple[Response, ...], ...]
    policy_version: int  # updates the policy had seen when it drew these
    settings: SamplingSettings


@runtime_checkable
class Sampler(Protocol):
    """Whatever draws responses from a policy.

    `streams` names each prompt's stream of random numbers, its position unless given. A sampler with settable seeds
    gives the same text for the same (seed, stream, response) whatever else it is asked at the same time; one that
    cannot says so.
    """

    def sample(
        self, prompts: Sequence[Sequence[int]], settings: SamplingSettings, *, streams: Sequence[int] | None = None
    ) -> Samples:
        """Draw K responses to each prompt of token ids."""
        ...
