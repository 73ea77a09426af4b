"""Weights of objectives that move while a policy trains: by hypervolume gained, or by the objectives' gradients.

Source: Lu et al. 2025, arXiv:2509.11452. Objectives are maximised; negate what is minimised.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


def hypervolume(points: ArrayLike, reference: ArrayLike) -> float:
    """Return the volume dominated by points (n, k) above a reference point (k,), by recursive slicing.

    Exact; the cost grows as n^(k−1), for fronts of tens of points in few objectives.
    """
    above = np.asarray(points, dtype=float).reshape(-1, np.size(reference)) - np.asarray(reference, dtype=float)
    return _sliced(above[(above > 0).all(axis=1)])


def _sliced(points: NDArray[np.float64]) -> float:
    if not len(points):
        return 0.0
    if points.shape[1] == 1:
        return float(points.max())
    by_last = points[np.argsort(-points[:, -1], kind="stable")]
    heights = np.append(by_last[:, -1], 0.0)
    slabs = (heights[:-1] - heights[1:]).tolist()
    return math.fsum(slab * _sliced(by_last[: top + 1, :-1]) for top, slab in enumerate(slabs) if slab > 0)


def meta_reward(gain: float) -> float:
    """Return ½ + 3/2 tanh(max(ΔHV, 0)) ∈ [½, 2): what the next step's reward is multiplied by."""
    return 0.5 + 1.5 * math.tanh(max(gain, 0.0))


@dataclass(slots=True)
class HypervolumeGuide:
    """A buffer of measured objectives; `observe` returns the factor for the rewards to come.

    The first observation is the reference point, the initial model's. The objectives' weights stay the user's. A
    factor common to a group cancels in advantages that are divided by the group's standard deviation: it acts only
    through rewards that are not normalised, and against a KL term.
    """

    points: list[tuple[float, ...]] = field(default_factory=list)

    def observe(self, objectives: Sequence[float]) -> float:
        """Add a measurement if it enlarges the dominated volume; return the meta reward, 1 for the first.

        Raises ValueError for another number of objectives or one that is not finite.
        """
        point = tuple(float(value) for value in objectives)
        if not point or not all(map(math.isfinite, point)) or (self.points and len(point) != len(self.points[0])):
            expected = f"{len(self.points[0])} finite numbers" if self.points else "finite numbers"
            raise ValueError(f"got the objectives {point} — expected {expected}")
        if not self.points:
            self.points.append(point)
            return 1.0
        reference, *front = self.points
        gain = hypervolume([*front, point], reference) - hypervolume(np.array(front), reference)
        if gain > 0:  # what the new point dominates adds no volume any more
            beyond = [old for old in front if any(mine > new for mine, new in zip(old, point, strict=True))]
            self.points = [reference, *beyond, point]
        return meta_reward(gain)

    def to_dict(self) -> dict[str, Any]:
        """Return the state as plain values, for a checkpoint."""
        return {"points": [list(point) for point in self.points]}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> HypervolumeGuide:
        """Return the guide as it was."""
        return cls([tuple(point) for point in state["points"]])


def influences(gram: ArrayLike) -> NDArray[np.float64]:
    """Return I_k = Σ_j ⟨g_k, g_j⟩, the row sums of the Gram matrix of the objectives' gradients, j = k included."""
    return np.asarray(gram, dtype=float).sum(axis=1)


@dataclass(slots=True)
class GradientWeights:
    """Weights moved by mirror ascent, w ← softmax(log w + (η/μ) I), I the objectives' influences on each other.

    η is the policy's learning rate. Orthogonal gradients of one norm leave the weights; a larger gradient gains
    weight, so scale the objectives alike.
    """

    weights: list[float]
    mu: float = 1e-5

    def __post_init__(self) -> None:
        if not self.weights or min(self.weights) <= 0 or not math.isfinite(sum(self.weights)) or self.mu <= 0:
            raise ValueError(f"got the weights {self.weights} and mu={self.mu} — expected numbers above 0")
        total = sum(self.weights)
        self.weights = [weight / total for weight in self.weights]

    def update(self, gram: ArrayLike, *, learning_rate: float) -> list[float]:
        """Move the weights by one step and return them. Raises ValueError for a Gram matrix of another shape."""
        matrix = np.asarray(gram, dtype=float)
        if matrix.shape != (len(self.weights),) * 2 or not np.isfinite(matrix).all():
            raise ValueError(f"got a Gram matrix {matrix.shape} — expected finite, {len(self.weights)} by as many")
        logits = np.log(self.weights) + learning_rate / self.mu * influences(matrix)
        raised = np.exp(logits - logits.max())
        self.weights = np.maximum(raised / raised.sum(), 1e-12).tolist()  # a weight of 0 could never come back
        return self.weights

    def to_dict(self) -> dict[str, Any]:
        """Return the state as plain values, for a checkpoint."""
        return {"weights": list(self.weights), "mu": self.mu}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> GradientWeights:
        """Return the weights as they were."""
        found = cls(list(state["weights"]), mu=state["mu"])
        found.weights = list(state["weights"])  # bit for bit: no second normalisation
        return found
