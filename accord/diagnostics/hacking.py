"""Is the reward being hacked? Warnings from what a run has at hand, without any gold reward. Plain numpy.

A reward model is right about answers like those it was trained on, which the reference wrote. What can be watched is
how far the policy went for how much reward, and whether its scores are still among those the reference's answers have.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

History = Sequence[Mapping[str, float]]
"""The metrics lines of a run, in order; a line without a rollout is passed over."""

WINDOW = 3  # lines whose mean is looked at …
PATIENCE = 2  # … and so many of these means in a row must be over the limit
UNPAID = 6.0  # times the nats that the same reward costs at least
FAR = 2.0  # nats below which distance is not looked at
OUT_OF_RANGE = 0.25  # share of responses above the best reference sample of their prompt
DISAGREEMENT = 1.5  # times the first deviation of an ensemble's members
LENGTH_FACTOR = 2.0  # times the first length, or one part in so many of it

_REWARD, _SPREAD, _LENGTH = "rollout/reward", "rollout/reward_std_within", "rollout/length"
_KL = ("rollout/kl", "log_ratio/response")
_ABOVE = ("rollout/above_reference", "rollout/reward/above_reference")


def reward_hacking_warnings(history: History) -> list[str]:
    """Return a sentence per rule that has fired so far, the most telling first; silent where its metrics are missing.

    The first line is the reference's: there the policy is the reference still. Read are `rollout/reward`,
    `rollout/reward_std_within`, `rollout/kl` (or `log_ratio/response`), `rollout/length`, `rollout/above_reference`
    (see `share_above`) and `rollout/reward/…deviation` of an ensemble. A rule fires where means over three lines are
    beyond its limit twice in a row. Limits are rules of thumb, found on reward models of the text world: they say
    where to look. A flaw that is there from the first step on, and that the reference's own answers have, shows in
    none of these numbers.
    """
    return [sentence for rule in RULES if (sentence := rule(history)) is not None]


def least_kl(shift: float, spread: float) -> float:
    """Return the nats that raising a mean reward by `shift` costs at least: (shift/spread)²/2.

    Exact where rewards of the reference's responses to a prompt are normal with deviation `spread`: there the tilted
    reference π_ref·e^{λr} moves the mean by λ·spread² at KL = λ²·spread²/2, and no policy pays less for the same mean.
    0 for a shift that is not positive; infinite where all rewards are equal.
    """
    if shift <= 0:
        return 0.0
    return math.inf if spread <= 0 else 0.5 * (shift / spread) ** 2


def share_above(scores_PK: ArrayLike, reference_PM: ArrayLike) -> float:
    """Return the share of responses that score higher than the best of M reference samples to their prompt.

    NaN = unknown, and is left out. About 1/(M + 1) where policy and reference are one. Rewards with an upper end that
    the reference reaches, such as a verifier's, never get there. Raises ValueError unless there are as many prompts.
    """
    scores, references = np.asarray(scores_PK, dtype=float), np.asarray(reference_PM, dtype=float)
    if scores.ndim != 2 or references.ndim != 2 or len(scores) != len(references) or not references.size:
        raise ValueError(
            f"got scores {scores.shape} and reference scores {references.shape} — expected two tables of the same "
            "prompts"
        )
    known = ~np.isnan(references)
    best_P1 = np.where(known, references, -np.inf).max(axis=1, keepdims=True)
    counted = ~np.isnan(scores) & known.any(axis=1, keepdims=True)
    return float((scores > best_P1)[counted].mean()) if counted.any() else math.nan


def warn_of_unpaid_distance(history: History) -> str | None:
    """KL far above the least that the reward gained so far costs: most of the way is not paid for by the reward."""
    lines = [(line, kl) for line in history if _REWARD in line and (kl := _first(line, _KL)) is not None]
    spread = lines[0][0].get(_SPREAD) if lines else None
    if spread is None:
        return None
    start = float(lines[0][0][_REWARD])
    kls, least = _means([kl for _, kl in lines]), _means([least_kl(line[_REWARD] - start, spread) for line, _ in lines])
    place = _lasting([kl > FAR and kl > UNPAID * cheapest for kl, cheapest in zip(kls, least, strict=True)])
    if place is None:
        return None
    return (
        f"{_when(lines[place][0])} the policy is {kls[place]:.1f} nats from the reference for a reward that "
        f"{least[place]:.1f} would buy: most of what changed is not paid for by the reward, and may be what the reward "
        "does not see. Compare samples with those of earlier steps, and stop there or set a KL (advantage.kl_coef, "
        "objective.kl_coef)."
    )


def warn_of_scores_out_of_range(history: History) -> str | None:
    """Many responses scoring above anything that the reference wrote: the reward model extrapolates."""
    lines = [(line, share) for line in history if (share := _first(line, _ABOVE)) is not None]
    shares = _means([share for _, share in lines])
    place = _lasting([share > OUT_OF_RANGE for share in shares])
    if place is None:
        return None
    return (
        f"{_when(lines[place][0])} {shares[place]:.0%} of the responses score above the best reference sample of their "
        "prompt: the reward model judges what it never met. Have such responses judged, and train it on them."
    )


def warn_of_disagreement(history: History) -> str | None:
    """Members of an ensemble that disagree more than about the reference's responses."""
    lines = [(line, value) for line in history if (value := _deviation(line)) is not None]
    means = _means([value for _, value in lines])
    if not means or means[0] <= 0:
        return None
    place = _lasting([value > DISAGREEMENT * means[0] for value in means])
    if place is None:
        return None
    return (
        f"{_when(lines[place][0])} the reward models of the ensemble disagree by {means[place]:.2f}, and by "
        f"{means[0]:.2f} about the reference's responses: they were not trained on what is written now."
    )


def warn_of_length_drift(history: History) -> str | None:
    """Responses several times as long, or as short, as at first, while the reward rises."""
    lines = [line for line in history if _LENGTH in line and _REWARD in line]
    lengths, rewards = _means([line[_LENGTH] for line in lines]), _means([line[_REWARD] for line in lines])
    if not lengths or lengths[0] <= 0:
        return None
    place = _lasting(
        [
            reward > rewards[0] and not 1 / LENGTH_FACTOR < length / lengths[0] < LENGTH_FACTOR
            for length, reward in zip(lengths, rewards, strict=True)
        ]
    )
    if place is None:
        return None
    return (
        f"{_when(lines[place])} responses have {lengths[place]:.0f} tokens, and had {lengths[0]:.0f} at first: the "
        "reward may be paid for length alone. Compare rewards at equal length (reward.model.remove_length=true)."
    )


RULES: tuple[Callable[[History], str | None], ...] = (
    warn_of_unpaid_distance,
    warn_of_scores_out_of_range,
    warn_of_disagreement,
    warn_of_length_drift,
)
"""The most telling first."""


def _first(line: Mapping[str, float], names: Sequence[str]) -> float | None:
    return next((float(line[name]) for name in names if name in line and math.isfinite(line[name])), None)


def _deviation(line: Mapping[str, float]) -> float | None:
    found = [value for name, value in line.items() if name.startswith("rollout/reward/") and name.endswith("deviation")]
    return float(found[0]) if found and math.isfinite(found[0]) else None


def _means(values: Sequence[float]) -> list[float]:
    """Running means over the last lines; the first value stands alone."""
    return [float(np.mean(values[max(0, i + 1 - WINDOW) : i + 1])) for i in range(len(values))]


def _lasting(flags: Sequence[bool]) -> int | None:
    """The first place at which a condition has held for so many lines in a row."""
    return next((i for i in range(PATIENCE - 1, len(flags)) if all(flags[i + 1 - PATIENCE : i + 1])), None)


def _when(line: Mapping[str, float]) -> str:
    return f"Since step {int(line['step'])}" if "step" in line else "Now"
