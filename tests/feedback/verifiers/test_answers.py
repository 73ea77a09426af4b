"""GSM8K's number, strings and letters: what is read off a response, and every real label and flag."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accord.feedback import verifiers
from accord.feedback.verifiers.answers import final_number
from accord.records import Message, Response


def rows_of(path: Path) -> list[dict]:
    """Return the rows of a JSONL file."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("so 1,234 apples.", 1234),
        ("1,234,567", 1234567),
        ("1,00,000 rupees", 100000),
        ("the numbers 1,2,3", 3),  # no thousands: the last of a list
        ("It costs $5.50.", Fraction(11, 2)),
        ("a fall of -5", -5),
        ("minus sign: −5", -5),
        ("he owes -$5", -5),
        ("he owes $-5", -5),
        ("10-5", 5),  # a difference, not a sign
        ("(3)-5", 5),
        ("10 - 5", 5),
        ("it is 72.", 72),
        ("it is 72.0", 72),
        ("45%", 45),
        (".5", Fraction(1, 2)),
        ("3/4", Fraction(3, 4)),
        ("1.5e3", 1500),
        ("#### 72", 72),
        ("#### 72\nThat took 3 steps.", 72),
        ("#### 1\n#### 72", 72),
        ("#### 72 apples in 3 boxes", 72),
        ("#### Step 2\nso the total is 72", 72),  # a heading
        ("#### 2. Add up\nso the total is 72", 72),
        ("<think>9 or 8</think> it is 7", 7),
        ("A: 18", 18),
        ("she has 16 - 3 = <<16-3=13>>13", 13),
    ],
)
def test_the_final_number_of_a_text(text: str, number: int | Fraction) -> None:
    found = final_number(text)
    assert found is not None
    assert found[1] == number


@pytest.mark.parametrize(
    "text", ["", "no number", "<think>72", "<think>72</think>", "3/0", "9" * 1000, "#### nine", "٧٢"]
)
def test_texts_without_a_final_number_score_0(text: str) -> None:
    assert final_number(text) is None
    assert verifiers.gsm8k(text, "72").score == 0.0


def test_only_the_final_number_counts() -> None:
    assert verifiers.gsm8k("It is 72, no, it is 71.", "72").score == 0.0
    assert verifiers.gsm8k("#### 71 (or 72)", "72").score == 0.0
    assert verifiers.gsm8k("#### 72\n#### 71", "72").score == 0.0
    assert verifiers.gsm8k("72 or 71, hence 72", "72").score == 1.0


@pytest.mark.parametrize(
    "label", ["72", " 72 ", "72.", 72, 72.0, "$72", "72%", "9 * 8 = <<9*8=72>>72\n#### 72", "x\nA: 72"]
)
def test_a_label_is_a_number_or_a_solution(label: str | int | float) -> None:
    assert verifiers.gsm8k("it is 72", label).score == 1.0
    assert verifiers.gsm8k("it is 73", label).score == 0.0


@pytest.mark.parametrize("label", ["", "seventy-two", "72 apples and 3 pears", True, "#### none", "1/0"])
def test_a_label_without_a_number_is_unknown(label: str | bool) -> None:
    found = verifiers.gsm8k("72", label)
    assert found.score is None
    assert "right answer" in found.reason


def test_turns_and_records_are_read_alike() -> None:
    turns = (
        Message(role="user", content="8 · 9 = 71?"),
        Message(role="assistant", content="72"),
        Message(role="user", content="Thanks for 71"),
    )
    assert verifiers.gsm8k(turns, "72").score == 1.0
    assert verifiers.gsm8k(Response(content=turns), "72").score == 1.0
    assert verifiers.gsm8k(Response(content="72", token_ids=(7, 2)), "72").score == 1.0
    assert verifiers.gsm8k(Response(token_ids=(7, 2)), "72").score is None
    assert verifiers.gsm8k(turns[:1], "72").score is None


@given(st.decimals(allow_nan=False, allow_infinity=False, places=3, min_value=-(10**9), max_value=10**9))
def test_any_number_however_written_equals_itself(number) -> None:
    for text in (f"{number}", f"{number:,}", f"so it is ${number:,}.", f"#### {number:,}\n"):
        assert verifiers.gsm8k(text, str(number)).score == 1.0
    assert verifiers.gsm8k(f"{number + 1:,}", f"{number:,}").score == 0.0


def test_every_flag_of_the_published_model_solutions(shared_data: Path) -> None:
    """The flags say: the number of the last line `A: n`, without commas, equals that of the ground truth."""
    rows = rows_of(shared_data / "gsm8k" / "example_model_solutions.jsonl")
    flagged = [(row["ground_truth"], row[name]) for row in rows for name in row if isinstance(row[name], dict)]
    assert len(flagged) == 4 * 1319
    wrong = [
        given for label, given in flagged if verifiers.gsm8k(given["solution"], label).score != given["is_correct"]
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("name", "column", "count"),
    [
        ("gsm8k/train", "answer", 7473),
        ("gsm8k/test", "answer", 1319),
        ("math_misc/svamp", "Answer", 1000),
        ("math_misc/mawps", "target", 2065),
    ],
)
def test_every_real_label_as_a_response_is_right(shared_data: Path, name: str, column: str, count: int) -> None:
    labels = [row[column] for row in rows_of(shared_data / f"{name}.jsonl")]
    assert len(labels) == count
    assert {verifiers.gsm8k(str(label), label).score for label in labels} == {1.0}
    assert {verifiers.gsm8k("", label).score for label in labels} == {0.0}
    # 0.123 is no label's number: the label inside a wrong final answer
    assert {verifiers.gsm8k(f"{label}\n#### 0.123", label).score for label in labels} == {0.0}


def test_strings() -> None:
    assert verifiers.string_match("Let me see.\n\n  the   Nile \n", "The Nile").score == 1.0
    assert verifiers.string_match("the Nile", "The Nile", is_case_sensitive=True).score == 0.0
    assert verifiers.string_match("the Nile\nor the Amazon", "the Nile").score == 0.0
    assert verifiers.string_match("<answer>the Amazon</answer> <answer> the\nNile</answer> ok", "the Nile").score == 1.0
    assert verifiers.string_match("the Nile", "the Nile", where="tags").score == 0.0
    assert verifiers.string_match("a\nb", "a b", where="whole").score == 1.0
    assert verifiers.string_match("", "the Nile").score == 0.0
    assert verifiers.string_match("anything", " ").score is None


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("(B)", "B"),
        ("b.", "B"),
        ("B) twelve", "B"),
        ("The answer is B", "B"),
        ("The answer is (B) 12", "B"),
        ("**Answer:** B", "B"),
        ("Answer: A\nNo. Answer: B", "B"),
        (r"so \boxed{B}", "B"),
        (r"so $\boxed{\text{(B)}}$", "B"),
        ("<answer>B</answer> not A", "B"),
        ("A car is at rest, so we choose (B).", "B"),
        ("A car is at rest.", None),  # an article
        ("the answer is Because", None),
        ("F", None),
        ("", None),
    ],
)
def test_the_chosen_letter(text: str, letter: str | None) -> None:
    right = [verifiers.multiple_choice(text, option).score for option in "ABCDE"]
    assert right == [float(option == letter) for option in "ABCDE"]


def test_labels_of_choices() -> None:
    assert verifiers.multiple_choice("B", 1).score == 1.0
    assert verifiers.multiple_choice("F", "F", num_choices=6).score == 1.0
    assert verifiers.multiple_choice("F", 5).score is None
    assert verifiers.multiple_choice("A", "seven").score is None


def test_every_real_choice_as_a_response_is_right(shared_data: Path) -> None:
    aqua = [row["correct"] for row in rows_of(shared_data / "math_misc" / "aqua.jsonl")]
    stem = [row["answer"] for row in rows_of(shared_data / "math_misc" / "mmlu_stem.jsonl")]
    assert (len(aqua), len(stem)) == (254, 3018)
    assert {verifiers.multiple_choice(f"({letter})", letter).score for letter in aqua} == {1.0}
    assert {verifiers.multiple_choice("ABCD"[index], index, num_choices=4).score for index in stem} == {1.0}
