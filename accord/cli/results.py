"""`accord demo` and `accord report`: something to look at."""

from __future__ import annotations

import argparse
import json
from typing import Any

from accord.cli.command import add_command


def add_commands(commands: Any) -> None:
    """Add `demo` and `report`."""
    demo = add_command(
        commands, "demo", _demo, "align a small language model in a world with a known reward; no download"
    )
    demo.add_argument("--out", default="runs/demo", help="folder for the results (default: runs/demo)")
    demo.add_argument("--overwrite", action="store_true", help="replace the results of an earlier demo in --out")
    demo.add_argument("--seed", type=int, default=0)

    report = add_command(commands, "report", _report, "write the report of a run again")
    report.add_argument("run_folder")


def _demo(parsed: argparse.Namespace) -> int:
    from accord.terminal import ProgressBars, print_demo, quiet_libraries

    quiet_libraries()
    from accord.lab.demo import run_demo

    with ProgressBars() as bars:
        summary = run_demo(parsed.out, seed=parsed.seed, overwrite=parsed.overwrite, show=bars.show)
    if parsed.json:
        print(json.dumps(summary, indent=2))
    else:
        print_demo(summary, parsed.out)
    return 0


def _report(parsed: argparse.Namespace) -> int:
    from accord.evaluation.report import write_report
    from accord.store import RunFolder

    path = write_report(RunFolder.open(parsed.run_folder))
    print(json.dumps({"report": str(path)}) if parsed.json else path)
    return 0
