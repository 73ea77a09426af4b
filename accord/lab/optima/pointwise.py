"""Claims of objectives of single labelled responses."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from accord.claims import Claim
from accord.lab.enumerable import Population, build_world, labels, tree_at_reference
from accord.lab.optima._training import BETA, descend, log_ratio, train
from accord.lab.row_checks import equal_everywhere, random_groups
from accord.objectives import OBJECTIVES, Need


def _kto_claims() -> Iterator[Claim]:
    world = build_world(num_prompts=3)
    weights = {"desirable_weight": 1.0, "undesirable_weight": 1.5}
    up_frac_PK = world.desirable_frac_PK
    pull_PK = 1.5 * (1 - up_frac_PK) - up_frac_PK  # λ_U (1 − p) − λ_D p: positive lowers the response

    def loss(logps_PK: Tensor) -> Tensor:
        kl = (logps_PK.exp() * (logps_PK - world.reference_logps_PK)).sum(dim=1).mean().detach()
        population = labels(world, logps_PK, kl.clamp(min=0.0))
        return population.mean(OBJECTIVES["kto"].fn(population.groups, beta=BETA, **weights))

    start_PK = world.reference_logps_PK.clone().requires_grad_()
    (gradient_PK,) = torch.autograd.grad(loss(start_PK), start_PK)
    yield equal_everywhere(
        "first step: each response moves with β/4 (λ_D p − λ_U (1 − p))",
        BETA / 4 * pull_PK / pull_PK.numel(),
        gradient_PK,
        tolerance=1e-9,
    )
    policy = tree_at_reference(world)
    descend(policy, loss)
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


def _bco_claims() -> Iterator[Claim]:
    world = build_world(num_prompts=1)
    # of all δ, the one for which exp((δ + logit p)/β) of the reference is a distribution, so that it can be reached
    target_PK = world.reference_logps_PK + torch.logit(world.desirable_frac_PK) / BETA
    delta = -BETA * target_PK.logsumexp(dim=1)[0]
    state = {"reward_sum": 4 * delta, "num_rewards": torch.tensor(4.0, dtype=torch.float64)}

    def population(logps_PK: Tensor) -> Population:
        everyone = labels(world, logps_PK, torch.zeros((), dtype=torch.float64))
        return replace(everyone, groups=replace(everyone.groups, state=state))

    policy = tree_at_reference(world)
    train(policy, population, partial(OBJECTIVES["bco"].fn, beta=BETA))
    yield equal_everywhere(
        "δ held fixed: β u − δ = logit p, the log-odds of a thumb up",
        torch.logit(world.desirable_frac_PK),
        BETA * log_ratio(world, policy) - delta,
    )
    pairs = random_groups({Need.LABELS, Need.PREFERENCES}, seed=4, num_prompts=5, num_responses=2)
    gaps = []
    for mean in (-2.0, 0.0, 0.7):
        at_mean = {"reward_sum": torch.tensor(mean), "num_rewards": torch.tensor(1.0)}
        gaps.append(
            OBJECTIVES["bco"].fn(replace(pairs, state=at_mean)).loss_P - OBJECTIVES["dpo"].fn(pairs).loss_P
        )  # fmt: skip
    yield Claim.at_least(
        "a chosen and a rejected response cost more than dpo, whatever δ",
        bound=1e-9,
        reached=torch.stack(gaps).min().item(),
    )
    spec = OBJECTIVES["bco"].state
    assert spec is not None
    moved, rewards = spec.start(), []
    for seed in (5, 6):
        result = OBJECTIVES["bco"].fn(replace(random_groups({Need.LABELS}, seed=seed), state=moved))
        rewards.append(result.state_sums)
        moved = spec.advance(moved, dict(result.state_sums))
    total, count = (sum(sums[name].item() for sums in rewards) for name in ("reward_sum", "num_rewards"))
    yield Claim.equal(
        "δ = mean of all rewards seen",
        expected=total / count,
        reached=(moved["reward_sum"] / moved["num_rewards"]).item(),
        tolerance=1e-12,
    )


def _apo_zero_unpaired_claims() -> Iterator[Claim]:
    groups = random_groups({Need.LABELS, Need.MISMATCHED_KL}, seed=7)
    still = replace(groups, mismatched_kl=torch.zeros((), dtype=torch.float64))
    yield equal_everywhere(
        "= kto with the baseline z₀ = 0",
        OBJECTIVES["kto"].fn(still, beta=BETA).loss_P,
        OBJECTIVES["apo_zero_unpaired"].fn(groups, beta=BETA).loss_P,
        tolerance=1e-12,
    )


def _npo_claims() -> Iterator[Claim]:
    groups = random_groups({Need.LABELS}, seed=8, num_prompts=6, num_responses=2)
    groups = replace(groups, desirable_PK=torch.zeros_like(groups.is_valid_PK), is_labelled_PK=groups.is_valid_PK)
    for beta in (1e-2, 1e-3):
        above_P = OBJECTIVES["npo"].fn(groups, beta=beta).loss_P - 2 * 2 / beta * math.log(2)
        yield equal_everywhere(
            f"β = {beta:g}: (2/β) ln 2 + u + β u²/4, gradient ascent in the limit",
            (groups.log_ratio_PK + beta * groups.log_ratio_PK**2 / 4).sum(dim=1),
            above_P,
            tolerance=1e-6,
        )
    at_reference = groups.policy_logps_PK.clone().requires_grad_()
    start = replace(groups, policy_logps_PK=at_reference, reference_logps_PK=at_reference.detach())
    (slope_PK,) = torch.autograd.grad(OBJECTIVES["npo"].fn(start).loss_P.sum(), at_reference)
    yield equal_everywhere("first step: that of gradient ascent", torch.ones_like(slope_PK), slope_PK, tolerance=1e-12)
    far = replace(groups, policy_logps_PK=groups.policy_logps_PK - 400.0)
    loss_P = OBJECTIVES["npo"].fn(far, beta=BETA).loss_P
    note = "the loss falls towards 0 as u → −∞ and never gets there"
    yield Claim.at_least("bounded below by 0 …", bound=0.0, reached=loss_P.min().item(), note=note)
    yield Claim.equal("… which it nears as u → −∞", expected=0.0, reached=loss_P.max().item(), tolerance=1e-12)


def _simnpo_claims() -> Iterator[Claim]:
    groups = random_groups({Need.LABELS}, seed=9)
    one_token = replace(groups, num_tokens_PK=torch.ones_like(groups.num_tokens_PK))
    uniform = replace(one_token, reference_logps_PK=torch.zeros_like(groups.policy_logps_PK))
    yield equal_everywhere(
        "one-token responses: npo with a uniform reference",
        OBJECTIVES["npo"].fn(uniform, beta=BETA).loss_P,
        OBJECTIVES["simnpo"].fn(one_token, beta=BETA).loss_P,
        tolerance=1e-12,
    )
    shrunk = replace(groups, policy_logps_PK=groups.policy_logps_PK / groups.num_tokens_PK)
    once = replace(shrunk, num_tokens_PK=torch.ones_like(groups.num_tokens_PK))
    yield equal_everywhere(
        "reads nothing but the mean log-probability",
        OBJECTIVES["simnpo"].fn(once, gamma=0.3).loss_P,
        OBJECTIVES["simnpo"].fn(groups, gamma=0.3).loss_P,
        tolerance=1e-12,
    )


CLAIMS: dict[str, Callable[[], Iterator[Claim]]] = {
    "kto": _kto_claims,
    "bco": _bco_claims,
    "apo_zero_unpaired": _apo_zero_unpaired_claims,
    "npo": _npo_claims,
    "simnpo": _simnpo_claims,
}
