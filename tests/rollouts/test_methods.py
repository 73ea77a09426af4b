"""Every online method on the one loop: it learns the text world, and a reward that says nothing moves nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from toy_runs import BASE, final_weights, metrics_of, run

from accord.feedback.findings import Finding
from accord.lab.gold import GoldReward, request_prompts
from accord.lab.text_world import split_requests
from accord.objectives.methods import METHODS
from accord.policy.load import load_policy
from accord.records import Group

PROMPTS = request_prompts(split_requests()[0])
ONLINE: dict[str, Any] = {
    "train.batch_size": 12, "train.epochs": 100, "train.schedule": "constant", "train.warmup": 0, "train.lr": 5e-4,
    "rollout.max_tokens": 24, "data.eval_fraction": 0.0, "reference.cache": None,
}  # fmt: skip
STEPS = {"ppo": 48, "iterative_dpo": 28, "reinforce": 18, "reinforce_pp": 18, "raft": 16, "nash_md": 20}
MORE: dict[str, dict[str, Any]] = {
    "ppo": {"rollout.num_responses": 4, "train.lr": 3e-4}, "reinforce": {"rollout.num_responses": 4},
    "reinforce_pp": {"rollout.num_responses": 4}, "dapo": {"rollout.truncated": "keep"},
}  # fmt: skip


class Constant:
    """A judge to whom everything is worth the same."""

    name = "constant"

    def __call__(self, groups: list[Group]) -> list[list[Finding]]:
        return [[Finding(score=0.75) for _ in group.responses] for group in groups]


class Sometimes(GoldReward):
    """The gold reward, unknown for every third response."""

    def __call__(self, groups: Any) -> list[list[Finding]]:
        found = super().__call__(groups)
        return [
            [
                Finding(score=None, reason="down") if place % 3 == 0 else finding
                for place, finding in enumerate(of_group)
            ]
            for of_group in found
        ]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_learns_the_text_world(name: str, tmp_path: Path):
    settings = ONLINE | {"method": name, "train.max_steps": STEPS.get(name, 14)} | MORE.get(name, {})
    done = run(PROMPTS, tmp_path / "out", reward=GoldReward(), **settings)
    rewards = [line["rollout/reward"] for line in metrics_of(done) if "rollout/reward" in line]
    assert sum(rewards[-4:]) / 4 > rewards[0] + 0.25, rewards


@pytest.mark.parametrize(
    "name", ["reinforce", "rloo", "grpo", "dr_grpo", "reinforce_pp", "gspo", "cispo", "online_dpo"]
)
def test_a_constant_reward_moves_nothing(name: str, tmp_path: Path):
    settings = ONLINE | {"method": name, "train.max_steps": 3, "rollout.num_responses": 3}
    keys = METHODS[name].settings
    settings |= {key: 0.0 for key in ("advantage.kl_coef", "objective.kl_coef") if key in keys}
    run(PROMPTS, tmp_path / "out", reward=Constant(), **settings)
    start = load_policy(BASE).trained()
    for key, weight in final_weights(tmp_path / "out").items():
        assert torch.equal(weight, start[key]), key


def test_unknown_rewards_are_left_out_and_counted(tmp_path: Path):
    settings = ONLINE | {"method": "grpo", "train.max_steps": 10, "rollout.num_responses": 6}
    done = run(PROMPTS, tmp_path / "out", reward=Sometimes(), **settings)
    lines = metrics_of(done)
    assert all(line["rollout/reward_unknown"] == pytest.approx(1 / 3) for line in lines if "rollout/reward" in line)
    assert lines[-1]["rollout/reward"] > lines[0]["rollout/reward"]


def test_dynamic_sampling_trains_on_groups_that_differ(tmp_path: Path):
    """A reward of 0 or 1: many groups of 3 are flat; those kept are not."""

    class Good(GoldReward):
        def __call__(self, groups: Any) -> list[list[Finding]]:
            found = super().__call__(groups)
            return [[Finding(score=float((f.score or 0.0) > 2.0)) for f in of_group] for of_group in found]

    settings = ONLINE | {"method": "grpo", "train.max_steps": 3, "rollout.num_responses": 3}
    flat = run(PROMPTS, tmp_path / "flat", reward=Good(), **settings)
    done = run(
        PROMPTS,
        tmp_path / "out",
        reward=Good(),
        **settings,
        **{"rollout.dynamic_sampling": True, "rollout.max_draws": 8},
    )
    assert any(line["rollout/all_equal"] > 0 for line in metrics_of(flat) if "rollout/all_equal" in line)
    from accord.store import RunFolder

    for row in RunFolder.open(done.run.path).read_rows("train").to_pylist():  # type: ignore[union-attr]
        assert len({*row["ratings"]}) > 1
