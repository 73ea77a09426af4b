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
from accord.lab.enumerable import EnumerableWorld, Population, build_world, comparisons, tree_at_reference
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
    reference_PK = pairs.groups.reference_logps_PK
    groups = ScoredGroups(
        policy_logps_PK=pairs.groups.policy_logps_PK[place_G],
        reference_logps_PK=None if reference_PK is None else reference_PK[place_G],
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


def _recovery_claims() -> Iterator[Claim]:
    world = build_world(num_prompts=1)
    truth_PK = (world.reference_logps_PK + world.reward_PK / BETA).log_softmax(dim=-1)
    starts = (0.99, 0.55, 0.1)
    true_J = TRUE_J.repeat(len(starts))
    reliability_J = torch.tensor(starts, dtype=torch.float64).repeat_interleave(len(TRUE_J))
    population, judge_G = _votes(world, truth_PK, true_J)
    for _ in range(200):
        _, reliability_J = _judged("re_dpo", population, judge_G, reliability_J, beta=BETA)
    yield equal_everywhere(
        "calibrated p: every judge's reliability is found, from 0.99, 0.55 and 0.1", true_J, reliability_J
    )
    leaf_PK = truth_PK.requires_grad_()
    population, judge_G = _votes(world, leaf_PK, TRUE_J)
    loss, still_J = _judged("re_dpo", population, judge_G, TRUE_J, beta=BETA)
    (gradient_PK,) = torch.autograd.grad(loss, leaf_PK)
    yield equal_everywhere("the true p and reliabilities: no gradient", torch.zeros_like(gradient_PK), gradient_PK)
    yield equal_everywhere("the true p and reliabilities: no reliability moves", TRUE_J, still_J)
    yield equal_everywhere(
        "policy and reliabilities learnt together, from the reference and 0.9",
        TRUE_J,
        _learn_together(world),
        tolerance=0.05,
        note="250 steps: a surer policy with noisier judges explains single votes as well, and EM leaves that line of "
        "near-optima slowly",
    )


def _learn_together(world: EnumerableWorld) -> Tensor:
    policy, reliability_J = tree_at_reference(world), torch.full_like(TRUE_J, 0.9)
    optimiser = torch.optim.Adam(policy.parameters(), lr=0.2, betas=(0.9, 0.99))
    for _ in range(250):
        optimiser.zero_grad()
        population, judge_G = _votes(world, policy.logps_PK(), TRUE_J)
        loss, reliability_J = _judged("re_dpo", population, judge_G, reliability_J, beta=BETA)
        loss.backward()
        optimiser.step()
    return reliability_J


def _vote_groups(name: str) -> ScoredGroups:
    """Return random groups with votes of judges of different reliabilities."""
    groups = random_groups({Need.VOTES}, seed=3)
    reliability_J = torch.tensor([0.95, 0.7, 0.2], dtype=torch.float64)
    assert name in OBJECTIVES
    return replace(groups, state={"reliability": reliability_J})


def _gradient(groups: ScoredGroups, loss: Callable[[ScoredGroups], Tensor]) -> Tensor:
    leaf_PK = groups.policy_logps_PK.clone().requires_grad_()
    (gradient_PK,) = torch.autograd.grad(loss(replace(groups, policy_logps_PK=leaf_PK)).sum(), leaf_PK)
    return gradient_PK


def _fisher_claim(name: str, logit_of: Callable[[ScoredGroups], Tensor]) -> Claim:
    """Claim that the gradient is that of the likelihood in which it is not known which votes are right."""
    groups = _vote_groups(name)
    assert groups.votes is not None
    assert groups.state is not None
    votes, reliability_PC = groups.votes, groups.state["reliability"][groups.votes.judge_PC]

    def marginal(at: ScoredGroups) -> Tensor:
        score_PK = logit_of(at)
        logit_PC = score_PK.gather(1, votes.better_PC) - score_PK.gather(1, votes.worse_PC)
        p_PC = torch.sigmoid(logit_PC)
        loss_PC = -torch.log(p_PC * reliability_PC + (1 - p_PC) * (1 - reliability_PC))
        return (loss_PC * votes.is_valid_PC).sum(dim=1) / votes.is_valid_PC.sum(dim=1)

    spec = OBJECTIVES[name]
    return equal_everywhere(
        "Fisher identity: the gradient of −log(p η + (1 − p)(1 − η))",
        _gradient(groups, marginal),
        _gradient(groups, lambda at: spec.fn(at).loss_P),
        tolerance=1e-12,
    )


def _re_dpo_claims() -> Iterator[Claim]:
    yield from _recovery_claims()
    yield _fisher_claim("re_dpo", lambda groups: 0.1 * groups.log_ratio_PK)


def _re_ipo_claims() -> Iterator[Claim]:
    groups, (ipo, dpo) = _vote_groups("re_ipo"), (OBJECTIVES[name].fn for name in ("re_ipo", "re_dpo"))
    note = "the squares cancel and leave logit p = 2 D / τ: RE-IPO is RE-DPO with β = 2/τ"
    yield equal_everywhere(
        "loss of re_dpo with β = 2/τ",
        dpo(groups, beta=2 / 5.0).loss_P,
        ipo(groups, tau=5.0).loss_P,
        tolerance=1e-10,
        note=note,
    )
    yield _fisher_claim("re_ipo", lambda groups: 2 / 0.1 * groups.log_ratio_PK)


def _re_cpo_claims() -> Iterator[Claim]:
    def score(groups: ScoredGroups) -> Tensor:
        return 0.1 * groups.policy_logps_PK + groups.policy_logps_PK

    yield _fisher_claim("re_cpo", score)


def _re_simpo_claims() -> Iterator[Claim]:
    beta, gamma = 2.0, 1.0
    groups = _vote_groups("re_simpo")
    assert groups.votes is not None
    votes, score_PK = groups.votes, beta * groups.policy_logps_PK / groups.num_tokens_PK
    x_PC = score_PK.gather(1, votes.better_PC) - score_PK.gather(1, votes.worse_PC)
    logit_PC = torch.log1p(torch.exp(x_PC + gamma)) - torch.log1p(torch.exp(gamma - x_PC))
    sums = OBJECTIVES["re_simpo"].fn(groups).state_sums["right"]
    assert groups.state is not None
    prior_PC = torch.logit(groups.state["reliability"])[votes.judge_PC]
    right_PC = torch.sigmoid(logit_PC + prior_PC) * votes.is_valid_PC
    yield equal_everywhere(
        "logit p = log[(1 + e^(x + γ)) / (1 + e^(γ − x))], read off the posteriors",
        torch.zeros_like(sums).index_add(0, votes.judge_PC.flatten(), right_PC.flatten()),
        sums,
        tolerance=1e-12,
    )


# Populations who disagree --------------------------------------------------------------------------------------------

OPPOSED = (
    (36, 40),
    (2, 10),
)  # of the large stratum's 40 raters 36 prefer the first response; 2 of 10
UNEVEN = ((36, 40), (6, 10))


def _two_strata(difference: Tensor, strata: tuple[tuple[int, int], ...], weight_S: Tensor) -> ScoredGroups:
    """Return one pair per rater of strata (won, size), scored by a policy with this difference of log-ratios."""
    sizes = torch.tensor([size for _, size in strata])
    signs_P = torch.tensor([sign for won, size in strata for sign in [0.5] * won + [-0.5] * (size - won)]).double()
    scores_P2 = difference * torch.stack([signs_P, -signs_P], dim=1)
    stratum_P = torch.arange(len(sizes)).repeat_interleave(sizes)
    return replace(
        groups_from_pairs(scores_P2, reference_logps_P2=torch.zeros_like(scores_P2).detach()),
        stratum_P=stratum_P,
        stratum_frac_P=(sizes.double() / sizes.sum())[stratum_P],
        state={"weight": weight_S},
    )


def _play(
    name: str, strata: tuple[tuple[int, int], ...], *, rate: float, weight_step: float, **settings: float
) -> tuple[Tensor, Tensor]:
    """Train the difference of log-ratios and the weights against each other; return both as they end."""
    spec = OBJECTIVES[name]
    assert spec.state is not None
    state = spec.state.start(num_strata=len(strata))
    difference = torch.zeros((), dtype=torch.float64, requires_grad=True)
    for _ in range(200):
        result = spec.fn(_two_strata(difference, strata, state["weight"]), weight_step=weight_step, **settings)
        (slope,) = torch.autograd.grad(result.loss_P.mean(), difference)
        difference = (difference - rate * slope).detach().requires_grad_()
        state = spec.state.advance(state, result.state_sums, weight_step=weight_step)
    return difference.detach(), state["weight"]


def _group_claims(
    name: str, best_at: Callable[[float], float], *, rate: float, weight_step: float, **settings: float
) -> Iterator[Claim]:
    """`best_at`: the base's optimum where a share p of the raters prefers the first response."""

    def claim(text: str, expected: list[float], reached: list[Tensor]) -> Claim:
        return equal_everywhere(text, torch.tensor(expected, dtype=torch.float64), torch.stack(reached))

    step = {"rate": rate, "weight_step": weight_step} | settings
    difference, weight_S = _play(name, OPPOSED, **step)
    yield claim(
        "raters of 90 % and of 20 %: D = 0 and q = (3/7, 4/7), where Σ q p = 1/2 and both losses are equal",
        [0.0, 3 / 7, 4 / 7],
        [difference, *weight_S],
    )
    difference, weight_S = _play(name, UNEVEN, **step)
    yield claim(
        "raters of 90 % and of 60 %: the optimum of the latter alone, whose loss is the larger",
        [best_at(0.6), 0.0, 1.0],
        [difference, *weight_S],
    )
    difference, _ = _play(name, OPPOSED, **step | {"weight_step": 0.0})
    yield claim("η = 0: strata of 40 and of 10 raters weigh the same", [best_at(0.5 * (0.9 + 0.2))], [difference])
    lone, _ = _play(name, (OPPOSED[0],), **step)
    yield claim("one stratum: the base's own optimum", [best_at(0.9)], [lone])


def _dpo_group_claims() -> Iterator[Claim]:
    def best_at(p: float) -> float:
        return math.log(p / (1 - p)) / BETA

    yield from _group_claims("dpo_group_robust", best_at, rate=8.0, weight_step=1.0, beta=BETA)


def _ipo_group_claims() -> Iterator[Claim]:
    def best_at(p: float) -> float:
        return (p - 0.5) / BETA

    yield from _group_claims("ipo_group_robust", best_at, rate=0.25, weight_step=0.3, tau=BETA)


CLAIMS: dict[str, Callable[[], Iterator[Claim]]] = {
    "re_dpo": _re_dpo_claims,
    "re_ipo": _re_ipo_claims,
    "re_simpo": _re_simpo_claims,
    "re_cpo": _re_cpo_claims,
    "dpo_group_robust": _dpo_group_claims,
    "ipo_group_robust": _ipo_group_claims,
}
