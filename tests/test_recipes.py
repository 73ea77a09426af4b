"""Recipes that sample: each runs two steps with its own settings, only sizes and places of models filled in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from toy_runs import BASE, command, metrics_of, run, write_pairs

from accord.config import flatten, read_recipe
from accord.data import load_groups, write_groups
from accord.feedback.verifiers import gsm8k
from accord.lab.gold import request_prompts
from accord.lab.journeys.rlvr import problems, write_problems
from accord.lab.text_world import split_requests, user_prompt

ROOT = Path(__file__).resolve().parents[1]
ALL = sorted((ROOT / "recipes").rglob("*.yaml"))
ONLINE = [path for path in ALL if "method" in read_recipe(path)]
SMALL: dict[str, Any] = {
    "train.max_steps": 2, "train.epochs": 2, "train.batch_size": 4, "evaluate.every": 1, "rollout.max_tokens": 8,
}  # fmt: skip
GSM8K = [
    {"question": "add 3 and 9", "answer": "3 + 9 = <<3+9=12>>12\n#### 12"},
    {"question": "add 1 and 4", "answer": "1 + 4 = <<1+4=5>>5\n#### 5"},
] * 8


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model after two steps."""
    folder = tmp_path_factory.mktemp("reward")
    run(write_pairs(folder), folder / "run", objective="bradley_terry", train__max_steps=2)
    return folder / "run" / "model"


def data_for(path: Path, folder: Path) -> Path:
    """Prompts of the kind that a recipe asks for."""
    if path.stem == "rlvr_gsm8k":
        file = folder / "gsm8k.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in GSM8K), encoding="utf-8")
        return file
    if path.stem == "rlvr_arithmetic":
        return write_problems(folder / "problems.jsonl", problems()[0][:16])
    write_groups(folder / "prompts.jsonl", request_prompts(split_requests()[0][:16]))
    return folder / "prompts.jsonl"


@pytest.mark.parametrize("path", ONLINE, ids=lambda path: path.stem)
def test_every_recipe_that_samples_runs(path: Path, tmp_path: Path, reward_model: Path):
    lines = path.read_text("utf-8").splitlines()
    assert lines[0].startswith("# ")
    assert len(lines) <= 40
    written = dict(flatten(read_recipe(path)))
    filled = SMALL | {"data.eval_fraction": 0.25, "evaluate.num_samples": 2}
    if "reward.model.weight" in written:
        filled["reward.model.path"] = str(reward_model)
    if "rollout.prompts" in written:
        filled["rollout.prompts"] = 8
    result = run(data_for(path, tmp_path), tmp_path / "out", **(written | filled))
    steps = [line for line in metrics_of(result) if "loss" in line]
    assert len(steps) == 2
    assert 0 < steps[0]["rollout/length"] <= 8
    assert "rollout/reward" in steps[0]
    assert result.run is not None
    kept = dict(flatten(result.run.read_config()))
    for key, value in written.items():
        assert kept[key] == filled.get(key, value)


@pytest.mark.parametrize("folder", ["instructgpt", "constitutional"])
def test_the_steps_of_a_recipe_are_in_order(folder: str):
    named = [path.stem for path in ALL if path.parent.name == folder]
    assert [name.partition("_")[0] for name in named if name[0].isdigit()] == sorted(
        name.partition("_")[0] for name in named if name[0].isdigit()
    )
    assert named[0] == "1_sft"


def test_the_recipe_people_know_passes_a_dry_run_on_the_command_line(tmp_path: Path, reward_model: Path):
    prompts = data_for(ROOT / "recipes/instructgpt/3_ppo.yaml", tmp_path)
    done = command(
        "align", ROOT / "recipes/instructgpt/3_ppo.yaml", f"reward.model.path={reward_model}", "model.device=cpu",
        "rollout.max_tokens=8", "--model", BASE, "--data", prompts, "--out", tmp_path / "out", "--dry-run", seconds=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr
    assert "method=ppo" in said
    assert "advantage.kl_coef=0.05" in said
    assert not (tmp_path / "out").exists()


def test_gsm8k_rows_are_prompts_whose_answers_are_verified(tmp_path: Path):
    group = load_groups(data_for(ROOT / "recipes/rlvr_gsm8k.yaml", tmp_path)).groups[0]
    assert group.prompt == user_prompt("add 3 and 9")
    assert gsm8k("it is 12", group.extra["answer"]).score == 1.0
    assert gsm8k("it is 13", group.extra["answer"]).score == 0.0
