"""Derived values, gradients and identities of pairwise objectives with other links, on the pair of `golden_pair`.

Finite targets (squared, hinge, Kullback–Leibler), other divergences, and a term per response. u = (1, −0.5), D = 1.5.
"""

import math
from dataclasses import replace

import pytest
import torch
from golden_pair import group, pair, sigmoid, slopes, softplus

from accord.objectives import OBJECTIVES
from accord.objectives.pairwise.anchored import apo_zero, bco_pair, nca_pair, sppo_hard
from accord.objectives.pairwise.divergence import chi_po, f_dpo
from accord.objectives.pairwise.logistic import dpo
from accord.objectives.pairwise.targets import exo_pref, hinge, ipo, rpo_nv
from accord.objectives.pointwise import kto

D = 1.5
D_MEAN = 1 / 10 + 0.5 / 12
NAMES = [
    "ipo", "ipo_sum", "ipo_avg", "hinge", "exo_pref", "rpo_nv", "f_dpo", "chi_po",
    "apo_zero", "apo_down", "nca_pair", "bco_pair", "sppo_hard",
]  # fmt: skip


def strong(strength: float, **shape):
    """The golden pair whose winner was judged better by so much."""
    groups = pair(**shape)
    return replace(groups, strength_PKK=torch.tensor([[[0.0, strength], [0.0, 0.0]]], dtype=torch.float64))


def with_strengths(groups):
    """The same groups; every pair has strength 1, which only some rows read."""
    return replace(groups, strength_PKK=groups.preferred_PKK.double())


def kl(p: float, q: float) -> float:
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


def bell(x: float) -> float:
    """σ′."""
    return sigmoid(x) * sigmoid(-x)


MODEL, TRUE = sigmoid(0.15), sigmoid(0.7)
JS_GAP = math.log(2 / (1 + math.exp(-1))) - math.log(2 / (1 + math.exp(0.5)))
ALPHA_GAP = (math.exp(0.25) - math.exp(-0.5)) / 0.5
CHI_GAP = math.e + 1 - math.exp(-0.5) + 0.5

GOLDEN = [
    # name, settings, value as derived, the same number as first computed elsewhere, d/dlog π(y_w), d/dlog π(y_l)
    ("ipo", {"tau": 0.1}, (D - 5) ** 2, 12.25, -7.0, 7.0),
    ("ipo", {"tau": 0.1, "normalisation": "mean"}, (D_MEAN - 5) ** 2, 23.603403, -0.971667, 0.809722),
    ("ipo_sum", {"tau": 0.1}, (D - 5) ** 2, 12.25, -7.0, 7.0),
    ("ipo_avg", {"tau": 0.1}, (D_MEAN - 5) ** 2, 23.603403, -0.971667, 0.809722),
    ("hinge", {"beta": 0.1}, 1 - 0.1 * D, 0.85, -0.1, 0.1),
    ("exo_pref", {"beta": 0.1, "epsilon": 1e-3}, kl(MODEL, 1 - 1e-3), 2.505517, -0.167972, 0.167972),
    ("rpo_nv", {"beta": 0.1}, kl(TRUE, MODEL), 0.035274, -0.013076, 0.013076),
    ("rpo_nv", {"beta": 0.1, "direction": "fwd_kl"}, kl(MODEL, TRUE), 0.036643, -0.013673, 0.013673),
    ("rpo_nv", {"beta": 0.1, "direction": "squared"}, (0.15 - 0.7) ** 2, 0.3025, 0.2 * (0.15 - 0.7), 0.2 * 0.55),
    ("f_dpo", {"beta": 0.1}, softplus(-0.1 * D), 0.620957, -0.046257, 0.046257),
    ("f_dpo", {"beta": 0.1, "divergence": "forward_kl"}, softplus(-0.1 * (math.exp(0.5) - math.exp(-1))), 0.631154,
     -0.017218, 0.077164),
    ("f_dpo", {"beta": 0.1, "divergence": "js"}, softplus(-0.1 * JS_GAP), 0.660652, -0.013003, 0.030095),
    ("f_dpo", {"beta": 0.1, "divergence": "alpha", "alpha": 0.5}, softplus(-0.1 * ALPHA_GAP), 0.627691,
     -0.028275, 0.059858),
    ("chi_po", {"beta": 0.1}, softplus(-0.1 * CHI_GAP), 0.528778, -0.152701, 0.065976),
    ("apo_zero", {"beta": 0.1}, 1 - sigmoid(0.1) + sigmoid(-0.05), 0.962523, -0.024938, 0.024984),
    ("apo_down", {"beta": 0.1}, sigmoid(0.1) + 1 - sigmoid(0.15), 0.987549, 0.000078, 0.024860),
    ("nca_pair", {"beta": 0.1}, softplus(-0.1) + 0.5 * softplus(0.1) + 0.5 * softplus(-0.05), 1.350825,
     -0.021253, 0.024375),
    ("bco_pair", {"beta": 0.1}, softplus(-0.1) + softplus(-0.05), 1.312856,
     -0.1 * sigmoid(-0.1), 0.1 * sigmoid(-0.05)),
    ("sppo_hard", {"eta": 10.0}, (1 - 5) ** 2 + (-0.5 + 5) ** 2, 36.25, -8.0, 9.0),
]  # fmt: skip


@pytest.mark.parametrize(("name", "settings", "derived", "number", "slope_w", "slope_l"), GOLDEN)
def test_value_and_gradient_of_one_pair(name, settings, derived, number, slope_w, slope_l):
    groups = strong(0.7)
    loss_P = OBJECTIVES[name].fn(groups, **settings).loss_P
    assert loss_P.item() == pytest.approx(derived, abs=1e-12)
    assert loss_P.item() == pytest.approx(number, abs=1e-6)
    assert slopes(loss_P, groups) == pytest.approx([slope_w, slope_l], abs=1e-6)


def test_gradients_are_the_published_weights():
    """(−∂/∂log π(y_w), ∂/∂log π(y_l)), written out."""
    z = 0.1 * (math.exp(0.5) - math.exp(-1))
    expected = {
        ("ipo", None): (2 * (5 - D), 2 * (5 - D)),
        ("exo_pref", None): (0.1 * bell(0.15) * (math.log(999) - 0.15),) * 2,
        ("rpo_nv", "bwd_kl"): (0.1 * (TRUE - MODEL),) * 2,
        ("rpo_nv", "fwd_kl"): (0.1 * bell(0.15) * (0.7 - 0.15),) * 2,
        ("f_dpo", "forward_kl"): (0.1 * sigmoid(-z) * math.exp(-1), 0.1 * sigmoid(-z) * math.exp(0.5)),
        ("f_dpo", "js"): (0.1 * sigmoid(-0.1 * JS_GAP) * sigmoid(-1), 0.1 * sigmoid(-0.1 * JS_GAP) * sigmoid(0.5)),
        ("chi_po", None): tuple(0.1 * sigmoid(-0.1 * CHI_GAP) * (1 + math.exp(u)) for u in (1, -0.5)),
        ("apo_zero", None): (0.1 * bell(0.1), 0.1 * bell(0.05)),
        ("apo_down", None): (0.1 * (bell(0.15) - bell(0.1)), 0.1 * bell(0.15)),
        ("nca_pair", None): (0.1 * (sigmoid(-0.1) - 0.5 * sigmoid(0.1)), 0.05 * sigmoid(-0.05)),
        ("bco_pair", None): (0.1 * sigmoid(-0.1), 0.1 * sigmoid(-0.05)),
        ("sppo_hard", None): (2 * (5 - 1), 2 * (-0.5 + 5)),
    }
    for (name, choice), (weight_w, weight_l) in expected.items():
        groups = strong(0.7)
        settings = {} if choice is None else {"direction" if name == "rpo_nv" else "divergence": choice}
        settings |= {"beta": 0.1} if "beta" in OBJECTIVES[name].settings() else {}
        found = slopes(OBJECTIVES[name].fn(groups, **settings).loss_P, groups)
        assert found == pytest.approx([-weight_w, weight_l], abs=1e-12), (name, choice)


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
        "ipo": [0.1, -0.05],
        "ipo_sum": [0.1, -0.05],
        "ipo_avg": [0.1 / 10, -0.05 / 12],
        "hinge": [0.1, -0.05],
        "exo_pref": [0.1, -0.05],
        "rpo_nv": [0.2, -0.1],
        "f_dpo": [0.1, -0.05],
        "chi_po": [0.1 * (math.e - 1 + 1), 0.1 * (math.exp(-0.5) - 1 - 0.5)],  # less the constant β
        "apo_zero": [0.1, -0.05],
        "apo_down": [0.1, -0.05],
        "nca_pair": [0.1, -0.05],
        "bco_pair": [0.1, -0.05],
        "sppo_hard": [1.0, -0.5],
    }
    assert list(expected) == NAMES
    for name, rewards in expected.items():
        reward_PK = OBJECTIVES[name].fn(strong(1.0)).implicit_reward_PK
        assert reward_PK[0].tolist() == pytest.approx(rewards, abs=1e-12), name
        assert not reward_PK.requires_grad


# Finite targets ------------------------------------------------------------------------------------------------------


def test_ipo_is_zero_with_zero_gradient_at_its_target_and_pulls_back_beyond_it():
    at_target = pair(policy=(-8.0, -15.0), reference=(-13.0, -15.0))  # D = 5 = 1/(2 × 0.1)
    loss_P = ipo(at_target, tau=0.1).loss_P
    assert loss_P.item() == 0.0
    assert slopes(loss_P, at_target) == [0.0, 0.0]
    beyond = pair(policy=(-7.0, -15.0), reference=(-13.0, -15.0))
    assert slopes(ipo(beyond, tau=0.1).loss_P, beyond) == [2.0, -2.0]


@pytest.mark.parametrize("tau", [0.05, 0.1, 2.0])
def test_ipo_is_the_squared_link_on_a_scaled_margin(tau):
    assert ipo(pair(), tau=tau).loss_P.item() == pytest.approx((2 * tau * D - 1) ** 2 / (4 * tau**2), abs=1e-9)


def test_hinge_is_zero_once_the_margin_is_reached():
    reached = pair(policy=(10.0, 0.0), reference=(0.0, 0.0))
    loss_P = hinge(reached, beta=0.1).loss_P
    assert (loss_P.item(), slopes(loss_P, reached)) == (0.0, [0.0, 0.0])


def test_exo_is_zero_where_the_margin_is_the_logit_of_the_label():
    fitted = pair(policy=(math.log(0.9 / 0.1) / 0.5, 0.0), reference=(0.0, 0.0))
    loss_P = exo_pref(fitted, beta=0.5, epsilon=0.1).loss_P
    assert loss_P.item() == pytest.approx(0.0, abs=1e-12)
    assert slopes(loss_P, fitted) == pytest.approx([0.0, 0.0], abs=1e-12)


@pytest.mark.parametrize("direction", ["bwd_kl", "fwd_kl", "squared"])
def test_reward_aware_losses_are_zero_where_the_margin_is_the_reward_difference(direction):
    fitted = strong(3.0, policy=(1.2, 0.0), reference=(0.0, 0.0))  # 0.5 × 1.2 = 0.2 × 3
    loss_P = rpo_nv(fitted, beta=0.5, eta=0.2, direction=direction).loss_P
    assert loss_P.item() == pytest.approx(0.0, abs=1e-12)
    assert slopes(loss_P, fitted) == pytest.approx([0.0, 0.0], abs=1e-12)


@pytest.mark.parametrize("direction", ["bwd_kl", "fwd_kl", "squared"])
def test_a_pair_without_a_strength_says_nothing_to_reward_aware_losses(direction):
    result = rpo_nv(strong(0.0), direction=direction)
    assert (result.loss_P.tolist(), result.denominators().tolist()) == ([0.0], [0.0])


def test_with_sure_labels_the_reward_aware_loss_is_dpo():
    torch.testing.assert_close(rpo_nv(strong(1e3), beta=0.1).loss_P, dpo(pair(), beta=0.1).loss_P, rtol=0, atol=1e-12)


# Other divergences ---------------------------------------------------------------------------------------------------


def test_the_alpha_divergence_ends_in_reverse_and_forward_kl():
    ends = ((1e-6, "reverse_kl"), (1 - 1e-6, "forward_kl"))
    for alpha, divergence in ends:
        near = f_dpo(pair(), divergence="alpha", alpha=alpha).loss_P
        torch.testing.assert_close(near, f_dpo(pair(), divergence=divergence).loss_P, rtol=0, atol=1e-6)
    torch.testing.assert_close(f_dpo(pair()).loss_P, dpo(pair()).loss_P, rtol=0, atol=0)


def test_an_alpha_without_effect_is_refused():
    check = OBJECTIVES["f_dpo"].check
    assert check is not None
    with pytest.raises(ValueError, match=r"alpha=0\.3 has no use: divergence=js"):
        check(beta=0.1, divergence="js", alpha=0.3)
    check(beta=0.1, divergence="alpha", alpha=0.3)
    check(beta=0.1, divergence="js", alpha=0.5)


def test_an_exponential_that_would_overflow_goes_on_along_its_tangent():
    single = pair(policy=(0.0, -200.0), reference=(0.0, 0.0))
    single = replace(
        single,
        policy_logps_PK=single.policy_logps_PK.detach().float().requires_grad_(),
        reference_logps_PK=torch.zeros(1, 2),
    )
    loss_P = f_dpo(
        single, beta=1.0, divergence="forward_kl"
    ).loss_P  # scores 0 and −(e^30 (1 + 170) − 1): z = e^30 × 171
    assert loss_P.item() == 0.0
    swapped = replace(single, preferred_PKK=single.preferred_PKK.transpose(1, 2))
    loss_P = f_dpo(swapped, beta=1.0, divergence="forward_kl").loss_P
    assert loss_P.item() == pytest.approx(math.exp(30) * 171, rel=1e-5)
    assert slopes(loss_P, swapped)[1] == pytest.approx(-math.exp(30), rel=1e-5)


def test_chi_po_is_clipped_at_twice_the_largest_reward():
    groups = pair(policy=(3.0, -3.0), reference=(0.0, 0.0))
    z = math.exp(3) + 3 - (math.exp(-3) - 3)
    assert chi_po(groups, beta=1.0, max_reward=50.0).loss_P.item() == pytest.approx(softplus(-z), abs=1e-12)
    loss_P = chi_po(groups, beta=1.0, max_reward=2.0).loss_P
    assert loss_P.item() == pytest.approx(softplus(-4.0), abs=1e-12)
    assert slopes(loss_P, groups) == [0.0, 0.0]


# A term per response -------------------------------------------------------------------------------------------------


def test_apo_zero_is_kto_of_both_responses_without_a_baseline():
    groups = pair()
    labelled = replace(
        groups,
        desirable_PK=torch.tensor([[True, False]]),
        is_labelled_PK=torch.ones(1, 2, dtype=torch.bool),
        mismatched_kl=torch.zeros((), dtype=torch.float64),
    )
    torch.testing.assert_close(apo_zero(groups).loss_P, kto(labelled, beta=0.1).loss_P, rtol=0, atol=1e-12)


def test_apo_down_leaves_the_better_response_at_the_reference_and_lowers_the_worse():
    groups = pair(policy=(-13.0, -14.5))
    assert slopes(OBJECTIVES["apo_down"].fn(groups, beta=0.1).loss_P, groups) == pytest.approx(
        [0.0, 0.1 / 4], abs=1e-12
    )


def test_nca_turns_round_at_ln_2():
    for r, sign in ((math.log(2), 0), (math.log(2) + 0.1, 1), (math.log(2) - 0.1, -1)):
        groups = pair(policy=(r, 0.0), reference=(0.0, 0.0))
        slope = slopes(nca_pair(groups, beta=1.0).loss_P, groups)[0]
        assert slope == pytest.approx(sign * abs(slope), abs=1e-12)
        assert abs(slope) == pytest.approx(abs(sigmoid(-r) - 0.5 * sigmoid(r)), abs=1e-12)


def test_bco_lies_above_dpo_and_sppo_is_zero_at_its_targets():
    for policy in ((-12.0, -15.0), (-20.0, -10.0), (30.0, -30.0)):
        groups = pair(policy=policy)
        assert bco_pair(groups).loss_P.item() > dpo(groups).loss_P.item()
    fitted = pair(policy=(5.0, -5.0), reference=(0.0, 0.0))
    assert sppo_hard(fitted, eta=10.0).loss_P.item() == 0.0


@pytest.mark.parametrize(
    "name", ["ipo", "apo_zero", "apo_down", "nca_pair", "bco_pair", "sppo_hard", "ipo_avg", "chi_po"]
)
def test_what_is_anchored_at_the_reference_sees_a_shift_of_both_responses(name):
    plain, shifted = pair(), pair(policy=(-11.0, -14.0))
    fn = OBJECTIVES[name].fn
    is_same = fn(plain).loss_P.item() == pytest.approx(fn(shifted).loss_P.item(), abs=1e-9)
    assert is_same == OBJECTIVES[name].is_difference_only == (name == "ipo")
