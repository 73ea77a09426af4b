"""Rewards of a rollout with what is taken off them for drifting from the reference, and the KL's controller.

Axes: P prompts, K responses, T tokens. k1_t = log π_old(y_t) − log π_ref(y_t), nats: with samples of π_old, Σ_t k1_t
is an unbiased estimate of KL(π_old ‖ π_ref), and as a (constant) part of the reward its gradient is that KL's. The
other estimators are not offered here: k3 in the reward has the gradient ∇KL(π‖π_ref) − ∇KL(π_ref‖π) and diverges.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from accord.groups import Advantages, RolloutBatch

K3_IN_REWARD = (
    "k3 in the reward pulls along ∇KL(π‖π_ref) − ∇KL(π_ref‖π): the second part has the wrong sign and training "
    "diverges — the reward always takes k1; k3 is offered in the loss (objective.kl_estimator)"
)
"""Why no other estimator is offered."""


def scored_tokens(batch: RolloutBatch) -> Bool[Tensor, "P K T"]:
    """Return the tokens of responses whose reward is known."""
    return batch.is_token_PKT & batch.is_scored_PK[:, :, None]


def token_kl(batch: RolloutBatch) -> Float[Tensor, "P K T"]:
    """Return k1_t at every token of a response whose reward is known, in nats; 0 elsewhere."""
    assert batch.reference_logps_PKT is not None, "the row must declare when it reads the reference"
    return torch.where(scored_tokens(batch), batch.old_logps_PKT - batch.reference_logps_PKT, 0.0)


def penalised_reward(batch: RolloutBatch, kl_coef: float) -> Float[Tensor, "P K"]:
    """Return R − β Σ_t k1_t per response (a sum: a mean would make β depend on length); 0 where R is unknown."""
    reward_PK = torch.where(batch.is_scored_PK, batch.reward_PK, 0.0)
    return reward_PK - kl_coef * token_kl(batch).sum(dim=2) if kl_coef else reward_PK


def token_rewards(batch: RolloutBatch, kl_coef: float) -> Float[Tensor, "P K T"]:
    """Return r_t = −β k1_t, plus the rewards of steps at their ends, plus R at the last token of each response."""
    is_token_PKT = scored_tokens(batch)
    reward_PK = torch.where(batch.is_scored_PK, batch.reward_PK, 0.0)
    # the last token has every token of its response at or before it
    is_last_PKT = is_token_PKT & (is_token_PKT.cumsum(dim=2) == is_token_PKT.sum(dim=2, keepdim=True))
    reward_PKT = torch.where(is_last_PKT, reward_PK[:, :, None], 0.0)
    if batch.step_reward_PKT is not None:
        assert batch.is_step_end_PKT is not None, "rewards of steps come with the places where steps end"
        reward_PKT = reward_PKT + torch.where(is_token_PKT & batch.is_step_end_PKT, batch.step_reward_PKT, 0.0)
    return reward_PKT - kl_coef * token_kl(batch) if kl_coef else reward_PKT


def spread_over_tokens(batch: RolloutBatch, advantage_PK: Float[Tensor, "P K"]) -> Advantages:
    """Return one advantage per response at each of its tokens."""
    return Advantages(
        advantage_PKT=torch.where(scored_tokens(batch), advantage_PK[:, :, None], 0.0), is_counted_PK=batch.is_scored_PK
    )


def whiten(
    value_PKT: Float[Tensor, "P K T"], where_PKT: Bool[Tensor, "P K T"], *, epsilon: float = 1e-8
) -> Float[Tensor, "P K T"]:
    """Return (x − mean) / √(variance + ε) over the chosen tokens of the whole rollout, 0 elsewhere.

    The variance divides by n − 1. Values that are all equal give exactly 0, and so does a single one.
    """
    chosen_N = value_PKT[where_PKT]
    if len(chosen_N) < 2 or bool(chosen_N.max() == chosen_N.min()):
        return torch.zeros_like(value_PKT)
    scaled_PKT = (value_PKT - chosen_N.mean()) / (chosen_N.var() + epsilon).sqrt()
    return torch.where(where_PKT, scaled_PKT, 0.0)


def advance_kl_coef(coef: float, kl: float, *, target: float, gain: float = 0.1, clip: float = 0.2) -> float:
    """Return the next β of a controller that steers the KL of a rollout to a target.

    Formula: β (1 + K e), e = clip(KL/target − 1, ±`clip`), K = `gain`; with a horizon of n episodes K is the episodes
    of one rollout over n. KL in nats per response. Unchanged where KL = target.
    Source: Ziegler et al. 2019, arXiv:1909.08593.

    >>> [round(advance_kl_coef(0.2, kl, target=6.0), 6) for kl in (3.0, 6.0, 9.0, 12.0)]
    [0.196, 0.2, 0.204, 0.204]
    """
    error = min(max(kl / target - 1.0, -clip), clip)
    return coef * (1.0 + gain * error)


def advance_entropy_coef(coef: float, entropy: float, *, target: float = 0.2, step: float = 0.005) -> float:
    """Return the next entropy coefficient: raised by a step up to 1 while the entropy is at or below target, else cut.

    Entropy in nats per token; the coefficient stays in [0, 1].

    >>> [round(advance_entropy_coef(coef, 0.1), 6) for coef in (0.0, 1.0)], advance_entropy_coef(0.003, 0.5)
    ([0.005, 1.0], 0.0)
    """
    return min(coef + step, 1.0) if entropy <= target else max(coef - step, 0.0)
