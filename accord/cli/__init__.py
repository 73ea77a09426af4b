"""The command line: parse, call one function, print. Imports nothing heavy until a command needs it.

A file per group of commands; each adds its own to the parser.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from accord.cli import agreement, align, certificate, collect, judge, results, reward, sample
from accord.errors import AccordError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 1 for a clear error, 2 for wrong usage, 143 when told to stop."""
    parsed = parse(arguments)
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


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read a command line; settings may also stand after the options that follow a recipe."""
    parser = build_parser()
    parsed, rest = parser.parse_known_args(arguments)
    if rest and not (hasattr(parsed, "settings") and all("=" in text and text[0] != "-" for text in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        parsed.settings = [*parsed.settings, *rest]
    return parsed


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(prog="accord", description="Align language models with preferences.")
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for group in (results, align, reward, sample, judge, collect, agreement, certificate):
        group.add_commands(commands)
    return parser


def _version() -> str:
    from accord import __version__

    return f"accord {__version__}"
