"""A bandit whose every rollout can be enumerated: all groups of G responses with the chance that a policy draws them.

Axes: K arms, G responses of a group, S groups (all of them). Every response is one token. float64.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from accord.groups import Advantages, ObjectiveResult, RolloutBatch, ScoredGroups, ScoredTokens
from accord.lab.enumerable import Population
from accord.objectives import OBJECTIVES
from accord.objectives.advantages import ADVANTAGES

Estimator = Callable[[RolloutBatch, Int[Tensor, "S G"]], Advantages]
"""Advantages of all groups, whose arms are given beside."""


@dataclass(frozen=True, kw_only=True)
class Bandit:
    """Arms with the chance that the reference pulls them, and their rewards."""

    reference_K: Float[Tensor, " K"]
    reward_K: Float[Tensor, " K"]

    def optimum(self, beta: float) -> Float[Tensor, " K"]:
        """Return π* ∝ π_ref e^(r/β), the maximum of E[r] − β KL(π ‖ π_ref)."""
        return (self.reference_K.log() + self.reward_K / beta).softmax(dim=0)

    def forward_optimum(self, beta: float) -> Float[Tensor, " K"]:
        """Return β π_ref/(λ − r), λ such that it sums to one: the maximum of E[r] − β KL(π_ref ‖ π)."""
        low, high = self.reward_K.max(), self.reward_K.max() + beta
        for _ in range(200):
            middle = (low + high) / 2
            is_above_one = (beta * self.reference_K / (middle - self.reward_K)).sum() > 1
            low, high = (middle, high) if is_above_one else (low, middle)
        return beta * self.reference_K / (high - self.reward_K)


def four_arms() -> Bandit:
    """Return π_ref = (.4, .3, .2, .1), r = (0, 1, 2, 3)."""
    return Bandit(
        reference_K=torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64),
        reward_K=torch.arange(4, dtype=torch.float64),
    )


def all_groups(num_arms: int, size: int) -> Int[Tensor, "S G"]:
    """Return every group of `size` responses, in order."""
    return torch.tensor(list(itertools.product(range(num_arms), repeat=size)))


def estimated_by(name: str, **settings: float | str) -> Estimator:
    """Return a row of `ADVANTAGES` as an estimator; one that looks at a group at a time."""
    return lambda batch, _: ADVANTAGES[name].fn(batch, **settings)


def worth(advantage_K: Float[Tensor, " K"]) -> Estimator:
    """Return the estimator of infinitely many responses per group: a number per arm."""

    def found(batch: RolloutBatch, arm_SG: Int[Tensor, "S G"]) -> Advantages:
        return Advantages(advantage_PKT=advantage_K.detach()[arm_SG][..., None], is_counted_PK=batch.is_scored_PK)

    return found


def rollout(
    bandit: Bandit,
    logps_K: Float[Tensor, " K"],
    estimator: Estimator,
    *,
    size: int = 1,
    sampler_K: Float[Tensor, " K"] | None = None,
) -> Population:
    """Return all groups that the policy may draw, judged and weighted; `sampler_K`: drawn from another distribution."""
    arm_SG = all_groups(len(logps_K), size)
    drawn_K = (logps_K if sampler_K is None else sampler_K).detach()
    old_SGT, reference_SGT = drawn_K[arm_SG][..., None], bandit.reference_K.log()[arm_SG][..., None]
    is_token_SGT = torch.ones_like(old_SGT, dtype=torch.bool)
    batch = RolloutBatch(
        reward_PK=bandit.reward_K[arm_SG],
        is_scored_PK=is_token_SGT[..., 0],
        is_token_PKT=is_token_SGT,
        old_logps_PKT=old_SGT,
        reference_logps_PKT=reference_SGT,
    )
    entropy = -(logps_K.exp() * logps_K).sum()
    tokens = ScoredTokens(
        policy_logps_PKT=logps_K[arm_SG][..., None],
        reference_logps_PKT=reference_SGT,
        is_trained_PKT=is_token_SGT,
        old_logps_PKT=old_SGT,
        sampler_logps_PKT=old_SGT,
        advantage_PKT=estimator(batch, arm_SG).advantage_PKT,
        entropy_PKT=entropy.expand_as(old_SGT),
    )
    return Population(groups=as_groups(tokens), weight_G=drawn_K[arm_SG].sum(dim=1).exp())


def as_groups(tokens: ScoredTokens) -> ScoredGroups:
    """Return groups whose responses are these tokens."""
    reference_PKT = tokens.reference_logps_PKT
    return ScoredGroups(
        policy_logps_PK=tokens.policy_logps_PKT.sum(dim=2),
        reference_logps_PK=None if reference_PKT is None else reference_PKT.sum(dim=2),
        num_tokens_PK=tokens.is_trained_PKT.sum(dim=2),
        is_valid_PK=tokens.is_trained_PKT.any(dim=2),
        tokens=tokens,
    )


def pairs_of(bandit: Bandit, logps_K: Float[Tensor, " K"], opponent_K: Float[Tensor, " K"]) -> Population:
    """Return all duels of an own response (first) with an opponent's, weighted by the chance of both; not judged."""
    arm_S2 = all_groups(len(logps_K), 2)
    groups = ScoredGroups(
        policy_logps_PK=logps_K[arm_S2],
        reference_logps_PK=bandit.reference_K.log()[arm_S2],
        num_tokens_PK=torch.ones_like(arm_S2),
        is_valid_PK=torch.ones_like(arm_S2, dtype=torch.bool),
        is_own_PK=torch.tensor([True, False]).expand_as(arm_S2),
    )
    log_weight_S = logps_K.detach()[arm_S2[:, 0]] + opponent_K.detach()[arm_S2[:, 1]]
    return Population(groups=groups, weight_G=log_weight_S.exp())


def judged(population: Population, arm_frac_KK: Float[Tensor, "K K"]) -> Population:
    """Return duels with the fraction of judges who prefer the one arm to the other."""
    arm_S2 = all_groups(len(arm_frac_KK), 2)
    win_frac = torch.full((len(arm_S2), 2, 2), 0.5, dtype=torch.float64)
    win_frac[:, 0, 1] = arm_frac_KK[arm_S2[:, 0], arm_S2[:, 1]]
    win_frac[:, 1, 0] = 1.0 - win_frac[:, 0, 1]
    is_compared = ~torch.eye(2, dtype=torch.bool).expand_as(win_frac)
    return replace(population, groups=replace(population.groups, win_frac_PKK=win_frac, is_compared_PKK=is_compared))


def both_verdicts(population: Population, arm_frac_KK: Float[Tensor, "K K"]) -> Population:
    """Return every duel of unequal arms twice, won by either side, weighted by the judges."""
    arm_S2 = all_groups(len(arm_frac_KK), 2)
    differs_S = arm_S2[:, 0] != arm_S2[:, 1]
    first_S = arm_frac_KK[arm_S2[:, 0], arm_S2[:, 1]]
    groups = population.groups
    chosen = {
        name: value[differs_S].repeat(2, 1)
        for name in ("policy_logps_PK", "reference_logps_PK", "num_tokens_PK", "is_valid_PK", "is_own_PK")
        if (value := getattr(groups, name)) is not None
    }
    num_duels = int(differs_S.sum())
    preferred = torch.zeros(2 * num_duels, 2, 2, dtype=torch.bool)
    preferred[:num_duels, 0, 1], preferred[num_duels:, 1, 0] = True, True
    weight_S = population.weight_G[differs_S]
    share_S = torch.cat([first_S[differs_S], 1.0 - first_S[differs_S]])
    return Population(groups=ScoredGroups(**chosen, preferred_PKK=preferred), weight_G=weight_S.repeat(2) * share_S)


def follow(logits: Tensor, loss: Callable[[Tensor], Tensor], *, lr: float = 4.0, steps: int = 150) -> Tensor:
    """Take gradient steps of a loss of log-probabilities, drawn anew at every step; return the distribution reached.

    A fixed point need not be a minimum of anything: what is drawn and what it is worth move with the policy.
    """
    logits = logits.clone().requires_grad_()
    for _ in range(steps):
        (gradient,) = torch.autograd.grad(loss(logits.log_softmax(dim=0)), logits)
        logits = (logits - lr * gradient).detach().requires_grad_()
    return logits.detach().softmax(dim=0)


def gradient_at(probs_K: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the gradient of a loss of log-probabilities by the logits, at a distribution."""
    logits = probs_K.log().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(logits.log_softmax(dim=0)), logits)
    return gradient


def loss_of(population: Population, name: str, **settings: object) -> Tensor:
    """Return a row's expected loss."""
    result: ObjectiveResult = OBJECTIVES[name].fn(population.groups, **settings)
    return population.mean(result)
