"""Two processes that sample give what one gives, to rounding; a reward that fails in one of them ends both alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_distributed import launch
from toy_runs import BASE, evaluations_of, final_weights, labelled_groups, largest_gap, metrics_of, run, settings_line

from accord.data import load_groups, write_groups
from accord.lab.gold import request_prompts
from accord.lab.text_world import split_requests
from accord.records import Group

STEPS = 4
SETTINGS: dict[str, Any] = {
    "train.batch_size": 3, "train.max_steps": STEPS, "train.epochs": 9, "train.lr": 1e-3, "train.warmup": 0,
    "train.max_batch_tokens": 90, "rollout.max_tokens": 10, "rollout.num_responses": 3, "data.eval_fraction": 0.25,
    "reward.length_penalty.weight": 0.1, "reward.repetition_penalty.ngram": 2, "evaluate.num_samples": 3,
    "model.device": "cpu", "reference.cache": None,
}  # fmt: skip
RUNS: dict[str, dict[str, Any]] = {
    "grpo": {"method": "grpo"},
    "ppo": {"method": "ppo", "rollout.epochs": 2, "rollout.kl_target": 0.5, "pretraining.weight": 0.5},
    "online_dpo": {"method": "online_dpo"},
    "moving weights": {"method": "grpo", "reward.dynamic": "gradients", "reward.dynamic_step": 100.0},
}
DRIVER = """
import json, os, sys
from accord.cli import main

for line in json.load(open(sys.argv[1])):
    assert main(line) == 0

from accord import align
from accord.data import load_groups
from accord.errors import FeedbackError
from accord.lab.gold import GoldReward

class FailsInOne(GoldReward):
    calls = 0
    def __call__(self, groups):
        type(self).calls += 1
        if os.environ["RANK"] == "1" and self.calls == 2:
            raise ConnectionError("nobody there")
        return super().__call__(groups)

settings = json.load(open("{settings}"))
try:
    align(groups=load_groups(settings.pop("data")).groups, reward=FailsInOne(), **settings)
except FeedbackError as error:
    print("said", error, flush=True)
"""


def settings_of(name: str, folder: Path) -> dict[str, Any]:
    more = {"pretraining.path": str(folder / "demonstrations.jsonl")} if name == "ppo" else {}
    return SETTINGS | RUNS[name] | more


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same runs by one process and by two; last, by two, one whose reward fails in the second of them."""
    folder = tmp_path_factory.mktemp("processes")
    write_groups(folder / "prompts.jsonl", request_prompts(split_requests()[0][:12]))
    write_groups(folder / "demonstrations.jsonl", labelled_groups(8))
    prompts = folder / "prompts.jsonl"
    lines = [settings_line(folder / f"{name}-2", prompts, **settings_of(name, folder)) for name in RUNS]
    failing = SETTINGS | {
        "model": str(BASE), "data": str(prompts), "out": str(folder / "failing"), "method": "grpo",
        "evaluate.num_samples": 0, "tracking.report": False, "train.checkpoint_every": 100,
    }  # fmt: skip
    failing = {key: value for key, value in failing.items() if not key.startswith("reward.")}
    (folder / "failing.json").write_text(json.dumps(failing))
    launched = launch(2, lines, folder, driver=DRIVER.replace("{settings}", str(folder / "failing.json")))
    (folder / "stdout.txt").write_text(launched.stdout)
    (folder / "stderr.txt").write_text(f"{launched.returncode}\n{launched.stderr}")
    for name in RUNS:
        run(prompts, folder / f"{name}-1", **settings_of(name, folder))
    return folder


def asked_and_answered(groups: list[Group]) -> list[Any]:
    return [(group.prompt, [(r.token_ids, r.finish_reason) for r in group.responses]) for group in groups]


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_sample_and_train_as_one(name: str, folder: Path):
    one, two = folder / f"{name}-1", folder / f"{name}-2"
    mine, theirs = metrics_of(one), metrics_of(two)
    assert len([line for line in theirs if "loss" in line]) == STEPS, (folder / "stderr.txt").read_text()[-3000:]
    for here, there in zip(mine, theirs, strict=True):
        assert there == {key: pytest.approx(value, rel=1e-3, abs=2e-4) for key, value in here.items()}
    assert largest_gap(final_weights(one), final_weights(two)) < 5e-4
    for here, there in zip(evaluations_of(one), evaluations_of(two), strict=True):
        assert there == pytest.approx(here, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("name", RUNS)
def test_the_rollouts_are_the_same(name: str, folder: Path):
    one, two = (load_groups(folder / f"{name}-{number}" / "rollouts").groups for number in (1, 2))
    assert len(one) == (STEPS * 3 if name != "ppo" else STEPS // 2 * 3)
    assert asked_and_answered(one) == asked_and_answered(two)
    for here, there in zip(one, two, strict=True):
        assert [vars_of(j) for j in here.judgements] == [vars_of(j) for j in there.judgements]


def vars_of(judgement: Any) -> tuple[Any, ...]:
    return (type(judgement).__name__, judgement.response, judgement.attribute, pytest.approx(judgement.value))


def test_a_reward_that_fails_in_one_process_ends_both_with_the_same_error(folder: Path):
    said = "said reward gold failed with ConnectionError: nobody there — the run pauses after step 1; --resume goes on"
    printed, errors = ((folder / name).read_text() for name in ("stdout.txt", "stderr.txt"))
    assert printed.count(said) == 2, printed + errors[-2000:]
    assert errors.partition("\n")[0] == "0"
    assert (folder / "failing" / "checkpoints" / "step-000001" / "source.pt").is_file()
