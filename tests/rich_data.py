"""One file that holds every kind of judgement, so that every row of the menu can be trained on it."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import toy_runs

from accord.objectives import OBJECTIVES, Need
from accord.policy.load import load_policy
from accord.records import Comparison, Group, Label, Message, Rating, Response

NUM_RESPONSES = 3
SAMPLED = {Need.ADVANTAGES, Need.OPPONENTS}
"""What no file gives: responses of the policy's own, with what they are worth or beside an opponent's."""


@functools.cache
def rich_groups(n: int = 16) -> list[Group]:
    """Three answers a request, sampled ids with their log-probabilities, and judgements of every kind by two judges."""
    policy = load_policy(toy_runs.BASE)
    prompts = [group.prompt for group in toy_runs.judged_groups(n)]
    groups = policy.sample(prompts, num_responses=NUM_RESPONSES, max_tokens=16, seed=1)
    return [judge(with_weights(group), row) for row, group in enumerate(groups)]


def with_weights(group: Group) -> Group:
    responses = [
        replace(response, token_weights=tuple(0.5 + (place % 3) for place in range(len(response.token_ids or ()))))
        for response in group.responses
    ]
    return replace(group, responses=tuple(responses))


def judge(group: Group, row: int) -> Group:
    order = [(row + place) % NUM_RESPONSES for place in range(NUM_RESPONSES)]  # from best to worst
    pairs = [(better, worse) for place, better in enumerate(order) for worse in order[place + 1 :]]
    judgements = [
        *(Comparison(better=i, worse=j, strength=1.0 + order.index(j), judge="anne") for i, j in pairs),
        *(Comparison(better=i, worse=j, strength=1.0, judge="ben") for i, j in pairs[1:]),
        *(Rating(response=index, value=float(NUM_RESPONSES - place)) for place, index in enumerate(order)),
        *(Label(response=index, is_desirable=place == 0) for place, index in enumerate(order)),
    ]
    return replace(group, judgements=tuple(judgements), origin=f"rich:{row}", extra={"stratum": "ab"[row % 2]})


def stepwise_groups(n: int = 16) -> list[Group]:
    """Answers of two steps, each labelled."""
    return [
        Group(
            prompt=(Message(role="user", content="Add 1 and 2."),),
            responses=(Response(content=f"It is {row}.\nSo {row}."),),
            judgements=(Label(response=0, is_desirable=True, step=0), Label(response=0, is_desirable=row == 3, step=1)),
            origin=f"steps:{row}",
        )
        for row in range(n)
    ]


def settings_for(name: str) -> dict[str, Any]:
    """Return what a row asks of the settings beside its own."""
    spec, settings = OBJECTIVES[name], {"data.on_identical": "keep"}
    if Need.CRITICAL in spec.needs:
        settings |= {"critical.positive": str(toy_runs.BASE), "critical.negative": str(toy_runs.BASE)}
    return settings


def data_for(name: str) -> list[Group]:
    """Return groups that hold what a row needs."""
    return stepwise_groups() if Need.STEP_LABELS in OBJECTIVES[name].needs else rich_groups()


def one_of_each_kind() -> list[str]:
    """Return a row of each kind that a file can train: rows that read and carry the same take the same road."""
    found = {}
    for name, spec in OBJECTIVES.items():
        if spec.needs & SAMPLED:
            continue
        found.setdefault((spec.family, spec.needs, spec.level, spec.state is None, spec.reference), name)
    return list(found.values())
