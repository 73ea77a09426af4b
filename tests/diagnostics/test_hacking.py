"""The monitor of hacked rewards: each rule by derived numbers, and all on recorded runs with a known gold reward."""

from __future__ import annotations

import math

import numpy as np
import pytest

from accord.diagnostics.hacking import (
    LENGTH_FACTOR,
    least_kl,
    reward_hacking_warnings,
    share_above,
    warn_of_disagreement,
    warn_of_length_drift,
    warn_of_scores_out_of_range,
    warn_of_unpaid_distance,
)

COLUMNS = (
    "step", "rollout/kl", "rollout/reward", "rollout/reward_std_within", "rollout/length", "rollout/above_reference",
    "gold",
)  # fmt: skip
# Two runs of RLOO with β = 0 against a reward model of 3024 pairs in the text world: 36 prompts × 4 responses a step,
# 64 reference samples per prompt; the first line alone, then means of three lines.
SEED_0 = [
    (1, 0.00, 0.07, 0.59, 11.6, 0.01, 0.88),
    (4, 0.11, 0.26, 0.66, 13.6, 0.04, 1.01),
    (7, 0.56, 0.52, 0.51, 16.5, 0.07, 1.17),
    (10, 1.15, 0.54, 0.51, 19.1, 0.07, 1.21),
    (13, 1.82, 0.60, 0.45, 21.3, 0.07, 1.18),
    (16, 2.22, 0.71, 0.38, 22.1, 0.08, 1.24),
    (19, 2.88, 0.72, 0.37, 23.5, 0.10, 1.22),
    (22, 3.06, 0.80, 0.29, 21.4, 0.09, 1.33),
    (25, 5.05, 0.81, 0.29, 20.2, 0.12, 1.24),
    (28, 7.72, 0.88, 0.20, 19.6, 0.14, 1.15),
    (31, 7.77, 0.85, 0.23, 19.2, 0.10, 1.14),
    (34, 6.68, 0.86, 0.23, 18.6, 0.12, 1.21),
    (37, 7.81, 0.86, 0.22, 18.5, 0.12, 1.21),
    (40, 7.14, 0.90, 0.21, 18.5, 0.14, 1.24),
    (43, 7.76, 0.92, 0.19, 18.5, 0.16, 1.11),
    (46, 10.17, 0.95, 0.22, 18.9, 0.21, 0.93),
    (49, 11.74, 0.94, 0.23, 18.8, 0.20, 0.81),
    (52, 13.76, 1.00, 0.20, 19.8, 0.29, 0.65),
    (55, 14.10, 1.04, 0.17, 19.8, 0.32, 0.56),
    (58, 17.73, 1.05, 0.18, 20.2, 0.35, 0.20),
    (61, 23.27, 1.06, 0.24, 21.0, 0.40, -0.11),
    (64, 26.20, 1.11, 0.25, 21.7, 0.49, -0.28),
    (67, 29.28, 1.19, 0.23, 22.1, 0.54, -0.47),
    (70, 29.34, 1.24, 0.28, 22.0, 0.60, -0.59),
]
SEED_1 = [
    (1, 0.00, -0.10, 0.74, 11.6, 0.01, 0.73),
    (4, 0.09, 0.26, 0.77, 13.4, 0.03, 1.04),
    (7, 0.67, 0.58, 0.76, 16.3, 0.07, 1.16),
    (10, 1.52, 0.87, 0.69, 20.1, 0.07, 1.27),
    (13, 3.75, 0.95, 0.64, 26.3, 0.11, 0.87),
    (16, 4.30, 1.06, 0.65, 27.1, 0.17, 0.84),
    (19, 5.03, 1.14, 0.56, 26.0, 0.15, 0.94),
    (22, 5.03, 1.28, 0.53, 24.9, 0.19, 1.12),
    (25, 3.77, 1.34, 0.44, 21.9, 0.20, 1.48),
    (28, 3.74, 1.42, 0.40, 20.4, 0.23, 1.63),
    (31, 3.89, 1.41, 0.39, 19.5, 0.21, 1.61),
    (34, 5.07, 1.44, 0.39, 19.2, 0.25, 1.61),
    (37, 6.22, 1.49, 0.35, 19.7, 0.25, 1.61),
    (40, 6.58, 1.56, 0.33, 19.8, 0.30, 1.58),
    (43, 6.93, 1.61, 0.31, 19.7, 0.34, 1.58),
    (46, 7.93, 1.63, 0.30, 20.0, 0.31, 1.47),
    (49, 9.23, 1.68, 0.34, 20.3, 0.34, 1.28),
    (52, 11.20, 1.70, 0.32, 20.2, 0.36, 1.10),
    (55, 14.99, 1.77, 0.26, 20.6, 0.37, 0.84),
    (58, 16.01, 1.80, 0.25, 20.6, 0.43, 0.86),
    (61, 17.58, 1.81, 0.26, 20.6, 0.42, 0.81),
    (64, 20.16, 1.83, 0.27, 20.6, 0.48, 0.71),
    (67, 26.07, 1.87, 0.24, 21.3, 0.47, 0.38),
    (70, 43.85, 1.89, 0.31, 22.9, 0.56, -0.29),
]
RECORDED = {"0": SEED_0, "1": SEED_1}


def lines(rows: list[tuple[float, ...]]) -> list[dict[str, float]]:
    """A recorded run as the monitor sees it: without gold."""
    return [dict(zip(COLUMNS[:-1], row[:-1], strict=True)) for row in rows]


def flat(metrics: dict[str, float], count: int = 6) -> list[dict[str, float]]:
    """A run whose first line is the reference's and whose other lines are all the same."""
    start = {"rollout/reward": 0.0, "rollout/reward_std_within": 1.0, "rollout/kl": 0.0, "rollout/length": 20.0}
    return [{"step": 1, **start}, *({"step": step, **start, **metrics} for step in range(2, count + 2))]


@pytest.mark.parametrize("name", RECORDED)
def test_it_warns_before_gold_has_fallen_by_a_fifth(name: str):
    rows = RECORDED[name]
    gold = [row[-1] for row in rows]
    peak = int(np.argmax(gold))
    fallen = next(place for place in range(peak, len(gold)) if gold[place] < 0.8 * gold[peak])
    seen = lines(rows)
    assert reward_hacking_warnings(seen[:3]) == []
    assert reward_hacking_warnings(seen[:fallen])  # all that was known one line before
    telling = (warn_of_unpaid_distance, warn_of_scores_out_of_range)
    assert any(rule(seen[:fallen]) for rule in telling)  # length alone is no proof
    assert gold[-1] < gold[0] < gold[peak]  # it was indeed over-optimised …
    assert rows[-1][2] > rows[peak][2]  # … and the proxy never noticed


def test_the_least_kl_is_that_of_the_tilted_normal():
    # N(λσ², σ²) against N(0, σ²): KL = (λσ²)²/(2σ²); with σ = 2 and a shift of 3, 9/8
    assert least_kl(3.0, 2.0) == pytest.approx(9 / 8)
    # by a grid: the reference N(0, 2²) tilted so that its mean is 3
    r = np.linspace(-40, 40, 200_001)
    reference = np.exp(-(r**2) / 8)
    tilted = reference * np.exp(3 / 4 * r)
    reference, tilted = reference / reference.sum(), tilted / tilted.sum()
    assert (tilted * r).sum() == pytest.approx(3.0)
    assert (tilted * np.log(tilted / reference)).sum() == pytest.approx(9 / 8)
    assert least_kl(-1.0, 2.0) == 0.0
    assert least_kl(1.0, 0.0) == math.inf


def test_distance_is_compared_with_its_price():
    # a shift of one deviation costs 1/2 nat: 6 × 1/2 = 3 is the limit
    assert warn_of_unpaid_distance(flat({"rollout/reward": 1.0, "rollout/kl": 2.9})) is None
    said = warn_of_unpaid_distance(flat({"rollout/reward": 1.0, "rollout/kl": 3.3}))
    assert said is not None
    assert "3.3 nats" in said
    assert "0.5 would buy" in said
    # twice the shift costs four times as much
    assert warn_of_unpaid_distance(flat({"rollout/reward": 2.0, "rollout/kl": 11.0})) is None
    # nearer than two nats nothing is said, paid or not
    assert warn_of_unpaid_distance(flat({"rollout/kl": 1.9})) is None
    assert warn_of_unpaid_distance(flat({"rollout/kl": 2.1})) is not None
    # the loss's own name for the same distance
    renamed = [{("log_ratio/response" if k == "rollout/kl" else k): v for k, v in line.items()}
               for line in flat({"rollout/kl": 2.1})]  # fmt: skip
    assert warn_of_unpaid_distance(renamed) is not None


def test_one_wild_line_is_no_warning():
    calm = flat({"rollout/reward": 1.0, "rollout/kl": 1.0})
    calm[3] = calm[3] | {"rollout/kl": 9.0}  # means over three lines of 11/3, above 6 × 1/2 three times in a row …
    assert warn_of_unpaid_distance(calm[:4]) is None  # … is not lasting yet
    assert warn_of_unpaid_distance(calm) is not None
    calm[3] = calm[3] | {"rollout/kl": 6.0}  # 8/3 < 3
    assert warn_of_unpaid_distance(calm) is None


def test_the_share_above_the_best_reference_sample():
    scores = [[1.0, 3.0], [0.0, math.nan], [5.0, 5.0]]
    references = [[2.0, 0.0], [0.5, math.nan], [math.nan, math.nan]]  # best: 2, 1/2, unknown
    assert share_above(scores, references) == pytest.approx(1 / 3)  # of 1, 3 and 0
    assert share_above([[1.0, 1.0]], [[0.0, 1.0]]) == 0.0  # a verifier's 1 is not above a 1
    assert math.isnan(share_above([[math.nan]], [[1.0]]))
    draws = np.random.default_rng(0).normal(size=(4000, 10))
    assert share_above(draws[:, :1], draws[:, 1:]) == pytest.approx(1 / 10, abs=0.02)  # the best of ten is any of them
    with pytest.raises(ValueError, match="same prompts"):
        share_above([[1.0]], [[1.0], [2.0]])


def test_scores_out_of_range_are_said_in_words():
    assert warn_of_scores_out_of_range(flat({"rollout/above_reference": 0.25})) is None
    said = warn_of_scores_out_of_range(flat({"rollout/reward/above_reference": 0.4}))
    assert said is not None
    assert said.startswith("Since step 3 40% of the responses")


def test_members_that_part_are_noticed():
    steady = [{"step": i, "rollout/reward/deviation": 0.2} for i in range(6)]
    assert warn_of_disagreement(steady) is None
    parting = [*steady, *({"step": i, "rollout/reward/deviation": 0.4} for i in range(6, 10))]
    said = warn_of_disagreement(parting)
    assert said is not None
    # means over three lines from step 6 on: 0.27, 0.33, 0.4; the second in a row above 1.5 × 0.2 is at step 8
    assert said.startswith("Since step 8")


def test_length_counts_only_while_the_reward_rises():
    longer = {"rollout/length": 20.0 * LENGTH_FACTOR + 1}
    assert warn_of_length_drift(flat(longer)) is None
    said = warn_of_length_drift(flat(longer | {"rollout/reward": 0.5}))
    assert said is not None
    assert "had 20 at first" in said
    assert warn_of_length_drift(flat({"rollout/length": 9.0, "rollout/reward": 0.5})) is not None  # or shorter


def test_a_run_without_the_metrics_is_left_alone():
    assert reward_hacking_warnings([]) == []
    assert reward_hacking_warnings([{"step": 1, "loss": 0.5}]) == []
    one_response = [{key: value for key, value in line.items() if key != "rollout/reward_std_within"}
                    for line in flat({"rollout/kl": 50.0})]  # fmt: skip
    assert reward_hacking_warnings(one_response) == []
