"""Objectives of a rollout that clip a response as a whole: GSPO, LUSPO, and RLOO's full ratio.

Notation and the settings they share: `parts.py`. A loss of the whole response stands at each of its tokens, so that
`aggregation` means what it means elsewhere.
"""

from __future__ import annotations

from typing import Annotated, Any

from annotated_types import Ge, Interval
from jaxtyping import Float
from torch import Tensor

from accord.groups import ObjectiveResult, ScoredGroups
from accord.objectives.policy_gradient.parts import (
    Shared,
    advantages,
    clipped_link,
    log_old_ratios,
    logps,
    mean_over_tokens,
    offers,
    rollout_loss,
)
from accord.objectives.policy_gradient.token_ratio import row
from accord.objectives.spec import ObjectiveSpec

_MEANS, _SUMS = Shared(aggregation="seq_mean_token_mean"), Shared(aggregation="seq_mean_token_sum")


@offers(_MEANS)
def gspo(
    groups: ScoredGroups,
    *,
    clip_low: Annotated[float, Interval(ge=0, le=1)] = 3e-4,
    clip_high: Annotated[float, Ge(0)] = 4e-4,
    per_token: bool = False,
    **shared: Any,
) -> ObjectiveResult:
    """Follow the advantages with one length-normalised ratio per response, clipped as a whole (GSPO).

    Formula: −min(s A_t, clip(s, 1 − ε_low, 1 + ε_high) A_t), s = exp((1/|y|) Σ_t Δ_t). `per_token` puts
    sg[s] · π_t/sg[π_t] in the place of s: the same value, each token's gradient its own.
    Gradient: −s A (1/|y|) Σ_t ∇ℓ_t while not clipped: every token of a response weighs the same.
    Optimum: on-policy that of `reinforce` with `aggregation=seq_mean_token_mean`.
    Use: mixtures of experts and long responses, where single tokens' ratios are noise; `per_token` when advantages
    differ within a response.
    Limits: the bounds are some thousand times smaller than PPO's, because s is a geometric mean: at 0.2 nothing is ever
    clipped. One token gives GRPO.
    Source: Zheng et al. 2025, arXiv:2507.18071.

    >>> import torch
    >>> from accord.groups import ScoredGroups, ScoredTokens
    >>> of_tokens = torch.tensor([[[-1.0, -1.0]]])
    >>> tokens = ScoredTokens(policy_logps_PKT=of_tokens, is_trained_PKT=torch.ones(1, 1, 2, dtype=torch.bool),
    ...                       old_logps_PKT=torch.tensor([[[-0.9, -1.0]]]), advantage_PKT=torch.ones(1, 1, 2))
    >>> groups = ScoredGroups(policy_logps_PK=of_tokens.sum(-1), num_tokens_PK=torch.tensor([[2]]),
    ...                       is_valid_PK=torch.ones(1, 1, dtype=torch.bool), tokens=tokens)
    >>> round(gspo(groups).loss_P.item(), 6)  # −e^(−0.1/2)
    -0.951229
    """
    log_ratio_PKT = _whole(groups, mean_over_tokens(groups, log_old_ratios(groups)))
    if per_token:
        log_ratio_PKT = log_ratio_PKT.detach() + logps(groups) - logps(groups).detach()
    loss_PKT = clipped_link(log_ratio_PKT, advantages(groups), clip_low=clip_low, clip_high=clip_high)
    return rollout_loss(groups, loss_PKT, _MEANS.changed(shared))


@offers(_SUMS)
def luspo(
    groups: ScoredGroups,
    *,
    clip_low: Annotated[float, Interval(ge=0, le=1)] = 3e-4,
    clip_high: Annotated[float, Ge(0)] = 4e-4,
    **shared: Any,
) -> ObjectiveResult:
    """Weigh GSPO's loss of a response by its length, so that each token counts alike (length-unbiased GSPO).

    Formula: −|y| min(s A, clip(s, 1 − ε_low, 1 + ε_high) A), s = exp((1/|y|) Σ_t Δ_t).
    Gradient: −s A Σ_t ∇ℓ_t while not clipped.
    Optimum: on-policy that of `reinforce`.
    Use: GSPO makes responses shorter, or longer, than the task asks for.
    Limits: long responses dominate a batch's gradient. `gspo` with `aggregation=seq_mean_token_sum`.
    Source: reconstruction from TRL's `loss_type="luspo"`; the ratio is GSPO's, arXiv:2507.18071.

    >>> import torch
    >>> from accord.groups import ScoredGroups, ScoredTokens
    >>> of_tokens = torch.tensor([[[-1.0, -1.0]]])
    >>> tokens = ScoredTokens(policy_logps_PKT=of_tokens, is_trained_PKT=torch.ones(1, 1, 2, dtype=torch.bool),
    ...                       old_logps_PKT=torch.tensor([[[-0.9, -1.0]]]), advantage_PKT=torch.ones(1, 1, 2))
    >>> groups = ScoredGroups(policy_logps_PK=of_tokens.sum(-1), num_tokens_PK=torch.tensor([[2]]),
    ...                       is_valid_PK=torch.ones(1, 1, dtype=torch.bool), tokens=tokens)
    >>> round(luspo(groups).loss_P.item(), 6)  # −2 e^(−0.1/2)
    -1.902459
    """
    return gspo(groups, clip_low=clip_low, clip_high=clip_high, **({"aggregation": _SUMS.aggregation} | shared))


@offers(_MEANS)
def rloo_clip(
    groups: ScoredGroups,
    *,
    clip_low: Annotated[float, Interval(ge=0, le=1)] = 0.2,
    clip_high: Annotated[float, Ge(0)] = 0.2,
    **shared: Any,
) -> ObjectiveResult:
    """Follow the advantages with the full ratio of each response, clipped as a whole (RLOO over several steps).

    Formula: −min(w A, clip(w, 1 − ε_low, 1 + ε_high) A), w = exp(Σ_t Δ_t) = π(y)/π_old(y), once per response.
    Gradient: −w A Σ_t ∇ℓ_t while not clipped: of the expected reward, also off-policy, but for the clip.
    Optimum: while nothing is clipped that of `reinforce`, whose gradient it has on-policy.
    Use: `rloo` advantages and more than one step per rollout, short responses.
    Limits: the ratio is e to a sum over tokens: on long responses it is 0 or huge after one step; then take `gspo`.
    Source: Ahmadian et al. 2024, arXiv:2402.14740, with the clip of TRL's RLOO trainer.

    >>> import torch
    >>> from accord.groups import ScoredGroups, ScoredTokens
    >>> of_tokens = torch.tensor([[[-1.0, -1.0]]])
    >>> tokens = ScoredTokens(policy_logps_PKT=of_tokens, is_trained_PKT=torch.ones(1, 1, 2, dtype=torch.bool),
    ...                       old_logps_PKT=torch.tensor([[[-0.9, -1.0]]]), advantage_PKT=torch.ones(1, 1, 2))
    >>> groups = ScoredGroups(policy_logps_PK=of_tokens.sum(-1), num_tokens_PK=torch.tensor([[2]]),
    ...                       is_valid_PK=torch.ones(1, 1, dtype=torch.bool), tokens=tokens)
    >>> round(rloo_clip(groups).loss_P.item(), 6)  # −e^(−0.1)
    -0.904837
    """
    log_ratio_PKT = _whole(groups, log_old_ratios(groups).sum(dim=2))
    loss_PKT = clipped_link(log_ratio_PKT, advantages(groups), clip_low=clip_low, clip_high=clip_high)
    return rollout_loss(groups, loss_PKT, _MEANS.changed(shared))


def _whole(groups: ScoredGroups, value_PK: Float[Tensor, "P K"]) -> Float[Tensor, "P K T"]:
    """Return a number per response at each of its tokens."""
    return value_PK[:, :, None].expand_as(log_old_ratios(groups))


ROWS: dict[str, ObjectiveSpec] = {
    "gspo": row(fn=gspo, paper="Zheng et al. 2025, arXiv:2507.18071"),
    "luspo": row(fn=luspo, paper="reconstruction from TRL; ratio of arXiv:2507.18071"),
    "rloo_clip": row(fn=rloo_clip, paper="Ahmadian et al. 2024, arXiv:2402.14740"),
}
