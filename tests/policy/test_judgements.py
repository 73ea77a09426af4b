"""Every kind of judgement as tensors; what is derived where the needed kind was not given."""

from __future__ import annotations

import pytest
import torch

from accord.data.tokens import TokenGroup, TokenResponse
from accord.errors import DataError
from accord.policy.judgements import (
    ANONYMOUS,
    Populations,
    behaviour_logps,
    judgement_tensors,
    labels,
    preferences,
    ratings,
    votes,
    win_fractions,
)
from accord.policy.mismatched import mismatched_groups
from accord.records import Comparison, Critique, Group, Judgement, Label, Outcome, Ranking, Rating, Response, Verdict


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


# Win fractions, and what the sampler said ----------------------------------------------------------------------------


def compared(better: int, worse: int, *, is_tie: bool = False) -> Comparison:
    return Comparison(better=better, worse=worse, is_tie=is_tie)


@pytest.mark.parametrize(
    ("judgements", "expected"),
    [
        ([compared(0, 1)], {(0, 1): 1.0, (1, 0): 0.0}),
        ([compared(0, 1), compared(0, 1), compared(1, 0)], {(0, 1): 2 / 3, (1, 0): 1 / 3}),  # votes are kept
        ([compared(0, 1), TIE], {(0, 1): 0.75, (1, 0): 0.25}),
        ([TIE, rated(0, 3.0), rated(1, 1.0)], {(0, 1): 0.5, (1, 0): 0.5}),  # what was compared goes first
        (
            [Ranking(order=((2,), (0, 1)))],
            {(2, 0): 1.0, (0, 2): 0.0, (2, 1): 1.0, (1, 2): 0.0, (0, 1): 0.5, (1, 0): 0.5},
        ),
        ([rated(0, 3.0), rated(1, 1.0)], {(0, 1): 1.0, (1, 0): 0.0}),
        ([rated(0, 2.0), rated(1, 2.0)], {(0, 1): 0.5, (1, 0): 0.5}),
        ([good(0), bad(1)], {(0, 1): 1.0, (1, 0): 0.0}),
        ([rated(0, 2.0)], {}),
        ([], {}),
    ],
)
def test_win_fractions(judgements, expected):
    assert win_fractions(judgements) == pytest.approx(expected)


def test_win_fractions_as_tensors_are_half_where_nobody_compared():
    found = judgement_tensors([group(3, compared(0, 1), compared(0, 1), compared(1, 0))], torch.zeros(1, 4))
    assert found["win_frac_PKK"][0, :2, :2].flatten().tolist() == pytest.approx([0.5, 2 / 3, 1 / 3, 0.5])
    assert found["is_compared_PKK"].nonzero().tolist() == [[0, 0, 1], [0, 1, 0]]
    assert (found["win_frac_PKK"][0, 2:] == 0.5).all()


def sampled(*logps: tuple[float, ...] | None, tokens: tuple[int, ...] = (5, 6), **changes) -> TokenGroup:
    """A group of sampled responses of two tokens, with what the sampler said of them."""
    responses = tuple(Response(token_ids=tokens, behaviour_logps=said) for said in logps)
    source = Group(prompt="", responses=responses, origin="file:7")
    encoded = tuple(TokenResponse(ids=tokens[:2], **changes) for _ in logps)
    return TokenGroup(prompt_ids=(2,), responses=encoded, source=source)


def test_the_samplers_log_probabilities_are_summed_over_the_same_tokens():
    groups = [sampled((-1.0, -0.5), (-2.0, -0.25)), sampled((-3.0, -1.0), is_trained=(False, True))]
    expected = [[-1.5, -2.25], [-1.0, 0.0]]  # 0 in the padding slot
    assert behaviour_logps(groups, torch.zeros(2, 2)).tolist() == expected
    cut = sampled((-1.0, -0.5, -7.0), tokens=(5, 6, 8), was_truncated=True)
    assert behaviour_logps([cut], torch.zeros(1, 1)).tolist() == [[-1.5]]


@pytest.mark.parametrize("said", [None, (-1.0,), (-1.0, -2.0, -3.0)])
def test_missing_log_probabilities_of_the_sampler_are_named(said):
    with pytest.raises(DataError, match=r"file:7: got \d behaviour_logps for a response of 2 tokens"):
        behaviour_logps([sampled(said)], torch.zeros(1, 1))
    with pytest.raises(DataError, match="got 0 behaviour_logps"):
        behaviour_logps([group(1)], torch.zeros(1, 1))


# -- who judged, and whom a group stands for ---------------------------------------------------------------------------


def by(judge: str | None, better: int, worse: int, **more: bool) -> Comparison:
    return Comparison(better=better, worse=worse, judge=judge, **more)


@pytest.mark.parametrize(
    ("judgements", "expected"),
    [
        ((), []),
        ((by("ann", 0, 1), by("bob", 1, 0)), [(0, 1, "ann"), (1, 0, "bob")]),  # no vote is counted yet
        ((by("ann", 0, 1), by("ann", 1, 0)), [(0, 1, "ann"), (1, 0, "ann")]),  # asked twice
        ((by(None, 0, 1), by("", 2, 1)), [(0, 1, ANONYMOUS), (2, 1, ANONYMOUS)]),
        ((by("ann", 0, 1, is_tie=True),), []),
        ((Ranking(order=((1,), (0, 2)), judge="ann"),), [(1, 0, "ann"), (1, 2, "ann")]),
        ((Rating(response=0, value=1, judge="ann"), Rating(response=1, value=4, judge="ann")), [(1, 0, "ann")]),
        ((Rating(response=0, value=1, judge="ann"), Rating(response=1, value=4, judge="bob")), []),  # other scales
        ((good(0), bad(1)), [(0, 1, ANONYMOUS)]),
        ((by("ann", 0, 1), rated(0, 1), rated(1, 5)), [(0, 1, "ann")]),  # where pairs were judged, they count
    ],
)
def test_votes(judgements: tuple[Judgement, ...], expected: list[tuple[int, int, str]]) -> None:
    assert votes(judgements) == expected


def in_stratum(name: str | None, *judgements: Judgement) -> TokenGroup:
    extra = {} if name is None else {"stratum": name}
    source = Group(prompt="x", responses=(Response(content="a"), Response(content="b")), extra=extra)
    return TokenGroup(
        prompt_ids=(2,), responses=(TokenResponse(ids=(4,)), TokenResponse(ids=(5,))), judgements=judgements,
        source=source,
    )  # fmt: skip


def test_populations_are_numbered_by_name_and_their_shares_counted() -> None:
    groups = [
        in_stratum("b", by("eve", 0, 1)), in_stratum("a", by("ann", 1, 0), by("eve", 0, 1)), in_stratum("b"),
        in_stratum("a", by("ann", 0, 1)), in_stratum("b", by("eve", 0, 1)), in_stratum("b", by("eve", 0, 1)),
    ]  # fmt: skip
    found = Populations.of(groups)
    assert (found.judges, found.strata, found.stratum_fracs) == (
        ("ann", "eve"),
        ("a", "b"),
        (0.25, 0.75),
    )  # no ties, no silence
    assert Populations.of(groups[::-1]) == found
    tensors = found.votes_of(groups, torch.device("cpu"))
    assert tensors.is_valid_PC[:3].tolist() == [[True, False], [True, True], [False, False]]
    assert tensors.judge_PC[:2].tolist() == [[1, 0], [0, 1]]
    assert tensors.better_PC[:2].tolist() == [[0, 0], [1, 0]]
    assert tensors.worse_PC[:2].tolist() == [[1, 0], [0, 1]]
    strata = found.strata_of(groups[:2], torch.zeros(2, 2, dtype=torch.float32), held_out=False)
    assert (strata["stratum_P"].tolist(), strata["stratum_frac_P"].tolist()) == ([1, 0], [0.75, 0.25])
    assert strata["stratum_frac_P"].dtype == torch.float32
    assert Populations.of([in_stratum(None)]) == Populations()
