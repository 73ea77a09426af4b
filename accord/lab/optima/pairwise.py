"""Claims of objectives of judged pairs with a logistic link, alone or beside a likelihood term.

Notation as in the objectives: u(y) = log π(y|x) − log π_ref(y|x), p = the fraction of raters who prefer the first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from accord.claims import Claim
from accord.groups import groups_from_pairs
from accord.lab.enumerable import (
    EnumerableWorld,
    Policy,
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


def _flip_robust_claims() -> Iterator[Claim]:
    world, flip_rate = build_world(bradley_terry=False), 0.2
    noisy = replace(
        world, rater_frac_PKK=(1 - flip_rate) * world.rater_frac_PKK + flip_rate * (1 - world.rater_frac_PKK)
    )
    policy = train_on_pairs(
        tree_at_reference(noisy), noisy, noisy.chain(), "dpo_flip_robust", beta=BETA, flip_rate=flip_rate
    )
    yield equal_everywhere(
        "on flipped votes: D = logit(p)/β of the votes before the flips",
        torch.logit(chain_rater_frac(world)) / BETA,
        chain_differences(log_ratio(noisy, policy)),
    )
    margins = torch.linspace(-8.0, 8.0, 33, dtype=torch.float64)
    kept, flipped = (_loss_of_margins("dpo_flip_robust", z, beta=1.0, flip_rate=flip_rate) for z in (margins, -margins))
    yield equal_everywhere(
        "(1 − ε) loss + ε loss of the flipped pair = loss of dpo, at every margin",
        _loss_of_margins("dpo", margins, beta=1.0),
        (1 - flip_rate) * kept + flip_rate * flipped,
        tolerance=1e-12,
    )


def _loss_of_margins(objective: str, margin_P: Tensor, **settings: float) -> Tensor:
    """Return a row's loss for pairs with these differences of log-ratios."""
    pairs = groups_from_pairs(
        torch.stack([margin_P, torch.zeros_like(margin_P)], dim=1),
        reference_logps_P2=torch.zeros(len(margin_P), 2, dtype=margin_P.dtype),
    )
    return OBJECTIVES[objective].fn(pairs, **settings).loss_P


def _ln_dpo_claims() -> Iterator[Claim]:
    world, beta = build_world(bradley_terry=False), 2.0
    policy = train_on_pairs(tree_at_reference(world), world, world.chain(), "ln_dpo", beta=beta)
    yield equal_everywhere(
        "difference of mean log-ratios = logit(p)/β",
        torch.logit(chain_rater_frac(world)) / beta,
        chain_differences(log_ratio(world, policy) / world.num_tokens_K),
    )


def _gamma_dpo_claims() -> Iterator[Claim]:
    world, gamma = build_world(), 0.3
    policy = train_on_pairs(tree_at_reference(world), world, world.all_pairs(), "gamma_dpo", beta=BETA, gamma=gamma)
    yield equal_everywhere(
        "Bradley–Terry raters: reaches π_ref^γ·exp(r/β)/Z",
        (gamma * world.reference_logps_PK + world.reward_PK / BETA).log_softmax(dim=-1),
        policy.logps_PK(),
    )


def _length_reg_claims() -> Iterator[Claim]:
    world, alpha = build_world(), 0.4
    policy = train_on_pairs(
        tree_at_reference(world), world, world.all_pairs(), "dpo_length_reg", beta=BETA, alpha=alpha
    )
    charged_PK = world.reward_PK - alpha * world.num_tokens_K
    yield equal_everywhere(
        "Bradley–Terry raters: reaches π_ref·exp((r − α|y|)/β)/Z",
        (world.reference_logps_PK + charged_PK / BETA).log_softmax(dim=-1),
        policy.logps_PK(),
    )
    world = build_world(bradley_terry=False)
    policy = train_on_pairs(tree_at_reference(world), world, world.chain(), "dpo_length_reg", beta=BETA, alpha=alpha)
    longer = chain_differences(world.num_tokens_K.double()[None])
    yield equal_everywhere(
        "any raters: D = (logit(p) − α·difference of lengths)/β",
        (torch.logit(chain_rater_frac(world)) - alpha * longer) / BETA,
        chain_differences(log_ratio(world, policy)),
    )


def _odpo_claims() -> Iterator[Claim]:
    world, offset_weight = build_world(bradley_terry=False), 0.7
    gap_PK = chain_differences(world.reward_PK).abs()  # the same whichever of a pair is called better
    for offset_of, offset_PK in (("strength", gap_PK), ("log_strength", torch.log1p(gap_PK))):
        policy = tree_at_reference(world)
        train(
            policy,
            lambda logps_PK: with_strengths(comparisons(world, logps_PK, world.chain()), gap_PK.repeat(1, 2)),
            partial(OBJECTIVES["odpo"].fn, beta=BETA, offset_weight=offset_weight, offset_of=offset_of),
        )
        # p σ(m − z) = (1 − p) σ(m + z) as a quadratic in e^z, as for `simpo`; m = 0 gives z = logit p
        odds, shrink = torch.logit(chain_rater_frac(world)).exp(), torch.exp(-offset_weight * offset_PK)
        root = (odds - 1 + ((odds - 1) ** 2 + 4 * odds * shrink**2).sqrt()) / (2 * shrink)
        yield equal_everywhere(
            f"{offset_of}: βD = log of the root of e^−m x² + (1 − o)x − o e^−m, o = p/(1 − p)",
            root.log() / BETA,
            chain_differences(log_ratio(world, policy)),
        )


def _discopop_claims() -> Iterator[Claim]:
    tau = 0.05

    def slope(z: float) -> float:
        """Return −∂/∂z of the loss, written out."""
        q, softplus = 1 / (1 + math.exp(-z / tau)), math.log1p(math.exp(-z))
        return (1 - q) / (1 + math.exp(z)) + q * math.exp(-z) + q * (1 - q) / tau * (softplus - math.exp(-z))

    def between(low: float, high: float) -> float:
        rising = slope(low) < 0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if (slope(middle) < 0) == rising else (low, middle)
        return low

    trap, ridge = between(-0.3, 0.0), between(0.0, 0.3)
    note = "the loss of a unanimous pair falls again beyond its local maximum and has no least value"
    world, pairs = build_world(), [(0, 1), (2, 3), (4, 5)]  # pairs that share no response move by themselves
    world = replace(world, rater_frac_PKK=torch.ones_like(world.rater_frac_PKK).triu())

    def trained_from(margin: float) -> Tensor:
        start_PK = world.reference_logps_PK.clone()
        start_PK[:, [better for better, _ in pairs]] += margin / BETA
        policy = SoftmaxPolicy(start_PK)
        descend(policy, lambda logps_PK: _mean_loss(world, pairs, logps_PK, "discopop", beta=BETA, tau=tau))
        return BETA * chain_differences(log_ratio(world, policy))[:, ::2]

    margins = trained_from(0.0)
    yield equal_everywhere(
        "trained from the reference, every pair settles in the local minimum at the WRONG order, z = −0.1186",
        torch.full_like(margins, trap),
        margins,
        note=note,
    )
    at = torch.tensor([trap, ridge], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(_loss_of_margins("discopop", at, beta=1.0, tau=tau).sum(), at)
    yield equal_everywhere(
        "no gradient at that minimum nor at the local maximum z = 0.0720",
        torch.zeros_like(at),
        gradient,
        tolerance=1e-9,
    )
    yield Claim.at_least(
        "trained from beyond that maximum, every margin grows",
        bound=1.5 * ridge,
        reached=trained_from(1.5 * ridge).min().item(),
        note=note,
    )


def _mean_loss(
    world: EnumerableWorld, pairs: list[tuple[int, int]], logps_PK: Tensor, objective: str, **settings: float
) -> Tensor:
    population = comparisons(world, logps_PK, pairs)
    return population.mean(OBJECTIVES[objective].fn(population.groups, **settings))


def _dpop_claims() -> Iterator[Claim]:
    groups = random_groups({Need.PREFERENCES}, seed=2, num_prompts=64)
    loss_P, plain_P = (OBJECTIVES[name].fn(groups, beta=BETA).loss_P for name in ("dpop", "dpo"))
    yield Claim.at_least("never below dpo", bound=0.0, reached=(loss_P - plain_P).min().item(), tolerance=1e-12)
    risen = replace(groups, reference_logps_PK=groups.policy_logps_PK - groups.log_ratio_PK.abs())
    loss_P, plain_P = (OBJECTIVES[name].fn(risen, beta=BETA).loss_P for name in ("dpop", "dpo"))
    yield equal_everywhere("equal to dpo where no better response has fallen", plain_P, loss_P, tolerance=1e-12)
    world = build_world()
    world = replace(world, rater_frac_PKK=torch.ones_like(world.rater_frac_PKK).triu())
    plain, held = (SoftmaxPolicy(world.reference_logps_PK) for _ in range(2))
    descend(plain, lambda logps_PK: _mean_loss(world, world.chain(), logps_PK, "dpo", beta=BETA))
    descend(held, lambda logps_PK: _mean_loss(world, world.chain(), logps_PK, "dpop", beta=BETA, penalty=2.0))
    yield Claim.at_least(
        "after equal steps the better response that fell most has fallen less than under dpo",
        bound=log_ratio(world, plain)[:, :-1].min().item(),
        reached=log_ratio(world, held)[:, :-1].min().item(),
        note="unanimous pairs have no finite optimum under either",
    )


def _likelihood_term_claims(objective: str, token: Literal["sum", "mean"], **settings: str) -> Iterator[Claim]:
    """Both limits of DPO + weight × likelihood, reached by training, and the direction between them."""
    world = build_world(bradley_terry=False)

    def fitted(pairs: list[tuple[int, int]], beta: float, nll_weight: float) -> Policy:
        return train_on_pairs(
            tree_at_reference(world), world, pairs, objective, beta=beta, nll_weight=nll_weight, **settings
        )

    policy = fitted(world.chain(), BETA, 0.0)
    yield equal_everywhere(
        f"{token}, weight 0: dpo's optimum D = logit(p)/β",
        torch.logit(chain_rater_frac(world)) / BETA,
        chain_differences(log_ratio(world, policy)),
    )
    win_share_PK = world.rater_frac_PKK.sum(dim=2) - 0.5  # less the diagonal, where a response meets itself
    over_length = win_share_PK / (world.num_tokens_K if token == "mean" else 1)
    share = "wins/length" if token == "mean" else "wins"
    yield equal_everywhere(
        f"{token}, β → 0: imitates the better responses, π ∝ {share}",
        over_length.log().log_softmax(dim=-1),
        fitted(world.all_pairs(), 1e-9, 1.0).logps_PK(),
    )

    def likelihood(policy: Policy) -> float:
        population = comparisons(world, policy.logps_PK(), world.chain())
        whole, plain = (
            population.mean(OBJECTIVES[objective].fn(population.groups, beta=BETA, nll_weight=weight, **settings))
            for weight in (1.0, 0.0)
        )
        return (plain - whole).item()

    yield Claim.at_least(
        f"{token}: a larger weight never lowers the likelihood of the better responses at the optimum",
        bound=0.0,
        reached=likelihood(fitted(world.chain(), BETA, 0.3)) - likelihood(policy),
        note="the sum has no closed-form optimum; this monotonicity holds for the minimisers of any f + λg",
    )


def _rpo_reg_claims() -> Iterator[Claim]:
    for normalisation in ("sum", "mean"):
        yield from _likelihood_term_claims("rpo_reg", normalisation, normalisation=normalisation)


CLAIMS: dict[str, Callable[[], Iterator[Claim]]] = {
    "dpo": _dpo_claims,
    "dpo_flip_robust": _flip_robust_claims,
    "ln_dpo": _ln_dpo_claims,
    "gamma_dpo": _gamma_dpo_claims,
    "dpo_length_reg": _length_reg_claims,
    "odpo": _odpo_claims,
    "discopop": _discopop_claims,
    "dpop": _dpop_claims,
    "rpo_irpo": lambda: _likelihood_term_claims("rpo_irpo", "mean"),
    "rpo_reg": _rpo_reg_claims,
}
