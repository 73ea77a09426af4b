"""`accord verify` and `accord methods`: what is proved, and what there is."""

from __future__ import annotations

import argparse
import json
from typing import Any

from accord.cli.command import add_command


def add_commands(commands: Any) -> None:
    """Add `verify` and `methods`."""
    verify = add_command(
        commands, "verify", _verify, "check the objectives against their theory, and a model against itself"
    )
    verify.add_argument("--model", help="model folder or Hub id to certify")
    verify.add_argument("--only-model", action="store_true", help="leave the objectives out: they do not depend on it")

    methods = add_command(commands, "methods", _methods, "list the objectives")
    methods.add_argument("name", nargs="?", help="show one objective in full")
    methods.add_argument("--online", action="store_true", help="list the presets of `method=`, which sample and judge")
    methods.add_argument("--logic", action="store_true", help="show what it says of a pair as a formula")


def _verify(parsed: argparse.Namespace) -> int:
    from accord.terminal import print_claims, quiet_libraries

    quiet_libraries()
    import torch

    from accord.certify import model_claims
    from accord.lab.base_model import base_model_folder
    from accord.lab.optima import objective_claims
    from accord.policy.load import load_policy

    policy = load_policy(parsed.model or base_model_folder())  # first, so that a mistyped path is said at once
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tables of a few dozen numbers: threads would only wait for each other
    claims = [] if parsed.only_model else objective_claims()
    torch.set_num_threads(num_threads)
    claims += model_claims(policy)
    if parsed.json:
        print(json.dumps([claim.to_dict() for claim in claims], indent=2))
    else:
        print_claims(claims)
    return 0 if all(claim.passed for claim in claims) else 1


def _methods(parsed: argparse.Namespace) -> int:
    from accord.objectives import methods_table
    from accord.terminal import print_method, print_methods

    if parsed.online:
        return _online(as_json=parsed.json)
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


def _online(*, as_json: bool) -> int:
    from dataclasses import asdict

    from accord.objectives.methods import METHODS
    from accord.terminal import print_presets

    rows = [{"name": name, **asdict(method)} for name, method in METHODS.items()]
    if as_json:
        print(json.dumps(rows, indent=2))
    else:
        print_presets(rows)
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
