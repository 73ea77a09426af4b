"""Derived values of the objectives that read single responses: kto and its relatives, unlearning, sft."""

import math
from dataclasses import replace

import pytest
import torch

from accord.groups import ScoredGroups
from accord.lab.row_checks import random_groups
from accord.objectives import OBJECTIVES, Need
from accord.objectives.likelihood import sft
from accord.objectives.pairwise.logistic import dpo
from accord.objectives.pointwise import apo_zero_unpaired, bco, kto, npo, simnpo


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def labelled(desirable: list[bool], *, is_labelled: list[bool] | None = None, mismatched_kl: float = 0.2):
    """One group with u = (1, −0.5, …) and lengths (10, 12, …)."""
    num = len(desirable)
    return ScoredGroups(
        policy_logps_PK=torch.tensor([[-12.0, -15.0, -4.0][:num]], dtype=torch.float64, requires_grad=True),
        reference_logps_PK=torch.tensor([[-13.0, -14.5, -4.0][:num]], dtype=torch.float64),
        num_tokens_PK=torch.tensor([[10, 12, 4][:num]]),
        is_valid_PK=torch.ones(1, num, dtype=torch.bool),
        desirable_PK=torch.tensor([desirable]),
        is_labelled_PK=torch.tensor([is_labelled or [True] * num]),
        mismatched_kl=torch.tensor(mismatched_kl, dtype=torch.float64),
    )


def test_kto_value_and_gradient_of_one_response_each():
    up, down = sigmoid(0.1 * (1 - 0.2)), sigmoid(0.1 * (0.2 + 0.5))
    groups = labelled([True, False])
    loss = kto(groups, beta=0.1).loss_P.sum()
    assert loss.item() == pytest.approx((1 - up) + (1 - down), abs=1e-12)
    assert [1 - up, 1 - down] == pytest.approx([0.480011, 0.482507], abs=1e-6)
    (gradient_PK,) = torch.autograd.grad(loss, groups.policy_logps_PK)
    assert gradient_PK[0].tolist() == pytest.approx([-0.1 * up * (1 - up), 0.1 * down * (1 - down)], abs=1e-12)
    assert gradient_PK[0].tolist() == pytest.approx([-0.024960, 0.024969], abs=1e-6)


def test_kto_weights_are_exact_in_double_precision():
    result = kto(labelled([True, False]), beta=0.1, desirable_weight=1.3, undesirable_weight=0.7)
    expected = 1.3 * (1 - sigmoid(0.08)) + 0.7 * (1 - sigmoid(0.07))
    assert result.loss_P.item() == pytest.approx(expected, abs=1e-14)


def test_kto_means_over_labelled_responses_and_ignores_the_others():
    result = kto(labelled([True, False, True], is_labelled=[True, True, False]))
    assert result.denominators().tolist() == [2.0]
    torch.testing.assert_close(result.loss_P, kto(labelled([True, False])).loss_P)
    nobody = kto(labelled([True, False], is_labelled=[False, False]))
    assert (nobody.loss_P.item(), nobody.denominators().item()) == (0.0, 0.0)
    assert not nobody.is_counted_P.item()


def test_kto_without_baseline_is_apo_zero():
    """λ = 1, z₀ = 0: the pair's loss is (1 − σ(βu_w)) + σ(βu_l)."""
    result = kto(labelled([True, False], mismatched_kl=0.0), beta=0.1)
    assert result.loss_P.item() == pytest.approx((1 - sigmoid(0.1)) + sigmoid(-0.05), abs=1e-12)
    assert result.loss_P.item() == pytest.approx(0.962523, abs=1e-6)


def test_kto_baseline_carries_no_gradient():
    groups = labelled([True, False])
    assert groups.mismatched_kl is not None
    baseline = groups.mismatched_kl.requires_grad_()
    loss = kto(groups).loss_P.sum()
    assert torch.autograd.grad(loss, baseline, allow_unused=True) == (None,)


def softplus(z: float) -> float:
    return math.log1p(math.exp(z))


def state(mean: float = 0.0, num: float = 1.0, **classifier: list[float]) -> dict[str, torch.Tensor]:
    numbers = {"reward_sum": mean * num, "num_rewards": num, "prompt_sum": [], "classifier": []} | classifier
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in numbers.items()}


def slopes(loss_P: torch.Tensor, groups: ScoredGroups) -> list[float]:
    return torch.autograd.grad(loss_P.sum(), groups.policy_logps_PK)[0][0].tolist()


@pytest.mark.parametrize(("mean", "number"), [(0.0, 1.312856), (0.025, 1.312700)])
def test_bco_value_and_gradient_of_a_response_of_each_kind(mean, number):
    """u = (1, −0.5), β = 0.1: log(1 + e^(δ − 0.1)) + log(1 + e^(−0.05 − δ))."""
    groups = replace(labelled([True, False]), state=state(mean, 8))
    loss_P = bco(groups, beta=0.1).loss_P
    assert loss_P.item() == pytest.approx(softplus(mean - 0.1) + softplus(-0.05 - mean), abs=1e-12)
    assert loss_P.item() == pytest.approx(number, abs=1e-6)
    expected = [-0.1 * sigmoid(mean - 0.1), 0.1 * sigmoid(-0.05 - mean)]
    assert slopes(loss_P, groups) == pytest.approx(expected, abs=1e-12)
    if mean:
        assert expected == pytest.approx([-0.048126, 0.048126], abs=1e-6)


def test_bco_costs_more_than_dpo_for_every_mean():
    groups = random_groups({Need.LABELS, Need.PREFERENCES}, seed=3, num_prompts=40, num_responses=2)
    for mean in (-3.0, -0.1, 0.0, 0.5, 4.0):
        above_P = bco(replace(groups, state=state(mean))).loss_P - dpo(groups).loss_P
        assert above_P.min().item() > 0


def test_bco_mean_is_of_all_rewards_of_earlier_steps():
    spec = OBJECTIVES["bco"].state
    assert spec is not None
    before = spec.start(num_judges=0, num_strata=1)
    first = bco(replace(labelled([True, False, True], is_labelled=[True, True, False]), state=before), beta=0.1)
    assert first.loss_P.item() == pytest.approx(softplus(-0.1) + softplus(-0.05), abs=1e-12)  # δ = 0 at the first step
    after = spec.advance(before, dict(first.state_sums))
    assert (after["reward_sum"].item(), after["num_rewards"].item()) == (pytest.approx(0.1 - 0.05), 2.0)
    second = spec.advance(after, dict(first.state_sums))
    assert (second["reward_sum"] / second["num_rewards"]).item() == pytest.approx(0.025)
    assert before["num_rewards"].item() == 0.0  # nothing is changed in place


def weighed(embeddings: list[list[float]], ups: list[bool], carried: dict[str, torch.Tensor]):
    """Groups of one response with u = 0 each, so that a loss is ω ln 2."""
    num = len(ups)
    groups = ScoredGroups(
        policy_logps_PK=torch.zeros(num, 1, dtype=torch.float64),
        reference_logps_PK=torch.zeros(num, 1, dtype=torch.float64),
        num_tokens_PK=torch.ones(num, 1).long(),
        is_valid_PK=torch.ones(num, 1).bool(),
        desirable_PK=torch.tensor(ups)[:, None],
        is_labelled_PK=torch.ones(num, 1).bool(),
        prompt_embedding_PE=torch.tensor(embeddings, dtype=torch.float64),
        state=carried,
    )
    return bco(groups, density_weights=True, min_density=0.25, max_density=4.0)


def test_bco_density_weights_undesirable_responses_by_the_odds_of_their_prompt():
    """Features ((x − mean)/|x − mean|, 1) and classifier (1, 0, ½): odds e^1.5 held at 4, e^(−½), and ups weigh 1."""
    carried = state(0.0, 2, prompt_sum=[2.0, 0.0], classifier=[1.0, 0.0, 0.5])  # mean embedding (1, 0)
    result = weighed([[3.0, 0.0], [0.0, 0.0], [3.0, 0.0]], [False, False, True], carried)
    expected = [4.0, math.exp(-0.5), 1.0]
    assert result.loss_P.tolist() == pytest.approx([w * math.log(2) for w in expected], abs=1e-12)


def test_bco_learns_which_prompts_have_good_responses():
    """One kind of prompt is answered well, another badly: the odds part to their bounds, and before learning are 1."""
    spec = OBJECTIVES["bco"].state
    assert spec is not None
    carried = spec.start(num_judges=0, num_strata=1)
    embeddings, ups = [[5.0, 1.0], [5.0, -1.0]] * 4, [True, False] * 4
    first = weighed(embeddings, ups, carried)
    assert first.loss_P.tolist() == pytest.approx([math.log(2)] * 8)
    for _ in range(60):
        carried = spec.advance(carried, dict(weighed(embeddings, ups, carried).state_sums))
    swapped = weighed(embeddings, [False] * 8, carried)
    odds = (swapped.loss_P / math.log(2)).tolist()
    assert odds[0] == pytest.approx(4.0)
    assert odds[1] == pytest.approx(0.25)


def test_apo_zero_unpaired_is_kto_without_a_baseline():
    groups = labelled([True, False], mismatched_kl=0.0)
    loss_P = apo_zero_unpaired(groups, beta=0.1).loss_P
    assert loss_P.item() == pytest.approx(0.962523, abs=1e-6)
    assert loss_P.item() == kto(groups, beta=0.1).loss_P.item()
    q_up, q_down = sigmoid(0.1), sigmoid(-0.05)
    expected = [-0.1 * q_up * (1 - q_up), 0.1 * q_down * (1 - q_down)]
    assert slopes(loss_P, groups) == pytest.approx(expected, abs=1e-12)
    assert expected == pytest.approx([-0.024938, 0.024984], abs=1e-6)


def test_npo_value_and_gradient_of_the_undesirable_response():
    groups = labelled([True, False])
    result = npo(groups, beta=0.1)
    assert result.loss_P.item() == pytest.approx(20 * softplus(-0.05), abs=1e-12)
    assert result.loss_P.item() == pytest.approx(13.369193, abs=1e-6)
    assert slopes(result.loss_P, groups) == pytest.approx([0.0, 2 * sigmoid(-0.05)], abs=1e-12)
    assert 2 * sigmoid(-0.05) == pytest.approx(0.975005, abs=1e-6)
    assert result.denominators().tolist() == [1.0]


def test_npo_is_gradient_ascent_for_small_beta_and_fades_far_below_the_reference():
    groups = labelled([False, False])  # u = (1, −0.5)
    for beta in (1e-3, 1e-4):
        above = npo(groups, beta=beta).loss_P.item() - 2 * 2 / beta * math.log(2)
        assert above == pytest.approx(0.5 + beta * 1.25 / 4, abs=1e-6)
    fallen = replace(groups, reference_logps_PK=torch.tensor([[388.0, 385.0]], dtype=torch.float64))  # u = −400
    loss_P = npo(fallen, beta=0.1).loss_P
    assert 0 < loss_P.item() == pytest.approx(2 * 20 * math.exp(-40), rel=1e-6)
    assert slopes(loss_P, fallen) == pytest.approx([2 * math.exp(-40)] * 2, rel=1e-6)


def test_npo_does_not_count_a_group_without_an_undesirable_response():
    result = npo(labelled([True, True]))
    assert (result.loss_P.item(), result.denominators().item()) == (0.0, 0.0)


def test_simnpo_reads_mean_log_probabilities_and_its_margin():
    """l̄ = −15/12: 2/β log(1 + e^(−1.25 β + γ)), slope 2σ(−1.25 β + γ)/12."""
    groups = labelled([True, False])
    loss_P = simnpo(groups, beta=2.0, gamma=0.5).loss_P
    assert loss_P.item() == pytest.approx(softplus(-2.5 + 0.5), abs=1e-12)
    assert slopes(loss_P, groups) == pytest.approx([0.0, 2 * sigmoid(-2.0) / 12], abs=1e-12)
    empty = replace(groups, num_tokens_PK=torch.tensor([[10, 0]]), policy_logps_PK=torch.zeros(1, 2))
    assert simnpo(empty, beta=2.0).loss_P.item() == pytest.approx(math.log(2), abs=1e-6)


def demonstrations(**judgements) -> ScoredGroups:
    return ScoredGroups(
        policy_logps_PK=torch.tensor([[-12.0, -3.0, -8.0]]),
        num_tokens_PK=torch.tensor([[10, 5, 4]]),
        is_valid_PK=torch.tensor([[True, True, True]]),
        **judgements,
    )


@pytest.mark.parametrize(
    ("reduction", "loss", "denominator"), [("token", 12 + 3 + 8, 19.0), ("sequence", 1.2 + 0.6 + 2.0, 3.0)]
)
def test_sft_means_over_tokens_or_over_responses(reduction, loss, denominator):
    result = sft(demonstrations(), reduction=reduction)
    assert result.loss_P.item() == pytest.approx(loss, abs=1e-6)
    assert result.denominators().item() == denominator


def test_sft_leaves_out_what_a_judgement_speaks_against():
    preferred_PKK = torch.zeros(1, 3, 3, dtype=torch.bool)
    preferred_PKK[0, 0, 1] = True  # response 2 was never compared: it stays
    assert sft(demonstrations(preferred_PKK=preferred_PKK)).loss_P.item() == 20.0
    labels = {
        "desirable_PK": torch.tensor([[True, False, False]]),
        "is_labelled_PK": torch.tensor([[True, True, False]]),
    }
    assert sft(demonstrations(**labels)).loss_P.item() == 20.0
    assert sft(demonstrations(preferred_PKK=preferred_PKK.transpose(1, 2), **labels)).loss_P.item() == 8.0


@pytest.mark.parametrize("reduction", ["token", "sequence"])
def test_sft_does_not_count_an_empty_response(reduction):
    groups = ScoredGroups(
        policy_logps_PK=torch.tensor([[0.0]]), num_tokens_PK=torch.tensor([[0]]), is_valid_PK=torch.tensor([[True]])
    )
    result = sft(groups, reduction=reduction)
    assert (result.loss_P.item(), result.denominators().item(), result.is_counted_P.item()) == (0.0, 0.0, False)
