"""How far a judge can be trusted: accuracy in both orders, bias of place and length, consistency (arXiv:2408.13006)."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

from accord.errors import FeedbackError
from accord.feedback.judges.pairwise import PairFinding
from accord.feedback.judges.prompts import Preferred, answer_text
from accord.records import Group

Mode = Literal["paper", "exact"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BothOrders:
    """A judge's verdicts of a pair whose better response is known: did it win shown first, and shown second?

    None = unreadable or tied; the pair is then left out, in both orders.
    """

    wins_shown_first: bool | None
    wins_shown_second: bool | None
    is_longer: bool  # the better response has more characters than the worse one

    @property
    def is_valid(self) -> bool:
        """Whether both orders have a verdict."""
        return self.wins_shown_first is not None and self.wins_shown_second is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reliability:
    """Accuracies are shares of the valid pairs; `_star` = with the judge's own noise taken out. None = not defined."""

    num_pairs: int
    num_valid: int
    accuracy_first: float | None  # better response shown first
    accuracy_second: float | None
    accuracy_both: float | None  # right in both orders
    accuracy_random: float | None  # one order per pair, drawn
    inconsistency: float | None  # the orders disagree
    flip_probability: float  # q: of a verdict against the judge's own belief
    accuracy_first_star: float | None
    accuracy_second_star: float | None
    accuracy_both_star: float | None
    position_bias: float | None  # accuracy_first_star − accuracy_second_star: > 0 = prefers what is shown first
    length_bias: float | None  # accuracy_both_star where the better is longer − where it is not: > 0 = prefers length

    @property
    def invalid_rate(self) -> float:
        """Share of the pairs without two verdicts."""
        return 1 - self.num_valid / self.num_pairs if self.num_pairs else 0.0


def self_consistency(repeats: Sequence[Sequence[Hashable]]) -> float:
    """Return the probability that two verdicts of the same question agree, unbiased, averaged over questions.

    Formula: Σ_c (n_c / K) (n_c − 1) / (K − 1) of K ≥ 2 repeats with n_c of verdict c.
    """
    if not repeats or any(len(row) < 2 for row in repeats):
        raise FeedbackError("got a question without two verdicts — expected at least two repeats of each question")
    return math.fsum(
        math.fsum(n * (n - 1) for n in Counter(row).values()) / (len(row) * (len(row) - 1)) for row in repeats
    ) / len(repeats)


def flip_probability(consistency: float, *, mode: Mode = "exact") -> float:
    """Return q, the probability that noise turns a verdict round, from a self-consistency p in [½, 1].

    If each of two verdicts is turned with probability q, they agree with p = (1 − q)² + q². mode "exact" inverts that,
    q = ½ (1 − √(2p − 1)); mode "paper" is what the authors' code has, q = 1 − p ≈ 2q, kept for comparison with their
    figures. Below p = ½ no q explains the verdicts: FeedbackError.
    """
    if not 0.5 <= consistency <= 1:
        raise FeedbackError(
            f"got a self-consistency of {consistency:.4g} — expected 0.5 to 1: below it verdicts are not a belief with "
            "independent noise — repeat more often, or lower the temperature"
        )
    return 1 - consistency if mode == "paper" else 0.5 * (1 - math.sqrt(2 * consistency - 1))


def without_noise(accuracy: float, flip: float) -> float | None:
    """Return (accuracy − q) / (1 − 2q), the accuracy of the belief behind verdicts; None at q = ½ (nothing is left)."""
    return None if flip == 0.5 else (accuracy - flip) / (1 - 2 * flip)


def measure_reliability(
    pairs: Sequence[BothOrders],
    *,
    repeats: Sequence[Sequence[Hashable]] = (),
    mode: Mode = "exact",
    seed: int = 0,
) -> Reliability:
    """Measure a judge on pairs whose better response is known, each judged in both orders.

    `repeats` holds repeated verdicts of the same questions, from which the noise q is estimated; without it q = 0.
    "Right in both orders" is a product of two noisy verdicts: mode "exact" takes the noise out of the 2×2 table of
    both verdicts, mode "paper" treats it as one verdict.
    """
    flip = flip_probability(self_consistency(repeats), mode=mode) if repeats else 0.0
    valid = [(bool(p.wins_shown_first), bool(p.wins_shown_second), p.is_longer) for p in pairs if p.is_valid]
    first, second = [(a, b) for a, b, _ in valid], random.Random(seed)
    picked = [a if second.random() < 0.5 else b for a, b in first]
    longer = _both_star([(a, b) for a, b, is_longer in valid if is_longer], flip, mode)
    not_longer = _both_star([(a, b) for a, b, is_longer in valid if not is_longer], flip, mode)
    accuracy_first, accuracy_second = _mean([a for a, _ in first]), _mean([b for _, b in first])
    star_first, star_second = _star(accuracy_first, flip), _star(accuracy_second, flip)
    return Reliability(
        num_pairs=len(pairs),
        num_valid=len(valid),
        accuracy_first=accuracy_first,
        accuracy_second=accuracy_second,
        accuracy_both=_mean([a and b for a, b in first]),
        accuracy_random=_mean(picked),
        inconsistency=_mean([a != b for a, b in first]),
        flip_probability=flip,
        accuracy_first_star=star_first,
        accuracy_second_star=star_second,
        accuracy_both_star=_both_star(first, flip, mode),
        position_bias=_difference(star_first, star_second),
        length_bias=_difference(longer, not_longer),
    )


def both_orders(group: Group, finding: PairFinding, *, better: int) -> BothOrders:
    """Read a judge's finding of a pair, shown in both orders, knowing which response is the better one.

    Raises FeedbackError for a finding of one order alone.
    """
    if len(finding.orders) != 2 or better not in finding.orders[0]:
        raise FeedbackError(
            f"got a finding shown in the orders {finding.orders} and better={better} — expected both orders of a pair "
            "that the better response is in (PairwiseJudge with swap=True)"
        )
    worse = next(index for index in finding.orders[0] if index != better)
    wins: dict[int, bool | None] = {}
    for place, order in enumerate(finding.orders):
        winner = _winner(finding, place)
        wins[order.index(better)] = None if winner is None else winner == better
    lengths = [len(answer_text(group, index)) for index in (better, worse)]
    return BothOrders(wins_shown_first=wins[0], wins_shown_second=wins[1], is_longer=lengths[0] > lengths[1])


def _winner(finding: PairFinding, place: int) -> int | None:
    first, second = finding.orders[place]
    if finding.log_odds:
        odds = finding.log_odds[place]
        return None if odds is None or odds == 0 else (first if odds > 0 else second)
    said = finding.preferred[place] if finding.preferred else None
    return {Preferred.FIRST: first, Preferred.SECOND: second}.get(said) if said is not None else None


def _mean(values: Sequence[bool]) -> float | None:
    return sum(values) / len(values) if values else None


def _star(accuracy: float | None, flip: float) -> float | None:
    return None if accuracy is None else without_noise(accuracy, flip)


def _both_star(verdicts: Sequence[tuple[bool, bool]], flip: float, mode: Mode) -> float | None:
    """P(believes the better one in both orders). Exact: (N⁻¹ ⊗ N⁻¹) of the table, N = [[1−q, q], [q, 1−q]]."""
    if not verdicts or flip == 0.5:
        return None
    if mode == "paper":
        return _star(_mean([a and b for a, b in verdicts]), flip)
    right, wrong = (1 - flip) / (1 - 2 * flip), -flip / (1 - 2 * flip)
    return math.fsum((right if a else wrong) * (right if b else wrong) for a, b in verdicts) / len(verdicts)


def _difference(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b
