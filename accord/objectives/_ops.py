"""The parts objectives are made of: scores of responses, links on margins, and the reductions to one loss per group.

Axes: P prompts, K responses per prompt (padded). A pairwise loss is link(scale × (score_i − score_j) − offset); several
methods share a link and differ in the score, or the reverse, so both live here once.

Every score is 0 in padding slots and every margin is 0 where no pair was judged: what is masked is replaced BEFORE any
nonlinearity, because masking afterwards multiplies a zero by an infinite derivative and the gradient becomes NaN. A NaN
in a slot that a judgement does use goes through to the loss.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from accord.groups import ObjectiveResult, ScoredGroups

_LN_HALF = -0.6931471805599453
_MAX_MEAN_LOGP = -1e-6  # nats: the odds of a probability closer to 1 than this are not resolved in float32


# Scores of single responses ------------------------------------------------------------------------------------------


def log_ratios(groups: ScoredGroups) -> Float[Tensor, "P K"]:
    """Return log π(y|x) − log π_ref(y|x), summed over tokens, in nats; 0 in padding slots."""
    return torch.where(groups.is_valid_PK, groups.log_ratio_PK, 0.0)


def mean_log_ratios(groups: ScoredGroups) -> Float[Tensor, "P K"]:
    """Return the per-token mean of the log-ratio, in nats per token; 0 in padding slots and for empty responses."""
    return log_ratios(groups) / groups.num_tokens_PK.clamp(min=1)


def mean_logps(groups: ScoredGroups) -> Float[Tensor, "P K"]:
    """Return log π(y|x) / |y|, in nats per token; 0 in padding slots and for empty responses."""
    return torch.where(groups.is_valid_PK, groups.policy_logps_PK, 0.0) / groups.num_tokens_PK.clamp(min=1)


def log_odds(groups: ScoredGroups) -> Float[Tensor, "P K"]:
    """Return log(p̄ / (1 − p̄)) of the geometric-mean token probability p̄ = exp(mean log-probability).

    p̄ is held below exp(−1e-6); beyond that the odds are constant and carry no gradient.
    """
    mean_logp_PK = mean_logps(groups).clamp(max=_MAX_MEAN_LOGP)
    return mean_logp_PK - log1mexp(mean_logp_PK)


# Numerics ------------------------------------------------------------------------------------------------------------


def log1mexp(a: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return log(1 − exp(a)) for a < 0 without cancellation, with a finite gradient on both branches."""
    is_near_zero = a > _LN_HALF
    near = torch.log(-torch.expm1(torch.where(is_near_zero, a, _LN_HALF)))
    far = torch.log1p(-torch.exp(torch.where(is_near_zero, _LN_HALF, a)))
    return torch.where(is_near_zero, near, far)


# Links: loss of a margin ---------------------------------------------------------------------------------------------


def soft_label_link(margin: Float[Tensor, "*shape"], label: float = 1.0) -> Float[Tensor, "*shape"]:
    """Return −p log σ(z) − (1 − p) log σ(−z), written so that it holds for every real label p.

    p = 1 is the logistic loss, 1/2 < p < 1 smooths the label. Derivative −(p − σ(z)); value ln 2 at z = 0; the
    minimiser is z = logit(p), and under a rater who prefers the first with probability q it is the logit of the
    averaged label.
    """
    return (1.0 - label) * margin - F.logsigmoid(margin)


def squared_link(margin: Float[Tensor, "*shape"], target: float) -> Float[Tensor, "*shape"]:
    """Return (z − target)²: a finite target even for unanimous raters, and a pull back beyond it."""
    return (margin - target).square()


# Pairs and reductions ------------------------------------------------------------------------------------------------


def judged_pairs(groups: ScoredGroups) -> Bool[Tensor, "P K K"]:
    """Return [p, i, j] True where i was judged better than j and both are real responses."""
    assert groups.preferred_PKK is not None, "the objective's spec must declare that it needs preferences"
    valid_PK = groups.is_valid_PK
    return groups.preferred_PKK & valid_PK[:, :, None] & valid_PK[:, None, :]


def pair_margins(pairs_PKK: Bool[Tensor, "P K K"], score_PK: Float[Tensor, "P K"]) -> Float[Tensor, "P K K"]:
    """Return score_i − score_j where i was judged better than j, 0 elsewhere."""
    return torch.where(pairs_PKK, score_PK[:, :, None] - score_PK[:, None, :], 0.0)


def of_chosen(pairs_PKK: Bool[Tensor, "P K K"], value_PK: Float[Tensor, "P K"]) -> Float[Tensor, "P K K"]:
    """Return the value of the better response of every judged pair, 0 elsewhere."""
    return torch.where(pairs_PKK, value_PK[:, :, None].expand(pairs_PKK.shape), 0.0)


def mean_over_pairs(
    groups: ScoredGroups,
    pairs_PKK: Bool[Tensor, "P K K"],
    loss_PKK: Float[Tensor, "P K K"],
    implicit_reward_PK: Float[Tensor, "P K"],
) -> ObjectiveResult:
    """Return the mean loss over the judged pairs of each group.

    A group counts once however many pairs it holds: the pairs of one prompt share its responses and are not
    independent, so a ranking of seven must not weigh 21 times a single comparison. One pair in a group of two gives the
    textbook loss of (chosen, rejected).
    """
    num_pairs_P = pairs_PKK.sum(dim=(1, 2))
    total_P = torch.where(pairs_PKK, loss_PKK, 0.0).sum(dim=(1, 2))
    return ObjectiveResult(
        loss_P=total_P / num_pairs_P.clamp(min=1),
        is_counted_P=num_pairs_P > 0,
        implicit_reward_PK=_for_metrics(groups, implicit_reward_PK),
    )


def sum_over_responses(
    groups: ScoredGroups,
    is_used_PK: Bool[Tensor, "P K"],
    loss_PK: Float[Tensor, "P K"],
    weight_PK: Float[Tensor, "P K"],
    implicit_reward_PK: Float[Tensor, "P K"],
) -> ObjectiveResult:
    """Return the summed loss of the used responses of each group, with their summed weight as its denominator.

    The global mean is then over responses (weight 1) or tokens (weight |y|), not over groups.
    """
    is_used_PK = is_used_PK & groups.is_valid_PK & (weight_PK > 0)
    return ObjectiveResult(
        loss_P=torch.where(is_used_PK, loss_PK, 0.0).sum(dim=1),
        is_counted_P=is_used_PK.any(dim=1),
        implicit_reward_PK=_for_metrics(groups, implicit_reward_PK),
        denominator_P=torch.where(is_used_PK, weight_PK, 0.0).sum(dim=1),
    )


def _for_metrics(groups: ScoredGroups, implicit_reward_PK: Float[Tensor, "P K"]) -> Float[Tensor, "P K"]:
    return torch.where(groups.is_valid_PK, implicit_reward_PK.detach(), 0.0)
