"""Combinators that make an objective of judged pairs robust: to labels that are wrong, and for every population.

Axes: P prompts, K responses, C comparisons of a group (votes), J judges, S strata. Both take any objective of pairs
that reads sequence log-probabilities, keep its settings and add their own; what they learn of judges and strata is
state.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Annotated, Any

import torch
from annotated_types import Ge, Interval
from jaxtyping import Bool, Float
from torch import Tensor

from accord.groups import ObjectiveResult, ScoredGroups
from accord.objectives._ops import soft_label_link
from accord.objectives.pairwise.logistic import dpo
from accord.objectives.pairwise.reference_free import cpo, simpo
from accord.objectives.pairwise.targets import ipo
from accord.objectives.spec import Need, ObjectiveSpec, StateSpec

Objective = Callable[..., ObjectiveResult]
Reliability = Annotated[float, Interval(gt=0.5, lt=1)]
Rate = Annotated[float, Interval(gt=0, le=1)]

_LEAST = 1e-6  # reliabilities stay this far from 0 and 1, where no later vote could change them


# Labels that may be wrong --------------------------------------------------------------------------------------------


def label_robust(base: Objective, name: str, documentation: str) -> Objective:
    """Return an objective that learns from the votes of judges who are right with a probability η_k of their own.

    The base's loss L makes a probability that a vote for w over l is right: logit p = L(l ≻ w) − L(w ≻ l). Its
    posterior given the judge, σ(logit p + logit η_k), is the label of a cross-entropy; η_k follows the mean posterior
    (EM).
    """

    def robust(groups: ScoredGroups, **settings: Any) -> ObjectiveResult:
        assert groups.votes is not None, "the objective's spec must declare that it needs votes"
        assert groups.state is not None, "the objective's spec must declare its state"
        settings = {key: value for key, value in settings.items() if key not in ("reliability", "reliability_rate")}
        is_used_PC = _usable_votes(groups)
        logit_PC = _vote_logits(base, groups, is_used_PC, settings)
        reliability_J = groups.state["reliability"]
        prior_PC = torch.logit(reliability_J)[groups.votes.judge_PC].to(logit_PC.dtype)
        right_PC = torch.where(is_used_PC, torch.sigmoid(logit_PC.detach() + prior_PC), 0.0)
        loss_PC = torch.where(is_used_PC, soft_label_link(logit_PC, right_PC), 0.0)
        num_votes_P = is_used_PC.sum(dim=1)
        judge, right = groups.votes.judge_PC[is_used_PC].cpu(), right_PC[is_used_PC].double().cpu()
        nothing_J = torch.zeros(len(reliability_J), dtype=torch.float64)
        return ObjectiveResult(
            loss_P=loss_PC.sum(dim=1) / num_votes_P.clamp(min=1),
            is_counted_P=num_votes_P > 0,
            implicit_reward_PK=_implicit_reward(base, groups, settings),
            state_sums={
                "right": nothing_J.index_add(0, judge, right),
                "votes": nothing_J.index_add(0, judge, torch.ones_like(right)),
            },
        )

    return _named(
        robust, base, name, documentation, {"reliability": (Reliability, 0.9), "reliability_rate": (Rate, 0.1)}
    )


def _usable_votes(groups: ScoredGroups) -> Bool[Tensor, "P C"]:
    """Return which votes are about two real responses."""
    votes, is_valid_PK = groups.votes, groups.is_valid_PK
    assert votes is not None
    return votes.is_valid_PC & is_valid_PK.gather(1, votes.better_PC) & is_valid_PK.gather(1, votes.worse_PC)


def _vote_logits(
    base: Objective, groups: ScoredGroups, is_used_PC: Bool[Tensor, "P C"], settings: Mapping[str, Any]
) -> Float[Tensor, "P C"]:
    """Return the base's loss of each vote turned round less its loss as it is, 0 where there is no vote."""
    votes = groups.votes
    assert votes is not None
    both_PC2 = torch.stack([votes.better_PC, votes.worse_PC], dim=2)

    def of_votes(value_PK: Tensor) -> Tensor:
        return value_PK.gather(1, both_PC2.flatten(1)).view(-1, 2)

    def with_first_better(place: int) -> Tensor:
        preferred = torch.zeros((is_used_PC.numel(), 2, 2), dtype=torch.bool, device=is_used_PC.device)
        preferred[:, place, 1 - place] = is_used_PC.flatten()
        return base(replace(pairs, preferred_PKK=preferred), **settings).loss_P

    reference_logps_PK = groups.reference_logps_PK
    pairs = ScoredGroups(
        policy_logps_PK=of_votes(groups.policy_logps_PK),
        reference_logps_PK=None if reference_logps_PK is None else of_votes(reference_logps_PK),
        num_tokens_PK=of_votes(groups.num_tokens_PK),
        is_valid_PK=is_used_PC.reshape(-1, 1).expand(-1, 2),
    )
    return (with_first_better(1) - with_first_better(0)).view_as(is_used_PC)


def _implicit_reward(base: Objective, groups: ScoredGroups, settings: Mapping[str, Any]) -> Float[Tensor, "P K"]:
    (num_prompts, num_responses), device = groups.is_valid_PK.shape, groups.is_valid_PK.device
    no_pairs = torch.zeros((num_prompts, num_responses, num_responses), dtype=torch.bool, device=device)
    return base(replace(groups, preferred_PKK=no_pairs), **settings).implicit_reward_PK


def _start_reliability(*, num_judges: int, reliability: float, **_: Any) -> dict[str, Tensor]:
    return {"reliability": torch.full((num_judges,), reliability, dtype=torch.float64)}


def _advance_reliability(
    state: Mapping[str, Tensor], sums: Mapping[str, Tensor], *, reliability_rate: float, **_: Any
) -> dict[str, Tensor]:
    """Move each judge's reliability towards the mean posterior of the votes of the batch; who gave none stays."""
    before_J, votes_J = state["reliability"], sums["votes"]
    moved_J = (1.0 - reliability_rate) * before_J + reliability_rate * sums["right"] / votes_J.clamp(min=1e-300)
    return {"reliability": torch.where(votes_J > 0, moved_J, before_J).clamp(_LEAST, 1.0 - _LEAST)}


RELIABILITY = StateSpec(start=_start_reliability, advance=_advance_reliability, entries={"reliability": "judge"})


# Populations of unequal size -----------------------------------------------------------------------------------------


def group_robust(base: Objective, name: str, documentation: str) -> Objective:
    """Return an objective that minimises the loss of the population it serves worst, by weights q on populations.

    A group weighs q_s / f_s, f_s the share of its stratum s in the data, so that the mean over a batch estimates
    Σ_s q_s L_s without bias; after each step q_s ∝ q_s exp(η L_s), L_s estimated likewise.
    """

    def robust(groups: ScoredGroups, **settings: Any) -> ObjectiveResult:
        assert groups.stratum_P is not None, "the objective's spec must declare that it needs strata"
        assert groups.stratum_frac_P is not None, "the objective's spec must declare that it needs strata"
        assert groups.state is not None, "the objective's spec must declare its state"
        settings = {key: value for key, value in settings.items() if key != "weight_step"}
        result, weight_S = base(groups, **settings), groups.state["weight"]
        weight_P = weight_S[groups.stratum_P].to(result.loss_P.dtype) / groups.stratum_frac_P
        share_P = (result.loss_P.detach() / groups.stratum_frac_P).double().cpu()  # 0 where nothing is counted
        nothing_S = torch.zeros(len(weight_S), dtype=torch.float64)
        return replace(
            result,
            loss_P=weight_P * result.loss_P,
            state_sums={
                "loss": nothing_S.index_add(0, groups.stratum_P.cpu(), share_P),
                "groups": result.is_counted_P.sum().double().cpu(),
            },
        )

    return _named(robust, base, name, documentation, {"weight_step": (Annotated[float, Ge(0)], 0.01)})


def _start_weight(*, num_strata: int, **_: Any) -> dict[str, Tensor]:
    return {"weight": torch.full((num_strata,), 1.0 / max(1, num_strata), dtype=torch.float64)}


def _advance_weight(
    state: Mapping[str, Tensor], sums: Mapping[str, Tensor], *, weight_step: float, **_: Any
) -> dict[str, Tensor]:
    """Take a step of exponentiated gradient ascent.

    A small stratum is in few batches; there its loss counts for more, in the others for 0, so that its weight follows
    its loss and not its size.
    """
    loss_S = sums["loss"] / sums["groups"].clamp(min=1)
    return {"weight": torch.softmax(state["weight"].log() + weight_step * loss_S, dim=0)}


WEIGHTS = StateSpec(start=_start_weight, advance=_advance_weight, entries={"weight": "stratum"})


# What a combinator returns -------------------------------------------------------------------------------------------


def _named(
    function: Callable[..., ObjectiveResult], base: Objective, name: str, documentation: str,
    own: Mapping[str, tuple[Any, float]],
) -> Objective:  # fmt: skip
    """Give a function the base's settings and its own as its signature, read by everything that asks for settings."""
    signature = inspect.signature(base, eval_str=True)
    added = [
        inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for key, (annotation, default) in own.items()
    ]
    signature = signature.replace(parameters=[*signature.parameters.values(), *added])

    def named(groups: ScoredGroups, **settings: Any) -> ObjectiveResult:
        bound = signature.bind(groups, **settings)
        bound.apply_defaults()
        return function(groups, **bound.kwargs)

    named.__name__ = named.__qualname__ = name
    named.__doc__ = inspect.cleandoc(documentation)
    vars(named)["__signature__"] = signature
    return named


_RE = """{summary}

Formula: logit p = L(y_l ≻ y_w) − L(y_w ≻ y_l) = {logit}; w = σ(logit p + logit η_k),
held constant; the loss of a vote of judge k is −w log p − (1 − w) log(1 − p), and a group's the mean over its votes.
After each step, over the votes of k in the batch, η_k ← (1 − a) η_k + a·mean w; η starts at `reliability`, and a is
`reliability_rate`.
Gradient: ∂/∂logit p = −(w − p), that of −log(p η_k + (1 − p)(1 − η_k)), which is bounded by −log(1 − η_k): a vote that
the policy is sure is wrong stops pulling.
Optimum: a fixed point: where p is calibrated, η_k tends to the true reliability from any start in (0, 1), and the true
p and η are at rest together.
Use: votes of people or models who err at rates of their own; with one judge, the share of wrong labels is learnt.
Limits: {limits}η = 1/2 gives w = p and no gradient at all, hence `reliability` > 1/2; a judge below 1/2 is learnt as
such and counts the other way round; η is held inside [1e-6, 1 − 1e-6]. Votes without a judge are those of one anonymous
judge; a tie is no vote; where p = 1/2 a vote says nothing of its judge. A noisier judge with a surer p explains single
votes as well: what tells the two apart is that one scale of scores must fit all pairs.
Source: Cao et al. 2025, arXiv:2509.24159 (RE-PO; first called LCPO), with its update by mini-batches.

>>> import torch
>>> from dataclasses import replace
>>> from accord.groups import Votes, groups_from_pairs
>>> pair = groups_from_pairs(torch.tensor([[-12.0, -15.0]]), reference_logps_P2=torch.tensor([[-13.0, -14.5]]),
...                          num_tokens_P2=torch.tensor([[10, 12]]))
>>> first = Votes(better_PC=torch.tensor([[0]]), worse_PC=torch.tensor([[1]]), judge_PC=torch.tensor([[0]]),
...               is_valid_PC=torch.tensor([[True]]))
>>> pair = replace(pair, votes=first, state={{"reliability": torch.tensor([0.9], dtype=torch.float64)}})
>>> round({example}
"""

re_dpo = label_robust(
    dpo,
    "re_dpo",
    _RE.format(
        summary="DPO on votes that may be wrong: the reliability of every judge is learnt beside the policy (RE-DPO).",
        logit="β (u(y_w) − u(y_l)) (1 − 2ε)",
        limits="",
        example="re_dpo(pair, beta=0.1).loss_P.item(), 6)  # logit p = 0.15, w = σ(0.15 + log 9) = 0.912713\n0.63405",
    ),
)
re_ipo = label_robust(
    ipo,
    "re_ipo",
    _RE.format(
        summary="IPO on votes that may be wrong: the reliability of every judge is learnt beside the policy (RE-IPO).",
        logit="2 D / τ, D = u(y_w) − u(y_l) (per token for normalisation=mean)",
        limits="the square is gone, and with it IPO's finite target: RE-IPO is RE-DPO with β = 2/τ; ",
        example="re_ipo(pair, tau=10.0).loss_P.item(), 5)  # logit p = 2 × 1.5 / 10, w = σ(0.3 + log 9)\n0.57717",
    ),
)
re_simpo = label_robust(
    simpo,
    "re_simpo",
    _RE.format(
        summary="SimPO on votes that may be wrong: the reliability of every judge is learnt, too (RE-SimPO).",
        logit="log[(1 + e^(x + γ)) / (1 + e^(γ − x))], x = β (log π(y_w)/|y_w| − log π(y_l)/|y_l|)",
        limits="the margin γ no longer moves the target, it only steepens logit p; ",
        example="re_simpo(pair).loss_P.item(), 5)  # x = 0.1, γ = 1: logit p = 0.146182\n0.63553",
    ),
)

re_cpo = label_robust(
    partial(cpo, nll_normalisation="sum"),
    "re_cpo",
    _RE.format(
        summary="CPO on votes that may be wrong: the reliability of every judge is learnt, too (RE-CPO).",
        logit="β Δ + λ (NLL(y_l) − NLL(y_w)), Δ = log π(y_w) − log π(y_l)",
        limits="the likelihood term enters logit p (its sum, as in the paper, is a second Δ) and imitates no longer; ",
        example="re_cpo(pair).loss_P.item(), 5)  # logit p = 0.3 + 3, w = σ(3.3 + log 9)\n0.04969",
    ),
)

_GROUP = """{summary}

Formula: Σ_s q_s L_s, L_s the mean loss of {base} in stratum s; after each step q_s ← q_s exp(η L_s) / Σ, q uniform at
first, η = `weight_step`. A group's loss carries q_s / f_s, f_s the share of its stratum in the data.
Gradient: that of {base}, times q_s / f_s.
Optimum: the policy is best for the mixture q, and no stratum with q_s > 0 has a loss below the largest: the stratum
served worst is served as well as can be (minimax), which is not the policy best on average.
Use: raters of several populations who disagree, where the smaller ones must not be outvoted.
Limits: one stratum is {base}; η = 0 is {base} with all strata weighing the same. Losses of strata are compared as they
stand: one whose raters agree less has a larger loss at its own optimum, and draws weight for that. In a batch L_s is
estimated by Σ loss / (f_s × groups): noisy for a small stratum, hence a small η. A group belongs to one stratum, named
by data.stratum.
Source: Ramesh et al. 2024, arXiv:2405.20304 (the reward-free side of MaxMin-RLHF, arXiv:2402.08925). The weights
1 / f_s are Accord's, in place of batches balanced by stratum.

>>> import torch
>>> from dataclasses import replace
>>> from accord.groups import groups_from_pairs
>>> pair = groups_from_pairs(torch.tensor([[-12.0, -15.0]]), reference_logps_P2=torch.tensor([[-13.0, -14.5]]))
>>> pair = replace(pair, stratum_P=torch.tensor([1]), stratum_frac_P=torch.tensor([0.25]),
...                state={{"weight": torch.tensor([0.4, 0.6], dtype=torch.float64)}})
>>> round({example}
"""

dpo_group_robust = group_robust(
    dpo,
    "dpo_group_robust",
    _GROUP.format(
        summary="DPO for the population it serves worst instead of the average (GR-DPO).",
        base="dpo",
        example="dpo_group_robust(pair, beta=0.1).loss_P.item(), 5)  # 0.6 / 0.25 × 0.620957\n1.4903",
    ),
)
ipo_group_robust = group_robust(
    ipo,
    "ipo_group_robust",
    _GROUP.format(
        summary="IPO for the population it serves worst instead of the average (GR-IPO).",
        base="ipo",
        example="ipo_group_robust(pair, tau=0.1).loss_P.item(), 4)  # 0.6 / 0.25 × 12.25\n29.4",
    ),
)


def _re_row(fn: Objective, **changes: Any) -> ObjectiveSpec:
    return ObjectiveSpec(
        fn=fn,
        family="pairwise",
        needs=frozenset({Need.VOTES}),
        state=RELIABILITY,
        has_stop_gradient=True,
        paper="Cao et al. 2025, arXiv:2509.24159 (RE-PO)",
        **changes,
    )


def _group_row(fn: Objective, **changes: Any) -> ObjectiveSpec:
    return ObjectiveSpec(
        fn=fn,
        family="pairwise",
        needs=frozenset({Need.PREFERENCES, Need.STRATA}),
        reference=True,
        is_difference_only=True,
        state=WEIGHTS,
        proof="optimum",
        paper="Ramesh et al. 2024, arXiv:2405.20304",
        **changes,
    )


ROWS: dict[str, ObjectiveSpec] = {
    "re_dpo": _re_row(
        re_dpo,
        reference=True,
        is_difference_only=True,
        initial_loss=lambda **_: math.log(2.0),
        proof="fixed point",
        implicit_reward="β·log(π/π_ref)",
    ),
    "re_ipo": _re_row(
        re_ipo,
        reference=True,
        is_difference_only=True,
        initial_loss=lambda **_: math.log(2.0),
        proof="identity",
        implicit_reward="τ·log(π/π_ref), per token for normalisation=mean",
    ),
    "re_simpo": _re_row(re_simpo, reference=False, proof="identity", implicit_reward="β·log π(y|x)/|y|"),
    "re_cpo": _re_row(
        re_cpo, reference=False, is_difference_only=True, proof="identity", implicit_reward="β·log π(y|x)"
    ),
    "dpo_group_robust": _group_row(dpo_group_robust, implicit_reward="β·log(π/π_ref)"),
    "ipo_group_robust": _group_row(
        ipo_group_robust, implicit_reward="τ·log(π/π_ref), per token for normalisation=mean"
    ),
}
