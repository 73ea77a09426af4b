"""One whole GRPO step by Accord and by TRL's `GRPOTrainer`: CPU seconds of generation and of the rest, as one table.

    python benchmarks/online_training.py --repeats 2 --json online.json

Bench model (`workload.py`): 2 prompts of 512 tokens × 8 responses of 128, one update, no KL. Text world: its model of
0.35 million parameters, 8 requests × 8 responses a step, 20 steps. fp32, one thread, a process for every run after a
warm-up; contenders take turns, medians are shown, and every ratio is between runs of this call. Both sides give the
same reward (a hash of the response's ids). TRL draws its own responses and is then handed Accord's to train on, so
rewards, gradient norms and every weight's gradient must agree, or the command says so and ends with 1.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from necessary import Shape, forward_flops
from preference_training import run_once
from rollout_work import CASES, NUM_PROMPT, Case, K, prepare_rollouts
from workload import MODEL_SHAPE, VOCABULARY

CONTENDERS: dict[str, tuple[str, list[str]]] = {
    "Accord": ("accord_grpo.py", []),
    **{
        f"TRL {name}": ("trl_grpo.py", ["--setting", name])
        for name in ("default", "best", "all-rows", "rows-8", "rows-4", "rows-1")
    },
}
USUAL = {"bench": ("Accord", "TRL default", "TRL best"), "text-world": ("Accord", "TRL default", "TRL all-rows")}
PARTS = {"generation": "generation", "rest": "update", "whole": "whole step"}
GOALS = "Goals on the bench model, against TRL's best: generation ≥ 3, update ≥ 4.5, whole step ≥ 4."
Runs = dict[str, list[dict[str, Any]]]


def measure(case: Case, names: Sequence[str], repeats: int, folder: Path, trl_python: str) -> Runs:
    """Run every contender `repeats` times in turn, Accord first: its responses are what TRL trains on."""
    runs: Runs = {name: [] for name in names}
    rollouts = folder / f"{case.name}_rollouts.json"
    for repeat in range(repeats):
        for name in sorted(names, key=lambda name: name != "Accord"):
            script, own = CONTENDERS[name]
            python = sys.executable if name == "Accord" else trl_python
            result = run_once(
                script,
                python,
                folder,
                "--workload",
                str(folder),
                "--case",
                case.name,
                "--rollouts",
                str(rollouts),
                *own,
            )
            result["whole_cpu_s"] = result["generation_cpu_s"] + result["rest_cpu_s"]
            runs[name].append(result)
            parts = ", ".join(f"{PARTS[part]} {result[f'{part}_cpu_s']:.2f}" for part in PARTS)
            print(f"# {case.name} {repeat + 1}/{repeats}  {name}: CPU s: {parts}", flush=True)
    return runs


def summarise(case: Case, runs: Runs) -> list[dict[str, Any]]:
    """Medians per step of every contender, and ratios to Accord's."""
    rows = []
    for name, results in runs.items():
        row: dict[str, Any] = {"contender": name, "case": case.name}
        for part in PARTS:
            values = [result[f"{part}_cpu_s"] / len(result["rewards"]) for result in results]
            row[part], row[f"{part}_range"] = median(values), [min(values), max(values)]
        for key in ("whole_wall_s", "peak_mib", "peak_over_start_mib"):
            row[key] = median(result[key] for result in results)
        row["tokens_per_step"] = results[0]["num_tokens"] / len(results[0]["rewards"])
        row["positions_per_step"] = results[0]["num_positions"] / len(results[0]["rewards"])
        row["tokens_per_cpu_s"] = row["tokens_per_step"] / row["generation"]
        row["grad_norm"], row["reward"] = results[0]["grad_norms"][0], results[0]["rewards"][0]
        rows.append(row)
    ours = next((row for row in rows if row["contender"] == "Accord"), None)
    for row in rows if ours is not None else ():
        # lengths vary on the text world, and each side's generation is of its own draws
        row["times_generation"] = ours["tokens_per_cpu_s"] / row["tokens_per_cpu_s"]
        row["times_rest"], row["times_whole"] = row["rest"] / ours["rest"], row["whole"] / ours["whole"]
        row["memory_of_accord"] = ours["peak_mib"] / row["peak_mib"]
    return rows


def check_same_work(case: Case, runs: Runs) -> list[str]:
    """Return what differs that must not: prompts, lengths, and, where TRL was fed, rewards and gradients."""
    firsts = {name: results[0] for name, results in runs.items() if results}
    problems = []
    if len({result["prompts_sha256"] for result in firsts.values()}) > 1:
        problems.append(f"{case.name}: the prompts' ids differ")
    if case.name == "bench":
        wanted = case.num_rows * case.max_tokens * case.num_steps
        problems += [
            f"bench: {name} drew {result['num_tokens']} tokens, not {wanted}: a response ended by itself"
            for name, result in firsts.items()
            if result["num_tokens"] != wanted
        ]
    ours = firsts.get("Accord")
    for name, result in firsts.items() if ours is not None else ():
        if not result["was_fed"]:
            continue
        for key, tolerance in (("rewards", 1e-5), ("grad_norms", 1e-3)):
            apart = [abs(a - b) / abs(a) for a, b in zip(ours[key], result[key], strict=True)]
            if max(apart) > tolerance:
                problems.append(f"{case.name}: {key} of {name} differ by {max(apart):.1e}: {ours[key]}, {result[key]}")
        if ours["gradient"].keys() != result["gradient"].keys():
            problems.append(f"{case.name}: {name} has gradients of other weights")
            continue
        apart = gradient_gap(ours["gradient"], result["gradient"])
        result["gradient_gap"] = apart
        if apart > 1e-3:
            problems.append(f"{case.name}: a gradient of {name} differs by {apart:.1e} of its norm")
    return problems


def gradient_gap(ours: dict[str, Sequence[float]], theirs: dict[str, Sequence[float]]) -> float:
    """Return the largest difference between fingerprints of the same weight, as a share of its gradient's norm."""
    return max(abs(a - b) / ours[name][0] for name in ours for a, b in zip(ours[name], theirs[name], strict=True))


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The comparison as Markdown, per step."""
    lines = [
        "| CPU s of a step | generation | update | whole step | × generation | × update | × whole "
        "| tokens drawn | positions trained on | peak MiB (over start) | gradient norm |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        digits = 1 if row["whole"] > 5 else 3
        seconds = " | ".join(f"{row[part]:.{digits}f}" for part in PARTS)
        times = " | ".join(f"{row[f'times_{part}']:.2f}" if f"times_{part}" in row else "–" for part in PARTS)
        lines.append(
            f"| {row['case']}: {row['contender']} | {seconds} | {times} | {row['tokens_per_step']:.0f} "
            f"| {row['positions_per_step']:.0f} | {row['peak_mib']:.0f} ({row['peak_over_start_mib']:.0f}) "
            f"| {row['grad_norm']:.4f} |"
        )
    return "\n".join(lines)


def necessary(peak: dict[str, Any]) -> str:
    """What the bench model's update needs at least, at the rates measured here."""
    hidden = MODEL_SHAPE["hidden_size"]
    shape = Shape(hidden, MODEL_SHAPE["num_hidden_layers"], MODEL_SHAPE["intermediate_size"], VOCABULARY, hidden)
    case = CASES["bench"]
    flops = 3 * case.num_prompts * forward_flops(shape, NUM_PROMPT, [case.max_tokens] * K)
    rates = (peak["peak_gflops"], peak["fastest_gflops"])
    seconds = " and ".join(f"{flops / rate / 1e9:.1f} CPU s at {rate:.0f} GFLOP/s" for rate in rates)
    return (
        f"The update's necessary products: {flops / 1e12:.2f} TFLOP, {seconds} (torch.mm's rate, the fastest kernel's)."
    )


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=1, help="runs of each contender on the bench model")
    parser.add_argument("--text-world-repeats", type=int, default=5, help="… on the text world, whose runs are short")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--only", nargs="+", choices=list(CONTENDERS), metavar="CONTENDER", help="others than usual")
    parser.add_argument("--json", type=Path, help="write every run and the summary here")
    parser.add_argument("--keep", type=Path, help="folder for the models and prompts; default: a temporary one")
    parser.add_argument("--trl-python", default=sys.executable, help="an interpreter with TRL, if not this one")
    return parser.parse_args()


def main() -> None:
    """Prepare the files, measure, print, and write the JSON."""
    args = parse()
    runs: dict[str, Runs] = {}
    rows: list[dict[str, Any]] = []
    problems: list[str] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or Path(temporary)
        source = prepare_rollouts(folder)
        print(f"# prompts of the bench model: {source}", flush=True)
        peak = run_once("necessary.py", sys.executable, folder)
        for name in args.cases:
            case, names = CASES[name], args.only or USUAL[name]
            runs[name] = measure(
                case, names, args.text_world_repeats if name == "text-world" else args.repeats, folder, args.trl_python
            )
            rows += summarise(case, runs[name])
            problems += check_same_work(case, runs[name])
    print(f"\n{table(rows)}\n\n{GOALS}\n{necessary(peak)}")
    for problem in problems:
        print(f"NOT THE SAME WORK: {problem}")
    if args.json:
        where = {
            "command": shlex.join(["python", "benchmarks/online_training.py", *sys.argv[1:]]),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "load_average": os.getloadavg(),
        }
        found = {"where": where, "summary": rows, "problems": problems, "peak": peak, "runs": runs}
        args.json.write_text(json.dumps(found, indent=1, ensure_ascii=False))
        print(f"Written: {args.json}")
    if problems:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
