"""DPO whose strength follows how much better a reward thinks the better response.

Notation as in `logistic.py`; δ = r(y_w) − r(y_l) of the ratings that came with the responses.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from annotated_types import Ge, Gt

from accord.groups import ObjectiveResult, ScoredGroups
from accord.objectives._ops import (
    given_ratings,
    judged_pairs,
    log_ratios,
    mean_over_pairs,
    pair_margins,
    soft_label_link,
)
from accord.objectives.spec import Need, ObjectiveSpec


def dpo_reward_scaled(
    groups: ScoredGroups,
    *,
    beta: Annotated[float, Gt(0)] = 0.1,
    scale: Annotated[float, Ge(0)] = 0.5,
    rate: Annotated[float, Gt(0)] = 0.5,
) -> ObjectiveResult:
    """Fit pairs more firmly the further apart a reward model holds them (MM-RLHF's dynamic reward scaling of DPO).

    Formula: −log σ(β(δ) D), β(δ) = β (1 + w (1 − e^(−k max(δ, 0)))), w = `scale`, k = `rate`: between β and (1 + w) β.
    Gradient: ∂/∂log π(y_w) = −β(δ) σ(−β(δ) D), the opposite for y_l. Loss ln 2 at policy = reference.
    Optimum: a pair seen in both orders, y_w first with probability p and δ > 0: p β(δ) σ(−β(δ) D) = (1 − p) β σ(β D),
    so D is larger than DPO's logit(p)/β where judges are near even and smaller where they agree. w = 0 is `dpo`.
    Use: online DPO with a reward model, or a file with pairs and ratings: clear pairs should teach more.
    Limits: a pair that goes against the ratings, or lacks one, has the plain β; δ is on the reward's own scale, so k
    has its unit. Pairs made of noise by a poor reward model are scaled as well.
    Source: Zhang et al. 2025 (MM-RLHF), arXiv:2502.10391; that δ below 0 counts as 0 is ours.

    >>> import torch
    >>> from dataclasses import replace
    >>> from accord.groups import groups_from_pairs
    >>> pair = groups_from_pairs(torch.tensor([[-12.0, -15.0]]), reference_logps_P2=torch.tensor([[-13.0, -14.5]]))
    >>> pair = replace(pair, reward_PK=torch.tensor([[5.0, 0.0]]), is_rated_PK=torch.tensor([[True, True]]))
    >>> round(dpo_reward_scaled(pair).loss_P.item(), 6)  # β(5) = 0.145896: −log σ(0.145896 × 1.5)
    0.5897
    """
    pairs_PKK, log_ratio_PK = judged_pairs(groups), log_ratios(groups)
    is_rated_PK, reward_PK = given_ratings(groups)
    is_known_PKK = pairs_PKK & is_rated_PK[:, :, None] & is_rated_PK[:, None, :]
    gap_PKK = pair_margins(is_known_PKK, reward_PK).clamp(min=0.0)
    beta_PKK = beta * (1.0 - scale * torch.expm1(-rate * gap_PKK))
    margin_PKK = beta_PKK * pair_margins(pairs_PKK, log_ratio_PK)
    return mean_over_pairs(groups, pairs_PKK, soft_label_link(margin_PKK), beta * log_ratio_PK)


def _ln_2(**_: object) -> float:
    return math.log(2)


ROWS: dict[str, ObjectiveSpec] = {
    "dpo_reward_scaled": ObjectiveSpec(
        fn=dpo_reward_scaled,
        family="pairwise",
        needs=frozenset({Need.PREFERENCES, Need.RATINGS}),
        reference=True,
        is_difference_only=True,
        initial_loss=_ln_2,
        proof="optimum",
        implicit_reward="β·log(π/π_ref)",
        paper="Zhang et al. 2025, arXiv:2502.10391",
    ),
}
