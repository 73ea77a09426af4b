"""Derived values, gradients and identities of pairwise objectives with a logistic link, on the pair of `golden_pair`.

u = (1, −0.5), so the difference of log-ratios is D = 1.5, per token 1/10 + 0.5/12.
"""

import math
from dataclasses import replace

import pytest
import torch
from golden_pair import group, pair, sigmoid, slopes, softplus

from accord.objectives import OBJECTIVES
from accord.objectives.pairwise.imitation import dpop, rpo_irpo, rpo_reg
from accord.objectives.pairwise.logistic import (
    discopop,
    dpo,
    dpo_flip_robust,
    dpo_length_reg,
    gamma_dpo,
    ln_dpo,
    odpo,
)

D = 1.5
D_MEAN = 1 / 10 + 0.5 / 12
NAMES = [
    "dpo", "dpo_flip_robust", "ln_dpo", "gamma_dpo", "dpo_length_reg", "odpo", "discopop",
    "dpop", "rpo_irpo", "rpo_reg",
]  # fmt: skip
ROBUST_LABEL = 0.9 / 0.8  # (1 − ε)/(1 − 2ε) at ε = 0.1


def strong(strength: float, **shape):
    """The golden pair whose winner was judged better by so much."""
    groups = pair(**shape)
    return replace(groups, strength_PKK=torch.tensor([[[0.0, strength], [0.0, 0.0]]], dtype=torch.float64))


def with_strengths(groups):
    """The same groups; every pair has strength 1, which only some rows read."""
    return replace(groups, strength_PKK=groups.preferred_PKK.double())


def discopop_by_hand(z: float, tau: float) -> float:
    q = sigmoid(z / tau)
    return (1 - q) * softplus(-z) + q * math.exp(-z)


GOLDEN = [
    # name, settings, value as derived, the same number as first computed elsewhere, d/dlog π(y_w), d/dlog π(y_l)
    ("dpo", {"beta": 0.1}, softplus(-0.1 * D), 0.620957, -0.046257, 0.046257),
    ("dpo", {"beta": 0.1, "label_smoothing": 0.1}, softplus(-0.1 * D) + 0.1 * 0.1 * D, 0.635957, -0.036257, 0.036257),
    ("dpo_flip_robust", {"beta": 0.1, "flip_rate": 0.1}, softplus(-0.1 * D) - 0.1 / 0.8 * 0.1 * D, 0.602207,
     -0.058757, 0.058757),
    ("ln_dpo", {"beta": 5.0}, softplus(-5 * D_MEAN), 0.400429, -0.164984, 0.137486),
    ("gamma_dpo", {"beta": 0.1, "gamma": 0.5}, softplus(-0.1 * (3 - 0.5 * 1.5)), 0.586962,
     -0.1 * sigmoid(-0.225), 0.1 * sigmoid(-0.225)),
    ("dpo_length_reg", {"beta": 0.1, "alpha": 0.01}, softplus(-0.1 * D + 0.01 * 2), 0.630258, -0.046755, 0.046755),
    ("dpop", {"beta": 0.3, "penalty": 50.0}, softplus(-0.3 * D), 0.493249,
     -0.3 * sigmoid(-0.45), 0.3 * sigmoid(-0.45)),
    ("rpo_irpo", {"beta": 0.1, "nll_weight": 1.0}, softplus(-0.1 * D) + 12 / 10, 1.820957, -0.046257 - 0.1, 0.046257),
    ("rpo_reg", {"beta": 0.01, "nll_weight": 0.005}, softplus(-0.01 * D) + 0.005 * 12, 0.745675,
     -0.01 * sigmoid(-0.015) - 0.005, 0.01 * sigmoid(-0.015)),
    ("rpo_reg", {"beta": 0.1, "nll_weight": 1.0, "normalisation": "mean"}, softplus(-0.1 * D) + 12 / 10, 1.820957,
     -0.046257 - 0.1, 0.046257),
    ("discopop", {"beta": 0.1, "tau": 0.05}, discopop_by_hand(0.15, 0.05), 0.849338, -0.062520, 0.062520),
]  # fmt: skip


@pytest.mark.parametrize(("name", "settings", "derived", "number", "slope_w", "slope_l"), GOLDEN)
def test_value_and_gradient_of_one_pair(name, settings, derived, number, slope_w, slope_l):
    groups = pair()
    loss_P = OBJECTIVES[name].fn(groups, **settings).loss_P
    assert loss_P.item() == pytest.approx(derived, abs=1e-12)
    assert loss_P.item() == pytest.approx(number, abs=1e-6)
    assert slopes(loss_P, groups) == pytest.approx([slope_w, slope_l], abs=1e-6)


def test_gradients_are_the_published_weights():
    """−∂/∂log π(y_w): β(p − σ(z)) of the logistic family, with what each adds or divides by."""
    q = sigmoid(0.15 / 0.05)
    blend = (1 - q) * sigmoid(-0.15) + q * math.exp(-0.15)
    expected = {
        ("dpo", 0.1): 0.1 * sigmoid(-0.15),
        ("dpo_flip_robust", 0.1): 0.1 * (ROBUST_LABEL - sigmoid(0.15)),
        ("ln_dpo", 5.0): 5 * sigmoid(-5 * D_MEAN) / 10,
        ("gamma_dpo", 0.1): 0.1 * sigmoid(-0.225),
        ("dpo_length_reg", 0.1): 0.1 * sigmoid(-0.15 + 0.02),
        ("rpo_irpo", 0.1): 0.1 * sigmoid(-0.15) + 1 / 10,
        ("rpo_reg", 0.1): 0.1 * sigmoid(-0.15) + 0.005,
        ("discopop", 0.1): 0.1 * (blend + q * (1 - q) / 0.05 * (softplus(-0.15) - math.exp(-0.15))),
    }
    for (name, beta), weight in expected.items():
        groups = pair()
        assert -slopes(OBJECTIVES[name].fn(groups, beta=beta).loss_P, groups)[0] == pytest.approx(weight, abs=1e-12), (
            name
        )


@pytest.mark.parametrize("name", NAMES)
def test_a_group_counts_once_and_is_the_mean_over_its_pairs(name):
    policy, reference = [-3.0, -5.0, -4.0, -8.0], [-4.0, -4.5, -6.0, -7.0]
    pairs = [(0, 1), (0, 2), (2, 1), (0, 3)]
    whole = OBJECTIVES[name].fn(with_strengths(group(pairs, policy, reference)))
    single = [OBJECTIVES[name].fn(with_strengths(group([one], policy, reference))).loss_P for one in pairs]
    torch.testing.assert_close(whole.loss_P, torch.stack(single).mean(dim=0))
    assert whole.denominators().tolist() == [1.0]


@pytest.mark.parametrize("name", NAMES)
def test_ties_and_single_responses_are_not_counted(name):
    for groups in (group([], [-3.0, -5.0]), group([], [-3.0])):
        result = OBJECTIVES[name].fn(with_strengths(groups))
        assert (result.loss_P.tolist(), result.denominators().tolist()) == ([0.0], [0.0])


def test_implicit_rewards_are_what_each_objective_ranks_by():
    expected = {
        "dpo": [0.1, -0.05],
        "dpo_flip_robust": [0.1, -0.05],
        "ln_dpo": [5 / 10, -5 * 0.5 / 12],
        "gamma_dpo": [0.1 * (-12 + 6.5), 0.1 * (-15 + 7.25)],
        "dpo_length_reg": [0.1 + 0.01 * 10, -0.05 + 0.01 * 12],
        "odpo": [0.1, -0.05],
        "discopop": [0.05, -0.025],
        "dpop": [0.3, -0.15],
        "rpo_irpo": [0.1, -0.05],
        "rpo_reg": [0.01, -0.005],
    }
    assert list(expected) == NAMES
    for name, rewards in expected.items():
        reward_PK = OBJECTIVES[name].fn(strong(1.0)).implicit_reward_PK
        assert reward_PK[0].tolist() == pytest.approx(rewards, abs=1e-12), name
        assert not reward_PK.requires_grad


# dpo, smoothed and robust to flips -----------------------------------------------------------------------------------


def test_label_smoothing_adds_a_linear_term_and_is_even_at_one_half():
    plain, smoothed = dpo(pair()).loss_P, dpo(pair(), label_smoothing=0.3).loss_P
    assert (smoothed - plain).item() == pytest.approx(0.3 * 0.1 * D, abs=1e-12)
    swapped = pair(policy=(-15.0, -12.0), reference=(-14.5, -13.0))
    torch.testing.assert_close(dpo(pair(), label_smoothing=0.5).loss_P, dpo(swapped, label_smoothing=0.5).loss_P)
    assert dpo(swapped).loss_P.item() == pytest.approx(softplus(0.1 * D), abs=1e-12)


def test_smoothed_dpo_is_least_at_the_logit_of_the_smoothed_label():
    groups = pair(policy=(math.log(0.9 / 0.1) / 0.5, 0.0), reference=(0.0, 0.0))
    loss_P = dpo(groups, beta=0.5, label_smoothing=0.1).loss_P
    assert loss_P.item() == pytest.approx(-0.9 * math.log(0.9) - 0.1 * math.log(0.1), abs=1e-12)
    assert slopes(loss_P, groups) == pytest.approx([0.0, 0.0], abs=1e-12)


def test_raters_who_disagree_make_the_loss_symmetric():
    both = dpo(group([(0, 1), (1, 0)], [-3.0, -5.0])).loss_P
    torch.testing.assert_close(both, dpo(group([(0, 1)], [-3.0, -5.0]), label_smoothing=0.5).loss_P)


@pytest.mark.parametrize("z", [-30.0, -2.0, 0.0, 0.7, 30.0])
def test_the_loss_robust_to_flips_is_unbiased_and_unbounded_below(z):
    epsilon = 0.2
    kept, flipped = (
        dpo_flip_robust(pair(policy=(sign * z, 0.0), reference=(0.0, 0.0)), beta=1.0, flip_rate=epsilon).loss_P.item()
        for sign in (1, -1)
    )
    assert (1 - epsilon) * kept + epsilon * flipped == pytest.approx(softplus(-z), abs=1e-12)
    assert kept == pytest.approx(softplus(-z) - epsilon / (1 - 2 * epsilon) * z, abs=1e-12)


@pytest.mark.parametrize(
    "row_like_dpo",
    [
        lambda groups: dpo_flip_robust(groups, beta=0.3, flip_rate=0.0),
        lambda groups: gamma_dpo(groups, beta=0.3, gamma=1.0),
        lambda groups: dpo_length_reg(groups, beta=0.3, alpha=0.0),
        lambda groups: odpo(with_strengths(groups), beta=0.3, offset_weight=0.0),
        lambda groups: dpop(groups, beta=0.3, penalty=0.0),
        lambda groups: rpo_irpo(groups, beta=0.3, nll_weight=0.0),
        lambda groups: rpo_reg(groups, beta=0.3, nll_weight=0.0),
    ],
    ids=["flip_rate", "gamma", "alpha", "offset_weight", "penalty", "nll_weight", "nll_weight of rpo_reg"],
)
def test_each_variant_is_dpo_where_its_own_setting_is_neutral(row_like_dpo):
    groups = group([(0, 1), (2, 1), (0, 2)], [-3.0, -5.0, -4.0], [-4.0, -4.5, -2.0])
    torch.testing.assert_close(row_like_dpo(groups).loss_P, dpo(groups, beta=0.3).loss_P, rtol=0, atol=1e-12)


# Scores and offsets --------------------------------------------------------------------------------------------------


def test_length_normalised_dpo_at_equal_lengths_is_dpo_with_beta_over_length():
    groups = pair(lengths=(8, 8))
    torch.testing.assert_close(ln_dpo(groups, beta=2.0).loss_P, dpo(groups, beta=2.0 / 8).loss_P, rtol=0, atol=1e-12)


def test_an_empty_response_has_mean_log_ratio_zero():
    groups = pair(policy=(-12.0, 0.0), reference=(-13.0, 0.0), lengths=(10, 0))
    assert ln_dpo(groups, beta=5.0).loss_P.item() == pytest.approx(softplus(-5 / 10), abs=1e-12)
    assert dpo_length_reg(groups, alpha=0.01).loss_P.item() == pytest.approx(softplus(-0.1 - 0.01 * 10), abs=1e-12)
    empty_winner = pair(policy=(0.0, -15.0), reference=(0.0, -14.5), lengths=(0, 12))
    assert rpo_irpo(empty_winner).loss_P.item() == pytest.approx(softplus(-0.1 * 0.5), abs=1e-12)


def test_without_its_reference_gamma_dpo_ranks_by_the_policy_alone():
    assert gamma_dpo(pair(), beta=0.1, gamma=0.0).loss_P.item() == pytest.approx(softplus(-0.1 * 3), abs=1e-12)


def test_a_longer_winner_pulls_less_and_a_longer_loser_more():
    weights = []
    for lengths in ((12, 10), (11, 11), (10, 12)):
        groups = pair(lengths=lengths)
        weights.append(-slopes(dpo_length_reg(groups, alpha=0.2).loss_P, groups)[0])
    assert weights == pytest.approx([0.1 * sigmoid(-0.15 - 0.4), 0.1 * sigmoid(-0.15), 0.1 * sigmoid(-0.15 + 0.4)])


def test_the_offset_grows_with_the_strength():
    assert odpo(strong(2.0), offset_weight=0.5).loss_P.item() == pytest.approx(softplus(0.5 * 2 - 0.15), abs=1e-12)
    logged = odpo(strong(2.0), offset_weight=0.5, offset_of="log_strength").loss_P.item()
    assert logged == pytest.approx(softplus(0.5 * math.log(3) - 0.15), abs=1e-12)
    groups = strong(2.0, policy=(-13.0, -14.5))
    assert odpo(groups, offset_weight=0.5).loss_P.item() == pytest.approx(softplus(1.0), abs=1e-12)  # at the reference


def test_a_strength_of_an_unjudged_pair_changes_nothing():
    groups = strong(2.0)
    marked = replace(groups, strength_PKK=torch.tensor([[[math.nan, 2.0], [7.0, -1.0]]], dtype=torch.float64))
    torch.testing.assert_close(odpo(marked).loss_P, odpo(groups).loss_P, rtol=0, atol=0)


# Discovered, penalised and imitating ---------------------------------------------------------------------------------


def test_discopop_has_a_minimum_at_the_wrong_order_and_a_maximum_beyond_the_reference():
    for z, value in ((-0.11857, 0.785924), (0.07201, 0.878290)):
        groups = pair(policy=(z, 0.0), reference=(0.0, 0.0))
        loss_P = discopop(groups, beta=1.0, tau=0.05).loss_P
        assert loss_P.item() == pytest.approx(value, abs=1e-6)
        assert slopes(loss_P, groups)[0] == pytest.approx(0.0, abs=1e-3)  # z is rounded to 1e-5, curvature ~ 20
    start = pair(policy=(-13.0, -14.5))
    assert slopes(discopop(start).loss_P, start)[0] > 0  # lowers the better response


def test_discopop_stays_finite_where_the_exponential_alone_overflows():
    groups = pair(policy=(-2e4, 0.0), reference=(0.0, 0.0))
    loss_P = discopop(groups, beta=0.1).loss_P
    assert loss_P.item() == pytest.approx(2e3, abs=1e-9)
    assert slopes(loss_P, groups) == pytest.approx([-0.1, 0.1], abs=1e-12)


def test_dpop_penalises_a_fallen_winner_only():
    fallen = pair(policy=(-13.5, -13.5), reference=(-13.0, -14.5))  # u = (−0.5, 1)
    loss_P = dpop(fallen, beta=0.3, penalty=50.0).loss_P
    z = 0.3 * (-1.5 - 50 * 0.5)
    assert loss_P.item() == pytest.approx(softplus(-z), abs=1e-9)
    assert loss_P.item() == pytest.approx(7.950353, abs=1e-6)
    assert slopes(loss_P, fallen) == pytest.approx([-0.3 * 51 * sigmoid(-z), 0.3 * sigmoid(-z)], abs=1e-9)
    assert slopes(dpop(fallen, beta=0.3).loss_P, fallen) == pytest.approx([-15.294606, 0.299894], abs=1e-6)
    risen = pair(policy=(-12.0, -14.0))  # u = (1, 0.5)
    torch.testing.assert_close(dpop(risen, beta=0.3).loss_P, dpo(risen, beta=0.3).loss_P, rtol=0, atol=0)


def test_a_sum_weighs_a_long_winner_by_its_length_and_a_mean_does_not():
    for lengths in ((10, 12), (20, 12)):
        groups = pair(lengths=lengths)
        plain = dpo(groups, beta=0.01).loss_P
        of_sum, of_mean = (
            (rpo_reg(groups, nll_weight=0.5, normalisation=choice).loss_P - plain).item() for choice in ("sum", "mean")
        )
        assert (of_sum, of_mean) == pytest.approx((0.5 * 12, 0.5 * 12 / lengths[0]), abs=1e-12)
