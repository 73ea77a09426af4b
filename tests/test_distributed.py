"""Two processes give what one gives, to rounding: losses, held-out metrics, rows and weights."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_runs import (
    BASE,
    ENVIRONMENT,
    evaluations_of,
    final_weights,
    judged_groups,
    largest_gap,
    losses_of,
    run,
    settings_line,
    write_pairs,
)

from accord.data import encode_groups
from accord.data.batching import micro_batches
from accord.policy.load import load_policy
from accord.store import RunFolder

RUNS: dict[str, dict[str, Any]] = {
    "dpo": {}, "kto": {}, "sft": {},
    "a moving reference": {
        "objective": "dpo", "reference.update": "soft", "reference.update_every": 2, "reference.mix": 0.25,
        "train.checkpoint_every": 8,
    },
}  # fmt: skip
SETTINGS: dict[str, Any] = {
    "train.batch_size": 3, "train.max_batch_tokens": 50, "train.epochs": 2, "train.lr": 1e-3, "evaluate.every": 2,
    "evaluate.num_samples": 3,
    "evaluate.sample_tokens": 8, "model.device": "cpu", "reference.cache": None,
}  # fmt: skip
DRIVER = """
import json, os, sys, time
from accord.cli import main
codes = [main(line) for line in json.load(open(sys.argv[1]))]
print("codes", codes, file=sys.stderr, flush=True)
if os.environ["RANK"] == "0":
    time.sleep(2)  # the launcher ends the other process as soon as one has failed: let it speak first
sys.exit(codes[-1])
"""


def launch(
    processes: int, lines: list[list[str]], folder: Path, *, driver: str = DRIVER
) -> subprocess.CompletedProcess[str]:
    """Run command lines of `accord`, one after the other, in several processes started by torch's launcher."""
    (folder / "lines.json").write_text(json.dumps(lines))
    (folder / "driver.py").write_text(driver)
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--master-port", str(port)]
    return subprocess.run(
        [sys.executable, *launcher, str(folder / "driver.py"), str(folder / "lines.json")],
        capture_output=True, text=True, timeout=240 + 60 * len(lines), env=ENVIRONMENT, check=False,
    )  # fmt: skip


def settings_of(name: str) -> dict[str, Any]:
    return {"objective": name} | SETTINGS | RUNS[name]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of every objective, by one process and by two; then, by two, what must be refused: their folder is taken."""
    folder = tmp_path_factory.mktemp("processes")
    pairs = write_pairs(folder, 14)
    lines = [settings_line(folder / f"{name}-2", pairs, **settings_of(name)) for name in RUNS]
    refused = [[*lines[0], "train.lr=5e-3", "--resume"], lines[0]]
    launched = launch(2, [[*line, "--json"] for line in [*lines, *refused]], folder)
    (folder / "stdout.txt").write_text(launched.stdout)
    (folder / "stderr.txt").write_text(f"{launched.returncode}\n{launched.stderr}")
    for name in RUNS:
        run(pairs, folder / f"{name}-1", **settings_of(name))
    return folder


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_train_as_one(name: str, folder: Path):
    one, two = folder / f"{name}-1", folder / f"{name}-2"
    assert len(losses_of(one)) == 8, (folder / "stderr.txt").read_text()[-3000:]
    assert losses_of(two) == pytest.approx(losses_of(one), rel=2e-5)
    assert largest_gap(final_weights(one), final_weights(two)) < 2e-4  # where a gradient is noise Adam turns its sign
    for here, there in zip(evaluations_of(one), evaluations_of(two), strict=True):
        assert there == pytest.approx(here, rel=1e-3, abs=1e-3)
    if "reference.update" in RUNS[name]:
        references = [torch.load(out / "checkpoints" / "step-000008" / "moving.pt") for out in (one, two)]
        assert largest_gap(*references) < 2e-4
    for split in ("train", "eval", "samples"):
        mine, theirs = (
            sorted(RunFolder.open(out).read_rows(split).to_pylist(), key=lambda row: (row["step"], row["index"]))
            for out in (one, two)
        )
        assert [(row["step"], row["index"]) for row in mine] == [(row["step"], row["index"]) for row in theirs]
    before = [row["response"] for row in mine if row["step"] == 0]
    assert before == [row["response"] for row in theirs if row["step"] == 0]


def test_some_batches_leave_one_process_without_work():
    """What the runs above must have met: an odd number of passes over two processes."""
    groups = encode_groups(judged_groups(14), load_policy(BASE).tokenizer).groups
    odd = [
        len(micro_batches(groups[start : start + 3], 50, layout="tree")) % 2 for start in range(len(groups) - 2)
    ]  # fmt: skip
    assert sum(odd) > len(odd) / 2


def test_only_the_first_process_speaks(folder: Path):
    printed = (folder / "stdout.txt").read_text()
    decoder, found = json.JSONDecoder(), []
    while printed.strip():
        value, end = decoder.raw_decode(printed.strip())
        found.append(value["summary"]["objective"])
        printed = printed.strip()[end:]
    assert found == [settings_of(name)["objective"] for name in RUNS]


def test_what_the_first_process_refuses_ends_the_others_too(folder: Path):
    """Both say so by themselves: none waits at a meeting point until the launcher kills it."""
    said = (folder / "stderr.txt").read_text()
    assert said.count(f"codes {[0] * len(RUNS) + [1, 1]}") == 2, said[-3000:]
    assert "got other settings than the run" in said
    assert "(train.lr)" in said


def test_an_error_ends_all_processes(folder: Path):
    code, _, said = (folder / "stderr.txt").read_text().partition("\n")
    assert code == "1"
    assert "already holds a run" in said
