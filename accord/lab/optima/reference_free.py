"""Claims of reference-free objectives of judged pairs.

Notation as in the objectives: l̄(y) = log π(y|x)/|y|, p = the fraction of raters who prefer the first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from accord.claims import Claim
from accord.groups import ObjectiveResult, ScoredGroups
from accord.lab.enumerable import (
    EnumerableWorld,
    Policy,
    Population,
    SoftmaxPolicy,
    build_world,
    comparisons,
    tree_at_reference,
)
from accord.lab.optima._training import BETA, chain_differences, chain_rater_frac, descend, train, train_on_pairs
from accord.lab.row_checks import equal_everywhere, random_groups
from accord.objectives import OBJECTIVES, Need


def _simpo_claims() -> Iterator[Claim]:
    world, beta, gamma_beta_ratio = build_world(bradley_terry=False), 2.0, 0.25
    policy = train_on_pairs(
        tree_at_reference(world), world, world.chain(), "simpo", beta=beta, gamma_beta_ratio=gamma_beta_ratio
    )
    yield equal_everywhere(
        "difference of means = log(e^z)/β, e^z the root of e^−γ x² + (1 − o)x − o e^−γ, o = p/(1 − p)",
        _margin_at_optimum(chain_rater_frac(world), gamma=beta * gamma_beta_ratio) / beta,
        chain_differences(policy.logps_PK() / world.num_tokens_K),
    )


def _margin_at_optimum(rater_frac: Tensor, *, gamma: float) -> Tensor:
    """Return z = β × difference of scores where raters disagree about pairs with a target margin γ.

    They show a pair in both orders and BOTH carry the margin, so the optimum is not γ + logit p: p σ(γ − z) = (1 − p)
    σ(γ + z) is a quadratic in e^z, and z = logit p only for γ = 0.
    """
    odds = torch.exp(torch.logit(rater_frac))
    shrink = torch.exp(torch.tensor(-gamma, dtype=odds.dtype))
    return ((odds - 1 + ((odds - 1) ** 2 + 4 * odds * shrink**2).sqrt()) / (2 * shrink)).log()


def _orpo_claims() -> Iterator[Claim]:
    world = build_world()
    imitator = train_on_pairs(tree_at_reference(world), world, world.all_pairs(), "orpo", odds_weight=0.0)
    win_share_PK = world.rater_frac_PKK.sum(dim=2) - 0.5  # less the diagonal, where a response meets itself
    yield equal_everywhere(
        "λ = 0 imitates the better responses: π ∝ wins/length",
        (win_share_PK / world.num_tokens_K).log().log_softmax(dim=-1),
        imitator.logps_PK(),
    )

    def odds_term(groups: ScoredGroups) -> ObjectiveResult:
        whole, imitation = (OBJECTIVES["orpo"].fn(groups, odds_weight=weight) for weight in (1.0, 0.0))
        return replace(whole, loss_P=whole.loss_P - imitation.loss_P)

    def odds_loss(policy: Policy) -> float:
        population = comparisons(world, policy.logps_PK(), world.all_pairs())
        return population.mean(odds_term(population.groups)).item()

    weighted = train_on_pairs(tree_at_reference(world), world, world.all_pairs(), "orpo", odds_weight=1.0)
    yield Claim.at_least(
        "a larger λ never raises the odds term at the optimum",
        bound=0.0,
        reached=odds_loss(imitator) - odds_loss(weighted),
        note="the sum has no closed-form optimum; this monotonicity holds for the minimisers of any f + λg",
    )
    world = build_world(bradley_terry=False)
    policy = tree_at_reference(world)
    train(policy, lambda logps_PK: comparisons(world, logps_PK, world.chain()), odds_term)
    mean_logp_PK = policy.logps_PK() / world.num_tokens_K
    yield equal_everywhere(
        "the odds term alone: difference of log-odds = logit p",
        torch.logit(chain_rater_frac(world)),
        chain_differences(mean_logp_PK - torch.log1p(-mean_logp_PK.exp())),
    )


def _alphapo_claims() -> Iterator[Claim]:
    world, beta, gamma_beta_ratio, alpha = build_world(bradley_terry=False), 2.0, 0.25, 0.25
    policy = train_on_pairs(
        tree_at_reference(world), world, world.chain(), "alphapo",
        beta=beta, gamma_beta_ratio=gamma_beta_ratio, alpha=alpha,
    )  # fmt: skip
    score_PK = (1 - torch.exp(-alpha * policy.logps_PK() / world.num_tokens_K)) / alpha
    yield equal_everywhere(
        "difference of (1 − e^(−α l̄))/α = simpo's optimum of means",
        _margin_at_optimum(chain_rater_frac(world), gamma=beta * gamma_beta_ratio) / beta,
        chain_differences(score_PK),
    )
    groups = random_groups({Need.PREFERENCES}, seed=2)
    simpo_P = OBJECTIVES["simpo"].fn(groups).loss_P
    for shape in (0.0, 1e-7):
        yield equal_everywhere(
            f"α = {shape:g}: simpo", simpo_P, OBJECTIVES["alphapo"].fn(groups, alpha=shape).loss_P, tolerance=1e-6
        )


def _cpo_claims() -> Iterator[Claim]:
    world = build_world(bradley_terry=False)
    policy = train_on_pairs(tree_at_reference(world), world, world.chain(), "cpo", beta=BETA, nll_weight=0.0)
    yield equal_everywhere(
        "without NLL, any raters: log π(y_w) − log π(y_l) = logit(p)/β",
        torch.logit(chain_rater_frac(world)) / BETA,
        chain_differences(policy.logps_PK()),
    )
    world = build_world()
    policy = train_on_pairs(tree_at_reference(world), world, world.all_pairs(), "cpo", beta=BETA, nll_weight=0.0)
    yield equal_everywhere(
        "without NLL, Bradley–Terry raters: exp(r/β)/Z, the optimum of dpo with a uniform reference",
        (world.reward_PK / BETA).log_softmax(dim=-1),
        policy.logps_PK(),
    )


def _slic_claims() -> Iterator[Claim]:
    delta, world = 1.5, build_world(bradley_terry=False)
    rater_frac = chain_rater_frac(world)
    margins = delta * (rater_frac - 0.5).sign()

    def loss(world: EnumerableWorld, logits_PK: Tensor) -> float:
        population = comparisons(world, logits_PK.log_softmax(dim=-1), world.chain())
        return population.mean(OBJECTIVES["slic"].fn(population.groups, delta=delta, nll_weight=0.0)).item()

    least = loss(world, _with_margins(margins))
    yield Claim.equal(
        "without NLL, margins ±δ by the majority: loss = mean of 2δ·min(p, 1 − p)",
        expected=(2 * delta * torch.minimum(rater_frac, 1 - rater_frac)).mean().item(),
        reached=least,
        tolerance=1e-12,
    )
    note = "the loss is piecewise linear, so no gradient vanishes; it is convex, so this minimum is global"
    yield Claim.at_least(
        "moving any of these margins raises the loss",
        bound=1e-6,
        reached=min(loss(world, _with_margins(moved)) for moved in _each_moved(margins)) - least,
        note=note,
    )
    unanimous = replace(world, rater_frac_PKK=(world.rater_frac_PKK > 0.5).double())
    reached = loss(unanimous, _with_margins(margins))
    yield Claim.equal("unanimous raters: zero at margins of δ …", expected=0.0, reached=reached, tolerance=1e-12)
    reached = loss(unanimous, _with_margins(0.99 * margins))
    yield Claim.equal("… and δ/100 at margins of 0.99 δ", expected=delta / 100, reached=reached, tolerance=1e-12)


def _rrhf_claims() -> Iterator[Claim]:
    world = build_world(bradley_terry=False)

    def loss(mean_logp_PK: Tensor) -> float:
        population = comparisons(world, mean_logp_PK * world.num_tokens_K, world.chain())
        return population.mean(OBJECTIVES["rrhf"].fn(population.groups, nll_weight=0.0)).item()

    level = torch.full_like(world.reward_PK, -1.0)
    yield Claim.equal(
        "raters who disagree: equal means cost nothing …", expected=0.0, reached=loss(level), tolerance=0.0
    )
    margins = chain_differences(level)
    yield Claim.at_least(
        "… and any other order costs",
        bound=1e-6,
        reached=min(loss(level + _with_margins(moved)) for moved in _each_moved(margins)),
        note="without NLL the loss is convex in the means and 0 there, so this is its minimum",
    )
    groups = replace(
        random_groups(frozenset(), seed=0, num_prompts=2, num_responses=len(world.responses)),
        num_tokens_PK=world.num_tokens_K.expand(2, -1),
        is_valid_PK=torch.ones(2, len(world.responses), dtype=torch.bool),
        preferred_PKK=world.reward_PK[:, :, None] > world.reward_PK[:, None, :],
    )
    policy = SoftmaxPolicy(-world.reward_PK)  # the worst response is the likeliest

    def ranked(logps_PK: Tensor) -> Tensor:
        return OBJECTIVES["rrhf"].fn(replace(groups, policy_logps_PK=logps_PK)).loss_P.mean()

    descend(policy, ranked)
    best_P = policy.logps_PK().gather(1, world.reward_PK.argmax(dim=1, keepdim=True)).exp()
    yield Claim.at_least(
        "whole rankings with NLL: the best response takes the mass", bound=0.9, reached=best_P.min().item()
    )


def _with_margins(margins: Tensor) -> Tensor:
    """Return scores (P, K) whose differences along the chain are these (P, K − 1)."""
    return torch.nn.functional.pad(-margins.cumsum(dim=1), (1, 0))


def _each_moved(margins: Tensor, step: float = 1e-3) -> Iterator[Tensor]:
    """Yield the margins with one of them moved, each of them in both directions."""
    for place in range(margins.numel()):
        for sign in (-step, step):
            moved = margins.clone()
            moved.view(-1)[place] += sign
            yield moved


def _tpo_claims() -> Iterator[Claim]:
    world = build_world(bradley_terry=False)
    rater_frac = chain_rater_frac(world)
    for normalisation in ("sum", "mean"):
        policy = tree_at_reference(world)
        settings = {"beta": BETA, "nll_weight": 0.0, "normalisation": normalisation}
        train(policy, lambda logps_PK: _triples(world, logps_PK), partial(OBJECTIVES["tpo"].fn, **settings))
        score_PK = policy.logps_PK() if normalisation == "sum" else policy.logps_PK() / world.num_tokens_K
        yield equal_everywhere(
            f"without NLL, {normalisation}: the difference of scores = logit(p)/β",
            torch.logit(rater_frac) / BETA,
            chain_differences(score_PK),
        )
    triples = _triples(world, world.reference_logps_PK).groups
    pairs = _without_first(triples)
    whole = OBJECTIVES["tpo"].fn(triples, beta=BETA, nll_weight=0.7).loss_P
    gold_P = -triples.policy_logps_PK[:, 0] / triples.num_tokens_PK[:, 0]
    parts = OBJECTIVES["cpo"].fn(pairs, beta=BETA, nll_weight=0.0).loss_P + 0.7 * gold_P
    yield equal_everywhere(
        "= cpo without NLL on the other two + λ × NLL of the gold one", parts, whole, tolerance=1e-12
    )


def _triples(world: EnumerableWorld, logps_PK: Tensor) -> Population:
    """Return the pairs of the chain in both orders, each below a gold response that is neither of the two."""
    population = comparisons(world, logps_PK, world.chain())
    num_responses, pairs = len(world.responses), torch.tensor(world.chain())
    gold = ((pairs[:, 1] + 1) % num_responses).repeat(2)
    groups, preferred_33 = population.groups, torch.ones(3, 3).triu(1).bool()

    def joined(value_PK: Tensor, pair_P2: Tensor) -> Tensor:
        return torch.cat([value_PK[:, gold].reshape(-1, 1), pair_P2], dim=1)

    num_tokens_PK = world.num_tokens_K.expand(len(world.reward_PK), -1)
    triples = ScoredGroups(
        policy_logps_PK=joined(logps_PK, groups.policy_logps_PK),
        num_tokens_PK=joined(num_tokens_PK, groups.num_tokens_PK),
        is_valid_PK=torch.ones(len(groups.is_valid_PK), 3, dtype=torch.bool),
        preferred_PKK=preferred_33.expand(len(groups.is_valid_PK), 3, 3),
    )
    return Population(groups=triples, weight_G=population.weight_G)


def _without_first(groups: ScoredGroups) -> ScoredGroups:
    assert groups.preferred_PKK is not None
    return ScoredGroups(
        policy_logps_PK=groups.policy_logps_PK[:, 1:],
        num_tokens_PK=groups.num_tokens_PK[:, 1:],
        is_valid_PK=groups.is_valid_PK[:, 1:],
        preferred_PKK=groups.preferred_PKK[:, 1:, 1:],
    )


def _chosen_nll_claims() -> Iterator[Claim]:
    world = build_world()
    win_share_PK = world.rater_frac_PKK.sum(dim=2) - 0.5  # less the diagonal, where a response meets itself
    for normalisation, name, share_PK in (
        ("mean", "wins/length", win_share_PK / world.num_tokens_K),
        ("sum", "wins", win_share_PK),
    ):
        policy = train_on_pairs(
            tree_at_reference(world), world, world.all_pairs(), "chosen_nll", normalisation=normalisation
        )
        yield equal_everywhere(
            f"{normalisation}: π ∝ {name}", share_PK.log().log_softmax(dim=-1), policy.logps_PK()
        )  # fmt: skip


CLAIMS: dict[str, Callable[[], Iterator[Claim]]] = {
    "simpo": _simpo_claims,
    "orpo": _orpo_claims,
    "alphapo": _alphapo_claims,
    "cpo": _cpo_claims,
    "slic": _slic_claims,
    "rrhf": _rrhf_claims,
    "tpo": _tpo_claims,
    "chosen_nll": _chosen_nll_claims,
}
