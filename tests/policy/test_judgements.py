"""Every kind of judgement as tensors; what is derived where the needed kind was not given."""

from __future__ import annotations

import pytest
import torch

from accord.data.tokens import TokenGroup, TokenResponse
from accord.policy.judgements import judgement_tensors, labels, preferences, ratings
from accord.policy.mismatched import mismatched_groups
from accord.records import Comparison, Critique, Judgement, Label, Outcome, Ranking, Rating, Verdict


def group(num_responses: int, *judgements: Judgement, prompt: tuple[int, ...] = (2, 3)) -> TokenGroup:
    responses = tuple(TokenResponse(ids=(4 + i,)) for i in range(num_responses))
    return TokenGroup(prompt_ids=prompt, responses=responses, judgements=judgements)


def good(index: int) -> Label:
    return Label(response=index, is_desirable=True)


def bad(index: int) -> Label:
    return Label(response=index, is_desirable=False)


def rated(index: int, value: float, attribute: str = "overall") -> Rating:
    return Rating(response=index, value=value, attribute=attribute)


def verdict(index: int, outcome: Outcome) -> Verdict:
    return Verdict(response=index, outcome=outcome)


TIE = Comparison(better=0, worse=1, is_tie=True)


@pytest.mark.parametrize(
    ("judgements", "expected"),
    [
        ((), {}),
        ((Comparison(better=1, worse=0),), {(1, 0): 0.0}),
        ((Comparison(better=1, worse=0, strength=2.5),), {(1, 0): 2.5}),
        ((TIE,), {}),
        ((TIE, rated(0, 1), rated(1, 5)), {}),  # asked directly, the judge said: equal
        ((Ranking(order=((2,), (0,), (1,))),), {(2, 0): 0.0, (2, 1): 0.0, (0, 1): 0.0}),
        ((Ranking(order=((0, 2), (1,))),), {(0, 1): 0.0, (2, 1): 0.0}),  # tied members say nothing of each other
        ((rated(0, 1), rated(1, 4), rated(2, 4)), {(1, 0): 3.0, (2, 0): 3.0}),
        ((good(0), bad(1), good(2)), {(0, 1): 1.0, (2, 1): 1.0}),
        ((verdict(0, Outcome.PASS), verdict(1, Outcome.FAIL)), {(0, 1): 1.0}),
        ((verdict(0, Outcome.PASS), verdict(1, Outcome.UNKNOWN)), {}),
        ((Comparison(better=0, worse=1), rated(0, 1), rated(1, 5)), {(0, 1): 0.0}),  # the comparison counts
        ((Label(response=0, is_desirable=True, step=0), Label(response=1, is_desirable=False, step=0)), {}),
        ((Critique(response=0, text="too long"),), {}),
    ],
)
def test_preferences(judgements: tuple[Judgement, ...], expected: dict[tuple[int, int], float]) -> None:
    assert preferences(judgements) == expected


@pytest.mark.parametrize(
    ("judgements", "expected"),
    [
        ((), {}),
        ((good(0), bad(2)), {0: True, 2: False}),
        ((verdict(0, Outcome.PASS), verdict(1, Outcome.FAIL), verdict(2, Outcome.UNKNOWN)), {0: True, 1: False}),
        ((Comparison(better=1, worse=0),), {1: True, 0: False}),
        ((Ranking(order=((2,), (0,), (1,))),), {2: True, 1: False}),  # the middle one wins one and loses one
        ((TIE,), {}),
        ((Comparison(better=1, worse=0), bad(1)), {1: False}),  # a given label is not overruled or completed
        ((Label(response=0, is_desirable=True, step=3),), {}),  # one step is not the response
    ],
)
def test_labels(judgements: tuple[Judgement, ...], expected: dict[int, bool]) -> None:
    assert labels(judgements, preferences(judgements)) == expected


@pytest.mark.parametrize(
    ("judgements", "expected"),
    [
        ((), {}),
        ((rated(0, 1), rated(0, 4), rated(1, 2)), {0: 2.5, 1: 2.0}),  # the mean over judges
        ((rated(0, 5, "honesty"), rated(0, 1, "overall")), {0: 1.0}),
        ((rated(0, 5, "honesty"), rated(0, 1, "helpfulness")), {0: 3.0}),
        ((verdict(0, Outcome.PASS), verdict(1, Outcome.FAIL), verdict(2, Outcome.UNKNOWN)), {0: 1.0, 1: 0.0}),
        ((verdict(0, Outcome.PASS), rated(1, 0.25)), {1: 0.25}),  # two scales are not mixed
    ],
)
def test_ratings(judgements: tuple[Judgement, ...], expected: dict[int, float]) -> None:
    assert ratings(judgements) == expected


def test_tensors_of_ragged_groups() -> None:
    groups = [
        group(2, Comparison(better=1, worse=0, strength=0.5)),
        group(3, rated(0, 1.0), rated(1, -2.0)),
        group(1, bad(0)),
    ]
    found = judgement_tensors(groups, torch.zeros(3, 3, dtype=torch.float32))
    assert found["preferred_PKK"].nonzero().tolist() == [[0, 1, 0], [1, 0, 1]]
    assert found["strength_PKK"][0, 1, 0].item() == 0.5
    assert found["strength_PKK"][1, 0, 1].item() == 3.0
    assert int((found["strength_PKK"] != 0).sum()) == 2
    assert found["is_labelled_PK"].tolist() == [[True, True, False], [True, True, False], [True, False, False]]
    assert (found["desirable_PK"] & found["is_labelled_PK"]).tolist() == [
        [False, True, False],
        [True, False, False],
        [False, False, False],
    ]
    assert found["is_rated_PK"].tolist() == [[False] * 3, [True, True, False], [False] * 3]
    assert found["reward_PK"][1].tolist() == [1.0, -2.0, 0.0]
    assert found["reward_PK"].dtype == found["strength_PKK"].dtype == torch.float32


def test_mismatched_prompts() -> None:
    """Each prompt takes the first response of the next group with another prompt, around the end of the batch."""
    batch = [group(1, prompt=(2,)), group(2, prompt=(2,)), group(1, prompt=(7,)), group(1, prompt=(8,))]
    for place, one in enumerate(batch):
        object.__setattr__(one, "responses", (TokenResponse(ids=(50 + place,)),))
    pairs = [(pair.prompt_ids, pair.responses[0].ids) for pair in mismatched_groups(batch)]
    assert pairs == [((2,), (52,)), ((2,), (52,)), ((7,), (53,)), ((8,), (50,))]
    assert mismatched_groups(batch[:2]) == []
    assert mismatched_groups([]) == []


def test_several_judges_are_a_vote() -> None:
    """Nine of ten raters decide; five against five decide nothing; strengths are the majority's mean."""
    for_first = [Comparison(better=0, worse=1, strength=float(value)) for value in range(1, 10)]
    against = [Comparison(better=1, worse=0, strength=50.0)]
    assert preferences(for_first + against) == {(0, 1): 5.0}
    assert preferences(for_first[:5] + against * 5) == {}
    assert preferences([Ranking(order=((0,), (1,), (2,))), Ranking(order=((1,), (0,), (2,)))]) == {
        (0, 2): 0.0,
        (1, 2): 0.0,
    }
    up, down = Label(response=0, is_desirable=True), Label(response=0, is_desirable=False)
    assert labels([up] * 9 + [down], {}) == {0: True}
    assert labels([up, down], {}) == {}
