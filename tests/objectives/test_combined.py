"""Weighted sums of objectives: what they add up to, what they count, and what they carry."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from golden_pair import group, pair, slopes, softplus

from accord.groups import concatenate_groups
from accord.lab.row_checks import random_groups
from accord.objectives import OBJECTIVES, Need
from accord.objectives.combined import spec_of, weighted_sum
from accord.objectives.likelihood import sft
from accord.objectives.pairwise.logistic import dpo
from accord.objectives.pointwise import bco, npo


def test_value_and_gradient_are_the_weighted_ones():
    groups = pair()
    spec = weighted_sum({"dpo": (2.0, {"beta": 0.1}), "chosen_nll": (0.5, {})})
    loss_P = spec.fn(groups).loss_P
    assert loss_P.item() == pytest.approx(2 * softplus(-0.15) + 0.5 * 1.2, abs=1e-12)
    weight = 2 * 0.1 / (1 + math.exp(0.15))
    assert slopes(loss_P, groups) == pytest.approx([-weight - 0.5 / 10, weight], abs=1e-12)


@pytest.mark.parametrize(("mean", "row"), [("mean", "rpo_irpo"), ("sum", "rpo_reg")])
def test_dpo_and_the_likelihood_of_the_chosen_is_rpo_on_pairs_and_rankings(mean, row):
    spec = weighted_sum({"dpo": (1.0, {"beta": 0.1}), "chosen_nll": (0.3, {"normalisation": mean})})
    for groups in (pair(), group([(0, 1), (0, 2), (2, 1)], [-3.0, -5.0, -4.0], [-4.0, -4.5, -6.0])):
        expected = OBJECTIVES[row].fn(groups, beta=0.1, nll_weight=0.3)
        torch.testing.assert_close(spec.fn(groups).loss_P, expected.loss_P, rtol=0, atol=1e-12)


def test_a_part_is_its_own_mean_within_a_group():
    """`sft` alone weighs tokens: 3 groups of 10, 2 and 4 tokens. In a sum each group weighs one."""
    groups = random_groups({Need.PREFERENCES}, seed=1)
    alone = sft(groups)
    result = weighted_sum({"sft": (0.5, {})}).fn(groups)
    torch.testing.assert_close(result.loss_P, 0.5 * alone.loss_P / alone.denominators())
    assert result.denominators().tolist() == [1.0, 1.0, 1.0]


def test_a_group_counts_where_any_part_counts_it():
    """A tied group has no pair for `dpo`, but `sft` imitates both of its responses; a group of padding has neither."""
    tied, judged = group([], [-3.0, -8.0], [0.0, 0.0]), group([(0, 1)], [-3.0, -8.0], [0.0, 0.0])
    nobody = replace(tied, is_valid_PK=torch.zeros_like(tied.is_valid_PK))
    groups = concatenate_groups([tied, judged, nobody])
    result = weighted_sum({"dpo": (1.0, {"beta": 1.0}), "sft": (0.1, {})}).fn(groups)
    assert result.is_counted_P.tolist() == [True, True, False]
    assert result.denominators().tolist() == [1.0, 1.0, 0.0]
    assert result.loss_P.tolist() == pytest.approx([0.1 * 11 / 7, softplus(-5.0) + 0.1 * 1.0, 0.0], abs=1e-12)


def test_the_first_part_says_the_implicit_reward():
    for names, expected in ((("dpo", "sft"), [0.2, -0.1]), (("sft", "dpo"), [-1.2, -1.25])):
        spec = weighted_sum({name: (1.0, {"beta": 0.2} if name == "dpo" else {}) for name in names})
        assert spec.fn(pair()).implicit_reward_PK[0].tolist() == pytest.approx(expected)


def test_needs_are_united_and_those_of_settings_counted_in():
    spec = weighted_sum({"kto": (1.0, {}), "bco": (1.0, {"density_weights": True}), "simpo": (1.0, {})})
    assert spec.needs == {Need.LABELS, Need.MISMATCHED_KL, Need.PROMPT_EMBEDDINGS, Need.PREFERENCES}
    assert spec.reference
    assert not weighted_sum({"simpo": (1.0, {}), "sft": (1.0, {})}).reference
    assert weighted_sum({"dpo": (1.0, {}), "ipo": (1.0, {})}).is_difference_only
    assert not weighted_sum({"dpo": (1.0, {}), "sft": (1.0, {})}).is_difference_only


def test_the_initial_loss_is_promised_where_all_parts_count_the_same_groups():
    promised = weighted_sum({"dpo": (2.0, {}), "ipo": (0.1, {"tau": 0.5})}).initial_loss
    assert promised is not None
    assert promised() == pytest.approx(2 * math.log(2) + 0.1 * 1.0)
    for names in (("dpo", "sft"), ("kto", "npo"), ("dpo", "simpo")):
        unknown = weighted_sum(dict.fromkeys(names, (1.0, {}))).initial_loss
        assert unknown is not None
        assert unknown() is None


def test_states_of_parts_do_not_meet():
    groups = random_groups({Need.LABELS}, seed=4)
    spec = weighted_sum({"bco": (1.0, {"beta": 0.2}), "npo": (0.5, {})})
    alone = OBJECTIVES["bco"].state
    assert spec.state is not None
    assert alone is not None
    mine, its = spec.state.start(num_judges=1, num_strata=1), alone.start(num_judges=1, num_strata=1)
    for _ in range(2):
        result, expected = spec.fn(replace(groups, state=mine)), bco(replace(groups, state=its), beta=0.2)
        forgotten = npo(groups)
        torch.testing.assert_close(
            result.loss_P,
            expected.loss_P / expected.denominators() + 0.5 * forgotten.loss_P / forgotten.denominators(),
        )
        mine = spec.state.advance(mine, dict(result.state_sums))
        its = alone.advance(its, dict(expected.state_sums))
        torch.testing.assert_close(mine, {f"bco.{name}": value for name, value in its.items()})


def test_settings_of_a_run_make_the_same_row():
    settings = {"parts": {"dpo": {"weight": 0.5, "beta": 0.3}, "sft": {"weight": 0.2}}}
    by_settings, by_hand = spec_of("sum", settings), weighted_sum({"dpo": (0.5, {"beta": 0.3}), "sft": (0.2, {})})
    expected = 0.5 * dpo(pair(), beta=0.3).loss_P + 0.2 * 1.2
    for result in (by_settings.fn(pair()), by_settings.fn(pair(), **settings), by_hand.fn(pair())):
        torch.testing.assert_close(result.loss_P, expected)
    assert spec_of("bco", {"density_weights": True}).needs == {Need.LABELS, Need.PROMPT_EMBEDDINGS}


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({}, "without parts"),
        ({"dpoo": (1.0, {})}, "unknown part dpoo"),
        ({"dpo": (0.0, {})}, "above 0"),
        ({"dpo": (float("nan"), {})}, "above 0"),
        ({"dpo": (1.0, {}), "bradley_terry": (1.0, {})}, "reward model"),
    ],
)
def test_what_is_no_sum(parts, says):
    with pytest.raises(ValueError, match=says):
        weighted_sum(parts)
