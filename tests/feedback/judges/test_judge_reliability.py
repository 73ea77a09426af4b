"""Reliability of judges whose accuracy, bias and noise are known (online.md §4.14)."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from judge_simulators import LogOddsChat, SayingChat, WritingChat, numbers_group, write_pair_prompt

from accord.errors import FeedbackError
from accord.feedback.judges import PairwiseJudge, both_orders, measure_reliability
from accord.feedback.judges.reliability import BothOrders, flip_probability, self_consistency, without_noise


def pair(first: bool | None, second: bool | None, *, is_longer: bool = False) -> BothOrders:
    return BothOrders(wins_shown_first=first, wins_shown_second=second, is_longer=is_longer)


def test_a_fair_judge_without_noise_has_no_bias():
    """Right on 7 of 10 pairs in both orders, whichever is longer."""
    pairs = [pair(right, right, is_longer=longer) for longer in (True, False) for right in [True] * 7 + [False] * 3]
    found = measure_reliability(pairs, repeats=[["A"] * 5] * 4)
    assert found.accuracy_both == found.accuracy_random == found.accuracy_first == 0.7
    assert found.position_bias == pytest.approx(0.0)
    assert found.length_bias == pytest.approx(0.0)
    assert found.inconsistency == 0.0
    assert found.flip_probability == 0.0


def test_a_judge_that_always_takes_the_first(tmp_path: Path):
    """Accuracy 1 where the better one is shown first, 0 where second: bias of place 1, right in both orders never."""
    judge = PairwiseJudge(chat=SayingChat(["[[A]]"]), prompt=write_pair_prompt(tmp_path))
    groups = [numbers_group(float(i), 5.5) for i in range(10)]
    findings = judge.compare(groups)
    pairs = [
        both_orders(group, finding, better=0 if i > 5.5 else 1)
        for i, (group, (finding,)) in enumerate(zip(groups, findings, strict=True))
    ]
    found = measure_reliability(pairs)
    assert (found.accuracy_first, found.accuracy_second, found.accuracy_both) == (1.0, 0.0, 0.0)
    assert (found.position_bias, found.inconsistency, found.num_valid) == (1.0, 1.0, 10)


def test_a_judge_that_likes_length():
    """Right exactly where the better one is longer: 1 − 0."""
    pairs = [pair(longer, longer, is_longer=longer) for longer in (True, False, True, False)]
    assert measure_reliability(pairs).length_bias == 1.0
    assert measure_reliability(pairs[:1]).length_bias is None  # no pair of the other kind


def test_log_odds_are_read_by_their_side(tmp_path: Path):
    """d = ±1 and b = 2: the first place wins in both orders, log-odds 3 and 1 for it."""
    judge = PairwiseJudge(chat=LogOddsChat(bias=2.0), mode="logprobs", prompt=write_pair_prompt(tmp_path))
    group = numbers_group(1.0, 2.0)
    ((finding,),) = judge.compare([group])
    read = both_orders(group, finding, better=1)
    assert (read.wins_shown_first, read.wins_shown_second) == (True, False)
    assert finding.comparison is not None
    assert finding.comparison.better == 1  # and yet both orders together find the better one


def test_what_is_unreadable_or_tied_leaves_with_its_pair():
    found = measure_reliability([pair(True, None), pair(None, None), pair(True, True)])
    assert (found.num_pairs, found.num_valid, found.accuracy_first) == (3, 1, 1.0)
    assert found.invalid_rate == pytest.approx(2 / 3)
    empty = measure_reliability([])
    assert (empty.accuracy_both, empty.position_bias, empty.invalid_rate) == (None, None, 0.0)


def test_length_is_of_the_texts(tmp_path: Path):
    judge = PairwiseJudge(chat=WritingChat(), prompt=write_pair_prompt(tmp_path))
    group = numbers_group(100.0, 2.0)  # "100.0" has more characters than "2.0"
    ((finding,),) = judge.compare([group])
    assert both_orders(group, finding, better=0).is_longer
    assert not both_orders(group, finding, better=1).is_longer
    one_order = PairwiseJudge(chat=WritingChat(), swap=False, prompt=write_pair_prompt(tmp_path))
    ((finding,),) = one_order.compare([group])
    with pytest.raises(FeedbackError, match="both orders"):
        both_orders(group, finding, better=0)


def test_self_consistency_is_the_probability_of_agreeing_with_oneself():
    """Of AAAAB: (4·3 + 1·0) / (5·4) = 0.6; of AAAAA 1; their mean 0.8."""
    assert self_consistency(["AAAAB"]) == pytest.approx(0.6)
    assert self_consistency(["AAAAB", "AAAAA"]) == pytest.approx(0.8)
    with pytest.raises(FeedbackError, match="two repeats"):
        self_consistency(["A"])


@pytest.mark.parametrize(("q", "paper"), [(0.05, 0.095), (0.1, 0.18), (0.2, 0.32)])
def test_the_paper_s_noise_is_about_twice_the_true_one(q: float, paper: float):
    """Two verdicts agree with p = (1 − q)² + q²; 1 − p = 2q (1 − q) is what the authors' code takes for q."""
    consistency = (1 - q) ** 2 + q**2
    assert flip_probability(consistency, mode="paper") == pytest.approx(paper)
    assert flip_probability(consistency, mode="exact") == pytest.approx(q)


def test_pure_noise_has_nothing_behind_it():
    assert flip_probability(0.5) == 0.5
    assert without_noise(0.5, 0.5) is None
    assert without_noise(0.86, 0.1) == pytest.approx((0.86 - 0.1) / 0.8)
    with pytest.raises(FeedbackError, match=r"0\.4"):
        flip_probability(0.4)
    with pytest.raises(FeedbackError):
        flip_probability(math.nan)


@given(st.lists(st.floats(0, 1), min_size=4, max_size=4).filter(lambda x: sum(x) > 0.1), st.floats(0, 0.45))
def test_noise_is_taken_out_of_the_table_of_both_orders_exactly(weights: list[float], q: float):
    """Beliefs (first, second) with a known table; each verdict turned independently; linearity gives it back."""
    table = dict(zip([(a, b) for a in (True, False) for b in (True, False)], weights, strict=True))
    total = sum(weights)
    right, wrong = (1 - q) / (1 - 2 * q), -q / (1 - 2 * q)
    seen = {
        (a, b): sum(w / total * (1 - q if a == x else q) * (1 - q if b == y else q) for (x, y), w in table.items())
        for a, b in table
    }
    back = sum(p * (right if a else wrong) * (right if b else wrong) for (a, b), p in seen.items())
    assert back == pytest.approx(table[True, True] / total, abs=1e-9)


def test_simulated_noise_is_taken_out_within_monte_carlo_error():
    """True accuracy 0.8 in both orders, q = 0.15, n = 20000: as seen it is 0.8 · 0.85² + 0.2 · 0.15² = 0.5825."""
    rng, q, n = random.Random(3), 0.15, 20_000
    beliefs = [rng.random() < 0.8 for _ in range(n)]
    pairs = [pair(b != (rng.random() < q), b != (rng.random() < q)) for b in beliefs]
    repeats = [[b != (rng.random() < q) for _ in range(5)] for b in beliefs[:4000]]
    found = measure_reliability(pairs, repeats=repeats, mode="exact")
    assert found.accuracy_both == pytest.approx(0.5825, abs=0.015)
    assert found.flip_probability == pytest.approx(q, abs=0.01)
    assert found.accuracy_both_star == pytest.approx(0.8, abs=0.03)
    assert found.accuracy_first_star == pytest.approx(0.8, abs=0.03)
    assert found.position_bias == pytest.approx(0.0, abs=0.03)
    paper = measure_reliability(pairs, repeats=repeats, mode="paper")
    assert paper.flip_probability == pytest.approx(2 * q * (1 - q), abs=0.02)


def test_a_writing_judge_with_noise_is_measured_through_its_own_words(tmp_path: Path):
    """The whole way: conversations, written verdicts, both orders; a right belief turned round with q = 0.1."""
    judge = PairwiseJudge(chat=WritingChat(flip=0.1, seed=5), prompt=write_pair_prompt(tmp_path))
    groups = [numbers_group(1.0, 2.0, prompt=f"{i}") for i in range(1000)]
    pairs = [both_orders(group, row[0], better=1) for group, row in zip(groups, judge.compare(groups), strict=True)]
    found = measure_reliability(pairs)
    assert found.accuracy_first == pytest.approx(0.9, abs=0.03)
    assert found.accuracy_both == pytest.approx(0.81, abs=0.04)
    assert found.inconsistency == pytest.approx(0.18, abs=0.04)
