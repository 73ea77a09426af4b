"""CycleAlign: agreement of two orders, pseudo-labels, and the pool of demonstrations."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from judge_simulators import SayingChat, numbers_group

from accord.errors import FeedbackError
from accord.feedback.judges.cycle import (
    Demonstration,
    DemonstrationPool,
    find_agreements,
    longest_common_subsequence,
    order_by,
    with_pseudo_labels,
)
from accord.records import Ranking

ORDERS = st.permutations(range(6))


def is_within(part: tuple[int, ...], whole: list[int]) -> bool:
    rest = iter(whole)
    return all(item in rest for item in part)


@given(ORDERS, ORDERS)
def test_the_longest_common_subsequence_is_in_both_and_none_is_longer(first: list[int], second: list[int]):
    """Against all 2⁶ subsequences."""
    found = longest_common_subsequence(first, second)
    assert is_within(found, first)
    assert is_within(found, second)
    longer = combinations(first, len(found) + 1)
    assert not any(is_within(part, second) for part in longer)


def test_equal_orders_agree_in_all_and_reversed_ones_in_one():
    assert longest_common_subsequence((2, 0, 1), (2, 0, 1)) == (2, 0, 1)
    assert len(longest_common_subsequence((2, 0, 1, 3), (3, 1, 0, 2))) == 1
    assert longest_common_subsequence((0, 1, 2, 3), (1, 0, 3, 2)) == (
        0,
        2,
    )  # of four, the one that is first in the first
    assert longest_common_subsequence((), (1,)) == ()


def test_the_agreed_order_is_the_label_and_joins_the_demonstrations():
    """Teacher 2 > 1 > 3, policy 2 > 3 > 1 (by −1, −0.5, −0.7): agreed are 2 > 1 or 2 > 3; the teacher's first wins."""
    chat, pool = SayingChat(["[[2 > 1 > 3]]"]), DemonstrationPool(2)
    group = numbers_group(1.0, 2.0, 3.0)
    (found,) = find_agreements([group], chat, [[-1.0, -0.5, -0.7]], pool)
    assert (found.teacher, found.policy, found.agreed) == ((1, 0, 2), (1, 2, 0), (1, 0))
    assert found.share == pytest.approx(2 / 3)
    (labelled,) = with_pseudo_labels([group], [found], "llm:simulated/rank.v1")
    assert labelled.judgements == (Ranking(order=((1,), (0,)), judge="llm:simulated/rank.v1"),)
    assert pool.shown() == [Demonstration(request="which?", answers=("1.0", "2.0"), order=(1, 0))]


def test_reversed_orders_give_no_pair_and_no_demonstration():
    chat, pool = SayingChat(["[[1 > 2 > 3]]"]), DemonstrationPool(2)
    group = numbers_group(1.0, 2.0, 3.0)
    (found,) = find_agreements([group], chat, [[-3.0, -2.0, -1.0]], pool)
    assert len(found.agreed) == 1
    assert with_pseudo_labels([group], [found], "j") == [group]
    assert len(pool) == 0


def test_an_unreadable_order_is_unknown():
    pool = DemonstrationPool(2)
    (found,) = find_agreements([numbers_group(1.0, 2.0)], SayingChat(["2 first"]), [[0.0, 1.0]], pool, num_attempts=2)
    assert (found.teacher, found.agreed, found.share, len(pool)) == (None, (), None, 0)
    assert "no verdict" in found.reason


def test_the_pool_keeps_the_last_and_shows_them_to_the_next_question():
    fixed = Demonstration(request="fixed?", answers=("x", "y"), order=(1, 0))
    pool = DemonstrationPool(2, [fixed])
    chat = SayingChat(["[[1 > 2]]"])
    for number in range(4):
        find_agreements([numbers_group(9.0, 1.0, prompt=f"question {number}")], chat, [[-1.0, -2.0]], pool)
    assert [shown.request for shown in pool.shown()] == ["fixed?", "question 2", "question 3"]
    last = chat.asked[-1][1][-1].content
    assert "question 1" in last
    assert "question 0" not in last  # first in, first out
    assert "Order: [[2 > 1]]" in last  # of the fixed one
    with pytest.raises(FeedbackError, match="pool of -1"):
        DemonstrationPool(-1)


def test_groups_of_several_sizes_are_read_by_their_own_size():
    chat = SayingChat(["[[2 > 1]]", "[[3 > 1 > 2]]"])
    groups = [numbers_group(1.0, 2.0, 3.0), numbers_group(1.0, 2.0)]
    three, two = find_agreements(groups, chat, [[0.1, 0.0, 0.2], [0.0, 0.1]], DemonstrationPool(0))
    assert (three.agreed, two.agreed) == ((2, 0, 1), (1, 0))
    with pytest.raises(FeedbackError, match="1 mean log-probabilities for 2"):
        find_agreements(groups[1:], chat, [[0.0]], DemonstrationPool(0))


def test_ties_of_the_policy_keep_their_order():
    assert order_by([0.5, 1.0, 0.5]) == (1, 0, 2)
