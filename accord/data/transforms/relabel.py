"""Reward-conditioned relabelling: the goal goes into the prompt, and for each goal the response that meets it wins.

From a prompt x with rated responses, one group per rating g that occurs: the prompt x ⊕ g, where the responses rated g
are better than every other. Of a pair that is two groups, the second with the responses SWAPPED: (x ⊕ r_w, y_w ≻ y_l)
and (x ⊕ r_l, y_l ≻ y_w). Both orders follow from the conditional reward −(g − r)². Afterwards the policy is asked for
the best rating (Zhang et al. 2024, arXiv:2410.08067; the words of the goal are Accord's own).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from accord.errors import ConfigError, DataError
from accord.records import Comparison, Critique, Group, Judgement, Message, Rating, Text

GOAL = "Write a response that deserves a score of {score}."
ROW = "relabelled_from"
"""Key of `Group.extra`: the position of the row that a group was made of."""


def relabel(groups: Sequence[Group], goal: str = GOAL) -> tuple[list[Group], int]:
    """Return the groups of every rated row, one per rating that occurs, and how many rows were left out.

    A row is left out where fewer than two different ratings occur. The overall rating counts, else the mean of all
    attributes, averaged over judges. Comparisons, rankings and ratings of the row give way to the comparisons of the
    goal, whose strength is the difference of the ratings. Raises DataError when no row is left, ConfigError for a goal
    without {score}.
    """
    check_goal(goal)
    made = [_of_row(place, group, goal) for place, group in enumerate(groups)]
    num_left_out = sum(not found for found in made)
    if num_left_out == len(groups):
        raise DataError(
            f"none of the {len(groups)} rows has two different ratings — expected ratings of at least two responses "
            "(columns score_chosen and score_rejected, or scores) — set data.relabel=none, or rate the responses"
        )
    return [group for found in made for group in found], num_left_out


def check_goal(goal: str) -> None:
    """Raise ConfigError where a goal has no single place for the score."""
    if goal.replace("{score}", "", 1) != goal.replace("{score}", "") or "{score}" not in goal:
        raise ConfigError(f"got the goal {goal!r} — expected words with {{score}} in them, once")


def with_goal(prompt: Text, score: float, goal: str = GOAL) -> Text:
    """Return a prompt that asks for a score: a system turn, or the end of one that is there; text gets it in front."""
    words = goal.replace("{score}", f"{score:g}")
    if isinstance(prompt, str):
        return f"{words}\n\n{prompt}"
    if prompt and prompt[0].role == "system":
        return (replace(prompt[0], content=f"{prompt[0].content}\n\n{words}"), *prompt[1:])
    return (Message(role="system", content=words), *prompt)


def mean_ratings(judgements: Sequence[Judgement]) -> dict[int, float]:
    """Return {response: rating}: the mean over judges of the overall rating, else of all attributes."""
    given = [judgement for judgement in judgements if isinstance(judgement, Rating)]
    found: dict[int, list[float]] = {}
    for rating in [rating for rating in given if rating.attribute == "overall"] or given:
        found.setdefault(rating.response, []).append(rating.value)
    return {index: sum(values) / len(values) for index, values in found.items()}


def _of_row(place: int, group: Group, goal: str) -> list[Group]:
    ratings = mean_ratings(group.judgements)
    scores = sorted(set(ratings.values()), reverse=True)
    if len(scores) < 2:
        return []
    others = tuple(judgement for judgement in group.judgements if isinstance(judgement, Critique))
    return [
        replace(
            group,
            prompt=with_goal(group.prompt, score, goal),
            judgements=(*_comparisons(ratings, score), *others),
            extra={**group.extra, ROW: place},
        )
        for score in scores
    ]


def _comparisons(ratings: Mapping[int, float], goal: float) -> list[Comparison]:
    meeting = [index for index, rating in ratings.items() if rating == goal]
    return [
        Comparison(better=better, worse=worse, strength=abs(goal - rating))
        for better in meeting
        for worse, rating in ratings.items()
        if rating != goal
    ]
