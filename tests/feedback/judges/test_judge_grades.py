"""Pointwise judging: grades, reviews before grades, and grades that cannot be read."""

from __future__ import annotations

import pytest
from judge_simulators import SayingChat, numbers_group

from accord.errors import FeedbackError
from accord.feedback.judges import PointwiseJudge, judge_groups
from accord.records import Critique, Rating


def test_every_response_gets_its_grade_or_a_reason():
    chat = SayingChat(["fine [[7]]", "no idea", "[[12]]", "good [[9]]", "still none", "[[2]]"])
    judge = PointwiseJudge(chat=chat, num_attempts=2)
    found = judge([numbers_group(1.0, 2.0), numbers_group(3.0, 4.0)])
    assert [[finding.score for finding in row] for row in found] == [[7.0, None], [2.0, 9.0]]
    assert "still none" in found[0][1].reason
    assert [attempt for attempt, _ in chat.asked] == [0, 0, 0, 0, 1, 1]
    assert found[0][0].reason == "fine [[7]]"


def test_ratings_are_added_and_what_is_unknown_is_not():
    judge = PointwiseJudge(chat=SayingChat(["[[7]]", "?", "?"]), num_attempts=2)
    (group,) = judge_groups([numbers_group(1.0, 2.0)], judge)
    assert group.judgements == (Rating(response=0, value=7.0, judge=judge.name),)
    assert judge.name.startswith("llm:simulated/pointwise.v1#")


def test_a_review_comes_before_the_grade_and_is_kept():
    chat = SayingChat(["too short", "", "[[4]]"])
    judge = PointwiseJudge(chat=chat, prompt="critique_then_score.v1")
    (judged,) = judge.judge([numbers_group(1.0, 2.0)])
    assert judged.judgements == (
        Critique(response=0, text="too short", judge=judge.name),
        Rating(response=0, value=4.0, judge=judge.name),
    )
    assert judged.unknown == ("response 1: an empty review",)
    graded = chat.asked[-1][1]
    assert [turn.role for turn in graded] == ["system", "user", "assistant", "user"]
    assert graded[2].content == "too short"


def test_another_scale_and_a_correct_answer():
    group = numbers_group(1.0)
    told = type(group)(prompt="p", responses=group.responses, extra={"answer": "one"})
    chat = SayingChat(["[[0.5]]"])
    judge = PointwiseJudge(chat=chat, lowest=0, highest=1, reference_key="answer")
    found = judge([told, group])
    assert [row[0].score for row in found] == [0.5, None]
    assert "<reference>\none\n</reference>" in chat.asked[0][1][-1].content
    assert "no 'answer'" in found[1][0].reason
    with pytest.raises(FeedbackError, match="scale that goes up"):
        PointwiseJudge(chat=chat, lowest=5, highest=5)
