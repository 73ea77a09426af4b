"""Reward-conditioned relabelling: both goals, the second with the responses swapped; populations named by a column."""

from __future__ import annotations

from dataclasses import replace

import pytest

from accord.data.transforms.relabel import GOAL, ROW, relabel, with_goal
from accord.data.transforms.strata import name_strata, stratum_of
from accord.errors import ConfigError, DataError
from accord.records import Comparison, Critique, Group, Judgement, Message, Rating, Response, Text


def pair(prompt: Text = "What is new?", *judgements: Judgement, scores: tuple[float, ...] = (9.0, 4.5)) -> Group:
    """Two responses (or as many as scores), rated; the first was preferred."""
    rated = tuple(Rating(response=index, value=score) for index, score in enumerate(scores))
    return Group(
        prompt=prompt,
        responses=tuple(Response(content=f"answer {index}") for index in range(len(scores))),
        judgements=(Comparison(better=0, worse=1), *rated, *judgements),
        origin="file:7",
        extra={"topic": "news"},
    )


def compared(group: Group) -> list[tuple[int, int, float | None]]:
    return [(j.better, j.worse, j.strength) for j in group.judgements if isinstance(j, Comparison)]


def test_a_pair_becomes_two_groups_and_the_second_is_swapped():
    high, low = relabel([pair()])[0]
    assert high.prompt == "Write a response that deserves a score of 9.\n\nWhat is new?"
    assert low.prompt == "Write a response that deserves a score of 4.5.\n\nWhat is new?"
    assert compared(high) == [(0, 1, 4.5)]
    assert compared(low) == [(1, 0, 4.5)]  # for the low goal the low response wins
    assert high.responses == low.responses == pair().responses
    assert (high.origin, high.extra) == ("file:7", {"topic": "news", ROW: 0})


@pytest.mark.parametrize("has_system", [False, True])
def test_both_copies_of_a_conversation_get_a_goal_of_their_own(has_system: bool):
    """The copies share no message list, so the goal of one is never in the other, with and without a system turn."""
    user = Message(role="user", content="What is new?")
    turns = (Message(role="system", content="Be brief."), user) if has_system else (user,)
    high, low = relabel([pair(turns)])[0]
    first = "Be brief.\n\n" if has_system else ""
    for group, score in ((high, "9"), (low, "4.5")):
        assert group.prompt == (
            Message(role="system", content=f"{first}Write a response that deserves a score of {score}."), user,
        )  # fmt: skip
    assert [compared(high)[0][:2], compared(low)[0][:2]] == [(0, 1), (1, 0)]


def test_of_several_ratings_each_is_a_goal_and_equal_ones_share_it():
    groups, num_left_out = relabel([pair(scores=(3.0, 5.0, 3.0, 1.0))])
    assert num_left_out == 0
    assert [group.prompt.partition(".")[0][-1] for group in groups if isinstance(group.prompt, str)] == ["5", "3", "1"]
    assert [compared(group) for group in groups] == [
        [(1, 0, 2.0), (1, 2, 2.0), (1, 3, 4.0)],
        [(0, 1, 2.0), (0, 3, 2.0), (2, 1, 2.0), (2, 3, 2.0)],
        [(3, 0, 2.0), (3, 1, 4.0), (3, 2, 2.0)],
    ]


def test_only_what_is_said_about_the_goal_stays():
    critique = Critique(response=0, text="nice")
    for group in relabel([pair("x", critique)])[0]:
        assert [judgement for judgement in group.judgements if not isinstance(judgement, Comparison)] == [critique]


def test_overall_counts_before_attributes_and_judges_are_averaged():
    more = [Rating(response=1, value=9.5, judge="b"), Rating(response=0, value=0.0, attribute="style")]
    groups, _ = relabel([pair("x", *more)])
    assert [group.prompt for group in groups] == [with_goal("x", 9.0), with_goal("x", 7.0)]
    assert compared(groups[1]) == [(1, 0, 2.0)]  # (4.5 + 9.5) / 2 = 7


def test_rows_without_two_different_ratings_are_left_out_and_counted():
    unrated = replace(pair(), judgements=(Comparison(better=0, worse=1),))
    groups, num_left_out = relabel([unrated, pair(), pair(scores=(2.0, 2.0))])
    assert (len(groups), num_left_out) == (2, 2)
    assert [group.extra[ROW] for group in groups] == [1, 1]
    with pytest.raises(DataError, match="none of the 1 rows has two different ratings"):
        relabel([unrated])


@pytest.mark.parametrize("goal", ["be good", "{score} of {score}"])
def test_a_goal_without_one_place_for_the_score_is_refused(goal: str):
    with pytest.raises(ConfigError, match=r"expected words with \{score\}"):
        relabel([pair()], goal)


def test_the_policy_is_asked_in_the_same_words():
    assert with_goal("x", 10.0) == GOAL.replace("{score}", "10") + "\n\nx"
    assert with_goal("x", 10.0, "Aim: {score}") == "Aim: 10\n\nx"


# -- populations -------------------------------------------------------------------------------------------------------


def test_populations_are_named_by_a_column_or_by_the_judge():
    group = replace(pair(), extra={"country": "Chile", "wave": 3})
    assert stratum_of(group) is None
    assert [stratum_of(named) for named in name_strata([group], "country")] == ["Chile"]
    assert [stratum_of(named) for named in name_strata([group], "wave")] == ["3"]
    assert [stratum_of(named) for named in name_strata([replace(group, extra={"stratum": "a"})])] == ["a"]
    judged = replace(group, judgements=(Comparison(better=0, worse=1, judge="ann"),))
    assert [stratum_of(named) for named in name_strata([judged], "judge")] == ["ann"]


@pytest.mark.parametrize(
    ("group", "column", "says"),
    [
        (pair(), "country", "file:7: has no column 'country'.*data.stratum"),
        (pair(), "stratum", "has no column 'stratum'"),
        (replace(pair(), extra={"country": 0.5}), "country", "got country = 0.5"),
        (replace(pair(), extra={"country": " "}), "country", "got country = ' '"),
        (pair(), "judge", "judged by nobody named"),
        (replace(pair(), judgements=()), "judge", "judged by nobody —"),
        (
            replace(
                pair(), judgements=(Comparison(better=0, worse=1, judge="b"), Rating(response=0, value=1, judge="a"))
            ),
            "judge",
            "judged by a, b — expected one judge",
        ),
    ],
)
def test_a_row_that_names_no_population_is_refused(group: Group, column: str, says: str):
    with pytest.raises(DataError, match=says):
        name_strata([group], column)
