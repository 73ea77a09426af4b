"""Accord's side of `online_training.py`: `accord.align` with method=grpo, in a process of its own."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.update(CI="1", HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import transformers
from measure import Clock, peak_mib, reset_peak
from rollout_work import (
    CASES,
    LEARNING_RATE,
    Case,
    K,
    StepResult,
    fingerprint,
    model_folder,
    prompts_sha256,
    read_rows,
    reward_of,
)

import accord.rollouts.setup
from accord import __version__, align
from accord.feedback.findings import Finding
from accord.policy.policy import Policy
from accord.records import Group, Message, Response
from accord.train import Loop


class IdsReward:
    """`reward_of` as a source of feedback."""

    name = "ids"

    def __call__(self, groups: Sequence[Group]) -> list[list[Finding]]:
        """Return a finding per response."""
        return [[Finding(score=reward_of(response.token_ids or ())) for response in g.responses] for g in groups]


class Watch:
    """Clocks around the parts of a run, and what went through them. Watches only; nothing is replaced."""

    def __init__(self) -> None:
        self.train, self.generation, self.outside = Clock(), Clock(), Clock()
        self.rollouts: list[dict[str, Any]] = []
        self.metrics: list[dict[str, float]] = []
        self.gradient: dict[str, tuple[float, float]] = {}
        self.num_positions = 0
        self.is_training = False

    @contextmanager
    def watching(self) -> Iterator[Watch]:
        """Attach to the classes for a block."""
        draw, save, train = accord.rollouts.setup.sample_responses, Loop.save_checkpoint, Loop.train
        finish, token_logps = Loop._finish_gradients, Policy.token_logps

        def drawing(policy: Policy, prompts: Any, *rest: Any, **options: Any) -> Any:
            with self.generation:
                drawn = draw(policy, prompts, *rest, **options)
            self.rollouts += [
                {"ids": list(ids), "responses": [list(response.token_ids or ()) for response in responses]}
                for ids, responses in zip(prompts, drawn, strict=True)
            ]
            return drawn

        def saving(loop: Loop) -> None:
            with self.outside:
                save(loop)

        def training(loop: Loop) -> Any:
            self.is_training = True
            with self.train:
                return train(loop)

        def finishing(loop: Loop, *rest: Any) -> float:
            norm = finish(loop, *rest)
            if not self.gradient:
                with self.outside:
                    self.gradient = fingerprint(loop.policy.trained().items())
            return norm

        def counting(policy: Policy, batch: Any, *rest: Any, **options: Any) -> Any:
            if self.is_training and torch.is_grad_enabled():
                self.num_positions += batch.input_ids.numel()
            return token_logps(policy, batch, *rest, **options)

        with (
            mock.patch.object(accord.rollouts.setup, "sample_responses", drawing),
            mock.patch.object(Loop, "save_checkpoint", saving),
            mock.patch.object(Loop, "train", training),
            mock.patch.object(Loop, "_finish_gradients", finishing),
            mock.patch.object(Policy, "token_logps", counting),
        ):
            yield self

    def note(self, step: int, total: int, metrics: dict[str, float]) -> None:
        """Keep a step's metrics; the run's progress callback."""
        self.metrics.append(metrics)


def run(
    model: Path, rows: list[dict[str, Any]], case: Case, *, max_tokens: int, num_steps: int, more: dict[str, Any]
) -> Watch:
    """Take the steps and return what was seen."""
    groups = [Group(prompt=_prompt(row["prompt"]), responses=(Response(content=""),)) for row in rows]
    watch = Watch()
    with tempfile.TemporaryDirectory() as out, watch.watching():
        align(
            model=str(model),
            groups=groups,
            reward=IdsReward(),
            out=str(Path(out) / "run"),
            progress=watch.note,
            **{
                "method": "grpo",
                "objective.kl_coef": 0.0,
                "objective.aggregation": "token_mean",  # as TRL's default loss, `dapo`
                "rollout.num_responses": K,
                "rollout.max_tokens": max_tokens,
                "data.eval_fraction": 0,
                "evaluate.num_samples": 0,
                "train.epochs": math.ceil(num_steps * case.num_prompts / len(rows)),
                "train.max_steps": num_steps,
                "train.log_every": 1,
                "train.checkpoint_every": 10**9,  # one at the end, not counted
                "train.batch_size": case.num_prompts,
                "train.lr": LEARNING_RATE,
                "train.warmup": 0,
                "train.schedule": "linear",
                **more,
            },
        )
    return watch


def _prompt(given: Any) -> Any:
    if isinstance(given, str):
        return given
    return tuple(Message(role=turn["role"], content=turn["content"]) for turn in given)


def main() -> None:
    """Warm up, then measure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--workload", type=Path, required=True)
    parser.add_argument("--case", choices=CASES, required=True)
    parser.add_argument("--result", type=Path, required=True)
    parser.add_argument("--rollouts", type=Path, help="write what was drawn here, for the other side to train on")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a further setting of the run")
    args = parser.parse_args()
    torch.set_num_threads(1)
    case, more = CASES[args.case], dict(pair.split("=", 1) for pair in args.set)
    rows = read_rows(args.workload / f"{case.name}.jsonl")
    run(model_folder(args.workload, case, is_warm_up=True), rows, case, max_tokens=4, num_steps=1, more=more)
    start_mib = reset_peak()
    model = model_folder(args.workload, case)
    with Clock() as whole:
        watch = run(model, rows, case, max_tokens=case.max_tokens, num_steps=case.num_steps, more=more)
    peak = peak_mib()
    if args.rollouts:
        args.rollouts.write_text(json.dumps(watch.rollouts))
    StepResult(
        contender="Accord",
        case=case.name,
        versions={
            "accord": __version__,
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "python": sys.version.split()[0],
        },
        generation_cpu_s=watch.generation.cpu_s,
        rest_cpu_s=watch.train.cpu_s - watch.generation.cpu_s - watch.outside.cpu_s,
        whole_wall_s=watch.train.wall_s - watch.outside.wall_s,
        cpu_s_all=whole.cpu_s,
        peak_mib=peak,
        peak_over_start_mib=peak - start_mib,
        num_tokens=sum(len(ids) for rollout in watch.rollouts for ids in rollout["responses"]),
        rewards=[metrics["rollout/reward"] for metrics in watch.metrics],
        grad_norms=[metrics["grad_norm"] for metrics in watch.metrics],
        gradient=watch.gradient,
        prompts_sha256=prompts_sha256(rollout["ids"] for rollout in watch.rollouts),
        num_positions=watch.num_positions,
        details={
            "setting": more,
            "losses": [metrics["loss"] for metrics in watch.metrics],
            "sampler/abs_diff": [metrics.get("sampler/abs_diff") for metrics in watch.metrics],
        },
    ).write(args.result)


if __name__ == "__main__":
    main()
