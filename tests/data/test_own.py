"""Accord's own JSONL and Parquet: nothing is lost."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from accord.data import group_to_row, load_groups, read_group, write_groups
from accord.errors import DataError
from accord.records import (
    Comparison,
    Critique,
    FinishReason,
    Group,
    Label,
    Message,
    Outcome,
    Ranking,
    Rating,
    Response,
    Verdict,
)

short = st.text(max_size=8)
numbers = st.floats(allow_nan=False)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | short,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(short, inner, max_size=2),
    max_leaves=4,
)
extras = st.dictionaries(short, json_values, max_size=2)
turns = st.lists(st.builds(Message, role=short, content=short, extra=extras), max_size=3).map(tuple)
texts = short | turns
ids = st.lists(st.integers(0, 2**31), max_size=4).map(tuple)
responses = st.builds(
    Response,
    content=texts,
    token_ids=st.none() | ids,
    finish_reason=st.sampled_from(FinishReason),
    behaviour_logps=st.none() | st.lists(numbers, max_size=3).map(tuple),
    source=st.none() | short,
) | st.builds(Response, content=st.none(), token_ids=ids)


@st.composite
def groups(draw: st.DrawFn) -> Group:
    members = tuple(draw(st.lists(responses, min_size=2, max_size=4)))
    index = st.integers(0, len(members) - 1)
    who = {"judge": st.none() | short, "shown_order": st.none() | st.permutations(range(len(members))).map(tuple)}
    tiers = st.lists(st.lists(index, min_size=1, max_size=2).map(tuple), max_size=3).map(tuple)
    judgements = st.one_of(
        st.builds(Comparison, better=st.just(0), worse=st.just(1), strength=st.none() | numbers,
                  is_tie=st.booleans(), **who),
        st.builds(Rating, response=index, value=numbers, attribute=short, **who),
        st.builds(Label, response=index, is_desirable=st.booleans(), step=st.none() | st.integers(0, 9), **who),
        st.builds(Ranking, order=tiers, **who),
        st.builds(Critique, response=index, text=short, edited=st.none() | texts, **who),
        st.builds(Verdict, response=index, outcome=st.sampled_from(Outcome), reason=short, **who),
    )  # fmt: skip
    return Group(
        prompt=draw(texts),
        responses=members,
        judgements=tuple(draw(st.lists(judgements, max_size=4))),
        tools=tuple(draw(st.lists(extras, max_size=2))),
        origin=draw(st.just("somewhere:3") | short.filter(bool)),
        extra=draw(extras),
    )


@given(groups())
def test_rows_hold_every_record(group: Group) -> None:
    assert read_group(group_to_row(group)) == group


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet"])
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(records=st.lists(groups(), min_size=1, max_size=3))
def test_files_hold_every_record(tmp_path: Path, name: str, records: list[Group]) -> None:
    assert write_groups(tmp_path / name, records) == len(records)
    loaded = load_groups(tmp_path / name)
    assert loaded.groups == records
    assert loaded.format == "accord"


def test_the_same_groups_give_the_same_bytes(tmp_path: Path) -> None:
    group = Group(prompt="q", responses=(Response(content="a"),))
    write_groups(tmp_path / "a.jsonl.gz", [group])
    write_groups(tmp_path / "b.jsonl.gz", [group])
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()


def test_behaviour_logps_survive_to_the_last_bit(tmp_path: Path) -> None:
    logps = (-0.1, -1 / 3, -math.pi, -math.inf)
    group = Group(prompt="q", responses=(Response(token_ids=(1, 2, 3, 4), behaviour_logps=logps),), origin="x")
    write_groups(tmp_path / "a.parquet", [group])
    assert load_groups(tmp_path / "a.parquet").groups[0].responses[0].behaviour_logps == logps


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"accord": 2, "prompt": "q", "responses": []}, "version 2"),
        ({"accord": 1, "prompt": "q", "responses": [{"content": "a"}], "judgements": [{"kind": "guess"}]}, "'guess'"),
        ({"accord": 1, "prompt": "q", "responses": [{"content": "a"}], "judgements": [{"kind": "rating"}]}, "layout"),
        ({"accord": 1, "prompt": "q", "responses": "[{"}, "expected JSON"),
        ({"accord": 1, "prompt": [{"content": "q"}], "responses": [{"content": "a"}]}, "role"),
    ],
)
def test_bad_rows(row: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_group(row)


def test_what_cannot_be_written(tmp_path: Path) -> None:
    group = Group(prompt="q", responses=(Response(content="a"),), extra={"x": object()})
    with pytest.raises(DataError, match="JSON values only"):
        write_groups(tmp_path / "a.jsonl", [group])
    with pytest.raises(DataError, match=r"\.jsonl, \.jsonl\.gz or \.parquet"):
        write_groups(tmp_path / "a.csv", [])
