"""Objectives of single judged responses: thumbs up or down, no pairs needed.

Axes: P prompts, K responses per prompt. u(y) = log π(y|x) − log π_ref(y|x), nats.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt
from jaxtyping import Bool, Float
from torch import Tensor

from accord.groups import ObjectiveResult, ScoredGroups
from accord.objectives._ops import (
    labelled_responses,
    log_ratios,
    mean_logps,
    sigmoid_link,
    soft_label_link,
    sum_over_responses,
)
from accord.objectives.spec import Need, ObjectiveSpec, StateSpec


def kto(
    groups: ScoredGroups,
    *,
    beta: Annotated[float, Gt(0)] = 0.1,
    desirable_weight: Annotated[float, Ge(0)] = 1.0,
    undesirable_weight: Annotated[float, Ge(0)] = 1.0,
) -> ObjectiveResult:
    """Raise desirable and lower undesirable responses against a KL baseline with a bounded loss (KTO).

    Formula: λ_D (1 − σ(β (u − z₀))) for a desirable response, λ_U (1 − σ(β (z₀ − u))) for an undesirable one; z₀ =
    `groups.mismatched_kl`, the batch estimate of KL(π ‖ π_ref), global over ranks and without gradient.
    Reduction: mean over labelled RESPONSES as in the paper (sums with their count as denominator), not over groups.
    Gradient: ∂/∂log π(y) = −β λ_D q(1 − q), q = σ(β (u − z₀)) (desirable), +β λ_U q(1 − q), q = σ(β (z₀ − u)).
    Loss λ/2 per response at policy = reference, where z₀ = 0.
    Optimum: none finite; bounded between 0 and λ. With a fraction p of thumbs up for a response, it is raised when
    λ_D p > λ_U (1 − p), else lowered.
    Use: thumbs up and down, or pairs of which one half is missing; the field's first choice without pairs.
    Limits: without z₀ (prompts with someone else's response) the method loses its baseline; keep λ_D n_D / λ_U n_U near
    1 to 4/3; gradients vanish far from z₀, so badly wrong examples are left alone.
    Source: Ethayarajh et al. 2024, arXiv:2402.01306, eq. 8.

    >>> import torch
    >>> from accord.groups import ScoredGroups
    >>> up = ScoredGroups(
    ...     policy_logps_PK=torch.tensor([[-12.0]]), reference_logps_PK=torch.tensor([[-13.0]]),
    ...     num_tokens_PK=torch.tensor([[10]]), is_valid_PK=torch.tensor([[True]]),
    ...     desirable_PK=torch.tensor([[True]]), is_labelled_PK=torch.tensor([[True]]),
    ...     mismatched_kl=torch.tensor(0.2),
    ... )
    >>> round(kto(up, beta=0.1).loss_P.item(), 6)  # 1 − σ(0.1 (1 − 0.2))
    0.480011
    """
    assert groups.mismatched_kl is not None, "the spec declares that kto needs the mismatched KL"
    return _anchored(groups, beta, groups.mismatched_kl.detach(), desirable_weight, undesirable_weight)


def apo_zero_unpaired(groups: ScoredGroups, *, beta: Annotated[float, Gt(0)] = 0.1) -> ObjectiveResult:
    """Raise desirable and lower undesirable responses against the reference itself, with a bounded loss (APO-zero).

    Formula: 1 − σ(β u) for a desirable response, σ(β u) for an undesirable one; mean over labelled responses. It is
    `kto` with the baseline z₀ = 0 and both weights 1.
    Gradient: ∂/∂log π(y) = −β q(1 − q), q = σ(β u) (desirable), +β q(1 − q) (undesirable). Loss ½ at the reference.
    Optimum: none finite; bounded between 0 and 1. A response with a fraction p of thumbs up is raised when p > ½.
    Use: as `kto`, when the good responses are better than what the model writes, and the extra pass for z₀ is too dear.
    Limits: gradients vanish for |β u| ≫ 1, so badly wrong examples are left alone; more thumbs of one kind shift all
    responses that way, for nothing is weighed against it.
    Source: D'Oosterlinck et al. 2024, arXiv:2408.06266, taken apart into its halves; constants so that it starts at ½.

    >>> import torch
    >>> from accord.groups import ScoredGroups
    >>> both = ScoredGroups(
    ...     policy_logps_PK=torch.tensor([[-12.0, -15.0]]), reference_logps_PK=torch.tensor([[-13.0, -14.5]]),
    ...     num_tokens_PK=torch.tensor([[10, 12]]), is_valid_PK=torch.tensor([[True, True]]),
    ...     desirable_PK=torch.tensor([[True, False]]), is_labelled_PK=torch.tensor([[True, True]]),
    ... )
    >>> round(apo_zero_unpaired(both, beta=0.1).loss_P.item(), 6)  # 1 − σ(0.1) + σ(−0.05)
    0.962523
    """
    return _anchored(groups, beta, 0.0, 1.0, 1.0)


def _anchored(
    groups: ScoredGroups, beta: float, baseline: Tensor | float, desirable_weight: float, undesirable_weight: float
) -> ObjectiveResult:
    """Return λ (1 − σ(±β (u − z₀))), the loss of `kto` and its relatives."""
    is_up_PK, is_down_PK = (labelled_responses(groups, desirable=up) for up in (True, False))
    log_ratio_PK = log_ratios(groups)
    advantage_PK = beta * (log_ratio_PK - baseline)
    signed_PK = torch.where(is_up_PK, advantage_PK, torch.where(is_down_PK, -advantage_PK, 0.0))
    bare_PK = sigmoid_link(signed_PK)
    loss_PK = torch.where(is_up_PK, desirable_weight * bare_PK, undesirable_weight * bare_PK)
    return _mean_over_responses(groups, is_up_PK | is_down_PK, loss_PK, beta * log_ratio_PK)


def bco(
    groups: ScoredGroups,
    *,
    beta: Annotated[float, Gt(0)] = 0.1,
    density_weights: bool = False,
    min_density: Annotated[float, Gt(0)] = 0.5,
    max_density: Annotated[float, Gt(0)] = 10.0,
) -> ObjectiveResult:
    """Classify responses by their implicit reward above a running mean (binary classifier optimisation).

    Formula: −log σ(β u − δ) for a desirable response, −ω log σ(δ − β u) for an undesirable one; mean over labelled
    responses. δ = mean of β u over all labelled responses of the steps before (0 at the first). ω = 1, or with
    `density_weights` p/(1 − p) held between `min_density` and `max_density`, p = P(desirable | prompt) by a logistic
    classifier on prompt embeddings, learnt one step behind.
    Gradient: ∂/∂log π(y) = −β σ(δ − β u) (desirable), +ω β σ(β u − δ) (undesirable); none through δ and ω.
    Optimum: for δ held fixed, β u − δ = logit p where a fraction p gives a thumb up. Loss ln 2 at policy = reference.
    Use: thumbs up and down in large, uneven numbers; density weights when good and bad come from different prompts.
    Limits: unanimous labels have no finite optimum. The pair of a chosen and a rejected response costs more than `dpo`
    for every δ. δ and the classifier are of earlier steps, where other code counts the current batch in.
    Source: Jung et al. 2024, arXiv:2404.04656; the classifier on the policy's own hidden states, learnt as it goes
    (one gradient step per optimiser step), is a reconstruction.

    >>> import torch
    >>> from accord.groups import ScoredGroups
    >>> both = ScoredGroups(
    ...     policy_logps_PK=torch.tensor([[-12.0, -15.0]]), reference_logps_PK=torch.tensor([[-13.0, -14.5]]),
    ...     num_tokens_PK=torch.tensor([[10, 12]]), is_valid_PK=torch.tensor([[True, True]]),
    ...     desirable_PK=torch.tensor([[True, False]]), is_labelled_PK=torch.tensor([[True, True]]),
    ...     state={"reward_sum": torch.tensor(0.05), "num_rewards": torch.tensor(2.0)},
    ... )
    >>> round(bco(both, beta=0.1).loss_P.item(), 6)  # log(1 + e^−0.075) + log(1 + e^−0.075), δ = 0.05/2
    1.3127
    """
    assert groups.state is not None, "the spec declares a state"
    is_up_PK, is_down_PK = (labelled_responses(groups, desirable=up) for up in (True, False))
    is_used_PK = is_up_PK | is_down_PK
    reward_PK = beta * log_ratios(groups)
    mean = groups.state["reward_sum"] / groups.state["num_rewards"].clamp(min=1)
    above_PK = torch.where(is_used_PK, reward_PK - mean.to(reward_PK.dtype), 0.0)
    loss_PK = soft_label_link(torch.where(is_up_PK, above_PK, -above_PK))
    counted_PK = torch.where(is_used_PK, reward_PK.detach(), 0.0)
    sums = {"reward_sum": counted_PK.double().sum(), "num_rewards": is_used_PK.sum().double()}
    if density_weights:
        logit_P, classifier_sums = _classify_prompts(groups, groups.state, is_up_PK, is_used_PK)
        density_P = logit_P.clamp(math.log(min_density), math.log(max_density)).exp()
        loss_PK = torch.where(is_down_PK, density_P[:, None].to(loss_PK.dtype), 1.0) * loss_PK
        sums |= classifier_sums
    return replace(_mean_over_responses(groups, is_used_PK, loss_PK, reward_PK), state_sums=sums)


def _classify_prompts(
    groups: ScoredGroups, state: Mapping[str, Tensor], is_up_PK: Tensor, is_used_PK: Tensor
) -> tuple[Float[Tensor, " P"], dict[str, Tensor]]:
    """Return logit P(desirable | prompt) by the classifier so far, and the sums its next step is made from.

    A prompt is its embedding less the mean of the embeddings so far, at unit length, and a constant.
    """
    assert groups.prompt_embedding_PE is not None, "with density_weights the row needs prompt embeddings"
    embedding_PE = groups.prompt_embedding_PE.double()
    num_PE = is_used_PK.sum(dim=1, keepdim=True).double()
    sums = {"prompt_sum": (num_PE * embedding_PE).sum(dim=0)}
    seen, classifier = state["prompt_sum"], state["classifier"]
    if not len(classifier):  # nothing is learnt before the first step
        seen, classifier = torch.zeros_like(embedding_PE[0]), embedding_PE.new_zeros(embedding_PE.shape[1] + 1)
    centred_PE = embedding_PE - seen / state["num_rewards"].clamp(min=1)
    feature_PF = F.pad(F.normalize(centred_PE, dim=1), (0, 1), value=1.0)
    logit_P = feature_PF @ classifier
    slope_P = num_PE[:, 0] * torch.sigmoid(logit_P) - is_up_PK.sum(dim=1)
    return logit_P, sums | {"classifier": slope_P @ feature_PF}


def _check_bco(*, density_weights: bool, min_density: float, max_density: float, **_: Any) -> None:
    if min_density > max_density:
        raise ValueError(f"min_density={min_density} is above max_density={max_density} — expected the smaller first")
    if not density_weights and (min_density, max_density) != (0.5, 10.0):
        raise ValueError("min_density or max_density is set but density_weights is not: no density is estimated")


def _start_bco(**_: Any) -> dict[str, Tensor]:
    numbers = {name: torch.zeros((), dtype=torch.float64) for name in ("reward_sum", "num_rewards")}
    return numbers | {name: torch.zeros(0, dtype=torch.float64) for name in ("prompt_sum", "classifier")}


def _advance_bco(state: dict[str, Tensor], sums: dict[str, Tensor], **_: Any) -> dict[str, Tensor]:
    moved = state | {name: state[name] + sums[name] for name in ("reward_sum", "num_rewards")}
    if "classifier" in sums:
        # the logistic loss of features of length √2 is smooth with constant ½: a step of 1 cannot overshoot
        slope = sums["classifier"] / sums["num_rewards"].clamp(min=1)
        before = {name: state[name] if len(state[name]) else torch.zeros_like(sums[name]) for name in _OF_CLASSIFIER}
        moved["prompt_sum"] = before["prompt_sum"] + sums["prompt_sum"]
        moved["classifier"] = before["classifier"] - slope
    return moved


_OF_CLASSIFIER = ("prompt_sum", "classifier")


def npo(groups: ScoredGroups, *, beta: Annotated[float, Gt(0)] = 0.1) -> ObjectiveResult:
    """Unlearn undesirable responses, ever more gently the further they have fallen (negative preference optimisation).

    Formula: (2/β) log(1 + e^(β u)) for an undesirable response; mean over those. Desirable ones are not read.
    Gradient: ∂/∂log π(y) = 2 σ(β u): 1 at policy = reference, as gradient ascent on the likelihood loss, then → 0.
    Optimum: none; the loss falls to 0 as u → −∞. For β → 0 it is (2/β) ln 2 + u, plain gradient ascent. Loss (2/β) ln 2
    at policy = reference.
    Use: to make a model forget given texts; in a sum with `sft` or another term on what it should keep.
    Limits: alone it says nothing about what to write instead. A group without an undesirable response is not counted.
    Source: Zhang et al. 2024, arXiv:2404.05868.

    >>> import torch
    >>> from accord.groups import ScoredGroups
    >>> down = ScoredGroups(
    ...     policy_logps_PK=torch.tensor([[-15.0]]), reference_logps_PK=torch.tensor([[-14.5]]),
    ...     num_tokens_PK=torch.tensor([[12]]), is_valid_PK=torch.tensor([[True]]),
    ...     desirable_PK=torch.tensor([[False]]), is_labelled_PK=torch.tensor([[True]]),
    ... )
    >>> round(npo(down, beta=0.1).loss_P.item(), 4)  # 20 log(1 + e^−0.05)
    13.3692
    """
    return _unlearn(groups, beta * log_ratios(groups), beta, 0.0)


def simnpo(
    groups: ScoredGroups, *, beta: Annotated[float, Gt(0)] = 1.0, gamma: Annotated[float, Ge(0)] = 0.0
) -> ObjectiveResult:
    """Unlearn undesirable responses by their mean log-probability, without a reference (SimNPO).

    Formula: (2/β) log(1 + e^(β l̄ + γ)) for an undesirable response, l̄ = log π(y|x)/|y|; mean over those.
    Gradient: ∂/∂log π(y) = 2 σ(β l̄ + γ)/|y|.
    Optimum: none; the loss falls to 0 as l̄ → −∞. One-token responses with γ = 0 give `npo` with a uniform reference.
    Use: as `npo`, without memory for a reference, or when short and long responses should be forgotten alike.
    Limits: nothing ties the policy to its start; a larger γ keeps pushing on what is already improbable. An empty
    response has l̄ = 0.
    Source: SimNPO, arXiv:2410.07163; reconstruction of the loss, defaults of common code (γ = β · δ there).

    >>> import torch
    >>> from accord.groups import ScoredGroups
    >>> down = ScoredGroups(
    ...     policy_logps_PK=torch.tensor([[-15.0]]), num_tokens_PK=torch.tensor([[12]]),
    ...     is_valid_PK=torch.tensor([[True]]), desirable_PK=torch.tensor([[False]]),
    ...     is_labelled_PK=torch.tensor([[True]]),
    ... )
    >>> round(simnpo(down).loss_P.item(), 6)  # 2 log(1 + e^−1.25)
    0.503858
    """
    return _unlearn(groups, beta * mean_logps(groups), beta, gamma)


def _unlearn(groups: ScoredGroups, reward_PK: Float[Tensor, "P K"], beta: float, gamma: float) -> ObjectiveResult:
    is_used_PK = labelled_responses(groups, desirable=False)
    margin_PK = torch.where(is_used_PK, -reward_PK - gamma, 0.0)
    return _mean_over_responses(groups, is_used_PK, 2.0 / beta * soft_label_link(margin_PK), reward_PK)


def _mean_over_responses(
    groups: ScoredGroups, is_used_PK: Bool[Tensor, "P K"], loss_PK: Tensor, reward_PK: Tensor
) -> ObjectiveResult:
    return sum_over_responses(groups, is_used_PK, loss_PK, torch.ones_like(loss_PK), reward_PK)


def _kto_initial_loss(*, desirable_weight: float, undesirable_weight: float, **_: float) -> float | None:
    # With unequal weights the value depends on the share of thumbs up in the data.
    return desirable_weight / 2 if desirable_weight == undesirable_weight else None


ROWS: dict[str, ObjectiveSpec] = {
    "kto": ObjectiveSpec(
        fn=kto,
        family="pointwise",
        needs=frozenset({Need.LABELS, Need.MISMATCHED_KL}),
        reference=True,
        initial_loss=_kto_initial_loss,
        proof="direction",
        implicit_reward="β·log(π/π_ref)",
        paper="Ethayarajh et al. 2024, arXiv:2402.01306, eq. 8",
    ),
    "bco": ObjectiveSpec(
        fn=bco,
        family="pointwise",
        needs=frozenset({Need.LABELS}),
        reads=frozenset({Need.PROMPT_EMBEDDINGS}),
        needs_when={"density_weights": Need.PROMPT_EMBEDDINGS},
        reference=True,
        initial_loss=lambda **_: math.log(2.0),
        check=_check_bco,
        state=StateSpec(start=_start_bco, advance=_advance_bco),
        proof="optimum",
        implicit_reward="β·log(π/π_ref)",
        paper="Jung et al. 2024, arXiv:2404.04656",
    ),
    "apo_zero_unpaired": ObjectiveSpec(
        fn=apo_zero_unpaired,
        family="pointwise",
        needs=frozenset({Need.LABELS}),
        reference=True,
        initial_loss=lambda **_: 0.5,
        proof="identity",
        implicit_reward="β·log(π/π_ref)",
        paper="D'Oosterlinck et al. 2024, arXiv:2408.06266",
    ),
    "npo": ObjectiveSpec(
        fn=npo,
        family="pointwise",
        needs=frozenset({Need.LABELS}),
        reference=True,
        initial_loss=lambda *, beta, **_: 2.0 / beta * math.log(2.0),
        proof="bound",
        implicit_reward="β·log(π/π_ref)",
        paper="Zhang et al. 2024, arXiv:2404.05868",
    ),
    "simnpo": ObjectiveSpec(
        fn=simnpo,
        family="pointwise",
        needs=frozenset({Need.LABELS}),
        reference=False,
        proof="identity",
        implicit_reward="β·log π(y|x)/|y|",
        paper="SimNPO 2024, arXiv:2410.07163 (reconstruction)",
    ),
}
