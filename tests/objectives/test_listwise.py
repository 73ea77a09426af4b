"""Derived values, gradients and identities of objectives of K judged responses.

One group throughout, unless said: log-ratios u = (1, 0.2, −0.5), so s = u at β = 1; ratings (3, 1, 0); the order is
that of the slots.
"""

import math
from dataclasses import replace

import pytest
import torch

from accord.groups import ScoredGroups
from accord.objectives import OBJECTIVES

U = [1.0, 0.2, -0.5]
RATINGS = [3.0, 1.0, 0.0]
Q = [math.exp(r) / sum(math.exp(x) for x in RATINGS) for r in RATINGS]
P = [math.exp(u) / sum(math.exp(x) for x in U) for u in U]
NAMES = ["plackett_luce", "rnce", "pro", "lipo_lambda", "info_nca", "nca", "exo_rw", "dpo_rw", "sppo"]


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def softplus(z: float) -> float:
    return math.log1p(math.exp(z))


def listed(
    policy: list[float],
    *,
    order: list[list[int]] | None = None,
    ratings: list[float | None] | None = None,
    wins: list[tuple[int, int, float]] = (),
) -> ScoredGroups:
    """One group with a ranking in tiers, ratings (None = not rated) and win fractions (i, j, share of i)."""
    width = len(policy)
    preferred_PKK = torch.zeros(1, width, width, dtype=torch.bool)
    tiers = [list(range(width))[i : i + 1] for i in range(width)] if order is None else order
    for place, tier in enumerate(tiers):
        for better in tier:
            for lower in tiers[place + 1 :]:
                preferred_PKK[0, better, lower] = True
    ratings = ratings or [None] * width
    win_frac_PKK = torch.full((1, width, width), 0.5, dtype=torch.float64)
    is_compared_PKK = torch.zeros(1, width, width, dtype=torch.bool)
    for i, j, share in wins:
        win_frac_PKK[0, i, j], win_frac_PKK[0, j, i] = share, 1 - share
        is_compared_PKK[0, i, j] = is_compared_PKK[0, j, i] = True
    return ScoredGroups(
        policy_logps_PK=torch.tensor([policy], dtype=torch.float64, requires_grad=True),
        reference_logps_PK=torch.zeros(1, width, dtype=torch.float64),
        num_tokens_PK=torch.ones(1, width, dtype=torch.long),
        is_valid_PK=torch.ones(1, width, dtype=torch.bool),
        preferred_PKK=preferred_PKK,
        reward_PK=torch.tensor([[rating or 0.0 for rating in ratings]], dtype=torch.float64),
        is_rated_PK=torch.tensor([[rating is not None for rating in ratings]]),
        win_frac_PKK=win_frac_PKK,
        is_compared_PKK=is_compared_PKK,
    )


def loss_of(name: str, groups: ScoredGroups, **settings) -> float:
    return OBJECTIVES[name].fn(groups, **settings).loss_P.item()


def gradient_of(name: str, groups: ScoredGroups, **settings) -> list[float]:
    loss_P = OBJECTIVES[name].fn(groups, **settings).loss_P
    return torch.autograd.grad(loss_P.sum(), groups.policy_logps_PK)[0][0].tolist()


STAGE = math.exp(-0.8) + math.exp(-1.5)
DISCOUNT = [1 / math.log(1 + place) for place in (1, 2, 3)]
GOLDEN = [
    # name, settings, value as derived, the same number as first computed elsewhere
    ("rnce", {"beta": 1.0}, math.log1p(STAGE), 0.514295),
    ("plackett_luce", {"beta": 1.0}, math.log1p(STAGE) + softplus(-0.7), 0.917481),
    ("info_nca", {"beta": 1.0}, -sum(q * math.log(p) for q, p in zip(Q, P, strict=True)), 0.668666),
    (
        "nca",
        {"beta": 1.0},
        sum(q * softplus(-u) + softplus(u) / 3 for q, u in zip(Q, U, strict=True)),
        1.235380,
    ),
    (
        "exo_rw",
        {"beta": 1.0, "reward_temperature": 1.0},
        sum(p * math.log(p / q) for q, p in zip(Q, P, strict=True)),
        0.178069,
    ),
    (
        "lipo_lambda",
        {"beta": 1.0},
        6 * (DISCOUNT[0] - DISCOUNT[1]) * softplus(-0.8)
        + 7 * (DISCOUNT[0] - DISCOUNT[2]) * softplus(-1.5)
        + 1 * (DISCOUNT[1] - DISCOUNT[2]) * softplus(-0.7),
        2.278750,
    ),
]


@pytest.mark.parametrize(("name", "settings", "derived", "number"), GOLDEN, ids=[row[0] for row in GOLDEN])
def test_value_of_one_group(name, settings, derived, number):
    value = loss_of(name, listed(U, ratings=RATINGS), **settings)
    assert value == pytest.approx(derived, abs=1e-12)
    assert value == pytest.approx(number, abs=1e-6)


def test_pro_by_hand():
    """Gaps 0.4 and 0.8 multiply the scores below the best, the larger of them its own; then the last two."""
    groups = listed([-1.0, -1.5, -2.0], ratings=[0.9, 0.5, 0.1])
    first = math.log(math.exp(-0.8) + math.exp(-1.5 * 0.4) + math.exp(-2.0 * 0.8)) + 0.8
    second = softplus(-(-1.5 * 0.4 + 2.0 * 0.4))
    assert loss_of("pro", groups, sft_weight=0.0) == pytest.approx(first + second, abs=1e-12)
    assert loss_of("pro", groups, sft_weight=0.0) == pytest.approx(1.580491, abs=1e-6)
    likelihood = 0.05 * (3 - 1) ** 2 * 1.0
    assert loss_of("pro", groups) == pytest.approx(first + second + likelihood, abs=1e-12)


def test_gradients_are_the_published_ones():
    groups, share = listed(U, ratings=RATINGS), [u / sum(map(math.exp, U)) for u in map(math.exp, U)]
    last = sigmoid(-0.7)  # share of the last in the second stage
    expected = {
        "rnce": [-(1 - share[0]), share[1], share[2]],
        "plackett_luce": [-(1 - share[0]), share[1] - last, share[2] + last],
        "info_nca": [p - q for p, q in zip(share, Q, strict=True)],
        "dpo_rw": [p - q for p, q in zip(share, Q, strict=True)],
        "nca": [-(q * sigmoid(-u) - sigmoid(u) / 3) for q, u in zip(Q, U, strict=True)],
        "exo_rw": [p * (math.log(p / q) - GOLDEN[4][2]) for p, q in zip(share, Q, strict=True)],
    }
    for name, gradient in expected.items():
        more = {"reward_temperature": 1.0} if name in ("exo_rw", "dpo_rw") else {}
        assert gradient_of(name, groups, beta=1.0, **more) == pytest.approx(gradient, abs=1e-12), name


# Limits --------------------------------------------------------------------------------------------------------------


def test_equal_scores_give_the_known_values():
    for width in (2, 3, 5):
        level = [0.7] * width
        ratings = [float(r) for r in range(width)]
        share = [math.exp(r) / sum(math.exp(x) for x in ratings) for r in ratings]
        groups = listed(level, ratings=ratings)
        assert loss_of("rnce", groups) == pytest.approx(math.log(width), abs=1e-12)
        assert loss_of("plackett_luce", groups) == pytest.approx(math.log(math.factorial(width)), abs=1e-12)
        assert loss_of("info_nca", groups) == pytest.approx(math.log(width), abs=1e-12)
        assert loss_of("nca", listed([0.0] * width, ratings=ratings)) == pytest.approx(2 * math.log(2), abs=1e-12)
        divergence = sum(math.log(1 / width / q) / width for q in share)
        assert loss_of("exo_rw", groups, reward_temperature=1.0) == pytest.approx(divergence, abs=1e-12)


@pytest.mark.parametrize("name", ["rnce", "plackett_luce"])
def test_two_responses_are_dpo(name):
    groups = listed([1.0, -0.5])
    assert loss_of(name, groups, beta=0.3) == pytest.approx(loss_of("dpo", groups, beta=0.3), abs=1e-12)
    assert gradient_of(name, groups, beta=0.3) == pytest.approx(gradient_of("dpo", groups, beta=0.3), abs=1e-12)


def test_many_equal_negatives_add_their_logarithm():
    """rnce with M identical negatives is log(1 + M e^−z)."""
    for number in (1, 2, 5):
        groups = listed([1.0, *[-0.5] * number], order=[[0], list(range(1, number + 1))])
        assert loss_of("rnce", groups, beta=1.0) == pytest.approx(softplus(math.log(number) - 1.5), abs=1e-12)


def test_two_rated_responses_are_dpo_with_a_soft_label():
    """InfoNCA: label σ(Δr/α); PRO: logistic in (r_w − r_l)(l̄_w − l̄_l); LiPO-λ: DPO times its weight."""
    groups, z = listed([1.0, -0.5], ratings=[2.0, 1.0]), 0.3 * 1.5
    label = sigmoid(1.0 / 1.5)
    soft = label * softplus(-z) + (1 - label) * softplus(z)
    assert loss_of("info_nca", groups, beta=0.3, alpha=1.5) == pytest.approx(soft, abs=1e-12)
    assert loss_of("pro", groups, sft_weight=0.0) == pytest.approx(softplus(-1.0 * 1.5), abs=1e-12)
    weight = (4 - 2) * (1 / math.log(2) - 1 / math.log(3))
    assert loss_of("lipo_lambda", groups, beta=0.3) == pytest.approx(weight * softplus(-z), abs=1e-12)
    assert loss_of("lipo_lambda", groups, beta=0.3, gain="linear") == pytest.approx(
        weight / 2 * softplus(-z), abs=1e-12
    )


def test_exo_is_a_divergence():
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        policy, ratings = torch.randn(2, 4, generator=generator, dtype=torch.float64).tolist()
        assert loss_of("exo_rw", listed(policy, ratings=ratings), beta=0.5, reward_temperature=0.7) > 0
        matched = [rating / (0.7 * 0.5) + 3.0 for rating in ratings]
        groups = listed(matched, ratings=ratings)
        for name in ("exo_rw", "dpo_rw"):
            assert loss_of(name, groups, beta=0.5, reward_temperature=0.7) == pytest.approx(0.0, abs=1e-12)


def test_nca_fixes_the_level_and_info_nca_does_not():
    at_optimum = [math.log(3 * q) for q in Q]
    assert gradient_of("nca", listed(at_optimum, ratings=RATINGS), beta=1.0) == pytest.approx([0.0] * 3, abs=1e-12)
    shifted = [u - 2.0 for u in at_optimum]
    assert max(map(abs, gradient_of("nca", listed(shifted, ratings=RATINGS), beta=1.0))) > 0.1
    assert gradient_of("info_nca", listed(shifted, ratings=RATINGS), beta=1.0) == pytest.approx([0.0] * 3, abs=1e-12)


def test_lipo_places_follow_the_policy_and_ties_follow_the_ratings():
    """At policy = reference no place is defined by s: the rating decides, so that the first step has a direction."""
    groups = listed([0.0, 0.0, 0.0], ratings=RATINGS)
    pairs = [(0, 1, 6), (0, 2, 7), (1, 2, 1)]
    expected = sum(gain * (DISCOUNT[i] - DISCOUNT[j]) * math.log(2) for i, j, gain in pairs)
    assert loss_of("lipo_lambda", groups, beta=1.0) == pytest.approx(expected, abs=1e-12)
    reversed_order = listed([-0.5, 0.2, 1.0], ratings=RATINGS)  # places 3, 2, 1
    terms = [(0, 1, 6, -0.7), (0, 2, 7, -1.5), (1, 2, 1, -0.8)]
    expected = sum(gain * abs(DISCOUNT[2 - i] - DISCOUNT[2 - j]) * softplus(-z) for i, j, gain, z in terms)
    assert loss_of("lipo_lambda", reversed_order, beta=1.0) == pytest.approx(expected, abs=1e-12)


# SPPO ----------------------------------------------------------------------------------------------------------------


def test_sppo_of_a_hard_pair_and_of_a_group():
    pair = listed([1.0, -0.5], wins=[(0, 1, 1.0)])
    assert loss_of("sppo", pair, eta=10.0) == pytest.approx((1 - 5) ** 2 + (-0.5 + 5) ** 2, abs=1e-12)  # 36.25
    assert gradient_of("sppo", pair, eta=10.0) == pytest.approx([-8.0, 9.0], abs=1e-12)
    still = listed([0.0, 0.0], wins=[(0, 1, 1.0)])
    assert loss_of("sppo", still, eta=10.0) == pytest.approx(10**2 / 2, abs=1e-12)  # η²/2
    three = listed(U, wins=[(0, 1, 0.8), (0, 2, 0.6), (1, 2, 0.5)])
    wins = [(0.8 + 0.6) / 2, (0.2 + 0.5) / 2, (0.4 + 0.5) / 2]
    expected = sum((u - 2 * (p - 0.5)) ** 2 for u, p in zip(U, wins, strict=True))
    assert loss_of("sppo", three, eta=2.0) == pytest.approx(expected, abs=1e-12)


def test_sppo_leaves_out_what_was_not_compared():
    groups = listed(U, wins=[(0, 2, 1.0)])
    expected = (1.0 - 2 * 0.5) ** 2 + (-0.5 + 2 * 0.5) ** 2
    assert loss_of("sppo", groups, eta=2.0) == pytest.approx(expected, abs=1e-12)
    assert gradient_of("sppo", groups, eta=2.0)[1] == 0.0


# Awkward judgements --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_nothing_to_learn_from_is_not_counted(name):
    one = listed([1.0], ratings=[2.0])
    unjudged = listed(U, order=[[0, 1, 2]])
    for groups in (one, unjudged):
        result = OBJECTIVES[name].fn(groups)
        assert (result.loss_P.tolist(), result.denominators().tolist()) == ([0.0], [0.0])


def test_equal_ratings_are_no_order_but_a_target():
    """pro and lipo_lambda need an order; for the others equality is a judgement: the scores should be equal."""
    groups = listed([1.0, -0.5], ratings=[2.0, 2.0])
    for name in ("pro", "lipo_lambda"):
        assert not OBJECTIVES[name].fn(groups).is_counted_P.item()
    for name in ("info_nca", "nca", "exo_rw", "dpo_rw"):
        first, second = gradient_of(name, groups)
        assert first > 0 > second, name


def test_unrated_responses_take_no_part():
    for name in ("pro", "lipo_lambda", "info_nca", "nca", "exo_rw", "dpo_rw"):
        whole = loss_of(name, listed([1.0, -0.5], ratings=[2.0, 1.0]))
        groups = listed([1.0, 9.0, -0.5], ratings=[2.0, None, 1.0])
        assert loss_of(name, groups) == pytest.approx(whole, abs=1e-12), name
        assert gradient_of(name, groups)[1] == 0.0, name


def test_tied_responses_are_not_set_against_each_other():
    """Tiers {0, 1} > {2}: each of the tied against the last."""
    groups = listed(U, order=[[0, 1], [2]])
    expected = softplus(-1.5) + softplus(-0.7)
    assert loss_of("plackett_luce", groups, beta=1.0) == pytest.approx(expected, abs=1e-12)
    assert loss_of("rnce", groups, beta=1.0) == pytest.approx(expected / 2, abs=1e-12)  # two best: their mean


def test_a_partial_order_and_a_circle():
    groups = listed([1.0, 0.2, -0.5, 0.4], order=[[0, 1, 2, 3]])
    groups.preferred_PKK[0, 0, 1] = groups.preferred_PKK[0, 2, 3] = True  # two chains, two best
    apart = [softplus(-0.8), softplus(0.9)]
    assert loss_of("plackett_luce", groups, beta=1.0) == pytest.approx(sum(apart), abs=1e-12)
    assert loss_of("rnce", groups, beta=1.0) == pytest.approx(sum(apart) / 2, abs=1e-12)
    circle = listed(U, order=[[0, 1, 2]])
    for better, worse in ((0, 1), (1, 2), (2, 0)):
        circle.preferred_PKK[0, better, worse] = True
    assert not OBJECTIVES["rnce"].fn(circle).is_counted_P.item()
    pairs = softplus(-0.8) + softplus(-0.7) + softplus(1.5)
    assert loss_of("plackett_luce", circle, beta=1.0) == pytest.approx(pairs, abs=1e-12)


def test_pro_reads_means_and_an_empty_response_has_mean_zero():
    groups = replace(listed([-6.0, 0.0], ratings=[1.0, 0.0]), num_tokens_PK=torch.tensor([[3, 0]]))
    assert loss_of("pro", groups, sft_weight=0.0) == pytest.approx(softplus(2.0), abs=1e-12)


def test_implicit_rewards():
    groups = listed(U, ratings=RATINGS, wins=[(0, 1, 1.0)])
    for name in NAMES:
        reward_PK = OBJECTIVES[name].fn(groups).implicit_reward_PK
        scale = 1.0 if name in ("pro", "sppo") else OBJECTIVES[name].defaults()["beta"]
        assert reward_PK[0].tolist() == pytest.approx([scale * u for u in U], abs=1e-12), name
