"""Claims of objectives of judged pairs with other links: finite targets, other divergences, a term per response.

Notation as in the objectives: u(y) = log π(y|x) − log π_ref(y|x), p = the fraction of raters who prefer the first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from accord.claims import Claim
from accord.groups import ScoredGroups
from accord.lab.enumerable import (
    EnumerableWorld,
    Policy,
    Population,
    SoftmaxPolicy,
    build_world,
    comparisons,
    fit,
    tree_at_reference,
)
from accord.lab.optima._training import (
    BETA,
    chain_differences,
    chain_rater_frac,
    descend,
    log_ratio,
    train,
    train_on_pairs,
    with_strengths,
)
from accord.lab.row_checks import equal_everywhere, random_groups
from accord.objectives import OBJECTIVES, Need

# Two pairs that share no response; the others take up the mass the pairs gain or lose, so each half finds its own zero.
_APART = [(1, 2), (3, 4)]


def _apart(score_PK: Tensor) -> Tensor:
    return score_PK[:, [response for pair in _APART for response in pair]]


def _win_frac(world: EnumerableWorld) -> Tensor:
    """Return the share of raters for each response of the pairs apart, in the order of `_apart`."""
    columns = [world.rater_frac_PKK[:, i, j] for pair in _APART for i, j in (pair, pair[::-1])]
    return torch.stack(columns, dim=1)


# Finite targets ------------------------------------------------------------------------------------------------------


def _unanimous(world: EnumerableWorld) -> EnumerableWorld:
    return replace(world, rater_frac_PKK=(world.rater_frac_PKK > 0.5).double())


def _ipo_claims(objective: str, token: str, **settings: str) -> Iterator[Claim]:
    world = build_world(bradley_terry=False)
    for note, raters in (("", world), (", unanimous raters", _unanimous(world))):
        policy = train_on_pairs(tree_at_reference(raters), raters, raters.chain(), objective, tau=BETA, **settings)
        log_ratio_PK = log_ratio(raters, policy)
        score_PK = log_ratio_PK if token == "sum" else log_ratio_PK / raters.num_tokens_K
        expected = (chain_rater_frac(raters) - 0.5) / BETA
        yield equal_everywhere(f"token {token}{note}: D = (p − 1/2)/τ", expected, chain_differences(score_PK))


def _both_ipo_claims() -> Iterator[Claim]:
    for normalisation in ("sum", "mean"):
        yield from _ipo_claims("ipo", normalisation, normalisation=normalisation)


def _hinge_claims() -> Iterator[Claim]:
    world = build_world(bradley_terry=False)
    split_PKK = world.rater_frac_PKK
    agreed_PKK = torch.where(split_PKK > 0.5, split_PKK.clamp(min=0.7), split_PKK.clamp(max=0.3))
    world = replace(world, rater_frac_PKK=agreed_PKK)  # at p = 1/2 the loss is flat
    won_PK = _win_frac(world)

    def loss(world: EnumerableWorld, logps_PK: Tensor) -> Tensor:
        population = comparisons(world, logps_PK, _APART)
        return population.mean(OBJECTIVES["hinge"].fn(population.groups, beta=BETA))

    policy = SoftmaxPolicy(world.reference_logps_PK)
    least = (2 * torch.minimum(won_PK, 1 - won_PK)).mean().item()
    _descend_to_known_value(policy, partial(loss, world), least)
    yield equal_everywhere(
        "D = ±1/β on the side of the majority, loss 2 min(p, 1 − p)",
        torch.where(won_PK > 0.5, 1.0, -1.0).double()[:, ::2] / BETA,
        chain_differences(_apart(log_ratio(world, policy)))[:, ::2],
    )
    unanimous = _unanimous(world)
    policy = train_on_pairs(tree_at_reference(unanimous), unanimous, _APART, "hinge", beta=BETA)
    reached = loss(unanimous, policy.logps_PK()).item()
    yield Claim.equal("unanimous raters: loss 0", expected=0.0, reached=reached, tolerance=1e-9)


def _descend_to_known_value(policy: Policy, loss: Callable[[Tensor], Tensor], least: float) -> None:
    """Take Polyak's subgradient steps (f − f*)/|g|², which reach the edge of a piecewise linear loss to rounding."""
    for _ in range(400):
        policy.zero_grad()
        value = loss(policy.logps_PK())
        gap = value.item() - least
        if gap <= 1e-12:
            break
        value.backward()
        slopes = [(parameter, parameter.grad) for parameter in policy.parameters() if parameter.grad is not None]
        size = sum(slope.square().sum() for _, slope in slopes)
        with torch.no_grad():
            for parameter, slope in slopes:
                parameter -= gap / size * slope


def _exo_claims() -> Iterator[Claim]:
    world, epsilon = build_world(bradley_terry=False), 0.1
    for note, raters in (("", world), (", unanimous raters", _unanimous(world))):
        policy = train_on_pairs(
            tree_at_reference(raters), raters, raters.chain(), "exo_pref", beta=BETA, epsilon=epsilon
        )
        label = math.log((1 - epsilon) / epsilon)
        yield equal_everywhere(
            f"D = (2p − 1) logit(1 − ε)/β{note}: the logits of the labels are averaged",
            (2 * chain_rater_frac(raters) - 1) * label / BETA,
            chain_differences(log_ratio(raters, policy)),
        )


def _rpo_nv_claims() -> Iterator[Claim]:
    world, eta = build_world(), 0.8
    better, worse = (torch.tensor(side) for side in zip(*world.all_pairs(), strict=True))
    gap_PG = world.reward_PK[:, better] - world.reward_PK[:, worse]

    def by_reward(logps_PK: Tensor) -> Population:
        """Return every pair in the order of the reward only, with the difference as its strength."""
        both = with_strengths(comparisons(world, logps_PK, world.all_pairs()), torch.cat([gap_PG, -gap_PG], dim=1))
        return replace(both, weight_G=(torch.cat([gap_PG, -gap_PG], dim=1) > 0).double().flatten())

    for direction in ("bwd_kl", "fwd_kl", "squared"):
        policy = tree_at_reference(world)
        loss = train(policy, by_reward, partial(OBJECTIVES["rpo_nv"].fn, beta=BETA, eta=eta, direction=direction))
        yield equal_everywhere(
            f"{direction}: βD = η·difference of rewards, π_ref·exp(ηr/β)/Z",
            (world.reference_logps_PK + eta * world.reward_PK / BETA).log_softmax(dim=-1),
            policy.logps_PK(),
        )
        yield Claim.equal(f"{direction}: loss there", expected=0.0, reached=loss, tolerance=1e-9)


# Other divergences ---------------------------------------------------------------------------------------------------


def _divergence_claims(
    objective: str,
    name: str,
    slope: Callable[[Tensor], Tensor],
    generator: Callable[[Tensor], Tensor],
    **settings: str | float,
) -> Iterator[Claim]:
    """The pair form, f′(π/π_ref) differs by logit(p)/β, and what it is for: the maximiser of E[r] − β D_f.

    `slope` is f′ as a function of u; `generator` is f as a function of the ratio, with f(1) = 0.
    """
    world = build_world(bradley_terry=False)
    policy = train_on_pairs(tree_at_reference(world), world, world.chain(), objective, beta=BETA, **settings)
    yield equal_everywhere(
        f"{name}: f′(π/π_ref) of a pair differs by logit(p)/β",
        torch.logit(chain_rater_frac(world)) / BETA,
        chain_differences(slope(log_ratio(world, policy))),
    )
    world = build_world()
    policy = train_on_pairs(tree_at_reference(world), world, world.all_pairs(), objective, beta=BETA, **settings)
    direct = tree_at_reference(world)

    def loss() -> Tensor:
        logps_PK = direct.logps_PK()
        ratio_PK = (logps_PK - world.reference_logps_PK).exp()
        divergence_PK = world.reference_logps_PK.exp() * generator(ratio_PK)
        return (BETA * divergence_PK - logps_PK.exp() * world.reward_PK).sum(dim=1).mean()

    fit(direct, loss)
    yield equal_everywhere(
        f"{name}, Bradley–Terry raters: reaches what maximising E[r] − β D_f reaches",
        direct.logps_PK(),
        policy.logps_PK(),
    )


def _f_dpo_claims() -> Iterator[Claim]:
    yield from _divergence_claims("f_dpo", "reverse_kl", lambda u: u, lambda t: t * t.log(), divergence="reverse_kl")
    yield from _divergence_claims(
        "f_dpo", "forward_kl", lambda u: -torch.exp(-u), lambda t: -t.log(), divergence="forward_kl"
    )
    yield from _divergence_claims(
        "f_dpo",
        "js",
        lambda u: torch.log(2 / (1 + torch.exp(-u))),
        lambda t: t * t.log() - (1 + t) * torch.log((1 + t) / 2),
        divergence="js",
    )
    yield from _divergence_claims(
        "f_dpo",
        "alpha",
        lambda u: (1 - torch.exp(-0.4 * u)) / 0.4,
        lambda t: (t - 1) / 0.4 - (t**0.6 - 1) / (0.4 * 0.6),
        divergence="alpha",
        alpha=0.4,
    )


def _chi_po_claims() -> Iterator[Claim]:
    yield from _divergence_claims(
        "chi_po", "KL + χ²/2", lambda u: torch.exp(u) + u, lambda t: t * t.log() + (t - 1) ** 2 / 2
    )


# A term per response -------------------------------------------------------------------------------------------------


def _half_claims(objective: str, name: str, optimum: Callable[[Tensor], Tensor], **settings: float) -> Iterator[Claim]:
    world = build_world(bradley_terry=False)
    policy = train_on_pairs(tree_at_reference(world), world, _APART, objective, **settings)
    yield equal_everywhere(name, optimum(_win_frac(world)), _apart(log_ratio(world, policy)))


def _apo_zero_claims() -> Iterator[Claim]:
    groups = random_groups({Need.PREFERENCES}, seed=3, num_prompts=32, num_responses=2)
    is_better_PK = torch.tensor([[True, False]]).expand(32, 2)
    both = replace(
        groups,
        preferred_PKK=is_better_PK[:, :, None] & ~is_better_PK[:, None, :],
        desirable_PK=is_better_PK,
        is_labelled_PK=torch.ones_like(is_better_PK),
        mismatched_kl=torch.zeros((), dtype=torch.float64),
    )
    yield equal_everywhere(
        "the sum of kto over both responses at z0 = 0",
        OBJECTIVES["kto"].fn(both, beta=BETA).loss_P,
        OBJECTIVES["apo_zero"].fn(both, beta=BETA).loss_P,
        tolerance=1e-12,
        note="bounded and monotone in each response, so no finite optimum exists",
    )
    yield _first_step_claim(
        "first step: each response moves with β/4 × (wins − losses)",
        "apo_zero",
        lambda won_PK, lost_PK: won_PK - lost_PK,
    )


def _apo_down_claims() -> Iterator[Claim]:
    yield _first_step_claim(
        "first step: losers fall with β/4, winners stay", "apo_down", lambda _won_PK, lost_PK: -lost_PK
    )
    world = _unanimous(build_world(bradley_terry=False))
    policy = tree_at_reference(world)

    def loss(logps_PK: Tensor) -> Tensor:
        population = comparisons(world, logps_PK, _APART)
        return population.mean(OBJECTIVES["apo_down"].fn(population.groups, beta=BETA))

    descend(policy, loss)
    won_PK, log_ratio_PK = _win_frac(world) > 0.5, _apart(log_ratio(world, policy))
    note = "the loss is bounded and least at −∞, so no finite optimum exists"
    yield Claim.at_least(
        "after training the better responses lie below the reference",
        bound=0.0,
        reached=-log_ratio_PK[won_PK].max().item(),
        note=note,
    )
    yield Claim.at_least(
        "and each worse one below its better one",
        bound=0.0,
        reached=(log_ratio_PK[won_PK] - log_ratio_PK[~won_PK]).min().item(),
        note=note,
    )


def _first_step_claim(name: str, objective: str, direction: Callable[[Tensor, Tensor], Tensor]) -> Claim:
    """Claim −gradient at the reference = β/4 × direction(wins, losses), as shares of all comparisons."""
    world = build_world(bradley_terry=False)
    start_PK = world.reference_logps_PK.clone().requires_grad_()
    population = comparisons(world, start_PK, _APART)
    loss = population.mean(OBJECTIVES[objective].fn(population.groups, beta=BETA))
    (gradient_PK,) = torch.autograd.grad(loss, start_PK)
    won_PK = _win_frac(world)
    num_comparisons = len(world.reward_PK) * len(_APART)
    expected = BETA / 4 * direction(won_PK, 1 - won_PK) / num_comparisons
    return equal_everywhere(name, expected, -_apart(gradient_PK), tolerance=1e-12)


def _nca_claims() -> Iterator[Claim]:
    yield from _half_claims(
        "nca_pair", "u = log(2p)/β, p the share of raters", lambda frac: torch.log(2 * frac) / 1.5, beta=1.5
    )
    world = build_world()
    ref_PK = world.reference_logps_PK.exp()
    index = range(len(world.responses))
    pairs = [*world.all_pairs(), *((i, i) for i in index)]  # a response may also meet itself
    better, worse = (torch.tensor(side) for side in zip(*pairs, *(pair[::-1] for pair in pairs), strict=True))

    def drawn(logps_PK: Tensor) -> Population:
        """Return pairs whose responses are drawn from the reference independently."""
        population = comparisons(world, logps_PK, pairs)
        is_self = torch.where(better == worse, 0.5, 1.0)  # listed in both orders, which are one
        return replace(
            population, weight_G=population.weight_G * (ref_PK[:, better] * ref_PK[:, worse] * is_self).flatten()
        )

    policy = tree_at_reference(world)
    train(policy, drawn, partial(OBJECTIVES["nca_pair"].fn, beta=1.0))
    wins_PK = torch.einsum("pij,pj->pi", world.rater_frac_PKK, ref_PK)
    yield equal_everywhere(
        "pairs from π_ref, β = 1: reaches π_ref·2P(y beats π_ref)", torch.log(2 * ref_PK * wins_PK), policy.logps_PK()
    )


def _bco_claims() -> Iterator[Claim]:
    yield from _half_claims(
        "bco_pair", "u = logit(p)/β, p the share of raters", lambda frac: torch.logit(frac) / 2, beta=2.0
    )
    groups: ScoredGroups = random_groups({Need.PREFERENCES}, seed=4, num_prompts=64)
    bound_P, loss_P = (OBJECTIVES[name].fn(groups, beta=BETA).loss_P for name in ("dpo", "bco_pair"))
    yield Claim.at_least("above dpo", bound=0.0, reached=(loss_P - bound_P).min().item())


def _sppo_claims() -> Iterator[Claim]:
    yield from _half_claims("sppo_hard", "u = η(p − 1/2), p the share of raters", lambda frac: frac - 0.5, eta=1.0)
    world = _unanimous(build_world(bradley_terry=False))
    policy = train_on_pairs(tree_at_reference(world), world, _APART, "sppo_hard", eta=1.0)
    yield equal_everywhere(
        "unanimous raters: u = ±η/2",
        torch.where(_win_frac(world) > 0.5, 0.5, -0.5).double(),
        _apart(log_ratio(world, policy)),
    )


CLAIMS: dict[str, Callable[[], Iterator[Claim]]] = {
    "ipo": _both_ipo_claims,
    "ipo_sum": lambda: _ipo_claims("ipo_sum", "sum"),
    "ipo_avg": lambda: _ipo_claims("ipo_avg", "mean"),
    "hinge": _hinge_claims,
    "exo_pref": _exo_claims,
    "rpo_nv": _rpo_nv_claims,
    "f_dpo": _f_dpo_claims,
    "chi_po": _chi_po_claims,
    "apo_zero": _apo_zero_claims,
    "apo_down": _apo_down_claims,
    "nca_pair": _nca_claims,
    "bco_pair": _bco_claims,
    "sppo_hard": _sppo_claims,
}
