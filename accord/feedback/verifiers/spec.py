"""What the rest of Accord may ask about a verifier: the row type of `VERIFIERS`, and a verifier as a reward."""

from __future__ import annotations

import importlib.util
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from accord.errors import ConfigError, DataError, FeedbackError
from accord.feedback.findings import Finding
from accord.records import Group, Response


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the data that a verifier reads beside the response: its usual name, and what it must hold."""

    name: str
    expected: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifierSpec:
    """One row of `VERIFIERS`: a function of a response and some columns, and what a caller must know to run it.

    The settings, their bounds and defaults are the keyword-only parameters of `fn`, and `NAME_column` for each column.
    """

    fn: Callable[..., Finding]
    columns: Mapping[str, Column] = field(default_factory=dict)  # parameter after the response → column
    check_columns: Callable[..., None] | None = None  # raises ValueError for values no response can be judged by
    check: Callable[..., None] | None = None  # of the settings: raises ValueError where bounds cannot say it
    requires: tuple[str, ...] = ()  # modules of the extra `verifiers`
    waits: bool = False  # the work is done by other processes: several responses are asked about at once
    source: str = ""

    @property
    def summary(self) -> str:
        """Return the first sentence of the function's docstring."""
        return (inspect.getdoc(self.fn) or "").partition("\n")[0]

    def settings(self) -> dict[str, inspect.Parameter]:
        """Return the settings in order, annotations (with their bounds) resolved to objects."""
        columns = {
            f"{name}_column": inspect.Parameter(
                f"{name}_column", inspect.Parameter.KEYWORD_ONLY, default=column.name, annotation=str
            )
            for name, column in self.columns.items()
        }
        return keyword_parameters(self.fn) | columns

    def defaults(self) -> dict[str, Any]:
        """Return the default of every setting; one without a default must be given."""
        return {name: p.default for name, p in self.settings().items() if p.default is not inspect.Parameter.empty}


def keyword_parameters(fn: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return the keyword-only parameters of a function with their annotations resolved."""
    parameters = inspect.signature(fn, eval_str=True).parameters
    return {name: p for name, p in parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}


def checked_values(parameters: Mapping[str, inspect.Parameter], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values filled in and checked against annotations and bounds. Raises ValueError naming the first."""
    unknown = next((name for name in given if name not in parameters), None)
    if unknown is not None:
        raise ValueError(f"got {unknown} — expected {', '.join(parameters) or 'none'}")
    defaults = {name: p.default for name, p in parameters.items() if p.default is not inspect.Parameter.empty}
    types = _types(tuple((name, p.annotation) for name, p in parameters.items()))
    try:
        return types.validate_python({**defaults, **given})
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(str(part) for part in problem["loc"])
        shown = "" if problem["type"] == "missing" else f"={problem['input']!r:.80}"
        raise ValueError(f"got {place}{shown} — {problem['msg']}") from None


@cache
def _types(annotations: tuple[tuple[str, Any], ...]) -> TypeAdapter[Any]:
    # not a model: a setting may have the name of one of its methods
    return TypeAdapter(TypedDict("Values", dict(annotations)))  # pyright: ignore[reportArgumentType] -- made at run time


def require(module: str, purpose: str) -> None:
    """Raise FeedbackError, naming the extra to install, where a module is not there."""
    if importlib.util.find_spec(module) is None:
        raise FeedbackError(f"got no module {module} — {purpose} needs it — pip install 'accord[verifiers]'")


class VerifierReward:
    """A verifier with its settings as a reward: groups in, a finding per response out."""

    def __init__(self, name: str, spec: VerifierSpec, settings: Mapping[str, Any]) -> None:
        """Check the settings. Raises ConfigError for a wrong one, FeedbackError where a package is missing."""
        try:
            values = checked_values(spec.settings(), settings)
            if spec.check is not None:
                spec.check(**{key: value for key, value in values.items() if key in keyword_parameters(spec.fn)})
        except ValueError as error:
            raise ConfigError(f"reward.{name}: {error}") from None
        for module in spec.requires:
            require(module, f"the verifier {name!r}")
        self._name, self._spec = name, spec
        self._column_of = {parameter: str(values.pop(f"{parameter}_column")) for parameter in spec.columns}
        self._settings = values

    @property
    def name(self) -> str:
        """What its scores are recorded under: the verifier's name."""
        return self._name

    def __call__(self, groups: Sequence[Group]) -> list[list[Finding]]:
        """Return a finding per response. Raises DataError, before anything is scored, for a row without a column."""
        asked = [self._columns(group) for group in groups]
        tasks = [
            (response, columns)
            for group, columns in zip(groups, asked, strict=True)
            for response in group.responses
        ]  # fmt: skip
        findings = iter(self._findings(tasks))
        return [[next(findings) for _ in group.responses] for group in groups]

    def check_groups(self, groups: Sequence[Group]) -> None:
        """Raise DataError for a row without a column that is read, before there are responses."""
        for group in groups:
            self._columns(group)

    def _findings(self, tasks: Sequence[tuple[Response, Mapping[str, Any]]]) -> list[Finding]:
        def judge(task: tuple[Response, Mapping[str, Any]]) -> Finding:
            response, columns = task
            return self._spec.fn(response, **columns, **self._settings)

        if not self._spec.waits:
            return [judge(task) for task in tasks]
        with ThreadPoolExecutor(max_workers=max(1, min(8, os.cpu_count() or 1))) as threads:
            return list(threads.map(judge, tasks))

    def _columns(self, group: Group) -> dict[str, Any]:
        values = {}
        for parameter, column in self._column_of.items():
            if group.extra.get(column) is None:
                found = ", ".join(key for key, value in group.extra.items() if value is not None) or "none"
                raise DataError(
                    f"{group.origin or 'a group'}: got the columns {found} beside the texts — the verifier "
                    f"{self._name!r} expects {column!r}: {self._spec.columns[parameter].expected} — add it, or name "
                    f"the column with reward.{self._name}.{parameter}_column"
                )
            values[parameter] = group.extra[column]
        if self._spec.check_columns is not None:
            try:
                self._spec.check_columns(**values)
            except ValueError as error:
                raise DataError(f"{group.origin or 'a group'}: {error}") from None
        return values
