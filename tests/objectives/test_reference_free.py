"""Derived values, gradients and identities of the reference-free pairwise objectives, on the pair of `golden_pair`."""

import math

import pytest
import torch
from golden_pair import group, pair, sigmoid, slopes, softplus

from accord.objectives import OBJECTIVES
from accord.objectives.likelihood import sft
from accord.objectives.pairwise.logistic import dpo
from accord.objectives.pairwise.reference_free import alphapo, chosen_nll, cpo, orpo, rrhf, simpo, slic, tpo

MEAN_W, MEAN_L = -1.2, -1.25
NAMES = ["simpo", "orpo", "alphapo", "cpo", "slic", "rrhf", "chosen_nll"]


def log_odds(mean_logp: float) -> float:
    return mean_logp - math.log(1 - math.exp(mean_logp))


ODDS_DIFFERENCE = log_odds(MEAN_W) - log_odds(MEAN_L)
SHAPE_DIFFERENCE = (math.exp(0.25 * 1.25) - math.exp(0.25 * 1.2)) / 0.25

GOLDEN = [
    # name, settings, value as derived, the same number as first computed elsewhere, d/dlog π(y_w), d/dlog π(y_l)
    ("simpo", {"beta": 2.0, "gamma_beta_ratio": 0.5}, softplus(1 - 2 * 0.05), 1.241154, -0.142190, 0.118492),
    ("alphapo", {"beta": 2.0, "gamma_beta_ratio": 0.5, "alpha": 0.25}, softplus(1 - 2 * SHAPE_DIFFERENCE), 1.215811,
     -0.189933, 0.160269),
    ("cpo", {"beta": 0.1, "nll_weight": 1.0}, softplus(-0.1 * 3) + 1.2, 1.754355, -0.142556, 0.042556),
    ("orpo", {"odds_weight": 0.1}, 1.2 + 0.1 * softplus(-ODDS_DIFFERENCE), 1.265837, -0.106902, 0.005633),
    ("slic", {"delta": 1.0, "nll_weight": 0.1}, max(0, 1 - 3) + 0.1 * 12, 1.2, -0.1, 0.0),
    ("slic", {"delta": 4.0, "nll_weight": 0.1}, (4 - 3) + 0.1 * 12, 2.2, -1.1, 1.0),
    ("rrhf", {"nll_weight": 0.5}, max(0, -1.25 + 1.2) + 0.5 * 1.2, 0.6, -0.05, 0.0),
    ("chosen_nll", {}, 1.2, 1.2, -0.1, 0.0),
    ("chosen_nll", {"normalisation": "sum"}, 12, 12.0, -1.0, 0.0),
]  # fmt: skip


@pytest.mark.parametrize(("name", "settings", "derived", "number", "slope_w", "slope_l"), GOLDEN)
def test_value_and_gradient_of_one_pair(name, settings, derived, number, slope_w, slope_l):
    groups = pair()
    loss_P = OBJECTIVES[name].fn(groups, **settings).loss_P
    assert loss_P.item() == pytest.approx(derived, abs=1e-12)
    assert loss_P.item() == pytest.approx(number, abs=1e-6)
    assert slopes(loss_P, groups) == pytest.approx([slope_w, slope_l], abs=1e-6)


def test_gradients_are_the_published_weights():
    """−∂/∂log π(y_w): βσ(−z)/|y_w|, [1 + λσ(−s)/(1 − p̄_w)]/|y_w|, βσ(−z)e^(−αl̄_w)/|y_w|, βσ(−βΔ) + λ/|y_w|."""
    expected = {
        "simpo": 2 * sigmoid(1 - 2 * 0.05) / 10,
        "orpo": (1 + 0.1 * sigmoid(-ODDS_DIFFERENCE) / (1 - math.exp(MEAN_W))) / 10,
        "alphapo": 2 * sigmoid(1 - 2 * SHAPE_DIFFERENCE) * math.exp(0.25 * 1.2) / 10,
        "cpo": 0.1 * sigmoid(-0.1 * 3) + 1 / 10,
    }
    for name, weight in expected.items():
        groups = pair()
        assert -slopes(OBJECTIVES[name].fn(groups).loss_P, groups)[0] == pytest.approx(weight, abs=1e-12), name


def test_simpo_at_equal_lengths_without_margin_is_reference_free_dpo_with_beta_over_length():
    groups = pair(reference=(0.0, 0.0), lengths=(8, 8))
    torch.testing.assert_close(
        simpo(groups, beta=2.0, gamma_beta_ratio=0.0).loss_P, dpo(groups, beta=2.0 / 8).loss_P, rtol=0, atol=1e-12
    )


def test_simpo_at_equal_means_is_softplus_of_gamma():
    groups = pair(policy=(-10.0, -12.0), lengths=(10, 12))
    assert simpo(groups, beta=2.0, gamma_beta_ratio=0.8).loss_P.item() == pytest.approx(softplus(1.6), abs=1e-12)


@pytest.mark.parametrize("alpha", [0.0, 1e-6, -1e-6])
def test_alphapo_without_shape_is_simpo(alpha):
    torch.testing.assert_close(alphapo(pair(), alpha=alpha).loss_P, simpo(pair()).loss_P, rtol=0, atol=1e-5 * 1.5)
    assert alphapo(pair(), alpha=0.0).loss_P.item() == simpo(pair()).loss_P.item()


def test_alphapo_at_equal_means_is_softplus_of_gamma_whatever_the_shape():
    for alpha in (-2.0, 0.25, 2.0):
        loss_P = alphapo(pair(policy=(-10.0, -12.0)), beta=2.0, gamma_beta_ratio=0.8, alpha=alpha).loss_P
        assert loss_P.item() == pytest.approx(softplus(1.6), abs=1e-12)


def test_alphapo_pulls_more_on_the_improbable_response_for_positive_alpha():
    ratios = []
    for alpha in (-0.5, 0.0, 0.5):
        groups = pair(policy=(-5.0, -30.0), lengths=(10, 10))
        up, down = slopes(alphapo(groups, alpha=alpha).loss_P, groups)
        ratios.append(-down / up)
    assert ratios == pytest.approx([math.exp(-0.5 * 2.5), 1.0, math.exp(0.5 * 2.5)], rel=1e-9)


def test_cpo_without_likelihood_is_dpo_with_a_uniform_reference():
    groups = pair(reference=(-4.0, -4.0))
    torch.testing.assert_close(cpo(groups, beta=0.3, nll_weight=0.0).loss_P, dpo(groups, beta=0.3).loss_P)


def test_cpo_adds_its_likelihood_per_token_or_summed():
    bare = cpo(pair(), nll_weight=0.0).loss_P.item()
    assert cpo(pair(), nll_weight=0.5).loss_P.item() - bare == pytest.approx(0.5 * 1.2, abs=1e-12)
    summed = cpo(pair(), nll_weight=0.5, nll_normalisation="sum").loss_P.item()
    assert summed - bare == pytest.approx(0.5 * 12, abs=1e-12)


def test_orpo_at_equal_means_and_for_improbable_tokens():
    groups = pair(policy=(-10.0, -12.0), lengths=(10, 12))
    assert orpo(groups, odds_weight=0.5).loss_P.item() == pytest.approx(1.0 + 0.5 * math.log(2), abs=1e-12)
    groups = pair(policy=(-400.0, -504.0), lengths=(10, 12))  # odds become probabilities: o_w − o_l → 2
    assert orpo(groups, odds_weight=0.5).loss_P.item() == pytest.approx(40 + 0.5 * softplus(-2.0), abs=1e-12)


def test_orpo_odds_are_held_where_a_probability_reaches_one():
    groups = pair(policy=(0.0, -15.0))
    loss_P = orpo(groups, odds_weight=1.0).loss_P
    held = -1e-6 - math.log(-math.expm1(-1e-6))
    assert loss_P.item() == pytest.approx(softplus(log_odds(MEAN_L) - held), abs=1e-9)
    assert slopes(loss_P, groups)[0] == -0.1  # the likelihood term alone: −1/|y_w|


def test_slic_costs_nothing_from_the_margin_on():
    for margin, cost in ((0.5, 0.5), (1.0, 0.0), (2.0, 0.0), (-1.0, 2.0)):
        loss_P = slic(pair(policy=(-12.0, -12.0 - margin)), delta=1.0, nll_weight=0.0).loss_P
        assert loss_P.item() == pytest.approx(cost, abs=1e-12)


def test_rrhf_orders_means_and_imitates_the_best_alone():
    """Judged 0 > 1 > 2 in full, means −1.5, −1, −2: one pair of three is in the wrong order."""
    groups = group([(0, 1), (0, 2), (1, 2)], [-4.5, -4.0, -10.0])  # lengths 3, 4, 5
    loss_P = rrhf(groups, nll_weight=2.0).loss_P
    assert loss_P.item() == pytest.approx((-1.0 + 1.5) / 3 + 2 * 1.5, abs=1e-12)
    assert slopes(loss_P, groups) == pytest.approx([-1 / 3 / 3 - 2 / 3, 1 / 4 / 3, 0.0], abs=1e-12)


def test_rrhf_shares_the_likelihood_among_ties_for_the_first_place():
    tied = group([(0, 2), (1, 2)], [-4.5, -4.0, -10.0])
    assert rrhf(tied, nll_weight=2.0).loss_P.item() == pytest.approx(2 * (1.5 + 1.0) / 2, abs=1e-12)
    circle = group([(0, 1), (1, 2), (2, 0)], [-3.0, -4.0, -5.0])  # means −1 each, and nobody is best
    assert rrhf(circle).loss_P.item() == 0.0


def test_tpo_is_cpo_below_the_gold_response_and_its_imitation():
    groups = group([(0, 1), (0, 2), (1, 2)], [-6.0, -8.0, -10.0])  # lengths 3, 4, 5
    loss_P = tpo(groups, beta=0.5, nll_weight=0.3).loss_P
    assert loss_P.item() == pytest.approx(softplus(-0.5 * 2) + 0.3 * 2.0, abs=1e-12)
    weight = 0.5 * sigmoid(-0.5 * 2)
    assert slopes(loss_P, groups) == pytest.approx([-0.3 / 3, -weight, weight], abs=1e-12)


def test_tpo_l_is_simpo_below_the_gold_response():
    whole = group([(0, 1), (0, 2), (1, 2)], [-6.0, -8.0, -15.0])
    loss_P = tpo(whole, beta=2.0, gamma_beta_ratio=0.5, nll_weight=0.0, normalisation="mean").loss_P
    assert loss_P.item() == pytest.approx(softplus(1 - 2 * (-2.0 + 3.0)), abs=1e-12)


@pytest.mark.parametrize(
    ("preferred", "why"),
    [
        ([(0, 1)], "two responses: a gold one and nobody to compare below it"),
        ([(0, 1), (0, 2)], "a gold one, but the others are tied"),
        ([(0, 2), (1, 2)], "two share the first place"),
        ([(0, 1), (1, 2), (2, 0)], "a circle"),
        ([], "nothing judged"),
    ],
)
def test_tpo_does_not_count_a_group_without_a_triple(preferred, why):
    num = 2 if preferred == [(0, 1)] else 3
    result = tpo(group(preferred, [-3.0, -5.0, -4.0][:num]))
    assert (result.loss_P.tolist(), result.denominators().tolist()) == ([0.0], [0.0]), why


def test_imitating_the_chosen_of_a_pair_is_sft_and_of_a_ranking_is_not():
    torch.testing.assert_close(
        chosen_nll(pair()).loss_P, sft(pair()).loss_P / sft(pair()).denominators(), rtol=0, atol=1e-12
    )
    ranking = group([(0, 1), (0, 2), (1, 2)], [-6.0, -8.0, -15.0])
    assert chosen_nll(ranking).loss_P.item() == pytest.approx((2 * 2.0 + 2.0) / 3, abs=1e-12)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "rrhf"])
def test_a_group_counts_once_and_is_the_mean_over_its_pairs(name):
    policy, reference = [-3.0, -5.0, -4.0, -8.0], [-4.0, -4.5, -6.0, -7.0]
    pairs = [(0, 1), (0, 2), (2, 1), (0, 3)]
    whole = OBJECTIVES[name].fn(group(pairs, policy, reference))
    single = [OBJECTIVES[name].fn(group([one], policy, reference)).loss_P for one in pairs]
    torch.testing.assert_close(whole.loss_P, torch.stack(single).mean(dim=0))
    assert whole.denominators().tolist() == [1.0]


@pytest.mark.parametrize("name", [*NAMES, "tpo"])
def test_ties_and_single_responses_are_not_counted(name):
    for groups in (group([], [-3.0, -5.0]), group([], [-3.0])):
        result = OBJECTIVES[name].fn(groups)
        assert (result.loss_P.tolist(), result.denominators().tolist()) == ([0.0], [0.0])


@pytest.mark.parametrize("name", [*NAMES, "tpo"])
def test_an_empty_response_has_mean_log_probability_zero(name):
    """Worse or better, empty or not: finite, and what an empty response costs is what log π = 0 costs."""
    for policy, lengths in (((-12.0, 0.0), (10, 0)), ((0.0, -12.0), (0, 10))):
        groups = pair(policy=policy, lengths=lengths)
        loss_P = OBJECTIVES[name].fn(groups).loss_P
        assert loss_P.isfinite().all()
        assert all(math.isfinite(slope) for slope in slopes(loss_P + 0 * groups.policy_logps_PK.sum(), groups))
    assert simpo(pair(policy=(-12.0, 0.0), lengths=(10, 0)), gamma_beta_ratio=0.0).loss_P.item() == pytest.approx(
        softplus(2.4), abs=1e-12
    )


def test_implicit_rewards_are_what_each_objective_ranks_by():
    expected = {
        "simpo": [2 * MEAN_W, 2 * MEAN_L],
        "orpo": [log_odds(MEAN_W), log_odds(MEAN_L)],
        "alphapo": [2 * (1 - math.exp(0.25 * 1.2)) / 0.25, 2 * (1 - math.exp(0.25 * 1.25)) / 0.25],
        "cpo": [-1.2, -1.5],
        "slic": [-12.0, -15.0],
        "rrhf": [MEAN_W, MEAN_L],
        "tpo": [-1.2, -1.5],
        "chosen_nll": [MEAN_W, MEAN_L],
    }
    for name, rewards in expected.items():
        reward_PK = OBJECTIVES[name].fn(pair()).implicit_reward_PK
        assert reward_PK[0].tolist() == pytest.approx(rewards, abs=1e-12), name
        assert not reward_PK.requires_grad
