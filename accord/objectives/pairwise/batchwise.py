"""Objectives that set the responses of one prompt against those of the whole optimisation batch.

Axes: P groups of the micro-batch, B groups of the batch, K responses per group; X and Y elements of the batch (pairs or
responses). u(y) = log π(y|x) − log π_ref(y|x), nats; y_w the better, y_l the worse response, σ the logistic function.

The rest of the batch comes without gradient (`groups.batch`); a group's own part carries it. A term between two groups
is seen twice, once from each side. Each side takes the term with its own part alive and subtracts half of the term as
it is in the batch, a constant: then the value is counted once, each part's gradient is taken once, and the sum over
micro-batches has exactly the value and the gradient of the loss on the whole batch.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Gt, Interval
from jaxtyping import Bool, Float, Int
from torch import Tensor

from accord.groups import ObjectiveResult, ScoredGroups
from accord.objectives._ops import (
    judged_pairs,
    labelled_responses,
    log_ratios,
    mean_over_pairs,
    pair_margins,
    soft_label_link,
    sum_logps,
    sum_over_responses,
)
from accord.objectives.spec import Need, ObjectiveSpec


def aot(
    groups: ScoredGroups,
    *,
    beta: Annotated[float, Gt(0)] = 0.1,
    label_smoothing: Annotated[float, Interval(ge=0, lt=0.5)] = 0.0,
) -> ObjectiveResult:
    """Match the distribution of the policy's margins with the reference's, quantile by quantile (AOT, paired).

    Formula: −(1 − ε) log σ(z_r) − ε log σ(−z_r), z_r = β (m_(r) − n_(r)), where m_(r) is the r-th smallest of
    log π(y_w) − log π(y_l) over all judged pairs of the batch and n_(r) that of log π_ref; ε = `label_smoothing`.
    Gradient: ∂/∂log π(y_w) = −β (1 − ε − σ(z_r)) with r the rank of the pair's own margin, the opposite for y_l; over
    the number of pairs of the group. Ranks and the reference's margins carry none.
    Optimum: smoothed, m_(r) − n_(r) = logit(1 − ε)/β for every r: the margins move as a distribution, whichever pair
    has which. Without smoothing none finite. Loss ln 2 at policy = reference.
    Use: pairs whose margins are noisy one by one but telling as a whole; with large batches.
    Limits: a batch of one pair is `dpo`; a batch's size is part of the method. Pairs of a ranking enter the sort one by
    one, and their group counts once. Equal margins are ranked in the order of the batch.
    Source: Melnyk et al. 2024, arXiv:2406.05882, the paired form.

    >>> import torch
    >>> from dataclasses import replace
    >>> from accord.groups import groups_from_pairs
    >>> two = groups_from_pairs(
    ...     torch.tensor([[-12.0, -15.0], [-9.0, -8.0]]),
    ...     reference_logps_P2=torch.tensor([[-13.0, -12.5], [-9.0, -9.0]]),
    ... )
    >>> two = replace(two, batch=two, place_P=torch.arange(2))
    >>> [round(x, 6) for x in aot(two, beta=0.1).loss_P.tolist()]  # margins 3, −1 meet 0, −0.5: z = 0.3 and −0.05
    [0.554355, 0.71846]
    """
    batch, place_P = _batch(groups)
    pairs_PKK, pairs_BKK = judged_pairs(groups), judged_pairs(batch)
    own_PKK = pair_margins(pairs_PKK, sum_logps(groups))
    policy_X = pair_margins(pairs_BKK, sum_logps(batch))[pairs_BKK]
    assert batch.reference_logps_PK is not None, "the spec declares a reference"
    reference_X = pair_margins(pairs_BKK, torch.where(batch.is_valid_PK, batch.reference_logps_PK, 0.0))[pairs_BKK]
    partner_X = torch.empty_like(reference_X)
    partner_X[policy_X.argsort(stable=True)] = reference_X.sort().values
    partner_BKK = own_PKK.new_zeros(pairs_BKK.shape).masked_scatter(pairs_BKK, partner_X)
    width = pairs_PKK.shape[1]  # a micro-batch may be narrower than the batch
    margin_PKK = beta * (own_PKK - partner_BKK[place_P, :width, :width])
    loss_PKK = soft_label_link(torch.where(pairs_PKK, margin_PKK, 0.0), 1.0 - label_smoothing)
    return mean_over_pairs(groups, pairs_PKK, loss_PKK, beta * log_ratios(groups))


def aot_unpaired(
    groups: ScoredGroups,
    *,
    beta: Annotated[float, Gt(0)] = 0.1,
    label_smoothing: Annotated[float, Interval(ge=0, lt=0.5)] = 0.0,
) -> ObjectiveResult:
    """Put the distribution of desirable implicit rewards above that of undesirable ones (AOT, unpaired).

    Formula: −(1 − ε) log σ(z_r) − ε log σ(−z_r), z_r = β (u_(r) of the desirable − u_(r) of the undesirable responses),
    u_(r) the r-th smallest of the batch; ε = `label_smoothing`. With unequal numbers each quantile meets the same
    quantile, a response sharing its weight among those it overlaps (optimal transport on the line).
    Gradient: for a desirable response −β (1 − ε − σ(z)) at its rank, for an undesirable one the opposite.
    Optimum: smoothed, the quantiles are logit(1 − ε)/β apart. Without smoothing none finite. Loss ln 2 at policy =
    reference.
    Use: thumbs up and down of different prompts, without pairs; with large batches.
    Limits: assumes that log-ratios of different prompts compare. One desirable and one undesirable response are `dpo`;
    a batch with only one kind has nothing to compare and is not counted. The mean is over couples, not over groups.
    Source: Melnyk et al. 2024, arXiv:2406.05882, the unpaired form; unequal numbers are our completion.

    >>> import torch
    >>> from accord.groups import ScoredGroups
    >>> from dataclasses import replace
    >>> three = ScoredGroups(
    ...     policy_logps_PK=torch.tensor([[-1.0], [-2.0], [-1.5]]), reference_logps_PK=torch.tensor([[-2.0]] * 3),
    ...     num_tokens_PK=torch.ones(3, 1).long(), is_valid_PK=torch.ones(3, 1).bool(),
    ...     desirable_PK=torch.tensor([[True], [True], [False]]), is_labelled_PK=torch.ones(3, 1).bool(),
    ... )
    >>> three = replace(three, batch=three, place_P=torch.arange(3))
    >>> result = aot_unpaired(three, beta=1.0)
    >>> round((result.loss_P.sum() / result.denominators().sum()).item(), 6)  # (log(1 + e^−0.5) + log(1 + e^0.5))/2
    0.724077
    """
    batch, place_P = _batch(groups)
    is_up_N, is_down_N = (labelled_responses(batch, desirable=up).flatten() for up in (True, False))
    value_BK, own_PK = log_ratios(batch), log_ratios(groups)
    value_N, width = value_BK.flatten(), own_PK.shape[1]
    share_NN = value_N.new_zeros(len(value_N), len(value_N)).masked_scatter(
        is_up_N[:, None] & is_down_N, _transport(value_N[is_up_N], value_N[is_down_N])
    )  # of couples (desirable, undesirable)
    share_PKN = (share_NN + share_NN.T).view(*value_BK.shape, -1)[place_P, :width]
    is_up_PK1 = is_up_N.view_as(value_BK)[place_P, :width, None]

    def couples(value_PK: Tensor) -> Tensor:
        gap_PKN = torch.where(share_PKN > 0, beta * (value_PK[:, :, None] - value_N), 0.0)
        margin_PKN = torch.where(is_up_PK1, gap_PKN, -gap_PKN)
        return (share_PKN * soft_label_link(margin_PKN, 1.0 - label_smoothing)).sum(dim=2)

    return sum_over_responses(
        groups,
        is_used_PK=groups.is_valid_PK,
        loss_PK=couples(own_PK) - 0.5 * couples(value_BK[place_P, :width]),
        weight_PK=0.5 * share_PKN.sum(dim=2),
        implicit_reward_PK=beta * own_PK,
    )


def _transport(up_X: Float[Tensor, " X"], down_Y: Float[Tensor, " Y"]) -> Float[Tensor, "X Y"]:
    """Return the weight of each couple when equal quantiles meet; all weights add up to the mean of the two numbers.

    With N elements on both sides this is 1 for each couple of equal rank.
    """
    num_up, num_down = len(up_X), len(down_Y)
    # the quantiles i/N and j/M on a common grid of N·M whole steps
    up_rank_X, down_rank_Y = (x.argsort(stable=True).argsort() for x in (up_X, down_Y))
    low_XY = torch.maximum((up_rank_X * num_down)[:, None], down_rank_Y * num_up)
    high_XY = torch.minimum(((up_rank_X + 1) * num_down)[:, None], (down_rank_Y + 1) * num_up)
    steps_XY = (high_XY - low_XY).clamp(min=0).to(up_X.dtype)
    return steps_XY * (0.5 * (num_up + num_down) / max(1, num_up * num_down))


def rpo_relative(
    groups: ScoredGroups,
    *,
    beta: Annotated[float, Gt(0)] = 0.1,
    weighting: Literal["uniform", "diagonal", "embedding"] = "uniform",
    temperature: Annotated[float, Gt(0)] = 0.5,
    own_weight: Annotated[float, Interval(gt=0, le=1)] = 0.8,
) -> ObjectiveResult:
    """Contrast the better responses of every prompt with the worse ones of all prompts of the batch (relative PO).

    Formula: mean over prompts p and q of the batch of −log σ(ω_pq β (u(y_w of p) − u(y_l of q))): over the judged pairs
    for p = q, over all combinations else. The ω of a row add up to 1: ∝ exp(−(1 − cos)/τ) of the prompts' embeddings
    ("embedding", τ = `temperature`), 1/M ("uniform"), or α = `own_weight` at p = q and (1 − α)/(M − 1) elsewhere
    ("diagonal").
    Gradient: ∂/∂u(y_w of p) = −β Σ_q ω_pq σ(−ω_pq β (…)) / M², the opposite for the y_l of q; none through ω.
    Optimum: none in closed form; one prompt alone gives `dpo`'s, and α = 1 `dpo`'s gradient over M. Loss ln 2 at policy
    = reference.
    Use: many similar prompts, where a good answer to one says something about a bad answer to another; "embedding", the
    paper's choice, costs a pass over the prompts.
    Limits: assumes that log-ratios of different prompts compare (equal partition functions). The weight is inside σ:
    it divides β by about M, so β grows with the batch. Two settings of the three weightings are read by one each.
    Source: Yin et al. 2024, arXiv:2402.10958; the distance is 1 − cosine so that similar prompts weigh more, and
    embeddings are mean hidden states of the policy, not of a separate model.

    >>> import torch
    >>> from dataclasses import replace
    >>> from accord.groups import groups_from_pairs
    >>> one = groups_from_pairs(torch.tensor([[-12.0, -15.0]]), reference_logps_P2=torch.tensor([[-13.0, -14.5]]))
    >>> one = replace(one, batch=one, place_P=torch.arange(1))
    >>> round(rpo_relative(one, beta=0.1).loss_P.item(), 6)  # alone: −log σ(0.1 × 1.5)
    0.620957
    """
    batch, place_P = _batch(groups)
    is_counted_B = judged_pairs(batch).any(dim=(1, 2))
    weight_BB = _prompt_weights(batch, is_counted_B, weighting, temperature, own_weight)
    pairs_PKK, own_PK, value_BK = judged_pairs(groups), log_ratios(groups), log_ratios(batch)
    better_PK, worse_PK = _shares(pairs_PKK, own_PK.dtype)
    better_BK, worse_BK = _shares(judged_pairs(batch), own_PK.dtype)
    own_weight_PB = weight_BB[place_P]
    is_other_PB = is_counted_B & ~F.one_hot(place_P, len(is_counted_B)).bool()

    def cross(u_PK: Tensor, v_BK: Tensor, share_PK: Tensor, share_BK: Tensor, weight_PB: Tensor, sign: float) -> Tensor:
        share_PKBK = share_PK[:, :, None, None] * share_BK * is_other_PB[:, None, :, None]
        gap_PKBK = torch.where(share_PKBK > 0, sign * (u_PK[:, :, None, None] - v_BK), 0.0)
        loss_PKBK = soft_label_link(beta * weight_PB[:, None, :, None] * gap_PKBK)
        return (share_PKBK * loss_PKBK).sum(dim=(1, 2, 3))

    loss_P = torch.zeros_like(own_PK[:, 0])
    still_PK = value_BK[place_P, : own_PK.shape[1]]
    for shares, weight_PB, sign in (
        ((better_PK, worse_BK), own_weight_PB, 1.0),
        ((worse_PK, better_BK), weight_BB.T[place_P], -1.0),
    ):
        loss_P = loss_P + cross(own_PK, value_BK, *shares, weight_PB, sign)
        loss_P = loss_P - 0.5 * cross(still_PK, value_BK, *shares, weight_PB, sign)
    own_weight_P11 = own_weight_PB.gather(1, place_P[:, None])[:, :, None]
    own = mean_over_pairs(
        groups, pairs_PKK, soft_label_link(beta * own_weight_P11 * pair_margins(pairs_PKK, own_PK)), beta * own_PK
    )
    mean_P = (own.loss_P + loss_P) / is_counted_B.sum().clamp(min=1)
    return replace(own, loss_P=mean_P)


def _batch(groups: ScoredGroups) -> tuple[ScoredGroups, Int[Tensor, " P"]]:
    assert groups.batch is not None, "the spec declares that it needs the whole batch"
    assert groups.place_P is not None, "the spec declares that it needs the whole batch"
    return groups.batch, groups.place_P


def _shares(pairs_PKK: Bool[Tensor, "P K K"], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the share of a group's pairs in which each response is the better, and the worse one: (P, K) each."""
    share_PKK = pairs_PKK.to(dtype) / pairs_PKK.sum(dim=(1, 2), keepdim=True).clamp(min=1)
    return share_PKK.sum(dim=2), share_PKK.sum(dim=1)


def _prompt_weights(
    batch: ScoredGroups, is_counted_B: Bool[Tensor, " B"], weighting: str, temperature: float, own_weight: float
) -> Float[Tensor, "B B"]:
    """Return ω: how much prompt q counts for prompt p, each row adding up to 1 over the counted prompts."""
    num, like = int(is_counted_B.sum()), batch.policy_logps_PK
    if weighting == "embedding" and num:
        assert batch.prompt_embedding_PE is not None, "the spec declares that it needs prompt embeddings"
        unit_BE = F.normalize(batch.prompt_embedding_PE.to(like.dtype), dim=1)
        distance_BB = 1.0 - unit_BE @ unit_BE.T
        return (-distance_BB / temperature).masked_fill(~is_counted_B, -torch.inf).softmax(dim=1)
    own, other = 1.0 / max(1, num), 1.0 / max(1, num)
    if weighting == "diagonal" and num > 1:
        own, other = own_weight, (1.0 - own_weight) / (num - 1)
    weight_BB = other + (own - other) * torch.eye(len(is_counted_B), dtype=like.dtype, device=like.device)
    return torch.where(is_counted_B, weight_BB, 0.0)


def _check_rpo_relative(*, weighting: str, temperature: float, own_weight: float, **_: float) -> None:
    for name, value, default, owner in (
        ("temperature", temperature, 0.5, "embedding"),
        ("own_weight", own_weight, 0.8, "diagonal"),
    ):
        if value != default and weighting != owner:
            raise ValueError(f"{name}={value} is set but only weighting={owner} reads it, and weighting={weighting}")


ROWS: dict[str, ObjectiveSpec] = {
    "aot": ObjectiveSpec(
        fn=aot,
        family="pairwise",
        needs=frozenset({Need.PREFERENCES, Need.BATCH}),
        reference=True,
        is_difference_only=True,
        initial_loss=lambda **_: math.log(2.0),
        proof="optimum",
        implicit_reward="β·log(π/π_ref)",
        paper="Melnyk et al. 2024, arXiv:2406.05882",
    ),
    "aot_unpaired": ObjectiveSpec(
        fn=aot_unpaired,
        family="pointwise",
        needs=frozenset({Need.LABELS, Need.BATCH}),
        reference=True,
        initial_loss=lambda **_: math.log(2.0),
        proof="optimum",
        implicit_reward="β·log(π/π_ref)",
        paper="Melnyk et al. 2024, arXiv:2406.05882",
    ),
    "rpo_relative": ObjectiveSpec(
        fn=rpo_relative,
        family="pairwise",
        needs=frozenset({Need.PREFERENCES, Need.BATCH}),
        reads=frozenset({Need.PROMPT_EMBEDDINGS}),
        needs_when={"weighting=embedding": Need.PROMPT_EMBEDDINGS},
        check=_check_rpo_relative,
        reference=True,
        initial_loss=lambda **_: math.log(2.0),
        proof="identity",
        implicit_reward="β·log(π/π_ref)",
        paper="Yin et al. 2024, arXiv:2402.10958",
    ),
}
