"""Offline reinforcement learning on rated responses: what each token is worth, learnt beside the words themselves.

Axes: P prompts, K responses per prompt, T tokens of a response. State s_t is the prompt with the tokens before t.
"""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Gt, Interval
from jaxtyping import Bool, Float, Int
from torch import Tensor

from accord.groups import ObjectiveResult, ScoredGroups
from accord.objectives._ops import given_ratings, trained_tokens
from accord.objectives.spec import Need, ObjectiveSpec


def ilql(
    groups: ScoredGroups,
    *,
    gamma: Annotated[float, Interval(gt=0, le=1)] = 0.99,
    tau: Annotated[float, Interval(gt=0, lt=1)] = 0.7,
    alpha: Annotated[float, Ge(0)] = 0.1,
    bc: Annotated[float, Ge(0)] = 1.0,
    polyak: Annotated[float, Gt(0), Interval(le=1)] = 0.005,
) -> ObjectiveResult:
    """Learn the values of tokens from rated responses, to steer decoding by them (implicit language Q-learning).

    Formula: per token, Σ_i (y − Q_i)² + w (Q̄ − V)² − α Σ_i log softmax Q_i(s, ·)[a] − bc log π(a|s), averaged;
    w = |τ − 1[Q̄ < V]|, y = γ sg[V(s')], and the rating where the response ends; Q_1 and Q_2 two heads, Q̄ the smaller of
    their slow copies', V a head. `polyak`, the share of Q_i that the copies take up after each step, is no part of it.
    Gradient: −2 (y − Q_i) by Q_i; −2 w (Q̄ − V) by V; −α and −bc by the log-probabilities; none by y and Q̄.
    Optimum: at α = 0, V = E_data[Q] for τ = ½ (SARSA), and V → the largest Q of any token in the data as τ → 1: value
    iteration that never asks about what nobody wrote. The words themselves learn to write as the data does.
    Use: many rated responses of any writers, no sampling. Then `accord sample --value-guided β`, where π e^{β(Q̄ − V)}
    is drawn from: β is chosen after training, and 0 is the imitator.
    Limits: needs a model with a linear vocabulary head, on which four matrices as large as it are put. Only rated
    responses enter, good or bad; one that was cut off counts as ended. τ near 1 takes luck for merit where the same
    token leads to different ratings. Ratings should lie within a few units. Equal ratings teach nothing but imitation.
    Source: Snell et al. 2022, arXiv:2206.11871; here the heads are linear and the imitator is the same model.

    >>> import torch
    >>> from accord.groups import ScoredGroups, ScoredTokens
    >>> one = lambda value: torch.full((1, 1, 1), value)
    >>> tokens = ScoredTokens(policy_logps_PKT=one(-1.0), is_trained_PKT=one(True), value_PKT=one(0.5),
    ...                       q_PKT2=torch.tensor([[[[1.0, 0.0]]]]), q_logps_PKT2=torch.tensor([[[[-1.0, -2.0]]]]),
    ...                       target_q_PKT=one(0.0))
    >>> groups = ScoredGroups(policy_logps_PK=torch.tensor([[-1.0]]), num_tokens_PK=torch.tensor([[1]]),
    ...                       is_valid_PK=torch.tensor([[True]]), reward_PK=torch.tensor([[1.0]]),
    ...                       is_rated_PK=torch.tensor([[True]]), tokens=tokens)
    >>> round(ilql(groups).loss_P.item(), 4)  # 0² + 1², 0.3 × 0.5², 0.1 × 3, 1
    2.375
    """
    del polyak  # obeyed by the run, which moves the copies
    is_rated_PK, rating_PK = given_ratings(groups)
    is_used_PKT = trained_tokens(groups) & is_rated_PK[:, :, None]
    tokens = groups.tokens
    assert tokens is not None, "the objective's spec must declare that it needs tokens"
    q_PKT2, q_logps_PKT2 = _at(is_used_PKT, tokens.q_PKT2), _at(is_used_PKT, tokens.q_logps_PKT2)
    value_PKT, target_PKT = _at(is_used_PKT, tokens.value_PKT), _at(is_used_PKT, tokens.target_q_PKT)
    aim_PKT = _bootstrapped(value_PKT.detach(), is_used_PKT, rating_PK, gamma)
    gap_PKT = target_PKT - value_PKT
    asymmetric_PKT = torch.where(gap_PKT < 0, 1.0 - tau, tau)
    loss_PKT = (
        (aim_PKT[..., None] - q_PKT2).square().sum(dim=-1)
        + asymmetric_PKT * gap_PKT.square()
        - alpha * q_logps_PKT2.sum(dim=-1)
        - bc * _at(is_used_PKT, tokens.policy_logps_PKT)
    )
    length_P = is_used_PKT.sum(dim=(1, 2))
    return ObjectiveResult(
        loss_P=torch.where(is_used_PKT, loss_PKT, 0.0).sum(dim=(1, 2)),
        is_counted_P=length_P > 0,
        implicit_reward_PK=gap_PKT.detach().sum(dim=2),
        denominator_P=length_P.to(torch.promote_types(loss_PKT.dtype, torch.float32)),
    )


def _at(is_used_PKT: Bool[Tensor, "P K T"], values: Tensor | None) -> Tensor:
    assert values is not None, "the objective's spec must declare that it needs values of tokens"
    return torch.where(is_used_PKT if values.ndim == 3 else is_used_PKT[..., None], values, 0.0)


def _bootstrapped(
    value_PKT: Float[Tensor, "P K T"], is_used_PKT: Bool[Tensor, "P K T"], rating_PK: Float[Tensor, "P K"], gamma: float
) -> Float[Tensor, "P K T"]:
    """Return γ V before the next token that counts (what lies between is no choice), or the rating after the last."""
    width = is_used_PKT.shape[2]
    place_PKT: Int[Tensor, "P K T"] = torch.where(is_used_PKT, torch.arange(width, device=value_PKT.device), width)
    first_PKT = place_PKT.flip(2).cummin(dim=2).values.flip(2)  # the first that counts, from each place on
    next_PKT = torch.nn.functional.pad(first_PKT[:, :, 1:], (0, 1), value=width)
    ahead_PKT = value_PKT.gather(2, next_PKT.clamp(max=width - 1))
    return torch.where(next_PKT < width, gamma * ahead_PKT, rating_PK[:, :, None])


ROWS: dict[str, ObjectiveSpec] = {
    "ilql": ObjectiveSpec(
        fn=ilql,
        family="token",
        level="token",
        needs=frozenset({Need.TOKENS, Need.RATINGS, Need.Q_VALUES}),
        reference=False,
        learns_from_reference=False,  # it imitates every response; what is better shows in decoding
        has_stop_gradient=True,
        proof="fixed point",
        implicit_reward="Σ_t (Q̄ − V)",
        paper="Snell et al. 2022, arXiv:2206.11871",
    ),
}
