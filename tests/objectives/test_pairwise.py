"""Derived values, gradients and identities of the pairwise objectives.

One pair throughout, unless said: log π = (−12, −15), log π_ref = (−13, −14.5), lengths (10, 12). So u = (1, −0.5), the
difference of log-ratios D = 1.5, per token 1/10 + 0.5/12.
"""

import math

import pytest
import torch

from accord.groups import ScoredGroups, groups_from_pairs
from accord.objectives import OBJECTIVES
from accord.objectives.pairwise.logistic import dpo
from accord.objectives.pairwise.targets import ipo

D = 1.5
D_MEAN = 1 / 10 + 0.5 / 12


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def softplus(z: float) -> float:
    return math.log1p(math.exp(z))


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
    """−∂/∂log π(y_w): β(p − σ(z)), 2(1/(2τ) − D)."""
    expected = {
        "dpo": 0.1 * sigmoid(-0.1 * D),
        "ipo": 2 * (5 - D),
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


@pytest.mark.parametrize("name", ["dpo", "ipo"])
def test_a_group_counts_once_and_is_the_mean_over_its_pairs(name):
    policy, reference = [-3.0, -5.0, -4.0, -8.0], [-4.0, -4.5, -6.0, -7.0]
    pairs = [(0, 1), (0, 2), (2, 1), (0, 3)]
    whole = OBJECTIVES[name].fn(group(pairs, policy, reference))
    single = [OBJECTIVES[name].fn(group([one], policy, reference)).loss_P for one in pairs]
    torch.testing.assert_close(whole.loss_P, torch.stack(single).mean(dim=0))
    assert whole.denominators().tolist() == [1.0]


@pytest.mark.parametrize("name", ["dpo", "ipo"])
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
    }
    for name, rewards in expected.items():
        reward_PK = OBJECTIVES[name].fn(pair()).implicit_reward_PK
        assert reward_PK[0].tolist() == pytest.approx(rewards, abs=1e-12), name
        assert not reward_PK.requires_grad
