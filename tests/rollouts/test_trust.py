"""What a rollout survives: a stop inside it, a judge that is down, another machine, its own record."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from rollouts.test_methods import ONLINE, PROMPTS
from toy_runs import assert_same_bits, checkpoint_of, final_weights, largest_gap, metrics_of, run

from accord.data import load_groups
from accord.errors import FeedbackError, TrainingError
from accord.feedback.findings import Finding
from accord.lab.gold import GoldReward
from accord.records import Group
from accord.store import RunFolder

BLOCKS: dict[str, Any] = ONLINE | {
    "train.max_steps": 12, "train.batch_size": 4, "rollout.prompts": 8, "rollout.epochs": 2, "rollout.max_tokens": 12,
    "rollout.num_responses": 3, "train.checkpoint_every": 100,
}  # fmt: skip
"""Rollouts of 8 prompts, four steps each: steps 5 to 8 are the second."""
CASES: dict[str, dict[str, Any]] = {
    "ppo": {"method": "ppo", "rollout.kl_target": 0.5},
    "ppo, a critic of its own": {"method": "ppo", "critic.path": "policy", "critic.lr": 1e-3},
    "moving baseline": {"method": "reinforce", "advantage.baseline": "moving_average"},
    "grpo": {"method": "grpo"},
    "drawn ahead": {"method": "grpo", "rollout.max_staleness": 1, "objective.sampler_correction": "token_truncate"},
    "online dpo": {"method": "online_dpo"},
    "xpo": {"method": "xpo"},
}


def stop_at(step: int) -> Callable[[int, int, dict[str, float]], None]:
    """Send this process the signal of a scheduler once a step has been reported."""

    def progress(now: int, total: int, metrics: dict[str, float]) -> None:
        if now == step:
            signal.raise_signal(signal.SIGTERM)

    return progress


@pytest.mark.parametrize("case", CASES)
def test_a_stop_inside_a_rollout_changes_nothing(case: str, tmp_path: Path):
    settings = BLOCKS | CASES[case]
    whole = run(PROMPTS, tmp_path / "whole", reward=GoldReward(), **settings)
    first = run(PROMPTS, tmp_path / "parts", reward=GoldReward(), progress=stop_at(6), **settings)
    assert first.was_stopped
    second = run(PROMPTS, tmp_path / "parts", reward=GoldReward(), resume=True, **settings)
    assert_same_bits(metrics_of(whole), metrics_of(second))
    assert_same_bits(*(checkpoint_of(tmp_path / part, 12) for part in ("whole", "parts")))


class FailsOnce(GoldReward):
    """The gold reward, down at its second call and up again for those who come back."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, groups: Sequence[Group]) -> list[list[Finding]]:
        self.calls += 1
        if self.calls == 2:
            raise FeedbackError("http://judge does not answer")
        return super().__call__(groups)


def test_a_judge_that_is_down_pauses_the_run_and_nothing_is_lost(tmp_path: Path):
    settings = BLOCKS | {"method": "grpo"}
    whole = run(PROMPTS, tmp_path / "whole", reward=GoldReward(), **settings)
    reward = FailsOnce()
    with pytest.raises(FeedbackError, match="pauses after step 4; --resume"):
        run(PROMPTS, tmp_path / "out", reward=reward, **settings)
    again = run(PROMPTS, tmp_path / "out", reward=reward, resume=True, **settings)
    assert_same_bits(metrics_of(whole), metrics_of(again))
    assert_same_bits(final_weights(tmp_path / "whole"), final_weights(tmp_path / "out"))


def test_neither_the_token_budget_nor_the_layout_changes_a_step(tmp_path: Path):
    settings = BLOCKS | {"method": "grpo", "train.max_steps": 4}
    one = run(PROMPTS, tmp_path / "one", reward=GoldReward(), **settings)
    many = run(PROMPTS, tmp_path / "many", reward=GoldReward(), **settings | {"train.max_batch_tokens": 40})
    for line, other in zip(metrics_of(one), metrics_of(many), strict=True):
        assert {key: pytest.approx(value, rel=1e-3, abs=1e-5) for key, value in line.items()} == other
    gap = largest_gap(final_weights(tmp_path / "one"), final_weights(tmp_path / "many"))
    assert gap < 2e-4, gap  # AdamW at 5e-4 turns the rounding of a gradient near 0 into a share of a step


def test_rollouts_are_on_disk_and_can_be_replayed(tmp_path: Path):
    """A replay of the first rollout starts where the run did: the same old log-probabilities, the same first step."""
    settings = BLOCKS | {"method": "grpo", "train.max_steps": 4}
    done = run(PROMPTS, tmp_path / "live", reward=GoldReward(), **settings)
    assert done.run is not None
    folder = done.run.path / "rollouts"
    groups = load_groups(folder).groups
    assert len(groups) == 8
    assert all(len(group.responses) == 3 and len(group.judgements) == 3 for group in groups)
    assert all(response.behaviour_logps is not None for group in groups for response in group.responses)
    again = run(folder, tmp_path / "again", **settings | {"source": "replay", "train.epochs": 1})
    live, replayed = metrics_of(done), metrics_of(again)
    assert replayed[0]["rollout/reward"] == pytest.approx(live[0]["rollout/reward"])
    assert len([line for line in replayed if "loss" in line]) == 4
    rows = [RunFolder.open(tmp_path / name).read_rows("train").to_pylist() for name in ("live", "again")]
    first, second = ({row["index"]: row["ratings"] for row in part} for part in rows)
    assert sorted(map(str, first.values())) == sorted(map(str, second.values()))


def test_a_sampler_of_other_weights_is_noticed(tmp_path: Path):
    """Responses recorded at temperature 1 and trained on at 2 come from another distribution than the trainer's."""
    settings = BLOCKS | {
        "method": "grpo",
        "train.max_steps": 4,
        "rollout.mismatch_stop": 0.0,
        "rollout.mismatch_alarm": 0.0,
    }
    with pytest.raises(TrainingError, match="sampler and trainer differ by"):
        run(PROMPTS, tmp_path / "out", reward=GoldReward(), **settings)


def test_rollouts_of_an_earlier_run_are_neither_kept_nor_told_twice(tmp_path: Path):
    settings = BLOCKS | {"method": "grpo", "train.max_steps": 8}
    done = run(PROMPTS, tmp_path / "out", reward=GoldReward(), **settings)
    assert done.run is not None
    folder = done.run.path / "rollouts"
    assert [path.name for path in sorted(folder.iterdir())] == ["step-000000.parquet", "step-000004.parquet"]
    assert done.run.rewind(4) > 0  # to a checkpoint of step 4, which the second rollout comes after
    assert [path.name for path in folder.iterdir()] == ["step-000000.parquet"]
    RunFolder.create(done.run.path, overwrite=True)
    assert not folder.exists()


def test_a_reward_in_memory_has_a_place_or_is_refused(tmp_path: Path):
    from accord.alignment import align
    from accord.config import build_config
    from accord.errors import ConfigError

    config = build_config({"model": "m", "data": "d", "objective": "dpo"})
    with pytest.raises(ConfigError, match="source=file samples nothing"):
        align(config, reward=GoldReward())
    config = build_config({"model": "m", "data": "d", "method": "grpo", "reward.gsm8k.weight": 1})
    with pytest.raises(ConfigError, match="the config names another"):
        align(config, reward=GoldReward())
