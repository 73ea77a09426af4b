"""Derived values of the objectives that read single responses: kto and sft."""

import math

import pytest
import torch

from accord.groups import ScoredGroups
from accord.objectives.likelihood import sft
from accord.objectives.pointwise import kto


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
