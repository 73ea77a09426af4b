"""Weights that move: hypervolume, gradients, the worst served group; their published numbers and their checkpoints."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from accord.feedback.composition.dynamic import (
    GradientWeights,
    HypervolumeGuide,
    hypervolume,
    influences,
    meta_reward,
)
from accord.feedback.composition.maxmin import (
    MaxMinWeights,
    assign_raters,
    maxmin_weights,
    rater_log_likelihoods,
    reseed_empty,
    responsibilities,
)

# Hypervolume ----------------------------------------------------------------------------------------------------------


def test_hypervolume_of_three_points_and_a_fourth():
    front = [(1.0, 3.0), (2.0, 2.0), (3.0, 1.0)]
    assert hypervolume(front, (0.0, 0.0)) == 6.0
    assert hypervolume([*front, (2.5, 1.8)], (0.0, 0.0)) - 6.0 == pytest.approx(0.5 * 0.8)
    assert hypervolume([*front, (1.0, 1.0)], (0.0, 0.0)) == 6.0  # dominated
    assert hypervolume([(-1.0, 5.0)], (0.0, 0.0)) == 0.0  # not above the reference


def test_hypervolume_in_three_dimensions_by_counting_unit_cubes():
    rng = np.random.default_rng(0)
    points = rng.integers(1, 5, size=(6, 3))
    corners = np.stack(np.meshgrid(*[np.arange(5)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    counted = sum(any((corner < point).all() for point in points) for corner in corners)
    assert hypervolume(points, (0, 0, 0)) == counted


def test_the_meta_reward():
    assert meta_reward(0.0) == 0.5
    assert meta_reward(-3.0) == 0.5
    assert meta_reward(0.5) == pytest.approx(1.193176, abs=1e-6)
    assert meta_reward(100.0) == pytest.approx(2.0)


def test_a_guide_grows_its_front_and_comes_back_from_a_checkpoint():
    guide = HypervolumeGuide()
    assert guide.observe((0.0, 0.0)) == 1.0  # the initial model
    for point in ((1.0, 3.0), (2.0, 2.0), (3.0, 1.0)):
        guide.observe(point)
    again = HypervolumeGuide.from_dict(json.loads(json.dumps(guide.to_dict())))
    for one in (guide, again):
        assert one.observe((2.5, 1.8)) == pytest.approx(0.5 + 1.5 * math.tanh(0.4))
        assert one.observe((0.5, 0.5)) == 0.5  # nothing gained, not kept
        assert len(one.points) == 5
    for wrong in ((1.0,), (1.0, float("nan"))):
        with pytest.raises(ValueError, match="2 finite numbers"):
            guide.observe(wrong)


# Gradients ------------------------------------------------------------------------------------------------------------


def test_influences_are_row_sums_of_the_gram_matrix():
    gradients = np.array([[1.0, 0.0], [1.0, 1.0]])
    assert influences(gradients @ gradients.T).tolist() == [1 + 1, 1 + 2]


@pytest.mark.parametrize(
    ("gradients", "moves"),
    [([[1.0, 0.0], [0.0, 1.0]], 0), ([[1.0, 2.0], [-1.0, -2.0]], 0), ([[2.0, 0.0], [0.0, 1.0]], 1)],
)
def test_mirror_ascent(gradients, moves):
    found = GradientWeights([0.5, 0.5])
    g = np.array(gradients)
    first, second = found.update(g @ g.T, learning_rate=1e-6)
    assert np.sign(round(first - second, 12)) == moves  # orthonormal, opposite: as they were; the larger gains
    if moves:  # η/μ = 0.1, I = (4, 1)
        assert first == pytest.approx(math.exp(0.4) / (math.exp(0.4) + math.exp(0.1)))


def test_weights_come_back_bit_for_bit():
    found = GradientWeights([0.334, 0.333, 0.333])
    gram = np.diag([3.0, 2.0, 1.0])
    found.update(gram, learning_rate=1e-6)
    again = GradientWeights.from_dict(json.loads(json.dumps(found.to_dict())))
    assert again.update(gram, learning_rate=1e-6) == found.update(gram, learning_rate=1e-6)
    with pytest.raises(ValueError, match="Gram"):
        found.update(np.eye(2), learning_rate=1e-6)
    with pytest.raises(ValueError, match="above 0"):
        GradientWeights([1.0, 0.0])


# MaxMin ---------------------------------------------------------------------------------------------------------------

REFERENCE = np.array([0.4, 0.3, 0.2, 0.1])
REWARDS = np.array([[0.0, 1.0, 2.0, 3.0], [2.0, 2.0, 0.0, 0.0]])


def policy_of(weights, beta: float) -> np.ndarray:
    tilt = REFERENCE * np.exp(np.asarray(weights) @ REWARDS / beta)
    return tilt / tilt.sum()


@pytest.mark.parametrize(
    ("beta", "weight", "policy", "value", "mixture"),
    [
        (1.0, 0.588601, (0.269855, 0.364602, 0.192317, 0.173226), 1.268914, (1.705027, 0.864297)),
        (0.25, 0.508650, (0.105183, 0.603422, 0.060398, 0.230997), 1.417210, (2.878175, 0.047006)),
    ],
)
def test_the_published_minimax(beta, weight, policy, value, mixture):
    weights = maxmin_weights(REFERENCE, REWARDS, beta=beta)
    assert weights[0] == pytest.approx(weight, abs=1e-5)
    found = policy_of(weights, beta)
    assert found == pytest.approx(policy, abs=1e-5)
    assert REWARDS @ found == pytest.approx([value, value], abs=1e-5)
    assert REWARDS @ policy_of((0.8, 0.2), beta) == pytest.approx(mixture, abs=1e-6)  # what 80/20 raters would give


def test_multiplicative_weights_reach_it():
    found = MaxMinWeights([0.5, 0.5], step_size=0.05)
    for _ in range(4000):
        found.update((REWARDS @ policy_of(found.weights, 1.0)).tolist())
    assert found.weights[0] == pytest.approx(0.588601, abs=1e-4)
    again = MaxMinWeights.from_dict(json.loads(json.dumps(found.to_dict())))
    assert again.update([1.0, 0.0]) == found.update([1.0, 0.0])
    assert again.average == found.average
    with pytest.raises(ValueError, match="2 finite"):
        found.update([1.0])


def test_a_group_that_is_always_worse_off_gets_all_the_weight():
    rewards = np.array([[1.0, 2.0, 3.0, 4.0], [0.0, 1.0, 2.0, 3.0]])
    assert maxmin_weights(REFERENCE, rewards, beta=1.0) == pytest.approx([0.0, 1.0], abs=1e-6)


def test_raters_go_to_the_reward_that_explains_them():
    rng = np.random.default_rng(0)
    truth = [0, 0, 1, 1, 1]
    margins = [rng.normal(1.0, 0.5, size=(8, 1)) * np.array([[1.0, -1.0]]) * (1 if t == 0 else -1) for t in truth]
    loglik = rater_log_likelihoods(margins)
    assert assign_raters(loglik).tolist() == truth
    gamma = responsibilities(loglik, [0.5, 0.5])
    assert gamma.sum(axis=1) == pytest.approx(np.ones(5))
    assert gamma.argmax(axis=1).tolist() == truth
    one = rater_log_likelihoods([np.array([[2.0, 0.0]])])
    assert one[0] == pytest.approx([-math.log1p(math.exp(-2)), -math.log(2)])
    odds = math.exp(one[0, 0]) * 0.3 / (math.exp(one[0, 1]) * 0.7)
    assert responsibilities(one, [0.3, 0.7])[0, 0] == pytest.approx(odds / (1 + odds))


def test_an_empty_group_is_given_the_rater_explained_worst():
    loglik = np.array([[-1.0, -9.0], [-5.0, -6.0], [-2.0, -7.0]])
    assert reseed_empty([0, 0, 0], loglik).tolist() == [0, 1, 0]
    assert reseed_empty([0, 1, 0], loglik).tolist() == [0, 1, 0]
