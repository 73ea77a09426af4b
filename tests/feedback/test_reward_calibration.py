"""Calibration: temperature, calibration error and the length curve against what they must be."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from accord.errors import FeedbackError
from accord.feedback.reward_calibration import (
    CALIBRATION_FILE,
    Calibration,
    expected_calibration_error,
    fit_temperature,
    length_curve,
    measure_calibration,
    read_calibration,
    write_calibration,
)


def test_the_temperature_makes_confidence_the_share_that_is_right():
    margins = [2.0] * 3 + [-2.0]  # 3 of 4 right at a margin of 2: σ(2/T) = 3/4
    found = fit_temperature(margins)
    assert found == pytest.approx(2 / math.log(3), rel=1e-4)
    assert expected_calibration_error(margins) == pytest.approx(1 / (1 + math.exp(-2)) - 0.75)
    assert expected_calibration_error(margins, temperature=found) == pytest.approx(0.0, abs=1e-4)


def test_the_temperature_undoes_a_scale():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, 4000)
    signs = np.where(rng.random(4000) < 1 / (1 + np.exp(-logits)), 1.0, -1.0)
    margins = signs * logits  # of comparisons that come out as their logit says
    assert fit_temperature(margins) == pytest.approx(1.0, abs=0.07)
    assert fit_temperature(5 * margins) == pytest.approx(5 * fit_temperature(margins), rel=1e-3)


def test_without_an_error_there_is_no_temperature_to_find():
    assert fit_temperature([1.0, 2.0]) == pytest.approx(1e-3, rel=1e-2)


def test_equal_scores_are_half_right():
    assert expected_calibration_error([0.0, 0.0]) == 0.0


def test_the_length_curve_is_exact_for_a_line():
    lengths = np.arange(1, 60)
    knots, values = length_curve(lengths, 3.0 - 0.25 * lengths)
    assert values == pytest.approx([3.0 - 0.25 * knot for knot in knots])


def test_the_length_curve_follows_a_bend_that_a_line_would_miss():
    rng = np.random.default_rng(0)
    lengths = rng.uniform(0, 100, 1500)
    truth = np.minimum(lengths, 50) / 10
    found = measure_calibration((truth + rng.normal(0, 0.2, 1500)).tolist(), lengths.tolist())
    assert max(abs(found.expected_at(x) - min(x, 50) / 10) for x in (5, 20, 80, 95)) < 0.45
    line = np.polyfit(lengths, truth, 1)
    assert abs(np.polyval(line, 5) - 0.5) > 0.6  # what the curve is better than
    assert found.expected_at(1e9) == found.expected[-1]


def test_samples_of_one_length_are_their_mean():
    found = measure_calibration([1.0, 3.0], [7, 7])
    assert (found.lengths, found.expected, found.mean) == ((7.0,), (2.0,), 2.0)


def test_what_cannot_be_measured_is_refused():
    for scores, lengths in (([1.0], [1]), ([1.0, float("nan")], [1, 2]), ([1.0, 1.0], [1, 2]), ([1.0, 2.0], [1])):
        with pytest.raises(FeedbackError):
            measure_calibration(scores, lengths)


def test_it_is_kept_beside_the_model(tmp_path: Path):
    found = measure_calibration([1.0, 3.0, 2.0], [1, 2, 3], margins=[1.0, -0.5])
    write_calibration(tmp_path, found)
    assert read_calibration(tmp_path) == found
    assert isinstance(found, Calibration)
    (tmp_path / CALIBRATION_FILE).write_text("{")
    with pytest.raises(FeedbackError, match="cannot be read"):
        read_calibration(tmp_path)
    assert read_calibration(tmp_path / "absent") is None
