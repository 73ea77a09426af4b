"""Simulated annotators prefer with the probability their taste, temperature and noise imply."""

from __future__ import annotations

import math

import numpy as np
import pytest

from accord.errors import DataError
from accord.lab.annotators import (
    CASUAL_LOVER,
    FORMAL_LOVER,
    GOLD,
    LENGTH_LOVER,
    SimulatedAnnotator,
    annotator_panel,
    judge,
    judge_groups,
)
from accord.lab.text_world import Request, render_request, user_prompt
from accord.records import Comparison, FinishReason, Group, Message, Response

REQUEST = Request("bees", 2, "formally")


def answer(text: str, finish_reason: FinishReason = FinishReason.STOP) -> Response:
    return Response(content=(Message(role="assistant", content=text),), finish_reason=finish_reason)


BEST = answer("indeed bees make honey. also bees visit flowers.")  # gold 2.5
CASUAL = answer("lol bees make honey. also bees visit flowers.")  # gold 1.5
LONG = answer("indeed bees make honey. also bees visit flowers. also well also actually")  # L = 8: gold 2.5 − (4/6)²


def group_of(*responses: Response) -> Group:
    return Group(prompt=user_prompt(render_request(REQUEST)), responses=responses, origin="test:1")


def test_gold_annotator_is_bradley_terry_with_a_temperature() -> None:
    expected = 1 / (1 + math.exp(-(2.5 - 1.5) / 0.5))
    assert GOLD.preference_probability(REQUEST, BEST, CASUAL) == pytest.approx(expected, abs=1e-12)
    assert GOLD.preference_probability(REQUEST, CASUAL, BEST) == pytest.approx(1 - expected, abs=1e-12)
    assert GOLD.preference_probability(REQUEST, BEST, BEST) == 0.5


def test_no_overflow_and_no_noise_at_tiny_temperature() -> None:
    sharp = SimulatedAnnotator(temperature=1e-6)
    assert sharp.preference_probability(REQUEST, BEST, CASUAL) == 1.0
    assert sharp.preference_probability(REQUEST, CASUAL, BEST) == 0.0


def test_flips_mix_the_clean_probability_with_its_opposite() -> None:
    flipping = SimulatedAnnotator(temperature=1e-6, flip_rate=0.2)
    assert flipping.preference_probability(REQUEST, BEST, CASUAL) == pytest.approx(0.8)
    guessing = SimulatedAnnotator(flip_rate=0.5)
    assert guessing.preference_probability(REQUEST, BEST, CASUAL) == pytest.approx(0.5)


def test_tastes_replace_the_tone_that_was_asked_for() -> None:
    # without its tone term the two answers are worth 2.0 each; the taste of ±1.5 decides
    assert FORMAL_LOVER.utility(REQUEST, BEST) == pytest.approx(3.5)
    assert FORMAL_LOVER.utility(REQUEST, CASUAL) == pytest.approx(0.5)
    assert CASUAL_LOVER.utility(REQUEST, BEST) == pytest.approx(0.5)
    assert CASUAL_LOVER.utility(REQUEST, CASUAL) == pytest.approx(3.5)


def test_the_length_lover_overrates_filler() -> None:
    assert GOLD.preference_probability(REQUEST, LONG, BEST) < 0.5
    assert LENGTH_LOVER.preference_probability(REQUEST, LONG, BEST) > 0.5
    gap = LENGTH_LOVER.utility(REQUEST, LONG) - LENGTH_LOVER.utility(REQUEST, BEST)
    assert gap == pytest.approx(0.35 * 4 - (4 / 6) ** 2)


def test_being_cut_off_costs_one() -> None:
    cut = answer("indeed bees make honey. also bees visit flowers.", FinishReason.LENGTH)
    assert GOLD.utility(REQUEST, BEST) - GOLD.utility(REQUEST, cut) == pytest.approx(1.0)


def test_judged_frequencies_follow_the_probability_and_both_orders_are_shown() -> None:
    rng = np.random.default_rng(0)
    n = 4000
    seen = [judge(GOLD, REQUEST, [BEST, CASUAL], rng) for _ in range(n)]
    p = 1 / (1 + math.exp(-2))
    assert np.mean([c.better == 0 for c in seen]) == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / n))
    assert np.mean([c.shown_order == (0, 1) for c in seen]) == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(n))
    assert {c.judge for c in seen} == {"gold"}
    assert {c.is_tie for c in seen} == {False}


def test_groups_get_every_pair_or_as_many_as_asked() -> None:
    group = group_of(BEST, CASUAL, LONG, answer("yo"))
    (full,) = judge_groups([group], [GOLD], seed=0)
    assert {frozenset((c.better, c.worse)) for c in full.judgements} == {
        frozenset(pair) for pair in [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    }
    (some,) = judge_groups([full], [FORMAL_LOVER], seed=0, num_pairs=2)
    assert some.judgements[:6] == full.judgements
    added = some.judgements[6:]
    assert len({frozenset((c.better, c.worse)) for c in added if isinstance(c, Comparison)}) == 2
    assert {c.judge for c in added} == {"formal-lover"}
    assert all(set(c.shown_order) == {c.better, c.worse} for c in full.judgements)


def test_judging_is_reproducible() -> None:
    groups = [group_of(BEST, CASUAL), group_of(LONG, BEST)] * 20
    assert judge_groups(groups, [GOLD], seed=3) == judge_groups(groups, [GOLD], seed=3)
    assert judge_groups(groups, [GOLD], seed=3) != judge_groups(groups, [GOLD], seed=4)


def test_a_panel_splits_into_its_groups() -> None:
    panel = annotator_panel(0.8, size=10)
    names = [annotator.name for annotator in panel]
    assert sum(name.startswith("formal-lover") for name in names) == 8
    assert len(set(names)) == 10
    judged = judge_groups([group_of(BEST, CASUAL)] * 600, panel, seed=0)
    formal_wins = np.mean([group.judgements[0].better == 0 for group in judged])
    p = 1 / (1 + math.exp(-3 / 0.5))
    expected = 0.8 * p + 0.2 * (1 - p)
    assert formal_wins == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / 600))


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"temperature": 0.0}, "got temperature 0.0"), ({"flip_rate": 0.6}, "got flip_rate 0.6")],
)
def test_impossible_annotators_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        SimulatedAnnotator(**settings)


def test_bad_input_is_named() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(DataError, match=r"the pair \(0, 2\) of 2 responses"):
        judge(GOLD, REQUEST, [BEST, CASUAL], rng, pair=(0, 2))
    with pytest.raises(DataError, match=r"the pair \(1, 1\)"):
        judge(GOLD, REQUEST, [BEST, CASUAL], rng, pair=(1, 1))
    with pytest.raises(DataError, match="test:1: got one response"):
        judge_groups([group_of(BEST)], [GOLD], seed=0)
    with pytest.raises(DataError, match="no annotators"):
        judge_groups([group_of(BEST, CASUAL)], [], seed=0)
    with pytest.raises(DataError, match="decode it first"):
        judge(GOLD, REQUEST, [Response(token_ids=(1, 2)), BEST], rng)
    with pytest.raises(DataError, match="a share in"):
        annotator_panel(1.5)
