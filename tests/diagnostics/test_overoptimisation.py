"""The curve of score against distance: recovered from its own points, its peak where calculus puts it, bad input."""

import math

import numpy as np
import pytest

from accord.diagnostics.overoptimisation import fit_overoptimisation

D = np.array([0.0, 0.5, 1.0, 2.0, 4.0, 8.0])


def curve(d, start=0.2, a=1.0, b=0.4):
    return start + np.where(d > 0, d * (a - b * np.log(np.where(d > 0, d, 1.0))), 0.0)


def test_a_curve_is_recovered_from_its_points():
    fit = fit_overoptimisation(D, curve(D))
    assert (fit.start, fit.a, fit.b) == pytest.approx((0.2, 1.0, 0.4))
    assert fit.residual == pytest.approx(0.0, abs=1e-12)
    assert [fit.score(d) for d in D] == pytest.approx(curve(D))


def test_the_peak_is_where_the_derivative_vanishes():
    """d(d(a − b log d))/dd = a − b log d − b = 0 at log d = a/b − 1; the height is b d*."""
    fit = fit_overoptimisation(D, curve(D))
    assert fit.peak == pytest.approx(math.exp(1.0 / 0.4 - 1))
    assert fit.score(fit.peak) - fit.start == pytest.approx(0.4 * fit.peak)
    assert fit.score(fit.peak) > max(fit.score(0.99 * fit.peak), fit.score(1.01 * fit.peak))


def test_a_score_that_only_rises_has_no_peak():
    fit = fit_overoptimisation(D, D * (1 + 0.1 * np.log(np.maximum(D, 1e-9))))
    assert fit.b == pytest.approx(-0.1)
    assert fit.peak is None


def test_noise_ends_in_the_residual():
    noise = 0.1 * np.random.default_rng(0).standard_normal(6)
    assert 0.0 < fit_overoptimisation(D, curve(D) + noise, start=0.2).residual < 0.2


@pytest.mark.parametrize(
    ("distances", "scores", "what"),
    [
        ([0, 1, 2], [0, 1, 2], "three or more"),
        ([1, 2, 3], [1, 2, 3], "start"),
        ([0, -1, 2, 3], [0, 1, 2, 3], "not negative"),
        ([0, 1, 2, 3], [0, 1, 2, float("nan")], "finite"),
        ([0, 1], [0, 1, 2], "equal lists"),
    ],
)
def test_bad_points_are_refused(distances, scores, what):
    with pytest.raises(ValueError, match=what):
        fit_overoptimisation(distances, scores)
