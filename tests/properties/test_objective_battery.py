"""Properties that every row of `OBJECTIVES` must have, at its defaults and with each setting changed in turn.

A new row is checked without touching this file. The groups hold whatever the row needs or reads: ragged lengths,
padding slots, ties, unjudged responses.
"""

from contextlib import nullcontext
from dataclasses import fields, is_dataclass, replace
from typing import get_args

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from accord.groups import ScoredGroups, concatenate_groups
from accord.lab.row_checks import HeldConstants, at_reference, leaves, random_groups, with_leaves
from accord.objectives import OBJECTIVES, Need


def settings_to_try(name: str) -> list[dict]:
    """Return the defaults, every other choice of a Literal or flag, another value inside the bounds of every number.

    Settings that one function obeys for several rows are tried in the combinations that a row names.
    """
    changed: list[dict] = [{}, *map(dict, OBJECTIVES[name].combinations)]
    for key, parameter in OBJECTIVES[name].settings().items():
        if key in OBJECTIVES[name].shared_settings:
            continue
        if isinstance(parameter.default, float):
            changed.append({key: 1.5 * parameter.default or 0.2})
        if isinstance(parameter.default, bool):
            changed.append({key: not parameter.default})
        elif isinstance(parameter.default, int):
            changed.append({key: parameter.default + 1})
        changed += [{key: choice} for choice in get_args(parameter.annotation) if isinstance(choice, str)]
    return changed


ROWS = [(name, changed) for name in OBJECTIVES for changed in settings_to_try(name)]
pytestmark = pytest.mark.parametrize(("name", "changed"), ROWS, ids=[f"{name}-{changed}" for name, changed in ROWS])
some = settings(max_examples=3, deadline=None, derandomize=True)
seeds = st.integers(0, 2**31 - 1)


def groups_for(name: str, seed: int, **shape) -> ScoredGroups:
    spec = OBJECTIVES[name]
    groups = random_groups(spec.needs | spec.reads, seed=seed, **shape)
    if spec.state is None:
        return groups
    return replace(groups, state=spec.state.start(num_judges=3, num_strata=2, **spec.defaults()))


def loss_and_gradient(name: str, changed: dict, groups: ScoredGroups):
    """Return the result and d(Σ loss) by every tensor that carries gradient, as {name: gradient}."""
    at = {key: value.detach().clone().requires_grad_() for key, value in leaves(groups).items()}
    result = OBJECTIVES[name].fn(with_leaves(groups, at), **changed)
    gradients = torch.autograd.grad(result.loss_P.sum(), list(at.values()), allow_unused=True)
    filled = zip(at.items(), gradients, strict=True)
    return result, {key: torch.zeros_like(x) if grad is None else grad for (key, x), grad in filled}


def map_tensors(record, change):
    """Apply `change(tensor, number of axes that run over responses)` to every tensor with such an axis."""
    changed = {}
    for field in fields(record):
        value, axes = getattr(record, field.name), field.name.rpartition("_")[2]
        if is_dataclass(value):
            changed[field.name] = map_tensors(value, change)
        elif isinstance(value, torch.Tensor) and "K" in axes:
            changed[field.name] = change(value, axes.count("K"))
    return replace(record, **changed)


def map_gradients(gradients: dict, change) -> dict:
    return {key: change(value, key.rpartition("_")[2].count("K")) for key, value in gradients.items()}


def sizes(gradients: dict) -> torch.Tensor:
    """Return the summed size of all gradients by prompt."""
    return sum(value.abs().flatten(1).sum(1) for value in gradients.values())


@given(seed=seeds)
@some
def test_permuting_the_responses_permutes_rewards_and_leaves_the_loss(name, changed, seed):
    if OBJECTIVES[name].needs & {Need.DRAWS, Need.VOTES}:
        pytest.skip("draws and votes name responses by their number")
    groups = groups_for(name, seed, num_responses=5)
    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))

    def permute(x: torch.Tensor, num_axes: int = 1) -> torch.Tensor:
        return x[:, order] if num_axes == 1 else x[:, order][:, :, order]

    result, gradients = loss_and_gradient(name, changed, groups)
    permuted, permuted_gradients = loss_and_gradient(name, changed, map_tensors(groups, permute))
    torch.testing.assert_close(permuted.loss_P, result.loss_P)
    torch.testing.assert_close(permuted.denominators(), result.denominators())
    torch.testing.assert_close(permuted.implicit_reward_PK, permute(result.implicit_reward_PK))
    torch.testing.assert_close(permuted_gradients, map_gradients(gradients, permute))


@given(seed=seeds, padding=st.sampled_from([0.0, 1e4, -1e4, float("nan")]))
@some
def test_a_padding_slot_changes_nothing_whatever_it_holds(name, changed, seed, padding):
    groups = groups_for(name, seed)

    def pad(x: torch.Tensor, num_axes: int) -> torch.Tensor:
        value = padding if x.is_floating_point() else 1  # 1 is True: judgements about padding are ignored too
        behind = (0, 0) * (x.ndim - 1 - num_axes)  # tokens or steps keep their width
        return torch.nn.functional.pad(x, behind + (0, 1) * num_axes, value=value)

    padded = map_tensors(groups, pad)
    padded.is_valid_PK[:, -1] = False
    if padded.batch is not None:
        padded.batch.is_valid_PK[:, -1] = False
    result, gradients = loss_and_gradient(name, changed, groups)
    padded_result, padded_gradients = loss_and_gradient(name, changed, padded)
    torch.testing.assert_close(padded_result.loss_P, result.loss_P)
    torch.testing.assert_close(padded_result.denominators(), result.denominators())
    expected = map_gradients(gradients, lambda x, num_axes: torch.nn.functional.pad(
        x, (0, 0) * (x.ndim - 1 - num_axes) + (0, 1) * num_axes
    ))  # fmt: skip
    torch.testing.assert_close(padded_gradients, expected)
    assert padded_result.implicit_reward_PK[:, -1].tolist() == [0.0] * 3


@given(seed=seeds, shift=st.floats(0.5, 5.0))
@some
def test_a_shift_of_all_log_ratios_is_invisible_exactly_where_claimed(name, changed, seed, shift):
    if any(isinstance(value, str) for value in changed.values()):
        pytest.skip("the claim is about the default choice")
    groups = groups_for(name, seed)
    if set(leaves(groups)) - {"score_PK"} != ({"policy_logps_PK"} if groups.score_PK is None else set()):
        pytest.skip("the claim is about one number per response")
    shifted = with_leaves(groups, {key: value - shift for key, value in leaves(groups).items()})
    before, after = (OBJECTIVES[name].fn(either, **changed).loss_P for either in (groups, shifted))
    assert torch.allclose(before, after, rtol=1e-9, atol=1e-12) == OBJECTIVES[name].is_difference_only


@given(seed=seeds)
@some
def test_gradient_equals_finite_differences(name, changed, seed):
    spec, groups = OBJECTIVES[name], groups_for(name, seed, num_prompts=2, num_responses=3)
    at = leaves(groups)
    constants = HeldConstants() if spec.has_stop_gradient else nullcontext()

    def loss(*values: torch.Tensor) -> torch.Tensor:
        with constants:
            return spec.fn(with_leaves(groups, dict(zip(at, values, strict=True))), **changed).loss_P

    assert torch.autograd.gradcheck(
        loss,
        tuple(value.requires_grad_() for value in at.values()),
        eps=1e-6,
        atol=1e-5,
        rtol=1e-5,
        fast_mode=True,  # along random directions, so that a row costs a few evaluations, not one per number
    )


@given(seed=seeds, dtype=st.sampled_from([torch.float32, torch.float64]))
@some
def test_extreme_log_probabilities_stay_finite_in_value_and_gradient(name, changed, seed, dtype):
    groups = groups_for(name, seed, dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    extremes = torch.tensor([-1e4, 0.0, 1e4], dtype=dtype)
    drawn = {key: extremes[torch.randint(3, x.shape, generator=generator)] for key, x in leaves(groups).items()}
    result, gradients = loss_and_gradient(name, changed, with_leaves(groups, drawn))
    assert result.loss_P.dtype == dtype
    assert result.loss_P.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    assert result.implicit_reward_PK.isfinite().all()


@given(seed=seeds)
@some
def test_float32_agrees_with_float64(name, changed, seed):
    single, single_gradients = loss_and_gradient(name, changed, groups_for(name, seed, dtype=torch.float32))
    double, double_gradients = loss_and_gradient(name, changed, groups_for(name, seed))
    torch.testing.assert_close(single.loss_P.double(), double.loss_P, rtol=1e-4, atol=1e-5)
    for key, gradient in single_gradients.items():
        torch.testing.assert_close(gradient.double(), double_gradients[key], rtol=1e-4, atol=1e-5)


@given(seed=seeds)
@some
def test_an_all_masked_group_is_zero_and_not_counted(name, changed, seed):
    groups = groups_for(name, seed)
    clean, _ = loss_and_gradient(name, changed, groups)
    masked = replace(groups, is_valid_PK=groups.is_valid_PK.clone())
    masked.is_valid_PK[1] = False
    if masked.batch is not None:
        masked = replace(masked, batch=replace(masked.batch, is_valid_PK=masked.is_valid_PK))
    result, gradients = loss_and_gradient(name, changed, masked)
    assert (result.loss_P[1].item(), result.denominators()[1].item()) == (0.0, 0.0)
    assert not result.is_counted_P[1].item()
    assert sizes(gradients)[1].item() == 0.0
    if masked.batch is None:
        torch.testing.assert_close(result.loss_P[[0, 2]], clean.loss_P[[0, 2]])


@given(seed=seeds)
@some
def test_a_group_without_judgements_is_zero_and_not_counted(name, changed, seed):
    judgements = {
        Need.PREFERENCES, Need.LABELS, Need.RATINGS, Need.WIN_FRACTIONS, Need.VOTES, Need.STEP_LABELS,
    }  # fmt: skip
    if not OBJECTIVES[name].needs & judgements:
        pytest.skip("this row needs no judgement: every group counts")
    groups = groups_for(name, seed)
    silent = {
        key: torch.zeros_like(mask)
        for key in ("preferred_PKK", "is_labelled_PK", "is_rated_PK", "is_compared_PKK")
        if (mask := getattr(groups, key)) is not None
    }
    if groups.votes is not None:
        silent["votes"] = replace(groups.votes, is_valid_PC=torch.zeros_like(groups.votes.is_valid_PC))
    if groups.steps is not None:
        silent["steps"] = replace(groups.steps, is_labelled_PKS=torch.zeros_like(groups.steps.is_labelled_PKS))
    if groups.batch is not None:
        silent["batch"] = replace(groups.batch, **silent)
    result, gradients = loss_and_gradient(name, changed, replace(groups, **silent))
    assert result.loss_P.tolist() == result.denominators().tolist() == [0.0] * 3
    assert not result.is_counted_P.any()
    assert sizes(gradients).sum().item() == 0.0


@given(seed=seeds)
@some
def test_a_nan_that_matters_is_not_hidden_and_stays_in_its_group(name, changed, seed):
    if Need.BATCH in OBJECTIVES[name].needs:
        pytest.skip("a NaN in the batch is every group's business")
    groups = groups_for(name, seed)
    clean, gradients = loss_and_gradient(name, changed, groups)
    key, gradient = max(gradients.items(), key=lambda item: float(item[1].abs().max()))
    assume(bool(gradient.any()))  # a draw may leave nothing to learn
    place = tuple(gradient.nonzero()[seed % len(gradient.nonzero())].tolist())
    poisoned = leaves(groups)[key].clone()
    poisoned[place] = float("nan")
    loss_P = OBJECTIVES[name].fn(with_leaves(groups, {key: poisoned}), **changed).loss_P
    assert loss_P.isnan().nonzero().flatten().tolist() == [place[0]]
    others = torch.arange(3) != place[0]
    torch.testing.assert_close(loss_P[others], clean.loss_P[others])


@given(seed=seeds, cut=st.integers(1, 4))
@some
def test_two_micro_batches_equal_one_batch(name, changed, seed, cut):
    parts = [groups_for(name, seed, num_prompts=cut), groups_for(name, seed + 1, num_prompts=5 - cut)]
    joined = concatenate_groups(parts)
    if joined.batch is not None:  # each part sees the whole, as the loop shows it
        joined = replace(joined, batch=replace(joined, batch=None, place_P=None), place_P=torch.arange(5))
        ends = (slice(0, cut), slice(cut, 5))
        parts = [
            replace(part, batch=joined.batch, place_P=joined.place_P[end])
            for part, end in zip(parts, ends, strict=True)
        ]
    whole, whole_gradients = loss_and_gradient(name, changed, joined)
    results, gradients = zip(*(loss_and_gradient(name, changed, part) for part in parts), strict=True)
    torch.testing.assert_close(sum(r.loss_P.sum() for r in results), whole.loss_P.sum())
    torch.testing.assert_close(sum(r.denominators().sum() for r in results), whole.denominators().sum())
    for key, gradient in whole_gradients.items():
        if gradient.ndim == 2:
            torch.testing.assert_close(torch.cat([part[key] for part in gradients]), gradient)
        torch.testing.assert_close(torch.cat([sizes({key: part[key]}) for part in gradients]), sizes({key: gradient}))
    for key, total in whole.state_sums.items():
        torch.testing.assert_close(sum(r.state_sums[key] for r in results), total)


@given(seed=seeds)
@some
def test_loss_at_the_reference_is_what_the_row_promises(name, changed, seed):
    spec, groups = OBJECTIVES[name], groups_for(name, seed)
    expected = spec.initial_loss(**spec.defaults() | changed) if spec.initial_loss else None
    if expected is None:
        pytest.skip("the row promises no number: it depends on the data")
    still = at_reference(groups)
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
