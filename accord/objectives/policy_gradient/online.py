"""Objectives of fresh samples that need no advantage: the best of K, and duels with an opponent's sample.

Axes: P prompts, K responses. Notation: u(y) = log π(y|x) − log π_ref(y|x), ℓ(y) = log π(y|x), σ the logistic function,
sg[·] held constant in the gradient, nats. `is_own_PK` says which responses the policy wrote itself; the others are an
opponent's. The reward is `reward_PK` where it is known.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt
from jaxtyping import Bool
from torch import Tensor

from accord.groups import ObjectiveResult, ScoredGroups
from accord.objectives._ops import (
    given_ratings,
    group_losses,
    judged_pairs,
    log_ratios,
    mean_over_pairs,
    pair_margins,
    soft_label_link,
    squared_link,
    sum_logps,
    sum_over_responses,
)
from accord.objectives.spec import Need, ObjectiveSpec


def raft(
    groups: ScoredGroups,
    *,
    reduction: Literal["token", "sequence"] = "token",
    threshold: float | None = None,
) -> ObjectiveResult:
    """Imitate the response with the highest reward of each prompt (RAFT: rejection sampling, best-of-N distillation).

    Formula: −ℓ(y*), y* the response of highest known reward; several that tie share one response's weight. Averaged
    over the tokens of all y* ("token") or over groups ("sequence"). `threshold`: only rewards at or above it count.
    Gradient: −∇ℓ(y*).
    Optimum: with K fresh samples per prompt, "sequence": the distribution of the best of K; T such rounds give that of
    the best of K^T. Kept above a threshold instead: the present policy, conditioned on it.
    Use: the simplest method of all; nothing to tune but K. Also on a file of rated responses.
    Limits: learns nothing from bad responses; a group whose rewards are all equal imitates all of them, so set a
    `threshold` where the reward says what is good enough. Diversity falls with every round. A group without a known
    reward, or none above the threshold, is not counted.
    Source: Dong et al. 2023, arXiv:2304.06767.

    >>> import torch
    >>> from accord.groups import ScoredGroups
    >>> groups = ScoredGroups(policy_logps_PK=torch.tensor([[-2.0, -3.0]]), num_tokens_PK=torch.tensor([[4, 6]]),
    ...                       is_valid_PK=torch.ones(1, 2, dtype=torch.bool), reward_PK=torch.tensor([[0.1, 0.9]]),
    ...                       is_rated_PK=torch.ones(1, 2, dtype=torch.bool))
    >>> result = raft(groups)
    >>> (result.loss_P / result.denominator_P).item()  # 3 nats over 6 tokens
    0.5
    """
    is_rated_PK, reward_PK = given_ratings(groups)
    best_P1 = torch.where(is_rated_PK, reward_PK, -torch.inf).amax(dim=1, keepdim=True)
    is_best_PK = is_rated_PK & (reward_PK == best_P1)
    if threshold is not None:
        is_best_PK = is_best_PK & (reward_PK >= threshold)
    logp_PK = sum_logps(groups)
    share_PK = (1.0 / is_best_PK.sum(dim=1, keepdim=True).clamp(min=1).to(logp_PK.dtype)).expand_as(logp_PK)
    weight_PK = share_PK * groups.num_tokens_PK if reduction == "token" else share_PK
    return sum_over_responses(groups, is_best_PK, -share_PK * logp_PK, weight_PK, logp_PK)


def xpo(
    groups: ScoredGroups,
    *,
    beta: Annotated[float, Gt(0)] = 0.1,
    alpha: Annotated[float, Ge(0)] = 1e-5,
    link: Literal["logistic", "squared"] = "logistic",
) -> ObjectiveResult:
    """Learn from duels with the reference's own sample by DPO, and make that sample unlikely (XPO: optimism).

    Formula: −log σ(β (u(y_w) − u(y_l))) + α ℓ(ỹ), ỹ the reference's sample; the pairs are those of a policy's and a
    reference's response. "squared": (u(y_w) − u(y_l) − 1/(2β))² instead of the logistic loss.
    Gradient: DPO's, plus α ∇ℓ(ỹ): minimised, it takes probability from what the reference would say, so that the policy
    explores beyond it.
    Optimum: for α = 0 that of DPO on such pairs; otherwise none in closed form.
    Use: online preferences where the reference seldom writes the best response.
    Limits: `is_own_PK` must say whose response is whose (samples with `rollout.from_reference`); α is per response, so
    it weighs more on long ones; α beyond 1e-3 or so unlearns the language.
    Source: Xie et al. 2024, arXiv:2405.21046.

    >>> import torch
    >>> from dataclasses import replace
    >>> from accord.groups import groups_from_pairs
    >>> pair = groups_from_pairs(torch.tensor([[-12.0, -15.0]]), reference_logps_P2=torch.tensor([[-13.0, -14.5]]))
    >>> pair = replace(pair, is_own_PK=torch.tensor([[True, False]]))
    >>> round(xpo(pair, beta=0.1, alpha=0.01).loss_P.item(), 6)  # −log σ(0.1 × 1.5) − 0.01 × 15
    0.470957
    """
    pairs_PKK = judged_pairs(groups) & _duels(groups)
    log_ratio_PK = log_ratios(groups)
    margin_PKK = pair_margins(pairs_PKK, log_ratio_PK)
    if link == "logistic":
        loss_PKK = soft_label_link(beta * margin_PKK)
    else:
        loss_PKK = squared_link(margin_PKK, 1.0 / (2.0 * beta))
    is_opponent_PK = groups.is_valid_PK & ~_own(groups)
    theirs_PK = torch.where(is_opponent_PK, groups.policy_logps_PK, 0.0)
    theirs_P = theirs_PK.sum(dim=1) / is_opponent_PK.sum(dim=1).clamp(min=1)
    found = mean_over_pairs(groups, pairs_PKK, loss_PKK, beta * log_ratio_PK)
    return group_losses(groups, found.is_counted_P, found.loss_P + alpha * theirs_P, beta * log_ratio_PK)


def nash_md(groups: ScoredGroups, *, tau: Annotated[float, Gt(0)] = 0.1) -> ObjectiveResult:
    """Raise own responses by how often they beat an opponent between policy and reference (Nash-MD's policy gradient).

    Formula: −sg[P̄(y) − 1/2 − τ u(y)] ℓ(y), averaged over own responses y; P̄ the mean of the fractions of judges who
    prefer y to each of the opponent's responses it was compared with.
    Gradient: −(P̄(y) − 1/2 − τ u(y)) ∇ℓ(y): on-policy, that of P(π ≻ opponent) − τ KL(π ‖ π_ref).
    Optimum: the policy π_ref(y) exp(P(y ≻ opponent)/τ)/Z; when the opponent is the policy itself, the regularised Nash
    equilibrium, also where preferences go round in circles and no reward explains them.
    Use: preferences that are not transitive, judged in pairs.
    Limits: who the opponent is decides what is learnt: the paper's is a mixture of policy and reference; samples of the
    reference (`rollout.from_reference`) give the best answer to the reference, no equilibrium. Opponents are those not
    marked in `is_own_PK`. τ is in units of probability: 0.1 is strong where judges agree little. The variance is
    REINFORCE's. A group without a comparison of the two sides is not counted.
    Source: Munos et al. 2023, arXiv:2312.00886.

    >>> import torch
    >>> from accord.groups import ScoredGroups
    >>> groups = ScoredGroups(
    ...     policy_logps_PK=torch.tensor([[-2.0, -3.0]]), reference_logps_PK=torch.tensor([[-3.0, -3.0]]),
    ...     num_tokens_PK=torch.tensor([[1, 1]]), is_valid_PK=torch.ones(1, 2, dtype=torch.bool),
    ...     win_frac_PKK=torch.tensor([[[0.5, 0.9], [0.1, 0.5]]]), is_compared_PKK=torch.tensor([[[False, True]] * 2]),
    ...     is_own_PK=torch.tensor([[True, False]]))
    >>> round(nash_md(groups).loss_P.item(), 6)  # −(0.9 − 0.5 − 0.1 × 1) × −2
    0.6
    """
    assert groups.win_frac_PKK is not None, "the objective's spec must declare that it needs win fractions"
    assert groups.is_compared_PKK is not None, "the objective's spec must declare that it needs win fractions"
    is_own_PK, log_ratio_PK = _own(groups), log_ratios(groups)
    faced_PKK = groups.is_compared_PKK & _duels(groups) & is_own_PK[:, :, None]
    num_faced_PK = faced_PKK.sum(dim=2)
    win_frac_PK = torch.where(faced_PKK, groups.win_frac_PKK, 0.0).sum(dim=2) / num_faced_PK.clamp(min=1)
    is_used_PK = num_faced_PK > 0
    pull_PK = torch.where(is_used_PK, win_frac_PK - 0.5 - tau * log_ratio_PK.detach(), 0.0)
    loss_P = -(pull_PK * sum_logps(groups)).sum(dim=1) / is_used_PK.sum(dim=1).clamp(min=1)
    return group_losses(groups, is_used_PK.any(dim=1), loss_P, tau * log_ratio_PK)


def _own(groups: ScoredGroups) -> Bool[Tensor, "P K"]:
    assert groups.is_own_PK is not None, "the objective's spec must declare that it needs opponents"
    return groups.is_own_PK & groups.is_valid_PK


def _duels(groups: ScoredGroups) -> Bool[Tensor, "P K K"]:
    """Return which two responses are one of the policy's and one of the opponent's."""
    own_PK, valid_PK = _own(groups), groups.is_valid_PK
    return (own_PK[:, :, None] != own_PK[:, None, :]) & valid_PK[:, :, None] & valid_PK[:, None, :]


ROWS: dict[str, ObjectiveSpec] = {
    "raft": ObjectiveSpec(
        fn=raft,
        family="likelihood",
        needs=frozenset({Need.RATINGS}),
        reference=False,
        proof="fixed point",
        implicit_reward="log π(y|x)",
        paper="Dong et al. 2023, arXiv:2304.06767",
    ),
    "xpo": ObjectiveSpec(
        fn=xpo,
        family="pairwise",
        needs=frozenset({Need.PREFERENCES, Need.OPPONENTS}),
        reference=True,
        proof="identity",
        implicit_reward="β·log(π/π_ref)",
        paper="Xie et al. 2024, arXiv:2405.21046",
    ),
    "nash_md": ObjectiveSpec(
        fn=nash_md,
        family="policy_gradient",
        needs=frozenset({Need.WIN_FRACTIONS, Need.OPPONENTS}),
        reference=True,
        has_stop_gradient=True,
        proof="fixed point",
        implicit_reward="τ·log(π/π_ref)",
        paper="Munos et al. 2023, arXiv:2312.00886",
    ),
}
