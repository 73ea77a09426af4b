"""How strongly a policy is aligned, chosen while decoding: a geometric mixture of reference and policy, by token.

π_λ(token) ∝ π_ref^{1−λ} π^λ. Where π ∝ π_ref e^{r/β} token by token, π_λ ∝ π_ref e^{λr/β}: the policy of strength
β/λ. λ = 0 is the reference, 1 the policy, and beyond 1 is more aligned than was trained.
Source: DeRa, Liu et al. 2024, arXiv:2402.02992.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from accord.data import encode_prompts
from accord.decoding.cached import CachedRows, check_same_vocabulary
from accord.decoding.drawn import answered, draw_each
from accord.errors import ConfigError
from accord.policy.policy import Policy
from accord.policy.sampling import SamplingSettings, stop_ids
from accord.records import Group, Response


def mixed_logps(reference_logps_BV: Tensor, policy_logps_BV: Tensor, strength: float) -> Tensor:
    """Return log π_λ, nats, normalised over the vocabulary. What the reference rules out stays out for λ > 1."""
    mixed_BV = torch.lerp(reference_logps_BV, policy_logps_BV, strength)  # at 0 and 1 one of them exactly
    impossible_BV = torch.isneginf(reference_logps_BV) | torch.isneginf(policy_logps_BV)
    if strength in (0, 1):
        return policy_logps_BV if strength else reference_logps_BV
    return mixed_BV.masked_fill(impossible_BV, -math.inf).log_softmax(-1)


def sample_realigned(
    policy: Policy,
    reference: Policy,
    prompts: Sequence[Sequence[int]],
    settings: SamplingSettings,
    *,
    strength: float,
    streams: Sequence[int] | None = None,
    ends: frozenset[int] | None = None,
) -> list[tuple[Response, ...]]:
    """Draw K responses to each prompt of token ids from the mixture with λ = `strength`.

    Temperature, top-k and top-p apply to the mixture; `behaviour_logps` are those of what was drawn from. The random
    numbers are those of the local sampler: row (seed, prompt, response) has a stream of its own; `streams` as there.
    Raises PolicyError for models with different vocabularies, and as `CachedRows` does.
    """
    if not math.isfinite(strength) or strength < 0:
        raise ConfigError(f"got strength={strength} — expected λ ≥ 0: 0 = the reference, 1 = the policy")
    check_same_vocabulary(policy, reference)
    return draw_each(
        (policy, reference), prompts, settings, streams=streams, ends=ends,
        rows_at=lambda prompt: _Mixture(CachedRows(reference, prompt), CachedRows(policy, prompt), strength),
    )  # fmt: skip


class _Mixture:
    def __init__(self, reference: CachedRows, policy: CachedRows, strength: float) -> None:
        self._models, self._strength = (reference, policy), strength
        self.logps_BV = self._mix(*(model.logps_BV for model in self._models))

    def step(self, rows_B: Tensor, tokens_B: Tensor) -> Tensor:
        self.logps_BV = self._mix(*(model.step(rows_B, tokens_B) for model in self._models))
        return self.logps_BV

    def _mix(self, first_BV: Tensor, second_BV: Tensor) -> Tensor:
        return mixed_logps(first_BV, second_BV.to(first_BV.device), self._strength)


def answer_realigned(
    policy: Policy, reference: Policy, groups: Sequence[Group], settings: SamplingSettings, *, strength: float,
    chat_template: str = "auto",
) -> list[Group]:  # fmt: skip
    """Return groups with the same prompts and K responses each, drawn from the mixture with λ = `strength`."""
    prompts = encode_prompts(groups, policy.tokenizer, chat_template=chat_template)
    ends = stop_ids(policy, chat_template)
    drawn = sample_realigned(policy, reference, prompts, settings, strength=strength, ends=ends)
    return answered(groups, drawn)
