"""Objectives of judged pairs with a logistic link: loss = link(score of the better − score of the worse − offset).

Axes: P prompts, K responses per prompt. Notation in formulas: y_w the better and y_l the worse response of a pair,
u(y) = log π(y|x) − log π_ref(y|x), D = u(y_w) − u(y_l), |y| the number of response tokens incl. EOS, σ the logistic
function, p the fraction of raters who prefer y_w, nats throughout. All pairs in `preferred_PKK` enter; a group's loss
is the mean over its pairs. A group without a judged pair (ties only, one response) is not counted.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Interval

from accord.groups import ObjectiveResult, ScoredGroups
from accord.objectives._ops import (
    attenuated_log_ratios,
    judged_pairs,
    log_ratios,
    mean_log_ratios,
    mean_over_pairs,
    pair_margins,
    soft_label_link,
)
from accord.objectives.spec import Need, ObjectiveSpec


def dpo(
    groups: ScoredGroups,
    *,
    beta: Annotated[float, Gt(0)] = 0.1,
    label_smoothing: Annotated[float, Interval(ge=0, lt=0.5)] = 0.0,
) -> ObjectiveResult:
    """Fit the implicit reward β·u to the preferences by logistic regression (DPO; conservative DPO when smoothed).

    Formula: −(1 − ε) log σ(z) − ε log σ(−z), z = β D, ε = `label_smoothing`.
    Gradient: ∂/∂log π(y_w) = −β (1 − ε − σ(z)), the opposite for y_l. Loss ln 2 at policy = reference.
    Optimum: D = logit(p) / β (smoothed: the logit of p(1 − ε) + (1 − p) ε).
    Use: the first thing to try on pairs. Smooth when labels are noisy or training lasts long: the margin that fits a
    unanimous pair is then logit(1 − ε)/β instead of infinite.
    Limits: unanimous pairs without smoothing have no finite optimum; sums make margins grow with length; adding a
    per-prompt constant to u changes nothing, so both likelihoods may fall together.
    Source: Rafailov et al. 2023, arXiv:2305.18290, eq. 7; smoothing: Mitchell 2023, "A note on DPO with noisy
    preferences".

    >>> import torch
    >>> from accord.groups import groups_from_pairs
    >>> pair = groups_from_pairs(torch.tensor([[-12.0, -15.0]]), reference_logps_P2=torch.tensor([[-13.0, -14.5]]))
    >>> round(dpo(pair, beta=0.1).loss_P.item(), 6)  # −log σ(0.1 × 1.5)
    0.620957
    """
    pairs_PKK = judged_pairs(groups)
    implicit_reward_PK = beta * log_ratios(groups)
    margin_PKK = pair_margins(pairs_PKK, implicit_reward_PK)
    return mean_over_pairs(groups, pairs_PKK, soft_label_link(margin_PKK, 1.0 - label_smoothing), implicit_reward_PK)


def dpo_flip_robust(
    groups: ScoredGroups,
    *,
    beta: Annotated[float, Gt(0)] = 0.1,
    flip_rate: Annotated[float, Interval(ge=0, lt=0.5)] = 0.1,
) -> ObjectiveResult:
    """Undo a known rate of flipped labels: on average over the flips this is the DPO loss of the true labels.

    Formula: [(1 − ε) (−log σ(z)) − ε (−log σ(−z))] / (1 − 2ε), z = β D, ε = `flip_rate`: the soft-label loss with the
    label (1 − ε)/(1 − 2ε), which exceeds 1.
    Gradient: ∂/∂log π(y_w) = −β (σ(−z) + ε/(1 − 2ε)), the opposite for y_l. Loss ln 2 at policy = reference.
    Optimum: under raters whose votes are flipped at rate ε, D = logit(p)/β of the votes before the flips.
    Use: the rate of wrong labels is known, from repeated votes or an audit, and flips are independent of the responses.
    Limits: unbounded below: on a pair seen in one order only the loss falls for ever (slope −ε/(1 − 2ε)), so stop
    early; ε → 1/2 multiplies the noise of the gradient by 1/(1 − 2ε); ε = 0 is `dpo`. The opposite of smoothing, which
    shrinks margins.
    Source: Ray Chowdhury, Kini and Natarajan 2024, arXiv:2403.00409.

    >>> import torch
    >>> from accord.groups import groups_from_pairs
    >>> pair = groups_from_pairs(torch.tensor([[-12.0, -15.0]]), reference_logps_P2=torch.tensor([[-13.0, -14.5]]))
    >>> round(dpo_flip_robust(pair, flip_rate=0.1).loss_P.item(), 6)  # −log σ(0.15) − 0.1/0.8 × 0.15
    0.602207
    """
    pairs_PKK = judged_pairs(groups)
    implicit_reward_PK = beta * log_ratios(groups)
    label = (1.0 - flip_rate) / (1.0 - 2.0 * flip_rate)
    loss_PKK = soft_label_link(pair_margins(pairs_PKK, implicit_reward_PK), label)
    return mean_over_pairs(groups, pairs_PKK, loss_PKK, implicit_reward_PK)


def ln_dpo(groups: ScoredGroups, *, beta: Annotated[float, Gt(0)] = 5.0) -> ObjectiveResult:
    """Fit the per-token mean of the log-ratio to the preferences, so that length earns nothing (length-normalised DPO).

    Formula: −log σ(z), z = β (u(y_w)/|y_w| − u(y_l)/|y_l|).
    Gradient: ∂/∂log π(y_w) = −β σ(−z)/|y_w|, ∂/∂log π(y_l) = +β σ(−z)/|y_l|. Loss ln 2 at policy = reference.
    Optimum: u(y_w)/|y_w| − u(y_l)/|y_l| = logit(p)/β.
    Use: answers grow longer under `dpo`, or lengths differ much within pairs.
    Limits: β is some fifty times DPO's, because means are small: with equal lengths n it is DPO with β/n; not
    invariant to a constant per prompt once lengths differ; an empty response has mean 0.
    Source: Lambert et al. 2024 (Tülu 3), arXiv:2411.15124.

    >>> import torch
    >>> from accord.groups import groups_from_pairs
    >>> pair = groups_from_pairs(
    ...     torch.tensor([[-12.0, -15.0]]),
    ...     reference_logps_P2=torch.tensor([[-13.0, -14.5]]),
    ...     num_tokens_P2=torch.tensor([[10, 12]]),
    ... )
    >>> round(ln_dpo(pair, beta=5.0).loss_P.item(), 6)  # −log σ(5 (1/10 + 0.5/12))
    0.400429
    """
    pairs_PKK = judged_pairs(groups)
    implicit_reward_PK = beta * mean_log_ratios(groups)
    loss_PKK = soft_label_link(pair_margins(pairs_PKK, implicit_reward_PK))
    return mean_over_pairs(groups, pairs_PKK, loss_PKK, implicit_reward_PK)


def gamma_dpo(
    groups: ScoredGroups,
    *,
    beta: Annotated[float, Gt(0)] = 0.1,
    gamma: Annotated[float, Interval(ge=0, le=1)] = 0.5,
) -> ObjectiveResult:
    """Weaken the reference inside DPO, so that its wrong rankings are easier to turn round (γ-DPO).

    Formula: −log σ(z), z = β (s(y_w) − s(y_l)), s(y) = log π(y|x) − γ log π_ref(y|x).
    Gradient: ∂/∂log π(y_w) = −β σ(−z), the opposite for y_l.
    Optimum: s(y_w) − s(y_l) = logit(p)/β: π ∝ π_ref^γ · exp(r/β) where raters follow Bradley–Terry on r.
    Use: the reference ranks many pairs the wrong way and DPO does not flip them (its ranking accuracy stalls).
    Limits: γ = 1 is `dpo`, γ = 0 forgets the reference (`cpo` without its likelihood term); the loss at policy =
    reference depends on the data; less reference means less brake on drift.
    Source: Chen et al. 2024, arXiv:2405.19534, eq. 4.

    >>> import torch
    >>> from accord.groups import groups_from_pairs
    >>> pair = groups_from_pairs(torch.tensor([[-12.0, -15.0]]), reference_logps_P2=torch.tensor([[-13.0, -14.5]]))
    >>> round(gamma_dpo(pair, beta=0.1, gamma=0.5).loss_P.item(), 6)  # −log σ(0.1 (3 − 0.5 × 1.5))
    0.586962
    """
    pairs_PKK = judged_pairs(groups)
    implicit_reward_PK = beta * attenuated_log_ratios(groups, gamma)
    loss_PKK = soft_label_link(pair_margins(pairs_PKK, implicit_reward_PK))
    return mean_over_pairs(groups, pairs_PKK, loss_PKK, implicit_reward_PK)


def dpo_length_reg(
    groups: ScoredGroups,
    *,
    beta: Annotated[float, Gt(0)] = 0.1,
    alpha: Annotated[float, Ge(0)] = 0.01,
) -> ObjectiveResult:
    """Let length explain a share of the preference, so that the policy need not learn it (length-regularised DPO).

    Formula: −log σ(z), z = β D + α (|y_w| − |y_l|).
    Gradient: ∂/∂log π(y_w) = −β σ(−z), the opposite for y_l: a pair won by the longer response pulls less.
    Optimum: D = (logit(p) − α (|y_w| − |y_l|))/β: π ∝ π_ref · exp((r − α|y|)/β), the optimum of a reward that charges α
    per token.
    Use: raters prefer longer answers and you do not want the policy to.
    Limits: α is in units of the logit per token (0.005–0.5 in the field, the smaller the longer the answers); the loss
    at policy = reference depends on lengths; α = 0 is `dpo`.
    Source: Park et al. 2024, arXiv:2403.19159; the sign as derived from the objective E[r − α|y|] − β KL.

    >>> import torch
    >>> from accord.groups import groups_from_pairs
    >>> pair = groups_from_pairs(
    ...     torch.tensor([[-12.0, -15.0]]),
    ...     reference_logps_P2=torch.tensor([[-13.0, -14.5]]),
    ...     num_tokens_P2=torch.tensor([[10, 12]]),
    ... )
    >>> round(dpo_length_reg(pair, beta=0.1, alpha=0.01).loss_P.item(), 6)  # −log σ(0.15 − 0.02)
    0.630258
    """
    pairs_PKK = judged_pairs(groups)
    log_ratio_PK = log_ratios(groups)
    implicit_reward_PK = beta * log_ratio_PK + alpha * groups.num_tokens_PK.to(log_ratio_PK.dtype)
    loss_PKK = soft_label_link(pair_margins(pairs_PKK, implicit_reward_PK))
    return mean_over_pairs(groups, pairs_PKK, loss_PKK, implicit_reward_PK)


def odpo(
    groups: ScoredGroups,
    *,
    beta: Annotated[float, Gt(0)] = 0.1,
    offset_weight: Annotated[float, Ge(0)] = 1.0,
    offset_of: Literal["strength", "log_strength"] = "strength",
) -> ObjectiveResult:
    """Ask a margin of each pair that grows with how much better its winner was judged (DPO with an offset).

    Formula: −log σ(z), z = β D − m, m = α h(strength), α = `offset_weight`; h is the strength or log(1 + strength).
    Gradient: ∂/∂log π(y_w) = −β σ(−z), the opposite for y_l. Loss log(1 + e^m) at policy = reference.
    Optimum: raters who disagree show both orders, and both carry their margin: p σ(m − βD) = (1 − p) σ(m + βD);
    βD = logit p for m = 0, more extreme for m > 0.
    Use: judgements say how much better (a Likert step, a difference of ratings) and strong ones should count for more.
    Limits: the strength is on the judge's own scale, so α has its unit; a pair without a strength has m = 0 and is
    learned as in `dpo`; a negative strength lowers the margin, and log(1 + strength) needs one above −1.
    Source: Amini, Vieira and Cotterell 2024, arXiv:2402.10571; log(1 + strength) is ours, to keep m ≥ 0 where the paper
    takes the logarithm.

    >>> import torch
    >>> from dataclasses import replace
    >>> from accord.groups import groups_from_pairs
    >>> pair = groups_from_pairs(torch.tensor([[-12.0, -15.0]]), reference_logps_P2=torch.tensor([[-13.0, -14.5]]))
    >>> pair = replace(pair, strength_PKK=torch.tensor([[[0.0, 2.0], [0.0, 0.0]]]))
    >>> round(odpo(pair, beta=0.1, offset_weight=0.5).loss_P.item(), 6)  # log(1 + e^0.85): z = 0.15 − 0.5 × 2
    1.205865
    """
    assert groups.strength_PKK is not None, "the spec of odpo declares that it needs strengths"
    pairs_PKK = judged_pairs(groups)
    strength_PKK = torch.where(pairs_PKK, groups.strength_PKK, 0.0)
    offset_PKK = offset_weight * (strength_PKK if offset_of == "strength" else torch.log1p(strength_PKK))
    implicit_reward_PK = beta * log_ratios(groups)
    loss_PKK = soft_label_link(pair_margins(pairs_PKK, implicit_reward_PK) - offset_PKK)
    return mean_over_pairs(groups, pairs_PKK, loss_PKK, implicit_reward_PK)


def discopop(
    groups: ScoredGroups,
    *,
    beta: Annotated[float, Gt(0)] = 0.05,
    tau: Annotated[float, Interval(gt=0, le=1)] = 0.05,
) -> ObjectiveResult:
    """Blend the logistic with the exponential loss by the margin itself, as found by search (DiscoPOP).

    Formula: (1 − q) (−log σ(z)) + q e^−z, q = σ(z/τ), z = β D.
    Gradient: −∂/∂z = (1 − q) σ(−z) + q e^−z + (q (1 − q)/τ)(−log σ(z) − e^−z). Loss (ln 2 + 1)/2 at policy = reference.
    Optimum: none: for a unanimous pair at τ = 0.05 a local minimum at z = −0.1186 (0.785924), a local maximum at
    z = 0.0720 (0.878290), then 0 as z → ∞.
    Use: to reproduce the discovered loss; it did well on noisy chat pairs, and its theory is open.
    Limits: at policy = reference the gradient points the WRONG way, and a pair between the two points settles at the
    wrong order; only pairs beyond z = 0.072 are learned. τ ≤ 1, for which q e^−z stays bounded.
    Source: Lu et al. 2024, arXiv:2406.08414.

    >>> import torch
    >>> from accord.groups import groups_from_pairs
    >>> pair = groups_from_pairs(torch.tensor([[-12.0, -15.0]]), reference_logps_P2=torch.tensor([[-13.0, -14.5]]))
    >>> round(discopop(pair, beta=0.1, tau=0.05).loss_P.item(), 6)  # z = 0.15, q = σ(3)
    0.849338
    """
    pairs_PKK = judged_pairs(groups)
    implicit_reward_PK = beta * log_ratios(groups)
    margin_PKK = pair_margins(pairs_PKK, implicit_reward_PK)
    logistic_PKK = torch.sigmoid(-margin_PKK / tau) * soft_label_link(margin_PKK)
    exponential_PKK = torch.exp(F.logsigmoid(margin_PKK / tau) - margin_PKK)  # as one exponent: e^−z alone overflows
    return mean_over_pairs(groups, pairs_PKK, logistic_PKK + exponential_PKK, implicit_reward_PK)


ROWS: dict[str, ObjectiveSpec] = {
    "dpo": ObjectiveSpec(
        fn=dpo,
        family="pairwise",
        needs=frozenset({Need.PREFERENCES}),
        reference=True,
        is_difference_only=True,
        initial_loss=lambda **_: math.log(2.0),
        proof="optimum",
        implicit_reward="β·log(π/π_ref)",
        paper="Rafailov et al. 2023, arXiv:2305.18290, eq. 7",
    ),
    "dpo_flip_robust": ObjectiveSpec(
        fn=dpo_flip_robust,
        family="pairwise",
        needs=frozenset({Need.PREFERENCES}),
        reference=True,
        is_difference_only=True,
        initial_loss=lambda **_: math.log(2.0),
        proof="optimum",
        implicit_reward="β·log(π/π_ref)",
        paper="Ray Chowdhury et al. 2024, arXiv:2403.00409",
    ),
    "ln_dpo": ObjectiveSpec(
        fn=ln_dpo,
        family="pairwise",
        needs=frozenset({Need.PREFERENCES}),
        reference=True,
        initial_loss=lambda **_: math.log(2.0),
        proof="optimum",
        implicit_reward="β·log(π/π_ref)/|y|",
        paper="Lambert et al. 2024, arXiv:2411.15124",
    ),
    "gamma_dpo": ObjectiveSpec(
        fn=gamma_dpo,
        family="pairwise",
        needs=frozenset({Need.PREFERENCES}),
        reference=True,
        is_difference_only=True,
        proof="optimum",
        implicit_reward="β·(log π − γ log π_ref)",
        paper="Chen et al. 2024, arXiv:2405.19534, eq. 4",
    ),
    "dpo_length_reg": ObjectiveSpec(
        fn=dpo_length_reg,
        family="pairwise",
        needs=frozenset({Need.PREFERENCES}),
        reference=True,
        is_difference_only=True,
        proof="optimum",
        implicit_reward="β·log(π/π_ref) + α|y|",
        paper="Park et al. 2024, arXiv:2403.19159",
    ),
    "odpo": ObjectiveSpec(
        fn=odpo,
        family="pairwise",
        needs=frozenset({Need.PREFERENCES, Need.STRENGTHS}),
        reference=True,
        is_difference_only=True,
        proof="optimum",
        implicit_reward="β·log(π/π_ref)",
        paper="Amini et al. 2024, arXiv:2402.10571",
    ),
    "discopop": ObjectiveSpec(
        fn=discopop,
        family="pairwise",
        needs=frozenset({Need.PREFERENCES}),
        reference=True,
        is_difference_only=True,
        initial_loss=lambda **_: 0.5 * (math.log(2.0) + 1.0),
        learns_from_reference=False,  # the local maximum lies just beyond
        proof="fixed point",
        implicit_reward="β·log(π/π_ref)",
        paper="Lu et al. 2024, arXiv:2406.08414",
    ),
}
