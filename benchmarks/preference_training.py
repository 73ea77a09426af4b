"""Accord beside TRL on the same files: CPU seconds, memory and losses of one DPO epoch, as one table.

    python benchmarks/preference_training.py --repeats 3 --json result.json

Every run is a process of its own with one thread, in fp32, warmed up on a tiny model; contenders take turns, and the
table shows medians. Every ratio is between runs of this one call: seconds from another machine or another hour are
not comparable. See benchmarks/README.md for what is counted.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from necessary import Shape, epoch_flops
from workload import prepare

HERE = Path(__file__).resolve().parent
CONTENDERS: dict[str, tuple[str, str]] = {
    "TRL default": ("trl_dpo.py", "default"),
    "TRL best": ("trl_dpo.py", "best"),
    "TRL best, checkpointing": ("trl_dpo.py", "best-checkpointing"),
    "TRL batch 2": ("trl_dpo.py", "batch-2"),
    "Accord": ("accord_dpo.py", "fresh"),
    "Accord, cached reference": ("accord_dpo.py", "cached"),
}
USUAL = ("TRL default", "TRL best", "Accord", "Accord, cached reference")
GOALS = (
    "Goals: Accord ≥ 7 × TRL default and ≥ 2.6 × TRL best in CPU seconds, ≤ 60 % of TRL default's memory, "
    "≥ 80 % of torch.mm's peak; K = 8 ≥ 2.5 × the plain path."
)


def run_once(script: str, python: str, folder: Path, *arguments: str) -> Any:
    """Run one measuring process and return what it wrote; its output is shown only when it fails."""
    result = folder / "result.json"
    result.unlink(missing_ok=True)
    one_thread = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HOME": str(folder / "hf_home")}
    command = [python, str(HERE / script), "--result", str(result), *arguments]
    done = subprocess.run(command, env={**os.environ, **one_thread}, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-25:])
        raise SystemExit(f"{shlex.join(command)}\nended with {done.returncode}:\n{tail}")
    return json.loads(result.read_text())


def measure_all(names: Sequence[str], repeats: int, pythons: dict[str, str], folder: Path, more: list[str]) -> dict:
    """Run everything `repeats` times in turn: {"runs": {name: [result]}, "peak": [...], "k8": [...]}."""
    found: dict[str, Any] = {"runs": {name: [] for name in names}, "peak": [], "k8": []}
    for repeat in range(repeats):
        found["peak"].append(run_once("necessary.py", pythons["Accord"], folder))
        print(f"# {repeat + 1}/{repeats}  fp32 peaks of one thread: {peaks_text(found['peak'][-1:])}")
        for name in names:
            script, setting = CONTENDERS[name]
            own = [f"--set={pair}" for pair in more] if script == "accord_dpo.py" else []
            python = pythons[name.split()[0].rstrip(",")]
            result = run_once(script, python, folder, "--workload", str(folder), "--setting", setting, *own)
            found["runs"][name].append(result)
            losses = " ".join(f"{loss:.4f}" for loss in result["losses"])
            print(f"# {repeat + 1}/{repeats}  {name}: {result['cpu_s']:.1f} CPU s, losses {losses}", flush=True)
    return found


def peaks_text(measured: list[dict]) -> str:
    """Each kernel's best rate, the median over measurements."""
    kernels = measured[0]["gflops"]
    best = {kernel: median(max(run["gflops"][kernel].values()) for run in measured) for kernel in kernels}
    return ", ".join(f"{kernel} {rate:.1f} GFLOP/s" for kernel, rate in best.items())


def summarise(found: dict, workload: dict) -> list[dict[str, Any]]:
    """Medians per contender, with ratios against TRL and the shares of the measured matrix-product peaks."""
    peak, fastest = (median(run[key] for run in found["peak"]) * 1e9 for key in ("peak_gflops", "fastest_gflops"))
    shape = workload["model"]
    shape = Shape(
        shape["hidden_size"],
        shape["num_hidden_layers"],
        shape["intermediate_size"],
        shape["vocab_size"],
        shape["hidden_size"],
    )
    rows = []
    for name, runs in found["runs"].items():
        flops = epoch_flops(shape, workload["lengths"], with_reference="cached" not in name)
        row: dict[str, Any] = {"contender": name}
        for key in ("cpu_s", "wall_s", "cpu_s_all", "peak_mib", "peak_over_start_mib"):
            row[key] = median(run[key] for run in runs)
        row["cpu_s_range"] = [min(run["cpu_s"] for run in runs), max(run["cpu_s"] for run in runs)]
        row["positions"] = runs[0]["num_processed_tokens"]
        row["first_loss"], row["mean_loss"] = runs[0]["losses"][0], sum(runs[0]["losses"]) / len(runs[0]["losses"])
        row["necessary_tflop"] = flops / 1e12
        row["share_of_peak"] = flops / (row["cpu_s"] * peak)  # above 1 where a faster kernel than torch.mm's is used
        row["share_of_fastest"] = flops / (row["cpu_s"] * fastest)
        rows.append(row)
    for row in rows:
        for base in ("TRL default", "TRL best"):
            other = next((item for item in rows if item["contender"] == base), None)
            if other is not None:
                row[f"speed_against_{base}"] = other["cpu_s"] / row["cpu_s"]
                row[f"memory_against_{base}"] = row["peak_mib"] / other["peak_mib"]
                row[f"memory_over_start_against_{base}"] = row["peak_over_start_mib"] / other["peak_over_start_mib"]
    return rows


def check_same_work(found: dict) -> list[str]:
    """Return what differs between contenders that must not: ids trained on, first loss ln 2, the mean loss."""
    runs = {name: results[0] for name, results in found["runs"].items() if results}
    problems = []
    if len({run["ids_sha256"] for run in runs.values()}) > 1:
        problems.append(f"token ids differ: { {name: run['ids_sha256'] for name, run in runs.items()} }")
    means = {name: sum(run["losses"]) / len(run["losses"]) for name, run in runs.items()}
    for name, run in runs.items():
        if abs(run["losses"][0] - 0.693147) > 1e-4:
            problems.append(f"{name}: the first loss is {run['losses'][0]:.5f}, not ln 2")
    if max(means.values()) - min(means.values()) > 0.02:
        problems.append(f"mean losses differ: { {name: round(mean, 4) for name, mean in means.items()} }")
    return problems


def table(rows: list[dict[str, Any]]) -> str:
    """The comparison as Markdown."""
    lines = [
        "| contender | CPU s | with load and save | wall s | × TRL default | × TRL best | peak MiB (over start) "
        "| memory / TRL default (over start) | positions | first loss | mean loss "
        "| share of torch.mm's peak | share of the fastest kernel's |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        against = [row.get(f"speed_against_{base}") for base in ("TRL default", "TRL best")]
        speeds = " | ".join("–" if ratio is None else f"{ratio:.2f}" for ratio in against)
        memory = "–"
        if "memory_against_TRL default" in row:
            memory = f"{row['memory_against_TRL default']:.0%} ({row['memory_over_start_against_TRL default']:.0%})"
        lines.append(
            f"| {row['contender']} | {row['cpu_s']:.1f} | {row['cpu_s_all']:.1f} | {row['wall_s']:.1f} | {speeds} "
            f"| {row['peak_mib']:.0f} ({row['peak_over_start_mib']:.0f}) | {memory} | {row['positions']} "
            f"| {row['first_loss']:.4f} | {row['mean_loss']:.4f} | {row['share_of_peak']:.0%} "
            f"| {row['share_of_fastest']:.0%} |"
        )
    return "\n".join(lines)


def k8_table(results: list[dict[str, Any]]) -> str:
    """The K = 8 comparison as Markdown."""
    lines = [
        "| K = 8, prompt 512, responses 128 | tree CPU s | plain CPU s | ratio (range) | ratio by FLOPs "
        "| the model's own logits CPU s | ratio | tree GFLOP/s |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    lines.extend(
        f"| vocabulary {row['vocabulary']} | {row['tree_cpu_s']:.2f} | {row['plain_cpu_s']:.2f} | {row['ratio']:.2f} "
        f"({row['ratio_range'][0]:.2f}–{row['ratio_range'][1]:.2f}) | {row['ratio_by_flops']:.2f} "
        f"| {row['own_logits_cpu_s']:.2f} | {row['ratio_to_own_logits']:.2f} "
        f"| {row['tree_gflops']:.1f} |"
        for row in results
    )
    return "\n".join(lines)


def environment(found: dict) -> dict[str, Any]:
    """Where and with what this was measured."""
    names = [line.split(":", 1)[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    return {
        "command": shlex.join(["python", "benchmarks/preference_training.py", *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg(),
        "versions": {name: runs[0]["versions"] for name, runs in found["runs"].items() if runs},
    }


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=1, help="runs of each contender, in turn; medians are shown")
    parser.add_argument("--only", nargs="+", default=list(USUAL), choices=list(CONTENDERS), metavar="CONTENDER")
    parser.add_argument("--json", type=Path, help="write every run and the summary here")
    parser.add_argument("--keep", type=Path, help="folder for the model and data; default: a temporary one")
    parser.add_argument("--trl-python", default=sys.executable, help="an interpreter with TRL, if not this one")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a further setting for Accord")
    parser.add_argument("--no-k8", action="store_true", help="leave out the comparison of the two paths at K = 8")
    return parser.parse_args(arguments)


def main() -> None:
    """Prepare the files, measure, print, and write the JSON."""
    args = parse()
    pythons = {"TRL": args.trl_python, "Accord": sys.executable}
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or Path(temporary)
        workload = prepare(folder)
        print(
            f"# {workload['data']}: 32 pairs, {workload['num_prompt_tokens']} prompt tokens (each prompt once), ",
            end="",
        )
        print(f"{workload['num_response_tokens']} response tokens; model {workload['model']}", flush=True)
        found = measure_all(args.only, args.repeats, pythons, folder, args.set)
        if not args.no_k8:
            found["k8"] = run_once("tree_and_plain.py", pythons["Accord"], folder, "--repeats", "3")
    rows, problems, where = summarise(found, workload), check_same_work(found), environment(found)
    print(f"\n{table(rows)}\n")
    if found["k8"]:
        print(f"{k8_table(found['k8'])}\n")
    print(f"{GOALS}\nPeaks of one thread: {peaks_text(found['peak'])}; {where['processor']}.")
    for problem in problems:
        print(f"NOT THE SAME WORK: {problem}")
    if args.json:
        everything = {"where": where, "workload": workload, "summary": rows, "problems": problems, **found}
        args.json.write_text(json.dumps(everything, indent=1, ensure_ascii=False))
        print(f"Written: {args.json}")
    if problems:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
