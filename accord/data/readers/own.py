"""Accord's own JSONL and Parquet: every record, without loss.

One row per group, `accord` holding the version of the layout. In JSONL the fields are nested objects; in Parquet each
is one column of JSON text, so that both read the same way. A field at its default is left out.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from accord.errors import DataError
from accord.records import (
    Comparison,
    Critique,
    FinishReason,
    Group,
    Judgement,
    Label,
    Message,
    Outcome,
    Ranking,
    Rating,
    Response,
    Text,
    Verdict,
)

SCHEMA_VERSION = 1
KINDS: dict[str, type[Judgement]] = {
    "comparison": Comparison,
    "rating": Rating,
    "label": Label,
    "ranking": Ranking,
    "critique": Critique,
    "verdict": Verdict,
}
_COLUMNS = ("prompt", "responses", "judgements", "tools", "origin", "extra")


def write_groups(path: str | Path, groups: Iterable[Group]) -> int:
    """Write groups to `.jsonl`, `.jsonl.gz` or `.parquet` and return how many; an existing file is replaced.

    Raises DataError for another suffix, and for `extra` values that JSON cannot hold.
    """
    path = Path(path)
    rows = (group_to_row(group) for group in groups)
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        # No file name and no time in the gzip header: the same groups give the same bytes.
        with path.open("wb") as raw, _open_text(raw, path.suffix == ".gz") as stream:
            return sum(bool(stream.write((_dump(row) + "\n").encode())) for row in rows)
    if path.suffix == ".parquet":
        return _write_parquet(path, list(rows))
    raise DataError(f"{path}: got suffix {path.suffix!r} — groups are written to .jsonl, .jsonl.gz or .parquet")


def group_to_row(group: Group) -> dict[str, Any]:
    """Return a group as a row of plain JSON values; `read_group` is the inverse."""
    row: dict[str, Any] = {
        "accord": SCHEMA_VERSION,
        "prompt": _text_to_json(group.prompt),
        "responses": [_response_to_json(response) for response in group.responses],
    }
    if group.judgements:
        row["judgements"] = [_judgement_to_json(judgement) for judgement in group.judgements]
    if group.tools:
        row["tools"] = [dict(tool) for tool in group.tools]
    if group.origin:
        row["origin"] = group.origin
    if group.extra:
        row["extra"] = dict(group.extra)
    return row


def read_group(row: Mapping[str, Any], origin: str = "") -> Group:
    """Turn a row written by `write_groups` back into the group; `origin` is used where the row has none of its own."""
    version = row.get("accord")
    if version != SCHEMA_VERSION:
        raise DataError(f"got version {version!r} of Accord's layout — this release reads version {SCHEMA_VERSION}")
    values = {name: _column(row, name) for name in _COLUMNS}
    if not isinstance(values["responses"], list):
        raise DataError(f"got responses = {values['responses']!r} — expected a list")
    try:
        return Group(
            prompt=_text_from_json("" if values["prompt"] is None else values["prompt"]),
            responses=tuple(_response_from_json(item) for item in values["responses"]),
            judgements=tuple(_judgement_from_json(item) for item in values["judgements"] or ()),
            tools=tuple(values["tools"] or ()),
            origin=values["origin"] or origin,
            extra=values["extra"] or {},
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"got a row that is not of Accord's layout ({type(error).__name__}: {error})") from error


def _open_text(raw: Any, is_compressed: bool) -> Any:
    return gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) if is_compressed else raw


def _dump(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise DataError(f"cannot write a group: {error} — `extra` and `tools` must hold JSON values only") from error


def _write_parquet(path: Path, rows: list[dict[str, Any]]) -> int:
    import pyarrow
    import pyarrow.parquet

    columns: dict[str, list[Any]] = {"accord": [row["accord"] for row in rows]}
    for name in _COLUMNS:
        columns[name] = [_dump(row[name]) if name in row else None for row in rows]
    kinds = [("accord", pyarrow.int32()), *((name, pyarrow.string()) for name in _COLUMNS)]
    pyarrow.parquet.write_table(pyarrow.table(columns, schema=pyarrow.schema(kinds)), path)
    return len(rows)


def _column(row: Mapping[str, Any], name: str) -> Any:
    """A field as nested values (JSONL), or decoded from a Parquet column, where every field is JSON text."""
    value = row.get(name)
    is_parquet = isinstance(row.get("responses"), str)
    if value is None or not is_parquet:
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise DataError(f"got column {name!r} = {value[:60]!r} — expected JSON ({error.msg})") from error


def _text_to_json(text: Text) -> Any:
    if isinstance(text, str):
        return text
    return [
        {"role": turn.role, "content": turn.content} | ({"extra": dict(turn.extra)} if turn.extra else {})
        for turn in text
    ]


def _text_from_json(value: Any) -> Text:
    if isinstance(value, str):
        return value
    return tuple(Message(role=turn["role"], content=turn["content"], extra=turn.get("extra", {})) for turn in value)


def _response_to_json(response: Response) -> dict[str, Any]:
    row: dict[str, Any] = {}
    if response.content is not None:
        row["content"] = _text_to_json(response.content)
    if response.token_ids is not None:
        row["token_ids"] = list(response.token_ids)
    if response.finish_reason is not FinishReason.UNKNOWN:
        row["finish_reason"] = response.finish_reason.value
    if response.behaviour_logps is not None:
        row["behaviour_logps"] = list(response.behaviour_logps)
    if response.source is not None:
        row["source"] = response.source
    if response.token_weights is not None:
        row["token_weights"] = list(response.token_weights)
    return row


def _response_from_json(row: Mapping[str, Any]) -> Response:
    content, token_ids, logps = row.get("content"), row.get("token_ids"), row.get("behaviour_logps")
    weights = row.get("token_weights")
    return Response(
        content=None if content is None else _text_from_json(content),
        token_ids=None if token_ids is None else tuple(token_ids),
        finish_reason=FinishReason(row.get("finish_reason", "unknown")),
        behaviour_logps=None if logps is None else tuple(float(value) for value in logps),
        source=row.get("source"),
        token_weights=None if weights is None else tuple(float(value) for value in weights),
    )


def _judgement_to_json(judgement: Judgement) -> dict[str, Any]:
    kind = next((name for name, cls in KINDS.items() if type(judgement) is cls), None)
    if kind is None:
        raise DataError(f"cannot write a judgement of kind {type(judgement).__name__} — known: {', '.join(KINDS)}")
    row: dict[str, Any] = {"kind": kind}
    for item in fields(judgement):
        value = getattr(judgement, item.name)
        if value == item.default and type(value) is type(item.default):
            continue
        row[item.name] = _value_to_json(item.name, value)
    return row


def _value_to_json(name: str, value: Any) -> Any:
    if name == "edited":
        return _text_to_json(value)
    return value.value if isinstance(value, Outcome) else value  # tuples become lists


def _judgement_from_json(row: Mapping[str, Any]) -> Judgement:
    values = dict(row)
    kind = KINDS.get(values.pop("kind", ""))
    if kind is None:
        raise DataError(f"got a judgement of kind {row.get('kind')!r} — known: {', '.join(KINDS)}")
    if "shown_order" in values:
        values["shown_order"] = tuple(values["shown_order"])
    if "order" in values:
        values["order"] = tuple(tuple(tier) for tier in values["order"])
    if values.get("edited") is not None:
        values["edited"] = _text_from_json(values["edited"])
    if "outcome" in values:
        values["outcome"] = Outcome(values["outcome"])
    return kind(**values)
