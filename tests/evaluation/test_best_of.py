"""Best of K: by enumeration, by hand, and the published figures of a real best-of-8."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accord.evaluation.best_of import best_at_k, maj_at_k, mean_over_prompts, pass_at_k
from accord.feedback.verifiers import equivalent, final_answer

FLAGS = st.lists(st.booleans(), min_size=1, max_size=7)


def test_pass_at_k_by_hand() -> None:
    # two right of four: no right one among two draws in C(2, 2) = 1 of C(4, 2) = 6 cases
    assert pass_at_k([True, False, True, False], 2) == pytest.approx(1 - 1 / 6)
    assert pass_at_k([True, False, False, False], 1) == pytest.approx(1 / 4)
    assert pass_at_k([False, True]) == 1.0
    assert pass_at_k([False, False]) == 0.0
    assert pass_at_k([True, None]) is None


@given(FLAGS, st.data())
def test_pass_and_best_are_means_over_all_choices(flags: list[bool], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(flags)))
    scores = data.draw(st.lists(st.sampled_from([0.0, 1.0, 2.0]), min_size=len(flags), max_size=len(flags)))
    choices = list(combinations(range(len(flags)), k))
    any_right = [any(flags[i] for i in choice) for choice in choices]
    best_right = [flags[max(choice, key=lambda i: (scores[i], -i))] for choice in choices]
    assert pass_at_k(flags, k) == pytest.approx(sum(any_right) / len(choices))
    assert best_at_k(scores, flags, k) == pytest.approx(sum(best_right) / len(choices))


def test_best_at_k_needs_only_what_can_be_chosen() -> None:
    assert best_at_k([1.0, 2.0], [None, True]) == 1.0
    assert best_at_k([1.0, 2.0], [None, True], 1) is None
    assert best_at_k([2.0, 2.0], [True, False]) == 1.0  # equal scores: the first


def test_a_vote_by_hand() -> None:
    assert maj_at_k(["4", "5", "5"], [True, False, False]) == 0.0
    assert maj_at_k(["4", "5", "4"], [True, False, True]) == 1.0
    assert maj_at_k(["4", "5"], [True, False]) == 1.0  # equal counts: the first
    assert maj_at_k([None, None, "4"], [False, False, True]) == 1.0
    assert maj_at_k([None], [False]) == 0.0
    assert maj_at_k(["4", "5", "5"], [True, False, False], 2) == 1.0
    assert maj_at_k(["5", "4", "4.0"], [False, True, True], is_equal=lambda a, b: float(str(a)) == float(str(b))) == 1.0
    assert maj_at_k(["5", "5", "4"], [False, False, True], weights=[0.1, 0.1, 0.9]) == 1.0
    assert maj_at_k(["4", "5"], [None, True]) is None


def test_wrong_counts_are_refused() -> None:
    for k in (0, 3):
        with pytest.raises(ValueError, match=f"k = {k} of 2"):
            pass_at_k([True, False], k)
    with pytest.raises(ValueError, match="2 answers, 1 is_correct"):
        maj_at_k(["4", "5"], [True])
    with pytest.raises(ValueError, match="nan"):
        best_at_k([float("nan")], [True])
    with pytest.raises(ValueError, match="no known value"):
        mean_over_prompts([None])


def test_a_mean_says_what_it_left_out() -> None:
    mean = mean_over_prompts([1.0, None, 0.0])
    assert (mean.value, mean.num_prompts, mean.num_unknown) == (0.5, 2, 1)


def test_the_published_best_of_8(shared_data: Path) -> None:
    """100 problems of MATH × 8 solutions, their published correctness and reward-model scores; answers read by us."""
    lines = (shared_data / "math_misc" / "math_cot_100_bon8_rm.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    answers = [[final_answer(text) for text in row["code"]] for row in rows]
    scores = [[score for (score,) in row["pred_score"]] for row in rows]

    def is_equal(one: object, other: object) -> bool | None:
        return equivalent(str(one), str(other), timeout_seconds=120)

    votes = [maj_at_k(given, row["score"], is_equal=is_equal) for given, row in zip(answers, rows, strict=True)]
    best = [best_at_k(given, row["score"]) for given, row in zip(scores, rows, strict=True)]
    assert mean_over_prompts(votes).value == pytest.approx(0.93)
    assert mean_over_prompts(best).value == pytest.approx(0.94)
    assert mean_over_prompts(pass_at_k(row["score"]) for row in rows).value == pytest.approx(0.96)
    assert mean_over_prompts(pass_at_k(row["score"], 1) for row in rows).value == pytest.approx(0.91)
