"""Objectives of judged pairs that stop at a finite margin: squared, hinge and Kullback–Leibler links.

Axes and notation as in `logistic`: u(y) = log π(y|x) − log π_ref(y|x), D = u(y_w) − u(y_l), p the fraction of raters
who prefer y_w. A group's loss is the mean over its judged pairs; a group without one is not counted.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Annotated, Literal

import torch
from annotated_types import Gt, Interval

from accord.groups import ObjectiveResult, ScoredGroups
from accord.objectives._ops import (
    bernoulli_kl,
    hinge_link,
    judged_pairs,
    log_ratios,
    mean_log_ratios,
    mean_over_pairs,
    pair_margins,
    squared_link,
)
from accord.objectives.spec import Need, ObjectiveSpec


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
    Use: few or unanimous votes per pair, where DPO's margins run away; "mean" where lengths differ much.
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


def hinge(groups: ScoredGroups, *, beta: Annotated[float, Gt(0)] = 0.1) -> ObjectiveResult:
    """Push each margin to 1/β and no further (hinge loss on DPO's margin).

    Formula: max(0, 1 − β D).
    Gradient: ∂/∂log π(y_w) = −β where β D < 1, else 0; the opposite for y_l. Loss 1 at policy = reference.
    Optimum: β D = 1 where p > 1/2, −1 where p < 1/2, loss 2 min(p, 1 − p); unanimous raters: any β D ≥ 1, loss 0.
    Use: pairs that are fitted should stop pulling; a plain ranking is enough and its degree is of no interest.
    Limits: blind to how many raters agree: p = 0.51 asks for the same margin as p = 0.99; p = 1/2 leaves any margin
    between −1/β and 1/β.
    Source: Liu et al. 2023 (RSO, "hinge-norm"), arXiv:2309.06657.

    >>> import torch
    >>> from accord.groups import groups_from_pairs
    >>> pair = groups_from_pairs(torch.tensor([[-12.0, -15.0]]), reference_logps_P2=torch.tensor([[-13.0, -14.5]]))
    >>> round(hinge(pair, beta=0.1).loss_P.item(), 6)  # 1 − 0.1 × 1.5
    0.85
    """
    pairs_PKK = judged_pairs(groups)
    implicit_reward_PK = beta * log_ratios(groups)
    loss_PKK = hinge_link(pair_margins(pairs_PKK, implicit_reward_PK))
    return mean_over_pairs(groups, pairs_PKK, loss_PKK, implicit_reward_PK)


def exo_pref(
    groups: ScoredGroups,
    *,
    beta: Annotated[float, Gt(0)] = 0.1,
    epsilon: Annotated[float, Interval(gt=0, lt=0.5)] = 1e-3,
) -> ObjectiveResult:
    """Match the policy's own pair distribution to the label by reverse KL, which seeks its mode (EXO on preferences).

    Formula: KL(σ(z) ‖ 1 − ε) between Bernoulli distributions, z = β D; DPO with smoothing ε is the same divergence with
    its sides exchanged, up to a constant.
    Gradient: ∂/∂log π(y_w) = −β σ(z) σ(−z) (logit(1 − ε) − z), the opposite for y_l. Loss −ln 2 − ½ log(ε(1 − ε)) at
    policy = reference.
    Optimum: z = logit(1 − ε) for unanimous raters, loss 0; raters who disagree average the LOGITS of their labels:
    z = (2p − 1) logit(1 − ε), where DPO averages the labels.
    Use: a policy that cannot fit everything should fit the best responses well instead of covering all.
    Limits: not convex: the gradient fades as σ(z)σ(−z) for pairs that are far wrong; ε = 0 is infinite and refused.
    Source: Ji et al. 2024, arXiv:2402.00856; two-response form.

    >>> import torch
    >>> from accord.groups import groups_from_pairs
    >>> pair = groups_from_pairs(torch.tensor([[-12.0, -15.0]]), reference_logps_P2=torch.tensor([[-13.0, -14.5]]))
    >>> round(exo_pref(pair, beta=0.1, epsilon=1e-3).loss_P.item(), 6)  # KL of σ(0.15) against 0.999
    2.505517
    """
    pairs_PKK = judged_pairs(groups)
    implicit_reward_PK = beta * log_ratios(groups)
    margin_PKK = pair_margins(pairs_PKK, implicit_reward_PK)
    label_logit = margin_PKK.new_tensor(math.log1p(-epsilon) - math.log(epsilon)).expand(margin_PKK.shape)
    return mean_over_pairs(groups, pairs_PKK, bernoulli_kl(margin_PKK, label_logit), implicit_reward_PK)


def rpo_nv(
    groups: ScoredGroups,
    *,
    beta: Annotated[float, Gt(0)] = 0.2,
    eta: Annotated[float, Gt(0)] = 1.0,
    direction: Literal["bwd_kl", "fwd_kl", "squared"] = "bwd_kl",
) -> ObjectiveResult:
    """Fit the margin to the difference of the true rewards, not only to its sign (reward-aware RPO).

    Formula: with z = β D, t = η·strength: "bwd_kl" KL(σ(t) ‖ σ(z)), "fwd_kl" KL(σ(z) ‖ σ(t)), "squared" (z − t)².
    Gradient: ∂/∂log π(y_w) = −β (σ(t) − σ(z)), −β σ(z)σ(−z)(t − z) or −2β (t − z); the opposite for y_l.
    Optimum: β D = η·strength for all three: π ∝ π_ref · exp(η r/β) where strengths are differences of a reward r.
    Use: ratings or reward-model scores are there, and a small difference should not be learned like a large one.
    Limits: a pair without a strength says nothing here and is not counted; η → ∞ is `dpo` for "bwd_kl"; "squared" has
    the form of REBEL and is the one that outliers of the rewards reach.
    Source: Adler et al. 2024 (Nemotron-4 340B), arXiv:2406.11704; the three directions: Sun et al. 2025,
    arXiv:2502.00203.

    >>> import torch
    >>> from dataclasses import replace
    >>> from accord.groups import groups_from_pairs
    >>> pair = groups_from_pairs(torch.tensor([[-12.0, -15.0]]), reference_logps_P2=torch.tensor([[-13.0, -14.5]]))
    >>> pair = replace(pair, strength_PKK=torch.tensor([[[0.0, 0.7], [0.0, 0.0]]]))
    >>> round(rpo_nv(pair, beta=0.1, direction="squared").loss_P.item(), 6)  # (0.15 − 0.7)²
    0.3025
    """
    assert groups.strength_PKK is not None, "the spec of rpo_nv declares that it needs strengths"
    judged_PKK = judged_pairs(groups)
    pairs_PKK = judged_PKK & (groups.strength_PKK != 0)
    target_PKK = eta * torch.where(pairs_PKK, groups.strength_PKK, 0.0)
    implicit_reward_PK = beta * log_ratios(groups)
    margin_PKK = pair_margins(pairs_PKK, implicit_reward_PK)
    if direction == "squared":
        loss_PKK = squared_link(margin_PKK, target_PKK)
    elif direction == "bwd_kl":
        loss_PKK = bernoulli_kl(target_PKK, margin_PKK)
    else:
        loss_PKK = bernoulli_kl(margin_PKK, target_PKK)
    return mean_over_pairs(groups, pairs_PKK, loss_PKK, implicit_reward_PK)


_IPO = ObjectiveSpec(
    fn=ipo,
    family="pairwise",
    needs=frozenset({Need.PREFERENCES}),
    reference=True,
    is_difference_only=True,
    initial_loss=lambda *, tau, **_: 0.25 / tau**2,
    proof="optimum",
    implicit_reward="τ·log(π/π_ref), per token for normalisation=mean",
    paper="Azar et al. 2023, arXiv:2310.12036, eq. 17",
)

ROWS: dict[str, ObjectiveSpec] = {
    "ipo": _IPO,
    "ipo_sum": replace(_IPO, fn=partial(ipo, normalisation="sum"), implicit_reward="τ·log(π/π_ref)"),
    "ipo_avg": replace(
        _IPO,
        fn=partial(ipo, normalisation="mean"),
        is_difference_only=False,  # a constant per prompt is divided by different lengths
        implicit_reward="τ·log(π/π_ref)/|y|",
    ),
    "hinge": ObjectiveSpec(
        fn=hinge,
        family="pairwise",
        needs=frozenset({Need.PREFERENCES}),
        reference=True,
        is_difference_only=True,
        initial_loss=lambda **_: 1.0,
        proof="optimum",
        implicit_reward="β·log(π/π_ref)",
        paper="Liu et al. 2023, arXiv:2309.06657",
    ),
    "exo_pref": ObjectiveSpec(
        fn=exo_pref,
        family="pairwise",
        needs=frozenset({Need.PREFERENCES}),
        reference=True,
        is_difference_only=True,
        initial_loss=lambda *, epsilon, **_: -math.log(2.0) - 0.5 * math.log(epsilon * (1.0 - epsilon)),
        proof="optimum",
        implicit_reward="β·log(π/π_ref)",
        paper="Ji et al. 2024, arXiv:2402.00856",
    ),
    "rpo_nv": ObjectiveSpec(
        fn=rpo_nv,
        family="pairwise",
        needs=frozenset({Need.PREFERENCES, Need.STRENGTHS}),
        reference=True,
        is_difference_only=True,
        proof="optimum",
        implicit_reward="β·log(π/π_ref)",
        paper="Adler et al. 2024, arXiv:2406.11704",
    ),
}
