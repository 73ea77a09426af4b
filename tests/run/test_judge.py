"""A reward model that scores held-out answers: its numbers in metrics and samples, the curve in the report."""

from pathlib import Path

import pytest
import toy_runs

from accord.errors import ConfigError, PolicyError
from accord.evaluation.charts import draw_overoptimisation
from accord.evaluation.report import write_report
from accord.policy.reward import load_reward


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("judge")
    done = toy_runs.run(toy_runs.judged_groups(24), folder / "run", objective="bradley_terry", train__max_steps=3)
    assert done.run is not None
    return done.run.path / "model"


def test_answers_are_scored_and_the_curve_is_drawn(judge: Path, tmp_path: Path) -> None:
    done = toy_runs.run(
        toy_runs.judged_groups(32), tmp_path / "run", train__max_steps=4,
        **{"evaluate.every": 1, "evaluate.num_samples": 6, "evaluate.sample_tokens": 8, "evaluate.reward": str(judge)},
    )  # fmt: skip
    lines = [line for line in toy_runs.metrics_of(done) if "eval/score" in line]
    assert len(lines) == 5
    assert all(line["eval/score_low"] <= line["eval/score"] <= line["eval/score_high"] for line in lines)
    assert done.run is not None
    samples = [row for row in done.run.read_rows("samples").to_pylist() if row["step"] == 4]
    assert sum(row["score"] for row in samples) / len(samples) == pytest.approx(lines[-1]["eval/score"])
    assert "Score against distance" in write_report(done.run).read_text("utf-8")


def test_the_curve_says_where_the_score_turns() -> None:
    """R(d) = d (1 − log d) peaks at d = 1, with d² the KL."""
    scores = {0.25: 0.8466, 1.0: 1.0, 2.25: 0.8918, 4.0: 0.6137}
    records = [{"eval/kl": 0.0, "eval/score": 0.0}]
    records += [{"eval/kl": kl, "eval/score": score} for kl, score in scores.items()]
    ((_, says, _),) = draw_overoptimisation(records)
    assert "peaks at √KL = 1.00" in says
    rising = [{"eval/kl": kl, "eval/score": kl} for kl in (0.0, 1.0, 4.0, 9.0)]
    assert "still rises" in draw_overoptimisation(rising)[0][1]
    assert draw_overoptimisation(rising[:3]) == []


def test_a_judge_that_cannot_judge_is_refused(judge: Path, tmp_path: Path) -> None:
    untrained = {"evaluate.num_samples": 2, "evaluate.reward": str(toy_runs.BASE)}
    with pytest.raises(PolicyError, match="whose head is untrained"):
        toy_runs.run(toy_runs.judged_groups(12), tmp_path / "a", **untrained)
    with pytest.raises(ConfigError, match=r"evaluate\.reward is set but evaluate\.num_samples is 0"):
        toy_runs.run(toy_runs.judged_groups(12), tmp_path / "b", **{"evaluate.reward": str(judge)})
    assert not load_reward(judge).starts_at_zero
