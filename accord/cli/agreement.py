"""`accord agreement`: whether judgements can be trusted."""

from __future__ import annotations

import argparse
import json
from typing import Any

from accord.cli.command import add_command


def add_commands(commands: Any) -> None:
    """Add `agreement`."""
    agreement = add_command(commands, "agreement", _agreement, "say how far judges agree and which ones to look at")
    agreement.add_argument("file", help="judged groups: Accord's own format, with the judges' names")
    agreement.add_argument("--gold", metavar="FILE", help="groups whose judgements are the known answers")
    agreement.add_argument("--resamples", type=int, default=500, metavar="N", help="bootstrap draws for intervals")
    agreement.add_argument("--seed", type=int, default=0)


def _agreement(parsed: argparse.Namespace) -> int:
    from accord.agreement import measure_agreement
    from accord.data import load_groups

    report = measure_agreement(
        load_groups(parsed.file).groups,
        gold=load_groups(parsed.gold).groups if parsed.gold else (),
        num_resamples=parsed.resamples,
        seed=parsed.seed,
    )
    print(json.dumps(report.to_dict(), indent=2) if parsed.json else report.to_text(), end="\n" if parsed.json else "")
    return 0
