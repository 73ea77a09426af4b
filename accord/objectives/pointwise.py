"""Objectives of single judged responses: thumbs up or down, no pairs needed.

Axes: P prompts, K responses per prompt. u(y) = log π(y|x) − log π_ref(y|x), nats.
"""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Gt

from accord.groups import ObjectiveResult, ScoredGroups
from accord.objectives._ops import log_ratios, sum_over_responses
from accord.objectives.spec import Need, ObjectiveSpec


def kto(
    groups: ScoredGroups,
    *,
    beta: Annotated[float, Gt(0)] = 0.1,
    desirable_weight: Annotated[float, Ge(0)] = 1.0,
    undesirable_weight: Annotated[float, Ge(0)] = 1.0,
) -> ObjectiveResult:
    """Raise desirable and lower undesirable responses against a KL baseline with a bounded loss (KTO).

    Formula: λ_D (1 − σ(β (u − z₀))) for a desirable response, λ_U (1 − σ(β (z₀ − u))) for an undesirable one; z₀ =
    `groups.mismatched_kl`, the batch estimate of KL(π ‖ π_ref), global over ranks and without gradient.
    Reduction: mean over labelled RESPONSES as in the paper (sums with their count as denominator), not over groups.
    Gradient: ∂/∂log π(y) = −β λ_D q(1 − q), q = σ(β (u − z₀)) (desirable), +β λ_U q(1 − q), q = σ(β (z₀ − u)).
    Loss λ/2 per response at policy = reference, where z₀ = 0.
    Optimum: none finite; bounded between 0 and λ. With a fraction p of thumbs up for a response, it is raised when
    λ_D p > λ_U (1 − p), else lowered.
    Limits: without z₀ (prompts with someone else's response) the method loses its baseline; keep λ_D n_D / λ_U n_U near
    1 to 4/3; gradients vanish far from z₀, so badly wrong examples are left alone.
    Source: Ethayarajh et al. 2024, arXiv:2402.01306, eq. 8.

    >>> import torch
    >>> from accord.groups import ScoredGroups
    >>> up = ScoredGroups(
    ...     policy_logps_PK=torch.tensor([[-12.0]]), reference_logps_PK=torch.tensor([[-13.0]]),
    ...     num_tokens_PK=torch.tensor([[10]]), is_valid_PK=torch.tensor([[True]]),
    ...     desirable_PK=torch.tensor([[True]]), is_labelled_PK=torch.tensor([[True]]),
    ...     mismatched_kl=torch.tensor(0.2),
    ... )
    >>> round(kto(up, beta=0.1).loss_P.item(), 6)  # 1 − σ(0.1 (1 − 0.2))
    0.480011
    """
    assert groups.desirable_PK is not None, "the spec declares that kto needs labels"
    assert groups.is_labelled_PK is not None, "the spec declares that kto needs labels"
    assert groups.mismatched_kl is not None, "the spec declares that kto needs the mismatched KL"
    log_ratio_PK = log_ratios(groups)
    advantage_PK = beta * (log_ratio_PK - groups.mismatched_kl.detach())
    is_used_PK = groups.is_labelled_PK & groups.is_valid_PK
    signed_PK = torch.where(is_used_PK, torch.where(groups.desirable_PK, advantage_PK, -advantage_PK), 0.0)
    unweighted_PK = torch.sigmoid(-signed_PK)  # 1 − σ(z) = σ(−z), without cancellation
    return sum_over_responses(
        groups,
        is_used_PK=is_used_PK,
        loss_PK=torch.where(groups.desirable_PK, desirable_weight * unweighted_PK, undesirable_weight * unweighted_PK),
        weight_PK=torch.ones_like(log_ratio_PK),
        implicit_reward_PK=beta * log_ratio_PK,
    )


def _kto_initial_loss(*, desirable_weight: float, undesirable_weight: float, **_: float) -> float | None:
    # With unequal weights the value depends on the share of thumbs up in the data.
    return desirable_weight / 2 if desirable_weight == undesirable_weight else None


ROWS: dict[str, ObjectiveSpec] = {
    "kto": ObjectiveSpec(
        fn=kto,
        family="pointwise",
        needs=frozenset({Need.LABELS, Need.MISMATCHED_KL}),
        reference=True,
        initial_loss=_kto_initial_loss,
        proof="direction",
        implicit_reward="β·log(π/π_ref)",
        paper="Ethayarajh et al. 2024, arXiv:2402.01306, eq. 8",
    ),
}
