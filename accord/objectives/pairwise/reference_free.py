"""Objectives of judged pairs that need no reference: what is separated is the policy's own log-probabilities.

Axes: P prompts, K responses per prompt. Notation in formulas: y_w the better and y_l the worse response of a pair,
l̄(y) = log π(y|x)/|y|, |y| the number of response tokens incl. EOS, σ the logistic function, nats throughout. All pairs
in `preferred_PKK` enter; a group's loss is the mean over its pairs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Interval
from jaxtyping import Float
from torch import Tensor

from accord.groups import ObjectiveResult, ScoredGroups
from accord.objectives._ops import (
    alpha_scores,
    hinge_link,
    judged_pairs,
    log_odds,
    mean_logps,
    mean_over_pairs,
    of_chosen,
    pair_margins,
    soft_label_link,
    sum_logps,
)
from accord.objectives.spec import Need, ObjectiveSpec


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
    Use: pairs of chat answers of different lengths when a reference is too dear to keep; with a small learning rate.
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
    Use: one stage in place of imitation followed by preference training, from a base model.
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


def alphapo(
    groups: ScoredGroups,
    *,
    beta: Annotated[float, Gt(0)] = 2.0,
    gamma_beta_ratio: Annotated[float, Ge(0)] = 0.5,
    alpha: Annotated[float, Interval(ge=-5.0, le=5.0)] = 0.25,
) -> ObjectiveResult:
    """Reshape SimPO's reward by a power of the mean token probability (AlphaPO).

    Formula: −log σ(β (φ(y_w) − φ(y_l)) − γ), φ(y) = (1 − e^(−α l̄(y)))/α, γ = β · `gamma_beta_ratio`; φ = l̄ for α = 0.
    Gradient: ∂/∂log π(y_w) = −β σ(−z) e^(−α l̄(y_w))/|y_w|, the same with y_l and the other sign. α > 0 pulls more on
    improbable responses, α < 0 less. Loss log(1 + e^γ) at equal means.
    Optimum: SimPO's, with φ for l̄; the difference of φ is logit(p)/β for γ = 0.
    Use: as SimPO, when the likelihood of the better responses falls (try α > 0) or margins stay small.
    Limits: no reference, so the learning rate is the only brake. For α l̄ < −30 φ goes on along its tangent, where
    e^(−α l̄) would leave float32. An empty response has l̄ = 0.
    Source: Gupta et al. 2025, arXiv:2501.03884; the form here is a reconstruction, checked against SimPO at α = 0.

    >>> import torch
    >>> from accord.groups import groups_from_pairs
    >>> pair = groups_from_pairs(torch.tensor([[-12.0, -15.0]]), num_tokens_P2=torch.tensor([[10, 12]]))
    >>> round(alphapo(pair, alpha=0.25).loss_P.item(), 6)  # z = 2·4(e^0.3125 − e^0.3) − 1
    1.215811
    """
    pairs_PKK = judged_pairs(groups)
    implicit_reward_PK = beta * alpha_scores(mean_logps(groups), alpha)
    margin_PKK = pair_margins(pairs_PKK, implicit_reward_PK) - beta * gamma_beta_ratio
    return mean_over_pairs(groups, pairs_PKK, soft_label_link(margin_PKK), implicit_reward_PK)


def cpo(
    groups: ScoredGroups,
    *,
    beta: Annotated[float, Gt(0)] = 0.1,
    nll_weight: Annotated[float, Ge(0)] = 1.0,
    nll_normalisation: Literal["mean", "sum"] = "mean",
) -> ObjectiveResult:
    """Compare the policy's own log-probabilities and imitate the better response (contrastive preference optimisation).

    Formula: −log σ(β (log π(y_w) − log π(y_l))) + λ NLL(y_w), λ = `nll_weight`; NLL is −l̄(y_w) ("mean", per token of
    this response) or −log π(y_w) ("sum").
    Gradient: ∂/∂log π(y_w) = −(β σ(−z) + λ/|y_w|) (λ for "sum"), ∂/∂log π(y_l) = β σ(−z).
    Optimum: without NLL that of DPO with a uniform reference, log π(y_w) − log π(y_l) = logit(p)/β; with it no closed
    form, between that and imitation.
    Use: pairs of good answers (translations, edits) from a model already tuned, without memory for a reference.
    Limits: sums favour short responses from the start, as nothing stands against log π; log 2 + λ NLL where both
    log-probabilities agree. Ties give no pair; an empty response has log π = 0 and no NLL.
    Source: Xu et al. 2024, arXiv:2401.08417, eq. 4 to 6 (equation numbers from memory).

    >>> import torch
    >>> from accord.groups import groups_from_pairs
    >>> pair = groups_from_pairs(torch.tensor([[-12.0, -15.0]]), num_tokens_P2=torch.tensor([[10, 12]]))
    >>> round(cpo(pair, beta=0.1, nll_weight=1.0).loss_P.item(), 6)  # log(1 + e^−0.3) + 1.2
    1.754355
    """
    pairs_PKK = judged_pairs(groups)
    implicit_reward_PK = beta * sum_logps(groups)
    loss_PKK = soft_label_link(pair_margins(pairs_PKK, implicit_reward_PK))
    if nll_weight:
        loss_PKK = loss_PKK + nll_weight * of_chosen(pairs_PKK, _nll(groups, nll_normalisation))
    return mean_over_pairs(groups, pairs_PKK, loss_PKK, implicit_reward_PK)


def slic(
    groups: ScoredGroups,
    *,
    delta: Annotated[float, Gt(0)] = 1.0,
    nll_weight: Annotated[float, Ge(0)] = 0.1,
    nll_normalisation: Literal["mean", "sum"] = "sum",
) -> ObjectiveResult:
    """Rank the better response above the worse by a margin in nats, and imitate the better one (SLiC-HF).

    Formula: max(0, δ − log π(y_w) + log π(y_l)) + λ NLL(y_w), λ = `nll_weight`; NLL is −log π(y_w) ("sum", as in the
    paper) or −l̄(y_w) ("mean").
    Gradient: ∂/∂log π(y_w) = −(1 + λ) while the pair is within the margin, −λ beyond it (λ/|y_w| for "mean");
    ∂/∂log π(y_l) = 1 within the margin, 0 beyond.
    Optimum: without NLL the ranking term is 0 exactly where log π(y_w) − log π(y_l) ≥ δ; raters who prefer y_w with
    probability p > ½ lead to a margin of exactly δ, whatever p.
    Use: rankings of samples from the model itself, when a reference at training time is too dear.
    Limits: a margin in nats of the sum is crossed by one token, so long responses are done at once; loss δ + λ NLL at
    equal log-probabilities. The paper may imitate a separate target; here it is the better response of each pair.
    Source: Zhao et al. 2023, arXiv:2305.10425; SLiC: arXiv:2210.00045.

    >>> import torch
    >>> from accord.groups import groups_from_pairs
    >>> pair = groups_from_pairs(torch.tensor([[-12.0, -12.25]]))
    >>> round(slic(pair, delta=1.0, nll_weight=0.1).loss_P.item(), 6)  # (1 − 0.25) + 0.1 × 12
    1.95
    """
    pairs_PKK = judged_pairs(groups)
    logp_PK = sum_logps(groups)
    loss_PKK = hinge_link(pair_margins(pairs_PKK, logp_PK), target=delta)
    if nll_weight:
        loss_PKK = loss_PKK + nll_weight * of_chosen(pairs_PKK, _nll(groups, nll_normalisation))
    return mean_over_pairs(groups, pairs_PKK, loss_PKK, logp_PK)


def rrhf(
    groups: ScoredGroups,
    *,
    nll_weight: Annotated[float, Ge(0)] = 1.0,
    nll_normalisation: Literal["mean", "sum"] = "mean",
) -> ObjectiveResult:
    """Order a ranking's responses by their mean log-probability and imitate the best (RRHF).

    Formula: mean over the judged pairs of max(0, l̄(y_l) − l̄(y_w)) + λ NLL(y_best), λ = `nll_weight`; NLL is −l̄
    ("mean") or −log π ("sum"), averaged over the responses that win a pair and lose none (ties for the first place).
    Gradient: ∂/∂log π(y_w) = −1/|y_w|, ∂/∂log π(y_l) = 1/|y_l| for a pair in the wrong order, over the number of pairs;
    0 for one in the right order; −λ/|y_best| for the best.
    Optimum: the ranking term is 0 wherever the order is right, by whatever margin; raters who disagree about a pair
    leave it at equal means. With the likelihood term the best response takes all mass.
    Use: rankings of several responses from several models, with good best ones.
    Limits: the pairs are averaged where the paper sums them, so that a ranking of seven does not weigh 21 times a
    pair: multiply λ by the number of pairs for the paper's balance, or divide. No margin: equal means cost nothing and
    have no gradient (at exactly equal means the gradient is taken as 0).
    Source: Yuan et al. 2023, arXiv:2304.05302.

    >>> import torch
    >>> from accord.groups import groups_from_pairs
    >>> pair = groups_from_pairs(torch.tensor([[-15.0, -12.0]]), num_tokens_P2=torch.tensor([[10, 12]]))
    >>> round(rrhf(pair).loss_P.item(), 6)  # (−1 + 1.5) + 1.5
    2.0
    """
    pairs_PKK = judged_pairs(groups)
    mean_logp_PK = mean_logps(groups)
    ranking = mean_over_pairs(
        groups, pairs_PKK, hinge_link(pair_margins(pairs_PKK, mean_logp_PK), target=0.0), mean_logp_PK
    )
    if not nll_weight:
        return ranking
    is_best_PK = pairs_PKK.any(dim=2) & ~pairs_PKK.any(dim=1)
    nll_PK = torch.where(is_best_PK, _nll(groups, nll_normalisation), 0.0)
    nll_P = nll_PK.sum(dim=1) / is_best_PK.sum(dim=1).clamp(min=1)
    return replace(ranking, loss_P=ranking.loss_P + nll_weight * nll_P)


def tpo(
    groups: ScoredGroups,
    *,
    beta: Annotated[float, Gt(0)] = 0.1,
    gamma_beta_ratio: Annotated[float, Ge(0)] = 0.0,
    nll_weight: Annotated[float, Ge(0)] = 1.0,
    normalisation: Literal["sum", "mean"] = "sum",
) -> ObjectiveResult:
    """Imitate a gold response and compare the others among each other (triple preference optimisation).

    Formula: −log σ(β (φ(y_w) − φ(y_l)) − γ) − λ l̄(y_gold), γ = β · `gamma_beta_ratio`, λ = `nll_weight`; φ = log π
    ("sum", TPO) or l̄ ("mean", TPO-L). y_gold is the response judged better than every other of its group; the pairs
    (y_w, y_l) are those it has no part in.
    Gradient: ∂/∂log π(y_w) = −β σ(−z) (over |y_w| for "mean"), the opposite for y_l; ∂/∂log π(y_gold) = −λ/|y_gold|.
    Optimum: for λ = 0 and γ = 0 the difference of φ is logit(p)/β, as in `cpo`; no closed form with both terms.
    Use: a reference answer (written by people, or a strong model's) beside two or more of the model's own.
    Limits: a group needs three responses: without a gold one, or without a pair among the others, it is not counted.
    Two responses that beat all others cannot be: they would have to beat each other.
    Source: Saeidi et al. 2024, arXiv:2405.16681; reconstruction of the two terms, defaults ours.

    >>> import torch
    >>> from accord.groups import ScoredGroups
    >>> ranking = ScoredGroups(
    ...     policy_logps_PK=torch.tensor([[-8.0, -12.0, -15.0]]), num_tokens_PK=torch.tensor([[8, 10, 12]]),
    ...     is_valid_PK=torch.tensor([[True, True, True]]), preferred_PKK=torch.ones(1, 3, 3).triu(1).bool(),
    ... )
    >>> round(tpo(ranking, beta=0.1).loss_P.item(), 6)  # log(1 + e^−0.3) + 8/8
    1.554355
    """
    pairs_PKK = judged_pairs(groups)
    valid_PK = groups.is_valid_PK
    num_others_P1 = valid_PK.sum(dim=1, keepdim=True) - 1
    is_gold_PK = valid_PK & ~pairs_PKK.any(dim=1) & (pairs_PKK.sum(dim=2) == num_others_P1)
    has_gold_P11 = is_gold_PK.any(dim=1)[:, None, None]
    pairs_PKK = pairs_PKK & ~is_gold_PK[:, :, None] & has_gold_P11  # nothing beats gold: only its own row goes
    implicit_reward_PK = beta * (sum_logps(groups) if normalisation == "sum" else mean_logps(groups))
    margin_PKK = pair_margins(pairs_PKK, implicit_reward_PK) - beta * gamma_beta_ratio
    result = mean_over_pairs(groups, pairs_PKK, soft_label_link(margin_PKK), implicit_reward_PK)
    is_imitated_PK = is_gold_PK & result.is_counted_P[:, None]
    nll_P = torch.where(is_imitated_PK, -mean_logps(groups), 0.0).sum(dim=1)
    return replace(result, loss_P=result.loss_P + nll_weight * nll_P) if nll_weight else result


def chosen_nll(groups: ScoredGroups, *, normalisation: Literal["mean", "sum"] = "mean") -> ObjectiveResult:
    """Imitate the better response of every judged pair: the likelihood term that other objectives are given.

    Formula: mean over the pairs of −l̄(y_w) ("mean": per token of each response, each response alike) or of
    −log π(y_w) ("sum": a response weighs by its length).
    Gradient: ∂/∂log π(y_w) = −1/|y_w| ("mean") or −1 ("sum"); none on y_l.
    Optimum: "sum" reaches the distribution of the winners, "mean" one proportional to it over the length.
    Use: as a part of a sum: `dpo` + α `chosen_nll` is RPO of Pang et al. ("mean") or of Liu et al. ("sum").
    Limits: unlike `sft`, a response counts once per pair it wins, and the mean is over groups, not over tokens of the
    whole batch. Ties and single responses give nothing to imitate; an empty response costs nothing.
    Source: Pang et al. 2024, arXiv:2404.19733 (mean); Liu et al. 2024, arXiv:2405.16436 (sum).

    >>> import torch
    >>> from accord.groups import groups_from_pairs
    >>> pair = groups_from_pairs(torch.tensor([[-12.0, -15.0]]), num_tokens_P2=torch.tensor([[10, 12]]))
    >>> round(chosen_nll(pair).loss_P.item(), 6)  # 12/10
    1.2
    """
    pairs_PKK = judged_pairs(groups)
    nll_PK = _nll(groups, normalisation)
    return mean_over_pairs(groups, pairs_PKK, of_chosen(pairs_PKK, nll_PK), -nll_PK)


def _nll(groups: ScoredGroups, normalisation: Literal["mean", "sum"]) -> Float[Tensor, "P K"]:
    return -mean_logps(groups) if normalisation == "mean" else -sum_logps(groups)


ROWS: dict[str, ObjectiveSpec] = {
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
    "alphapo": ObjectiveSpec(
        fn=alphapo,
        family="pairwise",
        needs=frozenset({Need.PREFERENCES}),
        reference=False,
        proof="optimum",
        implicit_reward="β·(1 − exp(−α·log π(y|x)/|y|))/α",
        paper="Gupta et al. 2025, arXiv:2501.03884 (reconstruction)",
    ),
    "cpo": ObjectiveSpec(
        fn=cpo,
        family="pairwise",
        needs=frozenset({Need.PREFERENCES}),
        reference=False,
        proof="optimum",
        implicit_reward="β·log π(y|x)",
        paper="Xu et al. 2024, arXiv:2401.08417",
    ),
    "slic": ObjectiveSpec(
        fn=slic,
        family="pairwise",
        needs=frozenset({Need.PREFERENCES}),
        reference=False,
        proof="fixed point",
        implicit_reward="log π(y|x)",
        paper="Zhao et al. 2023, arXiv:2305.10425",
    ),
    "rrhf": ObjectiveSpec(
        fn=rrhf,
        family="pairwise",
        needs=frozenset({Need.PREFERENCES}),
        reference=False,
        proof="fixed point",
        implicit_reward="log π(y|x)/|y|",
        paper="Yuan et al. 2023, arXiv:2304.05302",
    ),
    "tpo": ObjectiveSpec(
        fn=tpo,
        family="pairwise",
        needs=frozenset({Need.PREFERENCES, Need.GOLD}),
        reference=False,
        proof="optimum",
        implicit_reward="β·log π(y|x), per token for normalisation=mean",
        paper="Saeidi et al. 2024, arXiv:2405.16681 (reconstruction)",
    ),
    "chosen_nll": ObjectiveSpec(
        fn=chosen_nll,
        family="likelihood",
        needs=frozenset({Need.PREFERENCES}),
        reference=False,
        proof="optimum",
        implicit_reward="log π(y|x)/|y|, log π(y|x) for normalisation=sum",
        paper="Pang et al. 2024, arXiv:2404.19733; Liu et al. 2024, arXiv:2405.16436",
    ),
}
