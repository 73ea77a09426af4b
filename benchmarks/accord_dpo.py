"""Accord's side: `accord.align` over the benchmark's files, in a process of its own.

Settings: `fresh` computes the reference's log-probabilities, `cached` finds those of an earlier run on disk.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.update(CI="1", HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import transformers
from measure import Clock, Result, peak_mib, reset_peak
from workload import ids_sha256

from accord import __version__, align
from accord.policy.policy import Policy
from accord.policy.reference import Reference
from accord.train import Loop


class Watch:
    """Clocks around the parts of a run, and what went through them. Watches only; nothing is replaced."""

    def __init__(self) -> None:
        self.reference, self.train, self.saving = Clock(), Clock(), Clock()
        self.num_positions = 0
        self.losses: list[float] = []
        self.groups: list[Any] = []
        self._is_training = self._is_counted = False

    @contextmanager
    def watching(self) -> Iterator[Watch]:
        """Attach to the classes for a block."""
        with (
            mock.patch.object(Reference, "fill", self._fill(_timed(Reference.fill, self.reference))),
            mock.patch.object(Loop, "save_checkpoint", _timed(Loop.save_checkpoint, self.saving)),
            mock.patch.object(Loop, "train", self._train(_timed(Loop.train, self.train))),
            mock.patch.object(Policy, "token_logps", self._count(Policy.token_logps)),
        ):
            yield self

    def _train(self, train: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(loop: Loop) -> Any:
            self.groups, self._is_training, self._is_counted = list(loop.groups), True, True
            try:
                return train(loop)
            finally:
                self._is_training = self._is_counted = False

        return wrapped

    def _fill(self, timed: Callable[..., Any]) -> Callable[..., Any]:
        plain = Reference.fill

        def wrapped(*args: Any, **options: Any) -> Any:
            if self._is_training:  # the training clock has it already
                return plain(*args, **options)
            self._is_counted = True
            try:
                return timed(*args, **options)
            finally:
                self._is_counted = False

        return wrapped

    def note(self, step: int, total: int, metrics: dict[str, float]) -> None:
        """Keep a step's loss; the run's progress callback."""
        self.losses.append(metrics["loss"])

    def _count(self, token_logps: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(policy: Policy, batch: Any, *rest: Any, **options: Any) -> Any:
            if self._is_counted:
                self.num_positions += batch.input_ids.numel()
            return token_logps(policy, batch, *rest, **options)

        return wrapped


def _timed(function: Callable[..., Any], clock: Clock) -> Callable[..., Any]:
    is_running = False

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal is_running
        if is_running:
            return function(*args, **kwargs)
        is_running = True
        try:
            with clock:
                return function(*args, **kwargs)
        finally:
            is_running = False

    return wrapped


def run(model: Path, data: Path, cache: Path, lr: float, more: dict[str, Any]) -> Watch:
    """Align for one epoch with TRL's schedule and return what was seen."""
    watch = Watch()
    with tempfile.TemporaryDirectory() as out, watch.watching():
        align(
            model=str(model),
            data=str(data),
            out=str(Path(out) / "run"),
            progress=watch.note,
            **{
                "objective": "dpo",
                "objective.beta": 0.1,
                "reference.cache": str(cache),
                "data.eval_fraction": 0,
                "evaluate.num_samples": 0,
                "train.epochs": 1,
                "train.checkpoint_every": 10**9,  # one at the end, as the other side
                "train.batch_size": 8,
                "train.lr": lr,
                "train.warmup": 0,
                "train.schedule": "linear",
                **more,
            },
        )
    return watch


def main() -> None:
    """Warm up on a tiny model, then measure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--workload", type=Path, required=True)
    parser.add_argument("--result", type=Path, required=True)
    parser.add_argument("--setting", choices=("fresh", "cached"), default="fresh")
    parser.add_argument("--lr", type=float, default=1e-6)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a further setting of the run")
    args = parser.parse_args()
    torch.set_num_threads(1)
    more = dict(pair.split("=", 1) for pair in args.set)
    cache = args.workload / "reference_cache"
    if args.setting == "fresh":
        shutil.rmtree(cache, ignore_errors=True)
    elif not cache.is_dir():
        raise SystemExit("no cached reference in the workload folder — run the setting `fresh` first")
    with tempfile.TemporaryDirectory() as warm_up_cache:
        run(args.workload / "warm_up_model", args.workload / "warm_up.jsonl", Path(warm_up_cache), args.lr, more)
    start_mib = reset_peak()
    with Clock() as whole:
        watch = run(args.workload / "model", args.workload / "pairs.jsonl", cache, args.lr, more)
    peak = peak_mib()
    groups = sorted(watch.groups, key=lambda group: group.index)
    rows = [(group.prompt_ids, *(response.ids for response in group.responses)) for group in groups]
    Result(
        contender=f"Accord {args.setting}",
        versions={
            "accord": __version__,
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "python": sys.version.split()[0],
        },
        cpu_s=watch.reference.cpu_s + watch.train.cpu_s - watch.saving.cpu_s,
        wall_s=watch.reference.wall_s + watch.train.wall_s - watch.saving.wall_s,
        cpu_s_all=whole.cpu_s,
        peak_mib=peak,
        peak_over_start_mib=peak - start_mib,
        losses=watch.losses,
        num_prompt_tokens=sum(len(prompt) for prompt, *_ in rows),
        num_response_tokens=sum(len(ids) for _, *responses in rows for ids in responses),
        ids_sha256=ids_sha256(rows),
        num_processed_tokens=watch.num_positions,
        details={
            "setting": {"train.lr": args.lr, **more},
            "reference_cpu_s": watch.reference.cpu_s,
            "train_cpu_s": watch.train.cpu_s - watch.saving.cpu_s,
            "checkpoint_cpu_s": watch.saving.cpu_s,
            "threads": torch.get_num_threads(),
        },
    ).write(args.result)


if __name__ == "__main__":
    main()
