"""How annotators use the room that principles leave them: the measures of "AI Alignment at Your Discretion".

Axes: C principles, N cases. Preferences are 1, −1, or NaN: a principle does not apply, an annotator is undecided.
Source: Buyl et al. 2025, arXiv:2502.10441.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from accord.agreement.resampling import Resamples
from accord.agreement.values import DiscretionReport, Estimate

Floats = NDArray[np.float64]
CONSENSUS, CONFLICT, INDIFFERENCE = "consensus", "conflict", "indifference"


def case_types(principles_CN: ArrayLike) -> NDArray[np.str_]:
    """Return of each case whether the principles agree (consensus), contradict (conflict) or none applies."""
    known_CN = _signs(principles_CN)
    has_plus, has_minus = (known_CN > 0).any(axis=0), (known_CN < 0).any(axis=0)
    types = np.where(has_plus & has_minus, CONFLICT, CONSENSUS)
    return np.where(~has_plus & ~has_minus, INDIFFERENCE, types)


def arbitrary_cases(annotator_N: ArrayLike, principles_CN: ArrayLike) -> Floats:
    """Return 1 where an annotator is against a consensus, 0 where with it, NaN in other cases.

    Its mean is the discretion arbitrariness P[a(i) · consensus(i) < 0 | consensus, a decided].
    """
    known_CN, given_N = _signs(principles_CN), _signs(annotator_N)
    consensus_N = np.sign(known_CN.sum(axis=0))
    counts_N = (case_types(known_CN) == CONSENSUS) & (given_N != 0)
    return np.where(counts_N, (given_N * consensus_N < 0).astype(np.float64), math.nan)


def supremacy(annotator_N: ArrayLike, principles_CN: ArrayLike) -> tuple[Floats, Floats]:
    """Return S and n, (C, C): how often an annotator sides with c where c and c' contradict, and in how many cases.

    S is NaN where the two never contradict.
    """
    wins_CC = _wins(_signs(annotator_N), _signs(principles_CN))
    total_CC = wins_CC + wins_CC.T
    return np.divide(wins_CC, total_CC, out=np.full_like(wins_CC, math.nan), where=total_CC > 0), total_CC


def _wins(given_N: Floats, known_CN: Floats, weight_N: Floats | None = None) -> Floats:
    weight = np.ones(len(given_N)) if weight_N is None else weight_N
    sided_CN, against_CN = (known_CN * given_N > 0) * weight, known_CN * given_N < 0
    return sided_CN @ against_CN.T.astype(np.float64)


def priorities(wins_CC: ArrayLike) -> Floats:
    """Return Bradley–Terry weights w with S(c, c') ≈ σ(w_c − w_c'), their finite ones summing to 0.

    The maximum of Σ n (S log σ + (1 − S) log(1 − σ)). A principle that wins every contest has +∞, one that loses every
    has −∞, found again among those that remain; one without any contest has NaN. With two principles the difference is
    logit S.
    """
    wins = np.array(wins_CC, dtype=np.float64)
    weights = np.full(len(wins), math.nan)
    left = [c for c in range(len(wins)) if wins[c].sum() + wins[:, c].sum() > 0]
    while True:
        within = wins[np.ix_(left, left)]
        won, lost = within.sum(axis=1), within.sum(axis=0)
        decided = {c: _decided(won[k], lost[k]) for k, c in enumerate(left) if won[k] == 0 or lost[k] == 0}
        if not decided:
            break
        for c, sign in decided.items():
            weights[c] = sign
        left = [c for c in left if c not in decided]
    if left:
        weights[left] = _bradley_terry(wins[np.ix_(left, left)])
    return weights


def _decided(won: float, lost: float) -> float:
    if won == lost:
        return 0.0  # whom it met has been decided already
    return math.inf if lost == 0 else -math.inf


def _bradley_terry(wins_CC: Floats) -> Floats:
    """Return the maximum-likelihood weights by Newton's method; a tiny ridge holds groups that never met."""
    total_CC, weights = wins_CC + wins_CC.T, np.zeros(len(wins_CC))
    for _ in range(100):
        chance_CC = 1.0 / (1.0 + np.exp(weights[None, :] - weights[:, None]))
        slope = (wins_CC - total_CC * chance_CC).sum(axis=1) - 1e-9 * weights
        curvature = total_CC * chance_CC * (1 - chance_CC)
        hessian = np.diag(curvature.sum(axis=1) + 1e-9) - curvature
        step = np.linalg.solve(hessian, slope)
        weights = weights + step * min(1.0, 2.0 / max(float(np.abs(step).max()), 1e-12))
        if np.abs(step).max() < 1e-12:
            break
    return weights - weights.mean()


def discretion_discrepancy(first_C: ArrayLike, second_C: ArrayLike) -> float:
    """Return (1 − τ_b)/2 of two rankings of principles by priority: 0 the same order, 1 the opposite one.

    NaN with fewer than two principles that both have a priority for, or where one ranks all alike.
    """
    from scipy.stats import kendalltau, rankdata

    first, second = np.asarray(first_C, dtype=np.float64), np.asarray(second_C, dtype=np.float64)
    both = ~(np.isnan(first) | np.isnan(second))
    if both.sum() < 2 or len(np.unique(first[both])) < 2 or len(np.unique(second[both])) < 2:
        return math.nan
    return float((1 - kendalltau(rankdata(first[both]), rankdata(second[both])).statistic) / 2)


def discretion_report(
    principles: Mapping[str, ArrayLike],
    annotators: Mapping[str, ArrayLike],
    *,
    resamples: Resamples | None = None,
    cluster: ArrayLike | None = None,
) -> DiscretionReport:
    """Return all measures with intervals over cases (over clusters, where given).

    Each principle and annotator is a row of N preferences in 1, −1, NaN (0 counts as NaN). Arbitrariness is 0
    for who follows every consensus, ½ for a coin, 1 for who does the opposite.
    """
    names, judges = tuple(principles), tuple(annotators)
    known_CN = np.array([_signs(principles[name]) for name in names])
    given = {name: _signs(annotators[name]) for name in judges}
    where = np.arange(known_CN.shape[1]) if cluster is None else np.asarray(cluster)
    draws = resamples or Resamples(int(where.max()) + 1, num_resamples=500, confidence=0.95, seed=0)
    types = case_types(known_CN)
    shares = {
        kind: draws.share(where, (types == kind).astype(np.float64)) for kind in (CONSENSUS, CONFLICT, INDIFFERENCE)
    }
    assert all(shares.values()), "a share of at least one case is a number"
    wins = {name: _wins(given_N, known_CN) for name, given_N in given.items()}
    weights = {name: priorities(wins[name]) for name in judges}
    return DiscretionReport(
        principles=names,
        annotators=judges,
        arbitrariness={name: draws.share(where, arbitrary_cases(given[name], known_CN)) for name in judges},
        supremacy={name: _supremacy_words(wins[name], names) for name in judges},
        priority={name: dict(zip(names, weights[name].tolist(), strict=True)) for name in judges},
        discrepancy=_discrepancies(given, known_CN, where, draws),
        **shares,  # pyright: ignore[reportArgumentType]  # none is None, as just asserted
    )


def _supremacy_words(wins_CC: Floats, names: tuple[str, ...]) -> dict[str, dict[str, float]]:
    total = wins_CC + wins_CC.T
    return {
        one: {
            other: float(wins_CC[i, j] / total[i, j]) for j, other in enumerate(names) if i != j and total[i, j] > 0
        }
        for i, one in enumerate(names)
    }  # fmt: skip


def _discrepancies(
    given: Mapping[str, Floats], known_CN: Floats, where: NDArray[Any], draws: Resamples
) -> dict[str, dict[str, Estimate | None]]:
    """Return the discrepancy of each pair; the priorities are fitted anew to at most 200 draws."""
    counts = draws.counts_BC[:201]
    ranked = {
        name: [priorities(_wins(given_N, known_CN, row[where].astype(np.float64))) for row in counts]
        for name, given_N in given.items()
    }
    found: dict[str, dict[str, Estimate | None]] = {name: {} for name in given}
    for one, other in combinations(given, 2):
        values = [discretion_discrepancy(a, b) for a, b in zip(ranked[one], ranked[other], strict=True)]
        found[one][other] = found[other][one] = draws.estimate(np.array(values), num_items=len(where))
    return found


def _signs(values: ArrayLike) -> Floats:
    """Return 1, −1, and 0 for what is not known."""
    return np.sign(np.nan_to_num(np.asarray(values, dtype=np.float64), nan=0.0))
