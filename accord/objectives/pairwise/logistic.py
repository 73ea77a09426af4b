"""Objectives of judged pairs: loss = link(scale × (score of the better − score of the worse) − offset).

Axes: P prompts, K responses per prompt. Notation in formulas: y_w the better and y_l the worse response of a pair,
u(y) = log π(y|x) − log π_ref(y|x), |y| the number of response tokens incl. EOS, σ the logistic function, nats
throughout. All pairs in `preferred_PKK` enter; a group's loss is the mean over its pairs.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Interval

from accord.groups import ObjectiveResult, ScoredGroups
from accord.objectives._ops import (
    judged_pairs,
    log_odds,
    log_ratios,
    mean_log_ratios,
    mean_logps,
    mean_over_pairs,
    of_chosen,
    pair_margins,
    soft_label_link,
    squared_link,
)
from accord.objectives.spec import Need, ObjectiveSpec


def dpo(
    groups: ScoredGroups,
    *,
    beta: Annotated[float, Gt(0)] = 0.1,
    label_smoothing: Annotated[float, Interval(ge=0, lt=0.5)] = 0.0,
) -> ObjectiveResult:
    """Fit the implicit reward β·u to the preferences by logistic regression (DPO; conservative DPO when smoothed).

    Formula: −(1 − ε) log σ(z) − ε log σ(−z), z = β (u(y_w) − u(y_l)), ε = `label_smoothing`.
    Gradient: ∂/∂log π(y_w) = −β (1 − ε − σ(z)), the opposite for y_l. Loss ln 2 at policy = reference.
    Optimum: u(y_w) − u(y_l) = logit(p) / β where raters prefer y_w with probability p (smoothed: p(1 − ε) + (1 − p) ε).
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


def ipo(
    groups: ScoredGroups,
    *,
    tau: Annotated[float, Gt(0)] = 0.1,
    normalisation: Literal["sum", "mean"] = "sum",
) -> ObjectiveResult:
    """Regress the difference of log-ratios on the fixed margin 1/(2τ), which stays finite for unanimous raters (IPO).

    Formula: (D − 1/(2τ))², D = u(y_w) − u(y_l) ("sum", the paper) or u(y_w)/|y_w| − u(y_l)/|y_l| ("mean", as in the
    authors' code). Loss 1/(4τ²) at policy = reference, 0 at D = 1/(2τ).
    Gradient: ∂/∂log π(y_w) = −2 (1/(2τ) − D), divided by |y_w| for "mean"; it pushes the margin DOWN beyond the target.
    Optimum: D = (p − 1/2) / τ where raters prefer y_w with probability p.
    Limits: the two normalisations are different methods with different useful τ; τ is not comparable with DPO's β.
    Source: Azar et al. 2023, arXiv:2310.12036, eq. 17.

    >>> import torch
    >>> from accord.groups import groups_from_pairs
    >>> pair = groups_from_pairs(torch.tensor([[-12.0, -15.0]]), reference_logps_P2=torch.tensor([[-13.0, -14.5]]))
    >>> ipo(pair, tau=0.1).loss_P.item()  # (1.5 − 5)²
    12.25
    """
    pairs_PKK = judged_pairs(groups)
    score_PK = log_ratios(groups) if normalisation == "sum" else mean_log_ratios(groups)
    loss_PKK = squared_link(pair_margins(pairs_PKK, score_PK), target=0.5 / tau)
    return mean_over_pairs(groups, pairs_PKK, loss_PKK, tau * score_PK)


def simpo(
    groups: ScoredGroups,
    *,
    beta: Annotated[float, Gt(0)] = 2.0,
    gamma_beta_ratio: Annotated[float, Ge(0)] = 0.5,
) -> ObjectiveResult:
    """Separate per-token mean log-probabilities by a target margin, without a reference (SimPO).

    Formula: −log σ(β (log π(y_w)/|y_w| − log π(y_l)/|y_l|) − γ), γ = β · `gamma_beta_ratio`.
    Gradient: ∂/∂log π(y_w) = −β σ(−z)/|y_w|, ∂/∂log π(y_l) = +β σ(−z)/|y_l|. Loss log(1 + e^γ) at equal means.
    Optimum: raters who disagree show both orders, and both carry the margin: with z′ = β × difference of means, p
    σ(γ − z′) = (1 − p) σ(γ + z′); z′ = logit p for γ = 0, more extreme for γ > 0.
    Limits: nothing ties the policy to its start, so the learning rate is the only brake; β is some twenty times DPO's
    because means are small. The authors quote γ/β, other code γ itself: this setting is the ratio.
    Source: Meng, Xia and Chen 2024, arXiv:2405.14734, eq. 6.

    >>> import torch
    >>> from accord.groups import groups_from_pairs
    >>> pair = groups_from_pairs(torch.tensor([[-12.0, -15.0]]), num_tokens_P2=torch.tensor([[10, 12]]))
    >>> round(simpo(pair, beta=2.0, gamma_beta_ratio=0.5).loss_P.item(), 6)  # log(1 + e^0.9): z = 2(−1.2 + 1.25) − 1
    1.241154
    """
    pairs_PKK = judged_pairs(groups)
    implicit_reward_PK = beta * mean_logps(groups)
    margin_PKK = pair_margins(pairs_PKK, implicit_reward_PK) - beta * gamma_beta_ratio
    return mean_over_pairs(groups, pairs_PKK, soft_label_link(margin_PKK), implicit_reward_PK)


def orpo(groups: ScoredGroups, *, odds_weight: Annotated[float, Ge(0)] = 0.1) -> ObjectiveResult:
    """Imitate the better response and push its odds above those of the worse one, without a reference (ORPO).

    Formula: −log π(y_w)/|y_w| − λ log σ(o(y_w) − o(y_l)), o(y) = log(p̄/(1 − p̄)), p̄ = exp(log π(y)/|y|), λ =
    `odds_weight` (some code calls it beta; it is no tie to a reference, hence the other name).
    Gradient: with s = σ(o(y_l) − o(y_w)): ∂/∂log π(y_w) = −(1 + λ s/(1 − p̄_w))/|y_w|, ∂/∂log π(y_l) = λ
    s/((1 − p̄_l)|y_l|).
    Optimum: no closed form for the sum; λ = 0 is imitation of the better responses, and the odds term alone is least at
    o(y_w) − o(y_l) = logit p.
    Limits: the likelihood term covers response tokens only (some code adds the prompt's); the odds are held constant
    for p̄ > exp(−1e-6), where 1/(1 − p̄) diverges.
    Source: Hong, Lee and Thorne 2024, arXiv:2403.07691, eq. 6 and 7.

    >>> import torch
    >>> from accord.groups import groups_from_pairs
    >>> pair = groups_from_pairs(torch.tensor([[-12.0, -15.0]]), num_tokens_P2=torch.tensor([[10, 12]]))
    >>> round(orpo(pair, odds_weight=0.1).loss_P.item(), 6)  # 1.2 + 0.1 log(1 + e^−0.070803)
    1.265837
    """
    pairs_PKK = judged_pairs(groups)
    log_odds_PK = log_odds(groups)
    imitation_PKK = of_chosen(pairs_PKK, -mean_logps(groups))
    contrast_PKK = soft_label_link(pair_margins(pairs_PKK, log_odds_PK))
    return mean_over_pairs(groups, pairs_PKK, imitation_PKK + odds_weight * contrast_PKK, log_odds_PK)


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
    "ipo": ObjectiveSpec(
        fn=ipo,
        family="pairwise",
        needs=frozenset({Need.PREFERENCES}),
        reference=True,
        is_difference_only=True,
        initial_loss=lambda *, tau, **_: 0.25 / tau**2,
        proof="optimum",
        implicit_reward="τ·log(π/π_ref), per token for normalisation=mean",
        paper="Azar et al. 2023, arXiv:2310.12036, eq. 17",
    ),
    "simpo": ObjectiveSpec(
        fn=simpo,
        family="pairwise",
        needs=frozenset({Need.PREFERENCES}),
        reference=False,
        proof="optimum",
        implicit_reward="β·log π(y|x)/|y|",
        paper="Meng et al. 2024, arXiv:2405.14734, eq. 6",
    ),
    "orpo": ObjectiveSpec(
        fn=orpo,
        family="pairwise",
        needs=frozenset({Need.PREFERENCES}),
        reference=False,
        proof="bound",
        implicit_reward="log-odds of exp(log π(y|x)/|y|)",
        paper="Hong et al. 2024, arXiv:2403.07691, eq. 6",
    ),
}
