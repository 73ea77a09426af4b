"""Online methods by the names people know: an objective, an estimator of advantages and the settings of the paper.

A method is nothing but settings: what a run with `method=NAME` prints in full and what any of them may be changed to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Method:
    """What a name stands for. `settings` are dotted keys of a run; `num_responses` is K unless it is set."""

    objective: str  # a row of `OBJECTIVES`
    advantage: str | None = None  # a row of `ADVANTAGES`; None = the objective reads judgements, not advantages
    settings: Mapping[str, Any] = field(default_factory=dict)
    num_responses: int
    paper: str
    summary: str


METHODS: dict[str, Method] = {
    "reinforce": Method(
        objective="reinforce",
        advantage="reinforce",
        settings={"advantage.baseline": "batch_mean", "advantage.kl_coef": 0.05},
        num_responses=1,
        paper="Williams 1992; Ahmadian et al. 2024, arXiv:2402.14740",
        summary="Reward times log-probability, less the mean reward; KL (k1) in the reward.",
    ),
    "rloo": Method(
        objective="reinforce",
        advantage="rloo",
        settings={"advantage.kl_coef": 0.05},
        num_responses=4,
        paper="Ahmadian et al. 2024, arXiv:2402.14740",
        summary="REINFORCE with the mean of a prompt's other responses as baseline; KL (k1) in the reward.",
    ),
    "ppo": Method(
        objective="ppo_clip",
        advantage="gae",
        settings={
            "advantage.gamma": 1.0,
            "advantage.lam": 0.95,
            "advantage.kl_coef": 0.05,
            "objective.aggregation": "token_mean",
            "objective.value_coef": 0.1,
            "objective.value_clip": 0.2,
            "rollout.epochs": 4,
        },
        num_responses=1,
        paper="Schulman et al. 2017, arXiv:1707.06347; Ouyang et al. 2022, arXiv:2203.02155",
        summary="Clipped ratios, a critic with GAE, KL (k1) in the reward, several passes over a rollout.",
    ),
    "reinforce_pp": Method(
        objective="ppo_clip",
        advantage="reinforce_pp",
        settings={"advantage.kl_coef": 0.01, "objective.aggregation": "token_mean"},
        num_responses=1,
        paper="Hu 2025, arXiv:2501.03262",
        summary="PPO's clipped ratios without a critic: returns whitened over all tokens of the rollout.",
    ),
    "grpo": Method(
        objective="ppo_clip",
        advantage="grpo",
        settings={
            "objective.aggregation": "seq_mean_token_mean",
            "objective.kl_coef": 0.04,
            "objective.kl_estimator": "k3",
            "objective.kl_weight": "none",
        },
        num_responses=8,
        paper="Shao et al. 2024, arXiv:2402.03300",
        summary="Rewards in units of their group's standard deviation, clipped ratios, KL (k3) in the loss.",
    ),
    "dr_grpo": Method(
        objective="ppo_clip",
        advantage="dr_grpo",
        settings={"objective.aggregation": "constant"},
        num_responses=8,
        paper="Liu et al. 2025, arXiv:2503.20783",
        summary="GRPO without division by length or standard deviation; sums over a constant length.",
    ),
    "dapo": Method(
        objective="ppo_clip",
        advantage="grpo",
        settings={
            "objective.aggregation": "token_mean",
            "objective.clip_low": 0.2,
            "objective.clip_high": 0.28,
            "rollout.dynamic_sampling": True,
            "rollout.truncated": "mask",
        },
        num_responses=16,
        paper="Yu et al. 2025, arXiv:2503.14476",
        summary="GRPO with a higher upper clip, a mean over all tokens, no flat groups and no cut responses.",
    ),
    "gspo": Method(
        objective="gspo",
        advantage="grpo",
        settings={"objective.clip_low": 3e-4, "objective.clip_high": 4e-4},
        num_responses=8,
        paper="Zheng et al. 2025, arXiv:2507.18071",
        summary="GRPO's advantages with one length-normalised ratio per response, clipped as a whole.",
    ),
    "cispo": Method(
        objective="cispo",
        advantage="grpo",
        settings={"objective.clip_high": 0.28},
        num_responses=8,
        paper="MiniMax 2025, arXiv:2506.13585",
        summary="REINFORCE with held, bounded ratios as weights: no token ever leaves the gradient.",
    ),
    "raft": Method(
        objective="raft",
        num_responses=8,
        paper="Dong et al. 2023, arXiv:2304.06767",
        summary="Imitate the best of K samples (best-of-N distillation, expert iteration).",
    ),
    "online_dpo": Method(
        objective="dpo",
        settings={"objective.beta": 0.1},
        num_responses=2,
        paper="Guo et al. 2024, arXiv:2402.04792",
        summary="DPO on fresh pairs of the policy's own, the reference fixed.",
    ),
    "iterative_dpo": Method(
        objective="dpo",
        settings={"objective.beta": 0.1, "rollout.epochs": 2},
        num_responses=8,
        paper="Xiong et al. 2023, arXiv:2312.11456",
        summary="DPO in rounds: many samples per prompt, all pairs that differ, several passes, the reference fixed.",
    ),
    "onmc_po": Method(
        objective="mc_po",
        settings={"objective.beta": 0.1, "objective.kernel": "hard_negative"},
        num_responses=4,
        paper="Chen et al. 2025, arXiv:2502.04567",
        summary="The best fresh sample against a hard negative that a Monte Carlo kernel draws from the others.",
    ),
    "sppo": Method(
        objective="sppo",
        num_responses=4,
        paper="Wu et al. 2024, arXiv:2405.00675",
        summary="Fit each sample's log-ratio to how often it beats the others: self-play towards a Nash policy.",
    ),
    "xpo": Method(
        objective="xpo",
        settings={"objective.beta": 0.1, "objective.alpha": 1e-5, "rollout.from_reference": 1},
        num_responses=2,
        paper="Xie et al. 2024, arXiv:2405.21046",
        summary="Online DPO against the reference's sample, whose likelihood is lowered: optimism.",
    ),
    "nash_md": Method(
        objective="nash_md",
        settings={"objective.tau": 0.1, "rollout.from_reference": 1, "rollout.opponent_mix": 0.5},
        num_responses=2,
        paper="Munos et al. 2023, arXiv:2312.00886",
        summary="Beat the reference's samples as judged in pairs, held near it: Nash-MD with its mixture at one end.",
    ),
}
"""Name → what it stands for."""
