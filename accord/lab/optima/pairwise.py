"""Claims of objectives of judged pairs: dpo, ipo, simpo, orpo.

Notation as in the objectives: u(y) = log π(y|x) − log π_ref(y|x), p = the fraction of raters who prefer the first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from accord.claims import Claim
from accord.groups import ObjectiveResult, ScoredGroups
from accord.lab.enumerable import (
    EnumerableWorld,
    Policy,
    SoftmaxPolicy,
    build_world,
    comparisons,
    fit,
    tree_at_reference,
)
from accord.lab.optima._training import BETA, chain_differences, chain_rater_frac, log_ratio, train, train_on_pairs
from accord.lab.row_checks import equal_everywhere
from accord.objectives import OBJECTIVES


def _dpo_claims() -> Iterator[Claim]:
    world = build_world()
    rlhf_PK = (world.reference_logps_PK + world.reward_PK / BETA).log_softmax(dim=-1)
    for kind, policy in (
        ("autoregressive", tree_at_reference(world)),
        ("softmax", SoftmaxPolicy(world.reference_logps_PK)),
    ):
        policy = train_on_pairs(policy, world, world.all_pairs(), "dpo", beta=BETA)
        yield equal_everywhere(
            f"Bradley–Terry raters, {kind} policy: reaches π_ref·exp(r/β)/Z, the optimum of RLHF",
            rlhf_PK,
            policy.logps_PK(),
        )
    yield _rlhf_claim(world, rlhf_PK)
    world = build_world(bradley_terry=False)
    policy = train_on_pairs(tree_at_reference(world), world, world.chain(), "dpo", beta=BETA)
    rater_frac = chain_rater_frac(world)
    yield equal_everywhere(
        "any raters: D = logit(p)/β", torch.logit(rater_frac) / BETA, chain_differences(log_ratio(world, policy))
    )
    smoothed = 0.8 * rater_frac + 0.2 * (1 - rater_frac)
    policy = train_on_pairs(tree_at_reference(world), world, world.chain(), "dpo", beta=BETA, label_smoothing=0.2)
    yield equal_everywhere(
        "label smoothing ε: D = logit(p(1 − ε) + (1 − p)ε)/β",
        torch.logit(smoothed) / BETA,
        chain_differences(log_ratio(world, policy)),
    )


def _rlhf_claim(world: EnumerableWorld, rlhf_PK: Tensor) -> Claim:
    """Maximise E[r] − β KL(π ‖ π_ref) directly, so that the closed form used above is itself checked."""
    policy = tree_at_reference(world)

    def loss() -> Tensor:
        logps_PK = policy.logps_PK()
        return (logps_PK.exp() * (BETA * (logps_PK - world.reference_logps_PK) - world.reward_PK)).sum(dim=1).mean()

    fit(policy, loss)
    return equal_everywhere("maximising E[r] − β·KL reaches the same policy", rlhf_PK, policy.logps_PK())


def _ipo_claims() -> Iterator[Claim]:
    world = build_world(bradley_terry=False)
    unanimous = replace(world, rater_frac_PKK=(world.rater_frac_PKK > 0.5).double())
    for note, raters, normalisation in (
        ("token sum", world, "sum"),
        ("token mean", world, "mean"),
        ("token sum, unanimous raters", unanimous, "sum"),
    ):
        policy = train_on_pairs(
            tree_at_reference(raters), raters, raters.chain(), "ipo", tau=BETA, normalisation=normalisation
        )
        log_ratio_PK = log_ratio(raters, policy)
        score_PK = log_ratio_PK if normalisation == "sum" else log_ratio_PK / raters.num_tokens_K
        expected = (chain_rater_frac(raters) - 0.5) / BETA
        yield equal_everywhere(f"{note}: D = (p − 1/2)/τ", expected, chain_differences(score_PK))


def _simpo_claims() -> Iterator[Claim]:
    world, beta, gamma_beta_ratio = build_world(bradley_terry=False), 2.0, 0.25
    policy = train_on_pairs(
        tree_at_reference(world), world, world.chain(), "simpo", beta=beta, gamma_beta_ratio=gamma_beta_ratio
    )
    # Raters who disagree show a pair in both orders and BOTH carry the margin, so the optimum is not (γ + logit p)/β:
    # p σ(γ − z) = (1 − p) σ(γ + z) is a quadratic in e^z, and z = logit p only for γ = 0.
    odds = torch.exp(torch.logit(chain_rater_frac(world)))
    shrink = torch.exp(torch.tensor(-beta * gamma_beta_ratio, dtype=odds.dtype))
    root = (odds - 1 + ((odds - 1) ** 2 + 4 * odds * shrink**2).sqrt()) / (2 * shrink)
    yield equal_everywhere(
        "difference of means = log(e^z)/β, e^z the root of e^−γ x² + (1 − o)x − o e^−γ, o = p/(1 − p)",
        root.log() / beta,
        chain_differences(policy.logps_PK() / world.num_tokens_K),
    )


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


CLAIMS: dict[str, Callable[[], Iterator[Claim]]] = {
    "dpo": _dpo_claims,
    "ipo": _ipo_claims,
    "simpo": _simpo_claims,
    "orpo": _orpo_claims,
}
