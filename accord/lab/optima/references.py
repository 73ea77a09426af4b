"""Claims of references that move, of outer loops and of soups: where they take a policy that is trained by DPO.

They are no rows of `OBJECTIVES`: the arithmetic on weights and the schedule are those of `policy/`, the training is
the world's own. r = reward, β = strength, Z = what makes probabilities sum to one.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from accord.claims import Claim
from accord.lab.enumerable import EnumerableWorld, Policy, SoftmaxPolicy, build_world, comparisons, tree_at_reference
from accord.lab.optima._training import BETA, train_on_pairs
from accord.lab.row_checks import equal_everywhere
from accord.objectives import OBJECTIVES
from accord.policy.moving_reference import UpdateRule
from accord.policy.weights.averaging import average_weights, extrapolate_weights, mix_weights

RATE = 2.0
"""Of plain gradient steps."""


# TR-DPO ---------------------------------------------------------------------------------------------------------------


def _tr_dpo_claims() -> Iterator[Claim]:
    world = build_world()
    for note, rule in (
        ("a = 0", UpdateRule(every=1, share=0.0)),
        ("n = ∞", UpdateRule(every=1000, share=1.0)),
    ):
        yield equal_everywhere(
            f"{note}: reaches DPO's optimum π_ref·exp(r/β)/Z", _tilted(world, 1.0), _trained_out(world, rule, 3)
        )
    yield equal_everywhere(
        "soft, updated 3 times when training has ended: π_ref·exp((1 + 2a)·r/β)/Z",
        _tilted(world, 1 + 2 * 0.6),
        _trained_out(world, UpdateRule(every=1, share=0.6), 3),
        note="each round starts from a reference that has taken up a·r/β: the hold of the start is lost at that pace",
    )
    yield equal_everywhere(
        "hard, updated 3 times when training has ended: π_ref·exp(3·r/β)/Z",
        _tilted(world, 3.0),
        _trained_out(world, UpdateRule(every=1, share=1.0), 3),
    )
    yield _recursion_claim(world)
    yield from _pinned_claims(world)


def _tilted(world: EnumerableWorld, times: float) -> Float[Tensor, "P K"]:
    return (world.reference_logps_PK + times * world.reward_PK / BETA).log_softmax(dim=-1)


def _trained_out(world: EnumerableWorld, rule: UpdateRule, num_rounds: int) -> Float[Tensor, "P K"]:
    """Train to the end in each round, with an update of the reference after it; return log π."""
    policy, reference = SoftmaxPolicy(world.reference_logps_PK), SoftmaxPolicy(world.reference_logps_PK)
    for step in range(1, num_rounds + 1):
        now = replace(world, reference_logps_PK=reference.logps_PK().detach())
        train_on_pairs(policy, now, world.all_pairs(), "dpo", beta=BETA)
        reference.load_state_dict(mix_weights(reference.state_dict(), policy.state_dict(), rule.share_at(step)))
    return policy.logps_PK()


def _steps(
    world: EnumerableWorld, policy: Policy, rule: UpdateRule, num_steps: int
) -> Iterator[tuple[dict[str, Tensor], float, Tensor]]:
    """Take gradient steps on DPO; yield before each one the reference's weights, the loss and ∂loss/∂log π(chosen)."""
    follower, reference = copy.deepcopy(policy), copy.deepcopy(policy.state_dict())
    optimiser = torch.optim.SGD(policy.parameters(), lr=RATE)
    for step in range(1, num_steps + 1):
        follower.load_state_dict(reference)
        now = replace(world, reference_logps_PK=follower.logps_PK().detach())
        population = comparisons(now, policy.logps_PK(), world.all_pairs())
        result = OBJECTIVES["dpo"].fn(population.groups, beta=BETA)
        loss = population.mean(result)
        (pull_GK,) = torch.autograd.grad(result.loss_P.sum(), population.groups.policy_logps_PK, retain_graph=True)
        yield reference, loss.item(), pull_GK[:, 0]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        reference = mix_weights(reference, policy.state_dict(), rule.share_at(step))


def _recursion_claim(world: EnumerableWorld) -> Claim:
    """θ_ref after m updates = (1 − a)^m θ₀ + Σ_j a (1 − a)^(m − j) θ_j, with θ_j the policy at the j-th update."""
    policy, share, every, num_updates = tree_at_reference(world), 0.25, 3, 6
    taken: list[Tensor] = [policy.logits_PNV.detach().clone()]
    reached = taken[0]
    for step, (reference, _, _) in enumerate(
        _steps(world, policy, UpdateRule(every=every, share=share), every * num_updates + 1)
    ):
        reached = reference["logits_PNV"]
        if step and step % every == 0:
            taken.append(policy.logits_PNV.detach().clone())
    weights = [(1 - share) ** num_updates, *(share * (1 - share) ** (num_updates - j) for j in range(1, len(taken)))]
    expected = torch.stack([weight * theta for weight, theta in zip(weights, taken, strict=True)]).sum(dim=0)
    return equal_everywhere(
        "soft, every 3 gradient steps: θ_ref = (1 − a)^m θ₀ + Σ a(1 − a)^(m − j) θ_j",
        expected.flatten(),
        reached.flatten(),
        tolerance=1e-12,
    )


def _pinned_claims(world: EnumerableWorld) -> Iterator[Claim]:
    policy = SoftmaxPolicy(world.reference_logps_PK)
    path, losses, pulls = [], [], []
    for _, loss, pull_G in _steps(world, policy, UpdateRule(every=1, share=1.0), 20):
        path.append(policy.logits_PK.detach().clone())
        losses.append(loss)
        pulls.append(pull_G)
    yield equal_everywhere(
        "hard at every step: the loss stays ln 2",
        torch.full((20,), math.log(2), dtype=torch.float64),
        torch.tensor(losses, dtype=torch.float64),
        tolerance=1e-12,
    )
    pull_SG = torch.stack(pulls)
    yield equal_everywhere(
        "hard at every step: the gradient keeps its weight β/2",
        torch.full_like(pull_SG, -BETA / 2),
        pull_SG,
        tolerance=1e-12,
    )
    yield equal_everywhere(
        "hard at every step: weights move in a straight line, θ_k = θ₀ + k(θ₁ − θ₀)",
        (path[0] + 19 * (path[1] - path[0])).flatten(),
        path[19].flatten(),
        tolerance=1e-11,
        note="no optimum: nothing holds the policy back",
    )


# Accelerated preference optimisation ----------------------------------------------------------------------------------


def _accelerated_claims() -> Iterator[Claim]:
    worlds = [build_world(seed=seed) for seed in range(4)]
    start_PK = worlds[0].reference_logps_PK
    for alpha in (0.3, 0.0):
        trained = _rounds(worlds, alpha)
        last = len(worlds) - 1
        coefficients = [sum(alpha**j for j in range(last + 1 - i)) / BETA for i in range(len(worlds))]
        tilt_PK = torch.stack([c * w.reward_PK for c, w in zip(coefficients, worlds, strict=True)]).sum(dim=0)
        what = "(1 − α^(t+1−i))/((1 − α)β)" if alpha else "1/β, iterative DPO"
        yield equal_everywhere(
            f"α = {alpha:g}, 4 rounds with 4 rewards: log π̂ = log π_ref + Σ cᵢ rᵢ, cᵢ = {what}",
            (start_PK + tilt_PK).log_softmax(dim=-1),
            trained[-1].logps_PK(),
        )
    now, before = _rounds(worlds[:1], 0.0)[-1], SoftmaxPolicy(start_PK)
    stepped = SoftmaxPolicy(start_PK)
    stepped.load_state_dict(extrapolate_weights(now.state_dict(), before.state_dict(), 0.3))
    yield equal_everywhere(
        "one round and one extrapolation (ExPO): the optimum of β/(1 + α)",
        _tilted(worlds[0], 1.3),
        stepped.logps_PK(),
    )
    yield from _extrapolation_claims()


def _rounds(worlds: list[EnumerableWorld], alpha: float) -> list[SoftmaxPolicy]:
    """Train in each world from where the last round's extrapolation led, that being the reference; return all π̂."""
    start = SoftmaxPolicy(worlds[0].reference_logps_PK)
    trained = [start]
    for world in worlds:
        now = replace(world, reference_logps_PK=start.logps_PK().detach())
        policy = SoftmaxPolicy(start.logits_PK)
        train_on_pairs(policy, now, world.all_pairs(), "dpo", beta=BETA)
        start = SoftmaxPolicy(policy.logits_PK)
        start.load_state_dict(extrapolate_weights(policy.state_dict(), trained[-1].state_dict(), alpha))
        trained.append(policy)
    return trained


def _extrapolation_claims() -> Iterator[Claim]:
    generator = torch.Generator().manual_seed(0)
    features_PKF = torch.randn(2, 7, 3, generator=generator, dtype=torch.float64)
    now, before = ({"theta": torch.randn(3, generator=generator, dtype=torch.float64)} for _ in range(2))
    beyond = extrapolate_weights(now, before, 0.3)
    logps = [(features_PKF @ weights["theta"]).log_softmax(dim=-1) for weights in (now, before, beyond)]
    yield equal_everywhere(
        "softmax of features·θ: extrapolated weights = extrapolated log π, normalised",
        (logps[0] + 0.3 * (logps[0] - logps[1])).log_softmax(dim=-1),
        logps[2],
        tolerance=1e-12,
    )
    world = build_world()
    policies = [tree_at_reference(world) for _ in range(3)]
    with torch.no_grad():
        policies[0].logits_PNV.add_(torch.randn(policies[0].logits_PNV.shape, generator=generator, dtype=torch.float64))
    policies[2].load_state_dict(extrapolate_weights(policies[0].state_dict(), policies[1].state_dict(), 0.3))
    logps = [policy.logps_PK().detach() for policy in policies]
    wanted = (logps[0] + 0.3 * (logps[0] - logps[1])).log_softmax(dim=-1)
    yield Claim.at_least(
        "autoregressive: extrapolated weights are not extrapolated log π (gap, nats)",
        bound=1e-3,
        reached=(wanted - logps[2]).abs().max().item(),
        note="each token is normalised by itself: with language models the closed form is an approximation",
    )


# Soups ----------------------------------------------------------------------------------------------------------------


def _soup_claims() -> Iterator[Claim]:
    world, shares = build_world(), [0.5, 0.2, 0.3]
    policies = [tree_at_reference(build_world(seed=seed)) for seed in range(3)]
    same = average_weights([policies[0].state_dict()] * 3, shares)
    yield equal_everywhere(
        "a soup of equal weights is that model", policies[0].logits_PNV.flatten(), same["logits_PNV"].flatten(),
        tolerance=0.0,
    )  # fmt: skip
    members = [SoftmaxPolicy(policy.logps_PK()) for policy in policies]
    soup = SoftmaxPolicy(world.reference_logps_PK)
    soup.load_state_dict(average_weights([member.state_dict() for member in members], shares))
    mean_PK = sum(share * member.logps_PK() for share, member in zip(shares, members, strict=True))
    assert isinstance(mean_PK, Tensor)
    yield equal_everywhere(
        "softmax policies: the soup is their weighted geometric mean, normalised",
        mean_PK.log_softmax(dim=-1),
        soup.logps_PK(),
        tolerance=1e-12,
    )
    around = replace(world, reference_logps_PK=soup.logps_PK().detach())
    policy = train_on_pairs(tree_at_reference(world), around, world.all_pairs(), "dpo", beta=BETA)
    yield equal_everywhere(
        "as a reference: DPO reaches soup·exp(r/β)/Z", _tilted(around, 1.0), policy.logps_PK(),
        note="wherever the policy itself started",
    )  # fmt: skip


CLAIMS: dict[str, Callable[[], Iterator[Claim]]] = {
    "tr_dpo": _tr_dpo_claims,
    "apo_nesterov": _accelerated_claims,
    "soup": _soup_claims,
}
"""By the name under which they are printed."""
