"""The enumerable world is what it says, and every objective reaches its optimum there."""

from dataclasses import replace

import pytest
import torch

from accord.claims import Claim
from accord.lab import optima
from accord.lab.enumerable import EOS, SoftmaxPolicy, TreePolicy, build_world, comparisons, labels, tree_at_reference
from accord.objectives import OBJECTIVES


def test_responses_are_all_strings_closed_by_eos():
    world = build_world(num_content=2, max_content=2)
    assert set(world.responses) == {(0,), (1, 0), (2, 0), (1, 1, 0), (1, 2, 0), (2, 1, 0), (2, 2, 0)}
    assert all(tokens[-1] == EOS for tokens in world.responses)
    assert world.num_tokens_K.tolist() == [len(tokens) for tokens in world.responses]


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 2, 2), (1, 3, 3)])
def test_probabilities_sum_to_one_and_raters_to_one(shape):
    num_prompts, num_content, max_content = shape
    world = build_world(num_prompts=num_prompts, num_content=num_content, max_content=max_content, bradley_terry=False)
    torch.testing.assert_close(world.reference_logps_PK.exp().sum(dim=1), torch.ones(num_prompts).double())
    both = world.rater_frac_PKK + world.rater_frac_PKK.transpose(1, 2)
    torch.testing.assert_close(both, torch.ones_like(both))


def test_a_tree_policy_multiplies_next_token_probabilities():
    tree = TreePolicy([(0,), (1, 0), (1, 1, 0)], num_prompts=1)
    with torch.no_grad():
        tree.logits_PNV.copy_(torch.tensor([[[0.25, 0.75], [0.4, 0.6]]]).log())  # nodes: (), (1,); tokens: EOS, 1
    expected = torch.tensor([[0.25, 0.75 * 0.4, 0.75 * 0.6]]).double()
    torch.testing.assert_close(tree.logps_PK().exp(), expected, rtol=1e-6, atol=0)


def test_any_distribution_over_responses_is_a_tree_policy():
    world = build_world(seed=3)
    target_PK = torch.randn(2, 7, generator=torch.Generator().manual_seed(0)).double().log_softmax(dim=-1)
    tree = TreePolicy(world.responses, num_prompts=2).start_at(target_PK)
    torch.testing.assert_close(tree.logps_PK(), target_PK)
    torch.testing.assert_close(tree_at_reference(world).logps_PK(), world.reference_logps_PK)
    torch.testing.assert_close(SoftmaxPolicy(target_PK).logps_PK(), target_PK)


def test_the_population_of_pairs_is_the_expectation_over_raters():
    """Computed once with the objective on weighted groups, once by hand from p, for one pair of one prompt."""
    world = build_world(num_prompts=1)
    logps_PK = tree_at_reference(world).logps_PK().detach() + torch.arange(7).double()
    population = comparisons(world, logps_PK, [(1, 4)])
    margin = torch.tensor(0.1 * (1 - 4)).double()  # u = 0, 1, 2, …
    prefer = world.rater_frac_PKK[0, 1, 4]
    expected = prefer * torch.log1p(torch.exp(-margin)) + (1 - prefer) * torch.log1p(torch.exp(margin))
    torch.testing.assert_close(population.mean(OBJECTIVES["dpo"].fn(population.groups, beta=0.1)), expected)


def test_the_population_of_labels_weighs_thumbs_by_the_raters():
    world = build_world()
    population = labels(world, world.reference_logps_PK, torch.zeros((), dtype=torch.float64))
    assert population.groups.desirable_PK is not None
    up = torch.where(population.groups.desirable_PK[:, 0], population.weight_G, 0.0)
    assert up.sum().item() == pytest.approx(world.desirable_frac_PK.sum().item())
    assert population.weight_G.sum().item() == pytest.approx(2 * 7)


def test_the_same_seed_builds_the_same_world():
    assert torch.equal(build_world(seed=5).reward_PK, build_world(seed=5).reward_PK)
    assert not torch.equal(build_world(seed=5).reward_PK, build_world(seed=6).reward_PK)


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_every_row_proves_its_gradient_and_its_optimum(name):
    own = optima.claims_of(name)
    assert [claim.name for claim in own if not claim.passed] == []
    assert f"{name}: gradient = finite differences" in {claim.name for claim in own}
    promised = OBJECTIVES[name].initial_loss is not None
    assert (f"{name}: loss where policy = reference" in {claim.name for claim in own}) == promised
    assert len(own) >= 2 + promised  # and at least one claim of its own


def test_a_wrong_objective_is_caught(monkeypatch):
    """A sign error, a factor of two and a biased target must each fail a claim, or the certificate proves nothing."""
    dpo = OBJECTIVES["dpo"]

    def flipped(groups, **settings):
        return dpo.fn(replace(groups, preferred_PKK=groups.preferred_PKK.transpose(1, 2)), **settings)

    def doubled(groups, *, beta=0.1, label_smoothing=0.0):
        return dpo.fn(groups, beta=2 * beta, label_smoothing=label_smoothing)

    def biased(groups, *, beta=0.1, label_smoothing=0.0):
        return dpo.fn(groups, beta=beta, label_smoothing=label_smoothing + 0.01)

    for wrong in (flipped, doubled, biased):
        monkeypatch.setitem(OBJECTIVES, "dpo", replace(dpo, fn=wrong))
        failed = {claim.name for claim in optima.claims_of("dpo") if not claim.passed}
        assert any(claim.startswith("dpo: any raters") for claim in failed), wrong.__name__


def test_a_claim_about_nan_fails_and_is_plain_json():
    equal = Claim.equal("x", expected=1.0, reached=float("nan"), tolerance=1.0)
    bounded = Claim.at_least("x", bound=1.0, reached=float("nan"), tolerance=1.0)
    assert not equal.passed
    assert not bounded.passed
    assert equal.to_dict() == {
        "name": "x", "expected": 1.0, "reached": None, "gap": None, "tolerance": 1.0, "passed": False, "note": "",
    }  # fmt: skip
    assert Claim.at_least("x", bound=1.0, reached=0.75, tolerance=0.5).gap == 0.25
    assert Claim.at_least("x", bound=1.0, reached=3.0).gap == 0.0
