"""Claims of objectives that read responses token by token.

Notation as in the objectives: r_t(y) = log π(y_t|·) − log π_ref(y_t|·), u(y) = Σ_t r_t(y), K(y) the position KL summed
along y, p = the fraction of raters who prefer the first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from accord.claims import Claim
from accord.groups import ScoredTokens
from accord.lab.enumerable import (
    EnumerableWorld,
    Population,
    TreePolicy,
    build_world,
    comparisons,
    fit,
    tree_at_reference,
)
from accord.lab.optima._training import BETA, chain_differences, chain_rater_frac, log_ratio
from accord.lab.row_checks import equal_everywhere
from accord.objectives import OBJECTIVES
from accord.policy.tokens.edits import kept_tokens

Facts = Callable[[ScoredTokens], ScoredTokens]
"""Adds what came with the data or from other models."""


def _population(
    world: EnumerableWorld, policy: TreePolicy, pairs: list[tuple[int, int]], with_facts: Facts
) -> Population:
    tokens = with_facts(policy.tokens(tree_at_reference(world)))
    return comparisons(world, policy.logps_PK(), pairs, tokens=tokens)


def _loss(
    world: EnumerableWorld,
    policy: TreePolicy,
    name: str,
    with_facts: Facts = lambda tokens: tokens,
    **settings: object,
) -> Tensor:
    """Return a row's population loss over the chain of pairs, in both orders, weighted by the raters."""
    population = _population(world, policy, world.chain(), with_facts)
    return population.mean(OBJECTIVES[name].fn(population.groups, **settings))


def _fitted(
    world: EnumerableWorld, name: str, with_facts: Facts = lambda tokens: tokens, **settings: object
) -> tuple[TreePolicy, ScoredTokens]:
    """Return the policy that minimises a row's population loss, and its responses token by token."""
    policy = tree_at_reference(world)
    fit(policy, lambda: _loss(world, policy, name, with_facts, **settings))
    return policy, policy.tokens(tree_at_reference(world))


def _gradient(world: EnumerableWorld, policy: TreePolicy, name: str, *facts: Facts, **settings: object) -> Tensor:
    """Return the gradient of a row's population loss by the logits of the tree."""
    (gradient,) = torch.autograd.grad(_loss(world, policy, name, *facts, **settings), policy.logits_PNV)
    return gradient


def _elsewhere(world: EnumerableWorld) -> TreePolicy:
    """Return a policy that is neither the reference nor an optimum."""
    policy, generator = tree_at_reference(world), torch.Generator().manual_seed(5)
    with torch.no_grad():
        policy.logits_PNV.add_(0.5 * torch.randn(policy.logits_PNV.shape, generator=generator, dtype=torch.float64))
    return policy


def _ratios(tokens: ScoredTokens) -> Tensor:
    assert tokens.reference_logps_PKT is not None
    return tokens.policy_logps_PKT - tokens.reference_logps_PKT


def _filled(tokens: ScoredTokens, value: float) -> Tensor:
    return torch.full_like(tokens.policy_logps_PKT, value)


# Weights of pairs and tokens -----------------------------------------------------------------------------------------


def _wpo_claims() -> Iterator[Claim]:
    world = build_world(bradley_terry=False)
    policy = tree_at_reference(world)
    fit(policy, lambda: _loss(world, policy, "dpo", beta=BETA))
    expected = torch.logit(chain_rater_frac(world)) / BETA
    yield equal_everywhere("DPO's optimum, D = logit(p)/β", expected, chain_differences(log_ratio(world, policy)))
    gradient = _gradient(world, policy, "wpo", beta=BETA)
    yield equal_everywhere(
        "fixed point: its gradient vanishes there, too",
        torch.zeros_like(gradient),
        gradient,
        tolerance=1e-7,
        note="both orders of a pair weigh the same; the weights move with the policy, so the loss has no minimum",
    )
    policy = TreePolicy(world.responses, num_prompts=len(world.reward_PK))  # uniform at every node
    uniform, dpo = _gradient(world, policy, "wpo", beta=BETA), _gradient(world, policy, "dpo", beta=BETA)
    yield equal_everywhere("uniform next-token distributions weigh 1: the step is DPO's", dpo, uniform, tolerance=1e-12)


def _ld_dpo_claims() -> Iterator[Claim]:
    world, alpha = build_world(bradley_terry=False), 0.25
    _, tokens = _fitted(world, "ld_dpo", beta=BETA, alpha=alpha)
    ratio_PKT, lengths = _ratios(tokens), world.num_tokens_K.tolist()

    def score(response: int, length: int) -> Tensor:
        of_response_PT = ratio_PKT[:, response]
        return of_response_PT[:, :length].sum(dim=1) + alpha * of_response_PT[:, length:].sum(dim=1)

    reached = [score(i, min(lengths[i], lengths[j])) - score(j, min(lengths[i], lengths[j])) for i, j in world.chain()]
    yield equal_everywhere(
        "difference of the attenuated scores = logit(p)/β",
        torch.logit(chain_rater_frac(world)) / BETA,
        torch.stack(reached, dim=1),
    )
    policy = _elsewhere(world)
    yield equal_everywhere(
        "α = 1 is DPO",
        _gradient(world, policy, "dpo", beta=BETA),
        _gradient(world, policy, "ld_dpo", beta=BETA, alpha=1.0),
        tolerance=1e-12,
    )


def _token_weighted_claims() -> Iterator[Claim]:
    world = build_world(bradley_terry=False)
    expected = torch.logit(chain_rater_frac(world)) / BETA
    policy, _ = _fitted(
        world, "token_weighted_dpo", lambda tokens: replace(tokens, weight_PKT=_filled(tokens, 2.0)), beta=BETA
    )
    yield equal_everywhere(
        "equal weights c: DPO's optimum of strength cβ, D = logit(p)/(cβ)",
        expected / 2.0,
        chain_differences(log_ratio(world, policy)),
    )
    generator = torch.Generator().manual_seed(1)
    weight_KT = 0.3 + torch.rand(len(world.responses), 3, generator=generator, dtype=torch.float64)
    _, tokens = _fitted(
        world,
        "token_weighted_dpo",
        lambda tokens: replace(tokens, weight_PKT=weight_KT.expand_as(tokens.policy_logps_PKT)),
        beta=BETA,
    )
    yield equal_everywhere(
        "any weights: difference of Σ ω r = logit(p)/β",
        expected,
        chain_differences((weight_KT * _ratios(tokens)).sum(dim=2)),
    )
    yield from _soft_value_claims()


def _soft_value_claims() -> Iterator[Claim]:
    """From r to Q*: at the optimum of Bradley–Terry raters a token's β r_t is its soft advantage."""
    world = build_world()
    _, tokens = _fitted(
        world, "token_weighted_dpo", lambda tokens: replace(tokens, weight_PKT=_filled(tokens, 1.0)), beta=BETA
    )
    value = {}  # V*(prefix) = β log Σ over its continuations of π_ref(continuation) e^{r/β}, the reward at the end
    for prefix in {response[:end] for response in world.responses for end in range(len(response) + 1)}:
        inside = [k for k, response in enumerate(world.responses) if response[: len(prefix)] == prefix]
        log_mass_PK = world.reference_logps_PK[:, inside]
        value[prefix] = BETA * (
            torch.logsumexp(log_mass_PK + world.reward_PK[:, inside] / BETA, dim=1)
            - torch.logsumexp(log_mass_PK, dim=1)
        )
    expected, reached = [], []
    for k, response in enumerate(world.responses):
        for t in range(len(response)):
            expected.append(value[response[: t + 1]] - value[response[:t]])
            reached.append(BETA * _ratios(tokens)[:, k, t])
    yield equal_everywhere(
        "weights 1, Bradley–Terry raters: β r_t = V*(after) − V*(before), which telescopes to r − V*(start)",
        torch.stack(expected),
        torch.stack(reached),
    )


# Divergences ---------------------------------------------------------------------------------------------------------


def _tdpo1_claims() -> Iterator[Claim]:
    world = build_world(bradley_terry=False)
    _, tokens = _fitted(world, "tdpo1", beta=BETA)
    assert tokens.position_kl_PKT is not None
    yield equal_everywhere(
        "difference of u + K = logit(p)/β",
        torch.logit(chain_rater_frac(world)) / BETA,
        chain_differences((_ratios(tokens) + tokens.position_kl_PKT).sum(dim=2)),
    )
    yield from _first_step_claims(world, "tdpo1")


def _tdpo2_claims() -> Iterator[Claim]:
    world, alpha = build_world(bradley_terry=False), 0.5
    yield from _first_step_claims(world, "tdpo2", alpha=alpha)
    policy = _elsewhere(world)
    yield equal_everywhere(
        "α = 0 is DPO",
        _gradient(world, policy, "dpo", beta=BETA),
        _gradient(world, policy, "tdpo2", beta=BETA, alpha=0.0),
        tolerance=1e-12,
    )
    tokens = policy.tokens(tree_at_reference(world))
    assert tokens.position_kl_PKT is not None
    kl_PK = tokens.position_kl_PKT.sum(dim=2)
    score_PK = (log_ratio(world, policy) + alpha * kl_PK).detach()
    agreeing = replace(world, rater_frac_PKK=torch.sigmoid(BETA * (score_PK[:, :, None] - score_PK[:, None, :])))
    p = chain_rater_frac(agreeing)
    left = (p * (1 - p) * alpha * BETA * (kl_PK[:, :-1] + kl_PK[:, 1:])).mean()
    (expected,) = torch.autograd.grad(left, policy.logits_PNV)
    yield equal_everywhere(
        "where raters agree with the margins, p(1 − p)αβ ∇(K_w + K_l) is left: it holds the policy back",
        expected,
        _gradient(agreeing, policy, "tdpo2", beta=BETA, alpha=alpha),
        tolerance=1e-12,
        note="no closed-form optimum: the stop-gradient makes the loss no function that is minimised",
    )


def _first_step_claims(world: EnumerableWorld, name: str, **settings: float) -> Iterator[Claim]:
    policy = tree_at_reference(world)
    yield equal_everywhere(
        "at the reference K and its gradient vanish: the first step is DPO's",
        _gradient(world, policy, "dpo", beta=BETA),
        _gradient(world, policy, name, beta=BETA, **settings),
        tolerance=1e-9,
    )


# Two further models, edits -------------------------------------------------------------------------------------------


def _critical_claims() -> Iterator[Claim]:
    world = build_world(bradley_terry=False)
    policy = _elsewhere(world)
    for weighted, right, beta in (("only_rejected", 0.0, BETA), ("both", 0.5, BETA / 2)):
        found = _gradient(
            world,
            policy,
            "dpo_critical",
            lambda tokens, right=right: replace(tokens, critical_PKT=_filled(tokens, right)),
            beta=BETA,
            weighted=weighted,
        )
        yield equal_everywhere(
            f"{weighted}, s_t = {right:g}: DPO with β {'itself' if beta == BETA else '/ 2'}",
            _gradient(world, policy, "dpo", beta=beta),
            found,
            tolerance=1e-12,
            note="with other weights the two orders of a pair contradict each other: no optimum in closed form",
        )


def _salt_claims() -> Iterator[Claim]:
    """Two tokens, so that 1 − p of one is the other's p, and both halves of the loss are logarithms of one number."""
    world = build_world(num_content=1)
    pairs = [(i, j) for i in range(len(world.responses)) for j in range(i)]
    policy = tree_at_reference(world)
    weights = {"chosen_kept_weight": 0.5, "chosen_changed_weight": 1.5, "rejected_changed_weight": 0.75}

    def population() -> Population:
        found = _population(world, policy, pairs, lambda tokens: tokens)
        assert found.groups.tokens is not None
        shape = found.groups.tokens.is_trained_PKT.shape
        is_kept_PKT = torch.zeros(shape, dtype=torch.bool)
        for row, (better, worse) in enumerate([*pairs, *((j, i) for i, j in pairs)] * len(world.reward_PK)):
            for slot, kept in enumerate(kept_tokens(world.responses[better], world.responses[worse])):
                is_kept_PKT[row, slot, : len(kept)] = torch.tensor(kept)
        return replace(
            found, groups=replace(found.groups, tokens=replace(found.groups.tokens, is_kept_PKT=is_kept_PKT))
        )

    edits = population().groups.tokens
    assert edits is not None

    def loss() -> Tensor:
        now = _population(world, policy, pairs, lambda tokens: tokens)
        assert now.groups.tokens is not None
        tokens = replace(now.groups.tokens, is_kept_PKT=edits.is_kept_PKT)
        return now.mean(OBJECTIVES["salt"].fn(replace(now.groups, tokens=tokens), **weights))

    fit(policy, loss)
    mass_PNV = torch.zeros_like(policy.logits_PNV)
    for prompt in range(len(world.reward_PK)):
        for better, worse in [*pairs, *((j, i) for i, j in pairs)]:
            share = world.rater_frac_PKK[prompt, better, worse]
            edited, drafted = world.responses[better], world.responses[worse]
            is_kept_edited, is_kept_drafted = kept_tokens(edited, drafted)
            for t, token in enumerate(edited[:2]):  # a third token is EOS by rule
                weight = weights["chosen_kept_weight" if is_kept_edited[t] else "chosen_changed_weight"]
                mass_PNV[prompt, t, token] += share * weight / len(edited)
            num_changed = is_kept_drafted.count(False)
            for t, token in enumerate(drafted[:2]):
                if not is_kept_drafted[t]:
                    mass_PNV[prompt, t, 1 - token] += share * weights["rejected_changed_weight"] / num_changed
    yield equal_everywhere(
        "two tokens: p = (imitated + the other one taken out) / all mass, at every position",
        (mass_PNV / mass_PNV.sum(dim=2, keepdim=True)).detach(),
        policy.logits_PNV.softmax(dim=2),
    )


CLAIMS: dict[str, Callable[[], Iterator[Claim]]] = {
    "wpo": _wpo_claims,
    "ld_dpo": _ld_dpo_claims,
    "tdpo1": _tdpo1_claims,
    "tdpo2": _tdpo2_claims,
    "dpo_critical": _critical_claims,
    "salt": _salt_claims,
    "token_weighted_dpo": _token_weighted_claims,
}
