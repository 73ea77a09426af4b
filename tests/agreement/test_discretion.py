"""Measures of discretion: their limit cases, and priorities against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest

from accord.agreement import discretion_report
from accord.agreement.discretion import (
    arbitrary_cases,
    case_types,
    discretion_discrepancy,
    priorities,
    supremacy,
)

NAN = math.nan
PRINCIPLES = np.array([[1, 1, NAN, -1, NAN, 1], [1, -1, NAN, NAN, -1, 1], [NAN, 1, NAN, -1, -1, 1]])


def test_case_types() -> None:
    assert case_types(PRINCIPLES).tolist() == [
        "consensus", "conflict", "indifference", "consensus", "consensus", "consensus",
    ]  # fmt: skip


def test_arbitrariness_of_the_limit_cases() -> None:
    consensus = np.array([1, 1, 1, -1, -1, 1.0])
    assert np.nanmean(arbitrary_cases(consensus, PRINCIPLES)) == 0.0
    assert np.nanmean(arbitrary_cases(-consensus, PRINCIPLES)) == 1.0
    assert np.nansum(arbitrary_cases([1, -1, -1, 1, NAN, 1], PRINCIPLES)) == 1.0, "one of three decided on a consensus"
    assert np.isfinite(arbitrary_cases([1, -1, -1, 1, NAN, 1], PRINCIPLES)).sum() == 3
    generator = np.random.default_rng(0)
    many = np.tile(PRINCIPLES, 2000)
    coin = generator.choice([-1, 1], size=many.shape[1])
    assert np.nanmean(arbitrary_cases(coin, many)) == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(8000))


def test_two_principles_differ_by_the_logit_of_supremacy() -> None:
    """They contradict ten times, the annotator sides with the first seven times: w_1 − w_2 = logit 0.7."""
    principles = np.array([[1.0] * 10, [-1.0] * 10])
    annotator = [1.0] * 7 + [-1.0] * 3
    share, count = supremacy(annotator, principles)
    assert (share[0, 1], share[1, 0], count[0, 1]) == (0.7, pytest.approx(0.3), 10)
    assert np.isnan(share[0, 0])
    first, second = priorities([[0, 7], [3, 0]])
    assert first - second == pytest.approx(math.log(0.7 / 0.3))
    assert first + second == pytest.approx(0)


def test_bradley_terry_golden() -> None:
    """Wins [[0,6,8],[4,0,7],[2,3,0]]: strengths 1.806638, 1.160792, 0.476842 (geometric mean 1)."""
    found = np.exp(priorities([[0, 6, 8], [4, 0, 7], [2, 3, 0]]))
    np.testing.assert_allclose(found, [1.806638, 1.160792, 0.476842], atol=1e-6)


def test_who_always_wins_or_loses_is_infinite() -> None:
    wins = [[0, 5, 5, 0], [0, 0, 3, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    first, second, third, absent = priorities(wins)
    assert first == math.inf
    assert second - third == pytest.approx(math.log(3))
    assert math.isnan(absent)
    assert priorities([[0, 5], [0, 0]]).tolist() == [math.inf, -math.inf]


def test_discrepancy_of_the_limit_cases() -> None:
    weights = [3.0, 1.0, -1.0, -math.inf]
    assert discretion_discrepancy(weights, weights) == pytest.approx(0)
    assert discretion_discrepancy(weights, weights[::-1]) == pytest.approx(1)
    assert discretion_discrepancy([1, 2, 3], [1, 3, 2]) == pytest.approx((1 - 1 / 3) / 2), "two of three pairs agree"
    assert math.isnan(discretion_discrepancy([1, NAN], [1, 2]))


def test_report() -> None:
    principles = {"honest": [1.0] * 20, "kind": [-1.0] * 15 + [1.0] * 5}
    annotators = {"frank": [1.0] * 12 + [-1.0] * 3 + [1.0] * 5, "gentle": [1.0] * 3 + [-1.0] * 12 + [-1.0, *[1.0] * 4]}
    report = discretion_report(principles, annotators)
    assert (report.conflict.value, report.consensus.value, report.indifference.value) == (0.75, 0.25, 0.0)
    assert report.arbitrariness["frank"] is not None
    assert report.arbitrariness["gentle"] is not None
    assert (report.arbitrariness["frank"].value, report.arbitrariness["gentle"].value) == (0.0, 0.2)
    assert report.supremacy["frank"]["honest"]["kind"] == 12 / 15
    assert report.priority["frank"]["honest"] - report.priority["frank"]["kind"] == pytest.approx(math.log(12 / 3))
    discrepancy = report.discrepancy["frank"]["gentle"]
    assert discrepancy is not None
    assert discrepancy.value == pytest.approx(1)
