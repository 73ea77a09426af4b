"""Objectives of judged pairs with a term for each response: loss = A_w(u(y_w)) + A_l(u(y_l)), each with its own zero.

What DPO leaves open, whether the better response rises or the worse one falls, is decided here: each half is anchored
at the reference. A half can be used without the other; `pointwise` has the rows for single labelled responses.
Axes and notation as in `logistic`: u(y) = log π(y|x) − log π_ref(y|x), p the fraction of raters who prefer y_w.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated

from annotated_types import Gt
from jaxtyping import Float
from torch import Tensor

from accord.groups import ObjectiveResult, ScoredGroups
from accord.objectives._ops import (
    judged_pairs,
    log_ratios,
    mean_over_pairs,
    of_chosen,
    of_rejected,
    pair_margins,
    sigmoid_link,
    soft_label_link,
    squared_link,
)
from accord.objectives.spec import Need, ObjectiveSpec

Half = Callable[[Float[Tensor, "P K K"]], Float[Tensor, "P K K"]]


def apo_zero(groups: ScoredGroups, *, beta: Annotated[float, Gt(0)] = 0.1) -> ObjectiveResult:
    """Raise the better response and lower the worse one, each against the reference (anchored preference optimisation).

    Formula: 1 − σ(r_w) + σ(r_l), r = β u.
    Gradient: ∂/∂log π(y_w) = −β σ(r_w)σ(−r_w), ∂/∂log π(y_l) = +β σ(r_l)σ(−r_l). Loss 1 at policy = reference.
    Optimum: none: bounded in (0, 2) and monotone in each response.
    Use: the better responses are better than what the model writes.
    Limits: the gradient fades for |r| ≫ 1 on either side, so a hopeless pair pulls as little as a finished one. It is
    `kto` of the two responses with z0 = 0 and equal weights. The paper's loss is lower by the constant 1.
    Source: D'Oosterlinck et al. 2024, arXiv:2408.06266.

    >>> import torch
    >>> from accord.groups import groups_from_pairs
    >>> pair = groups_from_pairs(torch.tensor([[-12.0, -15.0]]), reference_logps_P2=torch.tensor([[-13.0, -14.5]]))
    >>> round(apo_zero(pair, beta=0.1).loss_P.item(), 6)  # 1 − σ(0.1) + σ(−0.05)
    0.962523
    """
    return _halves(groups, beta, sigmoid_link, lambda reward: sigmoid_link(-reward))


def apo_down(groups: ScoredGroups, *, beta: Annotated[float, Gt(0)] = 0.1) -> ObjectiveResult:
    """Lower both responses against the reference, the worse one further (anchored preference optimisation).

    Formula: σ(r_w) + 1 − σ(r_w − r_l), r = β u.
    Gradient: ∂/∂log π(y_w) = β [σ(r_w)σ(−r_w) − σ(r_w − r_l)σ(r_l − r_w)], 0 at policy = reference; ∂/∂log π(y_l) = β
    σ(r_w − r_l)σ(r_l − r_w). Loss 1 at policy = reference.
    Optimum: none: bounded in (0, 2), with infimum 0 as r_w → −∞ and r_w − r_l → ∞.
    Use: the model already writes better than both responses of a pair, and only their difference should be learned.
    Limits: it lowers what it prefers: never on pairs whose better response is good; the gradient fades for |r| ≫ 1.
    Source: D'Oosterlinck et al. 2024, arXiv:2408.06266; the paper's loss is lower by the constant 1.

    >>> import torch
    >>> from accord.groups import groups_from_pairs
    >>> pair = groups_from_pairs(torch.tensor([[-12.0, -15.0]]), reference_logps_P2=torch.tensor([[-13.0, -14.5]]))
    >>> round(apo_down(pair, beta=0.1).loss_P.item(), 6)  # σ(0.1) + 1 − σ(0.15)
    0.987549
    """
    pairs_PKK = judged_pairs(groups)
    reward_PK = beta * log_ratios(groups)
    lowered_PKK = sigmoid_link(-of_chosen(pairs_PKK, reward_PK))
    loss_PKK = lowered_PKK + sigmoid_link(pair_margins(pairs_PKK, reward_PK))
    return mean_over_pairs(groups, pairs_PKK, loss_PKK, reward_PK)


def nca_pair(groups: ScoredGroups, *, beta: Annotated[float, Gt(0)] = 0.1) -> ObjectiveResult:
    """Classify the better response against noise of the reference, which keeps its likelihood from falling (pair NCA).

    Formula: −log σ(r_w) − ½ log σ(−r_w) − ½ log σ(−r_l), r = β u.
    Gradient: ∂/∂log π(y_w) = −β (σ(−r_w) − ½ σ(r_w)), which turns round at r_w = ln 2; ∂/∂log π(y_l) = +β ½ σ(r_l).
    Loss 2 ln 2 at policy = reference.
    Optimum: e^r(y) = 2p for a response that wins a share p of its pairs (r = ln 2 for one that always wins); with β = 1
    and pairs drawn from the reference that is π = π_ref · 2P(y beats π_ref), which sums to one.
    Use: DPO lowers the likelihood of the better responses and that hurts (reasoning, code).
    Limits: a response that always loses has no finite optimum; larger margins than ln 2 are pulled back.
    Source: Chen et al. 2024, arXiv:2402.05369; pair form.

    >>> import torch
    >>> from accord.groups import groups_from_pairs
    >>> pair = groups_from_pairs(torch.tensor([[-12.0, -15.0]]), reference_logps_P2=torch.tensor([[-13.0, -14.5]]))
    >>> round(nca_pair(pair, beta=0.1).loss_P.item(), 6)  # r = 0.1 and −0.05
    1.350825
    """
    return _halves(
        groups,
        beta,
        lambda reward: soft_label_link(reward) + 0.5 * soft_label_link(-reward),
        lambda reward: 0.5 * soft_label_link(-reward),
    )


def bco_pair(groups: ScoredGroups, *, beta: Annotated[float, Gt(0)] = 0.1) -> ObjectiveResult:
    """Classify better from worse responses by the implicit reward itself, an upper bound of DPO (BCO on pairs).

    Formula: −log σ(r_w) − log σ(−r_l), r = β u.
    Gradient: ∂/∂log π(y_w) = −β σ(−r_w), ∂/∂log π(y_l) = +β σ(r_l). Loss 2 ln 2 at policy = reference.
    Optimum: r(y) = logit p for a response that wins a share p of its pairs, where the policy can give it that mass.
    Use: pairs of which each response should be right by itself, for instance to filter or rank single responses later.
    Limits: always above `dpo`: σ(a)σ(b) < σ(a + b); the reward shift δ of `bco` is fixed at 0 here; a response that
    always wins or always loses has no finite optimum.
    Source: Jung et al. 2024, arXiv:2404.04656, with δ = 0; also the "biased" variant of arXiv:2402.05369.

    >>> import torch
    >>> from accord.groups import groups_from_pairs
    >>> pair = groups_from_pairs(torch.tensor([[-12.0, -15.0]]), reference_logps_P2=torch.tensor([[-13.0, -14.5]]))
    >>> round(bco_pair(pair, beta=0.1).loss_P.item(), 6)  # −log σ(0.1) − log σ(0.05)
    1.312856
    """
    return _halves(groups, beta, soft_label_link, lambda reward: soft_label_link(-reward))


def sppo_hard(groups: ScoredGroups, *, eta: Annotated[float, Gt(0)] = 10.0) -> ObjectiveResult:
    """Move each response's log-ratio to what a step of self-play would give it: ±η/2 (SPPO with hard labels).

    Formula: (u(y_w) − η/2)² + (u(y_l) + η/2)².
    Gradient: ∂/∂log π(y_w) = −2 (η/2 − u(y_w)), ∂/∂log π(y_l) = +2 (u(y_l) + η/2). Loss η²/2 at policy = reference.
    Optimum: u(y) = η (p − 1/2) for a response that wins a share p of its pairs: ±η/2 for unanimous raters, where the
    policy can give it that mass.
    Use: repeated rounds in which the reference is the policy of the last round, on its own samples.
    Limits: the targets ignore the normaliser (taken as η/2): log-ratios of seen responses need not be able to reach
    them; the published runs use η = 1000 with small steps, other code η = 1/β; `sppo` takes win fractions.
    Source: Wu et al. 2024, arXiv:2405.00675.

    >>> import torch
    >>> from accord.groups import groups_from_pairs
    >>> pair = groups_from_pairs(torch.tensor([[-12.0, -15.0]]), reference_logps_P2=torch.tensor([[-13.0, -14.5]]))
    >>> sppo_hard(pair, eta=10.0).loss_P.item()  # (1 − 5)² + (−0.5 + 5)²
    36.25
    """
    half = eta / 2
    return _halves(groups, 1.0, lambda ratio: squared_link(ratio, half), lambda ratio: squared_link(ratio, -half))


def _halves(groups: ScoredGroups, beta: float, better: Half, worse: Half) -> ObjectiveResult:
    """Return the mean over judged pairs of `better(βu_w) + worse(βu_l)`."""
    pairs_PKK = judged_pairs(groups)
    reward_PK = beta * log_ratios(groups)
    loss_PKK = better(of_chosen(pairs_PKK, reward_PK)) + worse(of_rejected(pairs_PKK, reward_PK))
    return mean_over_pairs(groups, pairs_PKK, loss_PKK, reward_PK)


ROWS: dict[str, ObjectiveSpec] = {
    "apo_zero": ObjectiveSpec(
        fn=apo_zero,
        family="pairwise",
        needs=frozenset({Need.PREFERENCES}),
        reference=True,
        initial_loss=lambda **_: 1.0,
        proof="identity",
        implicit_reward="β·log(π/π_ref)",
        paper="D'Oosterlinck et al. 2024, arXiv:2408.06266",
    ),
    "apo_down": ObjectiveSpec(
        fn=apo_down,
        family="pairwise",
        needs=frozenset({Need.PREFERENCES}),
        reference=True,
        initial_loss=lambda **_: 1.0,
        proof="direction",
        implicit_reward="β·log(π/π_ref)",
        paper="D'Oosterlinck et al. 2024, arXiv:2408.06266",
    ),
    "nca_pair": ObjectiveSpec(
        fn=nca_pair,
        family="pairwise",
        needs=frozenset({Need.PREFERENCES}),
        reference=True,
        initial_loss=lambda **_: 2.0 * math.log(2.0),
        proof="optimum",
        implicit_reward="β·log(π/π_ref)",
        paper="Chen et al. 2024, arXiv:2402.05369",
    ),
    "bco_pair": ObjectiveSpec(
        fn=bco_pair,
        family="pairwise",
        needs=frozenset({Need.PREFERENCES}),
        reference=True,
        initial_loss=lambda **_: 2.0 * math.log(2.0),
        proof="optimum",
        implicit_reward="β·log(π/π_ref)",
        paper="Jung et al. 2024, arXiv:2404.04656",
    ),
    "sppo_hard": ObjectiveSpec(
        fn=sppo_hard,
        family="pairwise",
        needs=frozenset({Need.PREFERENCES}),
        reference=True,
        initial_loss=lambda *, eta, **_: 0.5 * eta**2,
        proof="optimum",
        implicit_reward="log(π/π_ref)",
        paper="Wu et al. 2024, arXiv:2405.00675",
    ),
}
