"""Objectives that read more of a response than its summed log-probability: weights, divergences and edits per token.

Axes: P prompts, K responses per prompt, T tokens of a response. Notation in formulas: y_w the better and y_l the worse
response of a pair, r_t(y) = log π(y_t|·) − log π_ref(y_t|·), u(y) = Σ_t r_t(y), |y| the number of trained tokens, σ the
logistic function, sg[·] held constant in the gradient, nats throughout. Only trained tokens enter. All pairs in
`preferred_PKK` do; a group's loss is the mean over its pairs.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Interval
from jaxtyping import Float
from torch import Tensor

from accord.groups import ObjectiveResult, ScoredGroups
from accord.objectives._ops import (
    judged_pairs,
    log_ratios,
    mean_logps,
    mean_over_pairs,
    pair_margins,
    soft_label_link,
    sum_over_tokens,
    tangent_log1mexp,
    token_log_ratios,
    trained_tokens,
    weighted_log_ratios,
)
from accord.objectives.spec import Need, ObjectiveSpec


def wpo(
    groups: ScoredGroups,
    *,
    beta: Annotated[float, Gt(0)] = 0.1,
    max_weight: Annotated[float, Gt(0)] = 1.0,
) -> ObjectiveResult:
    """Weight each pair of DPO by how likely the present policy is to write its two responses (WPO).

    Formula: −sg[w] log σ(β (u(y_w) − u(y_l))), w = min(w(y_w) w(y_l), `max_weight`), w(y) = exp((1/|y|) Σ_t (log π(y_t)
    − log Σ_v π(v)²)): a token that is as likely as the policy's own draws are on average weighs 1.
    Gradient: ∂/∂log π(y_w) = −w β σ(−z), z the margin; the opposite for y_l. Nothing through w.
    Optimum: DPO's, u(y_w) − u(y_l) = logit(p) / β, wherever all w > 0: both orders of a pair weigh the same, so the
    weights decide how fast a pair is learnt, not what of it. The loss itself has no minimum to speak of, as w moves.
    Use: with responses of other models, to learn more from those that the policy could have written itself.
    Limits: as DPO; responses that the policy would never write weigh next to nothing, so little may be learnt from far
    off-policy data. The published formula has no bound on w; the bound of 1 is that of the usual code. An empty
    response has w(y) = 1.
    Source: Zhou et al. 2024, arXiv:2406.11827.

    >>> import torch
    >>> from dataclasses import replace
    >>> from accord.groups import ScoredTokens, groups_from_pairs
    >>> logps = torch.tensor([[-1.0, -2.0]])
    >>> pair = groups_from_pairs(logps, reference_logps_P2=logps)
    >>> of_draws = torch.tensor([[[-0.5], [-1.0]]])  # log Σ_v π(v)² where the one token of each response stands
    >>> tokens = ScoredTokens(policy_logps_PKT=logps[..., None], is_trained_PKT=torch.ones(1, 2, 1, dtype=torch.bool),
    ...                       log_sum_sq_PKT=of_draws)
    >>> round(wpo(replace(pair, tokens=tokens)).loss_P.item(), 6)  # e^(−0.5 − 1) ln 2
    0.154662
    """
    pairs_PKK = judged_pairs(groups)
    implicit_reward_PK = beta * log_ratios(groups)
    expected_PK = sum_over_tokens(groups, _given(groups, "log_sum_sq_PKT")) / groups.num_tokens_PK.clamp(min=1)
    log_weight_PK = (mean_logps(groups) - expected_PK).detach()
    # bounded before the exponential, which would overflow
    log_weight_PKK = (log_weight_PK[:, :, None] + log_weight_PK[:, None, :]).clamp(max=math.log(max_weight))
    loss_PKK = log_weight_PKK.exp() * soft_label_link(pair_margins(pairs_PKK, implicit_reward_PK))
    return mean_over_pairs(groups, pairs_PKK, loss_PKK, implicit_reward_PK)


def ld_dpo(
    groups: ScoredGroups,
    *,
    beta: Annotated[float, Gt(0)] = 0.1,
    alpha: Annotated[float, Interval(ge=0, le=1)] = 0.5,
) -> ObjectiveResult:
    """Count the tokens of the longer response beyond the length of the shorter one only by a share (LD-DPO).

    Formula: −log σ(β (s(y_w) − s(y_l))), s(y) = Σ_{t ≤ m} r_t(y) + α Σ_{t > m} r_t(y), m = min(|y_w|, |y_l|).
    Gradient: ∂/∂log π(y_t) = −β σ(−z) for the tokens of y_w up to m and −α β σ(−z) for those after; the opposite for
    y_l. Loss ln 2 at policy = reference.
    Optimum: s(y_w) − s(y_l) = logit(p) / β where raters prefer y_w with probability p; for α = 1 DPO's.
    Use: where DPO makes responses longer and longer: a smaller α takes from the longer response its advantage of having
    more tokens to move.
    Limits: as DPO. Which tokens count fully depends on the other response of the pair, so no single number per response
    orders them: the implicit reward shown is β u. A pair with an empty response has m = 0.
    Source: arXiv:2409.06411; the default α = 1/2 is ours.

    >>> import torch
    >>> from dataclasses import replace
    >>> from accord.groups import ScoredTokens, groups_from_pairs
    >>> of_tokens = torch.tensor([[[-1.0, -1.0, -2.0], [-2.0, 0.0, 0.0]]])
    >>> is_trained = torch.tensor([[[True, True, True], [True, False, False]]])
    >>> pair = groups_from_pairs(of_tokens.sum(-1), reference_logps_P2=torch.tensor([[-4.5, -1.5]]))
    >>> tokens = ScoredTokens(policy_logps_PKT=of_tokens, is_trained_PKT=is_trained,
    ...                       reference_logps_PKT=torch.tensor([[[-1.5, -1.5, -1.5], [-1.5, 0.0, 0.0]]]))
    >>> round(ld_dpo(replace(pair, tokens=tokens), alpha=0.5).loss_P.item(), 6)  # −log σ(0.1 (0.5 + 0.5 × 0 + 0.5))
    0.644397
    """
    pairs_PKK = judged_pairs(groups)
    is_trained_PKT = trained_tokens(groups)
    ratio_PKT = token_log_ratios(groups)
    place_PKT = is_trained_PKT.long().cumsum(dim=2)  # 1, 2, … over trained tokens
    length_PK = is_trained_PKT.sum(dim=2)
    shorter_PKK = torch.minimum(length_PK[:, :, None], length_PK[:, None, :])
    is_within_PKKT = place_PKT[:, :, None, :] <= shorter_PKK[..., None]
    weight_PKKT = torch.where(is_within_PKKT, 1.0, alpha).to(ratio_PKT.dtype)
    score_PKK = (weight_PKKT * ratio_PKT[:, :, None, :]).sum(dim=3)  # [p, i, j]: of i beside j
    margin_PKK = torch.where(pairs_PKK, beta * (score_PKK - score_PKK.transpose(1, 2)), 0.0)
    return mean_over_pairs(groups, pairs_PKK, soft_label_link(margin_PKK), beta * log_ratios(groups))


def tdpo1(groups: ScoredGroups, *, beta: Annotated[float, Gt(0)] = 0.1) -> ObjectiveResult:
    """Correct DPO's margin by how far the policy has moved along each response, over the whole vocabulary (TDPO1).

    Formula: −log σ(β (u(y_w) + K(y_w) − u(y_l) − K(y_l))), K(y) = Σ_t KL(π_ref(·|y_<t) ‖ π(·|y_<t)).
    Gradient: as DPO's with u + K for u; ∂K/∂logits at a position is π − π_ref. Loss ln 2 at policy = reference.
    Optimum: u(y_w) + K(y_w) − u(y_l) − K(y_l) = logit(p) / β where raters prefer y_w with probability p.
    Use: to see what the correction does before the stop-gradient of TDPO2, which its authors recommend.
    Limits: a pass of the reference beside each pass of the policy, both over the full vocabulary; the sign lets the
    divergence along chosen responses GROW the margin. Equal K on both sides gives DPO. An empty response has K = 0.
    Source: Zeng et al. 2024, arXiv:2404.11999.

    >>> import torch
    >>> from dataclasses import replace
    >>> from accord.groups import ScoredTokens, groups_from_pairs
    >>> logps = torch.tensor([[-12.0, -15.0]])
    >>> pair = groups_from_pairs(logps, reference_logps_P2=torch.tensor([[-13.0, -14.5]]))
    >>> tokens = ScoredTokens(policy_logps_PKT=logps[..., None], is_trained_PKT=torch.ones(1, 2, 1, dtype=torch.bool),
    ...                       position_kl_PKT=torch.tensor([[[0.4], [0.9]]]))
    >>> round(tdpo1(replace(pair, tokens=tokens), beta=0.1).loss_P.item(), 6)  # −log σ(0.1 (1.5 + 0.4 − 0.9))
    0.644397
    """
    pairs_PKK, log_ratio_PK = judged_pairs(groups), log_ratios(groups)
    margin_PKK = beta * pair_margins(pairs_PKK, log_ratio_PK + _sequence_kl(groups))
    return mean_over_pairs(groups, pairs_PKK, soft_label_link(margin_PKK), beta * log_ratio_PK)


def tdpo2(
    groups: ScoredGroups,
    *,
    beta: Annotated[float, Gt(0)] = 0.1,
    alpha: Annotated[float, Ge(0)] = 0.5,
) -> ObjectiveResult:
    """Correct DPO's margin by the divergence along the rejected response, that of the chosen one held constant (TDPO2).

    Formula: −log σ(β (u(y_w) − u(y_l) + α (sg[K(y_w)] − K(y_l)))), K(y) = Σ_t KL(π_ref(·|y_<t) ‖ π(·|y_<t)).
    Gradient: β σ(−z) (−∇u(y_w) + ∇u(y_l) + α ∇K(y_l)): beside DPO's, divergence along y_l is pulled down, none along
    y_w. Loss ln 2 at policy = reference, where ∇K = 0: the first step is DPO's.
    Optimum: none in closed form. Where raters agree with the margins (p = σ(z)) DPO's part of the population gradient
    vanishes and p (1 − p) α β ∇(K(y_w) + K(y_l)) is left: the policy is held nearer to the reference than by DPO.
    Use: to keep the divergence from the reference even over chosen and rejected responses.
    Limits: a pass of the reference beside each pass of the policy, both over the full vocabulary. α = 0 or equal K
    without gradient give DPO. An empty response has K = 0.
    Source: Zeng et al. 2024, arXiv:2404.11999; defaults as in the authors' code.

    >>> import torch
    >>> from dataclasses import replace
    >>> from accord.groups import ScoredTokens, groups_from_pairs
    >>> logps = torch.tensor([[-12.0, -15.0]])
    >>> pair = groups_from_pairs(logps, reference_logps_P2=torch.tensor([[-13.0, -14.5]]))
    >>> tokens = ScoredTokens(policy_logps_PKT=logps[..., None], is_trained_PKT=torch.ones(1, 2, 1, dtype=torch.bool),
    ...                       position_kl_PKT=torch.tensor([[[0.4], [0.9]]]))
    >>> round(tdpo2(replace(pair, tokens=tokens), beta=0.1).loss_P.item(), 6)  # −log σ(0.1 (1.5 + 0.5 (0.4 − 0.9)))
    0.632599
    """
    pairs_PKK, log_ratio_PK, kl_PK = judged_pairs(groups), log_ratios(groups), _sequence_kl(groups)
    margin_PKK = pair_margins(pairs_PKK, log_ratio_PK + alpha * kl_PK.detach(), log_ratio_PK + alpha * kl_PK)
    return mean_over_pairs(groups, pairs_PKK, soft_label_link(beta * margin_PKK), beta * log_ratio_PK)


def dpo_critical(
    groups: ScoredGroups,
    *,
    beta: Annotated[float, Gt(0)] = 0.1,
    weighted: Literal["only_rejected", "both"] = "only_rejected",
) -> ObjectiveResult:
    """Lower the tokens of a rejected response by how much they look like its mistakes to two further models (cDPO).

    Formula: −log σ(β (Σ_t ω_t r_t(y_w) − Σ_t (1 − s_t) r_t(y_l))), s_t = softmax((1 + b) logits₊ − b logits₋)[y_t] the
    contrastive estimate of a model of right answers (₊) and one of wrong ones (₋); ω_t = 1 ("only_rejected", the
    authors' code) or s_t ("both"). A token that the contrast thinks wrong has s_t near 0 and weighs fully.
    Gradient: ∂/∂log π(y_t) = −β σ(−z) ω_t for y_w, β σ(−z) (1 − s_t) for y_l. Loss ln 2 at policy = reference.
    Optimum: s_t = 0 is DPO; "both" with s_t = 1/2 everywhere is DPO with β/2. Otherwise none in closed form: the two
    orders of a pair weigh its responses differently.
    Use: where single steps decide (mathematics), with two models trained on right and on wrong answers.
    Limits: s_t is small for every token that is merely unlikely, so on long vocabularies most weights are near 1;
    which weights count depends on a response's side of the pair, so the implicit reward shown is β u.
    Source: Lin et al. 2024, arXiv:2411.19943.

    >>> import torch
    >>> from dataclasses import replace
    >>> from accord.groups import ScoredTokens, groups_from_pairs
    >>> of_tokens, of_reference = torch.tensor([[[-12.0], [-15.0]]]), torch.tensor([[[-13.0], [-14.5]]])
    >>> pair = groups_from_pairs(of_tokens[..., 0], reference_logps_P2=of_reference[..., 0])
    >>> tokens = ScoredTokens(policy_logps_PKT=of_tokens, is_trained_PKT=torch.ones(1, 2, 1, dtype=torch.bool),
    ...                       reference_logps_PKT=of_reference, critical_PKT=torch.tensor([[[0.3], [0.4]]]))
    >>> round(dpo_critical(replace(pair, tokens=tokens)).loss_P.item(), 6)  # −log σ(0.1 (1 + 0.6 × 0.5))
    0.630258
    """
    pairs_PKK, right_PKT = judged_pairs(groups), _given(groups, "critical_PKT")
    chosen_PK = log_ratios(groups) if weighted == "only_rejected" else weighted_log_ratios(groups, right_PKT)
    rejected_PK = weighted_log_ratios(groups, 1.0 - right_PKT)
    margin_PKK = beta * pair_margins(pairs_PKK, chosen_PK, rejected_PK)
    return mean_over_pairs(groups, pairs_PKK, soft_label_link(margin_PKK), beta * log_ratios(groups))


def token_weighted_dpo(groups: ScoredGroups, *, beta: Annotated[float, Gt(0)] = 0.1) -> ObjectiveResult:
    """Weight every token's log-ratio in DPO by a number that came with the data.

    Formula: −log σ(β (s(y_w) − s(y_l))), s(y) = Σ_t ω_t r_t(y), ω_t ≥ 0 from the data, 1 for a response without.
    Gradient: ∂/∂log π(y_t) = −β σ(−z) ω_t for y_w, the opposite for y_l. Loss ln 2 at policy = reference.
    Optimum: s(y_w) − s(y_l) = logit(p) / β where raters prefer y_w with probability p; for equal weights c DPO's with
    strength c β. With weights 1 the optimum's β r_t is the token's reward plus the change of the soft value.
    Use: where it is known which tokens of a response matter (marked spans, a process reward, a critic), or to leave
    tokens out (weight 0).
    Limits: as DPO; only the product of β and the weights counts. A response whose weights are all 0 keeps s = 0.
    Source: the token-weighted score of Lin et al. 2024, arXiv:2411.19943, with given weights; token rewards: Rafailov
    et al. 2024, arXiv:2404.12358.

    >>> import torch
    >>> from dataclasses import replace
    >>> from accord.groups import ScoredTokens, groups_from_pairs
    >>> of_tokens, of_reference = torch.tensor([[[-12.0], [-15.0]]]), torch.tensor([[[-13.0], [-14.5]]])
    >>> pair = groups_from_pairs(of_tokens[..., 0], reference_logps_P2=of_reference[..., 0])
    >>> tokens = ScoredTokens(policy_logps_PKT=of_tokens, is_trained_PKT=torch.ones(1, 2, 1, dtype=torch.bool),
    ...                       reference_logps_PKT=of_reference, weight_PKT=torch.tensor([[[0.5], [1.0]]]))
    >>> round(token_weighted_dpo(replace(pair, tokens=tokens)).loss_P.item(), 6)  # −log σ(0.1 (0.5 × 1 + 1 × 0.5))
    0.644397
    """
    pairs_PKK = judged_pairs(groups)
    implicit_reward_PK = beta * weighted_log_ratios(groups, _given(groups, "weight_PKT"))
    margin_PKK = pair_margins(pairs_PKK, implicit_reward_PK)
    return mean_over_pairs(groups, pairs_PKK, soft_label_link(margin_PKK), implicit_reward_PK)


def salt(
    groups: ScoredGroups,
    *,
    chosen_kept_weight: Annotated[float, Ge(0)] = 1.0,
    chosen_changed_weight: Annotated[float, Ge(0)] = 1.0,
    rejected_kept_weight: Annotated[float, Ge(0)] = 0.0,
    rejected_changed_weight: Annotated[float, Ge(0)] = 0.1,
) -> ObjectiveResult:
    """Imitate an edited response and make the tokens that the edit took out unlikely, without a reference (SALT).

    Formula: −mean_t[ω_t log π(y_t)] over y_w − mean_t[ω_t log(1 − π(y_t))] over the changed tokens of y_l −
    mean_t[ω_t log π(y_t)] over its kept ones. A token is kept where an alignment of the two responses pairs it with an
    equal one; ω has one value each for kept and changed tokens of either response. Means are over tokens with ω > 0.
    Gradient: ∂/∂log π(y_t) = −ω/n for imitated tokens, ω/n · π/(1 − π) for those taken out, n the tokens of the mean.
    Optimum: at a position with two possible tokens, p = (imitated mass of the first + mass of the second taken out) /
    all mass; in general none in closed form.
    Use: with pairs of a response and its correction by a person or a better model.
    Limits: without changed tokens (an identical pair) it imitates. Which tokens are kept says little of two independent
    responses. A token of probability above exp(−1e-6) is taken out along the tangent of log(1 − p). Of a group with
    several versions a token is kept where every one it was compared with shares it.
    Source: Yao, Schloss and Selvaraj 2023, arXiv:2310.05857; weights of the code of Mishra, Yao et al. 2024,
    arXiv:2402.13919, whose mean is over a batch's tokens, here over a response's.

    >>> import torch
    >>> from dataclasses import replace
    >>> from accord.groups import ScoredTokens, groups_from_pairs
    >>> of_tokens = torch.tensor([[[0.8, 0.4], [0.8, 0.5]]]).log()
    >>> is_kept = torch.tensor([[[True, False], [True, False]]])
    >>> tokens = ScoredTokens(policy_logps_PKT=of_tokens, is_trained_PKT=torch.ones_like(is_kept), is_kept_PKT=is_kept)
    >>> pair = replace(groups_from_pairs(of_tokens.sum(-1), num_tokens_P2=torch.tensor([[2, 2]])), tokens=tokens)
    >>> round(salt(pair).loss_P.item(), 6)  # −(log 0.8 + log 0.4)/2 − 0.1 log(1 − 0.5)
    0.639032
    """
    pairs_PKK = judged_pairs(groups)
    is_trained_PKT, is_kept_PKT = trained_tokens(groups), _given(groups, "is_kept_PKT")
    logp_PKT = torch.where(is_trained_PKT, _given(groups, "policy_logps_PKT"), -1.0)
    kept_PKT, changed_PKT = is_trained_PKT & is_kept_PKT, is_trained_PKT & ~is_kept_PKT

    def mean_of(value_PKT: Tensor, kept_weight: float, changed_weight: float) -> Float[Tensor, "P K"]:
        weight_PKT = kept_weight * kept_PKT.to(value_PKT.dtype) + changed_weight * changed_PKT.to(value_PKT.dtype)
        count_PK = (weight_PKT > 0).sum(dim=2).clamp(min=1)
        return torch.where(weight_PKT > 0, weight_PKT * value_PKT, 0.0).sum(dim=2) / count_PK

    chosen_PK = -mean_of(logp_PKT, chosen_kept_weight, chosen_changed_weight)
    taken_out_PKT = tangent_log1mexp(torch.where(changed_PKT, logp_PKT, -1.0))
    rejected_PK = -mean_of(taken_out_PKT, 0.0, rejected_changed_weight) - mean_of(logp_PKT, rejected_kept_weight, 0.0)
    loss_PKK = chosen_PK[:, :, None] + rejected_PK[:, None, :]
    return mean_over_pairs(groups, pairs_PKK, loss_PKK, mean_logps(groups))


def _sequence_kl(groups: ScoredGroups) -> Float[Tensor, "P K"]:
    """Return K(y): the divergence of the policy's next-token distributions from the reference's, along a response."""
    return sum_over_tokens(groups, _given(groups, "position_kl_PKT"))


def _given(groups: ScoredGroups, name: str) -> Tensor:
    """Return a field of the tokens that the row has declared."""
    value_PKT = getattr(groups.tokens, name, None)
    assert value_PKT is not None, f"the objective's spec must declare that it needs tokens.{name}"
    return value_PKT


def _ln_2(**_: object) -> float:
    return math.log(2)


_row = partial(ObjectiveSpec, level="token")

ROWS: dict[str, ObjectiveSpec] = {
    "wpo": ObjectiveSpec(
        fn=wpo,
        family="pairwise",
        needs=frozenset({Need.PREFERENCES, Need.LOG_SUM_SQ}),
        reference=True,
        has_stop_gradient=True,
        proof="fixed point",
        implicit_reward="β·log(π/π_ref)",
        paper="Zhou et al. 2024, arXiv:2406.11827",
    ),
    "ld_dpo": _row(
        fn=ld_dpo,
        family="pairwise",
        needs=frozenset({Need.PREFERENCES, Need.TOKENS}),
        reference=True,
        initial_loss=_ln_2,
        proof="optimum",
        implicit_reward="β·log(π/π_ref)",
        paper="LD-DPO 2024, arXiv:2409.06411",
    ),
    "tdpo1": _row(
        fn=tdpo1,
        family="token",
        needs=frozenset({Need.PREFERENCES, Need.POSITION_KL}),
        reference=True,
        is_difference_only=True,
        initial_loss=_ln_2,
        proof="optimum",
        implicit_reward="β·log(π/π_ref)",
        paper="Zeng et al. 2024, arXiv:2404.11999",
    ),
    "tdpo2": _row(
        fn=tdpo2,
        family="token",
        needs=frozenset({Need.PREFERENCES, Need.POSITION_KL}),
        reference=True,
        is_difference_only=True,
        initial_loss=_ln_2,
        has_stop_gradient=True,
        proof="identity",
        implicit_reward="β·log(π/π_ref)",
        paper="Zeng et al. 2024, arXiv:2404.11999",
    ),
    "dpo_critical": _row(
        fn=dpo_critical,
        family="token",
        needs=frozenset({Need.PREFERENCES, Need.TOKENS, Need.CRITICAL}),
        reference=True,
        initial_loss=_ln_2,
        proof="identity",
        implicit_reward="β·log(π/π_ref)",
        paper="Lin et al. 2024, arXiv:2411.19943",
    ),
    "salt": _row(
        fn=salt,
        family="token",
        needs=frozenset({Need.PREFERENCES, Need.TOKENS, Need.EDITS}),
        reference=False,
        proof="optimum",
        implicit_reward="log π(y|x)/|y|",
        paper="Yao et al. 2023, arXiv:2310.05857",
    ),
    "token_weighted_dpo": _row(
        fn=token_weighted_dpo,
        family="token",
        needs=frozenset({Need.PREFERENCES, Need.TOKENS, Need.TOKEN_WEIGHTS}),
        reference=True,
        initial_loss=_ln_2,
        proof="optimum",
        implicit_reward="β·Σ_t ω_t log(π/π_ref)",
        paper="Lin et al. 2024, arXiv:2411.19943, with given weights",
    ),
}
