"""Rewards made of parts: what the total is, what is recorded, and that nothing unknown becomes a number."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from accord.errors import ConfigError, FeedbackError
from accord.feedback.composition.combine import Composition, Part, log_sigmoid, z_scores
from accord.feedback.findings import Finding
from accord.records import Group, Response


class Given:
    """A reward whose scores are written in the group: column `name`, one number per response (None = unknown)."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, groups):
        return [
            [Finding(score=value, reason="" if value is not None else "timeout") for value in group.extra[self.name]]
            for group in groups
        ]


def group(**scores: list[float | None]) -> Group:
    """A group with as many responses as scores."""
    count = len(next(iter(scores.values())))
    return Group(prompt="p", responses=tuple(Response(content=f"r{i}") for i in range(count)), extra=scores)


def parts(*names: str, **changes) -> tuple[Part, ...]:
    return tuple(Part(name=name, source=Given(name), **changes) for name in names)


def totals(composition: Composition, one: Group) -> list[float | None]:
    return [finding.score for finding in composition([one])[0]]


def test_a_weighted_sum_and_its_parts():
    a, b = parts("a", "b")
    composition = Composition(parts=(replace(a, weight=2.0), replace(b, weight=-0.5)))
    found = composition([group(a=[1.0, 0.0], b=[4.0, 2.0])])[0]
    assert [finding.score for finding in found] == [2 * 1 - 0.5 * 4, -0.5 * 2]
    assert found[0].parts == {"a": 1.0, "b": 4.0}


def test_parts_of_parts_are_recorded_under_both_names():
    class Nested(Given):
        def __call__(self, groups):
            return [[Finding(score=1.0, parts={"raw": 7.0})]]

    found = Composition(parts=(Part(name="m", source=Nested("m")),))([group(m=[1.0])])
    assert found[0][0].parts == {"m": 1.0, "m/raw": 7.0}


@pytest.mark.parametrize(
    ("on_unknown", "expected"),
    [
        ("unknown", [3.0, None, None, None]),
        ("leave_out", [3.0, 2 * 3 / 2, 1 * 3 / 1, None]),  # b alone, scaled by 3/2; a alone, by 3/1
        ("worst", [3.0, 3.0, 3.0, 3.0]),  # the lowest known a and b are 1
    ],
)
def test_an_unknown_part_is_never_zero(on_unknown, expected):
    one = group(a=[1.0, None, 1.0, None], b=[1.0, 1.0, None, None])
    a, b = parts("a", "b")
    composition = Composition(parts=(replace(a, weight=1.0), replace(b, weight=2.0)), on_unknown=on_unknown)
    assert totals(composition, one) == expected


def test_what_is_unknown_says_why_and_stays_in_the_parts():
    found = Composition(parts=parts("a", "b"))([group(a=[1.0], b=[None])])[0][0]
    assert (found.score, found.reason, found.parts) == (None, "b: timeout", {"a": 1.0, "b": None})


def test_worst_of_nothing_known_is_unknown():
    assert totals(Composition(parts=parts("a"), on_unknown="worst"), group(a=[None, None])) == [None, None]


def test_a_part_without_weight_is_only_recorded():
    a, b = parts("a", "b")
    composition = Composition(parts=(a, replace(b, weight=0.0)))
    assert totals(composition, group(a=[1.0], b=[None])) == [1.0]


def test_a_number_that_is_none_is_unknown():
    found = Composition(parts=parts("a"))([group(a=[float("nan"), float("inf"), 1.0])])[0]
    assert [finding.score for finding in found] == [None, None, 1.0]
    assert "no number" in found[0].reason


def test_a_closed_gate_gives_its_value_whatever_the_rest_says():
    (gate,) = parts("format", is_gate=True, weight=0.0)
    composition = Composition(parts=(gate, *parts("right")), closed=-1.0)
    one = group(format=[1.0, 0.0, 0.0, None], right=[1.0, 1.0, None, 1.0])
    assert totals(composition, one) == [1.0, -1.0, -1.0, None]


def test_a_product_and_a_minimum():
    one = group(a=[0.5, 2.0], b=[4.0, 3.0])
    assert totals(Composition(parts=parts("a", "b"), combine="product"), one) == [2.0, 6.0]
    a, b = parts("a", "b")
    weighted = Composition(parts=(a, replace(b, weight=0.25)), combine="min")
    assert totals(weighted, one) == [min(0.5, 1.0), min(2.0, 0.75)]


def test_lexicographic_parts_count_until_the_first_that_fails():
    composition = Composition(parts=parts("format", "right", "short"), combine="lexicographic")
    one = group(format=[1.0, 1.0, 0.0, 0.0, 1.0], right=[1.0, 0.5, 1.0, None, None], short=[0.7, 0.7, 0.7, None, 0.7])
    # all three; right stays below 1, so short is not looked at; format fails first, known or not what follows
    assert totals(composition, one) == [2.7, 1.5, 0.0, 0.0, None]


def test_the_scale_of_an_objective_changes_a_sum_and_not_a_normalised_sum():
    one, scaled = group(a=[0.0, 1.0, 2.0], b=[2.0, 0.0, 1.0]), group(a=[0.0, 100.0, 200.0], b=[2.0, 0.0, 1.0])
    plain, normalised = (Composition(parts=parts("a", "b"), combine=combine) for combine in ("sum", "normalised_sum"))
    assert totals(normalised, scaled) == pytest.approx(totals(normalised, one), abs=1e-3)  # ε against the deviation
    assert z_scores(totals(plain, scaled)) != pytest.approx(z_scores(totals(plain, one)), abs=0.1)
    # a: (−1, 0, 1)/(1 + ε), b: (1, −1, 0)/(1 + ε)
    assert totals(normalised, one) == pytest.approx([0.0, -1 / 1.0001, 1 / 1.0001])


def test_unknown_scores_do_not_enter_a_groups_mean():
    assert z_scores([1.0, None, 3.0]) == [pytest.approx(-1 / (2**0.5 + 1e-4)), None, pytest.approx(1 / (2**0.5 + 1e-4))]
    assert z_scores([5.0]) == [0.0]
    assert z_scores([None]) == [None]


def test_log_sigmoid_is_close_to_a_logical_and():
    (good,) = parts("a", reference_score=0.0)
    (other,) = parts("b", reference_score=0.0)
    composition = Composition(parts=(good, other), combine="log_sigmoid")
    both, one = totals(composition, group(a=[2.0, 8.0], b=[2.0, -4.0]))
    assert both == pytest.approx(2 * -math.log1p(math.exp(-2)))
    assert both > one  # the sum of scores would say the same of both: 4 = 4
    assert log_sigmoid(-1000.0) == -1000.0


def test_log_sigmoid_takes_the_groups_quantile_for_a_reference():
    composition = Composition(parts=parts("a"), combine="log_sigmoid", quantile=0.5)
    assert totals(composition, group(a=[0.0, 1.0, 2.0])) == pytest.approx([log_sigmoid(x) for x in (-1.0, 0.0, 1.0)])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"parts": ()}, "without a weight"),
        ({"parts": parts("a", "a")}, "each name once"),
        ({"combine": "add"}, "one of sum, product"),
        ({"parts": parts("a", weight=2.0), "combine": "product"}, "in a product"),
        ({"parts": parts("a", weight=float("nan"))}, "finite"),
        ({"quantile": 2.0}, "share from 0 to 1"),
        ({"parts": (Part(name="a"),)}, "either a source or a shaping"),
        ({"parts": (*parts("a"), Part(name="s", shaping=lambda g, f: [], of="z"))}, "which are: a"),
    ],
)
def test_what_does_not_fit_together_is_refused(changes, said):
    with pytest.raises(ConfigError, match=said):
        Composition(**{"parts": parts("a"), **changes})


def test_a_part_that_loses_count_is_refused():
    class Short(Given):
        def __call__(self, groups):
            return [[]]

    with pytest.raises(FeedbackError, match="one per response"):
        Composition(parts=(Part(name="s", source=Short("s")),))([group(a=[1.0])])
