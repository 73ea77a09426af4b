"""Reading rows: every kind of file, bad lines, splits, the hash."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from accord.data import load_groups, read_rows
from accord.errors import DataError

ROWS = [{"prompt": "Say a", "completion": " a"}, {"prompt": "Say ü", "completion": " ü"}]


def write(path: Path, rows: list[dict] = ROWS) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    name = path.name
    if name.endswith(".gz"):
        with gzip.open(path, "wt", encoding="utf-8") as stream:
            stream.write(json.dumps(rows) if ".json." in name else text)
    elif path.suffix == ".jsonl":
        path.write_text(text, encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        with path.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.json.gz", "a.parquet", "a.csv"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    rows = read_rows(write(tmp_path / name))
    assert [row for _, row in rows.rows] == ROWS


def test_origin_is_file_and_line(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "a"}\n\n{"text": "b"}\n')
    assert [origin for origin, _ in read_rows(file).rows] == [f"{file}:1", f"{file}:3"]


def test_json_lines_under_the_name_json_are_read_as_lines(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text('{"text": "a"}\n{"text": "b"}\n')
    assert [row["text"] for _, row in read_rows(file).rows] == ["a", "b"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [('{"text": "b"', "malformed JSON"), ("[1]", "a JSON list"), ("null", "a JSON NoneType")],
)
def test_malformed_line_names_file_and_line(tmp_path: Path, line: str, reason: str) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(f'{{"text": "a"}}\n{line}\n{{"text": "c"}}\n')
    with pytest.raises(DataError, match=rf"a\.jsonl:2: got {reason}.*skip_bad_rows"):
        read_rows(file)
    rows = read_rows(file, skip_bad_rows=True)
    assert [row["text"] for _, row in rows.rows] == ["a", "c"]
    assert [(bad.file, bad.line) for bad in rows.bad_rows] == [(str(file), 2)]
    assert reason in rows.bad_rows[0].reason


def test_line_that_is_not_utf8(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"text": "a"}\n{"text": "\xff\xfe"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl:2: got bytes that are not UTF-8"):
        read_rows(file)


def test_csv_with_too_few_cells(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("prompt,completion\na,b\nc\n")
    with pytest.raises(DataError, match=r"a\.csv:3: got fewer cells than the 2 columns"):
        read_rows(file)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.parquet"])
def test_truncated_file(tmp_path: Path, name: str) -> None:
    file = write(tmp_path / name)
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(DataError, match=rf"{name}: cannot be read .*complete"):
        read_rows(file)


def test_empty_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("")
    with pytest.raises(DataError, match="no usable row"):
        read_rows(tmp_path / "a.jsonl")


def test_folder_glob_and_split(tmp_path: Path) -> None:
    write(tmp_path / "train-00000-of-00001.jsonl", ROWS[:1])
    write(tmp_path / "test.jsonl", ROWS[1:])
    (tmp_path / "README.md").write_text("not data")
    assert len(read_rows(tmp_path).rows) == 2
    assert read_rows(tmp_path, split="train").rows[0][1] == ROWS[0]
    assert read_rows(str(tmp_path / "te*.jsonl")).rows[0][1] == ROWS[1]
    with pytest.raises(DataError, match=r"split='validation'.*found test\.jsonl, train-00000"):
        read_rows(tmp_path, split="validation")
    with pytest.raises(DataError, match="single file"):
        read_rows(tmp_path / "test.jsonl", split="test")


def test_limit_reads_the_first_rows_over_files(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl")
    write(tmp_path / "b.jsonl")
    assert [row for _, row in read_rows(tmp_path, limit=3).rows] == [*ROWS, ROWS[0]]


def test_hash_of_one_file_is_its_sha256_and_changes_with_any_byte(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl")
    before = read_rows(file).data_hash
    assert before == hashlib.sha256(file.read_bytes()).hexdigest()
    write(tmp_path / "b.jsonl")
    both = read_rows(tmp_path).data_hash
    assert both == read_rows(tmp_path).data_hash != before
    file.write_bytes(file.read_bytes() + b"\n")
    assert read_rows(file).data_hash != before


@pytest.mark.parametrize("path", ["./nothing.jsonl", "nothing.parquet", "/no/such/folder"])
def test_missing_local_file(path: str) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        read_rows(path)


def test_unknown_kind_of_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DataError, match=r"unknown kind — expected one of \.jsonl"):
        read_rows(tmp_path / "a.txt")


def test_name_that_is_neither_local_nor_on_a_reachable_hub() -> None:
    code = (
        "from accord.data import read_rows\nfrom accord.errors import DataError\n"
        "try:\n    read_rows('accord-tests/no-such-data')\nexcept DataError as error:\n    print(error)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        check=True,
    )
    assert "not a local file, and the Hub could not be reached" in run.stdout


def test_reading_and_encoding_modules_load_no_torch(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet")
    code = f"import sys, accord.data as d\nd.load_groups({str(file)!r})\nprint('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


def test_load_groups_says_where_the_data_came_from(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv")
    loaded = load_groups(file)
    assert (loaded.format, loaded.path, loaded.bad_rows) == ("prompt_completion", str(file), [])
    assert loaded.groups[1].responses[0].content == " ü"
    assert loaded.groups[1].origin == f"{file}:3"  # the header is line 1
