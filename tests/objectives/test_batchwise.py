"""Objectives of whole batches: against the loss written out on the whole batch, however it is split."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from golden_pair import pair, softplus

from accord.groups import ScoredGroups, concatenate_groups
from accord.lab.row_checks import random_groups
from accord.objectives import OBJECTIVES, Need
from accord.objectives.pairwise.batchwise import aot, aot_unpaired, rpo_relative
from accord.objectives.pairwise.logistic import dpo

BETA = 0.7
EMBEDDINGS = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0], [-1.0, 0.5], [3.0, 0.1]], dtype=torch.float64)


def pairs(num: int = 5, *, seed: int = 0) -> ScoredGroups:
    """Random pairs, the first response better and thumbed up, the other down; prompts with embeddings."""
    groups = random_groups({Need.PREFERENCES, Need.LABELS}, seed=seed, num_prompts=num, num_responses=2)
    return replace(groups, prompt_embedding_PE=EMBEDDINGS[:num])


def shown(groups: ScoredGroups, policy_logps_PK: torch.Tensor, rows: slice = slice(None)) -> ScoredGroups:
    """Some groups as the loop shows them: alive themselves, the whole batch beside them without gradient."""
    part = {
        name: getattr(groups, name)[rows]
        for name in ("reference_logps_PK", "num_tokens_PK", "is_valid_PK", "preferred_PKK", "desirable_PK",
                     "is_labelled_PK")
        if getattr(groups, name) is not None
    }  # fmt: skip
    batch = replace(groups, policy_logps_PK=policy_logps_PK.detach())
    place_P = torch.arange(len(policy_logps_PK))[rows]
    return ScoredGroups(policy_logps_PK=policy_logps_PK[rows], batch=batch, place_P=place_P, **part)


def whole_loss(name: str, groups: ScoredGroups, logps_P2: torch.Tensor, **settings) -> torch.Tensor:
    """The loss of a batch of pairs as its paper writes it, on the whole batch, through autograd's own sort."""
    assert groups.reference_logps_PK is not None
    u_P2 = logps_P2 - groups.reference_logps_PK
    if name == "aot":
        reference_P = groups.reference_logps_PK[:, 0] - groups.reference_logps_PK[:, 1]
        z = (logps_P2[:, 0] - logps_P2[:, 1]).sort().values - reference_P.sort().values
    elif name == "aot_unpaired":
        z = u_P2[:, 0].sort().values - u_P2[:, 1].sort().values
    else:
        num, weighting = len(u_P2), settings.get("weighting", "uniform")
        if weighting == "embedding":
            unit = EMBEDDINGS[:num] / EMBEDDINGS[:num].norm(dim=1, keepdim=True)
            weight_PP = torch.exp(-(1 - unit @ unit.T) / 0.5)
            weight_PP = weight_PP / weight_PP.sum(dim=1, keepdim=True)
        elif weighting == "diagonal":
            weight_PP = torch.full((num, num), 0.2 / (num - 1), dtype=torch.float64).fill_diagonal_(0.8)
        else:
            weight_PP = torch.full((num, num), 1 / num, dtype=torch.float64)
        z = weight_PP * (u_P2[:, 0, None] - u_P2[None, :, 1])
    return F.softplus(-BETA * z).mean()


CASES = [
    ("aot", {}), ("aot_unpaired", {}), ("rpo_relative", {}), ("rpo_relative", {"weighting": "diagonal"}),
    ("rpo_relative", {"weighting": "embedding"}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "settings"), CASES)
@pytest.mark.parametrize("ends", [[5], [2, 5], [1, 2, 3, 4, 5]])
def test_the_sum_over_micro_batches_is_the_loss_of_the_whole_batch(name, settings, ends):
    groups = pairs()
    logps_P2 = groups.policy_logps_PK.clone().requires_grad_()
    expected = whole_loss(name, groups, logps_P2, **settings)
    (expected_gradient,) = torch.autograd.grad(expected, logps_P2)
    start, total, count = 0, torch.zeros((), dtype=torch.float64), 0.0
    for end in ends:
        result = OBJECTIVES[name].fn(shown(groups, logps_P2, slice(start, end)), beta=BETA, **settings)
        total, count, start = total + result.loss_P.sum(), count + result.denominators().sum(), end
    (gradient,) = torch.autograd.grad(total / count, logps_P2)
    torch.testing.assert_close(total / count, expected)
    torch.testing.assert_close(gradient, expected_gradient)
    assert count == 5.0


@pytest.mark.parametrize("name", ["aot", "aot_unpaired", "rpo_relative"])
def test_a_batch_of_one_pair_is_dpo(name):
    groups = replace(pair(), desirable_PK=torch.tensor([[True, False]]), is_labelled_PK=torch.tensor([[True, True]]))
    loss_P = OBJECTIVES[name].fn(shown(groups, groups.policy_logps_PK), beta=0.1).loss_P
    torch.testing.assert_close(loss_P, dpo(pair(), beta=0.1).loss_P, rtol=0, atol=1e-12)
    assert loss_P.item() == pytest.approx(0.620957, abs=1e-6)


def test_aot_does_not_mind_which_pair_has_which_reference_margin():
    groups = pairs()
    assert groups.reference_logps_PK is not None
    shuffled = replace(groups, reference_logps_PK=groups.reference_logps_PK[[3, 0, 4, 1, 2]])
    one, other = (aot(shown(g, g.policy_logps_PK), beta=BETA).loss_P for g in (groups, shuffled))
    torch.testing.assert_close(one, other)
    dpo_one, dpo_other = (dpo(g, beta=BETA).loss_P.sum() for g in (groups, shuffled))
    assert not torch.allclose(dpo_one, dpo_other)


def test_aot_unpaired_does_not_mind_who_is_paired_with_whom():
    groups = pairs()
    logps_P2, reference_P2 = groups.policy_logps_PK, groups.reference_logps_PK
    assert reference_P2 is not None
    order = [3, 0, 4, 1, 2]
    shuffled = replace(
        groups,
        policy_logps_PK=torch.stack([logps_P2[:, 0], logps_P2[order, 1]], dim=1),
        reference_logps_PK=torch.stack([reference_P2[:, 0], reference_P2[order, 1]], dim=1),
    )
    one, other = (aot_unpaired(shown(g, g.policy_logps_PK), beta=BETA).loss_P.sum() for g in (groups, shuffled))
    torch.testing.assert_close(one, other)


def test_aot_ranks_all_pairs_of_a_ranking_and_counts_its_group_once():
    """Margins 1, 3, 2 of a ranking and 0 of a pair, sorted: 0, 1, 2, 3; the reference's are −1, 0, 0, 0."""
    ranking = ScoredGroups(
        policy_logps_PK=torch.tensor([[-1.0, -2.0, -4.0]], dtype=torch.float64),
        reference_logps_PK=torch.zeros(1, 3, dtype=torch.float64),
        num_tokens_PK=torch.ones(1, 3).long(),
        is_valid_PK=torch.ones(1, 3).bool(),
        preferred_PKK=torch.ones(1, 3, 3).triu(1).bool(),
    )
    couple = pair(policy=(-5.0, -5.0), reference=(-5.0, -4.0), lengths=(1, 1))
    groups = concatenate_groups([ranking, couple])
    result = aot(shown(groups, groups.policy_logps_PK), beta=1.0)
    assert result.loss_P.tolist() == pytest.approx(
        [(softplus(-1.0) + softplus(-2.0) + softplus(-3.0)) / 3, softplus(-1.0)], abs=1e-12
    )
    assert result.denominators().tolist() == [1.0, 1.0]


def labelled(up: list[float], down: list[float]) -> ScoredGroups:
    """Groups of one response, with these log-ratios and thumbs."""
    num = len(up) + len(down)
    groups = ScoredGroups(
        policy_logps_PK=torch.tensor([*up, *down], dtype=torch.float64)[:, None],
        reference_logps_PK=torch.zeros(num, 1, dtype=torch.float64),
        num_tokens_PK=torch.ones(num, 1).long(),
        is_valid_PK=torch.ones(num, 1).bool(),
        desirable_PK=torch.tensor([True] * len(up) + [False] * len(down))[:, None],
        is_labelled_PK=torch.ones(num, 1).bool(),
    )
    return shown(groups, groups.policy_logps_PK)


def test_aot_unpaired_couples_unequal_numbers_by_quantile():
    """Up −1, 1, 3 in thirds, down 0, 2 in halves: (−1, 0) ⅓, (1, 0) ⅙, (1, 2) ⅙, (3, 2) ⅓."""
    result = aot_unpaired(labelled([3.0, -1.0, 1.0], [2.0, 0.0]), beta=1.0)
    expected = softplus(1.0) / 3 + softplus(-1.0) / 6 + softplus(1.0) / 6 + softplus(-1.0) / 3
    assert (result.loss_P.sum() / result.denominators().sum()).item() == pytest.approx(expected, abs=1e-12)
    assert result.denominators().sum().item() == pytest.approx(2.5)  # the mean of the two numbers


@pytest.mark.parametrize(("up", "down"), [([1.0, 2.0], []), ([], [1.0])])
def test_aot_unpaired_has_nothing_to_compare_in_a_batch_of_one_kind(up, down):
    result = aot_unpaired(labelled(up, down))
    assert result.loss_P.tolist() == result.denominators().tolist() == [0.0] * (len(up) + len(down))


def test_relative_weights_of_the_own_prompt_alone_give_the_gradient_of_dpo_over_the_batch():
    groups = pairs()
    found = []
    for loss_of in (
        lambda g: rpo_relative(g, beta=BETA, weighting="diagonal", own_weight=1.0).loss_P.mean(),
        lambda g: dpo(g, beta=BETA).loss_P.mean() / 5,
    ):
        logps_P2 = groups.policy_logps_PK.clone().requires_grad_()
        found += torch.autograd.grad(loss_of(shown(groups, logps_P2)), logps_P2)
    torch.testing.assert_close(*found)


def test_a_prompt_without_a_judgement_weighs_nothing_in_relative_po():
    groups = pairs(3)
    assert groups.preferred_PKK is not None
    silent = replace(groups, preferred_PKK=groups.preferred_PKK.clone())
    silent.preferred_PKK[2] = False
    two = pairs(3)
    two = replace(two, **{name: getattr(two, name)[:2] for name in (
        "policy_logps_PK", "reference_logps_PK", "num_tokens_PK", "is_valid_PK", "preferred_PKK", "desirable_PK",
        "is_labelled_PK", "prompt_embedding_PE",
    )})  # fmt: skip
    for weighting in ("uniform", "diagonal", "embedding"):
        of_two = rpo_relative(shown(two, two.policy_logps_PK), weighting=weighting).loss_P
        of_three = rpo_relative(shown(silent, silent.policy_logps_PK), weighting=weighting).loss_P
        assert of_three.tolist() == pytest.approx([*of_two.tolist(), 0.0], abs=1e-12)


def test_ties_in_a_batch_are_ranked_once_each():
    """All margins equal, as at the start: every z is that margin less a reference's, and nothing is lost."""
    groups = pairs()
    level = replace(groups, policy_logps_PK=torch.zeros_like(groups.policy_logps_PK))
    assert groups.reference_logps_PK is not None
    reference_P = groups.reference_logps_PK[:, 0] - groups.reference_logps_PK[:, 1]
    loss_P = aot(shown(level, level.policy_logps_PK), beta=1.0).loss_P
    assert sorted(loss_P.tolist()) == pytest.approx(sorted(softplus(r) for r in reference_P.tolist()), abs=1e-12)


@pytest.mark.parametrize("name", ["aot", "aot_unpaired", "rpo_relative"])
def test_the_loss_at_the_reference_is_ln_2(name):
    groups = pairs()
    still = replace(groups, reference_logps_PK=groups.policy_logps_PK)
    result = OBJECTIVES[name].fn(shown(still, still.policy_logps_PK))
    assert (result.loss_P.sum() / result.denominators().sum()).item() == pytest.approx(math.log(2), abs=1e-12)
