"""Objectives of judged orders: the whole ranking at once, or the best against all that were judged worse.

Axes: P prompts, K responses per prompt. Notation in formulas: u(y) = log π(y|x) − log π_ref(y|x), s = β u, |y| the
number of response tokens incl. EOS, nats throughout. What is tied is not set against each other; responses nobody
judged take no part.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt
from jaxtyping import Bool, Float
from torch import Tensor

from accord.groups import ObjectiveResult, ScoredGroups
from accord.objectives._ops import (
    best_judged,
    given_ratings,
    group_losses,
    judged_pairs,
    log_ratios,
    mean_logps,
    mean_over_best,
    pair_margins,
    plackett_luce_nll,
    soft_label_link,
    softmax_link,
)
from accord.objectives.spec import Need, ObjectiveSpec


def plackett_luce(groups: ScoredGroups, *, beta: Annotated[float, Gt(0)] = 0.1) -> ObjectiveResult:
    """Fit the implicit reward β·u to whole rankings: the likelihood of choosing the best that is left, again and again.

    Formula: Σ_k log Σ_{j ≥ k} e^(s_τ(j) − s_τ(k)) over the places k = 1 … K − 1 of the ranking τ, s = β u; from judged
    pairs: Σ_i log(1 + Σ_{j worse than i} e^(s_j − s_i)).
    Gradient: ∂/∂log π(y_j) = β (Σ_k w_kj − 1[j is not last]), w_kj the share of j in the softmax of stage k.
    Optimum: s = r + const where raters rank by Plackett–Luce with rewards r.
    Use: when a judge ranked three or more responses; it uses the order of all of them, `rnce` only who came first.
    Limits: log K! at policy = reference, so longer rankings weigh more; a tie's members each compete with those below
    it, not with each other; in a partial order each response competes with those judged worse; K = 2 is DPO; a group of
    one, or of ties only, is not counted; like DPO no finite optimum for a unanimous order.
    Source: Plackett 1975; Rafailov et al. 2023, arXiv:2305.18290, appendix.

    >>> import torch
    >>> ranked = ScoredGroups(
    ...     policy_logps_PK=torch.tensor([[1.0, 0.2, -0.5]]), reference_logps_PK=torch.zeros(1, 3),
    ...     num_tokens_PK=torch.ones(1, 3, dtype=torch.long), is_valid_PK=torch.ones(1, 3, dtype=torch.bool),
    ...     preferred_PKK=torch.ones(1, 3, 3, dtype=torch.bool).triu(1),
    ... )
    >>> round(plackett_luce(ranked, beta=1.0).loss_P.item(), 6)  # log(1 + e^−0.8 + e^−1.5) + log(1 + e^−0.7)
    0.917481
    """
    pairs_PKK = judged_pairs(groups)
    implicit_reward_PK = beta * log_ratios(groups)
    loss_P = plackett_luce_nll(pairs_PKK, implicit_reward_PK)
    return group_losses(groups, pairs_PKK.any(dim=(1, 2)), loss_P, implicit_reward_PK)


def rnce(groups: ScoredGroups, *, beta: Annotated[float, Gt(0)] = 0.1) -> ObjectiveResult:
    """Tell the best response from all that were judged worse by a softmax (ranking NCE; multi-negative DPO).

    Formula: −log e^(s_0) / Σ_{j = 0 … M} e^(s_j), s = β u, 0 the best response, 1 … M those judged worse than it.
    Gradient: ∂/∂log π(y_0) = −β (1 − w_0), ∂/∂log π(y_j) = β w_j, w = softmax(s_0 … s_M).
    Optimum: s = r + const where the best of a group is chosen with probability softmax(r); with the best drawn from
    p and the others from π_ref, s = log(p/π_ref) + const for every M.
    Use: when only the best of several responses was marked, or one chosen response has several rejected ones; the
    negatives that the policy likes most get the largest weight.
    Limits: log(M + 1) at policy = reference; M = 1 is DPO; M equal negatives give log(1 + M e^(s_1 − s_0)); several
    best ones tied are averaged, each against its own worse ones; a circle of judgements has no best and is not counted,
    nor is a group of one or of ties only.
    Source: the estimator behind MC-PO, Chen et al. 2025, arXiv:2502.04567 (reconstruction).

    >>> import torch
    >>> marked = ScoredGroups(
    ...     policy_logps_PK=torch.tensor([[1.0, 0.2, -0.5]]), reference_logps_PK=torch.zeros(1, 3),
    ...     num_tokens_PK=torch.ones(1, 3, dtype=torch.long), is_valid_PK=torch.ones(1, 3, dtype=torch.bool),
    ...     preferred_PKK=torch.tensor([[[False, True, True], [False] * 3, [False] * 3]]),
    ... )
    >>> round(rnce(marked, beta=1.0).loss_P.item(), 6)  # log(1 + e^−0.8 + e^−1.5)
    0.514295
    """
    pairs_PKK = judged_pairs(groups)
    implicit_reward_PK = beta * log_ratios(groups)
    loss_PK = softmax_link(pair_margins(pairs_PKK, implicit_reward_PK), pairs_PKK)
    return mean_over_best(groups, pairs_PKK, loss_PK, implicit_reward_PK)


def pro(groups: ScoredGroups, *, sft_weight: Annotated[float, Ge(0)] = 0.05) -> ObjectiveResult:
    """Rank mean log-probabilities by ratings, each response against those rated lower, gaps as temperatures (PRO).

    Formula: Σ_i −log e^(g_i l̄_i) / (e^(g_i l̄_i) + Σ_{j: r_j < r_i} e^((r_i − r_j) l̄_j)) + λ (K − 1)² · (−l̄_best), l̄ =
    log π(y)/|y|, g_i the largest gap r_i − r_j, K the number of rated responses, λ = `sft_weight`.
    Gradient: ∂/∂log π(y_i) = −g_i (1 − w_i)/|y_i| from its own stage, w the softmax of the stage, and
    +(r_k − r_i) w_i/|y_i| from each stage k above it.
    Optimum: none in closed form, since the likelihood term has no balance; λ = 0 and two responses: l̄_w − l̄_l =
    logit(p)/(r_w − r_l).
    Use: when responses carry ratings whose gaps mean something, and no reference is at hand.
    Limits: the scale of the ratings is the temperature, so bring them to about [0, 1]; equal ratings are not compared;
    a group with all ratings equal, or with one rated response, is not counted; several best ones are averaged in the
    likelihood term; both terms are token means here (the released code takes the sum in the second).
    Source: Song et al. 2023, arXiv:2306.17492.

    >>> import torch
    >>> rated = ScoredGroups(
    ...     policy_logps_PK=torch.tensor([[-1.0, -1.5, -2.0]]), num_tokens_PK=torch.ones(1, 3, dtype=torch.long),
    ...     is_valid_PK=torch.ones(1, 3, dtype=torch.bool), reward_PK=torch.tensor([[0.9, 0.5, 0.1]]),
    ...     is_rated_PK=torch.ones(1, 3, dtype=torch.bool),
    ... )
    >>> round(pro(rated, sft_weight=0.0).loss_P.item(), 6)  # log(1 + e^(0.8 − 0.6) + e^(0.8 − 1.6)) + log(1 + e^−0.2)
    1.580491
    """
    pairs_PKK, reward_PK = _rated_pairs(groups)
    gap_PKK = pair_margins(pairs_PKK, reward_PK)
    mean_logp_PK = mean_logps(groups)
    own_PKK = (gap_PKK.amax(dim=2) * mean_logp_PK)[:, :, None]
    margin_PKK = torch.where(pairs_PKK, own_PKK - gap_PKK * mean_logp_PK[:, None, :], 0.0)
    is_best_PK = best_judged(pairs_PKK)
    best_nll_P = torch.where(is_best_PK, -mean_logp_PK, 0.0).sum(dim=1) / is_best_PK.sum(dim=1).clamp(min=1)
    num_rated_P = (pairs_PKK.any(dim=1) | pairs_PKK.any(dim=2)).to(best_nll_P.dtype).sum(dim=1)
    loss_P = softmax_link(margin_PKK, pairs_PKK).sum(dim=1) + sft_weight * (num_rated_P - 1).square() * best_nll_P
    return group_losses(groups, pairs_PKK.any(dim=(1, 2)), loss_P, mean_logp_PK)


_SAME_PLACE = 1e-3  # scores nearer than this share a place, as all do at policy = reference


def lipo_lambda(
    groups: ScoredGroups,
    *,
    beta: Annotated[float, Gt(0)] = 0.1,
    gain: Literal["exponential", "linear"] = "exponential",
) -> ObjectiveResult:
    """Weigh each pair by what swapping its two places would change in the ranking's DCG (LiPO-λ).

    Formula: Σ_{r_i > r_j} |G_i − G_j| · |1/log(1 + τ_i) − 1/log(1 + τ_j)| · log(1 + e^(s_j − s_i)), s = β u, G = 2^r
    ("exponential") or r ("linear"), τ_i the place of i by the current s (1 = highest), natural logarithm, no gradient
    through places.
    Gradient: of DPO on each pair, times its weight.
    Optimum: each pair's term is least at logit p, but the weights move with the policy: the places, not the margins,
    settle. Two responses: DPO times a constant.
    Use: for graded ratings (say 0 … 4) where the top of the list matters most.
    Limits: 2^r is meant for small grades — rescale ratings or take gain=linear; where s agrees to 0.001 the higher
    rating comes first, else at policy = reference, where all are equal, no place would be defined; equal ratings are
    not compared; all ratings equal, or one rated response: not counted.
    Source: Liu et al. 2024, arXiv:2402.01878 (weights from memory of the published form, sum over pairs).

    >>> import torch
    >>> graded = ScoredGroups(
    ...     policy_logps_PK=torch.tensor([[1.0, 0.2]]), reference_logps_PK=torch.zeros(1, 2),
    ...     num_tokens_PK=torch.ones(1, 2, dtype=torch.long), is_valid_PK=torch.ones(1, 2, dtype=torch.bool),
    ...     reward_PK=torch.tensor([[1.0, 0.0]]), is_rated_PK=torch.ones(1, 2, dtype=torch.bool),
    ... )
    >>> round(lipo_lambda(graded, beta=1.0).loss_P.item(), 6)  # (2 − 1)(1/log 2 − 1/log 3) log(1 + e^−0.8)
    0.197595
    """
    pairs_PKK, reward_PK = _rated_pairs(groups)
    implicit_reward_PK = beta * log_ratios(groups)
    is_ranked_PK = pairs_PKK.any(dim=1) | pairs_PKK.any(dim=2)
    score_PK = (implicit_reward_PK.detach() / _SAME_PLACE).round()  # rounding noise must not order responses
    is_above_PKK = (score_PK[:, None, :] > score_PK[:, :, None]) | (
        (score_PK[:, None, :] == score_PK[:, :, None]) & (reward_PK[:, None, :] > reward_PK[:, :, None])
    )  # [p, i, j]: j is placed before i
    place_PK = 1 + (is_above_PKK & is_ranked_PK[:, None, :]).sum(dim=2)
    discount_PK = 1.0 / torch.log1p(place_PK.to(score_PK.dtype))
    gain_PK = torch.exp2(reward_PK) if gain == "exponential" else reward_PK
    weight_PKK = pair_margins(pairs_PKK, gain_PK).abs() * pair_margins(pairs_PKK, discount_PK).abs()
    loss_PKK = weight_PKK * soft_label_link(pair_margins(pairs_PKK, implicit_reward_PK))
    loss_P = torch.where(pairs_PKK, loss_PKK, 0.0).sum(dim=(1, 2))
    return group_losses(groups, pairs_PKK.any(dim=(1, 2)), loss_P, implicit_reward_PK)


def _rated_pairs(groups: ScoredGroups) -> tuple[Bool[Tensor, "P K K"], Float[Tensor, "P K"]]:
    """Return [p, i, j] True where i was rated higher than j, and the ratings, 0 where there is none."""
    is_rated_PK, reward_PK = given_ratings(groups)
    both_PKK = is_rated_PK[:, :, None] & is_rated_PK[:, None, :]
    return both_PKK & (reward_PK[:, :, None] > reward_PK[:, None, :]), reward_PK


ROWS: dict[str, ObjectiveSpec] = {
    "plackett_luce": ObjectiveSpec(
        fn=plackett_luce,
        family="listwise",
        needs=frozenset({Need.PREFERENCES}),
        reference=True,
        is_difference_only=True,
        proof="optimum",
        implicit_reward="β·log(π/π_ref)",
        paper="Rafailov et al. 2023, arXiv:2305.18290, appendix",
    ),
    "rnce": ObjectiveSpec(
        fn=rnce,
        family="listwise",
        needs=frozenset({Need.PREFERENCES}),
        reference=True,
        is_difference_only=True,
        proof="optimum",
        implicit_reward="β·log(π/π_ref)",
        paper="Chen et al. 2025, arXiv:2502.04567 (reconstruction)",
    ),
    "pro": ObjectiveSpec(
        fn=pro,
        family="listwise",
        needs=frozenset({Need.RATINGS}),
        reference=False,
        proof="optimum",
        implicit_reward="log π(y|x)/|y|",
        paper="Song et al. 2023, arXiv:2306.17492",
    ),
    "lipo_lambda": ObjectiveSpec(
        fn=lipo_lambda,
        family="listwise",
        needs=frozenset({Need.RATINGS}),
        reference=True,
        is_difference_only=True,
        has_stop_gradient=True,
        proof="optimum",
        implicit_reward="β·log(π/π_ref)",
        paper="Liu et al. 2024, arXiv:2402.01878 (reconstruction)",
    ),
}
