"""Best-of-N: its exact law, its KL and its estimates, against published numbers and brute force."""

from __future__ import annotations

import math
from itertools import combinations, product

import numpy as np
import pytest

from accord.decoding.estimates import best_of_n_law, best_of_n_mean, kl_bound, order_weights


def kl(p, q) -> float:
    p, q = np.asarray(p), np.asarray(q)
    return float(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0))


@pytest.mark.parametrize(
    ("n", "bound"),
    [(1, 0.0), (2, 0.193147), (4, 0.636294), (8, 1.204442), (16, 1.835089), (64, 3.174508), (128, 3.859843)],
)
def test_the_bound(n: int, bound: float):
    assert kl_bound(n) == pytest.approx(bound, abs=1e-6)


def test_the_law_with_ties():
    reference, rewards = (0.1, 0.2, 0.3, 0.4), (3, 1, 1, 0)
    best = best_of_n_law(reference, rewards, 4)
    assert best == pytest.approx((0.3439, 0.2522, 0.3783, 0.0256), abs=5e-5)
    assert kl(best, reference) == pytest.approx(0.500624, abs=1e-6)
    assert kl(best, reference) < kl_bound(4)
    worst = best_of_n_law(reference, rewards, 4, side="worst")
    assert worst == pytest.approx((0.0001, 0.0518, 0.0777, 0.8704), abs=5e-5)


def test_the_law_by_enumerating_all_draws():
    reference, rewards = np.array([0.5, 0.3, 0.2]), np.array([1.0, 0.0, 2.0])
    counted = np.zeros(3)
    for draws in product(range(3), repeat=3):
        counted[max(draws, key=lambda place: rewards[place])] += np.prod(reference[list(draws)])
    assert best_of_n_law(reference, rewards, 3) == pytest.approx(counted)


def test_best_of_k_again_and_again_is_best_of_a_power():
    """RAFT: three rounds of best-of-2 are best-of-8."""
    reference, rewards = np.array([0.4, 0.3, 0.2, 0.1]), np.arange(4.0)
    law = reference
    for _ in range(3):
        law = best_of_n_law(law, rewards, 2)
    assert law == pytest.approx((0.000655, 0.056993, 0.372819, 0.569533), abs=1e-6)
    assert law == pytest.approx(best_of_n_law(reference, rewards, 8))


def test_the_estimate_is_the_mean_over_all_choices_of_n():
    scores, gold = [0.3, -1.0, 2.0, 0.7, 0.1], [5.0, 1.0, 2.0, 9.0, -3.0]
    for n in range(1, 6):
        picks = [max(chosen, key=lambda place: scores[place]) for chosen in combinations(range(5), n)]
        assert best_of_n_mean(scores, n, values=gold) == pytest.approx(np.mean([gold[pick] for pick in picks]))
        worst = [min(chosen, key=lambda place: scores[place]) for chosen in combinations(range(5), n)]
        found = best_of_n_mean(scores, n, values=gold, side="worst")
        assert found == pytest.approx(np.mean([gold[pick] for pick in worst]))
    assert best_of_n_mean(scores, 5) == 2.0
    assert best_of_n_mean(scores, 1) == pytest.approx(np.mean(scores))
    assert order_weights(5, 3).sum() == pytest.approx(1.0)


def test_tied_scores_share_their_weight():
    gold = [0.0, 4.0, 8.0]
    picks = [(0.0 + 4.0) / 2, 8.0, 8.0]  # of {a, b} tied a coin decides; c is better than both
    assert best_of_n_mean([1.0, 1.0, 2.0], 2, values=gold) == pytest.approx(np.mean(picks))


def test_more_than_there_are_is_refused():
    for n in (0, 4):
        with pytest.raises(ValueError, match="1 ≤ N"):
            best_of_n_mean([1.0, 2.0, 3.0], n)
    with pytest.raises(ValueError, match="finite"):
        best_of_n_mean([1.0, float("nan")], 1)
