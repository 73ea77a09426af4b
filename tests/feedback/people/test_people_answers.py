"""Answers are checked strictly, and become judgements in terms of the group whatever the order shown."""

from __future__ import annotations

from typing import Any

import pytest

from accord.errors import FeedbackError
from accord.feedback.people import ProjectSettings, QuestionKind
from accord.feedback.people.answers import can_be_known, is_right, judgements_of, read_answer
from accord.records import Comparison, Critique, Judgement, Label, Ranking, Rating

SETTINGS = ProjectSettings(kinds=tuple(QuestionKind), attributes=("helpful", "honest"), max_text_characters=20)


def given(kind: QuestionKind, payload: dict[str, Any], shown: tuple[int, ...]) -> tuple[Judgement, ...]:
    answer = read_answer(kind, payload, SETTINGS, num_responses=len(shown))
    return judgements_of(answer, shown, "annotator-1")


WHO: dict[str, Any] = {"judge": "annotator-1"}


@pytest.mark.parametrize(
    ("kind", "payload", "shown", "expected"),
    [
        # A is response 4 and is much better
        ("pairwise8", {"level": -4}, (4, 1), [Comparison(better=4, worse=1, strength=4.0, shown_order=(4, 1), **WHO)]),
        ("pairwise8", {"level": 1}, (4, 1), [Comparison(better=1, worse=4, strength=1.0, shown_order=(4, 1), **WHO)]),
        (
            "pairwise_ties",
            {"level": 0},
            (1, 0),
            [Comparison(better=1, worse=0, is_tie=True, shown_order=(1, 0), **WHO)],
        ),
        ("thumbs", {"is_desirable": False}, (2,), [Label(response=2, is_desirable=False, shown_order=(2,), **WHO)]),
        # places 2 and 0 tied above 1; place 2 is response 0, place 0 response 1, place 1 response 2
        ("ranking", {"order": [[2, 0], [1]]}, (1, 2, 0), [Ranking(order=((0, 1), (2,)), shown_order=(1, 2, 0), **WHO)]),
        (
            "rating",
            {"ratings": {"helpful": 5, "honest": 1.5}},
            (3,),
            [
                Rating(response=3, value=5.0, attribute="helpful", shown_order=(3,), **WHO),
                Rating(response=3, value=1.5, attribute="honest", shown_order=(3,), **WHO),
            ],
        ),
        ("critique", {"text": "vague"}, (1,), [Critique(response=1, text="vague", shown_order=(1,), **WHO)]),
        ("edit", {"edited": "better"}, (1,), [Critique(response=1, text="", edited="better", shown_order=(1,), **WHO)]),
    ],
)
def test_an_answer_becomes_judgements(
    kind: str, payload: dict[str, Any], shown: tuple[int, ...], expected: list[Judgement]
):
    assert list(given(QuestionKind(kind), payload, shown)) == expected


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        ("pairwise8", {"level": 0}),  # no forced tie, and none allowed
        ("pairwise8", {"level": 5}),
        ("pairwise8", {"level": "3"}),  # strict: text is not a number
        ("pairwise8", {"level": True}),
        ("pairwise8", {"level": 1.0}),
        ("pairwise8", {}),
        ("pairwise8", {"level": 1, "annotator": 7}),
        ("pairwise_ties", {"level": -5}),
        ("thumbs", {"is_desirable": 1}),
        ("ranking", {"order": [[0], [1]]}),  # of three
        ("ranking", {"order": [[0], [1], [1]]}),
        ("ranking", {"order": [[0, 1, 2], []]}),
        ("ranking", {"order": [[0], [1], [3]]}),
        ("rating", {"ratings": {"helpful": 3}}),
        ("rating", {"ratings": {"helpful": 3, "honest": 6}}),
        ("rating", {"ratings": {"helpful": 3, "honest": float("nan")}}),
        ("rating", {"ratings": {"helpful": 3, "honest": 3, "kind": 3}}),
        ("critique", {"text": ""}),
        ("critique", {"text": "   "}),
        ("critique", {"text": "x" * 21}),
        ("critique", {"text": "a\x00b"}),
        ("critique", {"text": "a\ud800b"}),
        ("edit", {"text": "why"}),
        ("thumbs", {"is_desirable": True, "comment": "x" * 21}),
    ],
)
def test_what_is_no_answer_is_refused(kind: str, payload: dict[str, Any]):
    with pytest.raises(FeedbackError, match=r"expected|remove"):
        read_answer(QuestionKind(kind), payload, SETTINGS, num_responses=3 if kind == "ranking" else 2)


def test_right_is_what_agrees_with_what_is_known():
    left = Comparison(better=0, worse=1, strength=1.0)
    right = Comparison(better=1, worse=0, strength=4.0)
    tie = Comparison(better=0, worse=1, is_tie=True)
    assert is_right([left], [Comparison(better=0, worse=1)], SETTINGS)
    assert not is_right([right], [Comparison(better=0, worse=1)], SETTINGS)
    assert not is_right([tie], [Comparison(better=0, worse=1)], SETTINGS)
    assert is_right([tie], [Comparison(better=1, worse=0, is_tie=True)], SETTINGS)
    assert not is_right([left], [], SETTINGS)  # nothing known is nothing right
    # the scale is 1 … 5, an eighth of its range is (5 − 1)/8 = 0.5
    fact = [Rating(response=0, value=4.0, attribute="helpful")]
    assert is_right([Rating(response=0, value=4.5, attribute="helpful")], fact, SETTINGS)
    assert not is_right([Rating(response=0, value=4.6, attribute="helpful")], fact, SETTINGS)
    assert not is_right([Rating(response=0, value=4.0, attribute="honest")], fact, SETTINGS)
    order = [Ranking(order=((2,), (0, 1)))]  # 2 above both; of 0 and 1 nothing is known
    assert is_right([Ranking(order=((2,), (1,), (0,)))], order, SETTINGS)
    assert not is_right([Ranking(order=((2, 1), (0,)))], order, SETTINGS)


def test_only_what_answers_the_question_can_be_gold():
    assert can_be_known(QuestionKind.PAIRWISE8, [Comparison(better=0, worse=1)])
    assert not can_be_known(QuestionKind.PAIRWISE8, [Comparison(better=0, worse=1, is_tie=True)])
    assert can_be_known(QuestionKind.PAIRWISE_TIES, [Comparison(better=0, worse=1, is_tie=True)])
    assert not can_be_known(QuestionKind.CRITIQUE, [Critique(response=0, text="no")])
    assert not can_be_known(QuestionKind.THUMBS, [])
