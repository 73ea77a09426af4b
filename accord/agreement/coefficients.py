"""Coefficients of agreement beyond chance: Cohen, Fleiss, Krippendorff; for one table, or for every bootstrap draw.

Axes: B draws, V values (categories) in order, I items, J judges.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Level = Literal["nominal", "ordinal", "interval", "ratio"]
Weights = Literal["none", "quadratic"]


def cohen_kappa(table: ArrayLike, *, weights: Weights = "none", values: ArrayLike | None = None) -> float:
    """Return κ = (p_o − p_e)/(1 − p_e) of a table of counts: how one judge answered (rows) and another (columns).

    `weights="quadratic"`: disagreements weigh their squared distance, on the `values` of the categories (by default
    their places). NaN where both judges gave one and the same value only. Source: Cohen 1960, 1968.
    """
    table_VV = np.asarray(table, dtype=np.float64)
    if table_VV.ndim != 2 or table_VV.shape[0] != table_VV.shape[1]:
        raise ValueError(f"got a table of shape {table_VV.shape} — expected as many rows as columns")
    scale = np.arange(len(table_VV), dtype=np.float64) if values is None else np.asarray(values, dtype=np.float64)
    return float(kappas(table_VV[None], scale, weights=weights)[0])


def kappas(table_BVV: Floats, values_V: Floats, *, weights: Weights) -> Floats:
    """Return Cohen's κ of each table."""
    total = table_BVV.sum(axis=(-1, -2))
    rows, columns = table_BVV.sum(axis=-1), table_BVV.sum(axis=-2)
    distance_VV = (values_V[:, None] - values_V[None, :]) ** 2
    if weights == "none":
        distance_VV = (distance_VV > 0).astype(np.float64)
    observed = (table_BVV * distance_VV).sum(axis=(-1, -2)) / total
    expected = np.einsum("...v,vw,...w->...", rows, distance_VV, columns) / total**2
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(expected > 0, 1 - observed / expected, math.nan)


def fleiss_kappa(counts: ArrayLike) -> float:
    """Return Fleiss' κ of counts (items × categories): how many judges gave an item each category.

    P_i = (Σ_j n_ij² − n_i)/(n_i (n_i − 1)), P_e = Σ_j p_j². Items with fewer than two judgements do not count; with
    unequal n_i the mean of the P_i is taken over items. NaN where all gave one value only. Source: Fleiss 1971.
    """
    counts_IV = np.asarray(counts, dtype=np.float64)
    if counts_IV.ndim != 2:
        raise ValueError(f"got counts of shape {counts_IV.shape} — expected items × categories")
    counts_IV = counts_IV[counts_IV.sum(axis=1) >= 2]
    num_I = counts_IV.sum(axis=1)
    if not len(num_I):
        return math.nan
    agreement_I = ((counts_IV**2).sum(axis=1) - num_I) / (num_I * (num_I - 1))
    return float(beyond_chance(agreement_I.mean(keepdims=True), counts_IV.sum(axis=0)[None])[0])


def beyond_chance(agreement_B: Floats, counts_BV: Floats) -> Floats:
    """Return (p_o − p_e)/(1 − p_e) with p_e = Σ p_v² of pooled counts."""
    with np.errstate(divide="ignore", invalid="ignore"):
        chance_B = ((counts_BV / counts_BV.sum(axis=-1, keepdims=True)) ** 2).sum(axis=-1)
        return np.where(chance_B < 1, (agreement_B - chance_B) / (1 - chance_B), math.nan)


def krippendorff_alpha(ratings: ArrayLike, *, level: Level = "nominal") -> float:
    """Return Krippendorff's α = 1 − D_o/D_e of ratings (judges × items), NaN where a judge gave none.

    Coincidences o_ck = Σ over items of the pairs (c, k) / (m − 1), m judgements of the item; distances δ² by `level`:
    nominal [c ≠ k], ordinal (ranks between, by frequency), interval (c − k)², ratio ((c − k)/(c + k))². NaN where no
    item has two judgements or all gave one value. Source: Krippendorff 2011, "Computing Krippendorff's
    alpha-reliability".
    """
    ratings_JI = np.asarray(ratings, dtype=np.float64)
    if ratings_JI.ndim != 2:
        raise ValueError(f"got ratings of shape {ratings_JI.shape} — expected judges × items")
    values_V = np.unique(ratings_JI[np.isfinite(ratings_JI)])
    coincidence_VV = np.zeros((len(values_V), len(values_V)))
    for column in ratings_JI.T:
        given = column[np.isfinite(column)]
        if len(given) >= 2:
            count_V = (given[:, None] == values_V).sum(axis=0).astype(np.float64)
            coincidence_VV += (np.outer(count_V, count_V) - np.diag(count_V)) / (len(given) - 1)
    if not coincidence_VV.any():
        return math.nan
    return float(alphas(coincidence_VV[None], values_V, level=level)[0])


def alphas(coincidence_BVV: Floats, values_V: Floats, *, level: Level) -> Floats:
    """Return Krippendorff's α of each coincidence matrix."""
    count_BV = coincidence_BVV.sum(axis=-1)
    total_B = count_BV.sum(axis=-1)
    distance = _distances(count_BV, values_V, level)
    observed_B = (coincidence_BVV * distance).sum(axis=(-1, -2))
    expected_B = (count_BV[..., :, None] * count_BV[..., None, :] * distance).sum(axis=(-1, -2))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(expected_B > 0, 1 - (total_B - 1) * observed_B / expected_B, math.nan)


def _distances(count_BV: Floats, values_V: Floats, level: Level) -> Floats:
    """Return squared distances between values: (V, V), for ordinal ones (B, V, V)."""
    if level == "ordinal":
        rank_BV = count_BV.cumsum(axis=-1) - count_BV / 2
        return (rank_BV[..., :, None] - rank_BV[..., None, :]) ** 2
    difference_VV = values_V[:, None] - values_V[None, :]
    if level == "nominal":
        return (difference_VV != 0).astype(np.float64)
    if level == "interval":
        return difference_VV**2
    total_VV = values_V[:, None] + values_V[None, :]
    return np.divide(difference_VV, total_VV, out=np.zeros_like(difference_VV), where=total_VV != 0) ** 2


def alpha_from_moments(moments_B4: Floats) -> Floats:
    """Return interval α from n, Σx, Σx² and Σ_items Σ_pairs (x − x')²/(m − 1): the same number for any many values."""
    count, first, second, observed = moments_B4.T
    expected = 2 * (count * second - first**2)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(expected > 1e-12 * np.abs(count * second), 1 - (count - 1) * observed / expected, math.nan)
