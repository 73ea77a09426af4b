"""Verifiers: rules that decide whether a response is right, and the table of them.

A verifier is `fn(response, column, …, *, setting=default, …) -> Finding`: score 1.0 or 0.0 (a share or a penalty where
its docstring says so), or None where it cannot know. To add one: write the function, its row in `ROWS` of the same
file, tests with passes and failures. `verifier_reward` makes a reward of a row.
"""

from __future__ import annotations

import difflib
from typing import Any

from accord.errors import ConfigError
from accord.feedback.verifiers import answers, formats, instructions, mathematics
from accord.feedback.verifiers import code as code_judge
from accord.feedback.verifiers.answers import gsm8k, multiple_choice, string_match
from accord.feedback.verifiers.code import code
from accord.feedback.verifiers.formats import (
    boxed_format,
    json_schema,
    language,
    length,
    regex,
    repetition,
    think_format,
)
from accord.feedback.verifiers.instructions import ifeval
from accord.feedback.verifiers.mathematics import close_workers, equivalent, final_answer, math
from accord.feedback.verifiers.spec import Column, VerifierReward, VerifierSpec
from accord.feedback.verifiers.texts import ABSTENTIONS, is_abstention

__all__ = [
    "ABSTENTIONS",
    "VERIFIERS",
    "Column",
    "VerifierReward",
    "VerifierSpec",
    "boxed_format",
    "close_workers",
    "code",
    "equivalent",
    "final_answer",
    "gsm8k",
    "ifeval",
    "is_abstention",
    "json_schema",
    "language",
    "length",
    "math",
    "multiple_choice",
    "regex",
    "repetition",
    "string_match",
    "think_format",
    "verifier_reward",
]

VERIFIERS: dict[str, VerifierSpec] = {
    **answers.ROWS,
    **mathematics.ROWS,
    **instructions.ROWS,
    **formats.ROWS,
    **code_judge.ROWS,
}


def verifier_reward(name: str, **settings: Any) -> VerifierReward:
    """Return a verifier of the table as a reward with these settings.

    What the verifier reads beside the responses comes from `group.extra`; `NAME_column` settings name other columns.
    Raises ConfigError for an unknown name or setting, FeedbackError where a package it needs is not installed.
    """
    if name not in VERIFIERS:
        near = difflib.get_close_matches(name, VERIFIERS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(f"got the verifier {name!r} — {hint}there are {', '.join(VERIFIERS)}")
    return VerifierReward(name, VERIFIERS[name], settings)
