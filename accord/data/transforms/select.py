"""Which share of the groups to train on: the informative ones, a random share or the clearest ones.

"isa" is a reconstruction of alignment data sampling by information (Khera, Ghosh and Dutta 2024, arXiv:2411.10545), of
which only the abstract was available: a mixture of two normal distributions over one number per group, and sampling by
its posterior and its entropy. "random" and "top" are what it has to beat.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeVar

import numpy as np

from accord.data.transforms.relabel import mean_ratings
from accord.errors import ConfigError, DataError
from accord.records import Comparison, Group

T = TypeVar("T")
Method = Literal["isa", "random", "top"]


def select_share(
    items: Sequence[T], features: Sequence[float], *, method: Method, fraction: float, seed: int = 0
) -> list[T]:
    """Return round(fraction × n) of the items, at least one, in their order.

    `features`: one number per item, larger for a clearer preference (a rating gap, an implicit-reward margin); "random"
    does not look at them. "top" takes the largest, of equals the first. "isa" draws without replacement with weights
    (γ + h)/2: γ the posterior of the component with the larger mean, h its entropy in bits.
    Raises ConfigError for a fraction outside (0, 1] and DataError for features that are not finite or not one per item.
    """
    if not 0.0 < fraction <= 1.0:
        raise ConfigError(f"got select_fraction={fraction} — expected a share above 0, at most 1")
    values = np.asarray(features, dtype=np.float64)
    if values.shape != (len(items),) or not np.isfinite(values).all():
        raise DataError(f"got {len(values)} features for {len(items)} groups — expected one finite number for each")
    wanted = min(len(items), max(1, round(fraction * len(items))))
    rng = np.random.default_rng(seed)
    if method == "top":
        chosen = np.argsort(-values, kind="stable")[:wanted]
    elif method == "random":
        chosen = rng.permutation(len(items))[:wanted]
    else:
        posterior = mixture_posterior(values)
        weights = np.maximum(0.5 * (posterior + binary_entropy(posterior)), 1e-9)
        # the largest u^(1/w): draws one after another with probability ∝ w among those left (Efraimidis, Spirakis 2006)
        chosen = np.argsort(np.log(rng.random(len(items))) / weights, kind="stable")[::-1][:wanted]
    return [items[place] for place in sorted(chosen.tolist())]


def mixture_posterior(values: np.ndarray, *, num_steps: int = 200) -> np.ndarray:
    """Return P(component with the larger mean | value) under two normal distributions fitted by EM.

    Deterministic: EM starts from the halves below and above the median. Values that are all equal say nothing: 1/2.
    """
    if len(values) < 2 or np.ptp(values) == 0.0:
        return np.full(len(values), 0.5)
    spread = float(values.std())
    scaled = (values - values.mean()) / spread
    upper = (scaled > np.median(scaled)).astype(np.float64)
    upper = upper if upper.any() else (scaled >= np.median(scaled)).astype(np.float64)
    for _ in range(num_steps):
        before, upper = upper, _posterior(scaled, np.stack([1.0 - upper, upper]))
        if np.abs(upper - before).max() < 1e-10:
            break
    return upper


def _posterior(values: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Take an EM step from the shares (2, n) of each value in the two components."""
    sizes = share.sum(axis=1) + 1e-12
    means = share @ values / sizes
    variances = (share * (values - means[:, None]) ** 2).sum(axis=1) / sizes + 1e-6  # no component shrinks to a point
    logits = np.log(sizes)[:, None] - 0.5 * np.log(variances)[:, None]
    logits = logits - 0.5 * (values - means[:, None]) ** 2 / variances[:, None]
    larger, smaller = (1, 0) if means[1] >= means[0] else (0, 1)
    return 1.0 / (1.0 + np.exp(np.clip(logits[smaller] - logits[larger], -700, 700)))


def binary_entropy(p: np.ndarray) -> np.ndarray:
    """Return the entropy in bits of events of probability p; 0 at 0 and 1."""
    inside = np.clip(p, 1e-300, 1.0)
    outside = np.clip(1.0 - p, 1e-300, 1.0)
    return -(p * np.log2(inside) + (1.0 - p) * np.log2(outside))


def rating_gap(group: Group) -> float:
    """Return how much better the better responses of a group were judged, on the scale of its judges.

    The mean over its comparisons of the difference of the two ratings, else of the stated strength; without comparisons
    the range of the ratings. Raises DataError for a group that gives none of these.
    """
    ratings = mean_ratings(group.judgements)
    gaps: list[float] = []
    for judgement in group.judgements:
        if isinstance(judgement, Comparison) and not judgement.is_tie:
            if judgement.better in ratings and judgement.worse in ratings:
                gaps.append(ratings[judgement.better] - ratings[judgement.worse])
            elif judgement.strength is not None:
                gaps.append(judgement.strength)
    if gaps:
        return sum(gaps) / len(gaps)
    if len(ratings) > 1:
        return max(ratings.values()) - min(ratings.values())
    raise DataError(
        f"{group.origin or 'a group'}: says nowhere how much better the better response is — expected ratings of both "
        "responses or a margin to select by — set data.select=random, or select by numbers of your own in Python"
    )
