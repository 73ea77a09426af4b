"""N steps = k steps + resume + N−k steps, bit for bit; and what a kill or a damaged checkpoint loses."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich_data import data_for, one_of_each_kind, settings_for
from toy_runs import (
    ENVIRONMENT,
    assert_same_bits,
    checkpoint_of,
    final_weights,
    metrics_of,
    run,
    settings_line,
    write_pairs,
)

from accord.cli import main
from accord.errors import ConfigError, DataError
from accord.objectives import OBJECTIVES
from accord.store import RunFolder

SIX_STEPS = {"train.epochs": 2, "evaluate.every": 2, "evaluate.num_samples": 2, "evaluate.sample_tokens": 6}
"""12 groups in batches of 4, twice over: the third step is the last of an epoch."""


def stop_at(step: int) -> Callable[[int, int, dict[str, float]], None]:
    """Send this process the signal of a scheduler once a step has been reported."""

    def progress(now: int, total: int, metrics: dict[str, float]) -> None:
        if now == step:
            signal.raise_signal(signal.SIGTERM)

    return progress


def assert_same_run(one: Path, other: Path, step: int) -> None:
    """Weights, moments, state, reports and rows, bit for bit."""
    assert_same_bits(checkpoint_of(one, step), checkpoint_of(other, step))
    for split in ("train", "eval", "samples"):
        assert_same_bits(*(RunFolder.open(out).read_rows(split).to_pylist() for out in (one, other)), split)


@pytest.mark.parametrize("name", [*one_of_each_kind(), "dpo+lora"])
def test_a_stopped_run_goes_on_as_if_nothing_had_been(name: str, tmp_path: Path):
    objective = name.removesuffix("+lora")
    pairs = data_for(objective)
    settings: dict[str, Any] = SIX_STEPS | {"objective": objective} | settings_for(objective)
    settings |= {"model.lora_rank": 2} if name.endswith("+lora") else {}
    if OBJECTIVES[objective].family == "reward_model":  # it writes no text
        settings = {key: value for key, value in settings.items() if "sample" not in key}
    whole = run(pairs, tmp_path / "whole", **settings)
    first = run(pairs, tmp_path / "parts", progress=stop_at(3), **settings)
    assert first.was_stopped
    assert first.summary["steps"] == 3
    assert not (tmp_path / "parts" / "model").exists()
    second = run(pairs, tmp_path / "parts", resume=True, **settings)
    assert not second.was_stopped
    assert second.summary["steps"] == whole.summary["steps"] == 6
    assert_same_run(tmp_path / "whole", tmp_path / "parts", 6)
    assert_same_bits(metrics_of(whole), metrics_of(second))
    for key in ("eval_before", "eval_after", "samples", "tokens", "best_step"):
        assert_same_bits(whole.summary[key], second.summary[key], key)


@pytest.mark.parametrize("stop", [1, 4])
def test_reports_over_several_steps_survive_a_stop_between_them(stop: int, tmp_path: Path):
    pairs = write_pairs(tmp_path)
    settings = {"train.epochs": 2, "train.log_every": 3, "train.checkpoint_every": 1}

    whole = run(pairs, tmp_path / "whole", **settings)
    run_folder = tmp_path / "parts"
    first = run(pairs, run_folder, **settings | {"train.keep_last": 9})
    assert metrics_of(first) == metrics_of(whole)
    for step in range(stop + 1, 7):  # as if the process had been killed right after a checkpoint
        shutil.rmtree(run_folder / "checkpoints" / f"step-{step:06d}")
    again = run(pairs, run_folder, resume=True, **settings | {"train.keep_last": 9})
    assert_same_bits(metrics_of(again), metrics_of(whole))
    assert_same_run(tmp_path / "whole", run_folder, 6)


def test_a_finished_run_taken_up_again_stays_as_it_is(tmp_path: Path):
    pairs = write_pairs(tmp_path)
    first = run(pairs, tmp_path / "out", **SIX_STEPS)
    before, weights = metrics_of(first), final_weights(tmp_path / "out")
    num_rows = len(RunFolder.open(tmp_path / "out").read_rows("eval"))
    second = run(pairs, tmp_path / "out", resume=True, **SIX_STEPS)
    assert_same_bits(metrics_of(second), before)
    assert len(RunFolder.open(tmp_path / "out").read_rows("eval")) == num_rows
    assert_same_bits(final_weights(tmp_path / "out"), weights)
    assert second.summary["eval_after"] == first.summary["eval_after"]


def test_an_early_stop_is_remembered(tmp_path: Path):
    """At a rate of 0.3 the held-out loss only rises: patience 2 ends the run at the second evaluation without gain."""
    pairs = write_pairs(tmp_path)
    settings = {"train.epochs": 4, "train.lr": 0.3, "evaluate.every": 1, "evaluate.patience": 2, "train.warmup": 0}
    whole = run(pairs, tmp_path / "whole", **settings)
    state = json.loads(checkpoint_of(tmp_path / "whole", whole.summary["steps"])["state"])
    assert whole.summary["steps"] == state["best_step"] + 2 < 12
    run(pairs, tmp_path / "parts", progress=stop_at(whole.summary["steps"] - 1), **settings)
    parts = run(pairs, tmp_path / "parts", resume=True, **settings)
    assert_same_bits(metrics_of(parts), metrics_of(whole))
    again = run(pairs, tmp_path / "parts", resume=True, **settings)
    assert again.summary["steps"] == whole.summary["steps"]
    assert_same_bits(metrics_of(again), metrics_of(whole))


def test_evaluating_in_between_changes_no_weight(tmp_path: Path):
    pairs = write_pairs(tmp_path)
    run(pairs, tmp_path / "often", **SIX_STEPS | {"evaluate.every": 1})
    run(pairs, tmp_path / "never", **{"train.epochs": 2, "evaluate.at_start": False})
    assert_same_bits(final_weights(tmp_path / "often"), final_weights(tmp_path / "never"))


def test_a_run_is_resumed_only_as_what_it_was(tmp_path: Path):
    pairs = write_pairs(tmp_path)
    run(pairs, tmp_path / "out", progress=stop_at(1))
    with pytest.raises(ConfigError, match=r"train\.lr.*expected the same"):
        run(pairs, tmp_path / "out", resume=True, **{"train.lr": 1e-4})
    pairs.write_text(pairs.read_text().replace("bees", "trees"))
    with pytest.raises(DataError, match="data of the run"):
        run(pairs, tmp_path / "out", resume=True)


def test_a_truncated_checkpoint_is_passed_over_and_named(tmp_path: Path):
    pairs = write_pairs(tmp_path)
    settings = {"train.epochs": 2, "train.checkpoint_every": 2}
    run(pairs, tmp_path / "whole", **settings)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    newest = tmp_path / "cut" / "checkpoints" / "step-000006" / "optimizer.pt"
    newest.write_bytes(newest.read_bytes()[:-100])
    said: list[str] = []
    run(pairs, tmp_path / "cut", resume=True, announce=said.append, **settings)
    assert any("checkpoint of step 4" in text and "step-000006" in text for text in said)
    assert_same_run(tmp_path / "whole", tmp_path / "cut", 6)


# -- real processes ----------------------------------------------------------------------------------------------------


def start(line: list[str], errors: Path) -> subprocess.Popen[bytes]:
    """Start `accord …` and let it run."""
    with errors.open("wb") as stream:
        return subprocess.Popen([sys.executable, "-m", "accord.cli", *line], env=ENVIRONMENT, stderr=stream)


def wait_for(path: Path, process: subprocess.Popen[bytes], seconds: float = 60) -> None:
    """Wait until a file is there."""
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"no {path.name}"
        assert process.poll() is None, f"ended before {path.name}"
        time.sleep(0.01)


LONG = {"train.epochs": 20, "train.checkpoint_every": 5, "train.lr": 1e-4, "model.device": "cpu"}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of 60 steps that nobody stopped."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert run(write_pairs(folder), folder / "whole", **LONG).summary["steps"] == 60
    return folder / "whole"


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_process_told_to_stop_or_killed_is_taken_up(
    sent: signal.Signals, code: int, uninterrupted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    pairs, out = write_pairs(tmp_path), tmp_path / "out"
    line = settings_line(out, pairs, **LONG)
    process = start(line, tmp_path / "errors.txt")
    wait_for(out / "checkpoints" / "step-000005", process)
    os.kill(process.pid, sent)
    assert process.wait(60) == code
    assert "Traceback" not in (tmp_path / "errors.txt").read_text()
    assert not (out / "model").exists()
    assert main([*line, "--resume"]) == 0
    assert "checkpoint of step" in capsys.readouterr().err
    assert_same_run(uninterrupted, out, 60)
    assert_same_bits(final_weights(uninterrupted), final_weights(out))
    assert_same_bits(metrics_of(uninterrupted), metrics_of(out))
