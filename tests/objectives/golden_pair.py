"""The pair that golden values are given for, groups of several judged pairs, and the functions that derive by hand.

One pair throughout, unless said: log π = (−12, −15), log π_ref = (−13, −14.5), lengths (10, 12). So u = (1, −0.5), the
difference of log-ratios is 1.5, of log-probabilities 3, and of mean log-probabilities −1.2 + 1.25.
"""

from __future__ import annotations

import math

import torch

from accord.groups import ScoredGroups, groups_from_pairs


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def softplus(z: float) -> float:
    return math.log1p(math.exp(z))


def pair(policy=(-12.0, -15.0), reference=(-13.0, -14.5), lengths=(10, 12)) -> ScoredGroups:
    return groups_from_pairs(
        torch.tensor([policy], dtype=torch.float64, requires_grad=True),
        reference_logps_P2=torch.tensor([reference], dtype=torch.float64),
        num_tokens_P2=torch.tensor([lengths]),
    )


def group(preferred: list[tuple[int, int]], policy: list[float], reference: list[float] | None = None) -> ScoredGroups:
    """One group of K responses, 3, 4, … tokens long, with the judged pairs (better, worse)."""
    preferred_PKK = torch.zeros(1, len(policy), len(policy), dtype=torch.bool)
    for better, worse in preferred:
        preferred_PKK[0, better, worse] = True
    return ScoredGroups(
        policy_logps_PK=torch.tensor([policy], dtype=torch.float64, requires_grad=True),
        reference_logps_PK=torch.tensor([reference or [0.0] * len(policy)], dtype=torch.float64),
        num_tokens_PK=torch.arange(3, 3 + len(policy))[None],
        is_valid_PK=torch.ones(1, len(policy), dtype=torch.bool),
        preferred_PKK=preferred_PKK,
    )


def slopes(result_loss_P: torch.Tensor, groups: ScoredGroups) -> list[float]:
    """Return d(Σ loss)/d(log π) of the first group."""
    (gradient_PK,) = torch.autograd.grad(result_loss_P.sum(), groups.policy_logps_PK)
    return gradient_PK[0].tolist()
