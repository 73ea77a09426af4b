"""Every early warning fires on the run it is about and is silent on a healthy one and on missing metrics."""

from __future__ import annotations

import re
from typing import Any

import pytest

from accord.evaluation.indicators import METRIC_RULES, SUMMARY_RULES, find_warnings

HEALTHY = [
    {
        "step": step,
        "loss": 0.69 - 0.01 * step,
        "rewards/chosen": 0.02 * step,
        "rewards/rejected": -0.03 * step,
        "rewards/margins": 0.05 * step,
        "rewards/accuracies": 0.5 + 0.015 * step,
        "eval/loss": 0.69 - 0.008 * step,
        "eval/rewards/accuracies": 0.5 + 0.01 * step,
        "eval/ranking_accuracy": 0.5 + 0.01 * step,
        "eval/ranking_accuracy_low": 0.45 + 0.01 * step,
        "eval/ranking_accuracy_high": 0.55 + 0.01 * step,
        "statistics/entropy": 2.0 - 0.01 * step,
    }
    for step in range(20)
]
HEALTHY_SUMMARY = {"gold_gain_ci95": [0.1, 0.2], "length_before": 10.0, "length_after": 11.9}


def change(**metrics: Any) -> list[dict[str, Any]]:
    """Return the healthy run with metrics replaced by functions of the step."""
    renamed = {name.replace("__", "/"): function for name, function in metrics.items()}
    return [record | {name: function(record["step"]) for name, function in renamed.items()} for record in HEALTHY]


def test_a_healthy_run_and_an_empty_one_get_no_warning() -> None:
    assert find_warnings(HEALTHY, HEALTHY_SUMMARY) == []
    assert find_warnings([], {}) == []
    assert find_warnings([{"step": 1}], {"gold_gain_ci95": None}) == []


@pytest.mark.parametrize(
    ("records", "words"),
    [
        (change(loss=lambda step: None if step == 7 else 0.5), "not a finite number at step 7"),
        (change(eval__ranking_accuracy_low=lambda step: 0.5), r"0\.690 \[0\.500, 0\.740\].*cannot be told from chance"),
        (
            change(eval__loss=lambda step: 0.6 + 0.01 * abs(step - 5)),
            r"lowest at step 5 \(0\.6\) and is 0\.74 at step 19",
        ),
        (
            change(rewards__accuracies=lambda step: 0.9),
            r"0\.90 in training and 0\.68 held out",
        ),
        (change(rewards__chosen=lambda step: -0.04 * step), "less likely than under the reference"),
        (change(statistics__entropy=lambda step: 2.0 - 0.06 * step), r"from 1\.97 to 0\.89 nats"),
        (
            change(
                eval__statistics__topk_entropy=lambda step: 1.0 - 0.01 * abs(step - 8),
                eval__logps__chosen=lambda step: -20.0 - step,
            ),
            r"Top-k entropy peaked at step 8 \(1\) and has fallen to 0\.89",
        ),
        (
            change(
                eval__statistics__topk_mass=lambda step: 0.9 - 0.02 * abs(step - 8),
                eval__logps__chosen=lambda step: -20.0 - step,
            ),
            r"Top-k mass peaked at step 8 \(0\.9\) and has shrunk to 0\.68",
        ),
        (
            change(eval__gradients__chosen_falls=lambda step: 0.4, eval__gradients__chosen_falls_low=lambda step: 0.3),
            r"40% of the held-out pairs",
        ),
        (change(eval__length__sampled=lambda step: 10.0 + step), r"from 10\.0 to 29\.0 tokens"),
    ],
)
def test_each_metric_rule_fires_alone(records: list[dict[str, Any]], words: str) -> None:
    (sentence,) = find_warnings(records, HEALTHY_SUMMARY)
    assert re.search(words, sentence)


@pytest.mark.parametrize(
    ("summary", "words"),
    [
        ({"gold_gain_ci95": [-0.01, 0.2]}, "not certain: its 95 % interval is [-0.010, 0.200]"),
        ({"length_before": 10.0, "length_after": 12.5}, "from 10.0 to 12.5 tokens"),
    ],
)
def test_each_summary_rule_fires_alone(summary: dict[str, Any], words: str) -> None:
    (sentence,) = find_warnings(HEALTHY, summary)
    assert words in sentence


def test_every_rule_is_tested_here() -> None:
    assert (len(METRIC_RULES), len(SUMMARY_RULES)) == (11, 2)  # three of rollouts are in test_online_report
