"""What best-of-N is worth: its exact law, its price in KL, and estimates from more samples than N. Plain numpy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Side = Literal["best", "worst"]


def kl_bound(n: int) -> float:
    """Return log N − (N − 1)/N, an upper bound of KL(best-of-N ‖ π_ref) in nats; equality without ties or atoms.

    Source: Beirami et al. 2024, arXiv:2401.01879.
    """
    _check_n(n, n)
    return math.log(n) - (n - 1) / n


def best_of_n_law(reference: ArrayLike, rewards: ArrayLike, n: int, *, side: Side = "best") -> Floats:
    """Return the distribution of the best (worst) of N draws over enumerable responses.

    F(r)^N − F(r⁻)^N, F the reference's distribution of rewards; tied responses share their mass in proportion to the
    reference's.
    """
    _check_n(n, n)
    probabilities, scores = np.asarray(reference, dtype=float), np.asarray(rewards, dtype=float)
    if side == "worst":
        scores = -scores
    law = np.zeros_like(probabilities)
    for level in np.unique(scores):
        tied = scores == level
        mass = probabilities[tied].sum()
        below = probabilities[scores < level].sum()
        law[tied] = ((below + mass) ** n - below**n) * probabilities[tied] / mass if mass else 0.0
    return law


def order_weights(num_samples: int, n: int) -> Floats:
    """Return C(j − 1, N − 1)/C(M, N) for j = 1 … M: how often the j-th smallest of M is the best of N."""
    _check_n(n, num_samples)
    whole = math.comb(num_samples, n)
    return np.array([math.comb(j - 1, n - 1) / whole for j in range(1, num_samples + 1)])


def best_of_n_mean(
    scores: Sequence[float], n: int, *, values: Sequence[float] | None = None, side: Side = "best"
) -> float:
    """Return the unbiased estimate of E[value of the best-of-N by score] from M ≥ N samples of one prompt.

    `values` (another reward of the same samples, such as the gold one) default to the scores. It is the mean over all
    N-subsets: N = M picks the best, N = 1 is the plain mean. Samples with equal scores share their weights.
    """
    by_score = np.asarray(scores, dtype=float) * (1 if side == "best" else -1)
    target = np.asarray(scores if values is None else values, dtype=float)
    if by_score.shape != target.shape or not np.isfinite(by_score).all():
        raise ValueError(f"got {len(by_score)} scores, {len(target)} values — expected as many finite ones of each")
    weights = order_weights(len(by_score), n)
    order = np.argsort(by_score, kind="stable")
    ordered = by_score[order]
    total = 0.0
    for level in np.unique(ordered):
        tied = ordered == level
        total += weights[tied].sum() * target[order][tied].mean()
    return float(total)


def _check_n(n: int, num_samples: int) -> None:
    if not 1 <= n <= num_samples:
        raise ValueError(f"got N = {n} of {num_samples} samples — expected 1 ≤ N ≤ the number of samples")
