"""Objectives of a rollout whose tokens are weighed one by one: REINFORCE, PPO's clip and CISPO.

Notation and the settings they share: `parts.py`.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, Interval

from accord.groups import ObjectiveResult, ScoredGroups
from accord.objectives.policy_gradient.parts import (
    COMBINATIONS,
    NEEDS,
    NEEDS_WHEN,
    READS,
    REFUSED,
    SHARED_SETTINGS,
    Shared,
    advantages,
    aggregate,
    at_trained,
    clipped_link,
    log_old_ratios,
    logps,
    offers,
    ratio_of,
    rollout_loss,
    rollout_tokens,
    shared_terms,
)
from accord.objectives.spec import Need, ObjectiveSpec

_SUMS, _TOKENS = Shared(aggregation="seq_mean_token_sum"), Shared(aggregation="token_mean")


@offers(_SUMS)
def reinforce(groups: ScoredGroups, **shared: Any) -> ObjectiveResult:
    """Raise the log-probability of each token in proportion to its advantage (policy gradient).

    Formula: −sg[A_t] ℓ_t per token, summed over a response, mean over responses (`aggregation`).
    Gradient: −A_t ∇ℓ_t: on-policy, that of the expected reward, whatever baseline is inside A. A = 0 moves nothing.
    Optimum: with k1 in the reward (`advantage.kl_coef` β), π ∝ π_ref e^(R/β); with k2 in the loss (`kl_coef` β) the
    same for responses of one token, while over several it does not see what a token does to the KL of later ones; with
    k3 in the loss β π_ref/(λ − R), another policy.
    Use: one optimiser step per rollout, with `rloo` advantages: nothing to clip, nothing biased.
    Limits: off-policy (several steps or passes per rollout) the gradient is wrong and nothing says so: take `ppo_clip`.
    A mean over tokens instead of the sum makes short responses count for more.
    Source: Williams 1992, doi:10.1007/BF00992696; for language models Ahmadian et al. 2024, arXiv:2402.14740.

    >>> import torch
    >>> from accord.groups import ScoredGroups, ScoredTokens
    >>> of_tokens = torch.tensor([[[-1.0, -0.5], [-2.0, 0.0]]])
    >>> is_trained = torch.tensor([[[True, True], [True, False]]])
    >>> tokens = ScoredTokens(policy_logps_PKT=of_tokens, is_trained_PKT=is_trained, old_logps_PKT=of_tokens,
    ...                       advantage_PKT=torch.tensor([[[1.0, 1.0], [-1.0, 0.0]]]))
    >>> groups = ScoredGroups(policy_logps_PK=of_tokens.sum(-1), num_tokens_PK=is_trained.sum(-1),
    ...                       is_valid_PK=torch.ones(1, 2, dtype=torch.bool), tokens=tokens)
    >>> result = reinforce(groups)
    >>> result.loss_P.item(), result.denominator_P.item()  # 1.5 − 2 over two responses
    (-0.5, 2.0)
    """
    return rollout_loss(groups, -advantages(groups) * logps(groups), _SUMS.changed(shared))


@offers(_TOKENS)
def ppo_clip(
    groups: ScoredGroups,
    *,
    clip_low: Annotated[float, Interval(ge=0, le=1)] = 0.2,
    clip_high: Annotated[float, Ge(0)] = 0.2,
    dual_clip: Annotated[float, Gt(1)] | None = None,
    delta: Annotated[float, Gt(1)] | None = None,
    value_coef: Annotated[float, Ge(0)] = 0.0,
    value_clip: Annotated[float, Gt(0)] = 0.2,
    **shared: Any,
) -> ObjectiveResult:
    """Follow the advantages token by token, and stop where the policy has already moved far enough (PPO, GRPO, DAPO).

    Formula: −min(ρ_t A_t, clip(ρ_t, 1 − ε_low, 1 + ε_high) A_t); `dual_clip` c: at most −c A_t where A_t < 0; `delta`
    caps the first ρ_t. With `value_coef` c_v: + c_v/2 · max((V − G)², (V_old + clip(V − V_old, ±`value_clip`) − G)²), G
    the return. + `kl_coef` · k2 or k3 − `entropy_coef` · H_t, all before the tokens are added up.
    Gradient: −ρ_t A_t ∇ℓ_t, and 0 where ρ_t > 1 + ε_high with A_t > 0 or ρ_t < 1 − ε_low with A_t < 0. A token with
    A_t < 0 and large ρ_t is not clipped: that is what `delta` and `dual_clip` bound.
    Optimum: while nothing is clipped, on-policy, that of `reinforce` with the same aggregation.
    Use: several optimiser steps or passes per rollout. PPO: `gae` advantages, `value_coef` 0.1. GRPO: `grpo`
    advantages, `aggregation=seq_mean_token_mean`. DAPO: `clip_high` 0.28. Dr. GRPO: `dr_grpo`, `aggregation=constant`.
    Limits: the mean per response punishes long wrong ones less per token, the mean over all tokens lets long responses
    decide; the critic's loss is added up as the policy's is. Ratios beyond e^30 go along their tangent.
    Source: Schulman et al. 2017, arXiv:1707.06347, eq. 7; GRPO arXiv:2402.03300; DAPO arXiv:2503.14476; dual clip Ye et
    al. 2020, arXiv:1912.09729.

    >>> import torch
    >>> from accord.groups import ScoredGroups, ScoredTokens
    >>> of_tokens = torch.tensor([[[1.5, 1.5]]]).log()
    >>> tokens = ScoredTokens(policy_logps_PKT=of_tokens, is_trained_PKT=torch.ones(1, 1, 2, dtype=torch.bool),
    ...                       old_logps_PKT=torch.zeros(1, 1, 2), advantage_PKT=torch.tensor([[[1.0, -1.0]]]))
    >>> groups = ScoredGroups(policy_logps_PK=of_tokens.sum(-1), num_tokens_PK=torch.tensor([[2]]),
    ...                       is_valid_PK=torch.ones(1, 1, dtype=torch.bool), tokens=tokens)
    >>> round(ppo_clip(groups).loss_P.item(), 4)  # −1.2 × 1 + 1.5 × 1
    0.3
    """
    settings = _TOKENS.changed(shared)
    loss_PKT = clipped_link(
        log_old_ratios(groups), advantages(groups),
        clip_low=clip_low, clip_high=clip_high, delta=delta, dual_clip=dual_clip,
    )  # fmt: skip
    loss_PKT = shared_terms(groups, loss_PKT, settings)
    if value_coef:
        loss_PKT = loss_PKT + value_coef * _value_loss(groups, value_clip)
    return aggregate(groups, loss_PKT, settings)


@offers(_TOKENS)
def cispo(
    groups: ScoredGroups,
    *,
    clip_low: Annotated[float, Interval(ge=0, le=1)] = 1.0,
    clip_high: Annotated[float, Ge(0)] = 0.28,
    **shared: Any,
) -> ObjectiveResult:
    """Weigh REINFORCE's tokens by a held, bounded ratio, so that none leaves the gradient (CISPO).

    Formula: −sg[clip(ρ_t, 1 − ε_low, 1 + ε_high)] A_t ℓ_t. ε_low = 1 bounds from above only.
    Gradient: −clip(ρ_t) A_t ∇ℓ_t: where PPO's would be 0 it is (1 + ε_high) A_t ∇ℓ_t.
    Optimum: on-policy that of `reinforce` with the same aggregation.
    Use: where rare tokens that turn a chain of thought ("wait") are clipped away by PPO.
    Limits: the bound is on the weight, not on how far the policy goes. Other code gives the bound as the number
    1 + ε_high itself.
    Source: MiniMax 2025 (MiniMax-M1), arXiv:2506.13585.

    >>> import torch
    >>> from accord.groups import ScoredGroups, ScoredTokens
    >>> of_tokens = torch.tensor([[[-1.0]]])
    >>> tokens = ScoredTokens(policy_logps_PKT=of_tokens, is_trained_PKT=torch.ones(1, 1, 1, dtype=torch.bool),
    ...                       old_logps_PKT=torch.full((1, 1, 1), -2.0), advantage_PKT=torch.ones(1, 1, 1))
    >>> groups = ScoredGroups(policy_logps_PK=of_tokens.sum(-1), num_tokens_PK=torch.tensor([[1]]),
    ...                       is_valid_PK=torch.ones(1, 1, dtype=torch.bool), tokens=tokens)
    >>> round(cispo(groups).loss_P.item(), 4)  # ρ = e¹ is held at 1.28
    1.28
    """
    weight_PKT = ratio_of(log_old_ratios(groups).detach()).clamp(1.0 - clip_low, 1.0 + clip_high)
    return rollout_loss(groups, -weight_PKT * advantages(groups) * logps(groups), _TOKENS.changed(shared))


def _value_loss(groups: ScoredGroups, value_clip: float) -> torch.Tensor:
    tokens = rollout_tokens(groups)
    value_PKT, target_PKT = at_trained(groups, tokens.value_PKT), at_trained(groups, tokens.return_PKT)
    old_PKT = at_trained(groups, tokens.old_value_PKT)
    held_PKT = old_PKT + (value_PKT - old_PKT).clamp(-value_clip, value_clip)
    return torch.maximum((value_PKT - target_PKT).square(), (held_PKT - target_PKT).square()) / 2


row = partial(
    ObjectiveSpec,
    family="policy_gradient",
    level="token",
    needs=NEEDS,
    reads=READS,
    needs_when=NEEDS_WHEN,
    reference=False,
    reference_when="kl_coef",
    refused=REFUSED,
    shared_settings=SHARED_SETTINGS,
    has_stop_gradient=True,
    proof="fixed point",
    implicit_reward="log(π/π_old)",
)
"""What the rows of a rollout have in common."""

ROWS: dict[str, ObjectiveSpec] = {
    "reinforce": row(
        fn=reinforce,
        combinations=COMBINATIONS,
        proof="optimum",
        paper="Ahmadian et al. 2024, arXiv:2402.14740",
    ),
    "ppo_clip": row(
        fn=ppo_clip,
        reads=READS | {Need.VALUES},
        needs_when=NEEDS_WHEN | {"value_coef": Need.VALUES},
        combinations=({"value_coef": 0.5, "value_clip": 0.3, "dual_clip": 1.05, "delta": 1.1, "kl_coef": 0.2},),
        paper="Schulman et al. 2017, arXiv:1707.06347",
    ),
    "cispo": row(fn=cispo, paper="MiniMax 2025, arXiv:2506.13585"),
}
