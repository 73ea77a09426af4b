"""Small real runs for the tests of the loop: the shipped base model on judged answers of the text world."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from accord.alignment import AlignResult, align
from accord.data import write_groups
from accord.lab.annotators import GOLD, judge_groups
from accord.lab.base_model import base_model_folder
from accord.lab.text_world import render_request, split_requests, user_prompt, write_response
from accord.records import Group, Label, Message, Response
from accord.store import RunFolder

BASE = base_model_folder()
SMALL: dict[str, Any] = {
    "train.batch_size": 4, "train.lr": 3e-3, "evaluate.num_samples": 0, "data.eval_fraction": 0.25,
    "tracking.report": False,
}  # fmt: skip
CLOCKS = {"time/step_seconds", "tokens_per_second"}
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "TOKENIZERS_PARALLELISM": "false"}


def judged_groups(n: int = 16, *, num_responses: int = 2, seed: int = 0) -> list[Group]:
    """Requests with K different answers, all pairs compared by the gold reward's annotator."""
    rng = np.random.default_rng(seed)
    requests = split_requests()[0]
    groups = []
    for row in range(n):
        request = requests[(seed + row) % len(requests)]
        answers: list[str] = []
        while len(answers) < num_responses:
            answer = write_response(request, float(rng.random()), rng)
            if answer not in answers:
                answers.append(answer)
        responses = tuple(Response(content=(Message(role="assistant", content=answer),)) for answer in answers)
        groups.append(Group(prompt=user_prompt(render_request(request)), responses=responses, origin=f"toy:{row}"))
    return judge_groups(groups, (GOLD,), seed=seed)


def labelled_groups(n: int = 16, *, seed: int = 0) -> list[Group]:
    """One answer each with a thumb up or down: nothing to compare."""
    return [
        replace(group, responses=group.responses[:1], judgements=(Label(response=0, is_desirable=row % 2 == 0),))
        for row, group in enumerate(judged_groups(n, seed=seed))
    ]


def write_pairs(folder: Path, n: int = 16, *, num_responses: int = 2, seed: int = 0) -> Path:
    """Write judged groups to a file that `accord align --data` reads."""
    path = folder / f"pairs-{n}-{num_responses}-{seed}.jsonl"
    write_groups(path, judged_groups(n, num_responses=num_responses, seed=seed))
    return path


def run(data: Path | Sequence[Group], out: Path, *, resume: bool = False, **settings: Any) -> AlignResult:
    """Align the base model in this process; dots in names are written as two underscores, or pass `**{"a.b": 1}`."""
    options = SMALL | {"model": str(BASE), "out": str(out), "reference.cache": str(out.parent / "cache")}
    options |= {key.replace("__", "."): value for key, value in settings.items() if key not in PASSED_ON}
    passed_on = {key: value for key, value in settings.items() if key in PASSED_ON}
    if "eval_groups" in passed_on:
        options.pop("data.eval_fraction")
    if isinstance(data, Path):
        return align(resume=resume, **passed_on, **(options | {"data": str(data)}))
    return align(groups=data, resume=resume, **passed_on, **options)


PASSED_ON = ("policy", "eval_groups", "progress", "announce", "dry_run", "reward")


def command(*arguments: object, seconds: float = 90, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run `accord …` as a user does."""
    line = [sys.executable, "-m", "accord.cli", *map(str, arguments)]
    return subprocess.run(
        line, capture_output=True, text=True, timeout=seconds, env=ENVIRONMENT, check=False, **options
    )  # fmt: skip


def settings_line(out: Path, data: Path, **settings: Any) -> list[str]:
    """Return the arguments of a small `accord align` on the CPU."""
    options = SMALL | {"model.device": "cpu", "reference.cache": str(out.parent / "cache")}
    options |= {key.replace("__", "."): value for key, value in settings.items()}
    given = [f"{key}={'null' if value is None else value}" for key, value in options.items()]
    return ["align", "--model", str(BASE), "--data", str(data), "--out", str(out), *given]


def metrics_of(done: AlignResult | Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl without what a clock measured."""
    out = done if isinstance(done, Path) else done.run
    assert out is not None
    lines = RunFolder.open(out.path if isinstance(out, RunFolder) else out).read_metrics()
    return [{k: v for k, v in line.items() if k not in CLOCKS} for line in lines]


def losses_of(out: Path) -> list[float]:
    """The reported training losses."""
    return [line["loss"] for line in metrics_of(out) if "loss" in line]


def evaluations_of(out: Path) -> list[dict[str, float]]:
    """The reported held-out metrics."""
    lines = [{key: value for key, value in line.items() if key.startswith("eval/")} for line in metrics_of(out)]
    return [line for line in lines if line]


def checkpoint_of(out: Path, step: int) -> dict[str, Any]:
    """Everything a checkpoint holds, read without Accord."""
    folder = out / "checkpoints" / f"step-{step:06d}"
    return {
        "weights": load_file(folder / "trained.safetensors"),
        "optimizer": torch.load(folder / "optimizer.pt", weights_only=True),
        "state": (folder / "state.json").read_text(),
    }


def assert_same_bits(one: Any, other: Any, where: str = "") -> None:
    """Compare nested values, tensors bit for bit."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key, value in one.items():
            assert_same_bits(value, other[key], f"{where}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for place, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same_bits(a, b, f"{where}/{place}")
    else:
        assert one == other, f"{where}: {one} != {other}"


def final_weights(out: Path) -> dict[str, torch.Tensor]:
    """The weights of the final model."""
    return load_file(out / "model" / "model.safetensors")


def largest_gap(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest difference between two sets of weights."""
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)
