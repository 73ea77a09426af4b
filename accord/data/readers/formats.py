"""The formats of the ecosystem: one table, detection by columns, and rows to groups."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from accord.data.readers import converters
from accord.data.readers.converters import Fields
from accord.data.readers.cuts import is_transcript
from accord.data.readers.files import BadRow, Rows
from accord.data.readers.own import read_group
from accord.errors import ConfigError, DataError
from accord.records import Group

Row = Mapping[str, Any]
_VOTERS = 100  # rows looked at to detect the format


@dataclass(frozen=True, slots=True)
class Format:
    """What a format needs and how a row becomes a group. In `columns`, "a|b" means either name."""

    columns: tuple[str, ...]
    read: Callable[[Fields], Group]
    fits: Callable[[Row], bool] = lambda row: True  # tells apart formats with the same columns

    def missing(self, row: Row) -> tuple[str, ...]:
        """Return the required columns that hold no value in this row."""
        return tuple(names for names in self.columns if not any(row.get(name) is not None for name in names.split("|")))


def _holds_objects(name: str) -> Callable[[Row], bool]:
    def fits(row: Row) -> bool:
        value = row[name]
        if isinstance(value, str):
            return value.lstrip().startswith("[{")
        return isinstance(value, list) and bool(value) and isinstance(value[0], Mapping)

    return fits


def _is_transcript_pair(row: Row) -> bool:
    return all(isinstance(row[name], str) and is_transcript(row[name]) for name in ("chosen", "rejected"))


# Tried in this order: the first whose columns are there and which fits the row.
FORMATS: dict[str, Format] = {
    "accord": Format(("accord", "responses"), lambda fields: read_group(fields.row, fields.origin)),
    "preference": Format(("prompt", "chosen", "rejected"), converters.preference),
    "hh": Format(("chosen", "rejected"), converters.hh_transcript, _is_transcript_pair),
    "implicit_preference": Format(("chosen", "rejected"), converters.implicit_preference),
    "unpaired": Format(("prompt", "completion", "label"), converters.unpaired),
    "prompt_completion": Format(("prompt", "completion"), converters.prompt_completion),
    "stepwise": Format(("prompt", "completions", "labels"), converters.stepwise),
    "scored_completions": Format(
        ("prompt|instruction", "completions"), converters.scored_completions, _holds_objects("completions")
    ),
    "ranked_answers": Format(
        ("prompt|instruction", "answers"), converters.ranked_answers, _holds_objects("answers")
    ),
    "scored": Format(("prompt|instruction", "responses", "scores"), converters.scored),
    "ranked": Format(("prompt|instruction", "responses"), converters.ranked),
    "messages": Format(("messages|conversations",), converters.conversation),
    "text": Format(("text",), converters.language_modelling),
    "prompt_only": Format(("prompt",), converters.prompt_only),
    "question_answer": Format(("question", "answer"), converters.question_answer),
}  # fmt: skip


def detect_format(rows: Rows) -> str:
    """Return the format that most of the first rows fit, so that one odd row cannot decide for all.

    A row votes for the first format of the table whose columns it has. Raises DataError naming the nearest formats.
    """
    votes = Counter(
        name for _, row in rows.rows[:_VOTERS] if (name := next(iter(fitting_formats(row)), None)) is not None
    )
    if votes:
        return max(FORMATS, key=lambda name: votes[name])  # of equal votes the first in the table
    origin, row = rows.rows[0]
    found = _columns(row)
    raise DataError(
        f"{origin}: got columns {', '.join(found) or 'none'} — expected those of a known format; nearest: "
        f"{_nearest_formats(found)} — rename the columns, or name the format with data.format=NAME"
    )


def fitting_formats(row: Row) -> list[str]:
    """Return the formats a row has all columns for, most specific first."""
    return [name for name, kind in FORMATS.items() if not kind.missing(row) and kind.fits(row)]


def convert_rows(
    rows: Rows, format: str = "auto", *, skip_bad_rows: bool = False
) -> tuple[list[Group], str, list[BadRow]]:
    """Turn rows into groups; return them with the format's name and the rows kept aside.

    Raises DataError for missing columns (which rows, which columns were found, which formats would fit) and for
    values a format cannot take; with `skip_bad_rows` such rows are kept aside with the reason.
    """
    if format != "auto" and format not in FORMATS:
        near = difflib.get_close_matches(format, FORMATS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(f"got data.format={format!r} — {hint}expected auto or one of {', '.join(FORMATS)}")
    name = detect_format(rows) if format == "auto" else format
    kind = FORMATS[name]
    bad_rows = list(rows.bad_rows)
    incomplete = [(origin, row, absent) for origin, row in rows.rows if (absent := kind.missing(row))]
    if incomplete and (not skip_bad_rows or len(incomplete) == len(rows.rows)):
        raise _missing_columns(name, incomplete, len(rows.rows))
    bad_rows += [_bad_row(origin, f"no value for {', '.join(absent)}") for origin, _, absent in incomplete]
    unusable = {origin for origin, _, _ in incomplete}
    groups = []
    for origin, row in rows.rows:
        if origin in unusable:
            continue
        try:
            groups.append(kind.read(Fields(row, origin)))
        except (DataError, ValueError) as error:  # ValueError: a record refused it, e.g. an index out of range
            if not skip_bad_rows:
                raise DataError(f"{origin} (read as {name}): {error}") from error
            bad_rows.append(_bad_row(origin, str(error)))
    if not groups:
        raise DataError(f"{rows.path}: got {len(bad_rows)} bad rows and no good one; the first: {bad_rows[0]}")
    return groups, name, bad_rows


def _bad_row(origin: str, reason: str) -> BadRow:
    file, _, line = origin.rpartition(":")
    return BadRow(file, int(line), reason)


def _columns(row: Row) -> list[str]:
    return [name for name, value in row.items() if value is not None]


def _missing_columns(name: str, incomplete: Sequence[tuple[str, Row, tuple[str, ...]]], count: int) -> DataError:
    origin, row, absent = incomplete[0]
    others = ", ".join(where.rpartition(":")[2] for where, _, _ in islice(incomplete, 1, 6))
    more = f" (and {len(incomplete) - 1} more: rows {others}{', …' if len(incomplete) > 6 else ''})" if others else ""
    columns = _columns(row)
    fitting = fitting_formats(row)
    fit = f"fitting formats: {', '.join(fitting)}" if fitting else f"nearest formats: {_nearest_formats(columns)}"
    return DataError(
        f"{origin}{more}: {len(incomplete)} of {count} rows have no {', '.join(absent)}, which format {name!r} needs; "
        f"columns found: {', '.join(columns) or 'none'} — {fit} — correct the rows, name another data.format, or set "
        "data.skip_bad_rows=true to keep them aside"
    )


def _nearest_formats(columns: list[str]) -> str:
    """The three formats that miss the least, similar spellings counted as half."""

    def distance(kind: Format) -> float:
        total = 0.0
        for names in kind.columns:
            options = names.split("|")
            if not set(options) & set(columns):
                total += 0.5 if any(difflib.get_close_matches(option, columns, n=1) for option in options) else 1.0
        return total - 0.1 * (len(kind.columns) - total)

    nearest = sorted((name for name in FORMATS if name != "accord"), key=lambda name: distance(FORMATS[name]))[:3]
    return "; ".join(f"{name} ({', '.join(FORMATS[name].columns)})" for name in nearest)
