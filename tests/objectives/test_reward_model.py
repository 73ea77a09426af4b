"""Derived values, gradients and identities of the reward models' objectives.

One pair throughout, unless said: scores (1, −0.5), so their difference is 1.5. The list: scores (1, 0.2, −0.5) in the
order best to worst.
"""

import math
from dataclasses import replace

import pytest
import torch

from accord.groups import ScoredGroups, ScoredSteps
from accord.objectives import OBJECTIVES
from accord.objectives.reward_model import (
    bradley_terry,
    centred,
    k_wise,
    margin,
    orm,
    pair_probabilities,
    pairwise_preference,
    prm,
    rm_plackett_luce,
)

LIST = (1.0, 0.2, -0.5)
OF_PAIRS = ["bradley_terry", "k_wise", "rm_plackett_luce", "margin", "centred"]


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def softplus(z: float) -> float:
    return math.log1p(math.exp(z))


def group(scores=(1.0, -0.5), preferred: list[tuple[int, int]] | None = None, strength: float = 0.0) -> ScoredGroups:
    """One group of K responses, judged in this order unless `preferred` says which (better, worse) pairs were."""
    k = len(scores)
    preferred_PKK = torch.ones(1, k, k, dtype=torch.bool).triu(1)
    if preferred is not None:
        preferred_PKK = torch.zeros(1, k, k, dtype=torch.bool)
        for better, worse in preferred:
            preferred_PKK[0, better, worse] = True
    return ScoredGroups(
        policy_logps_PK=torch.zeros(1, k, dtype=torch.float64),
        num_tokens_PK=torch.full((1, k), 3),
        is_valid_PK=torch.ones(1, k, dtype=torch.bool),
        preferred_PKK=preferred_PKK,
        strength_PKK=strength * preferred_PKK.double(),
        score_PK=torch.tensor([scores], dtype=torch.float64, requires_grad=True),
    )


def labelled(scores, is_right: list[bool | None]) -> ScoredGroups:
    """One group whose responses were labelled right, wrong or (None) not at all."""
    return replace(
        group(scores),
        desirable_PK=torch.tensor([[label is True for label in is_right]]),
        is_labelled_PK=torch.tensor([[label is not None for label in is_right]]),
    )


def stepped(scores: list[list[float]], is_right: list[list[bool | None]]) -> ScoredGroups:
    """One group whose responses have S steps each, labelled right, wrong or not."""
    steps = ScoredSteps(
        score_PKS=torch.tensor([scores], dtype=torch.float64, requires_grad=True),
        is_right_PKS=torch.tensor([[[label is True for label in row] for row in is_right]], dtype=torch.bool),
        is_labelled_PKS=torch.tensor([[[label is not None for label in row] for row in is_right]], dtype=torch.bool),
    )
    return replace(group([0.0] * len(scores)), steps=steps)


def joint(first: float, second: float) -> ScoredGroups:
    """A pair whose joint model says `first` of (better, worse) and `second` of (worse, better)."""
    logit_PKK = torch.tensor([[[7.0, first], [second, -7.0]]], dtype=torch.float64, requires_grad=True)
    return replace(group(), pair_score_PKK=logit_PKK)


GOLDEN = [
    # row, scores, settings, value as derived, the same number as first computed elsewhere, gradient by score
    ("bradley_terry", (1.0, -0.5), {}, softplus(-1.5), 0.201413, (-0.182426, 0.182426)),
    ("k_wise", LIST, {}, (softplus(-0.8) + softplus(-1.5) + softplus(-0.7)) / 3, 0.325233, None),
    ("rm_plackett_luce", LIST, {}, math.log(1 + math.exp(-0.8) + math.exp(-1.5)) + softplus(-0.7), 0.917481, None),
    ("margin", (1.0, -0.5), {}, softplus(2 - 1.5), 0.974077, (-0.622459, 0.622459)),
    ("centred", (1.0, -0.5), {"centring_weight": 0.1}, softplus(-1.5) + 0.1 * 0.25, 0.226413, (-0.082426, 0.282426)),
]


@pytest.mark.parametrize(("name", "scores", "settings", "derived", "number", "slope"), GOLDEN)
def test_value_and_gradient(name, scores, settings, derived, number, slope):
    groups = group(scores, strength=2.0)
    loss = OBJECTIVES[name].fn(groups, **settings).loss_P.sum()
    assert loss.item() == pytest.approx(derived, abs=1e-12)
    assert loss.item() == pytest.approx(number, abs=1e-6)
    (gradient_PK,) = torch.autograd.grad(loss, groups.score_PK)
    if slope is not None:
        assert gradient_PK[0].tolist() == pytest.approx(slope, abs=1e-6)


def test_gradients_are_those_of_the_docstrings():
    a, b, c = LIST
    groups = group(LIST)
    (gradient_PK,) = torch.autograd.grad(k_wise(groups).loss_P.sum(), groups.score_PK)
    by_hand = [-sigmoid(b - a) - sigmoid(c - a), sigmoid(b - a) - sigmoid(c - b), sigmoid(c - a) + sigmoid(c - b)]
    assert gradient_PK[0].tolist() == pytest.approx([value / 3 for value in by_hand], abs=1e-12)
    groups = group(LIST)
    (gradient_PK,) = torch.autograd.grad(rm_plackett_luce(groups).loss_P.sum(), groups.score_PK)
    first, second = (torch.tensor(part).double().softmax(0).tolist() for part in ((a, b, c), (b, c)))
    by_hand = [first[0] - 1, first[1] + second[0] - 1, first[2] + second[1]]
    assert gradient_PK[0].tolist() == pytest.approx(by_hand, abs=1e-6)


@pytest.mark.parametrize("num_responses", [2, 3, 5])
def test_equal_scores_cost_log_two_per_pair_and_log_factorial_per_ranking(num_responses: int):
    groups = group([0.7] * num_responses)
    for fn in (bradley_terry, k_wise, margin):
        assert fn(groups).loss_P.item() == pytest.approx(math.log(2), abs=1e-12)
    assert rm_plackett_luce(groups).loss_P.item() == pytest.approx(math.log(math.factorial(num_responses)), abs=1e-12)
    assert centred(groups, centring_weight=0.01).loss_P.item() == pytest.approx(math.log(2) + 0.04 * 0.49, abs=1e-12)
    assert margin(group([0.7] * num_responses, strength=3.0), margin_scale=0.5).loss_P.item() == pytest.approx(
        softplus(1.5), abs=1e-12
    )


def test_two_responses_make_every_row_of_pairs_bradley_terry():
    expected = softplus(-1.5)
    for result in (
        bradley_terry(group(), weighting="pair"),
        k_wise(group()),
        rm_plackett_luce(group()),
        margin(group(strength=0.0)),
        margin(group(strength=3.0), margin_scale=0.0),
        centred(group(), centring_weight=0.0),
    ):
        assert result.loss_P.item() == pytest.approx(expected, abs=1e-12)


def test_a_constant_per_prompt_is_seen_by_the_centring_alone():
    groups = group(LIST, strength=1.0)
    shifted = replace(groups, score_PK=groups.score_PK + 2.5)
    for name in OF_PAIRS:
        change = (OBJECTIVES[name].fn(shifted).loss_P - OBJECTIVES[name].fn(groups).loss_P).item()
        sums = (LIST[0] + LIST[1], LIST[0] + LIST[2], LIST[1] + LIST[2])
        of_centring = 0.01 * sum((s + 5) ** 2 - s**2 for s in sums) / 3
        assert change == pytest.approx(of_centring if name == "centred" else 0.0, abs=1e-12), name


def test_pairs_counted_one_by_one_weigh_a_ranking_by_its_pairs():
    by_pair, by_group = bradley_terry(group(LIST), weighting="pair"), bradley_terry(group(LIST))
    assert by_pair.denominators().tolist() == [3.0]
    assert by_group.denominators().tolist() == [1.0]
    torch.testing.assert_close(by_pair.loss_P / 3, by_group.loss_P)


def test_a_tie_is_left_out_and_its_members_both_beat_the_rest():
    tied = group(LIST, preferred=[(0, 2), (1, 2)])
    pairs = softplus(-1.5) + softplus(-0.7)
    assert bradley_terry(tied).loss_P.item() == pytest.approx(pairs / 2, abs=1e-12)
    assert rm_plackett_luce(tied).loss_P.item() == pytest.approx(pairs, abs=1e-12)


@pytest.mark.parametrize("name", [*OF_PAIRS, "pairwise_preference"])
def test_ties_and_single_responses_are_not_counted(name: str):
    for groups in (group((1.0, -0.5), preferred=[]), group((1.0,))):
        k = groups.is_valid_PK.shape[1]
        result = OBJECTIVES[name].fn(replace(groups, pair_score_PKK=torch.ones(1, k, k)))
        assert (result.loss_P.tolist(), result.denominators().tolist()) == ([0.0], [0.0])


def test_centring_is_least_at_opposite_scores():
    p = 0.8
    half = 0.5 * math.log(p / (1 - p))
    groups = [group((half, -half)), group((half, -half), preferred=[(1, 0)])]
    losses = [centred(one, centring_weight=0.3).loss_P.sum() for one in groups]
    gradients = [torch.autograd.grad(loss, one.score_PK)[0] for loss, one in zip(losses, groups, strict=True)]
    assert (p * gradients[0] + (1 - p) * gradients[1]).abs().max().item() < 1e-12


# A joint model ------------------------------------------------------------------------------------------------------


def test_pairwise_preference_trains_both_orders():
    groups = joint(1.0, -0.5)
    loss = pairwise_preference(groups).loss_P.sum()
    assert loss.item() == pytest.approx(0.5 * (softplus(-1.0) + softplus(-0.5)), abs=1e-12)
    assert loss.item() == pytest.approx(0.393669, abs=1e-6)
    (gradient_PKK,) = torch.autograd.grad(loss, groups.pair_score_PKK)
    expected = [0.0, -0.5 * sigmoid(-1.0), 0.5 * sigmoid(-0.5), 0.0]
    assert gradient_PKK.flatten().tolist() == pytest.approx(expected, abs=1e-12)


def test_pair_probabilities_are_antisymmetric_and_one_half_against_itself():
    logit_PKK = 3 * torch.randn(4, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    is_valid_PK = torch.ones(4, 5, dtype=torch.bool)
    is_valid_PK[0, 3:] = False
    groups = ScoredGroups(
        policy_logps_PK=torch.zeros(4, 5), num_tokens_PK=torch.ones(4, 5).long(), is_valid_PK=is_valid_PK,
        pair_score_PKK=logit_PKK,
    )  # fmt: skip
    found_PKK = pair_probabilities(groups)
    torch.testing.assert_close(found_PKK + found_PKK.transpose(1, 2), torch.ones_like(found_PKK), rtol=0, atol=1e-15)
    assert found_PKK.diagonal(dim1=1, dim2=2).unique().tolist() == [0.5]
    assert found_PKK[0, 3:].unique().tolist() == [0.5]
    by_hand = (sigmoid(logit_PKK[1, 0, 2].item()) + 1 - sigmoid(logit_PKK[1, 2, 0].item())) / 2
    assert found_PKK[1, 0, 2].item() == pytest.approx(by_hand, abs=1e-12)


def test_what_a_joint_model_ranks_by_is_its_mean_win_rate():
    reward_PK = pairwise_preference(joint(1.0, -0.5)).implicit_reward_PK
    lead = (sigmoid(1.0) + 1 - sigmoid(-0.5)) / 2 - 0.5
    assert reward_PK[0].tolist() == pytest.approx([lead, -lead], abs=1e-12)


# Right or wrong -----------------------------------------------------------------------------------------------------


def test_outcomes_are_a_logistic_regression_over_labelled_responses():
    groups = labelled((1.0, -0.5, 9.0), [True, False, None])
    result = orm(groups)
    assert result.loss_P.item() == pytest.approx(softplus(-1.0) + softplus(-0.5), abs=1e-12)
    assert result.denominators().tolist() == [2.0]
    (gradient_PK,) = torch.autograd.grad(result.loss_P.sum(), groups.score_PK)
    assert gradient_PK[0].tolist() == pytest.approx([sigmoid(1.0) - 1, sigmoid(-0.5), 0.0], abs=1e-12)


def test_an_outcome_model_is_least_at_the_log_odds():
    """Three of four labels are right."""
    logit = math.log(0.75 / 0.25)
    groups = labelled((logit,) * 4, [True, True, True, False])
    result = orm(groups)
    assert (result.loss_P / result.denominators()).item() == pytest.approx(
        -0.75 * math.log(0.75) - 0.25 * math.log(0.25), abs=1e-12
    )
    (gradient_PK,) = torch.autograd.grad(result.loss_P.sum(), groups.score_PK)
    assert gradient_PK.sum().item() == pytest.approx(0.0, abs=1e-12)


def test_steps_count_one_by_one_and_a_response_is_as_good_as_its_weakest():
    groups = stepped([[1.0, 0.5, 9.0], [-2.0, 3.0, 0.0]], [[True, False, None], [True, None, None]])
    result = prm(groups)
    assert result.loss_P.item() == pytest.approx(softplus(-1.0) + softplus(0.5) + softplus(2.0), abs=1e-12)
    assert result.denominators().tolist() == [3.0]
    assert result.implicit_reward_PK.tolist() == [[0.5, -2.0]]
    (gradient_PKS,) = torch.autograd.grad(result.loss_P.sum(), groups.steps.score_PKS)
    expected = [sigmoid(1.0) - 1, sigmoid(0.5), 0.0, sigmoid(-2.0) - 1, 0.0, 0.0]
    assert gradient_PKS.flatten().tolist() == pytest.approx(expected, abs=1e-12)


def test_nothing_labelled_is_not_counted():
    for result in (
        orm(labelled((1.0, 2.0), [None, None])),
        prm(stepped([[1.0], [2.0]], [[None], [None]])),
        prm(stepped([[], []], [[], []])),
    ):
        assert (result.loss_P.tolist(), result.denominators().tolist()) == ([0.0], [0.0])
        assert result.implicit_reward_PK.isfinite().all()
