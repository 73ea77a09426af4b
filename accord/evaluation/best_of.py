"""Best of K: how often a vote, a score or any of K responses is right, for one prompt and over many.

The functions take what was found out elsewhere: whether each response is right (None = unknown), its score, its answer.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from math import comb

Correct = Sequence[bool | None]


def pass_at_k(is_correct: Correct, k: int | None = None) -> float | None:
    """Return the chance that k of the n responses, drawn without replacement, hold a right one.

    1 − C(n − c, k) / C(n, k) with c right ones: the unbiased estimate of pass@k from n ≥ k samples. k defaults to n.
    None where a response's correctness is unknown. Source: Chen et al. 2021, arXiv:2107.03374, eq. 1.
    """
    n, k = len(is_correct), _checked(len(is_correct), k)
    if any(value is None for value in is_correct):
        return None
    num_correct = sum(map(bool, is_correct))
    return 1.0 - comb(n - num_correct, k) / comb(n, k)


def best_at_k(scores: Sequence[float], is_correct: Correct, k: int | None = None) -> float | None:
    """Return the chance that the best-scored of k of the n responses is right.

    k = n (the default) asks whether the best-scored is right. For k < n the mean over all C(n, k) choices is exact: the
    response ranked i-th from below is the best of C(i − 1, k − 1) of them. Of equal scores the earlier response wins.
    None where the answer depends on a response whose correctness is unknown.
    """
    n, k = len(scores), _checked(len(scores), k)
    _check_lengths(scores=n, is_correct=len(is_correct))
    if any(score != score for score in scores):
        raise ValueError("got a score that is nan — expected numbers: leave such responses out")
    from_below = sorted(range(n), key=lambda index: (scores[index], -index))
    total = 0.0
    for rank, index in enumerate(from_below):
        share = comb(rank, k - 1) / comb(n, k)
        value = is_correct[index]
        if share and value is None:
            return None
        total += share * bool(value)
    return total


def maj_at_k(
    answers: Sequence[Hashable | None],
    is_correct: Correct,
    k: int | None = None,
    *,
    is_equal: Callable[[Hashable, Hashable], bool | None] | None = None,
    weights: Sequence[float] | None = None,
) -> float | None:
    """Return whether the answer most of the first k responses give is right: 1.0 or 0.0, and 0.0 without any answer.

    Answers count as equal when they are or when `is_equal` says so (None = unknown counts as unequal); a response
    without an answer (None) has no vote. `weights` makes the vote a sum, such as of a reward model's scores. Of equal
    counts the answer given first wins. Whether the winner is right is what its first response is; None where unknown.
    """
    k = _checked(len(answers), k)
    _check_lengths(
        answers=len(answers), is_correct=len(is_correct), weights=len(answers if weights is None else weights)
    )
    votes: dict[Hashable, float] = {}
    first: dict[Hashable, int] = {}
    for index, answer in enumerate(answers[:k]):
        if answer is None:
            continue
        if answer not in votes and is_equal is not None:
            answer = next((known for known in votes if is_equal(known, answer)), answer)
        first.setdefault(answer, index)
        votes[answer] = votes.get(answer, 0.0) + (1.0 if weights is None else weights[index])
    if not votes:
        return 0.0
    winner = max(votes, key=lambda answer: (votes[answer], -first[answer]))
    value = is_correct[first[winner]]
    return None if value is None else float(value)


@dataclass(frozen=True, slots=True)
class PromptMean:
    """A mean over prompts: how many it is of, and how many were left out because the truth was unknown."""

    value: float
    num_prompts: int
    num_unknown: int


def mean_over_prompts(values: Iterable[float | None]) -> PromptMean:
    """Return the mean of what is known, with both counts. Raises ValueError where nothing is known."""
    listed = list(values)
    known = [value for value in listed if value is not None]
    if not known:
        raise ValueError(f"got {len(listed)} prompts and no known value — expected at least one")
    return PromptMean(sum(known) / len(known), len(known), len(listed) - len(known))


def _checked(n: int, k: int | None) -> int:
    k = n if k is None else k
    if not 1 <= k <= n:
        raise ValueError(f"got k = {k} of {n} responses — expected 1 ≤ k ≤ {n}")
    return k


def _check_lengths(**lengths: int) -> None:
    if len({*lengths.values()}) > 1:
        said = ", ".join(f"{count} {name}" for name, count in lengths.items())
        raise ValueError(f"got {said} — expected as many of each: one per response")
