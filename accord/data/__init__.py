"""Rows in, groups out: readers of the ecosystem's formats, chat templates, tokenising and the data report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from accord.data.encode import encode_group, encode_groups, encode_prompts
from accord.data.policies import Dropped, EncodedData, EncodeOptions, select_responses
from accord.data.readers.files import BadRow, Rows, read_rows
from accord.data.readers.formats import FORMATS, convert_rows, detect_format
from accord.data.readers.own import group_to_row, read_group, write_groups
from accord.data.report import DataReport, data_report
from accord.data.templates import Renderer
from accord.data.tokens import TokenGroup, TokenResponse
from accord.records import Group

__all__ = [
    "FORMATS",
    "BadRow",
    "DataReport",
    "Dropped",
    "EncodeOptions",
    "EncodedData",
    "LoadedGroups",
    "Renderer",
    "Rows",
    "TokenGroup",
    "TokenResponse",
    "convert_rows",
    "data_report",
    "detect_format",
    "encode_group",
    "encode_groups",
    "encode_prompts",
    "group_to_row",
    "load_groups",
    "read_group",
    "read_rows",
    "select_responses",
    "write_groups",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedGroups:
    """The groups of a file or data set, with what a run folder records about where they came from."""

    groups: list[Group]
    format: str
    bad_rows: list[BadRow]
    data_hash: str
    path: str


def load_groups(
    path: str | Path,
    *,
    format: str = "auto",
    split: str | None = None,
    skip_bad_rows: bool = False,
    limit: int | None = None,
) -> LoadedGroups:
    """Read groups from a local file, folder or glob, or from the Hub.

    `format` names a row of `FORMATS`, or "auto" to detect it from the columns. `limit` reads only the first rows.
    Raises DataError (file, row, what was expected) for anything that cannot be read; with `skip_bad_rows` such rows
    are counted and kept aside in `bad_rows`.
    """
    rows = read_rows(path, split=split, skip_bad_rows=skip_bad_rows, limit=limit)
    groups, name, bad_rows = convert_rows(rows, format, skip_bad_rows=skip_bad_rows)
    return LoadedGroups(groups=groups, format=name, bad_rows=bad_rows, data_hash=rows.data_hash, path=rows.path)
