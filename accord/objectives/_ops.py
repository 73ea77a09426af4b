"""The parts objectives are made of: scores of responses, links on margins, and the reductions to one loss per group.

Axes: P prompts, K responses per prompt (padded). A pairwise loss is link(scale × (score_i − score_j) − offset); several
methods share a link and differ in the score, or the reverse, so both live here once.

Every score is 0 in padding slots and every margin is 0 where no pair was judged: what is masked is replaced BEFORE any
nonlinearity, because masking afterwards multiplies a zero by an infinite derivative and the gradient becomes NaN. A NaN
in a slot that a judgement does use goes through to the loss.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from accord.groups import ObjectiveResult, ScoredGroups

_LN_HALF = -0.6931471805599453
_MAX_EXPONENT = 30.0  # e^30 ≈ 1e13, squared still far from the end of float32
_MAX_MEAN_LOGP = -1e-6  # nats: the odds of a probability closer to 1 than this are not resolved in float32


# Scores of single responses ------------------------------------------------------------------------------------------


def log_ratios(groups: ScoredGroups) -> Float[Tensor, "P K"]:
    """Return log π(y|x) − log π_ref(y|x), summed over tokens, in nats; 0 in padding slots."""
    return torch.where(groups.is_valid_PK, groups.log_ratio_PK, 0.0)


def attenuated_log_ratios(groups: ScoredGroups, gamma: float) -> Float[Tensor, "P K"]:
    """Return log π(y|x) − γ log π_ref(y|x), summed over tokens, in nats; 0 in padding slots.

    γ = 1 is the log-ratio, γ = 0 the policy alone.
    """
    assert groups.reference_logps_PK is not None, "the objective's spec must declare that it needs a reference"
    return torch.where(groups.is_valid_PK, groups.policy_logps_PK - gamma * groups.reference_logps_PK, 0.0)


def mean_log_ratios(groups: ScoredGroups) -> Float[Tensor, "P K"]:
    """Return the per-token mean of the log-ratio, in nats per token; 0 in padding slots and for empty responses."""
    return log_ratios(groups) / groups.num_tokens_PK.clamp(min=1)


def sum_logps(groups: ScoredGroups) -> Float[Tensor, "P K"]:
    """Return log π(y|x), summed over tokens, in nats; 0 in padding slots."""
    return torch.where(groups.is_valid_PK, groups.policy_logps_PK, 0.0)


def mean_logps(groups: ScoredGroups) -> Float[Tensor, "P K"]:
    """Return log π(y|x) / |y|, in nats per token; 0 in padding slots and for empty responses."""
    return torch.where(groups.is_valid_PK, groups.policy_logps_PK, 0.0) / groups.num_tokens_PK.clamp(min=1)


def log_odds(groups: ScoredGroups) -> Float[Tensor, "P K"]:
    """Return log(p̄ / (1 − p̄)) of the geometric-mean token probability p̄ = exp(mean log-probability).

    p̄ is held below exp(−1e-6); beyond that the odds are constant and carry no gradient.
    """
    mean_logp_PK = mean_logps(groups).clamp(max=_MAX_MEAN_LOGP)
    return mean_logp_PK - log1mexp(mean_logp_PK)


# Scores of tokens ----------------------------------------------------------------------------------------------------


def trained_tokens(groups: ScoredGroups) -> Bool[Tensor, "P K T"]:
    """Return which tokens count: trained ones of real responses."""
    assert groups.tokens is not None, "the objective's spec must declare that it needs something per token"
    return groups.tokens.is_trained_PKT & groups.is_valid_PK[:, :, None]


def token_log_ratios(groups: ScoredGroups) -> Float[Tensor, "P K T"]:
    """Return log π(y_t) − log π_ref(y_t) of every trained token, in nats; 0 elsewhere."""
    tokens = groups.tokens
    assert tokens is not None, "the objective's spec must declare that it needs tokens"
    assert tokens.reference_logps_PKT is not None, "the objective's spec must declare that it needs a reference"
    return torch.where(trained_tokens(groups), tokens.policy_logps_PKT - tokens.reference_logps_PKT, 0.0)


def sum_over_tokens(groups: ScoredGroups, value_PKT: Float[Tensor, "P K T"]) -> Float[Tensor, "P K"]:
    """Return Σ_t of a value over the trained tokens; 0 in padding slots and for empty responses."""
    return torch.where(trained_tokens(groups), value_PKT, 0.0).sum(dim=2)


def weighted_log_ratios(groups: ScoredGroups, weight_PKT: Float[Tensor, "P K T"]) -> Float[Tensor, "P K"]:
    """Return Σ_t ω_t (log π(y_t) − log π_ref(y_t)) over the trained tokens, in nats; 0 in padding slots."""
    return (torch.where(trained_tokens(groups), weight_PKT, 0.0) * token_log_ratios(groups)).sum(dim=2)


# Numerics ------------------------------------------------------------------------------------------------------------


def log1mexp(a: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return log(1 − exp(a)) for a < 0 without cancellation, with a finite gradient on both branches."""
    is_near_zero = a > _LN_HALF
    near = torch.log(-torch.expm1(torch.where(is_near_zero, a, _LN_HALF)))
    far = torch.log1p(-torch.exp(torch.where(is_near_zero, _LN_HALF, a)))
    return torch.where(is_near_zero, near, far)


def tangent_expm1(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return e^x − 1, continued along its tangent beyond x = 30.

    A summed log-ratio of some hundred nats is common and e^89 overflows float32; on the tangent the value and the
    gradient stay finite, and the gradient keeps its sign, which a clamp would lose.
    """
    held = x.clamp(max=_MAX_EXPONENT)
    return torch.expm1(held) + torch.exp(held) * (x - held)


def alpha_scores(log_value: Float[Tensor, "*shape"], alpha: float) -> Float[Tensor, "*shape"]:
    """Return (1 − v^−α)/α of v = exp(`log_value`): log v at α = 0, 1 − 1/v at α = 1; derivative v^−α by log v."""
    return log_value if alpha == 0.0 else -tangent_expm1(-alpha * log_value) / alpha


def tangent_log1mexp(logp: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return log(1 − p) from log p ≤ 0, continued along its tangent from p = exp(−1e-6) on.

    A certain token (p = 1) has log 0 there; on the tangent the value is finite and the push away from it is kept.
    """
    beyond = F.relu(logp - _MAX_MEAN_LOGP)  # not logp − held: its two gradients of 1e6 would cancel only roughly
    return log1mexp(logp.clamp(max=_MAX_MEAN_LOGP)) - beyond / math.expm1(-_MAX_MEAN_LOGP)


# Links: loss of a margin ---------------------------------------------------------------------------------------------


def soft_label_link(
    margin: Float[Tensor, "*shape"], label: float | Float[Tensor, "*shape"] = 1.0
) -> Float[Tensor, "*shape"]:
    """Return −p log σ(z) − (1 − p) log σ(−z), written so that it holds for every real label p.

    p = 1 is the logistic loss, 1/2 < p < 1 smooths the label. Derivative −(p − σ(z)); value ln 2 at z = 0; the
    minimiser is z = logit(p), and under a rater who prefers the first with probability q it is the logit of the
    averaged label.
    """
    return (1.0 - label) * margin - F.logsigmoid(margin)


def squared_link(margin: Float[Tensor, "*shape"], target: float | Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return (z − target)²: a finite target even for unanimous raters, and a pull back beyond it."""
    return (margin - target).square()


def hinge_link(margin: Float[Tensor, "*shape"], target: float = 1.0) -> Float[Tensor, "*shape"]:
    """Return max(0, target − z): nothing once the margin is reached; target 0 is the perceptron's loss."""
    return F.relu(target - margin)


def sigmoid_link(margin: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return 1 − σ(z): bounded, so a pair (or response) that is hopelessly wrong pulls as little as one that is right.

    Derivative −σ(z) σ(−z).
    """
    return torch.sigmoid(-margin)


def bernoulli_kl(logit: Float[Tensor, "*shape"], other_logit: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return KL(σ(a) ‖ σ(b)) in nats, for logits a and b; both directions are this function.

    Derivative by a: σ(a) σ(−a) (a − b); by b: σ(b) − σ(a).
    """
    first = torch.sigmoid(logit) * (F.logsigmoid(logit) - F.logsigmoid(other_logit))
    return first + torch.sigmoid(-logit) * (F.logsigmoid(-logit) - F.logsigmoid(-other_logit))


# Contests of several responses ----------------------------------------------------------------------------------------


def softmax_link(margin_PKK: Float[Tensor, "P K K"], against_PKK: Bool[Tensor, "P K K"]) -> Float[Tensor, "P K"]:
    """Return log(1 + Σ_j e^(−z_ij)) over the j that i is set against: −log of i's share in their softmax.

    0 where there is none; one opponent gives the logistic loss, n equal ones log(1 + n e^−z). Derivative by z_ij: minus
    the share of j.
    """
    opponent_PKK = torch.where(against_PKK, -margin_PKK, -torch.inf)
    return F.pad(opponent_PKK, (1, 0)).logsumexp(dim=2)  # the 0 in front is i itself, and keeps an empty row defined


def plackett_luce_nll(pairs_PKK: Bool[Tensor, "P K K"], score_PK: Float[Tensor, "P K"]) -> Float[Tensor, " P"]:
    """Return −log of the Plackett–Luce probability of each group's order: Σ_i log Σ_{j = i or worse} e^(s_j − s_i).

    Each response is chosen from itself and those judged worse. For a full ranking these are the stages of choosing the
    best that is left; members of a tie are not set against each other; one pair gives the logistic loss. 0 without a
    pair, log K! for a full ranking at equal scores.
    """
    return softmax_link(pair_margins(pairs_PKK, score_PK), pairs_PKK).sum(dim=1)


def best_judged(pairs_PKK: Bool[Tensor, "P K K"]) -> Bool[Tensor, "P K"]:
    """Return which responses were judged better than some other and worse than none: the best, several where tied.

    Judgements that go round in a circle leave no best.
    """
    return pairs_PKK.any(dim=2) & ~pairs_PKK.any(dim=1)


def mean_over_best(
    groups: ScoredGroups,
    pairs_PKK: Bool[Tensor, "P K K"],
    loss_PK: Float[Tensor, "P K"],
    implicit_reward_PK: Float[Tensor, "P K"],
) -> ObjectiveResult:
    """Return the mean, over the best responses of each group, of what each costs; without a best it is not counted."""
    is_best_PK = best_judged(pairs_PKK)
    num_best_P = is_best_PK.sum(dim=1)
    return ObjectiveResult(
        loss_P=torch.where(is_best_PK, loss_PK, 0.0).sum(dim=1) / num_best_P.clamp(min=1),
        is_counted_P=num_best_P > 0,
        implicit_reward_PK=_for_metrics(groups, implicit_reward_PK),
    )


def given_ratings(groups: ScoredGroups) -> tuple[Bool[Tensor, "P K"], Float[Tensor, "P K"]]:
    """Return which responses were rated, and their ratings, 0 where there is none."""
    assert groups.reward_PK is not None, "the objective's spec must declare that it needs ratings"
    assert groups.is_rated_PK is not None, "the objective's spec must declare that it needs ratings"
    is_rated_PK = groups.is_rated_PK & groups.is_valid_PK
    return is_rated_PK, torch.where(is_rated_PK, groups.reward_PK, 0.0)


def group_losses(
    groups: ScoredGroups,
    is_counted_P: Bool[Tensor, " P"],
    loss_P: Float[Tensor, " P"],
    implicit_reward_PK: Float[Tensor, "P K"],
) -> ObjectiveResult:
    """Return one loss per group as it is, 0 where the group is not counted."""
    return ObjectiveResult(
        loss_P=torch.where(is_counted_P, loss_P, 0.0),
        is_counted_P=is_counted_P,
        implicit_reward_PK=_for_metrics(groups, implicit_reward_PK),
    )


# Pairs and reductions ------------------------------------------------------------------------------------------------


def judged_pairs(groups: ScoredGroups) -> Bool[Tensor, "P K K"]:
    """Return [p, i, j] True where i was judged better than j and both are real responses."""
    assert groups.preferred_PKK is not None, "the objective's spec must declare that it needs preferences"
    valid_PK = groups.is_valid_PK
    return groups.preferred_PKK & valid_PK[:, :, None] & valid_PK[:, None, :]


def pair_margins(
    pairs_PKK: Bool[Tensor, "P K K"],
    score_PK: Float[Tensor, "P K"],
    worse_score_PK: Float[Tensor, "P K"] | None = None,
) -> Float[Tensor, "P K K"]:
    """Return score_i − score_j where i was judged better than j, 0 elsewhere.

    `worse_score_PK` scores the worse response where it is scored by another rule than the better one.
    """
    worse_PK = score_PK if worse_score_PK is None else worse_score_PK
    return torch.where(pairs_PKK, score_PK[:, :, None] - worse_PK[:, None, :], 0.0)


def of_chosen(pairs_PKK: Bool[Tensor, "P K K"], value_PK: Float[Tensor, "P K"]) -> Float[Tensor, "P K K"]:
    """Return the value of the better response of every judged pair, 0 elsewhere."""
    return torch.where(pairs_PKK, value_PK[:, :, None].expand(pairs_PKK.shape), 0.0)


def of_rejected(pairs_PKK: Bool[Tensor, "P K K"], value_PK: Float[Tensor, "P K"]) -> Float[Tensor, "P K K"]:
    """Return the value of the worse response of every judged pair, 0 elsewhere."""
    return torch.where(pairs_PKK, value_PK[:, None, :].expand(pairs_PKK.shape), 0.0)


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


def sum_over_pairs(
    groups: ScoredGroups,
    pairs_PKK: Bool[Tensor, "P K K"],
    loss_PKK: Float[Tensor, "P K K"],
    implicit_reward_PK: Float[Tensor, "P K"],
) -> ObjectiveResult:
    """Return the summed loss of the judged pairs of each group, so that the global mean is over pairs, not groups."""
    num_pairs_P = pairs_PKK.sum(dim=(1, 2))
    return ObjectiveResult(
        loss_P=torch.where(pairs_PKK, loss_PKK, 0.0).sum(dim=(1, 2)),
        is_counted_P=num_pairs_P > 0,
        implicit_reward_PK=_for_metrics(groups, implicit_reward_PK),
        denominator_P=num_pairs_P.to(torch.promote_types(loss_PKK.dtype, torch.float32)),
    )


def labelled_responses(groups: ScoredGroups, *, desirable: bool) -> Bool[Tensor, "P K"]:
    """Return True for the real responses with a thumb up (`desirable`) or down."""
    assert groups.desirable_PK is not None, "the objective's spec must declare that it needs labels"
    assert groups.is_labelled_PK is not None, "the objective's spec must declare that it needs labels"
    return groups.is_labelled_PK & groups.is_valid_PK & (groups.desirable_PK == desirable)


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
