"""Claims of objectives that set a prompt's responses against the whole batch.

The enumerable world's comparisons are one batch here. Notation: u(y) = log π(y|x) − log π_ref(y|x), nats.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from accord.claims import Claim
from accord.groups import ScoredGroups
from accord.lab.enumerable import EnumerableWorld, build_world, comparisons, fit, labels, tree_at_reference
from accord.lab.optima._training import BETA, chain_differences
from accord.lab.row_checks import equal_everywhere, random_groups
from accord.objectives import OBJECTIVES, Need


def in_batch(groups: ScoredGroups) -> ScoredGroups:
    """Return groups as the loop shows a batch that is not split: the whole of it beside them, without gradient."""
    batch = replace(groups, policy_logps_PK=groups.policy_logps_PK.detach(), batch=None, place_P=None)
    return replace(groups, batch=batch, place_P=torch.arange(len(groups.is_valid_PK)))


def alone(groups: ScoredGroups, row: int) -> ScoredGroups:
    """Return one group as a batch of its own."""
    values = {
        name: getattr(groups, name)[row : row + 1]
        for name in ("policy_logps_PK", "reference_logps_PK", "num_tokens_PK", "is_valid_PK", "preferred_PKK")
    }
    return in_batch(ScoredGroups(**values))


def _aot_claims() -> Iterator[Claim]:
    world, smoothing = build_world(bradley_terry=False), 0.2
    policy = tree_at_reference(world)

    def loss() -> Tensor:
        groups = in_batch(_first_orders(world, policy.logps_PK()))
        return OBJECTIVES["aot"].fn(groups, beta=BETA, label_smoothing=smoothing).loss_P.mean()

    fit(policy, loss)
    expected = torch.logit(torch.tensor(1 - smoothing, dtype=torch.float64)) / BETA
    margins, reference = (
        chain_differences(x).flatten().sort().values for x in (policy.logps_PK(), world.reference_logps_PK)
    )
    yield equal_everywhere(
        "smoothed: sorted margins are logit(1 − ε)/β above the reference's", expected.expand_as(margins),
        (margins - reference).detach(),
    )  # fmt: skip
    pairs = _pairs(seed=3)
    for row in range(2):
        one = alone(pairs, row)
        yield equal_everywhere(
            "a batch of one pair: dpo", OBJECTIVES["dpo"].fn(one).loss_P, OBJECTIVES["aot"].fn(one).loss_P,
            tolerance=1e-12,
        )  # fmt: skip
    assert pairs.reference_logps_PK is not None
    shuffled = replace(pairs, reference_logps_PK=pairs.reference_logps_PK.flip(0))
    total, again = (OBJECTIVES["aot"].fn(in_batch(either)).loss_P.sum() for either in (pairs, shuffled))
    yield equal_everywhere("whichever pair has which reference margin does not matter", total, again, tolerance=1e-12)


def _aot_unpaired_claims() -> Iterator[Claim]:
    world, smoothing = build_world(bradley_terry=False), 0.2
    policy = tree_at_reference(world)

    def halves(logps_PK: Tensor) -> ScoredGroups:
        """Every other response of the world thumbed up, the others down; as many of each."""
        population = labels(world, logps_PK, torch.zeros((), dtype=torch.float64)).groups
        num = len(world.responses)
        keep = [
            place * 2 * num + (k if k % 2 else num + k) for place in range(len(world.reward_PK)) for k in range(1, num)
        ]
        return in_batch(ScoredGroups(**{
            name: getattr(population, name)[keep]
            for name in ("policy_logps_PK", "reference_logps_PK", "num_tokens_PK", "is_valid_PK", "desirable_PK",
                         "is_labelled_PK")
        }))  # fmt: skip

    def loss() -> Tensor:
        result = OBJECTIVES["aot_unpaired"].fn(halves(policy.logps_PK()), beta=BETA, label_smoothing=smoothing)
        return result.loss_P.sum() / result.denominators().sum()

    fit(policy, loss)
    groups = halves(policy.logps_PK())
    up, down = (groups.log_ratio_PK[groups.desirable_PK == is_up].sort().values for is_up in (True, False))
    expected = torch.logit(torch.tensor(1 - smoothing, dtype=torch.float64)) / BETA
    yield equal_everywhere(
        "smoothed: the sorted log-ratios of the two kinds are logit(1 − ε)/β apart", expected.expand_as(up),
        (up - down).detach(),
    )  # fmt: skip
    pairs = _pairs(seed=3, labelled=True)
    one = OBJECTIVES["dpo"].fn(pairs).loss_P
    as_labels = [OBJECTIVES["aot_unpaired"].fn(_alone_labelled(pairs, row)).loss_P[0] for row in range(len(one))]
    yield equal_everywhere("one thumb up and one down: dpo", one, torch.stack(as_labels), tolerance=1e-12)
    assert pairs.reference_logps_PK is not None
    swapped = {
        name: torch.stack([value[:, 0], value[:, 1].flip(0)], dim=1)
        for name, value in (
            ("policy_logps_PK", pairs.policy_logps_PK),
            ("reference_logps_PK", pairs.reference_logps_PK),
        )
    }
    total, again = (
        OBJECTIVES["aot_unpaired"].fn(in_batch(either)).loss_P.sum() for either in (pairs, replace(pairs, **swapped))
    )
    yield equal_everywhere("permuting the undesirable responses changes nothing", total, again, tolerance=1e-12)


def _rpo_relative_claims() -> Iterator[Claim]:
    pairs = _pairs(seed=3)
    for row in range(2):
        one = alone(pairs, row)
        yield equal_everywhere(
            "a batch of one prompt: dpo", OBJECTIVES["dpo"].fn(one).loss_P, OBJECTIVES["rpo_relative"].fn(one).loss_P,
            tolerance=1e-12,
        )  # fmt: skip

    def gradient(row: str, **settings: float | str) -> Tensor:
        logps_PK = pairs.policy_logps_PK.clone().requires_grad_()
        loss_P = OBJECTIVES[row].fn(in_batch(replace(pairs, policy_logps_PK=logps_PK)), **settings).loss_P
        (found,) = torch.autograd.grad(loss_P.mean(), logps_PK)
        return found

    num = len(pairs.is_valid_PK)
    yield equal_everywhere(
        "all weight on the own prompt: the gradient of dpo over the number of prompts",
        gradient("dpo") / num,
        gradient("rpo_relative", weighting="diagonal", own_weight=1.0),
        tolerance=1e-12,
    )
    same = in_batch(replace(pairs, prompt_embedding_PE=torch.ones(num, 3, dtype=torch.float64)))
    uniform, embedded = (OBJECTIVES["rpo_relative"].fn(same, weighting=w).loss_P for w in ("uniform", "embedding"))
    yield equal_everywhere("equal prompt embeddings: uniform weights", uniform, embedded, tolerance=1e-12)


def _first_orders(world: EnumerableWorld, logps_PK: Tensor) -> ScoredGroups:
    """Return the pairs of the chain in one order each: whoever comes first was judged better."""
    groups = comparisons(world, logps_PK, world.chain()).groups
    num = len(world.chain())
    keep = [place * 2 * num + pair for place in range(len(world.reward_PK)) for pair in range(num)]
    return ScoredGroups(
        policy_logps_PK=groups.policy_logps_PK[keep],
        reference_logps_PK=None if groups.reference_logps_PK is None else groups.reference_logps_PK[keep],
        num_tokens_PK=groups.num_tokens_PK[keep],
        is_valid_PK=groups.is_valid_PK[keep],
        preferred_PKK=None if groups.preferred_PKK is None else groups.preferred_PKK[keep],
    )


def _pairs(*, seed: int, labelled: bool = False) -> ScoredGroups:
    """Return five random pairs, the first response better (and thumbed up, the other down)."""
    needs = {Need.PREFERENCES, Need.LABELS} if labelled else {Need.PREFERENCES}
    return random_groups(needs, seed=seed, num_prompts=5, num_responses=2)


def _alone_labelled(groups: ScoredGroups, row: int) -> ScoredGroups:
    assert groups.desirable_PK is not None
    up = groups.desirable_PK[row : row + 1]
    return in_batch(replace(alone(groups, row), batch=None, desirable_PK=up, is_labelled_PK=torch.ones_like(up)))


CLAIMS: dict[str, Callable[[], Iterator[Claim]]] = {
    "aot": _aot_claims,
    "aot_unpaired": _aot_unpaired_claims,
    "rpo_relative": _rpo_relative_claims,
}
