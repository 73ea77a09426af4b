"""What a run that samples says of prompts, rewards and critics that do not fit, and when: before it costs anything."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from models import save_model
from rollouts.test_methods import ONLINE, PROMPTS
from toy_runs import BASE, metrics_of, run

from accord.alignment import align
from accord.errors import ConfigError, DataError, FeedbackError, PolicyError
from accord.feedback.composition import build_reward
from accord.feedback.findings import Finding
from accord.lab.gold import GoldReward
from accord.records import Group, Outcome, Rating, Verdict
from accord.rollouts.judging import check_prompts, judge, reward_sums, rewards_of

SHORT: dict[str, Any] = ONLINE | {
    "method": "grpo", "train.batch_size": 3, "train.max_steps": 2, "rollout.max_tokens": 8,
    "rollout.num_responses": 2,
}  # fmt: skip


class Says:
    """A judge whose findings are made by a function of the groups."""

    name = "says"

    def __init__(self, findings: Any) -> None:
        self.findings = findings

    def __call__(self, groups: Sequence[Group]) -> list[list[Finding]]:
        return self.findings(groups)


def scores(*values: float | None) -> Says:
    return Says(lambda groups: [[Finding(score=value, parts={"part": value}) for value in values] for _ in groups])


# -- prompts and settings ----------------------------------------------------------------------------------------------


def test_prompts_that_leave_no_room_for_a_response(tmp_path: Path):
    with pytest.raises(DataError, match=r"none of 2 prompts leaves room for a response of rollout.max_tokens=4000"):
        run(PROMPTS[:2], tmp_path / "out", reward=GoldReward(), **SHORT | {"rollout.max_tokens": 4000})
    assert not (tmp_path / "out").exists()


def test_a_run_without_a_reward(tmp_path: Path):
    with pytest.raises(ConfigError, match="source=rollouts needs a reward — set one"):
        run(PROMPTS[:2], tmp_path / "out", **SHORT)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"reward.gsmk.weight": 1.0}, "unknown reward gsmk — did you mean gsm8k"),
        ({"reward.gsm8k.wait": 1.0}, "unknown setting reward.gsm8k.wait — did you mean reward.gsm8k.weight"),
        ({"reward.overlong.buffer": 4}, "reward.overlong needs reward.overlong.max_length"),
        ({"reward.length_penalty.weight": 0}, "without a weight"),
    ],
)
def test_a_reward_that_cannot_be_made_is_refused_before_a_model_is_looked_for(settings: dict[str, Any], says: str):
    with pytest.raises(ConfigError, match=says):
        align(groups=PROMPTS[:2], **SHORT | {"model": "no/such/model"} | settings)


def test_rows_without_the_column_that_a_reward_reads_are_named_before_anything_is_sampled(tmp_path: Path):
    answered = [replace(group, extra={"answer": "#### 3"}) for group in PROMPTS[:3]]
    prompts = [*answered, replace(PROMPTS[3], extra={"solution": "3"})]
    with pytest.raises(DataError, match=r"request:3: got the columns solution .*'gsm8k' expects 'answer'.*answer_col"):
        run(prompts, tmp_path / "out", **SHORT | {"reward.gsm8k.weight": 1.0})
    assert not (tmp_path / "out").exists()
    reward = build_reward({"gsm8k": {}, "length_penalty": {"weight": 0.1}})
    check_prompts(answered, reward)  # these are whole
    check_prompts(prompts, GoldReward())  # this one reads nothing but texts


def test_a_reward_in_memory_beside_one_of_the_settings(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"got a reward in memory and also reward.length_penalty.weight"):
        run(PROMPTS[:2], tmp_path / "out", reward=GoldReward(), **SHORT | {"reward.length_penalty.weight": 1.0})


def test_a_critic_of_another_vocabulary(tmp_path: Path):
    other = save_model(tmp_path / "other")
    with pytest.raises(PolicyError, match=r"vocabulary of 61, not \d+ — expected a model that reads the policy's"):
        run(PROMPTS[:2], tmp_path / "out", reward=GoldReward(), **SHORT | {"method": "ppo", "critic.path": str(other)})


def test_a_replay_of_what_was_not_sampled(tmp_path: Path):
    with pytest.raises(DataError, match="request:0: a response has no token ids — source=replay takes recorded roll"):
        run(PROMPTS[:2], tmp_path / "out", **SHORT | {"source": "replay"})


def test_a_replay_needs_room_for_what_was_recorded_alone(tmp_path: Path):
    done = run(PROMPTS[:3], tmp_path / "live", reward=GoldReward(), **SHORT)
    assert done.run is not None
    settings = SHORT | {"source": "replay", "rollout.max_tokens": 4000, "train.epochs": 1, "train.max_steps": 1}
    assert run(done.run.path / "rollouts", tmp_path / "again", **settings).summary["steps"] == 1


# -- findings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_no_number_is_unknown_and_never_a_rating(value: float):
    pair = replace(PROMPTS[0], responses=PROMPTS[0].responses * 2)
    (judged,) = judge([pair], scores(value, 1.0))
    assert rewards_of(judged) == [None, 1.0]
    (verdict,) = (item for item in judged.judgements if isinstance(item, Verdict))
    assert (verdict.response, verdict.outcome) == (0, Outcome.UNKNOWN)
    assert f"the score is {value}" in verdict.reason
    assert [item.response for item in judged.judgements if isinstance(item, Rating)] == [1, 1]  # reward and part
    sums = reward_sums([judged])
    assert sums["rollout/reward"] == (1.0, 1.0)
    assert sums["rollout/reward_unknown"] == (1.0, 2.0)


@pytest.mark.parametrize(
    ("findings", "says"),
    [
        (lambda groups: [[Finding(score=1.0)] for _ in groups], "returned 3 findings for 6 responses — expected one"),
        (lambda groups: [], "returned 0 findings for 6 responses"),
        (lambda groups: [[1.0, 0.5] for _ in groups], r"returned 1.0 for a response — expected a Finding"),
        (lambda groups: 1 / 0, "reward says failed with ZeroDivisionError: division by zero"),
    ],
    ids=["too few", "none", "numbers", "a crash"],
)
def test_a_reward_that_does_not_keep_its_promise_pauses_the_run(findings: Any, says: str, tmp_path: Path):
    with pytest.raises(FeedbackError, match=f"{says}.*the run pauses after step 0; --resume goes on"):
        run(PROMPTS[:6], tmp_path / "out", reward=Says(findings), **SHORT)
    again = run(PROMPTS[:6], tmp_path / "out", reward=Says(GoldReward()), resume=True, **SHORT)  # mended
    assert again.summary["steps"] == 2


def test_a_rollout_of_unknown_rewards_trains_nothing_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    reward = Says(lambda groups: [[Finding(score=None, reason="down")] * 2 for _ in groups])
    done = run(PROMPTS[:6], tmp_path / "out", reward=reward, **SHORT)
    lines = metrics_of(done)
    assert [line["rollout/reward_unknown"] for line in lines] == [1.0, 1.0]
    assert not any("rollout/reward" in line or "loss" in line for line in lines)
    assert "no reward of rollout 0 is known" in caplog.text
    from safetensors.torch import load_file

    before, after = load_file(BASE / "model.safetensors"), load_file(tmp_path / "out" / "model" / "model.safetensors")
    assert all(bool((before[name] == after[name]).all()) for name in after)


def test_dynamic_sampling_that_finds_nothing_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    settings = SHORT | {"rollout.dynamic_sampling": True, "rollout.max_draws": 2}
    done = run(PROMPTS[:6], tmp_path / "out", reward=scores(0.5, 0.5), **settings)
    assert done.summary["steps"] == 2
    assert "rollout 0 has 0 groups instead of 3: the rewards of the others were all equal" in caplog.text
    assert all(line["rollout/kept"] == 0.0 for line in metrics_of(done))


class FailsOnHeldOut(GoldReward):
    """The gold reward, down when it is asked about held-out answers (one each) for the `at`-th time."""

    def __init__(self, at: int) -> None:
        self.at, self.calls = at, 0

    def __call__(self, groups: Sequence[Group]) -> list[list[Finding]]:
        if len(groups[0].responses) == 1:
            self.calls += 1
            if self.calls == self.at:
                raise FeedbackError("http://judge does not answer")
        return super().__call__(groups)


@pytest.mark.parametrize(("at", "step"), [(1, 0), (2, 2), (3, 4)], ids=["before", "on the way", "at the end"])
def test_a_judge_of_held_out_answers_that_is_down_pauses_the_run_and_nothing_is_lost(
    at: int, step: int, tmp_path: Path
):
    settings = SHORT | {
        "train.max_steps": 4, "train.checkpoint_every": 100, "data.eval_fraction": 0.25, "evaluate.every": 2,
        "evaluate.num_samples": 3,
    }  # fmt: skip
    whole = run(PROMPTS[:12], tmp_path / "whole", reward=GoldReward(), **settings)
    reward = FailsOnHeldOut(at)
    with pytest.raises(FeedbackError, match=f"does not answer — the run pauses after step {step}; --resume goes on"):
        run(PROMPTS[:12], tmp_path / "out", reward=reward, **settings)
    again = run(PROMPTS[:12], tmp_path / "out", reward=reward, resume=True, **settings)
    for here, there in zip(metrics_of(whole), metrics_of(again), strict=True):
        assert there == {key: pytest.approx(value, rel=1e-3, abs=1e-4) for key, value in here.items()}
