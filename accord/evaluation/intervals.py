"""How sure a number is: intervals for rates, means, differences and anything that can be resampled.

All functions take plain arrays and return an `Interval`. Scores and judgements are taken as independent draws; where
several belong to one prompt, use `clustered_mean_interval` or resample prompts with `bootstrap_interval`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with the ends of its confidence interval and the number of independent observations behind it."""

    value: float
    low: float
    high: float
    count: int
    confidence: float = 0.95

    def __post_init__(self) -> None:
        if not 0 < self.confidence < 1:
            raise ValueError(f"got a confidence of {self.confidence} — expected a number between 0 and 1")
        assert not self.low > self.high, f"the ends of an interval are the wrong way round: {self.low} > {self.high}"

    def __str__(self) -> str:
        spread = self.high - self.low
        # two significant digits of the interval's width: more would be noise, fewer would hide it
        digits = 3 if not spread > 0 or math.isinf(spread) else max(0, 1 - math.floor(math.log10(spread)))
        ends = f"{self.low:.{digits}f}, {self.high:.{digits}f}"
        return f"{self.value:.{digits}f} [{ends}] (n = {self.count})"

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval lies on one side of 0."""
        return self.low > 0 or self.high < 0

    def as_dict(self, name: str) -> dict[str, float]:
        """Return `{name, name_low, name_high}`, the form in which metrics carry an interval."""
        return {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}


def wilson(successes: float, total: int, confidence: float = 0.95) -> Interval:
    """Return Wilson's score interval for a rate; a tie may count as half a success.

    With p = successes/total and z the normal quantile, the centre is (p + z²/2n)/(1 + z²/n) and the half-width is
    z/(1 + z²/n) · √(p(1−p)/n + z²/4n²). It stays inside [0, 1] and is honest at 0 and n, where p ± z·se is not.
    With no observation the rate is nan and the interval [0, 1]. Source: Wilson (1927), J. Am. Stat. Assoc. 22.
    """
    from scipy import special

    if total < 0 or not 0 <= successes <= total:
        raise ValueError(f"got {successes} successes of {total} — expected 0 ≤ successes ≤ total")
    if total == 0:
        return Interval(math.nan, 0.0, 1.0, 0, confidence)
    rate = successes / total
    z = float(special.ndtri((1 + confidence) / 2))
    shrink = 1 + z * z / total
    centre = (rate + z * z / (2 * total)) / shrink
    half = z / shrink * math.sqrt(rate * (1 - rate) / total + z * z / (4 * total * total))
    # at the ends the bound is the end itself; rounding must not move it inside
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == total else min(1.0, centre + half)
    return Interval(rate, low, high, total, confidence)


def mean_interval(values: ArrayLike, confidence: float = 0.95) -> Interval:
    """Return the mean with Student's interval, mean ± t(n−1) · s/√n.

    One observation says nothing about the spread: its interval is (−∞, ∞). No observation gives nan.
    """
    sample = _as_sample(values)
    return _student(sample, degrees=len(sample) - 1, variance_of_mean=_variance_of_mean(sample), confidence=confidence)


def paired_difference(after: ArrayLike, before: ArrayLike, confidence: float = 0.95) -> Interval:
    """Return the mean of after − before over the same items, with Student's interval of the differences."""
    first, second = _as_sample(after), _as_sample(before)
    if len(first) != len(second):
        raise ValueError(f"got {len(first)} and {len(second)} values — expected the same items before and after")
    return mean_interval(first - second, confidence)


def clustered_mean_interval(values: ArrayLike, clusters: ArrayLike, confidence: float = 0.95) -> Interval:
    """Return the mean over all values with an interval that knows which of them belong together (to one prompt).

    The variance of the mean is C/(C−1) · Σ_c (Σ_{i∈c} (x_i − x̄))² / n², the cluster-robust one, and Student's
    quantile has C − 1 degrees of freedom. `count` is the number of clusters C.
    """
    sample = _as_sample(values)
    labels = np.unique(np.asarray(clusters), return_inverse=True)[1]
    if len(labels) != len(sample):
        raise ValueError(f"got {len(sample)} values and {len(labels)} clusters — expected one cluster per value")
    num_clusters = int(labels.max()) + 1 if len(labels) else 0
    if num_clusters == 0:
        return Interval(math.nan, -math.inf, math.inf, 0, confidence)
    sums = np.bincount(labels, weights=sample - sample.mean())
    correction = num_clusters / max(num_clusters - 1, 1)  # a single cluster has no degrees of freedom: see _student
    variance = correction * float(np.square(sums).sum()) / len(sample) ** 2
    interval = _student(sample, degrees=num_clusters - 1, variance_of_mean=variance, confidence=confidence)
    return Interval(interval.value, interval.low, interval.high, num_clusters, confidence)


def bootstrap_interval(
    values: ArrayLike,
    statistic: Callable[[NDArray[np.float64]], float] = np.mean,  # pyright: ignore[reportArgumentType] -- numpy overloads it
    *,
    seed: int,
    num_resamples: int = 2000,
    confidence: float = 0.95,
) -> Interval:
    """Return a statistic of `values` with its percentile bootstrap interval.

    `values` has one item per independent unit along its first axis (for paired or clustered data: one row per prompt);
    units are drawn with replacement and `statistic` is computed of each draw. The same seed gives the same interval.
    """
    sample = np.asarray(values, dtype=np.float64)
    if len(sample) == 0:
        return Interval(math.nan, -math.inf, math.inf, 0, confidence)
    generator = np.random.default_rng(seed)
    draws = [
        float(statistic(sample[generator.integers(0, len(sample), size=len(sample))])) for _ in range(num_resamples)
    ]
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Interval(float(statistic(sample)), float(low), float(high), len(sample), confidence)


def _as_sample(values: ArrayLike) -> NDArray[np.float64]:
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1:
        raise ValueError(f"got values of shape {sample.shape} — expected one axis")
    return sample


def _variance_of_mean(sample: NDArray[np.float64]) -> float:
    return float(sample.var(ddof=1)) / len(sample) if len(sample) > 1 else math.inf


def _student(sample: NDArray[np.float64], *, degrees: int, variance_of_mean: float, confidence: float) -> Interval:
    from scipy import special

    if len(sample) == 0:
        return Interval(math.nan, -math.inf, math.inf, 0, confidence)
    mean = float(sample.mean())
    if degrees < 1:
        return Interval(mean, -math.inf, math.inf, len(sample), confidence)
    half = float(special.stdtrit(degrees, (1 + confidence) / 2)) * math.sqrt(variance_of_mean)
    return Interval(mean, mean - half, mean + half, len(sample), confidence)
