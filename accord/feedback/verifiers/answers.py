"""Verifiers that compare a final answer with the right one: GSM8K's number, a string, the letter of a choice."""

from __future__ import annotations

import re
from decimal import Decimal
from fractions import Fraction
from typing import Annotated, Any, Literal

from annotated_types import Interval

from accord.feedback.findings import Finding
from accord.feedback.verifiers.spec import Column, VerifierSpec
from accord.feedback.verifiers.texts import NO_TEXT, Answer, final_text, last_boxed, last_tagged, response_text

_MAX_DIGITS = 100  # longer runs are no answer to anything, and cost time as exact numbers
_DIGITS = r"(?:[0-9]+(?:,[0-9]+)*(?:\.[0-9]+)?|(?<![0-9])\.[0-9]+)(?:[eE][+-]?[0-9]{1,3}(?![0-9A-Za-z]))?"
_NUMBER = re.compile(
    rf"(?P<sign>(?<![\w)\]}}%.])[-−–+])?\\?[$€£¥]?(?P<value>{_DIGITS})"
    rf"(?:/(?P<divisor>{_DIGITS}))?"
)
_MARKED = re.compile(r"^[ \t]*####[ \t]*(?P<rest>.*)$", re.MULTILINE)


def gsm8k(response: Answer, answer: str | int | float) -> Finding:
    """Score 1 where the final number of the response is the right one, else 0.

    The final number is the one after the last `#### ` at the start of a line (`#### 72`); without such a line, the
    last number of the text. What precedes `</think>` is not read. Numbers are compared as numbers: thousands commas,
    currency signs, a trailing full stop or percent sign do not matter, `72.0` is 72, `3/4` is 0.75, `1.5e3` is 1500.
    A minus belongs to the number unless it stands behind a digit, a letter or a bracket (`-5` and `−$5` are minus
    five, `10-5` ends in 5); published checkers lose that sign. `answer` is a number or a solution that ends in
    `#### n` or in a line `A: n`. Unknown where no number can be read off `answer`.
    Source: Cobbe et al. 2021, arXiv:2110.14168. Limits: words ("seventy-two") are not read; a number in a closing
    remark counts as the last one.
    """
    right = _answer_number(answer)
    if right is None:
        return Finding(score=None, reason=f"no number can be read off the right answer {_short(answer)}")
    text = response_text(response)
    if text is None:
        return NO_TEXT
    found = final_number(text)
    if found is None:
        return Finding(score=0.0, reason="the response has no final number")
    written, value = found
    return _compared(value == right, written, _short(answer))


def final_number(text: str) -> tuple[str, Fraction] | None:
    """Return the final number as written and as a number (see `gsm8k`); None where there is none."""
    text = final_text(text)
    marked = _MARKED.findall(text)
    if marked and _is_answer_line(marked[-1]):
        return _number(_NUMBER.match(marked[-1]))
    last = None
    for found in _NUMBER.finditer(text):
        last = found
    return _number(last)


def _is_answer_line(rest: str) -> bool:
    """Whether what follows `####` is an answer; "#### Step 2" and "#### 2. Add up" are headings."""
    found = _NUMBER.match(rest)
    return found is not None and re.match(r"[.):]\s+\w", rest[found.end() :]) is None


def _number(found: re.Match[str] | None) -> tuple[str, Fraction] | None:
    """Return a number as written and exactly; a quotient by zero or a giant is none."""
    if found is None:
        return None
    value, divisor = _exact(found["value"]), _exact(found["divisor"] or "1")
    if value is None or not divisor:
        return None
    sign = -1 if found["sign"] in ("-", "−", "–") else 1
    return found.group(), sign * value / divisor


def _exact(digits: str) -> Fraction | None:
    """Read digits with thousands commas; where commas do not group thousands, only what follows the last one."""
    if len(digits) > _MAX_DIGITS:
        return None
    whole = re.match(r"[0-9,]*", digits)
    assert whole is not None
    groups = whole.group().split(",")
    widths = [len(group) for group in groups]
    is_grouped = widths[0] <= 3 and widths[-1] == 3 and set(widths[1:-1]) in (set(), {2}, {3})
    return Fraction(Decimal(("".join(groups) if is_grouped else groups[-1]) + digits[whole.end() :]))


def _answer_number(answer: Any) -> Fraction | None:
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        return None
    text = str(answer).strip()
    marked = _MARKED.findall(text) or re.findall(r"^A:[ \t]*(.*)$", text, re.MULTILINE)
    found = _NUMBER.match((marked[-1] if marked else text).strip())
    if found is None or (not marked and text[found.end() :].strip(" %.")):
        return None  # a text with a number somewhere in it is no answer to compare with
    number = _number(found)
    return None if number is None else number[1]


def string_match(
    response: Answer,
    answer: str,
    *,
    where: Literal["last_line", "tags", "whole"] = "last_line",
    is_case_sensitive: bool = False,
) -> Finding:
    """Score 1 where the final answer is the right string, white space normalised, else 0.

    The final answer is the last `<answer>…</answer>`; without one the last line that is not empty (`where=last_line`),
    nothing (`tags`), or the whole text (`whole`, tags or not). What precedes `</think>` is not read.
    """
    text = response_text(response)
    if text is None:
        return NO_TEXT
    text = final_text(text)
    tagged = last_tagged(text)
    if where == "whole":
        given = text
    elif tagged is not None:
        given = tagged
    elif where == "tags":
        return Finding(score=0.0, reason="the response has no <answer>…</answer>")
    else:
        given = next((line for line in reversed(text.splitlines()) if line.strip()), "")
    left, right = _words(given, is_case_sensitive), _words(str(answer), is_case_sensitive)
    if not right:
        return Finding(score=None, reason="the right answer is empty")
    return _compared(left == right, _short(given.strip()), _short(answer))


def multiple_choice(
    response: Answer, answer: str | int, *, num_choices: Annotated[int, Interval(ge=2, le=26)] = 5
) -> Finding:
    r"""Score 1 where the chosen letter is the right one, else 0.

    The choice is, in this order: the last `<answer>` or `\boxed{…}`, if it is a letter; the last "answer is B" or
    "Answer: (B)"; a text that is, or begins with, a letter and a bracket or full stop ("B) 12"); a last word that is
    a letter in brackets. Letters are those of `num_choices` from A on. `answer` is a letter or an index from 0.
    """
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[:num_choices]
    right = _right_letter(answer, letters)
    if right is None:
        return Finding(score=None, reason=f"the right answer {_short(answer)} is neither of {letters} nor an index")
    text = response_text(response)
    if text is None:
        return NO_TEXT
    chosen = _chosen_letter(final_text(text), letters)
    if chosen is None:
        return Finding(score=0.0, reason=f"the response chooses none of {letters}")
    return _compared(chosen == right, chosen, right)


def _right_letter(answer: Any, letters: str) -> str | None:
    if isinstance(answer, int) and not isinstance(answer, bool):
        return letters[answer] if 0 <= answer < len(letters) else None
    letter = str(answer).strip().strip("().").upper()
    return letter if len(letter) == 1 and letter in letters else None


def _chosen_letter(text: str, letters: str) -> str | None:
    def alone(piece: str | None) -> str | None:
        stripped = (piece or "").strip().removeprefix("\\text{").strip(" (){}.*$").upper()
        return stripped if len(stripped) == 1 and stripped in letters else None

    marked = alone(last_tagged(text)) or alone(last_boxed(text)) or alone(text)
    if marked:
        return marked
    said = re.findall(rf"(?i:answer)[*_ ]*(?:(?i:is)|:|=)[*_: ]*\$?\(?([{letters}])(?!\w)", text)
    if said:
        return said[-1]
    begun = re.match(rf"[\s*(]*([{letters}])\s*(?:[).:*]|$)", text)
    if begun:
        return begun.group(1)
    ended = re.search(rf"\(([{letters}])\)[\s.*]*$", text[-20:])
    return ended.group(1) if ended else None


def _words(text: str, is_case_sensitive: bool) -> list[str]:
    return (text if is_case_sensitive else text.casefold()).split()


def _compared(is_equal: bool, given: str, right: str) -> Finding:
    return Finding(score=float(is_equal), reason=f"got {_short(given)}, the right answer is {right}")


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"…{text[-79:]}"


ROWS: dict[str, VerifierSpec] = {
    "gsm8k": VerifierSpec(
        fn=gsm8k,
        columns={"answer": Column("answer", "a number, or a solution that ends in '#### n'")},
        source="Cobbe et al. 2021, arXiv:2110.14168",
    ),
    "string_match": VerifierSpec(fn=string_match, columns={"answer": Column("answer", "the right string")}),
    "multiple_choice": VerifierSpec(
        fn=multiple_choice, columns={"answer": Column("answer", "a letter, or an index from 0")}
    ),
}
