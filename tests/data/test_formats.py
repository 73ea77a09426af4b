"""Rows of every format to groups: one derived example each, detection, and what bad rows get."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from accord.data import FORMATS, load_groups
from accord.errors import ConfigError, DataError
from accord.records import Comparison, Critique, Group, Label, Message, Ranking, Rating


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


U, A, B = (
    Message(role="user", content="q"),
    Message(role="assistant", content="a"),
    Message(role="assistant", content="b"),
)

# format → (row, prompt, contents of the responses, judgements)
EXAMPLES: dict[str, list[tuple[dict[str, Any], Any, list[Any], list[Any]]]] = {
    "text": [({"text": "once"}, "", ["once"], [])],
    "messages": [
        ({"messages": [user("q"), assistant("a")]}, (U,), [(A,)], []),
        ({"messages": [user("q"), assistant("a"), user("q"), assistant("b")]}, (U,), [(A, U, B)], []),
        ({"messages": [user("q"), assistant("a"), user("q")]}, (U,), [(A,)], []),  # nothing to train after the last
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, (U,), [(A,)], []),
    ],
    "prompt_only": [({"prompt": "q"}, "q", [""], []), ({"prompt": [user("q")]}, (U,), [""], [])],
    "question_answer": [({"question": "q", "answer": "6*7=42\n#### 42"}, (U,), [""], [])],
    "prompt_completion": [
        ({"prompt": "q", "completion": "a"}, "q", ["a"], []),
        ({"prompt": [user("q")], "completion": [assistant("a")]}, (U,), [(A,)], []),
    ],
    "unpaired": [
        ({"prompt": "q", "completion": "a", "label": True}, "q", ["a"], [Label(response=0, is_desirable=True)]),
        ({"prompt": "q", "completion": "a", "label": "False"}, "q", ["a"], [Label(response=0, is_desirable=False)]),
    ],
    "preference": [
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, "q", ["a", "b"], [Comparison(better=0, worse=1)]),
        (
            {"prompt": [user("q")], "chosen": [assistant("a")], "rejected": [assistant("b")], "margin": 1.5},
            (U,),
            [(A,), (B,)],
            [Comparison(better=0, worse=1, strength=1.5)],
        ),
        (  # the prompt a second time inside the sides, as text in one column and as a turn in the others
            {"prompt": "q", "chosen": [user("q"), assistant("a")], "rejected": [user("q"), assistant("b")],
             "score_chosen": 8, "score_rejected": 6.5},
            (U,),
            [(A,), (B,)],
            [Comparison(better=0, worse=1), Rating(response=0, value=8.0), Rating(response=1, value=6.5)],
        ),
    ],
    "implicit_preference": [
        ({"chosen": "It is a", "rejected": "It is b"}, "It is", [" a", " b"], [Comparison(better=0, worse=1)]),
        (
            {"chosen": [user("q"), assistant("a")], "rejected": [user("q"), assistant("b")]},
            (U,),
            [(A,), (B,)],
            [Comparison(better=0, worse=1)],
        ),
    ],
    "hh": [
        (
            {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
            (U,),
            [(A,), (B,)],
            [Comparison(better=0, worse=1)],
        ),
    ],
    "stepwise": [
        (
            {"prompt": "q", "completions": ["1+1=2", "2+2=5"], "labels": [True, False]},
            "q",
            ["1+1=2\n2+2=5"],
            [Label(response=0, is_desirable=True, step=0), Label(response=0, is_desirable=False, step=1)],
        ),
    ],
    "ranked": [
        ({"prompt": "q", "responses": ["a", "b"]}, "q", ["a", "b"], [Ranking(order=((0,), (1,)))]),
        ({"prompt": "q", "responses": ["a", "b", "c"], "ranks": [2, 1, 2]}, "q", ["a", "b", "c"],
         [Ranking(order=((1,), (0, 2)))]),
    ],
    "ranked_answers": [
        (
            {"prompt": "\n\nHuman: q\n\nAssistant: ",
             "answers": [{"answer": "b", "model": "m", "rank": 2.0}, {"answer": "a", "model": "n", "rank": 1.0}]},
            (U,),
            [(B,), (A,)],
            [Ranking(order=((1,), (0,)))],
        ),
    ],
    "scored": [
        ({"prompt": "q", "responses": ["a", "b"], "scores": [1, None]}, "q", ["a", "b"], [Rating(response=0, value=1)]),
    ],
    "scored_completions": [
        (
            {"instruction": "q", "completions": [
                {"response": "a", "model": "m", "overall_score": 7.5, "fine-grained_score": 4, "critique": "good",
                 "annotations": {"honesty": {"Rating": "5", "Rationale": "…"}, "truth": {"Rating": "N/A"}}},
                {"response": "b", "overall_score": 2},
            ]},
            "q",
            ["a", "b"],
            [
                Rating(response=0, value=7.5),
                Rating(response=0, value=4, attribute="fine_grained"),
                Rating(response=0, value=5, attribute="honesty"),
                Critique(response=0, text="good"),
                Rating(response=1, value=2),
            ],
        ),
    ],
}  # fmt: skip
CASES = [(name, *case) for name, cases in EXAMPLES.items() for case in cases]


def save(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def load_one(path: Path, row: dict[str, Any], **kwargs: Any) -> Group:
    return load_groups(save(path / "a.jsonl", row), **kwargs).groups[0]


def test_the_right_answer_of_a_question_is_kept_for_verifiers(tmp_path: Path):
    row = {"question": "six times seven", "answer": "6*7=42\n#### 42", "level": 1}
    (group,) = load_groups(save(tmp_path / "gsm8k.jsonl", row)).groups
    assert group.extra == {"answer": "6*7=42\n#### 42", "level": 1, "is_prompt_only": True}


def test_every_format_has_an_example() -> None:
    assert {*EXAMPLES, "accord"} == set(FORMATS)


@pytest.mark.parametrize(("name", "row", "prompt", "contents", "judgements"), CASES)
def test_row_to_group(tmp_path: Path, name: str, row: dict, prompt: Any, contents: list, judgements: list) -> None:
    loaded = load_groups(save(tmp_path / "a.jsonl", row))
    assert loaded.format == name
    group = loaded.groups[0]
    assert group.prompt == prompt
    assert [response.content for response in group.responses] == contents
    assert list(group.judgements) == judgements


@pytest.mark.parametrize(("name", "row"), [case[:2] for case in CASES])
def test_lists_in_a_table_of_text_are_read_from_json(tmp_path: Path, name: str, row: dict) -> None:
    cells = {key: json.dumps(value) if isinstance(value, list | dict) else value for key, value in row.items()}
    assert load_one(tmp_path, cells, format=name).judgements == load_one(tmp_path, row, format=name).judgements
    assert load_one(tmp_path, cells, format=name).responses == load_one(tmp_path, row, format=name).responses


def test_tools_and_unused_columns_are_kept(tmp_path: Path) -> None:
    row = {"prompt": "q", "completion": "a", "tools": [{"name": "f"}], "id": 7, "chat_template_kwargs": {"think": 0}}
    group = load_one(tmp_path, row)
    assert group.tools == ({"name": "f"},)
    assert group.extra == {"id": 7, "chat_template_kwargs": {"think": 0}}


def test_format_can_be_named(tmp_path: Path) -> None:
    row = {"prompt": "q", "completion": "a", "text": "once"}
    assert load_one(tmp_path, row).prompt == "q"
    assert load_one(tmp_path, row, format="text").responses[0].content == "once"
    with pytest.raises(ConfigError, match="did you mean 'preference'"):
        load_one(tmp_path, row, format="preferences")


def test_hh_prompts_that_differ_keep_the_turns_they_share(tmp_path: Path) -> None:
    first = "\n\nHuman: q\n\nAssistant: a\n\nHuman: "
    group = load_one(
        tmp_path, {"chosen": f"{first}x\n\nAssistant: 1", "rejected": f"{first}y\n\nAssistant: 2"}, format="hh"
    )
    assert group.prompt == (U, A)
    assert [[turn.content for turn in response.content] for response in group.responses] == [["x", "1"], ["y", "2"]]
    assert group.extra["prompts_differ"] is True


def test_missing_column_says_rows_columns_and_fitting_formats(tmp_path: Path) -> None:
    good = {"prompt": "q", "chosen": "a", "rejected": "b"}
    file = save(tmp_path / "a.jsonl", good, {"prompt": "q", "completion": "a"}, good, {"prompt": "q", "chosen": "a"})
    with pytest.raises(DataError) as caught:
        load_groups(file)
    message = str(caught.value)
    assert "a.jsonl:2 (and 1 more: rows 4): 2 of 4 rows have no chosen, rejected" in message
    assert "columns found: prompt, completion" in message
    assert "fitting formats: prompt_completion, prompt_only" in message
    loaded = load_groups(file, skip_bad_rows=True)
    assert len(loaded.groups) == 2
    assert [bad.line for bad in loaded.bad_rows] == [2, 4]


def test_one_odd_row_does_not_decide_the_format(tmp_path: Path) -> None:
    good = {"prompt": "q", "chosen": "a", "rejected": "b"}
    with pytest.raises(DataError, match=r"a\.jsonl:1: 1 of 3 rows have no chosen, rejected"):
        load_groups(save(tmp_path / "a.jsonl", {"prompt": "q"}, good, good))


def test_json_in_a_text_column_stays_text(tmp_path: Path) -> None:
    row = {"prompt": "List it as JSON", "completion": '[{"name": "bee"}]'}
    assert load_one(tmp_path, row).responses[0].content == '[{"name": "bee"}]'


def test_unknown_columns_name_the_nearest_formats(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"got columns question, choosen, reject.*nearest: .*chosen, rejected"):
        load_one(tmp_path, {"question": "q", "choosen": "a", "reject": "b"})


BAD_VALUES = [
    ({"prompt": "q", "completion": "a", "label": "maybe"}, "label.*true or false"),
    ({"prompt": "q", "chosen": "a", "rejected": [1]}, "a turn 1 in column 'rejected'"),
    ({"prompt": "q", "chosen": "a", "rejected": "b", "margin": "high"}, "margin = 'high'.*number"),
    ({"prompt": "q", "completions": ["a"], "labels": [True, False]}, "1 completions and 2 labels"),
    ({"prompt": "q", "responses": ["a", "b"], "scores": [1]}, "2 responses and 1 scores"),
    ({"prompt": "q", "responses": ["a", "b"], "ranks": [1, None]}, "a number for every response"),
    ({"messages": [user("q")]}, "without an assistant turn"),
    ({"messages": [{"content": "q"}, assistant("a")]}, "turn without a role"),
    ({"messages": [{"role": "user", "content": [{"type": "image"}]}, assistant("a")]}, "text only"),
    ({"text": 3}, "expected text"),
    ({"chosen": [], "rejected": [user("q")]}, "without turns"),
]


@pytest.mark.parametrize(("row", "message"), BAD_VALUES)
def test_bad_value_names_the_row(tmp_path: Path, row: dict, message: str) -> None:
    with pytest.raises(DataError, match=rf"a\.jsonl:1 \(read as \w+\): .*{message}"):
        load_one(tmp_path, row)


def test_bad_value_is_kept_aside(tmp_path: Path) -> None:
    file = save(tmp_path / "a.jsonl", {"text": "once"}, {"text": 3})
    loaded = load_groups(file, skip_bad_rows=True)
    assert [(bad.line, bad.reason) for bad in loaded.bad_rows] == [(2, "got column 'text' = 3 — expected text")]
