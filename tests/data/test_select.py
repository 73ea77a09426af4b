"""Choosing a share of the groups: the mixture, the entropy, the draws, and the two baselines."""

from __future__ import annotations

import numpy as np
import pytest

from accord.data.transforms.select import binary_entropy, mixture_posterior, rating_gap, select_share
from accord.errors import ConfigError, DataError
from accord.records import Comparison, Group, Rating, Response

RNG = np.random.default_rng(0)
TWO_HEAPS = np.concatenate([RNG.normal(0.0, 0.3, 300), RNG.normal(3.0, 0.5, 100)])


def judged(*judgements: Comparison | Rating) -> Group:
    return Group(
        prompt="x", responses=(Response(content="a"), Response(content="b"), Response(content="c")),
        judgements=judgements, origin="file:3",
    )  # fmt: skip


def test_the_mixture_finds_two_heaps():
    posterior = mixture_posterior(TWO_HEAPS)
    assert posterior[:300].mean() < 0.01
    assert posterior[300:].mean() > 0.98
    assert posterior.sum() / 400 == pytest.approx(0.25, abs=0.01)  # share of the upper component
    far = mixture_posterior(np.array([0.0, 0.1, 0.2, 50.0, 50.1]))
    assert (far > 0.5).tolist() == [False, False, False, True, True]


def test_the_posterior_does_not_depend_on_unit_or_order():
    order = RNG.permutation(400)
    np.testing.assert_allclose(mixture_posterior(100 * TWO_HEAPS - 7), mixture_posterior(TWO_HEAPS), atol=1e-6)
    np.testing.assert_allclose(mixture_posterior(TWO_HEAPS[order]), mixture_posterior(TWO_HEAPS)[order], atol=1e-6)


@pytest.mark.parametrize("values", [[1.0], [2.0, 2.0, 2.0], []])
def test_values_without_spread_say_nothing(values: list[float]):
    assert mixture_posterior(np.array(values)).tolist() == [0.5] * len(values)


def test_entropy_in_bits():
    assert binary_entropy(np.array([0.0, 0.5, 1.0, 0.25])).tolist() == pytest.approx(
        [0.0, 1.0, 0.0, 0.25 * 2 + 0.75 * np.log2(4 / 3)]
    )


def test_top_takes_the_largest_and_of_equals_the_first():
    assert select_share("abcde", [1.0, 3.0, 2.0, 3.0, 0.0], method="top", fraction=0.4) == ["b", "d"]
    assert select_share("abc", [1.0, 1.0, 1.0], method="top", fraction=0.34) == ["a"]


@pytest.mark.parametrize("method", ["isa", "random", "top"])
def test_a_share_is_drawn_without_replacement_in_order_and_again_by_its_seed(method):
    items = list(range(400))
    chosen = select_share(items, TWO_HEAPS.tolist(), method=method, fraction=0.1, seed=3)
    assert len(chosen) == len(set(chosen)) == 40
    assert chosen == sorted(chosen)
    assert chosen == select_share(items, TWO_HEAPS.tolist(), method=method, fraction=0.1, seed=3)
    assert select_share(items, TWO_HEAPS.tolist(), method=method, fraction=1.0, seed=3) == items
    assert len(select_share(items[:3], [1.0, 2.0, 3.0], method=method, fraction=0.01)) == 1


def test_isa_draws_where_the_posterior_and_its_entropy_are_large():
    """Weights (γ + h)/2: near 1/2 for the upper heap, 0 for the lower one, 3/4 between them (γ = 1/2, h = 1)."""
    counts = np.zeros(400)
    for seed in range(60):
        counts[select_share(range(400), TWO_HEAPS.tolist(), method="isa", fraction=0.05, seed=seed)] += 1
    assert counts[300:].sum() / counts.sum() > 0.95
    posterior = mixture_posterior(TWO_HEAPS)
    weights = 0.5 * (posterior + binary_entropy(posterior))
    assert np.corrcoef(counts, weights)[0, 1] > 0.9


def test_what_cannot_be_selected_by():
    with pytest.raises(ConfigError, match="select_fraction=0"):
        select_share("ab", [1.0, 2.0], method="top", fraction=0.0)
    for features in ([1.0], [1.0, float("nan")]):
        with pytest.raises(DataError, match="one finite number for each"):
            select_share("ab", features, method="top", fraction=0.5)


def test_the_gap_is_of_ratings_else_of_strengths():
    rated = (Rating(response=0, value=4.0), Rating(response=1, value=1.0))
    assert rating_gap(judged(Comparison(better=0, worse=1, strength=9.0), *rated)) == 3.0
    assert rating_gap(judged(Comparison(better=1, worse=0), *rated)) == -3.0  # the raters and the judge disagree
    assert (
        rating_gap(judged(Comparison(better=0, worse=1, strength=2.0), Comparison(better=0, worse=2, strength=1.0)))
        == 1.5
    )
    assert rating_gap(judged(*rated)) == 3.0
    for group in (judged(Comparison(better=0, worse=1)), judged(rated[0]), judged()):
        with pytest.raises(DataError, match="file:3: says nowhere how much better"):
            rating_gap(group)
