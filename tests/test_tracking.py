"""One `log` reaches every writer, and a resumed run does not tell the killed one's story twice."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from accord.errors import ConfigError
from accord.store import RunFolder
from accord.tracking import open_tracker


def read_scalars(run: RunFolder, tag: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_both_writers_get_the_same_numbers(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path)
    tracker = open_tracker(run)
    for step in (1, 2):
        tracker.log(step, {"loss": 1.0 / step, "rewards/margins": step, "note": "words are for the file only"})
    tracker.close()
    assert [record["loss"] for record in run.read_metrics()] == [1.0, 0.5]
    assert read_scalars(run, "loss") == [(1, 1.0), (2, 0.5)]
    assert read_scalars(run, "rewards/margins") == [(1, 1.0), (2, 2.0)]


def test_a_resumed_run_hides_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path)
    killed = open_tracker(run)
    for step in (1, 2, 3):
        killed.log(step, {"loss": 1.0})
    killed.close()
    run = RunFolder.create(tmp_path, resume=True)
    run.rewind(2)
    resumed = open_tracker(run, resumed_step=2)
    for step in (3, 4):
        resumed.log(step, {"loss": 0.5})
    resumed.close()
    expected = [(1, 1.0), (2, 1.0), (3, 0.5), (4, 0.5)]
    assert [(record["step"], record["loss"]) for record in run.read_metrics()] == expected
    assert read_scalars(run, "loss") == expected


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed here")
def test_wandb_without_the_extra_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"wandb is not installed.*accord\[wandb\]"):
        open_tracker(RunFolder.create(tmp_path), wandb_project="accord")


def test_nothing_is_imported_before_it_is_asked_for() -> None:
    code = "import sys, accord.tracking; assert not {'torch', 'tensorboard', 'wandb'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
