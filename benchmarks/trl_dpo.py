"""TRL's side: `DPOTrainer` over the benchmark's files, in a process of its own.

Settings:
- `default`: what a user gets who sets nothing: batch 8, gradient checkpointing, a second model as the reference that
  scores every batch again. (fp32 in place of TRL's bf16 default, as on the other side.)
- `best`: the fastest found on this workload: batch 1 with 8 accumulation steps (no padding between pairs), reference
  log-probs computed once beforehand, no gradient checkpointing.
- `best-checkpointing`, `batch-2`: its neighbours, so that "best" can be checked.

On a CPU TRL's log-prob head meets the vocabulary at every position, prompt and padding included; on a GPU only at
response positions. The ratios printed here hold for a CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.update(CI="1", HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TQDM_DISABLE="1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import transformers
import trl
from datasets import Dataset
from measure import Clock, Result, peak_mib, reset_peak
from transformers import AutoTokenizer
from trl import DPOConfig, DPOTrainer
from workload import ids_sha256

REFERENCE_FIRST = {"precompute_ref_log_probs": True, "precompute_ref_batch_size": 1}
BATCH_1 = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8}
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "best": {**BATCH_1, **REFERENCE_FIRST, "gradient_checkpointing": False},
    "best-checkpointing": {**BATCH_1, **REFERENCE_FIRST},
    "batch-2": {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 4,
        **REFERENCE_FIRST,
        "gradient_checkpointing": False,
    },
}


class TimedDPOTrainer(DPOTrainer):
    """Times the two parts that count and counts the positions each forward pass gets; changes nothing else."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.reference_clock, self.train_clock = Clock(), Clock()
        self.num_positions = 0
        super().__init__(*args, **kwargs)

    def _precompute_ref_logps(self, *args: Any, **kwargs: Any) -> Any:
        with self.reference_clock:
            return super()._precompute_ref_logps(*args, **kwargs)

    def compute_ref_log_probs(self, model: Any, inputs: Any) -> Any:
        self.num_positions += inputs["input_ids"].numel()
        return super().compute_ref_log_probs(model, inputs)

    def _compute_loss(self, model: Any, inputs: Any, return_outputs: bool) -> Any:
        passes = 1 if self.precompute_ref_logps else 2
        self.num_positions += passes * inputs["input_ids"].numel()
        return super()._compute_loss(model, inputs, return_outputs)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        with self.train_clock:
            return super().train(*args, **kwargs)


def run(model: Path, data: Path, setting: str, lr: float) -> TimedDPOTrainer:
    """Train for one epoch and return the trainer with its clocks and logs."""
    rows = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
    with tempfile.TemporaryDirectory() as out:
        trainer = TimedDPOTrainer(
            model=str(model),
            args=DPOConfig(
                output_dir=out,
                num_train_epochs=1,
                learning_rate=lr,
                beta=0.1,
                bf16=False,
                use_cpu=True,
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                **SETTINGS[setting],
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(model),
        )
        trainer.train()
    return trainer


def main() -> None:
    """Warm up on a tiny model, then measure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--workload", type=Path, required=True)
    parser.add_argument("--result", type=Path, required=True)
    parser.add_argument("--setting", choices=SETTINGS, default="default")
    parser.add_argument("--lr", type=float, default=1e-6)
    args = parser.parse_args()
    torch.set_num_threads(1)
    run(args.workload / "warm_up_model", args.workload / "warm_up.jsonl", args.setting, args.lr)
    start_mib = reset_peak()
    with Clock() as whole:
        trainer = run(args.workload / "model", args.workload / "pairs.jsonl", args.setting, args.lr)
    peak = peak_mib()
    rows = [(row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]) for row in trainer.train_dataset]
    reference, train = trainer.reference_clock, trainer.train_clock
    Result(
        contender=f"TRL {args.setting}",
        versions={
            "trl": trl.__version__,
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "python": sys.version.split()[0],
        },
        cpu_s=reference.cpu_s + train.cpu_s,
        wall_s=reference.wall_s + train.wall_s,
        cpu_s_all=whole.cpu_s,
        peak_mib=peak,
        peak_over_start_mib=peak - start_mib,
        losses=[log["loss"] for log in trainer.state.log_history if "loss" in log],
        num_prompt_tokens=sum(len(prompt) for prompt, _, _ in rows),
        num_response_tokens=sum(len(chosen) + len(rejected) for _, chosen, rejected in rows),
        ids_sha256=ids_sha256(rows),
        num_processed_tokens=trainer.num_positions,
        details={
            "setting": {**SETTINGS[args.setting], "learning_rate": args.lr},
            "batch": trainer.args.per_device_train_batch_size,
            "gradient_checkpointing": trainer.args.gradient_checkpointing,
            "reference_cpu_s": reference.cpu_s,
            "train_cpu_s": train.cpu_s,
            "threads": torch.get_num_threads(),
        },
    ).write(args.result)


if __name__ == "__main__":
    main()
