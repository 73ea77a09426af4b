"""Intervals against published numbers, against scipy, and by counting how often they contain the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from accord.evaluation.intervals import (
    Interval,
    bootstrap_interval,
    clustered_mean_interval,
    mean_interval,
    paired_difference,
    wilson,
)


def test_wilson_by_hand() -> None:
    # 8 of 10 with z = 1.959964: centre (0.8 + 3.841459/20) / (1 + 0.3841459) = 0.716740,
    # half-width 1.959964/1.3841459 · √(0.016 + 3.841459/400) = 0.226578
    interval = wilson(8, 10)
    assert interval.low == pytest.approx(0.716740 - 0.226578, abs=1e-5)
    assert interval.high == pytest.approx(0.716740 + 0.226578, abs=1e-5)
    assert str(interval) == "0.80 [0.49, 0.94] (n = 10)"


@given(total=st.integers(1, 500), share=st.floats(0, 1), confidence=st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_equals_scipy_and_is_symmetric(total: int, share: float, confidence: float) -> None:
    successes = round(share * total)
    interval = wilson(successes, total, confidence)
    peer = stats.binomtest(successes, total).proportion_ci(confidence, method="wilson")
    assert (interval.low, interval.high) == pytest.approx((peer.low, peer.high), abs=1e-12)
    mirrored = wilson(total - successes, total, confidence)
    assert (1 - mirrored.high, 1 - mirrored.low) == pytest.approx((interval.low, interval.high), abs=1e-12)


def test_wilson_at_the_edges() -> None:
    assert wilson(0, 20).low == 0.0
    assert wilson(0, 20).high == pytest.approx(3.841459 / (20 + 3.841459), abs=1e-6)  # z²/(n + z²)
    assert wilson(20, 20).high == 1.0
    nothing = wilson(0, 0)
    assert (math.isnan(nothing.value), nothing.low, nothing.high) == (True, 0.0, 1.0)
    assert wilson(2.5, 5).value == 0.5  # a tie counts half


@pytest.mark.parametrize(("successes", "total"), [(-1, 5), (6, 5), (0, -1), (math.nan, 5)])
def test_wilson_refuses_what_is_not_a_count(successes: float, total: int) -> None:
    with pytest.raises(ValueError, match="expected 0 ≤ successes ≤ total"):
        wilson(successes, total)


def test_confidence_outside_its_range_is_refused() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        mean_interval([1.0, 2.0], confidence=95)


def test_mean_interval_equals_scipy() -> None:
    values = np.random.default_rng(0).normal(3, 2, size=17)
    peer = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    interval = mean_interval(values, 0.9)
    assert (interval.low, interval.high) == pytest.approx((peer.low, peer.high), rel=1e-12)
    assert interval.excludes_zero


def test_mean_of_few_values() -> None:
    assert mean_interval([2.0]) == Interval(2.0, -math.inf, math.inf, 1)
    assert math.isnan(mean_interval([]).value)
    # of 0 and 2: mean 1, s = √2, standard error 1, t(1) at 97.5 % = tan(0.475 π) = 12.7062
    assert mean_interval([0.0, 2.0]).high == pytest.approx(1 + math.tan(0.475 * math.pi), rel=1e-9)


def test_paired_difference_equals_scipy_and_knows_its_sign() -> None:
    generator = np.random.default_rng(1)
    before = generator.normal(0, 5, size=30)
    after = before + generator.normal(1, 0.5, size=30)
    peer = stats.ttest_rel(after, before).confidence_interval(0.95)
    interval = paired_difference(after, before)
    assert (interval.low, interval.high) == pytest.approx((peer.low, peer.high), rel=1e-9)
    assert interval.low > 0
    with pytest.raises(ValueError, match="same items"):
        paired_difference([1.0], [1.0, 2.0])


def test_clusters_of_one_are_the_plain_mean_and_copies_add_nothing() -> None:
    values = np.random.default_rng(2).normal(size=25)
    plain = mean_interval(values)
    single = clustered_mean_interval(values, np.arange(25))
    assert (single.value, single.low, single.high) == pytest.approx((plain.value, plain.low, plain.high), rel=1e-12)
    copied = clustered_mean_interval(np.repeat(values, 4), np.repeat(np.arange(25), 4))
    assert (copied.low, copied.high, copied.count) == pytest.approx((plain.low, plain.high, 25), rel=1e-12)
    assert mean_interval(np.repeat(values, 4)).high < plain.high  # what forgetting the clusters would claim
    assert clustered_mean_interval([1.0, 2.0], [7, 7]) == Interval(1.5, -math.inf, math.inf, 1)


def test_bootstrap_is_reproducible_and_near_the_t_interval() -> None:
    values = np.random.default_rng(3).normal(1, 2, size=200)
    first = bootstrap_interval(values, seed=5)
    assert first == bootstrap_interval(values, seed=5)
    assert first != bootstrap_interval(values, seed=6)
    exact = mean_interval(values)
    assert first.low == pytest.approx(exact.low, abs=0.05)
    assert first.high == pytest.approx(exact.high, abs=0.05)


def test_bootstrap_resamples_rows() -> None:
    pairs = np.random.default_rng(4).normal(size=(100, 1)) @ np.array([[1.0, 2.0]])
    slope = bootstrap_interval(pairs, lambda rows: rows[:, 1].sum() / rows[:, 0].sum(), seed=0, num_resamples=50)
    assert (slope.low, slope.value, slope.high) == pytest.approx((2.0, 2.0, 2.0))  # rows stay together


def test_coverage_is_what_is_promised() -> None:
    generator = np.random.default_rng(0)
    repeats = 2000
    rates = [wilson(int(wins), 40) for wins in generator.binomial(40, 0.7, size=repeats)]
    means = [mean_interval(values) for values in generator.exponential(1.0, size=(repeats, 60))]
    prompts = np.repeat(np.arange(30), 4)
    effects = generator.normal(size=(repeats, 30, 1)) + generator.normal(size=(repeats, 30, 4))
    clustered = [clustered_mean_interval(values.reshape(-1), prompts) for values in effects]
    naive = [mean_interval(values.reshape(-1)) for values in effects]

    def coverage(intervals: list[Interval], truth: float) -> float:
        return float(np.mean([interval.low <= truth <= interval.high for interval in intervals]))

    # 95 % ± 4 standard errors of 2000 repeats (0.0049); the t interval of 60 exponential values loses about 2 %
    assert coverage(rates, 0.7) == pytest.approx(0.95, abs=0.02)
    assert coverage(means, 1.0) == pytest.approx(0.94, abs=0.02)
    assert coverage(clustered, 0.0) == pytest.approx(0.95, abs=0.02)
    assert coverage(naive, 0.0) < 0.85


@pytest.mark.parametrize(
    ("interval", "text"),
    [
        (Interval(0.61234, 0.57, 0.65, 500), "0.612 [0.570, 0.650] (n = 500)"),
        (Interval(1234.5, 1200.0, 1300.0, 9), "1234 [1200, 1300] (n = 9)"),
        (Interval(1.0, 1.0, 1.0, 3), "1.000 [1.000, 1.000] (n = 3)"),
        (Interval(2.0, -math.inf, math.inf, 1), "2.000 [-inf, inf] (n = 1)"),
    ],
)
def test_an_interval_is_readable(interval: Interval, text: str) -> None:
    assert str(interval) == text


def test_metric_names_of_an_interval() -> None:
    assert Interval(0.6, 0.5, 0.7, 10).as_dict("eval/accuracy") == {
        "eval/accuracy": 0.6,
        "eval/accuracy_low": 0.5,
        "eval/accuracy_high": 0.7,
    }
