"""Properties that every row of `OBJECTIVES` must have, at its defaults and with each setting changed in turn.

A new row is checked without touching this file. The groups hold whatever the row needs or reads: ragged lengths,
padding slots, ties, unjudged responses.
"""

from dataclasses import fields, replace
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from accord.groups import ScoredGroups, concatenate_groups
from accord.lab.row_checks import random_groups
from accord.objectives import OBJECTIVES, Need


def settings_to_try(name: str) -> list[dict]:
    """Return the defaults, every other choice of a Literal and another value inside the bounds of every number."""
    changed: list[dict] = [{}]
    for key, parameter in OBJECTIVES[name].settings().items():
        if isinstance(parameter.default, float):
            changed.append({key: 1.5 * parameter.default or 0.2})
        changed += [{key: choice} for choice in get_args(parameter.annotation) if isinstance(choice, str)]
    return changed


ROWS = [(name, changed) for name in OBJECTIVES for changed in settings_to_try(name)]
pytestmark = pytest.mark.parametrize(("name", "changed"), ROWS, ids=[f"{name}-{changed}" for name, changed in ROWS])
some = settings(max_examples=15, deadline=None, derandomize=True)
seeds = st.integers(0, 2**31 - 1)


def groups_for(name: str, seed: int, **shape) -> ScoredGroups:
    spec = OBJECTIVES[name]
    return random_groups(spec.needs | spec.reads, seed=seed, **shape)


def loss_and_gradient(name: str, changed: dict, groups: ScoredGroups):
    """Return the result and d(Σ loss)/d(policy log-probabilities)."""
    logps_PK = groups.policy_logps_PK.detach().clone().requires_grad_()
    result = OBJECTIVES[name].fn(replace(groups, policy_logps_PK=logps_PK), **changed)
    (gradient_PK,) = torch.autograd.grad(result.loss_P.sum(), logps_PK)
    return result, gradient_PK


def map_tensors(groups: ScoredGroups, change) -> ScoredGroups:
    """Apply `change` to every (P, K) and (P, K, K) tensor."""
    tensors = {field.name: getattr(groups, field.name) for field in fields(groups)}
    return replace(groups, **{key: change(x) for key, x in tensors.items() if x is not None and x.ndim >= 2})


@given(seed=seeds)
@some
def test_permuting_the_responses_permutes_rewards_and_leaves_the_loss(name, changed, seed):
    groups = groups_for(name, seed, num_responses=5)
    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))

    def permute(x: torch.Tensor) -> torch.Tensor:
        return x[:, order] if x.ndim == 2 else x[:, order][:, :, order]

    result, gradient_PK = loss_and_gradient(name, changed, groups)
    permuted, permuted_gradient_PK = loss_and_gradient(name, changed, map_tensors(groups, permute))
    torch.testing.assert_close(permuted.loss_P, result.loss_P)
    torch.testing.assert_close(permuted.denominators(), result.denominators())
    torch.testing.assert_close(permuted.implicit_reward_PK, result.implicit_reward_PK[:, order])
    torch.testing.assert_close(permuted_gradient_PK, gradient_PK[:, order])


@given(seed=seeds, padding=st.sampled_from([0.0, 1e4, -1e4, float("nan")]))
@some
def test_a_padding_slot_changes_nothing_whatever_it_holds(name, changed, seed, padding):
    groups = groups_for(name, seed)

    def pad(x: torch.Tensor) -> torch.Tensor:
        value = padding if x.is_floating_point() else 1  # 1 is True: judgements about padding are ignored too
        return torch.nn.functional.pad(x, (0, 1) if x.ndim == 2 else (0, 1, 0, 1), value=value)

    padded = map_tensors(groups, pad)
    padded.is_valid_PK[:, -1] = False
    result, gradient_PK = loss_and_gradient(name, changed, groups)
    padded_result, padded_gradient_PK = loss_and_gradient(name, changed, padded)
    torch.testing.assert_close(padded_result.loss_P, result.loss_P)
    torch.testing.assert_close(padded_result.denominators(), result.denominators())
    torch.testing.assert_close(padded_gradient_PK[:, :-1], gradient_PK)
    assert padded_gradient_PK[:, -1].tolist() == [0.0] * 3
    assert padded_result.implicit_reward_PK[:, -1].tolist() == [0.0] * 3


@given(seed=seeds, shift=st.floats(0.5, 5.0))
@some
def test_a_shift_of_all_log_ratios_is_invisible_exactly_where_claimed(name, changed, seed, shift):
    if any(isinstance(value, str) for value in changed.values()):
        pytest.skip("the claim is about the default choice")
    groups = groups_for(name, seed)
    shifted = replace(groups, policy_logps_PK=groups.policy_logps_PK - shift)
    before, after = (OBJECTIVES[name].fn(either, **changed).loss_P for either in (groups, shifted))
    assert torch.allclose(before, after, rtol=1e-9, atol=1e-12) == OBJECTIVES[name].is_difference_only


@given(seed=seeds)
@some
def test_gradient_equals_finite_differences(name, changed, seed):
    spec, groups = OBJECTIVES[name], groups_for(name, seed, num_prompts=2, num_responses=3)
    logps_PK = groups.policy_logps_PK.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: spec.fn(replace(groups, policy_logps_PK=x), **changed).loss_P,
        (logps_PK,),
        eps=1e-6,
        atol=1e-5,
        rtol=1e-5,
    )


@given(seed=seeds, dtype=st.sampled_from([torch.float32, torch.float64]))
@some
def test_extreme_log_probabilities_stay_finite_in_value_and_gradient(name, changed, seed, dtype):
    groups = groups_for(name, seed, dtype=dtype)
    extremes = torch.tensor([-1e4, 0.0, 1e4], dtype=dtype)
    pick = torch.randint(3, groups.policy_logps_PK.shape, generator=torch.Generator().manual_seed(seed))
    result, gradient_PK = loss_and_gradient(name, changed, replace(groups, policy_logps_PK=extremes[pick]))
    assert result.loss_P.dtype == dtype
    assert result.loss_P.isfinite().all()
    assert gradient_PK.isfinite().all()
    assert result.implicit_reward_PK.isfinite().all()


@given(seed=seeds)
@some
def test_float32_agrees_with_float64(name, changed, seed):
    single, single_gradient = loss_and_gradient(name, changed, groups_for(name, seed, dtype=torch.float32))
    double, double_gradient = loss_and_gradient(name, changed, groups_for(name, seed))
    torch.testing.assert_close(single.loss_P.double(), double.loss_P, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(single_gradient.double(), double_gradient, rtol=1e-4, atol=1e-5)


@given(seed=seeds)
@some
def test_an_all_masked_group_is_zero_and_not_counted(name, changed, seed):
    groups = groups_for(name, seed)
    clean, _ = loss_and_gradient(name, changed, groups)
    masked = replace(groups, is_valid_PK=groups.is_valid_PK.clone())
    masked.is_valid_PK[1] = False
    result, gradient_PK = loss_and_gradient(name, changed, masked)
    assert (result.loss_P[1].item(), result.denominators()[1].item()) == (0.0, 0.0)
    assert not result.is_counted_P[1].item()
    assert gradient_PK[1].abs().sum().item() == 0.0
    torch.testing.assert_close(result.loss_P[[0, 2]], clean.loss_P[[0, 2]])


@given(seed=seeds)
@some
def test_a_group_without_judgements_is_zero_and_not_counted(name, changed, seed):
    if not OBJECTIVES[name].needs & {Need.PREFERENCES, Need.LABELS, Need.RATINGS}:
        pytest.skip("this row needs no judgement: every group counts")
    groups = groups_for(name, seed)
    judgement_masks = ("preferred_PKK", "is_labelled_PK", "is_rated_PK")
    silent = {key: torch.zeros_like(mask) for key in judgement_masks if (mask := getattr(groups, key)) is not None}
    result, gradient_PK = loss_and_gradient(name, changed, replace(groups, **silent))
    assert result.loss_P.tolist() == result.denominators().tolist() == [0.0] * 3
    assert not result.is_counted_P.any()
    assert gradient_PK.abs().sum().item() == 0.0


@given(seed=seeds)
@some
def test_a_nan_that_matters_is_not_hidden_and_stays_in_its_group(name, changed, seed):
    groups = groups_for(name, seed)
    clean, gradient_PK = loss_and_gradient(name, changed, groups)
    prompt, response = gradient_PK.nonzero()[seed % len(gradient_PK.nonzero())].tolist()
    groups.policy_logps_PK[prompt, response] = float("nan")
    loss_P = OBJECTIVES[name].fn(groups, **changed).loss_P
    assert loss_P.isnan().nonzero().flatten().tolist() == [prompt]
    others = torch.arange(3) != prompt
    torch.testing.assert_close(loss_P[others], clean.loss_P[others])


@given(seed=seeds, cut=st.integers(1, 4))
@some
def test_two_micro_batches_equal_one_batch(name, changed, seed, cut):
    parts = [groups_for(name, seed, num_prompts=cut), groups_for(name, seed + 1, num_prompts=5 - cut)]
    whole, whole_gradient = loss_and_gradient(name, changed, concatenate_groups(parts))
    results, gradients = zip(*(loss_and_gradient(name, changed, part) for part in parts), strict=True)
    torch.testing.assert_close(sum(r.loss_P.sum() for r in results), whole.loss_P.sum())
    torch.testing.assert_close(sum(r.denominators().sum() for r in results), whole.denominators().sum())
    torch.testing.assert_close(torch.cat(gradients), whole_gradient)


@given(seed=seeds)
@some
def test_loss_at_the_reference_is_what_the_row_promises(name, changed, seed):
    spec, groups = OBJECTIVES[name], groups_for(name, seed)
    expected = spec.initial_loss(**spec.defaults() | changed) if spec.initial_loss else None
    if expected is None:
        pytest.skip("the row promises no number: it depends on the data")
    still = replace(groups, reference_logps_PK=groups.policy_logps_PK)
    if groups.mismatched_kl is not None:
        still = replace(still, mismatched_kl=torch.zeros_like(groups.mismatched_kl))
    result = spec.fn(still, **changed)
    torch.testing.assert_close(result.loss_P, expected * result.denominators())


@given(seed=seeds)
@some
def test_denominators_and_counts_agree_and_rewards_carry_no_gradient(name, changed, seed):
    result, _ = loss_and_gradient(name, changed, groups_for(name, seed))
    assert ((result.denominators() > 0) == result.is_counted_P).all()
    assert result.is_counted_P.all()
    assert not result.implicit_reward_PK.requires_grad
    assert not result.denominators().requires_grad
