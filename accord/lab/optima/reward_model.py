"""Claims of reward models: a free table of scores, trained under raters whose opinions are known exactly.

Notation as in the objectives: r(y) the score, p = the fraction of raters who prefer the first. What raters leave open
(a constant per prompt) is taken out by centring.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from accord.claims import Claim
from accord.groups import ScoredGroups, ScoredSteps
from accord.lab.enumerable import EnumerableWorld, Population, build_world, comparisons, fit, labels
from accord.lab.optima._training import chain_differences, chain_rater_frac
from accord.lab.row_checks import equal_everywhere, random_groups
from accord.objectives import OBJECTIVES, Need


class _Table(nn.Module):
    """One free number per place: a reward model without a backbone."""

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.zeros(*shape, dtype=torch.float64))


def _fit_scores(
    row: str, shape: Sequence[int], population_at: Callable[[Tensor], Population], **settings: float | str
) -> Tensor:
    """Return the table that minimises a row's population loss."""
    table = _Table(shape)

    def loss() -> Tensor:
        population = population_at(table.values)
        return population.mean(OBJECTIVES[row].fn(population.groups, **settings))

    fit(table, loss)
    return table.values.detach()


def _scored(population: Population) -> Population:
    """Take what a population was built with as scores, where it has log-probabilities."""
    groups = population.groups
    return replace(population, groups=replace(groups, score_PK=groups.policy_logps_PK))


def _fit_on_pairs(row: str, world: EnumerableWorld, pairs: list[tuple[int, int]], **settings: float | str) -> Tensor:
    shape = world.reward_PK.shape
    return _fit_scores(row, shape, lambda score_PK: _scored(comparisons(world, score_PK, pairs)), **settings)


def _centre(score_PK: Tensor) -> Tensor:
    return score_PK - score_PK.mean(dim=1, keepdim=True)


# Pairs ---------------------------------------------------------------------------------------------------------------


def _bradley_terry_claims() -> Iterator[Claim]:
    world = build_world()
    score_PK = _fit_on_pairs("bradley_terry", world, world.all_pairs())
    yield equal_everywhere(
        "Bradley–Terry raters: r = their reward, centred", _centre(world.reward_PK), _centre(score_PK)
    )
    world = build_world(bradley_terry=False)
    score_PK = _fit_on_pairs("bradley_terry", world, world.chain(), weighting="pair")
    expected = torch.logit(chain_rater_frac(world))
    yield equal_everywhere(
        "any raters, pairs counted one by one: difference = logit p", expected, chain_differences(score_PK)
    )
    groups = random_groups({Need.PREFERENCES, Need.SCORES}, seed=0)
    zeros_PK = torch.zeros_like(groups.policy_logps_PK)
    as_policy = replace(groups, policy_logps_PK=groups.score_PK, reference_logps_PK=zeros_PK)
    yield equal_everywhere(
        "= dpo with β = 1 and the score in the place of the log-ratio",
        OBJECTIVES["dpo"].fn(as_policy, beta=1.0).loss_P,
        OBJECTIVES["bradley_terry"].fn(groups).loss_P,
        tolerance=1e-12,
    )


def _margin_claims() -> Iterator[Claim]:
    world, scale = build_world(bradley_terry=False), 0.5
    strength_PK = 1.0 + world.reward_PK.abs()  # any; the same for both orders of a pair

    def population_at(score_PK: Tensor) -> Population:
        population = _scored(comparisons(world, score_PK, world.chain()))
        first_PC = strength_PK[:, : len(world.chain())].repeat(1, 2).flatten()  # each pair in both orders
        strength_G22 = first_PC[:, None, None].expand(-1, 2, 2)
        return replace(population, groups=replace(population.groups, strength_PKK=strength_G22))

    score_PK = _fit_scores("margin", world.reward_PK.shape, population_at, margin_scale=scale)
    # p σ(m − z) = (1 − p) σ(m + z) is a quadratic in e^z
    odds = torch.exp(torch.logit(chain_rater_frac(world)))
    shrink = torch.exp(-scale * strength_PK[:, : len(world.chain())])
    root = (odds - 1 + ((odds - 1) ** 2 + 4 * odds * shrink**2).sqrt()) / (2 * shrink)
    yield equal_everywhere(
        "difference = log of the root of e^−m x² + (1 − o)x − o e^−m, o = p/(1 − p), m = margin",
        root.log(),
        chain_differences(score_PK),
    )
    groups = random_groups({Need.PREFERENCES, Need.STRENGTHS, Need.SCORES}, seed=0)
    yield equal_everywhere(
        "margin 0 = bradley_terry",
        OBJECTIVES["bradley_terry"].fn(groups).loss_P,
        OBJECTIVES["margin"].fn(groups, margin_scale=0.0).loss_P,
        tolerance=1e-12,
    )


def _centred_claims() -> Iterator[Claim]:
    world = build_world(num_prompts=5, num_content=1, max_content=1, bradley_terry=False)  # two responses
    score_PK = _fit_on_pairs("centred", world, world.all_pairs(), centring_weight=0.1)
    half_P1 = 0.5 * torch.logit(chain_rater_frac(world))
    yield equal_everywhere("two responses: r = ±logit(p)/2", torch.cat([half_P1, -half_P1], dim=1), score_PK)


# Rankings ------------------------------------------------------------------------------------------------------------


def _outcomes(world: EnumerableWorld, score_PK: Tensor, preferred_OKK: Tensor, weight_PO: Tensor) -> Population:
    """Return one group per prompt and outcome of its raters, prompts outermost."""
    num_prompts, num_outcomes = weight_PO.shape
    score_GK = score_PK.repeat_interleave(num_outcomes, dim=0)
    groups = ScoredGroups(
        policy_logps_PK=torch.zeros_like(score_GK),
        num_tokens_PK=world.num_tokens_K.expand(score_GK.shape),
        is_valid_PK=torch.ones_like(score_GK, dtype=torch.bool),
        preferred_PKK=preferred_OKK.repeat(num_prompts, 1, 1),
        score_PK=score_GK,
    )
    return Population(groups=groups, weight_G=weight_PO.flatten())


def _k_wise_claims() -> Iterator[Claim]:
    world = build_world(max_content=1)  # three responses
    pairs = world.all_pairs()
    preferred_OKK = torch.zeros(2 ** len(pairs), 3, 3, dtype=torch.bool)
    for outcome, turned in enumerate(itertools.product((False, True), repeat=len(pairs))):
        for (i, j), is_turned in zip(pairs, turned, strict=True):
            preferred_OKK[outcome, *((j, i) if is_turned else (i, j))] = True
    chance_POKK = torch.where(preferred_OKK, world.rater_frac_PKK[:, None], 1.0)
    weight_PO = chance_POKK.prod(dim=3).prod(dim=2)
    score_PK = _fit_scores(
        "k_wise", world.reward_PK.shape, lambda score_PK: _outcomes(world, score_PK, preferred_OKK, weight_PO)
    )
    yield equal_everywhere(
        "three responses, all pairs judged: r = the raters' reward", *map(_centre, (world.reward_PK, score_PK))
    )
    groups = random_groups({Need.PREFERENCES, Need.SCORES}, seed=0, num_responses=2)
    yield equal_everywhere(
        "K = 2: bradley_terry",
        OBJECTIVES["bradley_terry"].fn(groups).loss_P,
        OBJECTIVES["k_wise"].fn(groups).loss_P,
        tolerance=1e-12,
    )


def _plackett_luce_claims() -> Iterator[Claim]:
    world = build_world(num_content=3, max_content=1)  # four responses
    orders = torch.tensor(list(itertools.permutations(range(4))))
    place_OK = orders.argsort(dim=1)
    preferred_OKK = place_OK[:, :, None] < place_OK[:, None, :]
    reward_POK = world.reward_PK[:, orders]  # best first
    left_POK = reward_POK.flip(2).logcumsumexp(dim=2).flip(2)
    weight_PO = (reward_POK - left_POK).sum(dim=2).exp()

    def population_at(score_PK: Tensor) -> Population:
        return _outcomes(world, score_PK, preferred_OKK, weight_PO)

    score_PK = _fit_scores("rm_plackett_luce", world.reward_PK.shape, population_at)
    yield equal_everywhere(
        "Plackett–Luce raters: r = their reward, centred", *map(_centre, (world.reward_PK, score_PK))
    )
    equal = OBJECTIVES["rm_plackett_luce"].fn(population_at(torch.zeros_like(world.reward_PK)).groups).loss_P
    yield equal_everywhere(
        "loss at equal scores = log K!", torch.full_like(equal, math.log(math.factorial(4))), equal, tolerance=1e-12
    )


# A joint model, and right or wrong -----------------------------------------------------------------------------------


def _pairwise_preference_claims() -> Iterator[Claim]:
    world = build_world(bradley_terry=False)
    better, worse = (torch.tensor(side) for side in zip(*world.all_pairs(), strict=True))
    sides = torch.stack([torch.cat([better, worse]), torch.cat([worse, better])], dim=1)  # (outcomes, 2)

    def population_at(logit_PKK: Tensor) -> Population:
        population = comparisons(world, world.reward_PK, world.all_pairs())
        logit_G22 = logit_PKK[:, sides[:, :, None], sides[:, None, :]].reshape(-1, 2, 2)
        return replace(population, groups=replace(population.groups, pair_score_PKK=logit_G22))

    logit_PKK = _fit_scores("pairwise_preference", world.rater_frac_PKK.shape, population_at)
    expected_PKK = torch.logit(world.rater_frac_PKK)  # 0 on the diagonal, which nobody judges
    yield equal_everywhere("h(i, j) = logit p for both orders, transitive or not", expected_PKK, logit_PKK)


def _orm_claims() -> Iterator[Claim]:
    world = build_world()
    no_kl = torch.zeros(())
    score_PK = _fit_scores("orm", world.reward_PK.shape, lambda score_PK: _scored(labels(world, score_PK, no_kl)))
    yield equal_everywhere("r = log-odds of a label 'right'", torch.logit(world.desirable_frac_PK), score_PK)


def _prm_claims() -> Iterator[Claim]:
    world, num_steps = build_world(), 2
    right_frac_PKS = torch.sigmoid(torch.stack([world.reward_PK, 0.5 - world.reward_PK.flip(1)], dim=2))
    is_right_OS = torch.tensor(list(itertools.product((False, True), repeat=num_steps)))

    def population_at(score_PKS: Tensor) -> Population:
        """One group per prompt, response and outcome of the judging of its steps."""
        shape = (*score_PKS.shape[:2], len(is_right_OS), num_steps)
        chance_PKOS = torch.where(is_right_OS, right_frac_PKS[:, :, None], 1.0 - right_frac_PKS[:, :, None])
        flat = (shape[0] * shape[1] * shape[2], 1)
        steps = ScoredSteps(
            score_PKS=score_PKS[:, :, None].expand(shape).reshape(*flat, num_steps),
            is_right_PKS=is_right_OS.expand(shape).reshape(*flat, num_steps),
            is_labelled_PKS=torch.ones(*flat, num_steps, dtype=torch.bool),
        )
        groups = ScoredGroups(
            policy_logps_PK=torch.zeros(flat, dtype=torch.float64),
            num_tokens_PK=torch.full(flat, num_steps),
            is_valid_PK=torch.ones(flat, dtype=torch.bool),
            steps=steps,
        )
        return Population(groups=groups, weight_G=chance_PKOS.prod(dim=3).flatten())

    score_PKS = _fit_scores("prm", right_frac_PKS.shape, population_at)
    yield equal_everywhere("r_s = log-odds of a label 'right', step by step", torch.logit(right_frac_PKS), score_PKS)


CLAIMS: dict[str, Callable[[], Iterator[Claim]]] = {
    "bradley_terry": _bradley_terry_claims,
    "k_wise": _k_wise_claims,
    "rm_plackett_luce": _plackett_luce_claims,
    "margin": _margin_claims,
    "centred": _centred_claims,
    "pairwise_preference": _pairwise_preference_claims,
    "orm": _orm_claims,
    "prm": _prm_claims,
}
