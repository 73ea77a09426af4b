"""Ranking accuracy, and what a perfectly trained policy would reach: Chen et al. 2024, arXiv:2405.19534.

Ranking accuracy is the share of pairs with π(y_w|x) > π(y_l|x). It is not reward accuracy, which compares log-ratios:
where the reference ranks a pair wrongly by far, a policy that minimises its loss still does.
Axes: P groups, K responses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor

from accord.groups import ScoredGroups

BETAS = (0.01, 0.1, 1.0, 5.0, 10.0)
UNANIMOUS = 1e-3  # a pair on which all raters agree counts as 1 − this: their logit is finite
_IDEALISED = "ranking_accuracy/idealised"


def ranking_sums(scored: ScoredGroups) -> dict[str, tuple[float, float]]:
    """Return (sum, count) over the judged pairs of each measure, for metrics that are added up.

    ranking_accuracy/normalised        1 where log π(y_w)/|y_w| > log π(y_l)/|y_l|, a tie counts one half
    ranking_accuracy/reference         the reference's own
    ranking_accuracy/idealised@β       1 where log π_ref(y_w)/π_ref(y_l) + logit(a)/β > 0, the ranking of the optimum
                                       of DPO and RLHF; a = fraction of raters who prefer y_w, 1 − 0.001 where all do
    """
    if scored.preferred_PKK is None or not bool(scored.preferred_PKK.any()):
        return {}
    p, better, worse = scored.preferred_PKK.nonzero(as_tuple=True)
    logps_PK, lengths_PK = scored.policy_logps_PK, scored.num_tokens_PK.clamp(min=1)
    mean_PK = logps_PK / lengths_PK
    columns = {"ranking_accuracy/normalised": share_above_zero(mean_PK[p, better] - mean_PK[p, worse])}
    reference_PK = scored.reference_logps_PK
    if reference_PK is not None:
        gap = reference_PK[p, better] - reference_PK[p, worse]
        columns["ranking_accuracy/reference"] = share_above_zero(gap)
        logit = torch.logit(_rater_fraction(scored, p, better, worse), eps=UNANIMOUS).to(gap.dtype)
        for beta in BETAS:
            columns[f"{_IDEALISED}@{beta:g}"] = share_above_zero(gap + logit / beta)
    return {name: (float(values.double().sum()), float(len(values))) for name, values in columns.items()}


def _rater_fraction(scored: ScoredGroups, p: Tensor, better: Tensor, worse: Tensor) -> Tensor:
    if scored.win_frac_PKK is None or scored.is_compared_PKK is None:
        return torch.ones_like(p, dtype=torch.float64)
    fraction = scored.win_frac_PKK[p, better, worse].double()
    return torch.where(scored.is_compared_PKK[p, better, worse], fraction, 1.0)


def summarise_ranking(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the middle, lowest and highest idealised accuracy over β, and the alignment gap: idealised − reached."""
    reached = metrics.get("ranking_accuracy")
    found = [metrics[name] for beta in BETAS if (name := f"{_IDEALISED}@{beta:g}") in metrics]
    if not found or reached is None:
        return {}
    return {
        _IDEALISED: median(found),
        f"{_IDEALISED}_low": min(found),
        f"{_IDEALISED}_high": max(found),
        "ranking_accuracy/alignment_gap": median(found) - reached,
    }


def whole_rankings(rows: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """Return of how many groups with more than one judged pair every pair is ranked as judged, and how many there are.

    `rows` are per-example rows with `policy_logps` and `pairs`, a list of [better, worse].
    """
    judged = [row for row in rows if len(row["pairs"]) > 1]
    right = sum(
        all(row["policy_logps"][better] > row["policy_logps"][worse] for better, worse in row["pairs"])
        for row in judged
    )
    return right, len(judged)


def share_above_zero(values: Tensor) -> Tensor:
    """Return 1 above zero, ½ at zero, 0 below."""
    return (values > 0).float() + 0.5 * (values == 0).float()
