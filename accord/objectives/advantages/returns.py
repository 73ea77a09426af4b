"""Advantages that differ between the tokens of a response: rewards per token, summed to returns, less a value.

Axes: P prompts, K responses, T tokens. Notation: r_t = −β k1_t, plus the rewards of steps at their last tokens where
they are given, plus R at the last token; exactly one token carries R. β = `kl_coef`. Only tokens of responses whose
reward is known enter; after the last of them value and reward are 0.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Interval
from jaxtyping import Float
from torch import Tensor

from accord.groups import Advantages, RolloutBatch
from accord.objectives.advantages.baselines import centred, standardised
from accord.objectives.advantages.rewards import K3_IN_REWARD, scored_tokens, token_rewards, whiten
from accord.objectives.advantages.spec import AdvantageSpec


def gae(
    batch: RolloutBatch,
    *,
    gamma: Annotated[float, Interval(gt=0, le=1)] = 1.0,
    lam: Annotated[float, Interval(ge=0, le=1)] = 0.95,
    kl_coef: Annotated[float, Ge(0)] = 0.0,
    whitened: bool = True,
) -> Advantages:
    """Weigh a critic's one-step surprises into advantages (generalised advantage estimation), then whiten them.

    Formula: δ_t = r_t + γ V_{t+1} − V_t, V after the last token 0; A_t = Σ_k (γλ)^k δ_{t+k}; the critic's target is
    A_t + V_t before whitening, which is over all tokens of the rollout.
    Use: PPO, with a critic; credit within a response.
    Limits: λ = 1 is the return less the value (no bias), λ = 0 the one-step surprise (least variance); γ < 1 makes
    length cost. Whitened, a common shift of the rewards is mostly lost, and small advantages are blown up to size 1
    wherever nothing differs but the critic's errors.
    Source: Schulman et al. 2016, arXiv:1506.02438; for language models Ziegler et al. 2019, arXiv:1909.08593.

    >>> import torch
    >>> batch = RolloutBatch(
    ...     reward_PK=torch.tensor([[1.0]]), is_scored_PK=torch.ones(1, 1, dtype=torch.bool),
    ...     is_token_PKT=torch.ones(1, 1, 2, dtype=torch.bool), old_logps_PKT=torch.zeros(1, 1, 2),
    ...     value_PKT=torch.tensor([[[0.5, 0.6]]]),
    ... )
    >>> found = gae(batch, lam=0.5, whitened=False)  # 0.1 + 0.5 × 0.4, and 1 − 0.6
    >>> [round(x, 6) for x in found.advantage_PKT.flatten().tolist()]
    [0.3, 0.4]
    """
    assert batch.value_PKT is not None, "the row declares that it needs a critic"
    is_token_PKT, reward_PKT = scored_tokens(batch), token_rewards(batch, kl_coef)
    value_PKT = torch.where(is_token_PKT, batch.value_PKT, 0.0)
    advantage_PKT = torch.zeros_like(reward_PKT)
    running_PK = next_value_PK = torch.zeros_like(reward_PKT[:, :, 0])
    for t in reversed(range(reward_PKT.shape[2])):
        is_token_PK = is_token_PKT[:, :, t]
        surprise_PK = reward_PKT[:, :, t] + gamma * next_value_PK - value_PKT[:, :, t]
        # what is no token of the policy's, such as a user's turn in between, is stepped over
        running_PK = torch.where(is_token_PK, surprise_PK + gamma * lam * running_PK, running_PK)
        next_value_PK = torch.where(is_token_PK, value_PKT[:, :, t], next_value_PK)
        advantage_PKT[:, :, t] = torch.where(is_token_PK, running_PK, 0.0)
    return Advantages(
        advantage_PKT=whiten(advantage_PKT, is_token_PKT) if whitened else advantage_PKT,
        return_PKT=advantage_PKT + value_PKT,
        is_counted_PK=batch.is_scored_PK,
    )


def reinforce_pp(
    batch: RolloutBatch,
    *,
    baseline: Literal["none", "group_mean"] = "none",
    gamma: Annotated[float, Interval(gt=0, le=1)] = 1.0,
    kl_coef: Annotated[float, Ge(0)] = 0.0,
) -> Advantages:
    """Whiten the rewards to come over all tokens of the rollout, without a critic (REINFORCE++).

    Formula: G_t = Σ_{k ≥ t} γ^(k − t) r_k; A_t = (G_t − mean G)/√(var G + 1e-8), mean and variance over all tokens.
    "group_mean" first takes the group's mean reward off R.
    Use: one response per prompt, or several ("group_mean"), where a critic is too much.
    Limits: long responses weigh more in the mean; the mean is the whole rollout's, so prompts of unequal difficulty
    share a baseline unless it is the group's.
    Source: Hu 2025, arXiv:2501.03262.

    >>> import torch
    >>> batch = RolloutBatch(
    ...     reward_PK=torch.tensor([[1.0, 3.0]]), is_scored_PK=torch.ones(1, 2, dtype=torch.bool),
    ...     is_token_PKT=torch.ones(1, 2, 2, dtype=torch.bool), old_logps_PKT=torch.zeros(1, 2, 2),
    ... )
    >>> [round(x, 4) for x in reinforce_pp(batch).advantage_PKT.flatten().tolist()]  # ±1 / √(4/3)
    [-0.866, -0.866, 0.866, 0.866]
    """
    is_token_PKT, reward_PKT = scored_tokens(batch), token_rewards(batch, kl_coef)
    if baseline == "group_mean":
        known_PK = torch.where(batch.is_scored_PK, batch.reward_PK, 0.0)
        taken_off_PK = known_PK - centred(known_PK, batch.is_scored_PK)
        is_last_PKT = is_token_PKT & (is_token_PKT.cumsum(dim=2) == is_token_PKT.sum(dim=2, keepdim=True))
        reward_PKT = reward_PKT - torch.where(is_last_PKT, taken_off_PK[:, :, None], 0.0)
    advantage_PKT = whiten(_to_go(reward_PKT, gamma), is_token_PKT)
    return Advantages(advantage_PKT=advantage_PKT, is_counted_PK=batch.is_scored_PK)


def grpo_process(batch: RolloutBatch, *, epsilon: Annotated[float, Gt(0)] = 1e-4) -> Advantages:
    """Standardise the rewards of all steps of a group together; a token is worth the steps that end at or after it.

    Formula: r̃ = (r − mean r)/(s + ε) over the steps of the group's responses, the reward of the whole response, where
    it is not 0, being no step; A_t = Σ of r̃ over steps ending at or after t.
    Use: a process reward model, or verified steps.
    Limits: more steps, more reward: with r̃ > 0 on average a longer response gains. Without steps A = 0.
    Source: Shao et al. 2024 (DeepSeekMath, process supervision), arXiv:2402.03300.

    >>> import torch
    >>> ends = torch.tensor([[[True, True], [False, True]]])
    >>> batch = RolloutBatch(
    ...     reward_PK=torch.zeros(1, 2), is_scored_PK=torch.ones(1, 2, dtype=torch.bool),
    ...     is_token_PKT=torch.ones(1, 2, 2, dtype=torch.bool), old_logps_PKT=torch.zeros(1, 2, 2),
    ...     step_reward_PKT=torch.tensor([[[1.0, 0.0], [0.0, 2.0]]]), is_step_end_PKT=ends,
    ... )
    >>> [round(x, 3) for x in grpo_process(batch).advantage_PKT.flatten().tolist()]  # steps 1, 0 and 2: 0, −1, 1
    [-1.0, -1.0, 1.0, 1.0]
    """
    is_token_PKT = scored_tokens(batch)
    assert batch.step_reward_PKT is not None, "the row declares that it needs rewards of steps"
    assert batch.is_step_end_PKT is not None, "rewards of steps come with the places where steps end"
    is_end_PKT = is_token_PKT & batch.is_step_end_PKT
    step_PN = standardised(batch.step_reward_PKT.flatten(1), is_end_PKT.flatten(1), epsilon=epsilon)
    advantage_PKT = _to_go(step_PN.view_as(batch.step_reward_PKT), 1.0)
    return Advantages(advantage_PKT=torch.where(is_token_PKT, advantage_PKT, 0.0), is_counted_PK=batch.is_scored_PK)


def _to_go(reward_PKT: Float[Tensor, "P K T"], gamma: float) -> Float[Tensor, "P K T"]:
    """Return Σ_{k ≥ t} γ^(k − t) r_k at every place."""
    if gamma == 1.0:
        return reward_PKT.flip(2).cumsum(dim=2).flip(2)
    to_go_PKT, running_PK = torch.zeros_like(reward_PKT), torch.zeros_like(reward_PKT[:, :, 0])
    for t in reversed(range(reward_PKT.shape[2])):
        running_PK = reward_PKT[:, :, t] + gamma * running_PK
        to_go_PKT[:, :, t] = running_PK
    return to_go_PKT


ROWS: dict[str, AdvantageSpec] = {
    "reinforce_pp": AdvantageSpec(
        fn=reinforce_pp,
        unit="batch",
        steps="optional",
        reference_when="kl_coef",
        invariant_to=frozenset({"shift", "scale"}),
        refused={"kl_estimator=k3": K3_IN_REWARD},
        paper="Hu 2025, arXiv:2501.03262",
    ),
    "gae": AdvantageSpec(
        fn=gae,
        unit="batch",
        critic=True,
        steps="optional",
        reference_when="kl_coef",
        refused={"kl_estimator=k3": K3_IN_REWARD},
        paper="Schulman et al. 2016, arXiv:1506.02438",
    ),
    "grpo_process": AdvantageSpec(
        fn=grpo_process,
        unit="group",
        steps="required",
        invariant_to=frozenset({"shift", "scale"}),
        paper="Shao et al. 2024, arXiv:2402.03300",
    ),
}
