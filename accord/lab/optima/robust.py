"""Claims of the robust combinators: reliabilities of judges are recovered, the worst-served population is served best.

Axes: P prompts, K responses, J judges, G groups (one vote or one pair each), S strata.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from accord.claims import Claim
from accord.groups import ScoredGroups, Votes, groups_from_pairs
from accord.lab.enumerable import EnumerableWorld, Population, build_world, comparisons, fit, tree_at_reference
from accord.lab.optima._training import BETA
from accord.lab.row_checks import equal_everywhere, random_groups
from accord.objectives import OBJECTIVES, Need

# Judges who err ------------------------------------------------------------------------------------------------------

TRUE_J = torch.tensor([0.95, 0.75, 0.6, 0.2], dtype=torch.float64)
"""Reliabilities of the simulated judges; the last is wrong four times in five."""


def _votes(world: EnumerableWorld, logps_PK: Tensor, true_J: Tensor) -> tuple[Population, Tensor]:
    """Return every vote that judges of these reliabilities can give, each a group, weighted; and who gave it.

    A judge sees the opinion of one of the world's raters and reports it rightly with probability η_k.
    """
    pairs = comparisons(world, logps_PK, world.all_pairs())
    num_pairs, num_judges = len(pairs.weight_G), len(true_J)
    judge_G = torch.arange(num_judges).repeat_interleave(num_pairs)
    rater_frac_G, right_G = pairs.weight_G.repeat(num_judges), true_J[judge_G]
    weight_G = right_G * rater_frac_G + (1.0 - right_G) * (1.0 - rater_frac_G)
    place_G = torch.arange(num_pairs).repeat(num_judges)
    groups = ScoredGroups(
        policy_logps_PK=pairs.groups.policy_logps_PK[place_G],
        reference_logps_PK=None if pairs.groups.reference_logps_PK is None else pairs.groups.reference_logps_PK[place_G],
        num_tokens_PK=pairs.groups.num_tokens_PK[place_G],
        is_valid_PK=pairs.groups.is_valid_PK[place_G],
        votes=Votes(
            better_PC=torch.zeros_like(judge_G)[:, None],
            worse_PC=torch.ones_like(judge_G)[:, None],
            judge_PC=torch.arange(len(judge_G))[:, None],  # one number per vote: its own posterior can be read off
            is_valid_PC=torch.ones_like(judge_G, dtype=torch.bool)[:, None],
        ),
    )
    return Population(groups=groups, weight_G=weight_G), judge_G


def _with_state(groups: ScoredGroups, **state: Tensor) -> ScoredGroups:
    return replace(groups, state=state)


def _judged(name: str, population: Population, judge_G: Tensor, reliability_J: Tensor, **settings: Any) -> tuple:
    """Return the population's loss and the reliabilities after a full EM step (rate 1)."""
    spec = OBJECTIVES[name]
    result = spec.fn(_with_state(population.groups, reliability=reliability_J[judge_G]), **settings)
    nothing_J = torch.zeros_like(reliability_J)
    sums = {
        "right": nothing_J.index_add(0, judge_G, population.weight_G * result.state_sums["right"]),
        "votes": nothing_J.index_add(0, judge_G, population.weight_G),
    }
    assert spec.state is not None
    moved = spec.state.advance({"reliability": reliability_J}, sums, reliability_rate=1.0)
    return population.mean(result), moved["reliability"]


def main():
    import time
    world = build_world()
    truth_PK = (world.reference_logps_PK + world.reward_PK / BETA).log_softmax(-1)
    for start in (0.99, .55, .1):
        t=time.time()
        eta = torch.full_like(TRUE_J, start)
        population, judge_G = _votes(world, truth_PK, TRUE_J)
        for n in range(3000):
            before = eta
            _, eta = _judged("re_dpo", population, judge_G, eta, beta=BETA)
            if (eta-before).abs().max() < 1e-9: break
        print(start, n, eta, (eta-TRUE_J).abs().max(), time.time()-t)
    # joint
    t=time.time()
    policy = tree_at_reference(world)
    eta = torch.full_like(TRUE_J, 0.9)
    opt = torch.optim.Adam(policy.parameters(), lr=0.02)
    opt = torch.optim.LBFGS(policy.parameters(), max_iter=5, history_size=10, line_search_fn="strong_wolfe")
    for n in range(150):
        def closure():
            opt.zero_grad()
            population, judge_G = _votes(world, policy.logps_PK(), TRUE_J)
            v,_ = _judged("re_dpo", population, judge_G, eta, beta=BETA); v.backward(); return v
        opt.step(closure)
        with torch.no_grad():
            population, judge_G = _votes(world, policy.logps_PK(), TRUE_J)
            _, eta = _judged("re_dpo", population, judge_G, eta, beta=BETA)
        if n%25==0: print(n, eta, (policy.logps_PK()-truth_PK).abs().max().item(), time.time()-t)
    print(n, eta, (policy.logps_PK()-truth_PK).abs().max().item(), time.time()-t)

CLAIMS: dict[str, Callable[[], Iterator[Claim]]] = {}
if __name__ == "__main__": main()
