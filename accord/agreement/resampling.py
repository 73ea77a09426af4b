"""Bootstrap over prompts, for every statistic that is a function of sums over prompts.

Axes: B draws (the first is the sample itself), C clusters (prompts), F features that are summed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from accord.agreement.values import Estimate

Floats = NDArray[np.float64]
Clusters = NDArray[np.int64]
_CHUNK = 4_000_000  # numbers held at once


class Resamples:
    """Draws of clusters with replacement; all that is judged about one prompt is drawn together."""

    def __init__(self, num_clusters: int, *, num_resamples: int, confidence: float, seed: int) -> None:
        generator = np.random.default_rng(seed)
        self.confidence = confidence
        self.counts_BC = np.ones((num_resamples + 1, num_clusters), dtype=np.uint16)
        for row in self.counts_BC[1:]:
            drawn = generator.integers(0, num_clusters, size=num_clusters)
            row[:] = np.bincount(drawn, minlength=num_clusters)

    def evaluate(
        self, cluster: ArrayLike, feature: ArrayLike, amount: ArrayLike, *, num_features: int,
        statistic: Callable[[Floats], Floats],
    ) -> Floats:  # fmt: skip
        """Return the statistic of each draw: it gets the sums of the features, (b, F), and returns (b,) or (b, S)."""
        from scipy import sparse

        used, row = np.unique(cluster, return_inverse=True)
        counts_BC = self.counts_BC if len(used) == self.counts_BC.shape[1] else self.counts_BC[:, used]
        shape = (len(used), num_features)
        amounts = np.asarray(amount, dtype=np.float64)
        summed_CF: Any = sparse.coo_matrix((amounts, (row, np.asarray(feature))), shape=shape).tocsr()
        rows = max(1, _CHUNK // max(*shape, 1))
        parts = []
        for start in range(0, len(counts_BC), rows):
            sums_bF = (summed_CF.T @ counts_BC[start : start + rows].T.astype(np.float64)).T
            with np.errstate(divide="ignore", invalid="ignore"):
                parts.append(statistic(np.asarray(sums_bF)))
        return np.concatenate(parts)

    def estimate(self, draws_B: Floats, *, num_items: int) -> Estimate | None:
        """Return the sample's value with its percentile interval; None where the sample has no value."""
        value, others = float(draws_B[0]), draws_B[1:][np.isfinite(draws_B[1:])]
        if not math.isfinite(value) or num_items == 0 or not len(others):
            return None
        tail = (1 - self.confidence) / 2
        low, high = np.quantile(others, [tail, 1 - tail])
        return Estimate(
            value=value, low=float(low), high=float(high), num_items=num_items, spread=float(others.std())
        )  # fmt: skip

    def share(self, cluster: Clusters, hits: Floats, *, weights: Floats | None = None) -> Estimate | None:
        """Return the (weighted) mean of `hits`; NaN ones do not count."""
        known = np.isfinite(hits)
        if not known.any():
            return None
        weight = np.ones(len(hits)) if weights is None else weights
        where, num_known = cluster[known], int(known.sum())
        draws_B = self.evaluate(
            np.concatenate([where, where]), np.repeat([0, 1], num_known),
            np.concatenate([hits[known] * weight[known], weight[known]]),
            num_features=2, statistic=lambda sums: sums[:, 0] / sums[:, 1],
        )  # fmt: skip
        return self.estimate(draws_B, num_items=num_known)

    def median(self, cluster: Clusters, values: Floats) -> Estimate | None:
        """Return the median of the values; NaN ones do not count."""
        known = np.isfinite(values)
        if not known.any():
            return None
        order = np.argsort(values[known], kind="stable")
        kept, where = values[known][order], cluster[known][order]
        draws = []
        for counts_N in self.counts_BC[:, where]:
            total = counts_N.cumsum(dtype=np.int64)
            if total[-1] == 0:
                draws.append(math.nan)
                continue
            middle = np.searchsorted(total, [(total[-1] + 1) // 2, total[-1] // 2 + 1])
            draws.append(float(kept[middle].mean()))
        return self.estimate(np.array(draws), num_items=int(known.sum()))
