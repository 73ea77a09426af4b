"""Objectives of judged pairs for policies kept near the reference by another divergence than the reverse KL.

Maximising E[r] − β D_f(π, π_ref) gives r = β f′(π/π_ref) + a constant per prompt, so the score of a response is
f′(e^u) in place of u = log π(y|x) − log π_ref(y|x); link and reduction are DPO's. It takes an f′ that is −∞ at 0, or
some responses would get probability 0 and the constants would not cancel: total variation and plain χ² are not here.
Axes and notation as in `logistic`.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from annotated_types import Gt, Interval

from accord.groups import ObjectiveResult, ScoredGroups
from accord.objectives._ops import (
    alpha_scores,
    judged_pairs,
    log_ratios,
    mean_over_pairs,
    pair_margins,
    soft_label_link,
    tangent_expm1,
)
from accord.objectives.spec import Need, ObjectiveSpec


def f_dpo(
    groups: ScoredGroups,
    *,
    beta: Annotated[float, Gt(0)] = 0.1,
    divergence: Literal["reverse_kl", "forward_kl", "js", "alpha"] = "reverse_kl",
    alpha: Annotated[float, Interval(gt=0, lt=1)] = 0.5,
) -> ObjectiveResult:
    """Run DPO for a policy kept near the reference by a divergence of your choice (f-DPO).

    Formula: −log σ(β (s(y_w) − s(y_l))), s up to a constant f′(e^u): u for "reverse_kl", −e^−u for "forward_kl",
    log(2e^u/(1 + e^u)) for "js", (1 − e^−αu)/α for "alpha".
    Gradient: ∂/∂log π(y_w) = −β σ(−z) k(u(y_w)), ∂/∂log π(y_l) = +β σ(−z) k(u(y_l)); k = 1, e^−u, σ(−u), e^−αu. Loss ln
    2 at policy = reference.
    Optimum: s(y_w) − s(y_l) = logit(p)/β; with Bradley–Terry raters the maximiser of E[r] − β D_f(π, π_ref).
    Use: "forward_kl" and "alpha" towards it keep the reference's variety, "reverse_kl" (which is `dpo`) seeks its mode;
    "js" is the usual compromise.
    Limits: `alpha` is for "alpha" only; it tends to reverse KL at 0 and forward KL at 1 (other code counts 1 − α).
    "forward_kl", "js" and "alpha" cannot raise a response's score beyond a bound, so margins of good responses stall
    and those of bad ones grow. e^−u is continued along its tangent for −αu > 30 nats (α = 1 for "forward_kl").
    Source: Wang et al. 2023, arXiv:2309.16240.

    >>> import torch
    >>> from accord.groups import groups_from_pairs
    >>> pair = groups_from_pairs(torch.tensor([[-12.0, -15.0]]), reference_logps_P2=torch.tensor([[-13.0, -14.5]]))
    >>> round(f_dpo(pair, beta=0.1, divergence="forward_kl").loss_P.item(), 6)  # z = 0.1 (e^0.5 − e^−1)
    0.631154
    """
    log_ratio_PK = log_ratios(groups)
    if divergence == "js":
        score_PK = math.log(2.0) + F.logsigmoid(log_ratio_PK)
    else:
        score_PK = alpha_scores(log_ratio_PK, {"reverse_kl": 0.0, "forward_kl": 1.0, "alpha": alpha}[divergence])
    pairs_PKK = judged_pairs(groups)
    loss_PKK = soft_label_link(pair_margins(pairs_PKK, beta * score_PK))
    return mean_over_pairs(groups, pairs_PKK, loss_PKK, beta * score_PK)


def chi_po(
    groups: ScoredGroups,
    *,
    beta: Annotated[float, Gt(0)] = 0.1,
    max_reward: Annotated[float, Gt(0)] = 10.0,
) -> ObjectiveResult:
    """Run DPO under χ² plus KL, which charges a policy far more for leaving what the data cover (χPO).

    Formula: −log σ(clip(β (s(y_w) − s(y_l)), ±2R)), s(y) = e^u + u, R = `max_reward`.
    Gradient: ∂/∂log π(y_w) = −β σ(−z) (1 + e^u(y_w)), ∂/∂log π(y_l) = +β σ(−z) (1 + e^u(y_l)); 0 where clipped. Loss ln
    2 at policy = reference.
    Optimum: s(y_w) − s(y_l) = logit(p)/β; with Bradley–Terry raters the maximiser of E[r] − β (KL + χ²/2)(π, π_ref).
    Use: preferences cover few of the responses and DPO over-optimises: probability ratios here grow like β^−1 r, not
    like e^(r/β).
    Limits: a pair clipped at the WRONG order pulls no more: keep 2R well above the margins in use (the default is
    ours); e^u is continued along its tangent for u > 30 nats.
    Source: Huang et al. 2024, arXiv:2407.13399.

    >>> import torch
    >>> from accord.groups import groups_from_pairs
    >>> pair = groups_from_pairs(torch.tensor([[-12.0, -15.0]]), reference_logps_P2=torch.tensor([[-13.0, -14.5]]))
    >>> round(chi_po(pair, beta=0.1).loss_P.item(), 6)  # z = 0.1 (e + 1 − e^−0.5 + 0.5)
    0.528778
    """
    log_ratio_PK = log_ratios(groups)
    score_PK = tangent_expm1(log_ratio_PK) + log_ratio_PK
    pairs_PKK = judged_pairs(groups)
    margin_PKK = torch.clamp(pair_margins(pairs_PKK, beta * score_PK), -2.0 * max_reward, 2.0 * max_reward)
    return mean_over_pairs(groups, pairs_PKK, soft_label_link(margin_PKK), beta * score_PK)


def _check_f_dpo(*, divergence: str, alpha: float, **_: Any) -> None:
    """Refuse a setting without effect."""
    if divergence != "alpha" and alpha != 0.5:
        raise ValueError(f"alpha={alpha} has no use: divergence={divergence} does not read it — leave it out")


ROWS: dict[str, ObjectiveSpec] = {
    "f_dpo": ObjectiveSpec(
        fn=f_dpo,
        family="pairwise",
        needs=frozenset({Need.PREFERENCES}),
        reference=True,
        is_difference_only=True,
        initial_loss=lambda **_: math.log(2.0),
        check=_check_f_dpo,
        proof="optimum",
        implicit_reward="β·f′(π/π_ref)",
        paper="Wang et al. 2023, arXiv:2309.16240",
    ),
    "chi_po": ObjectiveSpec(
        fn=chi_po,
        family="pairwise",
        needs=frozenset({Need.PREFERENCES}),
        reference=True,
        initial_loss=lambda **_: math.log(2.0),
        proof="optimum",
        implicit_reward="β·(π/π_ref + log(π/π_ref))",
        paper="Huang et al. 2024, arXiv:2407.13399",
    ),
}
