"""Objectives of judged pairs that also hold the better response up: a likelihood term or a penalty beside DPO.

Axes and notation as in `logistic`: u(y) = log π(y|x) − log π_ref(y|x), D = u(y_w) − u(y_l), |y| the number of response
tokens incl. EOS. DPO sees only D, so both likelihoods may fall together; each row here says what keeps y_w from it.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt

from accord.groups import ObjectiveResult, ScoredGroups
from accord.objectives._ops import (
    judged_pairs,
    log_ratios,
    mean_logps,
    mean_over_pairs,
    of_chosen,
    pair_margins,
    soft_label_link,
    sum_logps,
)
from accord.objectives.spec import Need, ObjectiveSpec


def dpop(
    groups: ScoredGroups,
    *,
    beta: Annotated[float, Gt(0)] = 0.3,
    penalty: Annotated[float, Ge(0)] = 50.0,
) -> ObjectiveResult:
    """Penalise a better response that has become less likely than under the reference (DPO-Positive, Smaug).

    Formula: −log σ(z), z = β (D − λ max(0, −u(y_w))), λ = `penalty`.
    Gradient: ∂/∂log π(y_w) = −β (1 + λ) σ(−z) while u(y_w) < 0, −β σ(−z) from there on; ∂/∂log π(y_l) = +β σ(−z). Loss
    ln 2 at policy = reference.
    Optimum: no closed form where the penalty acts; never below `dpo`, and equal to it wherever u(y_w) ≥ 0.
    Use: pairs that differ in few tokens (arithmetic, code), where DPO lowers the better response with the worse one.
    Limits: λ far above 1 makes the loss of a fallen y_w steep: values in the hundreds are usual then; λ = 0 is `dpo`.
    Source: Pal et al. 2024, arXiv:2402.13228.

    >>> import torch
    >>> from accord.groups import groups_from_pairs
    >>> fallen = groups_from_pairs(torch.tensor([[-13.5, -13.5]]), reference_logps_P2=torch.tensor([[-13.0, -14.5]]))
    >>> round(dpop(fallen).loss_P.item(), 4)  # z = 0.3 (−1.5 − 50 × 0.5) = −7.95
    7.9504
    """
    pairs_PKK = judged_pairs(groups)
    log_ratio_PK = log_ratios(groups)
    fallen_PKK = torch.relu(-of_chosen(pairs_PKK, log_ratio_PK))
    margin_PKK = beta * (pair_margins(pairs_PKK, log_ratio_PK) - penalty * fallen_PKK)
    return mean_over_pairs(groups, pairs_PKK, soft_label_link(margin_PKK), beta * log_ratio_PK)


def rpo_irpo(
    groups: ScoredGroups,
    *,
    beta: Annotated[float, Gt(0)] = 0.1,
    nll_weight: Annotated[float, Ge(0)] = 1.0,
) -> ObjectiveResult:
    """Add the better response's likelihood per token to DPO (iterative reasoning preference optimisation).

    Formula: −log σ(β D) − α log π(y_w|x)/|y_w|, α = `nll_weight`.
    Gradient: ∂/∂log π(y_w) = −β σ(−β D) − α/|y_w|, ∂/∂log π(y_l) = +β σ(−β D).
    Optimum: no closed form for the sum; that of `dpo` at α = 0, and imitation of the better responses (π ∝ wins/length)
    as α outweighs the rest.
    Use: reasoning with a chain of thought in the response, where the right one must not lose likelihood; repeat with
    the trained model as the next reference.
    Limits: the term ties the loss to the length of y_w only through its mean; an empty y_w adds 0; the loss at policy =
    reference is ln 2 plus the data's likelihood.
    Source: Pang et al. 2024, arXiv:2404.19733. Other code calls this "RPO".

    >>> import torch
    >>> from accord.groups import groups_from_pairs
    >>> pair = groups_from_pairs(
    ...     torch.tensor([[-12.0, -15.0]]),
    ...     reference_logps_P2=torch.tensor([[-13.0, -14.5]]),
    ...     num_tokens_P2=torch.tensor([[10, 12]]),
    ... )
    >>> round(rpo_irpo(pair, beta=0.1, nll_weight=1.0).loss_P.item(), 6)  # −log σ(0.15) + 12/10
    1.820957
    """
    return _dpo_and_likelihood(groups, beta, nll_weight, "mean")


def rpo_reg(
    groups: ScoredGroups,
    *,
    beta: Annotated[float, Gt(0)] = 0.01,
    nll_weight: Annotated[float, Ge(0)] = 0.005,
    normalisation: Literal["sum", "mean"] = "sum",
) -> ObjectiveResult:
    """Add the better response's likelihood to DPO, against over-optimising an uncertain reward (regularised PO).

    Formula: −log σ(β D) − η log π(y_w|x) ("sum", the main text) or − η log π(y_w|x)/|y_w| ("mean", its appendix F), η =
    `nll_weight`.
    Gradient: ∂/∂log π(y_w) = −β σ(−β D) − η, or − η/|y_w| for "mean"; ∂/∂log π(y_l) = +β σ(−β D).
    Optimum: no closed form for the sum; that of `dpo` at η = 0, and imitation of the better responses (π ∝ wins) as η
    outweighs the rest.
    Use: long training or little data, where the implicit reward drifts off the data; by the authors' account "sum" for
    chat, "mean" for reasoning.
    Limits: one η is not the same for both choices: "sum" weighs long responses more; an empty y_w adds 0; the loss at
    policy = reference is ln 2 plus the data's likelihood.
    Source: Liu et al. 2024, arXiv:2405.16436.

    >>> import torch
    >>> from accord.groups import groups_from_pairs
    >>> pair = groups_from_pairs(torch.tensor([[-12.0, -15.0]]), reference_logps_P2=torch.tensor([[-13.0, -14.5]]))
    >>> round(rpo_reg(pair, beta=0.01, nll_weight=0.005).loss_P.item(), 6)  # −log σ(0.015) + 0.005 × 12
    0.745675
    """
    return _dpo_and_likelihood(groups, beta, nll_weight, normalisation)


def _dpo_and_likelihood(
    groups: ScoredGroups, beta: float, nll_weight: float, normalisation: Literal["sum", "mean"]
) -> ObjectiveResult:
    pairs_PKK = judged_pairs(groups)
    implicit_reward_PK = beta * log_ratios(groups)
    contrast_PKK = soft_label_link(pair_margins(pairs_PKK, implicit_reward_PK))
    logps_PK = sum_logps(groups) if normalisation == "sum" else mean_logps(groups)
    loss_PKK = contrast_PKK - nll_weight * of_chosen(pairs_PKK, logps_PK)
    return mean_over_pairs(groups, pairs_PKK, loss_PKK, implicit_reward_PK)


ROWS: dict[str, ObjectiveSpec] = {
    "dpop": ObjectiveSpec(
        fn=dpop,
        family="pairwise",
        needs=frozenset({Need.PREFERENCES}),
        reference=True,
        initial_loss=lambda **_: math.log(2.0),
        proof="bound",
        implicit_reward="β·log(π/π_ref)",
        paper="Pal et al. 2024, arXiv:2402.13228",
    ),
    "rpo_irpo": ObjectiveSpec(
        fn=rpo_irpo,
        family="pairwise",
        needs=frozenset({Need.PREFERENCES}),
        reference=True,
        proof="identity",
        implicit_reward="β·log(π/π_ref)",
        paper="Pang et al. 2024, arXiv:2404.19733",
    ),
    "rpo_reg": ObjectiveSpec(
        fn=rpo_reg,
        family="pairwise",
        needs=frozenset({Need.PREFERENCES}),
        reference=True,
        proof="identity",
        implicit_reward="β·log(π/π_ref)",
        paper="Liu et al. 2024, arXiv:2405.16436",
    ),
}
