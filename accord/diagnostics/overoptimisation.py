"""The price of distance: gold score against d = √KL(π ‖ π_ref). Plain numpy.

R(d) = R₀ + d (a − b log d): Gao et al. 2023, arXiv:2210.10760, for reinforcement learning; Rafailov et al. 2024,
arXiv:2406.02900, for direct alignment. With b > 0 it has one peak, at d* = exp(a/b − 1), of height b d*.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True, kw_only=True)
class OveroptimisationFit:
    """R(d) = start + d (a − b log d), by least squares."""

    start: float
    a: float
    b: float
    residual: float  # root mean square

    def score(self, distance: float) -> float:
        """Return R(d); d = 0 is the start."""
        return self.start + (distance * (self.a - self.b * float(np.log(distance))) if distance > 0 else 0.0)

    @property
    def peak(self) -> float | None:
        """The distance d* beyond which the score falls; None where the fit has no peak (b ≤ 0)."""
        return float(np.exp(self.a / self.b - 1)) if self.b > 0 else None


def fit_overoptimisation(distances: ArrayLike, scores: ArrayLike, *, start: float | None = None) -> OveroptimisationFit:
    """Fit R(d) to at least three points with different distances > 0.

    `start` is the score at d = 0; None = the score of the point with d = 0, which must then be among them.
    Raises ValueError for fewer points, a negative distance or a number that is not finite.
    """
    d, score = np.asarray(distances, dtype=float), np.asarray(scores, dtype=float)
    if d.shape != score.shape or d.ndim != 1 or not (np.isfinite(d).all() and np.isfinite(score).all()):
        raise ValueError(f"got distances {d.shape}, scores {score.shape} — expected two equal lists of finite numbers")
    if (d < 0).any():
        raise ValueError(f"got the distance {d.min():.3g} — expected √KL, which is not negative")
    if start is None:
        if not (d == 0).any():
            raise ValueError("got no point at distance 0 and no start — give the score of the reference as start")
        start = float(score[d == 0].mean())
    moved = d > 0
    if len(np.unique(d[moved])) < 3:
        raise ValueError(f"got {len(np.unique(d[moved]))} different distances above 0 — expected three or more")
    features = np.stack([d[moved], -d[moved] * np.log(d[moved])], axis=1)
    target = score[moved] - start
    (a, b), *_ = np.linalg.lstsq(features, target, rcond=None)
    residual = float(np.sqrt(np.mean((features @ np.array([a, b]) - target) ** 2)))
    return OveroptimisationFit(start=start, a=float(a), b=float(b), residual=residual)
