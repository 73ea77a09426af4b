"""Raters who disagree as groups: which rater belongs to which reward, and a policy for the group worst served.

Source: MaxMin-RLHF, Chakraborty et al. 2024, arXiv:2402.08925. Axes: R raters, U groups (latent rewards).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def rater_log_likelihoods(margins: Sequence[ArrayLike]) -> Floats:
    """Return Σ log σ(margin) (R, U) of each rater's margins r_u(better) − r_u(worse), given as (pairs, U)."""
    return np.array([-np.logaddexp(0.0, -np.asarray(rows, dtype=float)).sum(axis=0) for rows in margins])


def assign_raters(log_likelihood_RU: ArrayLike) -> NDArray[np.int64]:
    """Return the group of each rater (hard E-step): the one whose reward explains the rater's preferences best."""
    return np.asarray(log_likelihood_RU, dtype=float).argmax(axis=1)


def responsibilities(log_likelihood_RU: ArrayLike, shares_U: ArrayLike) -> Floats:
    """Return γ_ru ∝ η_u e^{Σ log σ} (soft E-step), (R, U) with rows that sum to 1; the next shares are its means."""
    logits = np.asarray(log_likelihood_RU, dtype=float) + np.log(np.asarray(shares_U, dtype=float))
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return raised / raised.sum(axis=1, keepdims=True)


def reseed_empty(groups: ArrayLike, log_likelihood_RU: ArrayLike) -> NDArray[np.int64]:
    """Return assignments in which a group without raters is given the rater that its own group explains worst."""
    found = np.asarray(groups).copy()
    loglik = np.asarray(log_likelihood_RU, dtype=float)
    for empty in sorted(set(range(loglik.shape[1])) - set(found.tolist())):
        sizes = np.bincount(found, minlength=loglik.shape[1])
        movable = [rater for rater, group in enumerate(found) if sizes[group] > 1]
        if movable:
            found[min(movable, key=lambda rater: loglik[rater, found[rater]])] = empty
    return found


@dataclass(slots=True)
class MaxMinWeights:
    """Weights of the groups by multiplicative weights, λ_u ← λ_u e^{−η E_π[r_u]}: the worst served gains.

    Rewards of different groups have arbitrary scales: centre them on the reference and give them unit variance first,
    or the smallest means nothing. `average` is the mean of all weights so far, which settles where the last ones
    circle.
    """

    weights: list[float]
    step_size: float = 0.1
    total: list[float] | None = None
    num_updates: int = 0

    def __post_init__(self) -> None:
        if not self.weights or min(self.weights) <= 0 or self.step_size <= 0:
            raise ValueError(f"got the weights {self.weights}, step_size={self.step_size} — expected numbers above 0")
        if self.num_updates == 0:
            whole = sum(self.weights)
            self.weights = [weight / whole for weight in self.weights]

    def update(self, mean_rewards: Sequence[float]) -> list[float]:
        """Move the weights by the groups' mean rewards and return them. Raises ValueError for another number."""
        if len(mean_rewards) != len(self.weights) or not all(map(math.isfinite, mean_rewards)):
            raise ValueError(f"got the rewards {list(mean_rewards)} — expected {len(self.weights)} finite numbers")
        logits = np.log(self.weights) - self.step_size * np.asarray(mean_rewards, dtype=float)
        raised = np.exp(logits - logits.max())
        self.weights = np.maximum(raised / raised.sum(), 1e-12).tolist()  # a weight of 0 could never come back
        before = self.total or [0.0] * len(self.weights)
        self.total = [total + weight for total, weight in zip(before, self.weights, strict=True)]
        self.num_updates += 1
        return self.weights

    @property
    def average(self) -> list[float]:
        """The mean of the weights over all updates; the start before any."""
        if self.total is None:
            return list(self.weights)
        return [total / self.num_updates for total in self.total]

    def to_dict(self) -> dict[str, Any]:
        """Return the state as plain values, for a checkpoint."""
        return {
            "weights": list(self.weights), "step_size": self.step_size, "total": self.total,
            "num_updates": self.num_updates,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> MaxMinWeights:
        """Return the weights as they were."""
        return cls(list(state["weights"]), state["step_size"], state["total"], state["num_updates"])


def maxmin_weights(reference: ArrayLike, rewards_UY: ArrayLike, *, beta: float) -> Floats:
    """Return λ* = argmin over the simplex of β log E_ref e^{Σ λ_u r_u/β}, in a world of Y enumerable responses.

    max_π min_u E_π[r_u] − β KL(π ‖ π_ref) is then attained by π ∝ π_ref e^{Σ λ*_u r_u/β}.
    """
    from scipy.optimize import minimize

    log_ref, r_UY = np.log(np.asarray(reference, dtype=float)), np.asarray(rewards_UY, dtype=float)

    def value(weights: Floats) -> tuple[float, Floats]:
        logits = log_ref + weights @ r_UY / beta
        top = logits.max()
        raised = np.exp(logits - top)
        return beta * (top + math.log(raised.sum())), r_UY @ (raised / raised.sum())

    num_groups = len(r_UY)
    found = minimize(
        value, np.full(num_groups, 1 / num_groups), jac=True, method="SLSQP", bounds=[(0, 1)] * num_groups,
        constraints={"type": "eq", "fun": lambda weights: weights.sum() - 1},
        options={"ftol": 1e-14, "maxiter": 500},
    )  # fmt: skip
    return np.clip(found.x, 0.0, 1.0)
