"""Advantages of whole responses: the reward minus a baseline, the same number at every token.

Axes: P prompts, K responses, T tokens. Notation: R_i the reward of response i, less β Σ_t k1_t where β =
`kl_coef` > 0; n the responses of its group whose reward is known. A reward that is unknown enters no mean; its response
has A = 0 and is not counted. A group whose rewards are all equal, or that has one only, gives exactly 0 where the
baseline is its own.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Interval
from jaxtyping import Bool, Float
from torch import Tensor

from accord.groups import Advantages, RolloutBatch
from accord.objectives.advantages.rewards import K3_IN_REWARD, penalised_reward, spread_over_tokens
from accord.objectives.advantages.spec import AdvantageSpec, RolloutState


def reinforce(
    batch: RolloutBatch,
    *,
    baseline: Literal["none", "batch_mean", "moving_average"] = "batch_mean",
    momentum: Annotated[float, Interval(ge=0, lt=1)] = 0.9,
    kl_coef: Annotated[float, Ge(0)] = 0.0,
) -> Advantages:
    """Take from the reward what rewards usually are: nothing, the mean of the rollout, or a moving average.

    Formula: A_i = R_i − b; b = 0, the mean of R over the rollout, or the bias-corrected moving average
    b = m/w, m ← μ m + (1 − μ) mean(R), w ← μ w + (1 − μ) of the rollouts before, μ = `momentum`.
    Use: one response per prompt; several are better compared with one another (`rloo`).
    Limits: a mean that holds R_i itself scales the gradient by 1 − 1/n on average; the first rollout has no average yet
    and takes its own mean. Prompts of unequal difficulty leave much variance.
    Source: Williams 1992, doi:10.1007/BF00992696; for language models Ahmadian et al. 2024, arXiv:2402.14740.

    >>> import torch
    >>> batch = RolloutBatch(
    ...     reward_PK=torch.tensor([[1.0], [4.0]]), is_scored_PK=torch.ones(2, 1, dtype=torch.bool),
    ...     is_token_PKT=torch.ones(2, 1, 1, dtype=torch.bool), old_logps_PKT=torch.zeros(2, 1, 1),
    ... )
    >>> reinforce(batch).advantage_PKT.flatten().tolist()
    [-1.5, 1.5]
    """
    reward_PK = penalised_reward(batch, kl_coef)
    if baseline == "none":
        return spread_over_tokens(batch, reward_PK)
    known_N = reward_PK[batch.is_scored_PK]
    if baseline == "moving_average" and batch.state is not None and float(batch.state["weight"]) > 0:
        average = (batch.state["mean"] / batch.state["weight"]).to(reward_PK)
        return spread_over_tokens(batch, reward_PK - average)
    if len(known_N) == 0 or bool(known_N.max() == known_N.min()):
        return spread_over_tokens(batch, torch.zeros_like(reward_PK))
    return spread_over_tokens(batch, reward_PK - known_N.mean())


def _no_average(**_: Any) -> dict[str, Tensor]:
    return {"mean": torch.zeros((), dtype=torch.float64), "weight": torch.zeros((), dtype=torch.float64)}


def _next_average(batch: RolloutBatch, *, momentum: float = 0.9, kl_coef: float = 0.0, **_: Any) -> dict[str, Tensor]:
    assert batch.state is not None, "the average of a rollout continues that of the one before"
    known_N = penalised_reward(batch, kl_coef)[batch.is_scored_PK]
    if len(known_N) == 0:
        return dict(batch.state)
    mean = known_N.mean().to("cpu", torch.float64)
    return {
        "mean": momentum * batch.state["mean"] + (1.0 - momentum) * mean,
        "weight": momentum * batch.state["weight"] + (1.0 - momentum),
    }


def rloo(batch: RolloutBatch, *, kl_coef: Annotated[float, Ge(0)] = 0.0) -> Advantages:
    """Compare each response with the mean of the others to its prompt (REINFORCE leave-one-out).

    Formula: A_i = R_i − (1/(n − 1)) Σ_{j≠i} R_j = n/(n − 1) (R_i − mean R).
    Use: the first thing to try with K ≥ 2 responses: no critic, no bias, the reward's own scale.
    Limits: K = 2 gives A_1 = −A_2; one known reward gives A = 0; invariant to a shift of rewards, not to their scale.
    Source: Kool, van Hoof and Welling 2019 (ICLR workshop); Ahmadian et al. 2024, arXiv:2402.14740.

    >>> import torch
    >>> batch = RolloutBatch(
    ...     reward_PK=torch.tensor([[4.0, 1.0, 1.0, 9.0]]), is_scored_PK=torch.tensor([[True, True, True, False]]),
    ...     is_token_PKT=torch.ones(1, 4, 1, dtype=torch.bool), old_logps_PKT=torch.zeros(1, 4, 1),
    ... )
    >>> rloo(batch).advantage_PKT.flatten().tolist()  # the last reward is unknown
    [3.0, -1.5, -1.5, 0.0]
    """
    reward_PK = penalised_reward(batch, kl_coef)
    num_P1 = batch.is_scored_PK.sum(dim=1, keepdim=True)
    gap_PK = centred(reward_PK, batch.is_scored_PK)
    return spread_over_tokens(batch, gap_PK * num_P1 / (num_P1 - 1).clamp(min=1))


def grpo(batch: RolloutBatch, *, epsilon: Annotated[float, Gt(0)] = 1e-4) -> Advantages:
    """Compare each response with its group's mean, in units of the group's standard deviation (GRPO).

    Formula: A_i = (R_i − mean R) / (s + ε), s² = Σ (R_i − mean R)²/(n − 1).
    Use: rewards whose scale differs between prompts or is unknown.
    Limits: prompts that are nearly solved or nearly hopeless weigh most (1/s); reference implementations differ in the
    divisor of s (n − 1 here, as in TRL and verl) and in ε (1e-4 here, as in TRL). No KL in this reward: divided by s
    its strength would differ between prompts; it goes into the loss (`objective.kl_coef`).
    Source: Shao et al. 2024 (DeepSeekMath), arXiv:2402.03300.

    >>> import torch
    >>> batch = RolloutBatch(
    ...     reward_PK=torch.tensor([[1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0]]),
    ...     is_scored_PK=torch.ones(1, 8, dtype=torch.bool),
    ...     is_token_PKT=torch.ones(1, 8, 1, dtype=torch.bool), old_logps_PKT=torch.zeros(1, 8, 1),
    ... )
    >>> [round(x, 4) for x in grpo(batch).advantage_PKT.flatten().tolist()[:2]]  # 0.625 / (√(1.875/7) + 1e-4)
    [1.2074, -0.7244]
    """
    return spread_over_tokens(batch, standardised(penalised_reward(batch, 0.0), batch.is_scored_PK, epsilon=epsilon))


def dr_grpo(batch: RolloutBatch, *, kl_coef: Annotated[float, Ge(0)] = 0.0) -> Advantages:
    """Compare each response with its group's mean and leave the scale alone (Dr. GRPO: GRPO done right).

    Formula: A_i = R_i − mean R, (n − 1)/n of `rloo`.
    Use: with `aggregation=constant`: a gradient without bias but for a constant factor, where GRPO's favours
    lengths and difficulties.
    Limits: as `rloo`.
    Source: Liu et al. 2025, arXiv:2503.20783.

    >>> import torch
    >>> batch = RolloutBatch(
    ...     reward_PK=torch.tensor([[1.0, 0.0, 0.0, 1.0]]), is_scored_PK=torch.ones(1, 4, dtype=torch.bool),
    ...     is_token_PKT=torch.ones(1, 4, 1, dtype=torch.bool), old_logps_PKT=torch.zeros(1, 4, 1),
    ... )
    >>> dr_grpo(batch).advantage_PKT.flatten().tolist()
    [0.5, -0.5, -0.5, 0.5]
    """
    return spread_over_tokens(batch, centred(penalised_reward(batch, kl_coef), batch.is_scored_PK))


def centred(reward_PK: Float[Tensor, "P K"], where_PK: Bool[Tensor, "P K"]) -> Float[Tensor, "P K"]:
    """Return R − the mean of the group's known rewards; exactly 0 where they are all equal, rounding or not."""
    num_P1 = where_PK.sum(dim=1, keepdim=True)
    known_PK = torch.where(where_PK, reward_PK, 0.0)
    mean_P1 = known_PK.sum(dim=1, keepdim=True) / num_P1.clamp(min=1)
    low_P1 = torch.where(where_PK, reward_PK, torch.inf).amin(dim=1, keepdim=True)
    high_P1 = torch.where(where_PK, reward_PK, -torch.inf).amax(dim=1, keepdim=True)
    return torch.where(where_PK & (high_P1 > low_P1), known_PK - mean_P1, 0.0)


def standardised(
    reward_PK: Float[Tensor, "P K"], where_PK: Bool[Tensor, "P K"], *, epsilon: float
) -> Float[Tensor, "P K"]:
    """Return (R − mean) / (s + ε) of the group's known rewards, s with the divisor n − 1; 0 where n = 1."""
    gap_PK = centred(reward_PK, where_PK)
    num_P1 = where_PK.sum(dim=1, keepdim=True)
    std_P1 = (gap_PK.square().sum(dim=1, keepdim=True) / (num_P1 - 1).clamp(min=1)).sqrt()
    return gap_PK / (std_P1 + epsilon)


ROWS: dict[str, AdvantageSpec] = {
    "reinforce": AdvantageSpec(
        fn=reinforce,
        unit="batch",
        reference_when="kl_coef",
        invariant_to=frozenset({"shift"}),
        state=RolloutState(start=_no_average, advance=_next_average),
        refused={"kl_estimator=k3": K3_IN_REWARD},
        paper="Williams 1992, doi:10.1007/BF00992696; Ahmadian et al. 2024, arXiv:2402.14740",
    ),
    "rloo": AdvantageSpec(
        fn=rloo,
        unit="group",
        reference_when="kl_coef",
        invariant_to=frozenset({"shift"}),
        refused={"kl_estimator=k3": K3_IN_REWARD},
        paper="Ahmadian et al. 2024, arXiv:2402.14740",
    ),
    "grpo": AdvantageSpec(
        fn=grpo,
        unit="group",
        invariant_to=frozenset({"shift", "scale"}),
        paper="Shao et al. 2024, arXiv:2402.03300",
    ),
    "dr_grpo": AdvantageSpec(
        fn=dr_grpo,
        unit="group",
        reference_when="kl_coef",
        invariant_to=frozenset({"shift"}),
        refused={"kl_estimator=k3": K3_IN_REWARD},
        paper="Liu et al. 2025, arXiv:2503.20783",
    ),
}
