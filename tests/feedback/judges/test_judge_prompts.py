"""Prompts as versioned files, and the strict reading of verdicts, grades and orders."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accord.errors import FeedbackError
from accord.feedback.judges import load_principles, load_prompt
from accord.feedback.judges.prompts import (
    FOLDER,
    Preferred,
    answer_text,
    read_order,
    read_rating,
    read_verdict,
    text_of,
)
from accord.records import Group, Message, Response

# a prompt whose text changes gets a new version: judgements of the old one are signed with its name and digest
DIGESTS = {
    "choice.v1": "27d5a5d4",
    "critique_then_score.v1": "525e601b",
    "pairwise.v1": "eb8e5629",
    "pointwise.v1": "4cbc7be0",
    "rank.v1": "d27f4a40",
    "revise.v1": "0cc15d3d",
}
PAIR = {"request": "R?", "answer_a": "one", "answer_b": "two", "reference": "", "rubric": ""}


def test_every_prompt_is_what_its_version_says():
    assert {path.stem: hashlib.sha256(path.read_bytes()).hexdigest()[:8] for path in FOLDER.glob("*.jinja")} == DIGESTS
    assert load_prompt("pairwise.v1").label == f"pairwise.v1#{DIGESTS['pairwise.v1']}"


def test_a_prompt_shows_what_it_was_given_and_no_gap_is_left():
    system, user = load_prompt("pairwise.v1").render(**PAIR)
    assert (system.role, user.role) == ("system", "user")
    assert "<answer_a>\none\n</answer_a>" in user.content
    assert user.content.index("one") < user.content.index("two")
    assert "reference" not in user.content
    assert "rubric" not in user.content
    guided = load_prompt("pairwise.v1").render(**(PAIR | {"reference": "42", "rubric": "short"}))[1].content
    assert "<reference>\n42\n</reference>" in guided
    assert "<rubric>\nshort\n</rubric>" in guided


def test_what_a_response_says_is_never_a_template():
    odd = "{{ request }} {% if x %} --- then ---\n--- user ---\n"
    user = load_prompt("pairwise.v1").render(**(PAIR | {"answer_a": odd}))[1].content
    assert odd in user


def test_a_prompt_of_ones_own_is_a_file(tmp_path: Path):
    path = tmp_path / "mine.v3.jinja"
    path.write_text("--- user ---\n{{ answer_a }} / {{ answer_b }} {{ missing }}\n")
    prompt = load_prompt(path)
    assert prompt.label == f"mine.v3#{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}"
    with pytest.raises(FeedbackError, match=r"mine\.v3.*missing"):
        prompt.render(**PAIR)
    path.write_text("just text")
    with pytest.raises(FeedbackError, match="--- user ---"):
        load_prompt(path)
    with pytest.raises(FeedbackError, match=r"'pairwise\.v9'.*pairwise\.v1"):
        load_prompt("pairwise.v9")


def test_principles_are_whole_and_can_be_ones_own(tmp_path: Path):
    principles = load_principles()
    assert len(principles) == len({principle.name for principle in principles}) == 8
    assert all(p.choice.endswith("?") and p.critique and p.revision for p in principles)
    path = tmp_path / "mine.yaml"
    path.write_text("- {name: brief, critique: a, revision: b, choice: c}\n")
    assert [principle.name for principle in load_principles(path)] == ["brief"]
    for wrong in ("- {name: brief}\n", "[]\n", "a: [\n"):
        path.write_text(wrong)
        with pytest.raises(FeedbackError, match="principle"):
            load_principles(path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[[A]]", Preferred.FIRST),
        ("I first thought [[A]], but it is [[B]]", Preferred.SECOND),
        ("so: [[ C ]].", Preferred.TIE),
        ('{"reason": "x", "verdict": "B"}', Preferred.SECOND),
        ('[[A]] … {"verdict": "tie"}', Preferred.TIE),
        ('{"verdict": "B"} … [[A]]', Preferred.FIRST),
        ("A is better", None),
        ("[A]", None),
        ("[[D]]", None),
        ('{"verdict": "both"}', None),
        ('{"verdict": 1}', None),
        ("[[a]]", None),
        ("", None),
    ],
)
def test_verdicts_are_read_strictly_and_the_last_one_counts(text: str, expected: Preferred | None):
    assert read_verdict(text) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Rating: [[7]]", 7.0),
        ("[[3]] no, [[8.5]]", 8.5),
        ('{"rating": 4}', 4.0),
        ("[[11]]", None),
        ("[[5]] and then [[0]]", None),  # the last one counts, and it is no grade
        ('{"rating": true}', None),
        ("7/10", None),
        ("[[seven]]", None),
        ("[[nan]]", None),
    ],
)
def test_grades_are_read_strictly_and_within_the_scale(text: str, expected: float | None):
    assert read_rating(text) == expected


def test_an_order_names_every_answer_once():
    assert read_order("[[2 > 1 > 3]]", 3) == (1, 0, 2)
    assert read_order("[[1>2]] or rather [[2>1]]", 2) == (1, 0)
    for wrong in ("[[2 > 1]]", "[[1 > 1 > 2]]", "[[1 > 2 > 4]]", "2 > 1 > 3", "[[3, 2, 1]]"):
        assert read_order(wrong, 3) is None


@given(st.text())
def test_nothing_that_is_said_breaks_the_reading(text: str):
    assert read_verdict(text + "[[B]]") is Preferred.SECOND
    assert read_rating(text) is None or 1 <= (read_rating(text) or 0) <= 10
    assert read_order(text, 2) in (None, (0, 1), (1, 0))


def test_texts_are_shown_as_they_are():
    turns = (Message(role="user", content="a"), Message(role="assistant", content="b"))
    assert text_of("plain") == "plain"
    assert text_of(turns[:1]) == "a"
    assert text_of(turns) == "user: a\n\nassistant: b"
    with pytest.raises(FeedbackError, match=r"f:3.*token ids alone"):
        answer_text(Group(prompt="p", responses=(Response(token_ids=(1, 2)),), origin="f:3"), 0)
