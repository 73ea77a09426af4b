"""TRL's side of `online_training.py`: `GRPOTrainer`, in a process of its own.

Settings:
- `default`: 8 rows per device and accumulation up to the batch, gradient checkpointing. (fp32 in place of TRL's bf16
  default, as on the other side.)
- `best`: the fastest found on the bench model: no gradient checkpointing, 2 rows per device (8 are nearly as fast and
  take more than twice the memory). On the text world all rows at once are faster: `all-rows`.
- its neighbours, so that "best" can be checked.

With `--rollouts` the trainer draws its own responses, which is what is measured, and is then handed Accord's to train
on: rewards, gradient norms and gradients of both sides can be compared. Prompts come in Accord's order.
On a CPU TRL's log-prob head meets the vocabulary at every position, prompt included; on a GPU only at response
positions. The ratios printed here hold for a CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.update(CI="1", HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TQDM_DISABLE="1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import transformers
import trl
from datasets import Dataset
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
from transformers import AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

NO_CHECKPOINTING = {"gradient_checkpointing": False}
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "best": {**NO_CHECKPOINTING, "per_device_train_batch_size": 2},
    "rows-8": {**NO_CHECKPOINTING},
    "rows-4": {**NO_CHECKPOINTING, "per_device_train_batch_size": 4},
    "rows-1": {**NO_CHECKPOINTING, "per_device_train_batch_size": 1},
    "all-rows": {**NO_CHECKPOINTING, "per_device_train_batch_size": None},  # None: all rows of a step at once
}
Rollouts = list[dict[str, Any]]


class TimedGRPOTrainer(GRPOTrainer):
    """Times the parts, counts positions, and may hand over other responses than those drawn."""

    def __init__(self, *args: Any, rollouts: Rollouts | None, **kwargs: Any) -> None:
        self.generation_clock, self.train_clock, self.outside = Clock(), Clock(), Clock()
        self.num_tokens = self.num_positions = 0
        given: dict[tuple[int, ...], list[list[int]]] = {}
        for each in rollouts or ():  # a prompt may come back in a later epoch
            given.setdefault(tuple(each["ids"]), []).extend(each["responses"])
        self.given = None if rollouts is None else given
        self.num_handed: Counter[tuple[int, ...]] = Counter()
        self.prompts_seen: list[Sequence[int]] = []
        self.gradient: dict[str, tuple[float, float]] = {}
        super().__init__(*args, **kwargs)

    def _generate_single_turn(self, prompt_ids: Any, *rest: Any, **options: Any) -> Any:
        with self.generation_clock:
            drawn, logps = super()._generate_single_turn(prompt_ids, *rest, **options)
        self.num_tokens += sum(map(len, drawn))
        self.prompts_seen += prompt_ids
        if self.given is None:
            return drawn, logps
        handed = []
        for key in map(tuple, prompt_ids):
            handed.append(self.given[key][self.num_handed[key]])
            self.num_handed[key] += 1
        return handed, logps

    def _compute_loss(self, model: Any, inputs: Any) -> Any:
        self.num_positions += inputs["prompt_ids"].numel() + inputs["completion_ids"].numel()
        return super()._compute_loss(model, inputs)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        with self.train_clock:
            return super().train(*args, **kwargs)


class NoteGradient(TrainerCallback):
    """Takes the fingerprint of the first step's gradient, outside the clocks."""

    def __init__(self) -> None:
        self.trainer: TimedGRPOTrainer | None = None

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """After clipping, before the step."""
        if self.trainer is not None and not self.trainer.gradient:
            with self.trainer.outside:
                self.trainer.gradient = fingerprint(self.trainer.model.named_parameters())


def ids_reward(completion_ids: Sequence[Sequence[int]], **others: Any) -> list[float]:
    """`reward_of` as TRL asks for it."""
    return [reward_of(ids) for ids in completion_ids]


def run(
    model: Path, rows: list[dict[str, Any]], case: Case, setting: str, *, max_tokens: int, num_steps: int,
    rollouts: Rollouts | None,
) -> TimedGRPOTrainer:  # fmt: skip
    """Take the steps and return the trainer with its clocks and logs."""
    own = dict(SETTINGS[setting])
    per_device = min(own.pop("per_device_train_batch_size", 8) or case.num_rows, case.num_rows)
    note = NoteGradient()
    with tempfile.TemporaryDirectory() as out:
        trainer = TimedGRPOTrainer(
            model=str(model),
            reward_funcs=ids_reward,
            rollouts=rollouts,
            callbacks=[note],
            args=GRPOConfig(
                output_dir=out,
                per_device_train_batch_size=per_device,
                gradient_accumulation_steps=case.num_rows // per_device,
                num_generations=K,
                max_completion_length=max_tokens,
                max_steps=num_steps,
                learning_rate=LEARNING_RATE,
                shuffle_dataset=False,
                bf16=False,
                use_cpu=True,
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                **own,
            ),
            train_dataset=Dataset.from_list([{"prompt": row["prompt"]} for row in rows]),
            processing_class=AutoTokenizer.from_pretrained(model),
        )
        note.trainer = trainer
        trainer.train()
    return trainer


def main() -> None:
    """Warm up, then measure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--workload", type=Path, required=True)
    parser.add_argument("--case", choices=CASES, required=True)
    parser.add_argument("--result", type=Path, required=True)
    parser.add_argument("--setting", choices=SETTINGS, default="default")
    parser.add_argument("--rollouts", type=Path, help="Accord's responses, to train on")
    args = parser.parse_args()
    torch.set_num_threads(1)
    case = CASES[args.case]
    rows = read_rows(args.workload / f"{case.name}.jsonl")
    rollouts = json.loads(args.rollouts.read_text()) if args.rollouts and args.rollouts.exists() else None
    tiny = model_folder(args.workload, case, is_warm_up=True)
    run(tiny, rows, case, args.setting, max_tokens=4, num_steps=1, rollouts=None)
    if rollouts is not None:
        of_ids = {tuple(row["ids"]): row for row in rows}
        rows = [of_ids[tuple(each["ids"])] for each in rollouts]
    start_mib = reset_peak()
    model = model_folder(args.workload, case)
    with Clock() as whole:
        trainer = run(
            model, rows, case, args.setting, max_tokens=case.max_tokens, num_steps=case.num_steps, rollouts=rollouts
        )
    peak = peak_mib()
    generation, train = trainer.generation_clock, trainer.train_clock
    logs = [log for log in trainer.state.log_history if "grad_norm" in log]
    StepResult(
        contender=f"TRL {args.setting}",
        case=case.name,
        versions={
            "trl": trl.__version__,
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "python": sys.version.split()[0],
        },
        generation_cpu_s=generation.cpu_s,
        rest_cpu_s=train.cpu_s - generation.cpu_s - trainer.outside.cpu_s,
        whole_wall_s=train.wall_s - trainer.outside.wall_s,
        cpu_s_all=whole.cpu_s,
        peak_mib=peak,
        peak_over_start_mib=peak - start_mib,
        num_tokens=trainer.num_tokens,
        rewards=[log["reward"] for log in logs],
        grad_norms=[log["grad_norm"] for log in logs],
        gradient=trainer.gradient,
        prompts_sha256=prompts_sha256(trainer.prompts_seen),
        num_positions=trainer.num_positions,
        was_fed=rollouts is not None,
        details={
            "losses": [log["loss"] for log in logs],
            "rows_per_device": trainer.args.per_device_train_batch_size,
            "gradient_checkpointing": trainer.args.gradient_checkpointing,
            "threads": torch.get_num_threads(),
        },
    ).write(args.result)


if __name__ == "__main__":
    main()
