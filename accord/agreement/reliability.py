"""How often each judge is right, learnt from the votes alone: Dawid–Skene's EM and RE-PO's.

Axes: N votes, I items, J judges, V values.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
_LEAST = 1e-6  # reliabilities stay this far from 0 and 1, where no further vote could change them


@dataclass(frozen=True, slots=True, kw_only=True)
class DawidSkene:
    """Result of Dawid and Skene's EM."""

    prior_V: Floats  # share of items whose true value is v
    confusion_JVV: Floats  # [judge, true value, said value]
    truth_VI: Floats  # posterior of each item's true value
    log_likelihood: float

    @property
    def reliability_J(self) -> Floats:
        """Probability that a judge says what is true, over items as they come."""
        return np.einsum("v,jvv->j", self.prior_V, self.confusion_JVV)


def dawid_skene(
    item_N: Ints, judge_N: Ints, value_N: Ints, *, num_values: int, weight_I: Floats | None = None,
    start: DawidSkene | None = None, max_steps: int = 1000, tolerance: float = 1e-9,
) -> DawidSkene:  # fmt: skip
    """Return the likeliest hidden true values of items and confusion matrices of judges.

    Items, judges and values are numbers from 0; `weight_I` counts an item several times (a bootstrap draw). Starts from
    the share of votes for each value (or from `start`), as in Dawid and Skene 1979. Where most judges are wrong, the
    truth found is the opposite: no votes can tell the two apart. A judge without votes for a true value has a row of 0.
    """
    num_items, num_judges = int(item_N.max()) + 1, int(judge_N.max()) + 1
    weight = np.ones(num_items) if weight_I is None else weight_I
    said_N = judge_N * num_values + value_N
    if start is None:
        shares = [np.bincount(item_N[value_N == v], minlength=num_items) for v in range(num_values)]
        truth_VI = np.stack(shares) / np.bincount(item_N, minlength=num_items).clip(min=1)
    else:
        truth_VI = start.truth_VI
    previous = reached = -np.inf
    prior_V, confusion = np.zeros(num_values), np.zeros((num_judges, num_values, num_values))
    for _ in range(max_steps):
        prior_V = truth_VI @ weight / weight.sum()
        for true, truth_I in enumerate(truth_VI):
            votes = np.bincount(said_N, weights=(weight * truth_I)[item_N], minlength=num_judges * num_values)
            confusion[:, true] = votes.reshape(num_judges, num_values)
        total = confusion.sum(axis=2, keepdims=True)
        confusion = np.divide(confusion, total, out=np.zeros_like(confusion), where=total > 0)
        logs_VS = np.log(confusion.clip(min=1e-300)).transpose(1, 0, 2).reshape(num_values, -1)
        said_VI = [np.bincount(item_N, weights=logs_S[said_N], minlength=num_items) for logs_S in logs_VS]
        joint_VI = np.log(prior_V.clip(min=1e-300))[:, None] + np.stack(said_VI)
        highest_I = joint_VI.max(axis=0)
        truth_VI = np.exp(joint_VI - highest_I)
        evidence_I = truth_VI.sum(axis=0)
        truth_VI /= evidence_I
        reached = float(weight @ (highest_I + np.log(evidence_I)))
        if reached - previous < tolerance * max(1.0, abs(reached)):
            break
        previous = reached
    return DawidSkene(prior_V=prior_V, confusion_JVV=confusion, truth_VI=truth_VI, log_likelihood=reached)


def repo_reliability(
    item_N: Ints, judge_N: Ints, vote_N: Floats, *, weight_I: Floats | None = None, start_J: Floats | None = None,
    max_steps: int = 1000, tolerance: float = 1e-9,
) -> Floats:  # fmt: skip
    """Return every judge's probability η of being right, by RE-PO's EM on votes of ±1.

    RE-PO holds a vote right with probability σ(logit p + logit η), p what the policy thinks of it, and moves η to the
    mean of these. There is no policy here, so p is what the other judges of the item say: logit p = Σ ± logit η over
    their votes. Starts at 0.9 for each, as RE-PO does: most judges are taken to be mostly right. A judge who shares no
    item with others keeps the start. Source: Cao et al. 2025,
    arXiv:2509.24159 (RE-PO).
    """
    num_items, num_judges = int(item_N.max()) + 1, int(judge_N.max()) + 1
    weight_N = np.ones(len(item_N)) if weight_I is None else weight_I[item_N]
    reliability_J = np.full(num_judges, 0.9) if start_J is None else start_J
    votes_J = np.bincount(judge_N, weights=weight_N, minlength=num_judges)
    for _ in range(max_steps):
        logit_J = np.log(reliability_J) - np.log1p(-reliability_J)
        evidence_I = np.bincount(item_N, weights=vote_N * logit_J[judge_N], minlength=num_items)
        right_N = 1.0 / (1.0 + np.exp(-vote_N * evidence_I[item_N]))  # the vote's own logit η is in the sum
        moved_J = np.bincount(judge_N, weights=weight_N * right_N, minlength=num_judges)
        moved_J = np.where(votes_J > 0, moved_J / votes_J.clip(min=1e-300), reliability_J).clip(_LEAST, 1 - _LEAST)
        is_still = bool(np.abs(moved_J - reliability_J).max() < tolerance)
        reliability_J = moved_J
        if is_still:
            break
    return reliability_J
