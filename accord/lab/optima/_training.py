"""What the claims of every family are made with: training to rounding in the enumerable world, and what is read off."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from accord.groups import ObjectiveResult, ScoredGroups
from accord.lab.enumerable import EnumerableWorld, Policy, Population, comparisons, fit
from accord.objectives import OBJECTIVES

BETA = 0.5
"""The strength used by claims that need one: far from 1, so that a forgotten factor shows."""


def train(
    policy: Policy,
    population_at: Callable[[Tensor], Population],
    objective: Callable[[ScoredGroups], ObjectiveResult],
) -> float:
    """Fit the policy to an objective's population loss and return that loss."""

    def loss() -> Tensor:
        population = population_at(policy.logps_PK())
        return population.mean(objective(population.groups))

    fit(policy, loss)
    return loss().item()


def descend(policy: Policy, loss: Callable[[Tensor], Tensor]) -> None:
    """Take plain gradient steps: what is left where a loss has no minimum for `fit` to find."""
    optimiser = torch.optim.SGD(policy.parameters(), lr=2.0)
    for _ in range(300):
        optimiser.zero_grad()
        loss(policy.logps_PK()).backward()
        optimiser.step()


def train_on_pairs(
    policy: Policy, world: EnumerableWorld, pairs: list[tuple[int, int]], objective: str, **settings: float | str
) -> Policy:
    """Fit the policy to a row's population loss over pairs in both orders, weighted by the raters; return it."""
    train(
        policy,
        lambda logps_PK: comparisons(world, logps_PK, pairs),
        lambda groups: OBJECTIVES[objective].fn(groups, **settings),
    )
    return policy


def with_strengths(population: Population, strength_PG: Float[Tensor, "P G"]) -> Population:
    """Return `comparisons` that say how much better the first of each pair is, one row of pairs per prompt."""
    groups = population.groups
    strength_PKK = torch.zeros(len(population.weight_G), 2, 2, dtype=strength_PG.dtype)
    strength_PKK[:, 0, 1] = strength_PG.flatten()
    return replace(population, groups=replace(groups, strength_PKK=strength_PKK))


def log_ratio(world: EnumerableWorld, policy: Policy) -> Float[Tensor, "P K"]:
    """Return u(y) = log π(y|x) − log π_ref(y|x) of every response."""
    return policy.logps_PK() - world.reference_logps_PK


def chain_differences(score_PK: Float[Tensor, "P K"]) -> Float[Tensor, "P K-1"]:
    """Return score_i − score_{i+1}: of the pairs of `EnumerableWorld.chain`."""
    return score_PK[:, :-1] - score_PK[:, 1:]


def chain_rater_frac(world: EnumerableWorld) -> Float[Tensor, "P K-1"]:
    """Return the fraction of raters who prefer i to i + 1."""
    return world.rater_frac_PKK.diagonal(offset=1, dim1=1, dim2=2)
