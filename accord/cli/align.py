"""`accord align` and `accord sft`: train a model."""

from __future__ import annotations

import argparse
from typing import Any

from accord.cli.command import add_command
from accord.cli.outcome import describe_outcome

EPILOG = "Settings are key=value with dotted keys, such as objective.beta=0.1 or train.epochs=2; see docs/settings.md."
STOPPED = 143  # what a shell shows for a process ended by SIGTERM


def add_commands(commands: Any) -> None:
    """Add `align` and `sft`."""
    for name, help_text in (
        ("align", "train a model on a file of judged responses"),
        ("sft", "train a model on demonstrations (align with objective=sft)"),
    ):
        command = add_command(commands, name, _align, help_text)
        command.set_defaults(objective="sft" if name == "sft" else None)
        command.add_argument("settings", nargs="*", metavar="RECIPE.yaml | key=value", help=EPILOG)
        command.add_argument("--model", help="model folder or Hub id")
        command.add_argument("--data", help="file, folder, glob or Hub id of judged responses")
        command.add_argument("--out", help="run folder")
        command.add_argument(
            "--skip-bad-rows", action="store_true", help="keep malformed rows aside (data.skip_bad_rows=true)"
        )
        command.add_argument("--resume", action="store_true", help="continue the run in --out from its last checkpoint")
        command.add_argument("--dry-run", action="store_true", help="print the plan and the data report, then stop")


def _align(parsed: argparse.Namespace) -> int:
    from accord.config import build_config
    from accord.durable import dump_json
    from accord.terminal import ProgressBars, announce, is_first_process, quiet_libraries

    config = build_config(read_settings(parsed))
    quiet_libraries()
    from accord.alignment import align

    with ProgressBars() as bars:
        result = align(
            config, resume=parsed.resume, dry_run=parsed.dry_run, progress=bars.training(), announce=announce,
            show_reference=lambda done, total: bars.show("scoring the reference", done, total),
        )  # fmt: skip
    if parsed.json and is_first_process():
        print(dump_json({"plan": result.plan, "summary": result.summary}, indent=2))
    elif result.run is not None and not result.was_stopped:  # a stopped run has no result yet
        announce(describe_outcome(result.summary, str(result.run.path)))
    if result.was_stopped:
        announce(f"stopped by a signal after step {result.summary['steps']}; the same command with --resume goes on")
        return STOPPED
    return 0


def read_settings(parsed: argparse.Namespace) -> dict[str, Any]:
    """Join recipes in their order, then key=value, then flags; later ones win."""
    from accord.config import SHORT, flatten, parse_assignment, read_recipe

    recipes = [dict(flatten(read_recipe(text))) for text in parsed.settings if "=" not in text]
    assigned = dict(parse_assignment(text) for text in parsed.settings if "=" in text)
    flags: dict[str, Any] = {
        key: value for key in ("model", "data", "out") if (value := getattr(parsed, key)) is not None
    }
    if parsed.skip_bad_rows:
        flags["data.skip_bad_rows"] = True
    settings: dict[str, Any] = {"objective.name": parsed.objective} if parsed.objective else {}
    for layer in (*recipes, assigned, flags):
        given = {SHORT.get(key, key): value for key, value in layer.items()}
        if given.get("objective.name", settings.get("objective.name")) != settings.get("objective.name"):
            # another objective drops the settings of the one before
            settings = {key: value for key, value in settings.items() if not key.startswith("objective.")}
        settings |= given
    return settings
