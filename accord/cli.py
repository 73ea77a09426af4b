"""The command line: parse, call one function, print. Imports nothing heavy until a command needs it."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from accord.errors import AccordError

EPILOG = "Settings are key=value with dotted keys, such as objective.beta=0.1 or train.epochs=2; see docs/settings.md."
STOPPED = 143  # what a shell shows for a process ended by SIGTERM


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 1 for a clear error, 2 for wrong usage, 143 when told to stop."""
    parsed = build_parser().parse_args(arguments)
    try:
        return int(parsed.run(parsed) or 0)
    except AccordError as error:
        print(f"accord: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("accord: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `accord methods | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(prog="accord", description="Align language models with preferences.")
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    demo = _add(commands, "demo", _demo, "align a small language model in a world with a known reward; no download")
    demo.add_argument("--out", default="runs/demo", help="folder for the results (default: runs/demo)")
    demo.add_argument("--overwrite", action="store_true", help="replace the results of an earlier demo in --out")
    demo.add_argument("--seed", type=int, default=0)

    for name, help_text in (
        ("align", "train a model on a file of judged responses"),
        ("sft", "train a model on demonstrations (align with objective=sft)"),
    ):
        command = _add(commands, name, _align, help_text)
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

    sample = _add(commands, "sample", _sample, "answer prompts with a model")
    sample.add_argument("--model", required=True)
    sample.add_argument("--prompts", help="file of prompts; without it, each line of standard input is one")
    sample.add_argument("--num-responses", type=int, default=1, metavar="K")
    sample.add_argument("--max-tokens", type=int, default=128)
    sample.add_argument("--temperature", type=float, default=1.0, help="0 = greedy")
    sample.add_argument("--top-p", type=float, default=1.0)
    sample.add_argument("--top-k", type=int, default=0)
    sample.add_argument("--seed", type=int, default=0)
    sample.add_argument("--chat", default="auto", help="chat template for the prompts (auto, own, transcript, a file)")
    sample.add_argument("--out", help="write groups here (.jsonl or .parquet) instead of printing")

    verify = _add(commands, "verify", _verify, "check the objectives against their theory, and a model against itself")
    verify.add_argument("--model", help="model folder or Hub id to certify")

    methods = _add(commands, "methods", _methods, "list the objectives")
    methods.add_argument("name", nargs="?", help="show one objective in full")
    methods.add_argument("--logic", action="store_true", help="show what it says of a pair as a formula")

    report = _add(commands, "report", _report, "write the report of a run again")
    report.add_argument("run_folder")
    return parser


def _add(commands: Any, name: str, run: Any, help_text: str) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=help_text, description=help_text[0].upper() + help_text[1:] + ".")
    command.set_defaults(run=run)
    command.add_argument("--json", action="store_true", help="print the result as JSON on standard output")
    return command


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


def _align(parsed: argparse.Namespace) -> int:
    from accord.config import build_config
    from accord.durable import dump_json
    from accord.terminal import ProgressBars, announce, is_first_process, quiet_libraries

    config = build_config(_settings(parsed))
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
        announce(_outcome(result.summary, str(result.run.path)))
    if result.was_stopped:
        announce(f"stopped by a signal after step {result.summary['steps']}; the same command with --resume goes on")
        return STOPPED
    return 0


def _settings(parsed: argparse.Namespace) -> dict[str, Any]:
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


def _outcome(summary: dict[str, Any], folder: str) -> str:
    lines = [
        f"{summary['steps']} steps, {summary['tokens']} tokens, {summary['seconds']} s, {summary['layout']} layout"
    ]
    after, before = summary["eval_after"] or {}, summary["eval_before"] or {}
    for key, name in (
        ("rewards/accuracies", "held-out reward accuracy"),
        ("ranking_accuracy", "held-out ranking accuracy"),
        ("labels/accuracies", "held-out accuracy on labels"),
        ("steps/accuracies", "held-out accuracy on steps"),
        ("pairs/accuracies", "held-out accuracy on pairs"),
        ("calibration/brier", "held-out Brier score"),
        ("calibration/ece", "held-out calibration error"),
        ("rewards/margins", "held-out margin"),
        ("kl", "KL from the reference, nats"),
        ("loss", "held-out loss"),
    ):
        if key in after:
            ends = f" [{after[f'{key}_low']:.3f}, {after[f'{key}_high']:.3f}]" if f"{key}_low" in after else ""
            start = f" (before: {before[key]:.3f})" if key in before else ""
            lines.append(f"  {name:<30} {after[key]:.3f}{ends}{start}")
    lines.append(f"model and report: {folder}/model, {folder}/report.html")
    return "\n".join(lines)


def _sample(parsed: argparse.Namespace) -> int:
    from accord.data import group_to_row, load_groups, write_groups
    from accord.terminal import quiet_libraries

    quiet_libraries()
    from accord.policy.load import load_policy

    if parsed.prompts:
        prompts = load_groups(parsed.prompts).groups
    else:
        prompts = [line.strip() for line in sys.stdin if line.strip()]
    answered = load_policy(parsed.model).sample(
        prompts, num_responses=parsed.num_responses, max_tokens=parsed.max_tokens, temperature=parsed.temperature,
        top_p=parsed.top_p, top_k=parsed.top_k, seed=parsed.seed, chat_template=parsed.chat,
    )  # fmt: skip
    if parsed.out:
        write_groups(parsed.out, answered)
    elif parsed.json:
        print(json.dumps([group_to_row(group) for group in answered], indent=2))
    else:
        for group in answered:
            print(f"> {group.prompt if isinstance(group.prompt, str) else group.prompt[-1].content}")
            for response in group.responses:
                print(f"  {response.content}")
    return 0


def _verify(parsed: argparse.Namespace) -> int:
    from accord.terminal import print_claims, quiet_libraries

    quiet_libraries()
    import torch

    from accord.lab.optima import objective_claims

    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tables of a few dozen numbers: threads would only wait for each other
    claims = objective_claims()
    torch.set_num_threads(num_threads)
    from accord.certify import model_claims
    from accord.lab.base_model import base_model_folder
    from accord.policy.load import load_policy

    claims += model_claims(load_policy(parsed.model or base_model_folder()))
    if parsed.json:
        print(json.dumps([claim.to_dict() for claim in claims], indent=2))
    else:
        print_claims(claims)
    return 0 if all(claim.passed for claim in claims) else 1


def _methods(parsed: argparse.Namespace) -> int:
    from accord.objectives import methods_table
    from accord.terminal import print_method, print_methods

    rows = methods_table()
    if parsed.name is not None:
        rows = [row for row in rows if row["name"] == parsed.name]
        if not rows:
            from accord.config import ObjectiveConfig, validate_objective

            validate_objective(ObjectiveConfig(name=parsed.name))  # raises, naming the nearest one
    if parsed.logic:
        return _logic(rows, as_json=parsed.json)
    if parsed.json:
        print(json.dumps(rows, indent=2))
    elif parsed.name is not None:
        print_method(rows[0])
    else:
        print_methods(rows)
    return 0


def _logic(rows: list[dict[str, Any]], *, as_json: bool) -> int:
    from accord.errors import ConfigError
    from accord.objectives.logic.forms import ROW_FORMS, form_of
    from accord.terminal import print_form

    forms = {row["name"]: form for row in rows if (form := form_of(row["name"])) is not None}
    if not forms:
        raise ConfigError(
            f"got methods {rows[0]['name']} --logic, which has no form as logic here — those that have: "
            f"{', '.join(ROW_FORMS)}; objective=dpa_logic compiles a formula of your own"
        )
    if as_json:
        print(json.dumps(forms, indent=2))
    else:
        for name, form in forms.items():
            print_form(name, form)
    return 0


def _report(parsed: argparse.Namespace) -> int:
    from accord.evaluation.report import write_report
    from accord.store import RunFolder

    path = write_report(RunFolder.open(parsed.run_folder))
    print(json.dumps({"report": str(path)}) if parsed.json else path)
    return 0


def _version() -> str:
    from accord import __version__

    return f"accord {__version__}"


if __name__ == "__main__":
    sys.exit(main())
