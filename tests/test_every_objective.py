"""`accord align objective=NAME` for every row of the menu, on one file that holds every kind of judgement."""

from dataclasses import replace
from pathlib import Path

import pytest
import toy_runs
import torch

from accord.objectives import OBJECTIVES, Need
from accord.policy.load import load_policy
from accord.records import Comparison, Group, Label, Message, Rating, Response

NUM_RESPONSES = 3


def rich_groups(n: int = 8) -> list[Group]:
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


def stepwise_groups(n: int = 8) -> list[Group]:
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


@pytest.fixture(scope="module")
def groups() -> list[Group]:
    return rich_groups()


def settings_for(name: str) -> dict[str, object]:
    spec, settings = OBJECTIVES[name], {}
    if Need.CRITICAL in spec.needs:
        settings |= {"critical.positive": str(toy_runs.BASE), "critical.negative": str(toy_runs.BASE)}
    return settings


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_it_trains_on_a_file_that_holds_what_it_needs(name: str, groups: list[Group], tmp_path: Path) -> None:
    data = stepwise_groups() if Need.STEP_LABELS in OBJECTIVES[name].needs else groups
    done = toy_runs.run(
        data, tmp_path / "run", objective=name, train__max_steps=2, data__on_identical="keep",
        **{"train.write_rows": False, "train.lr": 1e-3, **settings_for(name)},
    )  # fmt: skip
    losses = toy_runs.losses_of(tmp_path / "run")
    assert len(losses) == 2
    assert all(loss == loss and abs(loss) < 1e6 for loss in losses)
    assert done.summary["eval_after"]["loss"] != done.summary["eval_before"]["loss"], "the weights moved"
    start = load_policy(toy_runs.BASE)
    moved = [
        not torch.equal(p, q)
        for (n, p), (m, q) in zip(
            start.causal_lm.base_model.named_parameters(), done.policy.causal_lm.base_model.named_parameters(),
            strict=True,
        )
    ]  # fmt: skip
    assert any(moved)
