"""Choosing among responses: the best, those above a threshold, and the dice of RSO against its exact law."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from accord.decoding.selection import above_threshold, best_of_n, statistical_rejection
from accord.errors import ConfigError
from accord.feedback.findings import Finding
from accord.records import Comparison, Group, Rating, Response


class Recorded:
    """Scores that came with the data, in the column `scores`; None = unknown."""

    name = "reward"

    def __call__(self, groups):
        return [[Finding(score=s, reason="" if s is not None else "late") for s in g.extra["scores"]] for g in groups]


def group(*scores: float | None, **extra) -> Group:
    responses = tuple(Response(content=str(place)) for place in range(len(scores)))
    return Group(prompt="p", responses=responses, extra={"scores": scores, **extra})


def kept(selection) -> list[list[str]]:
    return [[response.content for response in group.responses] for group in selection.groups]


def test_the_best_and_the_best_few():
    groups = [group(1.0, 3.0, None, 3.0, 2.0), group(0.0)]
    found = best_of_n(groups, Recorded(), judge="rm")
    assert kept(found) == [["1"], ["0"]]  # of equal scores the first
    assert found.groups[0].judgements == (Rating(response=0, value=3.0, attribute="reward", judge="rm"),)
    assert (found.num_candidates, found.num_kept, found.num_unknown) == (6, 2, 1)
    assert kept(best_of_n(groups, Recorded(), keep=3)) == [["1", "3", "4"], ["0"]]


def test_a_response_of_unknown_score_is_never_kept():
    found = best_of_n([group(None, None), group(None, -5.0)], Recorded())
    assert kept(found) == [["1"]]
    assert found.left_out == [(0, "no score: late")]
    assert above_threshold([group(None)], Recorded(), threshold=-1e9).groups == []


def test_earlier_judgements_go_and_columns_stay():
    one = Group(
        prompt="p", responses=(Response(content="a"), Response(content="b")),
        judgements=(Comparison(better=0, worse=1),), extra={"scores": [0.0, 1.0], "answer": "4"},
    )  # fmt: skip
    (chosen,) = best_of_n([one], Recorded()).groups
    assert [type(judgement) for judgement in chosen.judgements] == [Rating]
    assert chosen.extra["answer"] == "4"


def test_above_a_threshold():
    found = above_threshold([group(0.0, 1.0, 0.5), group(0.0)], Recorded(), threshold=0.5)
    assert kept(found) == [["1", "2"]]
    assert found.left_out == [(1, "no response was accepted")]
    assert found.kept_share == 0.5


def test_statistical_rejection_draws_from_the_tilted_law():
    """Accepting with exp((r − r_max)/β) turns π into π e^{r/β}/Z; the acceptance rate is Z e^{−r_max/β}."""
    reference, rewards, beta = np.array([0.4, 0.3, 0.2, 0.1]), np.array([0.0, 1.0, 2.0, 3.0]), 1.0
    weights = reference * np.exp(rewards / beta)
    rate = weights.sum() * math.exp(-3.0 / beta)
    assert rate == pytest.approx(4.701849 * math.exp(-3), abs=1e-6)
    draws = np.random.default_rng(0).choice(4, size=(300, 64), p=reference)
    groups = [
        Group(
            prompt=str(row), responses=tuple(Response(content=str(arm)) for arm in arms),
            extra={"scores": rewards[arms].tolist()},
        )
        for row, arms in enumerate(draws)
    ]  # fmt: skip
    found = statistical_rejection(groups, Recorded(), beta=beta, highest=3.0)
    counts = Counter(response.content for one in found.groups for response in one.responses)
    total = sum(counts.values())
    for arm, expected in enumerate(weights / weights.sum()):
        assert counts[str(arm)] / total == pytest.approx(expected, abs=4 * math.sqrt(0.25 / total))
    assert found.kept_share == pytest.approx(rate, abs=4 * math.sqrt(0.25 / draws.size))
    again = statistical_rejection(groups, Recorded(), beta=beta, highest=3.0)
    assert kept(again) == kept(found)
    assert kept(statistical_rejection(groups, Recorded(), beta=beta, highest=3.0, seed=1)) != kept(found)


def test_without_a_maximum_the_groups_own_is_always_accepted():
    found = statistical_rejection([group(5.0, -50.0, None), group(-50.0)], Recorded(), beta=1.0)
    assert kept(found) == [["0"], ["0"]]


def test_settings_out_of_range_are_refused():
    with pytest.raises(ConfigError, match="keep=0"):
        best_of_n([group(1.0)], Recorded(), keep=0)
    with pytest.raises(ConfigError, match="beta"):
        statistical_rejection([group(1.0)], Recorded(), beta=0.0)


def test_best_of_8_by_a_published_reward_model(shared_data: Path):
    """100 problems, 8 solutions each: 94 of the best-scored are right, 91 % of all; 96 problems have a right one."""
    text = (shared_data / "math_misc/math_cot_100_bon8_rm.jsonl").read_text("utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    groups = [group(*(score for (score,) in row["pred_score"]), right=row["score"]) for row in rows]
    chosen = best_of_n(groups, Recorded()).groups
    right = [one.extra["right"][int(one.responses[0].content)] for one in chosen]
    assert (len(right), sum(right)) == (100, 94)
    assert sum(sum(row["score"]) for row in rows) / 8 == pytest.approx(91.0)
    assert sum(any(row["score"]) for row in rows) == 96
