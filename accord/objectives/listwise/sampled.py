"""The sampling view: preference optimisation as maximum likelihood whose normaliser is estimated from negatives.

The model is p(y|x) ∝ μ(y|x) e^r(y), r = β u, u(y) = log π(y|x) − log π_ref(y|x), and μ the proposal that wrote the
responses: π_ref unless said otherwise. The best response y_0 of a group stands for data, those judged worse, y_1 … y_L,
for draws of μ. How the gradient of log Z = log E_μ e^r is estimated from them makes the rows of this file.

Axes: P prompts, B best responses, K responses per prompt. Several best ones tied are averaged, each against its own
worse ones; a group without a best (a circle of judgements, ties only, one response) is not counted.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt
from jaxtyping import Bool, Float
from torch import Tensor

from accord.groups import ObjectiveResult, ScoredGroups
from accord.objectives._ops import (
    given_ratings,
    judged_pairs,
    log_ratios,
    mean_over_best,
    pair_margins,
    soft_label_link,
    softmax_link,
)
from accord.objectives.listwise.kernels import Kernel, visit_numbers, walk_ends
from accord.objectives.spec import Need, ObjectiveSpec, StateSpec


def mc_po(
    groups: ScoredGroups,
    *,
    beta: Annotated[float, Gt(0)] = 0.1,
    num_negatives: Annotated[int, Ge(1)] = 1,
    kernel: Kernel = "hard_negative",
    loss: Literal["ranking", "divergence"] = "ranking",
    sampler_temperature: Annotated[float, Gt(0)] = 1.0,
    num_steps: Annotated[int, Ge(1)] = 1,
    correct_proposal: bool = False,
    false_negative_margin: Annotated[float, Gt(0)] | None = None,
) -> ObjectiveResult:
    """Contrast the best response with negatives drawn afresh at each visit by a Monte-Carlo kernel (MC-PO).

    Formula: −log e^(r_0) / (e^(r_0) + Σ_k e^(r_k)) over M = `num_negatives` drawn k, with replacement, r = β u.
    `kernel`: hard_negative k ~ softmax(r_1 … r_L); cis k ~ softmax(r_0 … r_L), where k = 0 is no update; random;
    max_margin and second_best the lowest and highest rated (unrated: judged worse by most and by fewest); all: every
    negative, as `rnce`. `loss`=divergence: Σ_k (r_k − r_0)/M, contrastive divergence's own. r is divided by
    `sampler_temperature` in the draw; `num_steps` > 1 walks on, for cis through as many parts of the candidates, for
    hard_negative among all; `correct_proposal` adds log π_ref − log q to r, q the sampler that wrote the responses;
    `false_negative_margin` leaves out candidates whose r exceeds r_0 by more.
    Gradient: ∂/∂log π(y_k) = β w_k, w the softmax of r_0 and the drawn (divergence: 1/M); y_0 the opposite; none
    through the draw. Expected, hard_negative, M = 1: β ω_k σ(r_k − r_0), ω = softmax(r_1 … r_L); cis with divergence:
    exactly that of `rnce`.
    Optimum: r = reward + const is a fixed point where the best is chosen with probability softmax(reward), for random
    and all with ranking and cis with divergence; the others trade that for larger steps (hard_negative settles at
    smaller differences).
    Use: with three or more responses to a prompt; hard_negative is the method of the paper.
    Limits: one candidate is DPO; at equal r all candidates are drawn alike, so negatives get harder only as r spreads:
    lower the temperature; where every candidate is left out, the group counts with loss 0; `all` draws nothing and has
    no use for M; cis is exact at temperature 1.
    Source: Chen et al. 2025, arXiv:2502.04567; from the abstract and derivation, not the paper's body: reconstruction.

    >>> import torch
    >>> from accord.groups import groups_from_pairs
    >>> pair = groups_from_pairs(torch.tensor([[-12.0, -15.0]]), reference_logps_P2=torch.tensor([[-13.0, -14.5]]))
    >>> round(mc_po(replace(pair, draw_seed_P=torch.tensor([7]))).loss_P.item(), 6)  # one candidate: DPO
    0.620957
    """
    pairs_PKK = judged_pairs(groups)
    implicit_reward_PK = beta * log_ratios(groups)
    score_PK = implicit_reward_PK + _proposal_correction(groups) if correct_proposal else implicit_reward_PK
    margin_PKK = pair_margins(pairs_PKK, score_PK)
    is_candidate_PKK = pairs_PKK
    if false_negative_margin is not None:
        is_candidate_PKK = pairs_PKK & ~(-pair_margins(pairs_PKK, implicit_reward_PK) > false_negative_margin)
    if kernel == "all":
        count_PKK, num_drawn = is_candidate_PKK.double(), is_candidate_PKK.sum(dim=2).clamp(min=1)
    else:
        seed_P = groups.draw_seed_P
        assert seed_P is not None, "the spec declares that mc_po needs draws"
        uniform_PMS, key_PK = visit_numbers(
            seed_P, num_walks=num_negatives, num_steps=num_steps, width=score_PK.shape[1]
        )
        sampler_PK = score_PK.detach().double() / sampler_temperature
        quality_PK = _judged_quality(groups, pairs_PKK)
        count_PKK = walk_ends(kernel, sampler_PK, quality_PK, is_candidate_PKK, uniform_PMS, key_PK)
        num_drawn = num_negatives
    loss_PK = _ranking(margin_PKK, count_PKK) if loss == "ranking" else _divergence(margin_PKK, count_PKK) / num_drawn
    return mean_over_best(groups, pairs_PKK, loss_PK, implicit_reward_PK)


def ml_is(groups: ScoredGroups, *, beta: Annotated[float, Gt(0)] = 0.1) -> ObjectiveResult:
    """Maximise the likelihood with the normaliser estimated by plain importance sampling (ML-IS).

    Formula: −r_0 + log (1/M) Σ_{j = 1 … M} e^(r_j), r = β u, over the M responses judged worse than the best.
    Gradient: ∂/∂log π(y_0) = −β, ∂/∂log π(y_j) = β w_j, w = softmax(r_1 … r_M): the expectation of `mc_po` with
    kernel hard_negative and loss divergence.
    Optimum: none: unbounded below, for M = 1 plainly linear (−r_0 + r_1). The estimate of the likelihood's gradient has
    a bias of order 1/M even where the data follow the model.
    Use: as the baseline that shows what putting y_0 into the normaliser (`rnce`) is for; with few steps.
    Limits: margins run away, so stop early; 0 at policy = reference.
    Source: importance sampling as set beside MC-PO, Chen et al. 2025, arXiv:2502.04567 (reconstruction).

    >>> import torch
    >>> from accord.groups import groups_from_pairs
    >>> pair = groups_from_pairs(torch.tensor([[-12.0, -15.0]]), reference_logps_P2=torch.tensor([[-13.0, -14.5]]))
    >>> round(ml_is(pair, beta=0.1).loss_P.item(), 6)  # 0.1 (−0.5 − 1)
    -0.15
    """
    pairs_PKK = judged_pairs(groups)
    implicit_reward_PK = beta * log_ratios(groups)
    num_worse_PK = pairs_PKK.sum(dim=2)
    opponent_PKK = torch.where(pairs_PKK, -pair_margins(pairs_PKK, implicit_reward_PK), -torch.inf)
    opponent_PKK = torch.where((num_worse_PK > 0)[:, :, None], opponent_PKK, 0.0)  # so that each sum is defined
    loss_PK = opponent_PKK.logsumexp(dim=2) - num_worse_PK.clamp(min=1).to(opponent_PKK.dtype).log()
    return mean_over_best(groups, pairs_PKK, loss_PK, implicit_reward_PK)


def nce(
    groups: ScoredGroups,
    *,
    beta: Annotated[float, Gt(0)] = 0.1,
    normaliser_rate: Annotated[float, Ge(0)] = 0.1,
) -> ObjectiveResult:
    """Tell the best response from each worse one, as data from noise, by logistic regression with an intercept (NCE).

    Formula: log(1 + e^−z_0) + Σ_{j = 1 … M} log(1 + e^z_j), z = r − c − log M, r = β u; c, the running estimate of log
    Z, is carried from step to step and moves by `normaliser_rate` times the loss's slope; it starts at 0.
    Gradient: ∂/∂log π(y_0) = −β σ(−z_0), ∂/∂log π(y_j) = β σ(z_j).
    Optimum: r − c = log(p/π_ref) where the best is drawn from p and the others from π_ref.
    Use: where the level of r matters, not differences alone; M = 1 is `bco` with its δ = c.
    Limits: one c for all prompts; `normaliser_rate`=0 keeps c = 0, and a policy that cannot move its own Z then carries
    the rest; held-out evaluation reads c as it is.
    Source: Gutmann and Hyvärinen 2010, as set beside MC-PO, Chen et al. 2025, arXiv:2502.04567 (reconstruction).

    >>> import torch
    >>> from accord.groups import groups_from_pairs
    >>> pair = groups_from_pairs(torch.tensor([[-12.0, -15.0]]), reference_logps_P2=torch.tensor([[-13.0, -14.5]]))
    >>> with_c = replace(pair, state={"log_normaliser": torch.tensor(0.025, dtype=torch.float64)})
    >>> round(nce(with_c, beta=0.1).loss_P.item(), 6)  # log(1 + e^−0.075) + log(1 + e^−0.075)
    1.3127
    """
    assert groups.state is not None, "the spec declares that nce carries a state"
    pairs_PKK = judged_pairs(groups)
    implicit_reward_PK = beta * log_ratios(groups)
    dtype = implicit_reward_PK.dtype
    level_PK = groups.state["log_normaliser"].to(dtype) + pairs_PKK.sum(dim=2).clamp(min=1).to(dtype).log()
    own_PK = implicit_reward_PK - level_PK
    noise_PKK = torch.where(pairs_PKK, implicit_reward_PK[:, None, :] - level_PK[:, :, None], 0.0)
    noise_loss_PK = torch.where(pairs_PKK, soft_label_link(-noise_PKK), 0.0).sum(dim=2)
    slope_PK = torch.sigmoid(-own_PK) - torch.where(pairs_PKK, torch.sigmoid(noise_PKK), 0.0).sum(dim=2)
    slopes = mean_over_best(groups, pairs_PKK, slope_PK.detach(), implicit_reward_PK)
    sums = {"slope": slopes.loss_P.sum(), "groups": slopes.is_counted_P.sum()}
    loss_PK = soft_label_link(own_PK) + noise_loss_PK
    return replace(mean_over_best(groups, pairs_PKK, loss_PK, implicit_reward_PK), state_sums=sums)


def cnce(
    groups: ScoredGroups,
    *,
    beta: Annotated[float, Gt(0)] = 0.1,
    noise: Literal["independent", "symmetric"] = "independent",
) -> ObjectiveResult:
    """Tell which of two responses is the data and which the noise made from it (conditional NCE).

    Formula: mean over the worse y_j of log(1 + e^−z), z = log [π_ref e^r](y_0) q(y_j; y_0) − log [π_ref e^r](y_j)
    q(y_0; y_j), r = β u. "independent" noise q = π_ref: z = r_0 − r_j, DPO; "symmetric" noise, such as an edit that is
    as likely backwards: z = β (log π_0 − log π_j) + (1 − β)(log π_ref,0 − log π_ref,j).
    Gradient: ∂/∂log π(y_0) = −β mean σ(−z_j), ∂/∂log π(y_j) = β σ(−z_j)/M.
    Optimum: z = logit p; so for symmetric noise π^β π_ref^(1 − β) follows the raters, whatever μ.
    Use: symmetric where the worse response is an edit of the better one; β = 1 then is CPO without its likelihood term.
    Limits: independent noise is a mean over pairs, not a softmax: all negatives weigh alike; log 2 at policy =
    reference for independent noise.
    Source: as set beside MC-PO, Chen et al. 2025, arXiv:2502.04567 (reconstruction).

    >>> import torch
    >>> from accord.groups import groups_from_pairs
    >>> pair = groups_from_pairs(torch.tensor([[-12.0, -15.0]]), reference_logps_P2=torch.tensor([[-13.0, -14.5]]))
    >>> round(cnce(pair, beta=0.1, noise="symmetric").loss_P.item(), 6)  # z = 0.1 × 3 + 0.9 × 1.5 = 1.65
    0.175674
    """
    assert groups.reference_logps_PK is not None, "the spec declares that cnce needs a reference"
    pairs_PKK = judged_pairs(groups)
    implicit_reward_PK = beta * log_ratios(groups)
    score_PK = implicit_reward_PK
    if noise == "symmetric":
        score_PK = implicit_reward_PK + torch.where(groups.is_valid_PK, groups.reference_logps_PK, 0.0)
    loss_PKK = torch.where(pairs_PKK, soft_label_link(pair_margins(pairs_PKK, score_PK)), 0.0)
    loss_PK = loss_PKK.sum(dim=2) / pairs_PKK.sum(dim=2).clamp(min=1)
    return mean_over_best(groups, pairs_PKK, loss_PK, implicit_reward_PK)


# Parts ---------------------------------------------------------------------------------------------------------------


def _ranking(margin_PKK: Float[Tensor, "P K K"], count_PKK: Float[Tensor, "P B K"]) -> Float[Tensor, "P K"]:
    """Return −log softmax of each response among itself and the drawn, each as often as it was drawn."""
    is_drawn_PKK = _is_drawn(count_PKK)
    log_count_PKK = torch.where(is_drawn_PKK, count_PKK, 1.0).log().to(margin_PKK.dtype)
    return softmax_link(margin_PKK - log_count_PKK, is_drawn_PKK)


def _divergence(margin_PKK: Float[Tensor, "P K K"], count_PKK: Float[Tensor, "P B K"]) -> Float[Tensor, "P K"]:
    """Return Σ_k (s_k − s_0) over the drawn: data against where the chain went."""
    weighted_PKK = count_PKK.to(margin_PKK.dtype) * -margin_PKK
    return torch.where(_is_drawn(count_PKK), weighted_PKK, 0.0).sum(dim=2)


def _is_drawn(count_PKK: Float[Tensor, "P B K"]) -> Bool[Tensor, "P B K"]:
    """Return where a draw ended other than at its start; NaN counts stay in, to be seen."""
    is_own_KK = torch.eye(count_PKK.shape[2], dtype=torch.bool, device=count_PKK.device)
    return (count_PKK != 0) & ~is_own_KK


def _judged_quality(groups: ScoredGroups, pairs_PKK: Bool[Tensor, "P K K"]) -> Float[Tensor, "P K"]:
    """Return ratings in groups where all compared responses have one, else minus the number of better responses."""
    quality_PK = -pairs_PKK.sum(dim=1).double()
    if groups.reward_PK is None or groups.is_rated_PK is None:
        return quality_PK
    is_rated_PK, reward_PK = given_ratings(groups)
    is_compared_PK = pairs_PKK.any(dim=1) | pairs_PKK.any(dim=2)
    return torch.where((is_rated_PK | ~is_compared_PK).all(dim=1, keepdim=True), reward_PK.double(), quality_PK)


def _proposal_correction(groups: ScoredGroups) -> Float[Tensor, "P K"]:
    """Return log π_ref(y) − log q(y), q the sampler that wrote the responses; 0 in padding slots."""
    assert groups.reference_logps_PK is not None, "the spec declares that mc_po needs a reference"
    assert groups.behaviour_logps_PK is not None, "correct_proposal needs the sampler's log-probabilities"
    return torch.where(groups.is_valid_PK, groups.reference_logps_PK - groups.behaviour_logps_PK, 0.0)


def _mc_po_initial_loss(
    *, kernel: str, loss: str, num_negatives: int, num_steps: int, correct_proposal: bool,
    false_negative_margin: float | None, **_: Any,
) -> float | None:  # fmt: skip
    if false_negative_margin is not None:
        return None  # a margin as small as rounding leaves candidates out by chance
    if correct_proposal or kernel in ("all", "cis") or (num_steps > 1 and kernel == "hard_negative"):
        return 0.0 if loss == "divergence" and not correct_proposal else None  # how many are contrasted is the data's
    return 0.0 if loss == "divergence" else math.log1p(num_negatives)


def _check_mc_po(*, kernel: str, num_negatives: int, num_steps: int, sampler_temperature: float, **_: Any) -> None:
    """Refuse settings without effect."""
    if num_negatives > 1 and kernel in ("all", "max_margin", "second_best"):
        what = "takes every negative" if kernel == "all" else "always takes the same one"
        raise ValueError(f"num_negatives={num_negatives} has no use: the kernel {kernel} {what} — leave it out")
    if num_steps > 1 and kernel not in ("hard_negative", "cis"):
        raise ValueError(f"num_steps={num_steps} has no use: the kernel {kernel} is no chain — leave it out")
    if sampler_temperature != 1.0 and kernel not in ("hard_negative", "cis"):
        raise ValueError(f"sampler_temperature has no use: the kernel {kernel} does not read scores — leave it out")


def _start_nce(**_: Any) -> dict[str, Tensor]:
    return {"log_normaliser": torch.zeros((), dtype=torch.float64)}


def _advance_nce(
    state: dict[str, Tensor], sums: dict[str, Tensor], *, normaliser_rate: float, **_: Any
) -> dict[str, Tensor]:
    mean_slope = sums["slope"] / sums["groups"].clamp(min=1)
    return {"log_normaliser": state["log_normaliser"] - normaliser_rate * mean_slope}


ROWS: dict[str, ObjectiveSpec] = {
    "mc_po": ObjectiveSpec(
        fn=mc_po,
        family="listwise",
        needs=frozenset({Need.PREFERENCES, Need.DRAWS}),
        reads=frozenset({Need.RATINGS, Need.BEHAVIOUR}),
        needs_when={"correct_proposal": Need.BEHAVIOUR},
        reference=True,
        is_difference_only=True,
        has_stop_gradient=True,
        initial_loss=_mc_po_initial_loss,
        check=_check_mc_po,
        proof="fixed point",
        implicit_reward="β·log(π/π_ref)",
        paper="Chen et al. 2025, arXiv:2502.04567 (reconstruction)",
    ),
    "ml_is": ObjectiveSpec(
        fn=ml_is,
        family="listwise",
        needs=frozenset({Need.PREFERENCES}),
        reference=True,
        is_difference_only=True,
        initial_loss=lambda **_: 0.0,
        proof="identity",
        implicit_reward="β·log(π/π_ref)",
        paper="Chen et al. 2025, arXiv:2502.04567 (reconstruction)",
    ),
    "nce": ObjectiveSpec(
        fn=nce,
        family="listwise",
        needs=frozenset({Need.PREFERENCES}),
        reference=True,
        state=StateSpec(start=_start_nce, advance=_advance_nce),
        proof="optimum",
        implicit_reward="β·log(π/π_ref)",
        paper="Gutmann and Hyvärinen 2010; Chen et al. 2025, arXiv:2502.04567 (reconstruction)",
    ),
    "cnce": ObjectiveSpec(
        fn=cnce,
        family="listwise",
        needs=frozenset({Need.PREFERENCES}),
        reference=True,
        is_difference_only=True,
        initial_loss=lambda *, noise, **_: math.log(2.0) if noise == "independent" else None,
        proof="optimum",
        implicit_reward="β·log(π/π_ref)",
        paper="Chen et al. 2025, arXiv:2502.04567 (reconstruction)",
    ),
}
