"""Checkpoints: after a kill, a full disk or damage, the newest whole one is found and the rest is named."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from accord.errors import StoreError
from accord.store import RunFolder

WRITE_FOREVER = """
import sys
from accord.store import RunFolder
run = RunFolder.create(sys.argv[1], resume=True)
step = max(run.checkpoint_steps(), default=0)
while True:
    step += 1
    with run.new_checkpoint(step) as folder:
        for part in range(20):
            (folder / f"part-{part}.bin").write_bytes(bytes([step % 256]) * 200_000)
    print(step, flush=True)
    run.prune(keep_last=2)
"""

FILE_SIZE_LIMIT = """
import resource, sys
from accord.errors import StoreError
from accord.store import RunFolder
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
run = RunFolder.create(sys.argv[1])
with run.new_checkpoint(1) as folder:
    (folder / "weights.bin").write_bytes(b"1" * 50_000)
try:
    with run.new_checkpoint(2) as folder:
        if sys.argv[2] == "torch":
            import torch
            torch.save(torch.zeros(100_000), folder / "optimizer.pt")
        elif sys.argv[2] == "safetensors":
            import torch, safetensors.torch
            safetensors.torch.save_file({"w": torch.zeros(100_000)}, str(folder / "model.safetensors"))
        else:
            (folder / "weights.bin").write_bytes(b"2" * 200_000)
except StoreError as error:
    print(error)
while True:  # lines are appended whole or not at all
    try:
        run.append_metrics(0, {"text": "x" * 9_990})
    except StoreError:
        break
"""


def write_checkpoint(run: RunFolder, step: int, *, size: int = 1000) -> Path:
    with run.new_checkpoint(step) as folder:
        (folder / "policy").mkdir()
        (folder / "policy" / "weights.bin").write_bytes(bytes([step % 256]) * size)
        (folder / "state.json").write_text(json.dumps({"step": step}))
    return run.path / "checkpoints" / f"step-{step:06d}"


def test_a_checkpoint_is_there_only_after_the_block(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path)
    with run.new_checkpoint(10) as folder:
        (folder / "weights.bin").write_bytes(b"1")
        assert run.checkpoint_steps() == ()
    latest = run.latest_checkpoint()
    assert latest is not None
    assert (latest.step, latest.path, latest.rejected) == (10, tmp_path / "checkpoints" / "step-000010", ())
    assert (latest.path / "weights.bin").read_bytes() == b"1"


def test_an_exception_inside_leaves_nothing_and_comes_out_as_itself(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path)

    def fail_half_way() -> None:
        with run.new_checkpoint(1) as folder:
            (folder / "weights.bin").write_bytes(b"1")
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fail_half_way()
    assert list((tmp_path / "checkpoints").iterdir()) == []


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: os.truncate(folder / "policy" / "weights.bin", 999), "999 bytes instead of 1000"),
        (lambda folder: (folder / "policy" / "weights.bin").unlink(), "weights.bin is missing"),
        (lambda folder: (folder / "index.json").unlink(), "never completed"),
        (lambda folder: os.truncate(folder / "index.json", 40), "cannot be used"),
        (lambda folder: (folder / "index.json").write_text("[]"), "cannot be used"),
        (lambda folder: (folder / "policy" / "weights.bin").write_bytes(b"?" * 1000), "does not match its SHA-256"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_and_named(tmp_path: Path, damage, reason: str) -> None:
    run = RunFolder.create(tmp_path)
    write_checkpoint(run, 5)
    bad = write_checkpoint(run, 10)
    damage(bad)
    latest = run.latest_checkpoint()
    assert latest is not None
    assert latest.step == 5
    assert [rejected.path for rejected in latest.rejected] == [bad]
    assert reason in latest.rejected[0].reason
    assert str(latest).startswith("checkpoint of step 5; passed over step-000010: ")
    assert run.checkpoint_steps() == (5,)  # so the resumed run will not take step 10 for done

    write_checkpoint(run, 10)  # the resumed run comes to step 10 again: the damaged one is kept aside
    again = run.latest_checkpoint()
    assert again is not None
    assert (again.step, again.rejected) == (10, ())
    assert (tmp_path / "checkpoints" / "rejected-step-000010").is_dir()


def test_only_damaged_checkpoints_are_an_error_not_a_fresh_start(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path)
    (write_checkpoint(run, 5) / "state.json").unlink()
    with pytest.raises(StoreError, match=r"only damaged checkpoints.*step-000005: state\.json is missing"):
        run.latest_checkpoint()


def test_a_good_checkpoint_is_never_overwritten(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path)
    write_checkpoint(run, 5)
    with pytest.raises(StoreError, match="second checkpoint of step 5"):
        write_checkpoint(run, 5)


def test_prune_keeps_the_last_whole_ones_and_the_best(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path)
    for step in (1, 2, 3, 4, 5, 1_000_000):
        write_checkpoint(run, step)
    assert run.prune(keep_last=2, best_step=2) == (1, 3, 4)
    assert run.checkpoint_steps() == (2, 5, 1_000_000)
    reopened = RunFolder.create(tmp_path, resume=True)
    (tmp_path / "checkpoints" / "step-1000000" / "index.json").unlink()
    assert reopened.prune(keep_last=1) == (2,)  # 5 is the newest that could be resumed from


def test_the_model_is_replaced_only_by_a_resumed_run(tmp_path: Path) -> None:
    first = RunFolder.create(tmp_path)
    for run in (first, RunFolder.create(tmp_path, resume=True)):
        with run.new_model() as folder:
            (folder / "model.safetensors").write_text(str(run.is_resumed))
    assert (tmp_path / "model" / "model.safetensors").read_text() == "True"
    with pytest.raises(StoreError, match="second final model"), RunFolder.open(tmp_path).new_model():
        pass


def test_a_model_whose_replacement_was_killed_comes_back(tmp_path: Path) -> None:
    RunFolder.create(tmp_path)
    (tmp_path / ".model.replaced").mkdir()  # the old one, renamed; the new one was not yet in its place
    (tmp_path / ".model.replaced" / "weights").write_text("old")
    (tmp_path / ".model.tmp-1").mkdir()
    RunFolder.create(tmp_path, resume=True)
    assert (tmp_path / "model" / "weights").read_text() == "old"
    assert not (tmp_path / ".model.tmp-1").exists()


@pytest.mark.parametrize("delay_parts", [1, 2, 3])
def test_a_process_killed_while_writing_loses_only_the_unfinished_checkpoint(tmp_path: Path, delay_parts: int) -> None:
    process = subprocess.Popen([sys.executable, "-c", WRITE_FOREVER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        completed = [int(process.stdout.readline()) for _ in range(2 + delay_parts)][-1]
        while not any(len(list(folder.iterdir())) > 5 * delay_parts for folder in temporaries(tmp_path)):
            pass  # wait until it is in the middle of the next one
        process.send_signal(signal.SIGKILL)
        completed = max([completed, *(int(line) for line in process.stdout)])
    assert process.returncode == -signal.SIGKILL

    run = RunFolder.create(tmp_path, resume=True)  # the dead process's lock does not hold
    assert temporaries(tmp_path) == []
    latest = run.latest_checkpoint()
    assert latest is not None
    assert latest.step - completed in (0, 1)  # 1: renamed, but killed before it could say so
    assert latest.rejected == ()
    assert (latest.path / "part-19.bin").read_bytes() == bytes([latest.step % 256]) * 200_000


def temporaries(path: Path) -> list[Path]:
    return [entry for entry in (path / "checkpoints").glob(".*") if entry.is_dir()]


@pytest.mark.parametrize("writer", ["python", "torch", "safetensors"])
def test_a_full_disk_is_one_clear_error_and_the_earlier_checkpoint_stays(tmp_path: Path, writer: str) -> None:
    pytest.importorskip("resource")  # a file-size limit stands for the full disk: same call, same place
    command = [sys.executable, "-W", "ignore", "-c", FILE_SIZE_LIMIT, str(tmp_path), writer]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "got a full disk or a file-size limit while writing the checkpoint of step 2" in told
    assert "the checkpoint of step 1 is kept" in told
    assert "--resume" in told
    run = RunFolder.create(tmp_path, resume=True)
    assert [entry.name for entry in (tmp_path / "checkpoints").iterdir()] == ["step-000001"]
    latest = run.latest_checkpoint()
    assert latest is not None
    assert latest.step == 1
    assert [len(record["text"]) for record in run.read_metrics()] == [9_990] * 9
    assert (tmp_path / "metrics.jsonl").read_bytes().endswith(b"}\n")
