"""Rewards for what happens after training: calibrated against reference samples, transformed for best- or worst-of-N.

Source: InfAlign, Balashankar et al. 2024, arXiv:2412.19792. u is the quantile of a reward among the reference's own
responses to the prompt; under the reference u is uniform, and a policy is described by the density q(u) it gives it.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from accord.data import load_groups
from accord.errors import ConfigError, DataError
from accord.feedback.findings import Finding
from accord.records import Group, Rating, Text

Transform = Literal["identity", "log", "exp", "power"]
Floats = NDArray[np.float64]


def calibrated_reward(score: float, reference_scores: Sequence[float]) -> float:
    """Return û = (#{r(z) < r} + ½ #{r(z) = r})/K over K sorted reference scores: the reward's quantile under π_ref.

    Unchanged by any increasing map of the scores of a prompt. Quantised to 1/(2K).
    """
    below = bisect_left(reference_scores, score)
    return (below + bisect_right(reference_scores, score)) / (2 * len(reference_scores))


def transformed(u: float, transform: Transform, *, t: float = 10.0, floor: float = 0.0) -> float:
    """Return Φ(u): u, log u, sgn(t) e^{tu} or u^t. `floor` > 0 keeps log away from −∞ at û = 0.

    exp with t = 10 is near the optimum for best-of-4, with t = −10 for worst-of-4; log is a fractional best-of-N;
    u^(2N − 1) is the optimum for best-of-N in the limit of small KL.
    """
    match transform:
        case "log":
            return math.log(max(u, floor)) if max(u, floor) > 0 else -math.inf
        case "exp":
            return math.copysign(math.exp(t * u), t)
        case "power":
            return u**t
    return u


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceCalibrated:
    """Φ(û) of another part's score, û its quantile among that part's scores of reference samples of the same prompt.

    A prompt without reference samples has an unknown reward. `references`: sorted scores by prompt, or see
    `read_references`. Source: InfAlign-CTRL.
    """

    references: Mapping[Text, Sequence[float]]
    transform: Transform = "identity"
    t: float = 10.0
    name: str = "infalign"

    def __post_init__(self) -> None:
        if self.transform == "exp" and self.t == 0:
            raise ConfigError(
                "got infalign transform=exp with t=0 — expected t > 0 for best-of-N, t < 0 for worst-of-N"
            )
        if self.transform == "power" and self.t <= 0:
            raise ConfigError(f"got infalign transform=power with t={self.t} — expected t > 0")

    def __call__(self, groups: Sequence[Group], given: Sequence[Sequence[Finding]]) -> list[list[Finding]]:
        """Return the transformed quantile of each response; `parts` hold û."""
        return [
            [self._score(self.references.get(group.prompt), finding) for finding in row]
            for group, row in zip(groups, given, strict=True)
        ]

    def _score(self, anchors: Sequence[float] | None, finding: Finding) -> Finding:
        if finding.score is None:
            return Finding(score=None, reason=finding.reason)
        if not anchors:
            return Finding(score=None, reason="the prompt has no scored reference samples")
        u = calibrated_reward(finding.score, anchors)
        score = transformed(u, self.transform, t=self.t, floor=0.5 / len(anchors))  # half the step of û
        return Finding(score=score, parts={"quantile": u})


def read_references(path: str | Path, *, attribute: str = "reward") -> dict[Text, list[float]]:
    """Return the sorted scores of reference samples by prompt, from a file that `accord score` wrote.

    Raises DataError for a file in which no response has such a rating.
    """
    found: dict[Text, list[float]] = {}
    for group in load_groups(path).groups:
        values = [j.value for j in group.judgements if isinstance(j, Rating) and j.attribute == attribute]
        found.setdefault(group.prompt, []).extend(values)
    scored = {prompt: sorted(values) for prompt, values in found.items() if values}
    if not scored:
        raise DataError(
            f"{path}: got no response with a rating of the attribute {attribute} — expected samples of the reference, "
            "scored with `accord score --reward DIR --data FILE --out FILE`"
        )
    return scored


# The calculus of u: densities on cells of [0, 1] ----------------------------------------------------------------------


def cells(num_cells: int = 4001) -> Floats:
    """Return the middles of equal cells of [0, 1]."""
    return (np.arange(num_cells) + 0.5) / num_cells


def tilted(phi: ArrayLike, beta: float) -> Floats:
    """Return the density q ∝ e^{Φ/β} of the KL-regularised optimum, one value per cell, with mean 1."""
    exponent = np.asarray(phi, dtype=float) / beta
    q = np.exp(exponent - exponent.max())
    return q / q.mean()


def divergence(q: ArrayLike) -> float:
    """Return KL(q ‖ uniform) = ∫ q log q in nats."""
    density = np.asarray(q, dtype=float)
    positive = density[density > 0]
    return float((positive * np.log(positive)).sum() / len(density))


def win_rate(q: ArrayLike, *, n: int = 1, of: Literal["best", "worst"] = "best") -> float:
    """Return the probability that the best (worst) of n draws of q beats the best (worst) of n of the reference.

    1 − ∫ Q(u)^n n u^{n−1} du, and ∫ (1 − Q(u))^n n (1 − u)^{n−1} du for the worst.
    """
    density = np.asarray(q, dtype=float)
    num = len(density)
    u, middle = cells(num), (np.cumsum(density) - 0.5 * density) / num  # Q at the middle of each cell
    if of == "best":
        return float(1 - (middle**n * n * u ** (n - 1)).mean())
    return float(((1 - middle) ** n * n * (1 - u) ** (n - 1)).mean())


def optimal_density(
    beta: float, *, n: int, of: Literal["best", "worst"] = "best", num_cells: int = 4001, start: ArrayLike | None = None
) -> Floats:
    """Return the density that maximises `win_rate` − β KL, by damped fixed-point iteration on log q.

    q ∝ e^{Φ/β} with Φ′(u) = n² (u Q(u))^{n−1} for the best of n, n² ((1 − u)(1 − Q(u)))^{n−1} for the worst. The first
    is concave and has one optimum; the second is convex, so go down in β from a `start` found at a larger one.
    """
    u = cells(num_cells)
    q = np.ones(num_cells) if start is None else np.asarray(start, dtype=float)
    log_q = np.log(np.maximum(q, 1e-300))
    for _ in range(3000):
        middle = (np.cumsum(q) - 0.5 * q) / num_cells
        reach = u * middle if of == "best" else (1 - u) * (1 - middle)
        slope = n**2 * reach ** (n - 1)
        target = np.log(tilted((np.cumsum(slope) - 0.5 * slope) / num_cells, beta))
        change = float(np.abs(target - log_q).max())
        log_q = log_q + 0.3 * (target - log_q)
        q = np.exp(log_q - log_q.max())
        q /= q.mean()
        log_q = np.log(q)
        if change < 1e-10:
            break
    return q


def beta_for_kl(density_of: Callable[[float], Floats], kl: float, *, low: float = 1e-9, high: float = 1e6) -> float:
    """Return the β at which a family of densities is `kl` nats from the reference, by bisection on log β."""
    for _ in range(100):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if divergence(density_of(middle)) > kl else (low, middle)
    return math.sqrt(low * high)
