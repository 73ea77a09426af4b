"""InfAlign: quantiles among reference samples, the published frontier, and the optimum of best- and worst-of-N."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from accord.data import write_groups
from accord.errors import ConfigError, DataError
from accord.feedback.composition.infalign import (
    InferenceCalibrated,
    beta_for_kl,
    calibrated_reward,
    cells,
    divergence,
    optimal_density,
    read_references,
    tilted,
    transformed,
    win_rate,
)
from accord.feedback.findings import Finding
from accord.records import Group, Rating, Response

U = cells(4001)
FRONTIER = {  # standard / best-of-4 / worst-of-4 win rate at KL 0.1, 0.5, 1.0
    "identity": (U, [(0.6278, 0.6562, 0.6808), (0.7737, 0.7998, 0.8860), (0.8646, 0.8770, 0.9745)]),
    "log": (np.log(U), [(0.6185, 0.6185, 0.7235), (0.7682, 0.7682, 0.9270), (0.8631, 0.8631, 0.9859)]),
    "e^5u": (np.exp(5 * U), [(0.6113, 0.6994, 0.6025), (0.7461, 0.8566, 0.7465), (0.8390, 0.9192, 0.8572)]),
    "e^10u": (np.exp(10 * U), [(0.5922, 0.7057, 0.5695), (0.7117, 0.8715, 0.6763), (0.8010, 0.9351, 0.7712)]),
    "u^7": (U**7, [(0.5991, 0.7050, 0.5780), (0.7257, 0.8665, 0.6977), (0.8178, 0.9284, 0.8013)]),
    "-e^-5u": (-np.exp(-5 * U), [(0.6102, 0.5925, 0.7339), (0.7539, 0.7230, 0.9439), (0.8567, 0.8352, 0.9912)]),
    "-e^-10u": (-np.exp(-10 * U), [(0.5897, 0.5630, 0.7339), (0.7358, 0.6859, 0.9476), (0.8479, 0.8095, 0.9927)]),
}


@pytest.mark.parametrize("name", FRONTIER)
def test_the_published_frontier(name: str):
    phi, expected = FRONTIER[name]
    for kl, rates in zip((0.1, 0.5, 1.0), expected, strict=True):
        q = tilted(phi, beta_for_kl(lambda beta: tilted(phi, beta), kl))
        assert divergence(q) == pytest.approx(kl, abs=1e-6)
        found = (win_rate(q), win_rate(q, n=4), win_rate(q, n=4, of="worst"))
        assert found == pytest.approx(rates, abs=1.1e-4)


@pytest.mark.parametrize(
    ("of", "points"),
    [
        ("best", [(0.8809, 0.1, 0.5944, 0.7059), (0.2171, 0.5, 0.7024, 0.8733), (0.0834, 1.0, 0.7735, 0.9411)]),
        ("worst", [(1.1464, 0.1, 0.5980, 0.7374), (0.2082, 0.5, 0.7344, 0.9479), (0.0282, 1.0, 0.8389, 0.9929)]),
    ],
)
def test_the_optimum_beats_every_transform_at_its_kl(of, points):
    q = None
    for beta, kl, standard, at_n in points:
        q = optimal_density(beta, n=4, of=of, start=q)
        assert divergence(q) == pytest.approx(kl, abs=0.003)
        assert win_rate(q) == pytest.approx(standard, abs=5e-4)
        assert win_rate(q, n=4, of=of) == pytest.approx(at_n, abs=5e-4)
        for phi, _ in FRONTIER.values():
            other = tilted(phi, beta_for_kl(lambda b, phi=phi: tilted(phi, b), divergence(q)))
            assert win_rate(other, n=4, of=of) <= win_rate(q, n=4, of=of) + 1e-6


def test_one_draw_asks_for_the_exponential_tilt():
    beta = 0.5
    exact = np.exp(U / beta) / (beta * (math.exp(1 / beta) - 1))
    np.testing.assert_allclose(optimal_density(beta, n=1), exact, rtol=1e-5)


@pytest.mark.parametrize("a", [0.5, 1.0, 3.0])
def test_powers_of_u_win_as_often_at_every_n(a: float):
    q = U**a / (U**a).mean()
    for n in (1, 2, 4, 8):
        assert win_rate(q, n=n) == pytest.approx((a + 1) / (a + 2), abs=1e-5)


def test_best_of_n_against_the_tilt_of_equal_kl():
    for n, tilt in ((2, 0.675907), (4, 0.803996), (8, 0.889675)):
        best = n * U ** (n - 1)
        kl = math.log(n) - (n - 1) / n
        assert divergence(best) == pytest.approx(kl, abs=1e-5)
        assert win_rate(best) == pytest.approx(n / (n + 1), abs=1e-5)
        assert win_rate(tilted(U, beta_for_kl(lambda b: tilted(U, b), kl))) == pytest.approx(tilt, abs=1e-5)


def test_quantiles_count_ties_as_half_and_keep_any_increasing_map():
    anchors = [0.0, 1.0, 1.0, 3.0]
    assert [calibrated_reward(r, anchors) for r in (-1.0, 0.0, 1.0, 2.0, 3.0, 9.0)] == [
        0.0, 0.5 / 4, (1 + 0.5 * 2) / 4, 3 / 4, 3.5 / 4, 1.0
    ]  # fmt: skip
    warped = [math.exp(5 * r) + 7 for r in anchors]
    for r in (-1.0, 0.0, 1.0, 2.0):
        assert calibrated_reward(math.exp(5 * r) + 7, warped) == calibrated_reward(r, anchors)


def test_transforms():
    assert transformed(0.5, "identity") == 0.5
    assert transformed(0.5, "exp", t=4.0) == pytest.approx(math.e**2)
    assert transformed(0.5, "exp", t=-4.0) == pytest.approx(-(math.e**-2))
    assert transformed(0.5, "power", t=7.0) == 2**-7
    assert transformed(0.0, "log", floor=0.125) == math.log(0.125)
    for bad in ({"transform": "exp", "t": 0.0}, {"transform": "power", "t": -1.0}):
        with pytest.raises(ConfigError, match="t >"):
            InferenceCalibrated(references={}, **bad)


def test_a_score_is_ranked_among_its_own_prompts_samples(tmp_path: Path):
    responses = tuple(Response(content=str(i)) for i in range(2))
    ratings = tuple(Rating(response=i, value=float(i), attribute="reward") for i in range(2))
    write_groups(tmp_path / "ref.jsonl", [Group(prompt="p", responses=responses, judgements=ratings)] * 2)
    references = read_references(tmp_path / "ref.jsonl")
    assert references == {"p": [0.0, 0.0, 1.0, 1.0]}  # the same prompt twice: more samples of it
    reward = InferenceCalibrated(references=references)
    groups = [Group(prompt="p", responses=responses), Group(prompt="other", responses=responses[:1])]
    known, unknown = Finding(score=0.5), Finding(score=None, reason="late")
    (ranked, late), (foreign,) = reward(groups, [[known, unknown], [known]])
    assert (ranked.score, ranked.parts) == (0.5, {"quantile": 0.5})
    assert (late.score, late.reason) == (None, "late")
    assert foreign.score is None
    assert "no scored reference samples" in foreign.reason
    write_groups(tmp_path / "bare.jsonl", [Group(prompt="p", responses=responses)])
    with pytest.raises(DataError, match="accord score"):
        read_references(tmp_path / "bare.jsonl")
