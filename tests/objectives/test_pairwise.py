"""Derived values, gradients and identities of the pairwise objectives.

One pair throughout, unless said: log π = (−12, −15), log π_ref = (−13, −14.5), lengths (10, 12). So u = (1, −0.5), the
difference of log-ratios D = 1.5, per token 1/10 + 0.5/12, and the difference of mean log-probabilities −1.2 + 1.25.
"""

import math

import pytest
import torch

from accord.groups import ScoredGroups, groups_from_pairs
from accord.objectives import OBJECTIVES
from accord.objectives.pairwise.logistic import dpo, ipo, orpo, simpo

D = 1.5
D_MEAN = 1 / 10 + 0.5 / 12
MEAN_W, MEAN_L = -1.2, -1.25


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def softplus(z: float) -> float:
    return math.log1p(math.exp(z))


def log_odds(mean_logp: float) -> float:
    return mean_logp - math.log(1 - math.exp(mean_logp))


ODDS_DIFFERENCE = log_odds(MEAN_W) - log_odds(MEAN_L)


def pair(policy=(-12.0, -15.0), reference=(-13.0, -14.5), lengths=(10, 12)) -> ScoredGroups:
    return groups_from_pairs(
        torch.tensor([policy], dtype=torch.float64, requires_grad=True),
        reference_logps_P2=torch.tensor([reference], dtype=torch.float64),
        num_tokens_P2=torch.tensor([lengths]),
    )


def group(preferred: list[tuple[int, int]], policy: list[float], reference: list[float] | None = None) -> ScoredGroups:
    """One group of K responses with the judged pairs (better, worse)."""
    preferred_PKK = torch.zeros(1, len(policy), len(policy), dtype=torch.bool)
    for better, worse in preferred:
        preferred_PKK[0, better, worse] = True
    return ScoredGroups(
        policy_logps_PK=torch.tensor([policy], dtype=torch.float64),
        reference_logps_PK=torch.tensor([reference or [0.0] * len(policy)], dtype=torch.float64),
        num_tokens_PK=torch.arange(3, 3 + len(policy))[None],
        is_valid_PK=torch.ones(1, len(policy), dtype=torch.bool),
        preferred_PKK=preferred_PKK,
    )


GOLDEN = [
    # name, settings, value as derived, the same number as first computed elsewhere, d/dlog π(y_w), d/dlog π(y_l)
    ("dpo", {"beta": 0.1}, softplus(-0.1 * D), 0.620957, -0.046257, 0.046257),
    ("dpo", {"beta": 0.1, "label_smoothing": 0.1}, softplus(-0.1 * D) + 0.1 * 0.1 * D, 0.635957, -0.036257, 0.036257),
    ("ipo", {"tau": 0.1}, (D - 5) ** 2, 12.25, -7.0, 7.0),
    ("ipo", {"tau": 0.1, "normalisation": "mean"}, (D_MEAN - 5) ** 2, 23.603403, -0.971667, 0.809722),
    ("simpo", {"beta": 2.0, "gamma_beta_ratio": 0.5}, softplus(1 - 2 * 0.05), 1.241154, -0.142190, 0.118492),
    ("orpo", {"odds_weight": 0.1}, 1.2 + 0.1 * softplus(-ODDS_DIFFERENCE), 1.265837, -0.106902, 0.005633),
]


@pytest.mark.parametrize(("name", "settings", "derived", "number", "slope_w", "slope_l"), GOLDEN)
def test_value_and_gradient_of_one_pair(name, settings, derived, number, slope_w, slope_l):
    groups = pair()
    loss = OBJECTIVES[name].fn(groups, **settings).loss_P.sum()
    assert loss.item() == pytest.approx(derived, abs=1e-12)
    assert loss.item() == pytest.approx(number, abs=1e-6)
    (gradient_P2,) = torch.autograd.grad(loss, groups.policy_logps_PK)
    assert gradient_P2[0].tolist() == pytest.approx([slope_w, slope_l], abs=1e-6)


def test_gradients_are_the_published_weights():
    """−∂/∂log π(y_w): β(p − σ(z)), 2(1/(2τ) − D), βσ(−z)/|y_w|, [1 + λσ(−s)/(1 − p̄_w)]/|y_w|."""
    expected = {
        "dpo": 0.1 * sigmoid(-0.1 * D),
        "ipo": 2 * (5 - D),
        "simpo": 2 * sigmoid(1 - 2 * 0.05) / 10,
        "orpo": (1 + 0.1 * sigmoid(-ODDS_DIFFERENCE) / (1 - math.exp(MEAN_W))) / 10,
    }
    for name, weight in expected.items():
        groups = pair()
        (gradient_P2,) = torch.autograd.grad(OBJECTIVES[name].fn(groups).loss_P.sum(), groups.policy_logps_PK)
        assert -gradient_P2[0, 0].item() == pytest.approx(weight, abs=1e-12), name


def test_label_smoothing_adds_a_linear_term_and_is_even_at_one_half():
    plain, smoothed = dpo(pair()).loss_P, dpo(pair(), label_smoothing=0.3).loss_P
    assert (smoothed - plain).item() == pytest.approx(0.3 * 0.1 * D, abs=1e-12)
    swapped = pair(policy=(-15.0, -12.0), reference=(-14.5, -13.0))
    torch.testing.assert_close(dpo(pair(), label_smoothing=0.5).loss_P, dpo(swapped, label_smoothing=0.5).loss_P)
    assert dpo(swapped).loss_P.item() == pytest.approx(softplus(0.1 * D), abs=1e-12)


def test_smoothed_dpo_is_least_at_the_logit_of_the_smoothed_label():
    margin = math.log(0.9 / 0.1) / 0.5
    groups = pair(policy=(margin, 0.0), reference=(0.0, 0.0))
    loss = dpo(groups, beta=0.5, label_smoothing=0.1).loss_P.sum()
    assert loss.item() == pytest.approx(-0.9 * math.log(0.9) - 0.1 * math.log(0.1), abs=1e-12)
    (gradient_P2,) = torch.autograd.grad(loss, groups.policy_logps_PK)
    assert gradient_P2.abs().max().item() < 1e-12


def test_ipo_is_zero_with_zero_gradient_at_its_target_and_pulls_back_beyond_it():
    at_target = pair(policy=(-8.0, -15.0), reference=(-13.0, -15.0))  # D = 5 = 1/(2 × 0.1)
    loss = ipo(at_target, tau=0.1).loss_P.sum()
    (gradient_P2,) = torch.autograd.grad(loss, at_target.policy_logps_PK)
    assert loss.item() == 0.0
    assert gradient_P2.tolist() == [[0.0, 0.0]]
    beyond = pair(policy=(-7.0, -15.0), reference=(-13.0, -15.0))
    (gradient_P2,) = torch.autograd.grad(ipo(beyond, tau=0.1).loss_P.sum(), beyond.policy_logps_PK)
    assert gradient_P2.tolist() == [[2.0, -2.0]]


def test_simpo_at_equal_lengths_without_margin_is_reference_free_dpo_with_beta_over_length():
    groups = pair(reference=(0.0, 0.0), lengths=(8, 8))
    torch.testing.assert_close(
        simpo(groups, beta=2.0, gamma_beta_ratio=0.0).loss_P, dpo(groups, beta=2.0 / 8).loss_P, rtol=0, atol=1e-12
    )


def test_simpo_at_equal_means_is_softplus_of_gamma():
    groups = pair(policy=(-10.0, -12.0), lengths=(10, 12))
    assert simpo(groups, beta=2.0, gamma_beta_ratio=0.8).loss_P.item() == pytest.approx(softplus(1.6), abs=1e-12)


def test_orpo_at_equal_means_and_for_improbable_tokens():
    groups = pair(policy=(-10.0, -12.0), lengths=(10, 12))
    assert orpo(groups, odds_weight=0.5).loss_P.item() == pytest.approx(1.0 + 0.5 * math.log(2), abs=1e-12)
    groups = pair(policy=(-400.0, -504.0), lengths=(10, 12))  # odds become probabilities: o_w − o_l → 2
    assert orpo(groups, odds_weight=0.5).loss_P.item() == pytest.approx(40 + 0.5 * softplus(-2.0), abs=1e-12)


def test_orpo_odds_are_held_where_a_probability_reaches_one():
    groups = pair(policy=(0.0, -15.0))
    loss = orpo(groups, odds_weight=1.0).loss_P.sum()
    held = -1e-6 - math.log(-math.expm1(-1e-6))
    assert loss.item() == pytest.approx(softplus(log_odds(MEAN_L) - held), abs=1e-9)
    (gradient_P2,) = torch.autograd.grad(loss, groups.policy_logps_PK)
    assert gradient_P2[0, 0].item() == -0.1  # the likelihood term alone: −1/|y_w|


@pytest.mark.parametrize("name", ["dpo", "ipo", "simpo", "orpo"])
def test_a_group_counts_once_and_is_the_mean_over_its_pairs(name):
    policy, reference = [-3.0, -5.0, -4.0, -8.0], [-4.0, -4.5, -6.0, -7.0]
    pairs = [(0, 1), (0, 2), (2, 1), (0, 3)]
    whole = OBJECTIVES[name].fn(group(pairs, policy, reference))
    single = [OBJECTIVES[name].fn(group([one], policy, reference)).loss_P for one in pairs]
    torch.testing.assert_close(whole.loss_P, torch.stack(single).mean(dim=0))
    assert whole.denominators().tolist() == [1.0]


@pytest.mark.parametrize("name", ["dpo", "ipo", "simpo", "orpo"])
def test_ties_and_single_responses_are_not_counted(name):
    for groups in (group([], [-3.0, -5.0]), group([], [-3.0])):
        result = OBJECTIVES[name].fn(groups)
        assert (result.loss_P.tolist(), result.denominators().tolist()) == ([0.0], [0.0])


def test_raters_who_disagree_make_the_loss_symmetric():
    both = dpo(group([(0, 1), (1, 0)], [-3.0, -5.0])).loss_P
    torch.testing.assert_close(both, dpo(group([(0, 1)], [-3.0, -5.0]), label_smoothing=0.5).loss_P)


def test_implicit_rewards_are_what_each_objective_ranks_by():
    expected = {
        "dpo": [0.1, -0.05],
        "ipo": [0.1, -0.05],
        "simpo": [2 * MEAN_W, 2 * MEAN_L],
        "orpo": [log_odds(MEAN_W), log_odds(MEAN_L)],
    }
    for name, rewards in expected.items():
        reward_PK = OBJECTIVES[name].fn(pair()).implicit_reward_PK
        assert reward_PK[0].tolist() == pytest.approx(rewards, abs=1e-12), name
        assert not reward_PK.requires_grad


def test_an_empty_response_has_mean_log_probability_zero():
    groups = pair(policy=(-12.0, 0.0), lengths=(10, 0))
    assert simpo(groups, beta=2.0, gamma_beta_ratio=0.0).loss_P.item() == pytest.approx(softplus(2.4), abs=1e-12)
