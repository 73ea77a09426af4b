"""Which population a group belongs to: named by a column of the data, or by who judged it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from accord.errors import DataError
from accord.records import Group

STRATUM = "stratum"
JUDGE = "judge"


def stratum_of(group: Group) -> str | None:
    """Return the population a group names, as text; None where it names none."""
    value = group.extra.get(STRATUM)
    return str(value) if isinstance(value, str | int) and str(value).strip() else None


def name_strata(groups: Sequence[Group], column: str = STRATUM) -> list[Group]:
    """Return groups that all name their population, read from a column of their rows; "judge" is who judged them.

    Raises DataError for a row without one, with a value that is no word or whole number, or judged by several people
    where they are the populations.
    """
    return [replace(group, extra={**group.extra, STRATUM: _name(group, column)}) for group in groups]


def _name(group: Group, column: str) -> str:
    where = group.origin or "a group"
    if column == JUDGE:
        judges = {judgement.judge for judgement in group.judgements}
        if len(judges) != 1 or None in judges:
            names = ", ".join(sorted(judge or "nobody named" for judge in judges)) or "nobody"
            raise DataError(
                f"{where}: judged by {names} — expected one judge, who is its population (data.stratum={JUDGE}) — "
                "give each judge's judgements a row of their own, or name a column with data.stratum"
            )
        return str(judges.pop())
    value = group.extra.get(column)
    if isinstance(value, str | int) and str(value).strip():
        return str(value)
    got = f"got {column} = {value!r}" if value is not None else f"has no column {column!r}"
    raise DataError(
        f"{where}: {got} — expected a word or whole number that names its population — name the column that does with "
        f"data.stratum=COLUMN, or the judges with data.stratum={JUDGE}"
    )
