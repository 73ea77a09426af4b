"""What a person sees in the terminal: progress bars, tables, and the noise of libraries turned down."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from accord.claims import Claim

errors = Console(stderr=True)  # standard output is for results
results = Console()


def is_first_process() -> bool:
    """Whether this is the one of several processes that speaks."""
    return os.environ.get("RANK", "0") == "0"


def announce(text: str) -> None:
    """Tell the person at the terminal something about the run, on stderr; only the first of several processes does."""
    if is_first_process():
        errors.print(escape(text), highlight=False, soft_wrap=True)


def quiet_libraries() -> None:
    """Show our own warnings and the libraries' errors, and no bars but ours."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("accord").setLevel(logging.INFO)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=FutureWarning)
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()


class ProgressBars:
    """Progress bars on stderr, one per stage; silent where there is no terminal."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description:<24}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=errors,
            disable=not is_first_process(),
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> ProgressBars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Move a stage's bar, making it on first sight."""
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=total, note=note)
        self._progress.update(self._tasks[stage], completed=done, total=total, note=note)

    def training(self, stage: str = "training") -> Callable[[int, int, dict[str, float]], None]:
        """Return the callback a loop reports its steps to."""

        def report(step: int, total: int, metrics: dict[str, float]) -> None:
            parts = [f"{name} {metrics[key]:.3f}" for name, key in _SHOWN.items() if key in metrics]
            self.show(stage, step, total, "  ".join(parts))

        return report


_SHOWN = {"loss": "loss", "margin": "rewards/margins", "accuracy": "rewards/accuracies", "reward": "rollout/reward"}


def print_claims(claims: Sequence[Claim]) -> None:
    """Print a certificate: one line per claim, then the verdict."""
    table = Table(title="Certificate", title_justify="left")
    for name in ("claim", "expected", "reached", "gap", ""):
        table.add_column(name, justify="left" if name in ("claim", "") else "right", overflow="fold")
    for claim in claims:
        verdict = "[green]holds[/]" if claim.passed else "[bold red]FAILS[/]"
        numbers = (f"{value:.6g}" for value in (claim.expected, claim.reached, claim.gap))
        note = f"\n  [dim]{escape(claim.note)}[/]" if claim.note else ""
        table.add_row(escape(claim.name) + note, *numbers, verdict)
    results.print(table)
    failed = sum(not claim.passed for claim in claims)
    results.print(
        f"{len(claims) - failed} of {len(claims)} claims hold" + (f", [red]{failed} fail[/]" if failed else "")
    )


def print_methods(rows: Sequence[dict[str, Any]]) -> None:
    """Print the table of objectives."""
    table = Table(title="Objectives", title_justify="left")
    for name in ("name", "family", "needs", "reference", "defaults", "paper"):
        table.add_column(name, overflow="fold", no_wrap=name == "name")
    for row in rows:
        defaults = ", ".join(f"{key}={value}" for key, value in row["defaults"].items())
        table.add_row(
            row["name"], row["family"], ", ".join(row["needs"]) or "–", "yes" if row["reference"] else "no", defaults,
            row["paper"],
        )  # fmt: skip
    results.print(table)
    results.print("accord methods NAME shows one in full; docs/objectives/ has a page for each.")


def print_presets(rows: Sequence[dict[str, Any]]) -> None:
    """Print the table of online methods."""
    table = Table(title="Online methods: method=NAME with a reward", title_justify="left")
    for name in ("name", "objective", "advantage", "settings", "what it is"):
        table.add_column(name, overflow="fold", no_wrap=name == "name")
    for row in rows:
        settings = {"rollout.num_responses": row["num_responses"], **row["settings"]}
        shown = ", ".join(f"{key}={value}" for key, value in settings.items())
        table.add_row(row["name"], row["objective"], row["advantage"] or "–", shown, escape(row["summary"]))
    results.print(table)
    results.print("Each is settings and nothing else; `accord align … method=NAME --dry-run` prints them in full.")


def print_method(row: dict[str, Any]) -> None:
    """Print one objective: its row and its docstring."""
    import inspect
    from functools import partial

    from accord.objectives import OBJECTIVES

    spec = OBJECTIVES[row["name"]]
    documented = spec.fn.func if isinstance(spec.fn, partial) else spec.fn
    results.print(f"[bold]{row['name']}[/] — {row['family']}, {row['level']} level. {escape(row['paper'])}\n")
    results.print(escape(inspect.getdoc(documented) or ""), highlight=False)


def print_form(name: str, form: dict[str, Any]) -> None:
    """Print how one objective reads as logic: formulas, truth table, link."""
    from accord.objectives.logic.structure import Structure

    loss = {"logistic": "−log σ(β ρ)", "squared": "(ρ − 1/(2β))²", "hinge": "max(0, β − ρ)"}[form["link"]]
    given = "exp(log π/|y|)" if form["normalisation"] == "mean" else "exp(log π)"
    results.print(f"[bold]{name}[/] — structure {form['structure']}", highlight=False)
    results.print(escape(Structure(form["formula"], form["condition"], form["both"]).to_text()), highlight=False)
    results.print("ρ = log p(models that count +) − log p(models that count −)", highlight=False)
    results.print(f"loss = {loss}, a response given with probability {given}", highlight=False)
    results.print(f"{form['remark']}\n", highlight=False)


def print_demo(summary: dict[str, Any], folder: str) -> None:
    """Print what the demo measured: a table, and answers before and after."""
    table = Table(title="On requests nobody judged", title_justify="left")
    for name in ("", "before", "after"):
        table.add_column(name, justify="left" if not name else "right")
    for row in summary["table"]:
        cells = [
            f"{row[moment]:.0%}" if row["unit"] == "share" else f"{row[moment]:.2f}" for moment in ("before", "after")
        ]
        table.add_row(row["name"], *cells)
    results.print(table)
    low, high = summary["gold_gain_ci95"]
    results.print(f"gold reward gained     {summary['gold_gain']:+.2f}  (95 % interval {low:+.2f} to {high:+.2f})")
    low, high = summary["win_rate_ci95"]
    results.print(f"win rate over the base {summary['win_rate']:.0%}  ({low:.0%} to {high:.0%})")
    results.print(f"KL from the base       {summary['kl']:.2f} nats per answer")
    for sample in summary["samples"]:
        results.print(f"\n[bold]{escape(sample['prompt'])}[/]", highlight=False)
        for moment in ("before", "after"):
            results.print(f"  {moment:<7}{sample[f'gold_{moment}']:>6.2f}  {escape(sample[moment])}", highlight=False)
    where = f"The report is {folder}/report.html, the aligned model {folder}/model."
    results.print(f"\n{summary['seconds']:.0f} s. {where}", highlight=False)
