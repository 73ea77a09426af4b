"""Files in, rows out: local JSONL, JSON, Parquet and CSV, folders and globs of them, or a data set on the Hub."""

from __future__ import annotations

import csv
import glob
import gzip
import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from accord.errors import DataError

SUFFIXES = (".jsonl", ".json", ".parquet", ".csv")
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that could not be read, kept aside: where it stood and why."""

    file: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Rows as they stood in the files, each with its origin "file:line"; nothing is interpreted yet."""

    rows: list[tuple[str, Row]]
    bad_rows: list[BadRow]
    data_hash: str  # sha256 of the raw bytes; for one file what `sha256sum` prints
    path: str


def read_rows(
    path: str | Path, *, split: str | None = None, skip_bad_rows: bool = False, limit: int | None = None
) -> Rows:
    """Read every row of a file, a folder, a glob pattern or a Hub data set.

    `split` selects the files of a folder whose name or sub-folder says it (`train`, `train-00000-of-00002`), or the
    split of a Hub data set (default `train`). With `skip_bad_rows` malformed lines are kept aside in `bad_rows`.
    Raises DataError naming file and line for a malformed line, and when nothing can be found under `path`.
    """
    files = find_files(str(path), split)
    if not files:
        return _read_hub(str(path), split or "train", limit)
    rows: list[tuple[str, Row]] = []
    bad_rows: list[BadRow] = []
    for file in files:
        for line, row in _read_file(file):
            if limit is not None and len(rows) >= limit:
                break
            if isinstance(row, dict):
                rows.append((f"{file}:{line}", row))
            elif skip_bad_rows:
                bad_rows.append(BadRow(str(file), line, row))
            else:
                raise DataError(f"{file}:{line}: got {row} — expected one JSON object per row — correct the line, or "
                                "set data.skip_bad_rows=true to keep such lines aside and count them")  # fmt: skip
    if not rows:
        raise DataError(f"{path}: got no usable row ({len(bad_rows)} malformed) — expected at least one")
    return Rows(rows=rows, bad_rows=bad_rows, data_hash=hash_files(files), path=str(path))


def find_files(path: str, split: str | None) -> list[Path]:
    """Return the local files `path` stands for, sorted; empty when it is not local at all."""
    local = Path(path).expanduser()
    if local.is_file():
        if _kind(local) is None:
            raise DataError(f"{path}: got a file of unknown kind — expected one of {_known()}")
        if split is not None:
            raise DataError(f"{path}: got split={split!r} for a single file — a split selects among the files of a "
                            "folder or of a Hub data set — name the file of that split instead")  # fmt: skip
        return [local]
    if local.is_dir():
        root, found = local, [file for file in sorted(local.rglob("*")) if file.is_file() and _kind(file)]
    elif glob.has_magic(path):
        root, found = Path(), [file for name in sorted(glob.glob(str(local), recursive=True))
                               if (file := Path(name)).is_file() and _kind(file)]  # fmt: skip
    elif local.suffix in (*SUFFIXES, ".gz") or path.startswith(("/", "./", "../", "~")):
        raise DataError(f"{path}: no such file or folder — give an existing {_known()} file or a folder of them")
    else:
        return []
    if not found:
        raise DataError(f"{path}: found no data file — expected at least one of {_known()}")
    if split is None:
        return found
    chosen = [file for file in found if _is_of_split(file.relative_to(root), split)]
    if not chosen:
        names = ", ".join(str(file.relative_to(root)) for file in found[:8])
        raise DataError(f"{path}: got split={split!r}, but no file is named so — found {names}")
    return chosen


def hash_files(files: list[Path]) -> str:
    """Return the sha256 of one file's raw bytes, or of the digests of several in order."""
    digests = []
    for file in files:
        with file.open("rb") as stream:
            digests.append(hashlib.file_digest(stream, "sha256"))
    if len(digests) == 1:
        return digests[0].hexdigest()
    return hashlib.sha256(b"".join(digest.digest() for digest in digests)).hexdigest()


def _known() -> str:
    return ", ".join(SUFFIXES) + " (each also with .gz, except Parquet)"


def _kind(file: Path) -> str | None:
    suffixes = [suffix.lower() for suffix in file.suffixes]
    if suffixes[-1:] == [".gz"]:
        suffixes.pop()
        if suffixes[-1:] == [".parquet"]:
            return None
    return suffixes[-1] if suffixes and suffixes[-1] in SUFFIXES else None


def _is_of_split(file: Path, split: str) -> bool:
    words = [part.replace("_", "-").replace(".", "-").split("-") for part in file.parts]
    return split in file.parts[:-1] or any(split in part for part in words)


def _read_file(file: Path) -> Iterator[tuple[int, Row | str]]:
    """Yield (line, row), or (line, what is wrong) for a malformed one."""
    try:
        if _kind(file) == ".parquet":
            yield from _read_parquet(file)
            return
        with gzip.open(file, "rb") if file.suffix.lower() == ".gz" else file.open("rb") as stream:
            if _kind(file) == ".csv":
                with io.TextIOWrapper(stream, encoding="utf-8-sig", newline="") as text:
                    yield from _read_csv(text)
            elif _kind(file) == ".json":
                yield from _read_json(stream.read())
            else:
                yield from _read_lines(stream)
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file}: cannot be read ({error}) — is the file complete, and in UTF-8?") from error


def _read_lines(lines: Any) -> Iterator[tuple[int, Row | str]]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield number, _parse(line)


def _parse(line: bytes) -> Row | str:
    try:
        value = json.loads(line)
    except UnicodeDecodeError as error:
        return f"bytes that are not UTF-8 ({error.reason} at byte {error.start})"
    except json.JSONDecodeError as error:
        return f"malformed JSON ({error.msg} at column {error.colno})"
    return value if isinstance(value, dict) else f"a JSON {type(value).__name__}"


def _read_json(data: bytes) -> Iterator[tuple[int, Row | str]]:
    """A list of objects (line = position in the list); `.json` files that are really JSON lines are read as such."""
    try:
        value = json.loads(data)
    except (json.JSONDecodeError, UnicodeDecodeError):
        yield from _read_lines(io.BytesIO(data))
        return
    if isinstance(value, dict):
        lists = [item for item in value.values() if isinstance(item, list) and item and isinstance(item[0], dict)]
        value = lists[0] if len(lists) == 1 and len(value) == 1 else [value]  # {"data": [...]}, or one single row
    if not isinstance(value, list):
        yield 1, f"a JSON {type(value).__name__}"
        return
    for number, row in enumerate(value, start=1):
        yield number, row if isinstance(row, dict) else f"a JSON {type(row).__name__}"


def _read_csv(stream: io.TextIOWrapper) -> Iterator[tuple[int, Row | str]]:
    csv.field_size_limit(2**31 - 1)  # the default of 128 kB is shorter than some conversations
    reader = csv.DictReader(stream, strict=True, restkey="", restval=None)
    for row in reader:
        if "" in row:
            yield reader.line_num, f"more cells than the {len(reader.fieldnames or ())} columns of the header"
        elif None in row.values():
            yield reader.line_num, f"fewer cells than the {len(reader.fieldnames or ())} columns of the header"
        else:
            yield reader.line_num, dict(row)


def _read_parquet(file: Path) -> Iterator[tuple[int, Row | str]]:
    import pyarrow
    import pyarrow.parquet

    try:
        number = 0
        with pyarrow.parquet.ParquetFile(file) as table:
            for batch in table.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except pyarrow.ArrowException as error:
        raise DataError(f"{file}: cannot be read as Parquet ({error}) — is the file complete?") from error


def _read_hub(name: str, split: str, limit: int | None) -> Rows:
    import datasets

    try:
        table = datasets.load_dataset(name, split=split)
    except (OSError, ValueError, RuntimeError) as error:  # what the library raises offline, unknown name, unknown split
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(
            f"{name!r}: not a local file, and the Hub could not be reached or has no such data set and split "
            f"({split!r}): {reason} — check the path, or download the data and give its folder"
        ) from error
    rows = [(f"{name}/{split}:{number}", dict(row)) for number, row in enumerate(islice(table, limit), start=1)]
    digest = hashlib.sha256()
    for _, row in rows:
        digest.update(json.dumps(row, sort_keys=True, default=str).encode())
    return Rows(rows=rows, bad_rows=[], data_hash=digest.hexdigest(), path=name)
