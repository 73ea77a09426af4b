"""Objectives of reward models: the links of the preference losses on the score of a scalar head; no reference.

Axes: P prompts, K responses per prompt, S steps of a response. Notation in formulas: r(y) the model's score of a
response, y_w the better and y_l the worse response of a pair, σ the logistic function. Scores are logits: σ of a
difference is the probability that one response is preferred, and for `orm` and `prm` σ of a score that it is right.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from annotated_types import Ge
from jaxtyping import Float
from torch import Tensor

from accord.groups import ObjectiveResult, ScoredGroups
from accord.objectives._ops import (
    group_losses,
    judged_pairs,
    mean_over_pairs,
    pair_margins,
    plackett_luce_nll,
    soft_label_link,
    squared_link,
    sum_over_pairs,
    sum_over_responses,
)
from accord.objectives.spec import Need, ObjectiveSpec


def reward_scores(groups: ScoredGroups) -> Float[Tensor, "P K"]:
    """Return the model's score of each response; 0 in padding slots."""
    assert groups.score_PK is not None, "the objective's spec must declare that it needs scores"
    return torch.where(groups.is_valid_PK, groups.score_PK, 0.0)


# Scores of single responses, judged in pairs and rankings -------------------------------------------------------------


def bradley_terry(groups: ScoredGroups, *, weighting: Literal["group", "pair"] = "group") -> ObjectiveResult:
    """Fit scores to preferences by logistic regression on their differences (Bradley–Terry reward model).

    Formula: −log σ(r(y_w) − r(y_l)); the mean over the pairs of a group ("group"), or every pair of the data counted
    once ("pair": a prompt with a ranking of 7 then weighs 21 times one with a single comparison).
    Gradient: ∂/∂r(y_w) = −σ(r(y_l) − r(y_w)), the opposite for y_l. Loss ln 2 at equal scores.
    Optimum: r(y_w) − r(y_l) = logit p where raters prefer y_w with probability p.
    Use: the usual reward model, for best-of-N, for reinforcement learning or to rate unjudged responses.
    Limits: scores are known up to a constant per prompt only (`centred` fixes it); unanimous pairs have no finite
    optimum; ties, single responses and unjudged groups are not counted; an empty response is scored at the prompt's
    last token.
    Source: Bradley and Terry 1952; Stiennon et al. 2020, arXiv:2009.01325; Ouyang et al. 2022, arXiv:2203.02155.

    >>> import torch
    >>> from dataclasses import replace
    >>> from accord.groups import groups_from_pairs
    >>> pair = replace(groups_from_pairs(torch.zeros(1, 2)), score_PK=torch.tensor([[1.0, -0.5]]))
    >>> round(bradley_terry(pair).loss_P.item(), 6)  # log(1 + e^−1.5)
    0.201413
    """
    pairs_PKK, score_PK = judged_pairs(groups), reward_scores(groups)
    loss_PKK = soft_label_link(pair_margins(pairs_PKK, score_PK))
    reduce = mean_over_pairs if weighting == "group" else sum_over_pairs
    return reduce(groups, pairs_PKK, loss_PKK, score_PK)


def k_wise(groups: ScoredGroups) -> ObjectiveResult:
    """Fit scores to all pairs of a ranking at once, each prompt counted once (the reward model of InstructGPT).

    Formula: 1/C(K, 2) Σ_{i better than j} −log σ(r(y_i) − r(y_j)).
    Gradient: ∂/∂r(y_i) = 1/C(K, 2) [Σ_{j better} σ(r(y_i) − r(y_j)) − Σ_{j worse} σ(r(y_j) − r(y_i))].
    Loss ln 2 at equal scores, for every K.
    Optimum: r(y_i) − r(y_j) = logit p_ij where those probabilities agree with one scale, as Bradley–Terry raters' do.
    Use: rankings of 4 to 9 responses; all of them are scored in one pass and take one step together, while pairs
    spread over batches would use each response K − 1 times.
    Limits: the same loss as `bradley_terry` with weighting=group, under the name it is known by; pairs are treated as
    independent, which the places of a ranking are not (`rm_plackett_luce` is the likelihood of a ranking). Ties are
    left out and the mean is over the pairs that remain; a single response is not counted.
    Source: Ouyang et al. 2022, arXiv:2203.02155, eq. 1.

    >>> import torch
    >>> from accord.groups import ScoredGroups
    >>> ranking = torch.ones(3, 3, dtype=torch.bool).triu(1)[None]
    >>> zeros_13, valid_13 = torch.zeros(1, 3), torch.ones(1, 3, dtype=torch.bool)
    >>> groups = ScoredGroups(
    ...     policy_logps_PK=zeros_13, num_tokens_PK=valid_13.long(), is_valid_PK=valid_13, preferred_PKK=ranking,
    ...     score_PK=torch.tensor([[1.0, 0.2, -0.5]]),
    ... )
    >>> round(k_wise(groups).loss_P.item(), 6)  # mean of log(1 + e^−0.8), log(1 + e^−1.5), log(1 + e^−0.7)
    0.325233
    """
    return bradley_terry(groups, weighting="group")


def rm_plackett_luce(groups: ScoredGroups) -> ObjectiveResult:
    """Fit scores to whole rankings, each the successive choice of the best response left (Plackett–Luce reward model).

    Formula: Σ_k [log Σ_{j ≥ k} e^{r(y_τ(j))} − r(y_τ(k))], τ the order from best to worst.
    Gradient: ∂/∂r(y) = Σ over the choices in which y was left, of softmax(r)_y, less 1 if y was ever chosen from
    others. Loss log K! at equal scores of a full ranking, ln 2 for a pair.
    Optimum: the scores of Plackett–Luce raters, up to a constant per prompt.
    Use: full rankings by one rater; each place counts as the one choice it was.
    Limits: long rankings weigh more than short ones (a group's loss is a sum over its places). With ties or partial
    orders every response is set against those judged worse than it, and tied ones not against each other; a cycle of
    comparisons is no ranking, but has a value all the same. One pair: `bradley_terry`. A single response is not
    counted.
    Source: Plackett 1975; Luce 1959; Rafailov et al. 2023, arXiv:2305.18290, appendix.

    >>> import torch
    >>> from accord.groups import ScoredGroups
    >>> ranking = torch.ones(3, 3, dtype=torch.bool).triu(1)[None]
    >>> zeros_13, valid_13 = torch.zeros(1, 3), torch.ones(1, 3, dtype=torch.bool)
    >>> groups = ScoredGroups(
    ...     policy_logps_PK=zeros_13, num_tokens_PK=valid_13.long(), is_valid_PK=valid_13, preferred_PKK=ranking,
    ...     score_PK=torch.tensor([[1.0, 0.2, -0.5]]),
    ... )
    >>> round(rm_plackett_luce(groups).loss_P.item(), 6)  # log(1 + e^−0.8 + e^−1.5) + log(1 + e^−0.7)
    0.917481
    """
    pairs_PKK, score_PK = judged_pairs(groups), reward_scores(groups)
    return group_losses(groups, pairs_PKK.any(dim=(1, 2)), plackett_luce_nll(pairs_PKK, score_PK), score_PK)


def margin(groups: ScoredGroups, *, margin_scale: Annotated[float, Ge(0)] = 1.0) -> ObjectiveResult:
    """Ask for a larger difference of scores where the better response was much better (Llama 2's reward model).

    Formula: −log σ(r(y_w) − r(y_l) − c·m), m = how much better the rater said y_w is, c = `margin_scale`. For
    strengths 3, 2, 1, 0 ("significantly better" … "negligibly"), c = 1 is the large margin and c = 1/3 the small one.
    Gradient: ∂/∂r(y_w) = −σ(r(y_l) − r(y_w) + c·m), the opposite for y_l. Loss log(1 + e^(c·m)) at equal scores.
    Optimum: raters who disagree show both orders, and both carry their margin: with z the difference of scores,
    p σ(c·m − z) = (1 − p) σ(c·m + z); z = logit p for m = 0, more extreme for m > 0.
    Use: comparisons with a strength (a Likert answer, a `margin` column, a difference of ratings).
    Limits: margins are on the scale of the scores, so ratings of 0 to 100 want a small c; large ones split the scores
    into two heaps. m = 0 where the rater did not say: `bradley_terry`. A negative strength lowers the bar. Ties,
    single responses and unjudged groups are not counted.
    Source: Touvron et al. 2023, arXiv:2307.09288, eq. 2; the numbers of the margins are a reconstruction.

    >>> import torch
    >>> from dataclasses import replace
    >>> from accord.groups import groups_from_pairs
    >>> pair = replace(groups_from_pairs(torch.zeros(1, 2)), score_PK=torch.tensor([[1.0, -0.5]]))
    >>> pair = replace(pair, strength_PKK=torch.tensor([[[0.0, 2.0], [0.0, 0.0]]]))
    >>> round(margin(pair).loss_P.item(), 6)  # log(1 + e^(2 − 1.5))
    0.974077
    """
    assert groups.strength_PKK is not None, "the spec declares that strengths are needed"
    pairs_PKK, score_PK = judged_pairs(groups), reward_scores(groups)
    strength_PKK = torch.where(pairs_PKK, groups.strength_PKK, 0.0)
    loss_PKK = soft_label_link(pair_margins(pairs_PKK, score_PK) - margin_scale * strength_PKK)
    return mean_over_pairs(groups, pairs_PKK, loss_PKK, score_PK)


def centred(groups: ScoredGroups, *, centring_weight: Annotated[float, Ge(0)] = 0.01) -> ObjectiveResult:
    """Fit scores to preferences and pull the sum of each pair to 0, which fixes what differences leave open.

    Formula: −log σ(r(y_w) − r(y_l)) + η (r(y_w) + r(y_l))², η = `centring_weight`.
    Gradient: ∂/∂r(y_w) = −σ(r(y_l) − r(y_w)) + 2η (r(y_w) + r(y_l)), ∂/∂r(y_l) = +σ(r(y_l) − r(y_w)) + 2η (…). Loss
    ln 2 + 4ηr² at equal scores r.
    Optimum: r(y_w) = −r(y_l) = logit(p)/2 where raters prefer y_w with probability p, for every η > 0.
    Use: scores that are to be compared across prompts, averaged, or used as they are in reinforcement learning.
    Limits: in a group of more than two the sums cannot all be 0, and η then trades the centre against the differences.
    η = 0: `bradley_terry`. Ties, single responses and unjudged groups are not counted.
    Source: Eisenstein et al. 2023, arXiv:2312.09244; the default is the one other libraries recommend.

    >>> import torch
    >>> from dataclasses import replace
    >>> from accord.groups import groups_from_pairs
    >>> pair = replace(groups_from_pairs(torch.zeros(1, 2)), score_PK=torch.tensor([[1.0, -0.5]]))
    >>> round(centred(pair, centring_weight=0.1).loss_P.item(), 6)  # log(1 + e^−1.5) + 0.1 × 0.5²
    0.226413
    """
    pairs_PKK, score_PK = judged_pairs(groups), reward_scores(groups)
    total_PKK = torch.where(pairs_PKK, score_PK[:, :, None] + score_PK[:, None, :], 0.0)
    loss_PKK = soft_label_link(pair_margins(pairs_PKK, score_PK)) + centring_weight * squared_link(total_PKK, 0.0)
    return mean_over_pairs(groups, pairs_PKK, loss_PKK, score_PK)


# A joint score of two responses --------------------------------------------------------------------------------------


def pair_probabilities(groups: ScoredGroups) -> Float[Tensor, "P K K"]:
    """Return P(i ≻ j) = ½ [σ(h(i, j)) + 1 − σ(h(j, i))] of a joint model: P(i ≻ j) + P(j ≻ i) = 1, P(i ≻ i) = ½.

    ½ where one of the two is padding.
    """
    assert groups.pair_score_PKK is not None, "the objective's spec must declare that it needs scores of pairs"
    valid_PK = groups.is_valid_PK
    logit_PKK = torch.where(valid_PK[:, :, None] & valid_PK[:, None, :], groups.pair_score_PKK, 0.0)
    first_PKK = torch.sigmoid(logit_PKK)
    return 0.5 + 0.5 * (first_PKK - first_PKK.transpose(1, 2))  # in this form exactly ½ on the diagonal


def pairwise_preference(groups: ScoredGroups) -> ObjectiveResult:
    """Predict from both responses together which is preferred, shown in either order (pairwise preference model).

    Formula: −½ [log σ(h(y_w, y_l)) + log σ(−h(y_l, y_w))], h(a, b) the logit that a is preferred, a shown first.
    Gradient: ∂/∂h(y_w, y_l) = −½ σ(−h(y_w, y_l)), ∂/∂h(y_l, y_w) = +½ σ(h(y_l, y_w)). Loss ln 2 at logits of 0.
    Optimum: h(y_w, y_l) = −h(y_l, y_w) = logit p where raters prefer y_w with probability p, for any p at all:
    preferences need not be transitive.
    Use: win rates for `sppo` and soft labels, judging two answers side by side, raters without a common scale.
    Limits: K(K − 1) sequences of two responses each, so for two or a few; no scalar reward: what is reported as one is
    the mean of P(i ≻ j) − ½ over the group's other responses, P antisymmetrised by averaging both orders (so that
    P(y ≻ y) = ½). Ties, single responses and unjudged groups are not counted.
    Source: Jiang, Ren and Lin 2023, arXiv:2306.02561; both orders and the averaging are a reconstruction.

    >>> import torch
    >>> from dataclasses import replace
    >>> from accord.groups import groups_from_pairs
    >>> pair = replace(groups_from_pairs(torch.zeros(1, 2)), pair_score_PKK=torch.tensor([[[0.0, 1.0], [-0.5, 0.0]]]))
    >>> round(pairwise_preference(pair).loss_P.item(), 6)  # ½ [log(1 + e^−1) + log(1 + e^−0.5)]
    0.393669
    >>> round(pair_probabilities(pair)[0, 0, 1].item(), 6)  # ½ [0.731059 + 1 − 0.377541]
    0.676759
    """
    assert groups.pair_score_PKK is not None, "the spec declares that scores of pairs are needed"
    pairs_PKK, valid_PK = judged_pairs(groups), groups.is_valid_PK
    shown_PKK = torch.where(pairs_PKK, groups.pair_score_PKK, 0.0)
    swapped_PKK = torch.where(pairs_PKK, groups.pair_score_PKK.transpose(1, 2), 0.0)
    loss_PKK = 0.5 * (soft_label_link(shown_PKK) + soft_label_link(-swapped_PKK))
    num_others_P1 = (valid_PK.sum(dim=1, keepdim=True) - 1).clamp(min=1)
    is_pair_PKK = valid_PK[:, :, None] & valid_PK[:, None, :]
    lead_PKK = torch.where(is_pair_PKK, pair_probabilities(groups) - 0.5, 0.0)  # 0 on the diagonal
    return mean_over_pairs(groups, pairs_PKK, loss_PKK, lead_PKK.sum(dim=2) / num_others_P1)


# Right or wrong ------------------------------------------------------------------------------------------------------


def orm(groups: ScoredGroups) -> ObjectiveResult:
    """Predict from the whole response whether it is right (outcome reward model).

    Formula: −log σ(r(y)) for a response labelled desirable or passed, −log σ(−r(y)) otherwise.
    Gradient: ∂/∂r(y) = σ(r(y)) − 1 or σ(r(y)). Loss ln 2 at r = 0.
    Optimum: r(y) = logit p where y is labelled right with probability p.
    Use: answers checked by a verifier, or thumbs up and down; the score is a calibrated logit, comparable over prompts.
    Limits: every labelled response counts once, however many a prompt has; unlabelled ones and unknown verdicts do not.
    Without labels those of pairs stand in (the better is "right"), which is calibrated to nothing.
    Source: Cobbe et al. 2021, arXiv:2110.14168; Lightman et al. 2023, arXiv:2305.20050 (reconstruction).

    >>> import torch
    >>> from dataclasses import replace
    >>> from accord.groups import groups_from_pairs
    >>> pair = replace(groups_from_pairs(torch.zeros(1, 2)), score_PK=torch.tensor([[1.0, -0.5]]))
    >>> label_12 = torch.tensor([[True, False]])
    >>> round(orm(replace(pair, desirable_PK=label_12, is_labelled_PK=~label_12 | label_12)).loss_P.item(), 6)
    0.787339
    """  # the sum over two responses: log(1 + e^−1) + log(1 + e^−0.5)
    assert groups.desirable_PK is not None, "the spec declares that labels are needed"
    assert groups.is_labelled_PK is not None, "labels say where they were given"
    score_PK = reward_scores(groups)
    is_used_PK = groups.is_labelled_PK & groups.is_valid_PK
    loss_PK = _right_or_wrong(score_PK, groups.desirable_PK)
    return sum_over_responses(groups, is_used_PK, loss_PK, torch.ones_like(loss_PK), score_PK)


def prm(groups: ScoredGroups) -> ObjectiveResult:
    """Predict at the end of each step of a response whether that step is right (process reward model).

    Formula: Σ over labelled steps of −log σ(r_s) for a right step, −log σ(−r_s) for a wrong one; r_s the score at the
    step's last token.
    Gradient: ∂/∂r_s = σ(r_s) − 1 or σ(r_s). Loss ln 2 per step at r = 0.
    Optimum: r_s = logit p where the step is labelled right with probability p.
    Use: solutions whose steps were judged one by one; finds where a solution goes wrong, and rates unfinished ones.
    Limits: every labelled step counts once, so long solutions weigh more; unlabelled steps, and those cut off with the
    end of a response, do not count, nor does a response without labelled steps. Reported as the reward of a response is
    the smallest score of its labelled steps (a chain is as good as its weakest link), 0 where there is none.
    Source: Lightman et al. 2023, arXiv:2305.20050; Wang et al. 2023 (Math-Shepherd), arXiv:2312.08935 (reconstruction).

    >>> import torch
    >>> from dataclasses import replace
    >>> from accord.groups import ScoredSteps, groups_from_pairs
    >>> one = groups_from_pairs(torch.zeros(1, 2))
    >>> steps = ScoredSteps(
    ...     score_PKS=torch.tensor([[[1.0, 0.5], [0.0, 0.0]]]),
    ...     is_right_PKS=torch.tensor([[[True, False], [False, False]]]),
    ...     is_labelled_PKS=torch.tensor([[[True, True], [False, False]]]),
    ... )
    >>> round(prm(replace(one, steps=steps)).loss_P.item(), 6)  # log(1 + e^−1) + log(1 + e^0.5)
    1.287339
    """
    assert groups.steps is not None, "the spec declares that scores and labels of steps are needed"
    steps = groups.steps
    is_used_PKS = steps.is_labelled_PKS & groups.is_valid_PK[:, :, None]
    score_PKS = torch.where(is_used_PKS, steps.score_PKS, 0.0)
    loss_PKS = torch.where(is_used_PKS, _right_or_wrong(score_PKS, steps.is_right_PKS), 0.0)
    num_steps_PK = is_used_PKS.sum(dim=2)
    weakest_PK = (
        torch.where(is_used_PKS, score_PKS, torch.inf).amin(dim=2) if score_PKS.shape[2] else num_steps_PK * 0.0
    )
    reward_PK = torch.where(num_steps_PK > 0, weakest_PK, 0.0)
    weight_PK = num_steps_PK.to(torch.promote_types(score_PKS.dtype, torch.float32))
    return sum_over_responses(groups, num_steps_PK > 0, loss_PKS.sum(dim=2), weight_PK, reward_PK)


def _right_or_wrong(score: Float[Tensor, "*shape"], is_right: Tensor) -> Float[Tensor, "*shape"]:
    return soft_label_link(torch.where(is_right, score, -score))


def _row(fn, needs: set[Need], paper: str, **changes) -> ObjectiveSpec:
    facts = {"initial_loss": lambda **_: math.log(2.0), "implicit_reward": "r(y)"} | changes
    return ObjectiveSpec(
        fn=fn, family="reward_model", needs=frozenset(needs), reference=False, proof="optimum", paper=paper, **facts
    )


_PAIRS = {Need.PREFERENCES, Need.SCORES}
ROWS: dict[str, ObjectiveSpec] = {
    "bradley_terry": _row(bradley_terry, _PAIRS, "Stiennon et al. 2020, arXiv:2009.01325", is_difference_only=True),
    "k_wise": _row(k_wise, _PAIRS, "Ouyang et al. 2022, arXiv:2203.02155, eq. 1", is_difference_only=True),
    "rm_plackett_luce": _row(
        rm_plackett_luce,
        _PAIRS,
        "Plackett 1975; Rafailov et al. 2023, arXiv:2305.18290, appendix",
        is_difference_only=True,
        initial_loss=None,  # log K! depends on the data
    ),
    "margin": _row(
        margin,
        _PAIRS | {Need.STRENGTHS},
        "Touvron et al. 2023, arXiv:2307.09288, eq. 2",
        is_difference_only=True,
        initial_loss=None,  # log(1 + e^m) depends on the data
    ),
    "centred": _row(centred, _PAIRS, "Eisenstein et al. 2023, arXiv:2312.09244"),
    "pairwise_preference": _row(
        pairwise_preference,
        {Need.PREFERENCES, Need.PAIR_SCORES},
        "Jiang et al. 2023, arXiv:2306.02561 (reconstruction)",
        implicit_reward="mean over the others of P(y ≻ y′) − ½",
    ),
    "orm": _row(orm, {Need.LABELS, Need.SCORES}, "Cobbe et al. 2021, arXiv:2110.14168 (reconstruction)"),
    "prm": _row(
        prm,
        {Need.STEP_LABELS, Need.STEP_SCORES},
        "Lightman et al. 2023, arXiv:2305.20050 (reconstruction)",
        implicit_reward="smallest r_s of the labelled steps",
    ),
}
