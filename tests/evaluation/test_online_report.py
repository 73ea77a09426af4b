"""The page of a run that samples: rewards with their parts, KL, lengths, the sampler, and answers with rewards."""

from __future__ import annotations

from pathlib import Path

import pytest

from accord.evaluation.charts import charts_of, draw_charts
from accord.evaluation.headline import make_table, make_tiles
from accord.evaluation.indicators import find_warnings
from accord.evaluation.report import collect_report, render_report
from accord.store import RunFolder

ONLINE = {
    "loss": 0.01, "rollout/reward": 0.5, "rollout/reward/gold": 0.75, "rollout/reward/length_penalty": -0.25,
    "rollout/length": 12.0, "rollout/truncated": 0.0, "rollout/all_equal": 0.25, "rollout/reward_unknown": 0.0,
    "rollout/kl": 0.5, "sampler/abs_diff": 3e-7, "log_ratio/response": 0.5, "rewards/margins": 0.0,
    "rewards/accuracies": 0.5, "rewards/chosen": 0.0, "rewards/rejected": 0.0,
}  # fmt: skip
FILE = {"loss": 0.6, "rewards/margins": 0.0, "rewards/accuracies": 0.5}


def records(metrics: dict[str, float], steps: int = 3) -> list[dict[str, float]]:
    return [{"step": step} | metrics for step in range(1, steps + 1)]


def online_run(path: Path) -> RunFolder:
    run = RunFolder.create(path)
    run.write_config({"method": "grpo", "objective": {"name": "ppo_clip"}, "advantage": {"name": "grpo"}})
    for record in records(ONLINE):
        run.append_metrics(record.pop("step"), record)  # type: ignore[arg-type]
    for step, reward, answer in ((0, 0.25, "short"), (3, 0.875, "a longer one")):
        ends = {"eval/reward_low": reward - 0.125, "eval/reward_high": reward + 0.125}
        run.append_metrics(step, {"eval/reward": reward, "eval/kl": 0.5 * step, "eval/length/sampled": 4.0} | ends)
        row = {"step": step, "index": 0, "prompt": "why?", "response": answer, "num_tokens": 7, "log_ratio": 0.0}
        run.write_rows("samples", step, [row | {"score": None, "reward": reward}])
    run.write_summary({"samples": [{"prompt": "why?", "before": "short", "after": "a longer one"}]})
    return run


def test_rewards_come_first_and_pairs_that_nobody_reads_not_at_all():
    titles = [title for title, _, _ in draw_charts(records(ONLINE), reads_pairs=False)]
    assert titles[:2] == ["Reward", "Parts of the reward"]
    for title in ("Divergence from the reference", "Length", "Responses and prompts that teach little"):
        assert titles.count(title) == 1
    assert "Sampler and trainer" in titles
    assert not {"Accuracy", "Margin", "Implicit rewards"} & set(titles)
    (loss,) = (hint for title, hint, _ in draw_charts(records(ONLINE)) if title == "Loss")
    assert "need not fall" in loss


def test_pairs_that_an_objective_reads_stay():
    assert {"Accuracy", "Margin"} <= {chart.title for chart in charts_of(records(ONLINE))}


def test_a_run_on_a_file_has_the_charts_it_had():
    titles = [title for title, _, _ in draw_charts(records(FILE))]
    assert titles == ["Loss", "Accuracy", "Margin"]


def test_more_parts_than_one_plot_can_tell_apart_take_two():
    parts = {f"rollout/reward/p{number}": float(number) for number in range(6)}
    found = [chart for chart in charts_of(records(parts)) if chart.title == "Parts of the reward"]
    assert [sorted(chart.metrics) for chart in found] == [["p0", "p1", "p2", "p3"], ["p4", "p5"]]
    one = charts_of(records({"rollout/reward/gold": 1.0}))[1]  # a single line has no legend
    assert one.title == "Part of the reward: gold"


def test_the_numbers_on_top_are_the_held_out_reward_with_its_interval(tmp_path: Path):
    run = online_run(tmp_path / "run")
    tile = make_tiles({}, run.read_metrics())[0]
    assert (tile["label"], tile["value"], tile["note"]) == ("Reward", "0.875", "95 % interval 0.750 to 1.00")
    (row,) = (row for row in make_table({}, run.read_metrics()) if row["name"] == "Reward, held out")
    assert (row["before"], row["after"]) == ("0.250", "0.875")


def test_answers_are_shown_with_their_rewards(tmp_path: Path):
    run = online_run(tmp_path / "run")
    (sample,) = collect_report(run)["samples"]
    assert dict(sample["notes"]["before"]) == {"reward": "0.250", "tokens": "7"}
    assert dict(sample["notes"]["after"]) == {"reward": "0.875", "tokens": "7"}
    page = render_report(run)
    assert "reward 0.875" in page
    assert "Margin over steps" not in page  # the objective reads advantages
    assert "grpo" in page


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("rollout/reward_unknown", 0.5, "The reward of 50% of the responses is unknown"),
        ("rollout/all_equal", 0.75, "the same reward for 75% of the prompts"),
        ("rollout/truncated", 0.5, "50% of the responses were cut by rollout.max_tokens"),
    ],
)
def test_what_teaches_nothing_is_warned_about(name: str, value: float, says: str):
    assert not find_warnings(records(ONLINE), {})
    assert [says in sentence for sentence in find_warnings(records(ONLINE | {name: value}), {})] == [True]
