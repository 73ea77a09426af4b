"""Pairwise judging: what a bias of the place does, and what averaging over both orders does about it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from judge_simulators import LogOddsChat, SayingChat, WritingChat, numbers_group, sigmoid, write_pair_prompt

from accord.errors import FeedbackError
from accord.feedback.judges import PairwiseJudge, judge_groups, swapped_log_odds, swapped_probability
from accord.feedback.judges.prompts import Preferred
from accord.records import Comparison, Rating

ODDS = st.floats(-30, 30)


@given(ODDS, ODDS)
def test_averaging_log_odds_takes_out_a_bias_of_place_exactly(d: float, b: float):
    """½ [(d + b) − (−d + b)] = d; averaging probabilities gives ½ [σ(d + b) + σ(d − b)], on the right side of ½."""
    first_ab, first_ba = d + b, -d + b
    assert swapped_log_odds(first_ab, first_ba) == pytest.approx(d, abs=1e-12)
    shrunk = swapped_probability(first_ab, first_ba)
    assert shrunk == pytest.approx(0.5 * (sigmoid(d + b) + sigmoid(d - b)), abs=1e-12)
    assert (shrunk - 0.5) * math.copysign(1.0, d) >= -1e-12
    assert abs(shrunk - 0.5) <= abs(sigmoid(d) - 0.5) + 1e-12


@pytest.mark.parametrize("bias", [0.0, 1.7, -4.0])
def test_a_biased_judge_gives_the_unbiased_strength(bias: float, tmp_path: Path):
    chat = LogOddsChat(bias=bias)
    judge = PairwiseJudge(chat=chat, mode="logprobs", prompt=write_pair_prompt(tmp_path))
    (judged,) = judge.judge([numbers_group(0.5, 2.0, 1.0)])
    found = {(c.better, c.worse): c.strength for c in judged.judgements if isinstance(c, Comparison)}
    assert found == {(1, 0): pytest.approx(1.5), (2, 0): pytest.approx(0.5), (1, 2): pytest.approx(1.0)}
    assert chat.asked == 6  # three pairs, both orders


def test_without_the_swap_the_bias_decides(tmp_path: Path):
    """|b| = 4 > |d| = 1: whichever is shown first wins."""
    judge = PairwiseJudge(chat=LogOddsChat(bias=4.0), mode="logprobs", swap=False, prompt=write_pair_prompt(tmp_path))
    orders = set()
    for number in range(20):
        ((pair,),) = judge.compare([numbers_group(1.0, 2.0, prompt=f"prompt {number}")])
        assert pair.comparison is not None
        assert pair.comparison.better == pair.orders[0][0]
        assert pair.comparison.shown_order == pair.orders[0]
        orders.add(pair.orders[0])
    assert orders == {(0, 1), (1, 0)}  # the order shown is drawn


def test_a_win_is_one_in_both_orders_and_else_a_tie(tmp_path: Path):
    prompt = write_pair_prompt(tmp_path)
    fair = PairwiseJudge(chat=WritingChat(), prompt=prompt)
    group = numbers_group(1.0, 5.0, 5.0)
    (judged,) = fair.judge([group])
    assert [(c.better, c.worse, c.is_tie) for c in judged.judgements if isinstance(c, Comparison)] == [
        (1, 0, False), (2, 0, False), (1, 2, True),
    ]  # fmt: skip
    always_first = PairwiseJudge(chat=SayingChat(["[[A]]"]), prompt=prompt)
    ((pair, *_),) = always_first.compare([group])
    assert pair.preferred == (Preferred.FIRST, Preferred.FIRST)
    assert pair.comparison is not None
    assert pair.comparison.is_tie


def test_what_stays_unreadable_is_asked_again_and_then_unknown():
    chat = SayingChat(["hm", "[[B]]", "hm", "hm"])  # first order read at the second attempt, second order never
    judge = PairwiseJudge(chat=chat, num_attempts=3)
    chat.lines = ["hm", "hm", "[[B]]", "hm"]
    ((pair,),) = judge.compare([numbers_group(1.0, 2.0)])
    assert pair.comparison is None
    assert pair.preferred == (Preferred.SECOND, None)
    assert "no verdict in the reply" in pair.reason
    assert [attempt for attempt, _ in chat.asked] == [0, 0, 1, 1, 2]
    (judged,) = PairwiseJudge(chat=SayingChat([None])).judge([numbers_group(1.0, 2.0)])
    assert judged.judgements == ()
    assert judged.unknown == ("too long; too long",)


def test_a_pair_without_log_probabilities_is_unknown():
    (judged,) = PairwiseJudge(chat=SayingChat(["A"]), mode="logprobs").judge([numbers_group(1.0, 2.0)])
    assert judged.judgements == ()
    assert "likeliest" in judged.unknown[0]


def test_judgements_come_after_those_that_were_there_and_are_signed():
    group = numbers_group(1.0, 3.0)
    earlier = Rating(response=0, value=1.0)
    (found,) = judge_groups([type(group)(prompt="p", responses=group.responses, judgements=(earlier,))],
                            PairwiseJudge(chat=SayingChat(["[[B]]", "[[A]]"])))  # fmt: skip
    assert found.judgements[0] == earlier
    comparison = found.judgements[1]
    assert isinstance(comparison, Comparison)
    assert (comparison.better, comparison.worse, comparison.shown_order) == (1, 0, (0, 1))
    model, prompt = (comparison.judge or "").split("/")
    assert model == "llm:simulated"
    assert prompt.startswith("pairwise.v1#")
    assert len(prompt) == len("pairwise.v1#") + 8


def test_a_correct_answer_is_shown_where_asked_for_and_its_lack_is_unknown():
    group = numbers_group(1.0, 3.0)
    told = type(group)(prompt="p", responses=group.responses, extra={"answer": "it is 3"})
    chat = SayingChat(["[[B]]"])
    with_answer, without = PairwiseJudge(chat=chat, reference_key="answer").judge([told, group])
    assert len(with_answer.judgements) == 1
    assert all("<reference>\nit is 3\n</reference>" in turns[-1].content for _, turns in chat.asked)
    assert without.unknown == ("the group has no 'answer' in its extra columns",)


def test_each_against_the_first(tmp_path: Path):
    judge = PairwiseJudge(chat=WritingChat(), pairs="first", prompt=write_pair_prompt(tmp_path))
    (judged,) = judge.judge([numbers_group(2.0, 1.0, 3.0)])
    assert [(c.better, c.worse) for c in judged.judgements if isinstance(c, Comparison)] == [(0, 1), (2, 0)]
    assert judge.judge([numbers_group(2.0)])[0].judgements == ()


def test_settings_that_cannot_be_used_are_refused():
    with pytest.raises(FeedbackError, match="mode='guess'"):
        PairwiseJudge(chat=SayingChat(["A"]), mode="guess")  # type: ignore[arg-type]
    with pytest.raises(FeedbackError, match="rubric"):
        PairwiseJudge(chat=SayingChat(["A"]), mode="logprobs", rubric="short")


def test_an_extreme_belief_stays_finite():
    assert swapped_probability(1000.0, -1000.0) == 1.0
    assert swapped_probability(-1000.0, 1000.0) == 0.0
    assert math.isfinite(swapped_log_odds(1000.0, -1000.0))
