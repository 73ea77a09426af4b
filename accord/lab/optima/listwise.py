"""Claims of objectives of K judged responses: orders, ratings and win rates.

Notation as in the objectives: u(y) = log π(y|x) − log π_ref(y|x), s = β u, q = softmax of ratings over a temperature.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from accord.claims import Claim
from accord.groups import ScoredGroups, groups_from_pairs
from accord.lab.enumerable import EnumerableWorld, Policy, Population, SoftmaxPolicy, build_world, tree_at_reference
from accord.lab.optima._training import BETA, chain_differences, chain_rater_frac, train
from accord.lab.row_checks import equal_everywhere
from accord.objectives import OBJECTIVES


def shown(
    world: EnumerableWorld,
    logps_PK: Float[Tensor, "P K"],
    index_GK: Int[Tensor, "G k"],
    weight_PG: Float[Tensor, "P G"],
    **judgements: Any,
) -> Population:
    """Return one group per prompt and row of response numbers, prompts outermost, each with its weight.

    Judgements are given for (prompts × rows) groups, or for one group that all others repeat.
    """
    num_groups = weight_PG.numel()
    shape = (num_groups, index_GK.shape[1])
    full = {name: value.expand(num_groups, *value.shape[1:]) for name, value in judgements.items()}
    return Population(
        groups=ScoredGroups(
            policy_logps_PK=logps_PK[:, index_GK].reshape(shape),
            reference_logps_PK=world.reference_logps_PK[:, index_GK].reshape(shape),
            num_tokens_PK=world.num_tokens_K[index_GK].repeat(len(world.reward_PK), 1),
            is_valid_PK=torch.ones(shape, dtype=torch.bool),
            **full,
        ),
        weight_G=weight_PG.flatten(),
    )


def ranked_in_order(width: int, *, only_best: bool = False) -> Tensor:
    """Return the judgements (1, K, K) of a group whose responses stand from best to worst, or with the best first."""
    pairs_PKK = torch.ones(1, width, width, dtype=torch.bool).triu(1)
    if only_best:
        pairs_PKK[:, 1:] = False
    return pairs_PKK


def best_first(width: int) -> Int[Tensor, "K K"]:
    """Return, for each response, the row that names it first and then the others."""
    return torch.stack([torch.arange(width).roll(-best) for best in range(width)])


def rlhf_policy(world: EnumerableWorld, reward_PK: Tensor, strength: float) -> Float[Tensor, "P K"]:
    """Return log π_ref·exp(r/strength)/Z."""
    return (world.reference_logps_PK + reward_PK / strength).log_softmax(dim=-1)


def train_on(
    policy: Policy, population_at: Callable[[Tensor], Population], objective: str, **settings: Any
) -> Float[Tensor, "P K"]:
    """Fit a policy to a row's population loss and return its log-probabilities."""
    train(policy, population_at, lambda groups: OBJECTIVES[objective].fn(groups, **settings))
    return policy.logps_PK().detach()


def _plackett_luce_claims() -> Iterator[Claim]:
    world = build_world()
    rows = [order for three in itertools.combinations(range(7), 3) for order in itertools.permutations(three)]
    index_GK = torch.tensor(rows)
    strength_PGK = world.reward_PK[:, index_GK].exp()
    left_PGK = strength_PGK.flip(-1).cumsum(dim=-1).flip(-1)
    weight_PG = (strength_PGK / left_PGK).prod(dim=-1)
    pairs = ranked_in_order(3)
    reached = train_on(
        tree_at_reference(world),
        lambda logps_PK: shown(world, logps_PK, index_GK, weight_PG, preferred_PKK=pairs),
        "plackett_luce",
        beta=BETA,
    )
    yield equal_everywhere(
        "Plackett–Luce raters who rank triples: reaches π_ref·exp(r/β)/Z",
        rlhf_policy(world, world.reward_PK, BETA),
        reached,
    )
    yield _equals_dpo("plackett_luce")


def _rnce_claims() -> Iterator[Claim]:
    world, everyone = build_world(), best_first(7)
    marked = ranked_in_order(7, only_best=True)
    reached = train_on(
        tree_at_reference(world),
        lambda logps_PK: shown(world, logps_PK, everyone, world.reward_PK.softmax(dim=1), preferred_PKK=marked),
        "rnce",
        beta=BETA,
    )
    yield equal_everywhere(
        "the best of all marked by raters who choose with probability softmax(r): reaches π_ref·exp(r/β)/Z",
        rlhf_policy(world, world.reward_PK, BETA),
        reached,
    )
    data_PK = world.reward_PK.log_softmax(dim=1)
    index_GK, weight_PG = data_and_noise(world, data_PK, 2)
    marked = ranked_in_order(3, only_best=True)
    reached = train_on(
        SoftmaxPolicy(world.reference_logps_PK),
        lambda logps_PK: shown(world, logps_PK, index_GK, weight_PG, preferred_PKK=marked),
        "rnce",
        beta=BETA,
    )
    yield equal_everywhere(
        "the best drawn from p, two negatives from π_ref: s = log(p/π_ref) + const",
        rlhf_policy(world, data_PK - world.reference_logps_PK, BETA),
        reached,
    )
    yield _equals_dpo("rnce")


def data_and_noise(
    world: EnumerableWorld, data_logps_PK: Float[Tensor, "P K"], num_noise: int
) -> tuple[Int[Tensor, "G k"], Float[Tensor, "P G"]]:
    """Return every group of one response of the data and M of the reference, the data first, with its probability."""
    width = len(world.responses)
    index_GK = torch.tensor(list(itertools.product(range(width), repeat=num_noise + 1)))
    noise_PG = world.reference_logps_PK[:, index_GK[:, 1:]].sum(dim=-1)
    return index_GK, (data_logps_PK[:, index_GK[:, 0]] + noise_PG).exp()


def _equals_dpo(name: str, **settings: Any) -> Claim:
    """Claim that a row is DPO on pairs, in value and gradient."""
    policy_logps = torch.tensor([[-12.0, -15.0], [-3.0, -1.0]], dtype=torch.float64, requires_grad=True)
    pairs = groups_from_pairs(
        policy_logps, reference_logps_P2=torch.tensor([[-13.0, -14.5], [-2.0, -2.5]], dtype=torch.float64)
    )
    found = []
    for row, more in (("dpo", {}), (name, settings)):
        loss_P = OBJECTIVES[row].fn(pairs, beta=BETA, **more).loss_P
        (gradient_PK,) = torch.autograd.grad(loss_P.sum(), policy_logps)
        found.append(torch.cat([loss_P.detach(), gradient_PK.flatten()]))
    return equal_everywhere("two responses: DPO, value and gradient", *found, tolerance=1e-12)


def _pro_claims() -> Iterator[Claim]:
    world = build_world(bradley_terry=False)
    index_GK, weight_PG = _pairs_in_both_orders(world)
    ratings = {"reward_PK": torch.tensor([[0.9, 0.1]], dtype=torch.float64), **_all_rated(2)}
    reached = train_on(
        tree_at_reference(world),
        lambda logps_PK: shown(world, logps_PK, index_GK, weight_PG, **ratings),
        "pro",
        sft_weight=0.0,
    )
    yield equal_everywhere(
        "two responses rated 0.9 and 0.1, no likelihood term: difference of means = logit(p)/0.8",
        torch.logit(chain_rater_frac(world)) / 0.8,
        chain_differences(reached / world.num_tokens_K),
    )


def _lipo_lambda_claims() -> Iterator[Claim]:
    world = build_world(bradley_terry=False)
    index_GK, weight_PG = _pairs_in_both_orders(world)
    ratings = {"reward_PK": torch.tensor([[2.0, 0.0]], dtype=torch.float64), **_all_rated(2)}
    reached = train_on(
        tree_at_reference(world),
        lambda logps_PK: shown(world, logps_PK, index_GK, weight_PG, **ratings),
        "lipo_lambda",
        beta=BETA,
    )
    yield equal_everywhere(
        "two responses: u(y_w) − u(y_l) = logit(p)/β",
        torch.logit(chain_rater_frac(world)) / BETA,
        chain_differences(reached - world.reference_logps_PK),
        note="with more than two the weights move with the order, and no closed form is known",
    )


def _pairs_in_both_orders(world: EnumerableWorld) -> tuple[Tensor, Tensor]:
    better, worse = (
        torch.tensor(side) for side in zip(*world.chain(), *((j, i) for i, j in world.chain()), strict=True)
    )
    return torch.stack([better, worse], dim=1), world.rater_frac_PKK[:, better, worse]


def _all_rated(width: int) -> dict[str, Tensor]:
    return {"is_rated_PK": torch.ones(1, width, dtype=torch.bool)}


def _info_nca_claims() -> Iterator[Claim]:
    yield from _softmax_claims("info_nca", alpha=1.5)


def _exo_rw_claims() -> Iterator[Claim]:
    yield from _softmax_claims("exo_rw", reward_temperature=1.5)


def _dpo_rw_claims() -> Iterator[Claim]:
    yield from _softmax_claims("dpo_rw", reward_temperature=1.5)
    world = build_world()
    groups = _rate_all(world, tree_at_reference(world).logps_PK() + 0.3 * world.reward_PK).groups
    share_PK = (world.reward_PK / 1.5).softmax(dim=1)
    info_nca = OBJECTIVES["info_nca"].fn(groups, beta=BETA, alpha=1.5).loss_P
    yield equal_everywhere(
        "is info_nca less the entropy of q",
        info_nca + (share_PK * share_PK.log()).sum(dim=1),
        OBJECTIVES["dpo_rw"].fn(groups, beta=BETA, reward_temperature=1.5).loss_P,
        tolerance=1e-12,
    )


def _softmax_claims(name: str, **settings: float) -> Iterator[Claim]:
    world, (temperature,) = build_world(), settings.values()
    policy = tree_at_reference(world)
    reached = train_on(policy, lambda logps_PK: _rate_all(world, logps_PK), name, beta=BETA, **settings)
    expected = rlhf_policy(world, world.reward_PK, BETA * temperature)
    yield equal_everywhere("softmax(s) = q, that is π_ref·exp(r/(β·temperature))/Z", expected, reached)


def _rate_all(world: EnumerableWorld, logps_PK: Tensor) -> Population:
    everyone = torch.arange(len(world.responses))[None]
    weight_P1 = torch.ones(len(world.reward_PK), 1, dtype=torch.float64)
    return shown(world, logps_PK, everyone, weight_P1, reward_PK=world.reward_PK, **_all_rated(len(world.responses)))


def _nca_claims() -> Iterator[Claim]:
    world, alpha = build_world(), 4.0
    index_GK, weight_P1, rest = _all_but_one(world)
    reward_PK = world.reward_PK[:, index_GK[0]]
    ratings = {"reward_PK": reward_PK, **_all_rated(reward_PK.shape[1])}
    policy = SoftmaxPolicy(world.reference_logps_PK)
    reached = train_on(
        policy, lambda logps_PK: shown(world, logps_PK, index_GK, weight_P1, **ratings), "nca", beta=1.0, alpha=alpha
    )
    share_PK = (reward_PK / alpha).softmax(dim=1)
    yield equal_everywhere(
        "e^s = K q",
        reward_PK.shape[1] * share_PK,
        (reached - world.reference_logps_PK)[:, index_GK[0]].exp(),
        note=f"response {rest} is never shown and takes up the rest of the probability",
    )


def _sppo_claims() -> Iterator[Claim]:
    world, eta = build_world(bradley_terry=False), 0.5
    index_GK, weight_P1, rest = _all_but_one(world)
    reached, target_PK = _play(world, index_GK, weight_P1, eta)
    yield equal_everywhere(
        "u = η (P − 1/2)",
        target_PK,
        (reached - world.reference_logps_PK)[:, index_GK[0]],
        note=f"response {rest} is never shown and takes up the rest of the probability",
    )
    everyone = torch.arange(len(world.responses))[None]
    reached, target_PK = _play(world, everyone, weight_P1, eta)
    force_PK = (reached - world.reference_logps_PK - target_PK) / reached.exp()
    yield equal_everywhere(
        "all responses shown: u − η (P − 1/2) is proportional to π, the price of adding up to one",
        force_PK.mean(dim=1, keepdim=True).expand_as(force_PK),
        force_PK,
    )

    pairs = groups_from_pairs(
        torch.tensor([[-12.0, -15.0], [-3.0, -1.0]], dtype=torch.float64),
        reference_logps_P2=torch.tensor([[-13.0, -14.5], [-2.0, -2.5]], dtype=torch.float64),
    )
    won_122 = ranked_in_order(2).double()
    wins = {"win_frac_PKK": (0.5 + 0.5 * won_122 - 0.5 * won_122.mT).expand(2, 2, 2)}
    hard = replace(pairs, is_compared_PKK=~torch.eye(2, dtype=torch.bool).expand(2, 2, 2), **wins)
    rows = [OBJECTIVES[name].fn(hard, eta=eta).loss_P for name in ("sppo_hard", "sppo")]
    yield equal_everywhere("two responses, unanimous judges: sppo_hard", *rows, tolerance=1e-12)


def _play(world: EnumerableWorld, index_1K: Tensor, weight_P1: Tensor, eta: float) -> tuple[Tensor, Tensor]:
    (index_K,) = index_1K
    win_frac_PKK = world.rater_frac_PKK[:, index_K][:, :, index_K]
    is_compared = ~torch.eye(len(index_K), dtype=torch.bool)[None]
    win_frac_PK = torch.where(is_compared, win_frac_PKK, 0.0).sum(dim=2) / (len(index_K) - 1)
    policy = SoftmaxPolicy(world.reference_logps_PK)
    wins = {"win_frac_PKK": win_frac_PKK, "is_compared_PKK": is_compared}
    reached = train_on(policy, lambda logps_PK: shown(world, logps_PK, index_1K, weight_P1, **wins), "sppo", eta=eta)
    return reached, eta * (win_frac_PK - 0.5)


def _all_but_one(world: EnumerableWorld) -> tuple[Tensor, Tensor, int]:
    """Return the group of all responses but the likeliest, its weight per prompt, and which was left out."""
    rest = int(world.reference_logps_PK.exp().amin(dim=0).argmax())
    index = torch.tensor([[number for number in range(len(world.responses)) if number != rest]])
    return index, torch.ones(len(world.reward_PK), 1, dtype=torch.float64), rest


CLAIMS: dict[str, Callable[[], Iterator[Claim]]] = {
    "plackett_luce": _plackett_luce_claims,
    "rnce": _rnce_claims,
    "pro": _pro_claims,
    "lipo_lambda": _lipo_lambda_claims,
    "info_nca": _info_nca_claims,
    "nca": _nca_claims,
    "exo_rw": _exo_rw_claims,
    "dpo_rw": _dpo_rw_claims,
    "sppo": _sppo_claims,
}
