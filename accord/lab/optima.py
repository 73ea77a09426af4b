"""Every objective against its theory: trained in the enumerable world, compared with the closed form it should reach.

Where no closed form exists the claim is the property that replaces it, with the reason in its note. Notation as in the
objectives: u(y) = log π(y|x) − log π_ref(y|x), p = the fraction of raters who prefer the first of a pair.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from jaxtyping import Float
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
    demonstrations,
    fit,
    labels,
    tree_at_reference,
)
from accord.lab.row_checks import OPTIMUM_TOLERANCE, equal_everywhere, gradient_claims, initial_loss_claims
from accord.objectives import OBJECTIVES

_BETA = 0.5


def objective_claims() -> list[Claim]:
    """Return the claims of every row of `OBJECTIVES`, in its order."""
    return [claim for name in OBJECTIVES for claim in claims_of(name)]


def claims_of(name: str) -> list[Claim]:
    """Return the claims of one row; each name starts with the row's."""
    spec = OBJECTIVES[name]
    claims = [*initial_loss_claims(spec), *gradient_claims(spec), *_OPTIMA[name]()]
    return [replace(claim, name=f"{name}: {claim.name}") for claim in claims]


# Optima, row by row ---------------------------------------------------------------------------------------------------


def _sft_claims() -> Iterator[Claim]:
    world = build_world()
    data_frac_PK = (world.reward_PK + world.reference_logps_PK).softmax(dim=-1)

    def train(reduction: str) -> tuple[Policy, float]:
        policy = tree_at_reference(world)
        return policy, _train(
            policy,
            lambda logps_PK: demonstrations(world, logps_PK, data_frac_PK),
            lambda groups: OBJECTIVES["sft"].fn(groups, reduction=reduction),
        )

    policy, loss = train("token")
    yield equal_everywhere("token mean reaches the data distribution", data_frac_PK.log(), policy.logps_PK())
    entropy = -(data_frac_PK * data_frac_PK.log()).sum()
    yield Claim.equal(
        "loss at the optimum = entropy per token of the data",
        expected=(entropy / (data_frac_PK * world.num_tokens_K).sum()).item(),
        reached=loss,
        tolerance=OPTIMUM_TOLERANCE,
    )
    policy, _ = train("sequence")
    tilted_PK = (data_frac_PK / world.num_tokens_K).log().log_softmax(dim=-1)
    yield equal_everywhere(
        "sequence mean reaches data/length", tilted_PK, policy.logps_PK(), note="it over-weights short responses"
    )


def _dpo_claims() -> Iterator[Claim]:
    world = build_world()
    rlhf_PK = (world.reference_logps_PK + world.reward_PK / _BETA).log_softmax(dim=-1)
    for kind, policy in (
        ("autoregressive", tree_at_reference(world)),
        ("softmax", SoftmaxPolicy(world.reference_logps_PK)),
    ):
        policy = _train_on_pairs(policy, world, world.all_pairs(), "dpo", beta=_BETA)
        yield equal_everywhere(
            f"Bradley–Terry raters, {kind} policy: reaches π_ref·exp(r/β)/Z, the optimum of RLHF",
            rlhf_PK,
            policy.logps_PK(),
        )
    yield _rlhf_claim(world, rlhf_PK)
    world = build_world(bradley_terry=False)
    policy = _train_on_pairs(tree_at_reference(world), world, world.chain(), "dpo", beta=_BETA)
    rater_frac = _chain_rater_frac(world)
    yield equal_everywhere(
        "any raters: D = logit(p)/β", torch.logit(rater_frac) / _BETA, _chain_differences(_log_ratio(world, policy))
    )
    smoothed = 0.8 * rater_frac + 0.2 * (1 - rater_frac)
    policy = _train_on_pairs(tree_at_reference(world), world, world.chain(), "dpo", beta=_BETA, label_smoothing=0.2)
    yield equal_everywhere(
        "label smoothing ε: D = logit(p(1 − ε) + (1 − p)ε)/β",
        torch.logit(smoothed) / _BETA,
        _chain_differences(_log_ratio(world, policy)),
    )


def _rlhf_claim(world: EnumerableWorld, rlhf_PK: Tensor) -> Claim:
    """Maximise E[r] − β KL(π ‖ π_ref) directly, so that the closed form used above is itself checked."""
    policy = tree_at_reference(world)

    def loss() -> Tensor:
        logps_PK = policy.logps_PK()
        return (logps_PK.exp() * (_BETA * (logps_PK - world.reference_logps_PK) - world.reward_PK)).sum(dim=1).mean()

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
        policy = _train_on_pairs(
            tree_at_reference(raters), raters, raters.chain(), "ipo", tau=_BETA, normalisation=normalisation
        )
        log_ratio_PK = _log_ratio(raters, policy)
        score_PK = log_ratio_PK if normalisation == "sum" else log_ratio_PK / raters.num_tokens_K
        expected = (_chain_rater_frac(raters) - 0.5) / _BETA
        yield equal_everywhere(f"{note}: D = (p − 1/2)/τ", expected, _chain_differences(score_PK))


def _simpo_claims() -> Iterator[Claim]:
    world, beta, gamma_beta_ratio = build_world(bradley_terry=False), 2.0, 0.25
    policy = _train_on_pairs(
        tree_at_reference(world), world, world.chain(), "simpo", beta=beta, gamma_beta_ratio=gamma_beta_ratio
    )
    # Raters who disagree show a pair in both orders and BOTH carry the margin, so the optimum is not (γ + logit p)/β:
    # p σ(γ − z) = (1 − p) σ(γ + z) is a quadratic in e^z, and z = logit p only for γ = 0.
    odds = torch.exp(torch.logit(_chain_rater_frac(world)))
    shrink = torch.exp(torch.tensor(-beta * gamma_beta_ratio, dtype=odds.dtype))
    root = (odds - 1 + ((odds - 1) ** 2 + 4 * odds * shrink**2).sqrt()) / (2 * shrink)
    yield equal_everywhere(
        "difference of means = log(e^z)/β, e^z the root of e^−γ x² + (1 − o)x − o e^−γ, o = p/(1 − p)",
        root.log() / beta,
        _chain_differences(policy.logps_PK() / world.num_tokens_K),
    )


def _orpo_claims() -> Iterator[Claim]:
    world = build_world()
    imitator = _train_on_pairs(tree_at_reference(world), world, world.all_pairs(), "orpo", odds_weight=0.0)
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

    weighted = _train_on_pairs(tree_at_reference(world), world, world.all_pairs(), "orpo", odds_weight=1.0)
    yield Claim.at_least(
        "a larger λ never raises the odds term at the optimum",
        bound=0.0,
        reached=odds_loss(imitator) - odds_loss(weighted),
        note="the sum has no closed-form optimum; this monotonicity holds for the minimisers of any f + λg",
    )
    world = build_world(bradley_terry=False)
    policy = tree_at_reference(world)
    _train(policy, lambda logps_PK: comparisons(world, logps_PK, world.chain()), odds_term)
    mean_logp_PK = policy.logps_PK() / world.num_tokens_K
    yield equal_everywhere(
        "the odds term alone: difference of log-odds = logit p",
        torch.logit(_chain_rater_frac(world)),
        _chain_differences(mean_logp_PK - torch.log1p(-mean_logp_PK.exp())),
    )


def _kto_claims() -> Iterator[Claim]:
    world = build_world(num_prompts=3)
    weights = {"desirable_weight": 1.0, "undesirable_weight": 1.5}
    up_frac_PK = world.desirable_frac_PK
    pull_PK = 1.5 * (1 - up_frac_PK) - up_frac_PK  # λ_U (1 − p) − λ_D p: positive lowers the response

    def loss(logps_PK: Tensor) -> Tensor:
        kl = (logps_PK.exp() * (logps_PK - world.reference_logps_PK)).sum(dim=1).mean().detach()
        population = labels(world, logps_PK, kl.clamp(min=0.0))
        return population.mean(OBJECTIVES["kto"].fn(population.groups, beta=_BETA, **weights))

    start_PK = world.reference_logps_PK.clone().requires_grad_()
    (gradient_PK,) = torch.autograd.grad(loss(start_PK), start_PK)
    yield equal_everywhere(
        "first step: each response moves with β/4 (λ_D p − λ_U (1 − p))",
        _BETA / 4 * pull_PK / pull_PK.numel(),
        gradient_PK,
        tolerance=1e-9,
    )
    policy = tree_at_reference(world)
    _descend(policy, loss)
    note = "the loss is bounded and each term is monotone in u, so no finite optimum exists"
    yield Claim.at_least(
        "loss stays above mean min(λ_D p, λ_U (1 − p))",
        bound=torch.minimum(up_frac_PK, 1.5 * (1 - up_frac_PK)).mean().item(),
        reached=loss(policy.logps_PK()).item(),
        note=note,
    )
    gained_PK = policy.logps_PK().exp() - world.reference_logps_PK.exp()
    gain = torch.where(pull_PK < 0, gained_PK, 0.0).sum(dim=1).mean().item()
    yield Claim.at_least("responses with λ_D p > λ_U (1 − p) gain probability", bound=0.1, reached=gain, note=note)


_OPTIMA: dict[str, Callable[[], Iterator[Claim]]] = {
    "sft": _sft_claims,
    "dpo": _dpo_claims,
    "ipo": _ipo_claims,
    "simpo": _simpo_claims,
    "orpo": _orpo_claims,
    "kto": _kto_claims,
}


# Shared steps ---------------------------------------------------------------------------------------------------------


def _train(
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


def _descend(policy: Policy, loss: Callable[[Tensor], Tensor]) -> None:
    """Take plain gradient steps: what is left where a loss has no minimum for `fit` to find."""
    optimiser = torch.optim.SGD(policy.parameters(), lr=2.0)
    for _ in range(300):
        optimiser.zero_grad()
        loss(policy.logps_PK()).backward()
        optimiser.step()


def _train_on_pairs(
    policy: Policy, world: EnumerableWorld, pairs: list[tuple[int, int]], objective: str, **settings: float | str
) -> Policy:
    _train(
        policy,
        lambda logps_PK: comparisons(world, logps_PK, pairs),
        lambda groups: OBJECTIVES[objective].fn(groups, **settings),
    )
    return policy


def _log_ratio(world: EnumerableWorld, policy: Policy) -> Float[Tensor, "P K"]:
    return policy.logps_PK() - world.reference_logps_PK


def _chain_differences(score_PK: Float[Tensor, "P K"]) -> Float[Tensor, "P K-1"]:
    return score_PK[:, :-1] - score_PK[:, 1:]


def _chain_rater_frac(world: EnumerableWorld) -> Float[Tensor, "P K-1"]:
    return world.rater_frac_PKK.diagonal(offset=1, dim1=1, dim2=2)
