"""Run one journey, print what it gained, and write summary.json."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from accord.durable import dump_json
from accord.lab.journeys.collect import collect
from accord.lab.journeys.constitutional import constitutional
from accord.lab.journeys.instructgpt import instructgpt
from accord.lab.journeys.overoptimise import overoptimise
from accord.lab.journeys.parts import Tell, cpu_seconds, one_thread, table
from accord.lab.journeys.rlvr import rlvr
from accord.lab.journeys.sampled import best_of_n, online_dpo

Journey = Callable[..., dict[str, Any]]  # (out, *, seed, tell) -> summary

JOURNEYS: dict[str, Journey] = {
    "instructgpt": instructgpt,
    "rlvr": rlvr,
    "constitutional": constitutional,
    "best_of_n": best_of_n,
    "online_dpo": online_dpo,
    "collect": collect,
    "overoptimise": overoptimise,
}


def run_journey(name: str, out: str | Path, *, seed: int = 0, tell: Tell = lambda text: None) -> dict[str, Any]:
    """Run a journey on one thread and return its summary, also written to `out`/summary.json."""
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    started = cpu_seconds()
    with one_thread():
        summary = {"journey": name, "seed": seed, **JOURNEYS[name](folder, seed=seed, tell=tell)}
    summary["cpu_seconds"] = round(cpu_seconds() - started, 1)
    (folder / "summary.json").write_text(dump_json(summary, indent=2) + "\n", encoding="utf-8")
    return summary


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m accord.lab.journeys", description=__doc__)
    parser.add_argument("name", choices=JOURNEYS)
    parser.add_argument("--out", required=True, help="folder for runs, data and summary.json")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print the summary instead of a table")
    parsed = parser.parse_args(arguments)
    summary = run_journey(parsed.name, parsed.out, seed=parsed.seed, tell=lambda text: print(text, file=sys.stderr))
    print(json.dumps(summary, indent=2) if parsed.json else shown(summary))
    return 0


def shown(summary: Mapping[str, Any]) -> str:
    """Return a summary for people: the table of its stages, and what else was measured."""
    lines = [table(summary["stages"])] if "stages" in summary else []
    for key, value in summary.items():
        if key not in ("stages", "journey", "history"):
            lines.append(f"{key:<22}{_rounded(value)}")
    return "\n".join(lines)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 3)
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, list) else value


if __name__ == "__main__":
    raise SystemExit(main())
