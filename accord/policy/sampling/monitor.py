"""Do sampler and scorer mean the same distribution? Asked at the start of a run, and of every batch of rollouts.

A gap between them makes every update off-policy without anyone saying so: other kernels, other precision, another
template, old weights. Here it is a number, with a level that warns and one that stops.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from accord.data.tokens import TokenGroup, TokenResponse
from accord.errors import PolicyError
from accord.policy.policy import Policy
from accord.policy.sampling.engine import LocalSampler
from accord.policy.sampling.protocol import Sampler, SamplingSettings

Ragged = Tensor | Sequence[Sequence[float]]
Level = Literal["ok", "alarm", "stop"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mismatch:
    """How far sampler and scorer are apart over the N tokens of some responses; 0, 1 and 0 where they agree."""

    num_tokens: int
    mean_abs: float  # mean |log π_scorer − log π_sampler|, nats per token
    largest_ratio: float  # max of π_scorer/π_sampler and its inverse, over tokens
    k3: float  # mean of ρ − 1 − log ρ, ρ = π_scorer/π_sampler: KL(sampler ‖ scorer), nats per token

    def __str__(self) -> str:
        """One line for a log."""
        return (
            f"mean |Δ log π| {self.mean_abs:.2g} nats, largest ratio {self.largest_ratio:.3g}, k3 {self.k3:.2g} nats, "
            f"over {self.num_tokens} tokens"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MismatchLimits:
    """From where on a mismatch warns and stops; `None` = never by this number.

    float32 on both sides is near 1e-6 nats, bfloat16 near 1e-2. One unlikely token may have a large ratio in low
    precision, so that number alone only warns.
    """

    alarm_mean_abs: float | None = 0.03
    alarm_ratio: float | None = 5.0
    alarm_k3: float | None = 0.005
    stop_mean_abs: float | None = 0.3
    stop_ratio: float | None = None
    stop_k3: float | None = 0.1

    def level(self, found: Mismatch) -> Level:
        """Return what a mismatch calls for; one that is not a number stops."""
        numbers = (found.mean_abs, found.largest_ratio, found.k3)

        def passes(*limits: float | None) -> bool:
            return all(limit is None or x <= limit for x, limit in zip(numbers, limits, strict=True))

        if not passes(self.stop_mean_abs, self.stop_ratio, self.stop_k3):
            return "stop"
        return "ok" if passes(self.alarm_mean_abs, self.alarm_ratio, self.alarm_k3) else "alarm"


def mismatch(sampler_logps: Ragged, scorer_logps: Ragged) -> Mismatch:
    """Compare log-probabilities, nats, that sampler and scorer gave to the same sampled tokens.

    Each is a flat tensor (N,) or a list per response. They are comparable where nothing was cut from the distribution
    (`SamplingSettings.is_uncut`) and the scorer is at the sampler's temperature. A k3 that overflows is infinite.
    Raises PolicyError where the two do not have as many tokens, or none.
    """
    sampler, scorer = _flat(sampler_logps), _flat(scorer_logps)
    lengths = [[len(x) for x in given] for given in (sampler_logps, scorer_logps) if not isinstance(given, Tensor)]
    if sampler.shape != scorer.shape or (len(lengths) == 2 and lengths[0] != lengths[1]) or not len(sampler):
        raise PolicyError(
            f"got log-probabilities of {len(sampler)} sampled and {len(scorer)} scored tokens — expected as many of "
            "each, at least one; score exactly the ids that were sampled"
        )
    gap = scorer - sampler
    return Mismatch(
        num_tokens=len(gap),
        mean_abs=float(gap.abs().mean()),
        largest_ratio=float(gap.abs().max().exp()),
        k3=float((gap.expm1() - gap).mean()),
    )


def _flat(given: Ragged) -> Tensor:
    if isinstance(given, Tensor):
        return given.detach().cpu().double().flatten()
    return torch.tensor([x for response in given for x in response], dtype=torch.float64)


@torch.no_grad()
def check_sampler(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    settings: SamplingSettings | None = None,
    *,
    sampler: Sampler | None = None,
    limits: MismatchLimits | None = None,
    num_prompts: int = 4,
    max_tokens: int = 32,
) -> Mismatch:
    """Draw from the first prompts and score what was drawn: is the sampler the policy?

    `sampler` is the policy itself unless given. The policy's whole distribution at its own temperature is drawn from,
    whatever cuts `settings` make: those are not the scorer's.
    Raises PolicyError at the level that stops, and what the sampler raises.
    """
    asked = replace(
        settings or SamplingSettings(),
        temperature=getattr(policy, "temperature", 1.0), top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0,
        min_tokens=0, stop=(), num_responses=2, max_tokens=max_tokens,
    )  # fmt: skip
    chosen = [tuple(ids) for ids in prompts[:num_prompts]]
    drawn = (sampler or LocalSampler(policy)).sample(chosen, asked).responses
    groups = [
        TokenGroup(
            prompt_ids=ids, responses=tuple(TokenResponse(ids=response.token_ids or ()) for response in responses)
        )
        for ids, responses in zip(chosen, drawn, strict=True)
    ]
    found = mismatch(
        [response.behaviour_logps or () for responses in drawn for response in responses],
        policy.score(groups).token_logps_N,
    )
    if (limits or MismatchLimits()).level(found) == "stop":
        raise PolicyError(
            f"the sampler is not the policy that is trained: {found} — expected the same weights, template and "
            "temperature on both sides; look at the sampler's precision and at whether it has the newest weights"
        )
    return found
