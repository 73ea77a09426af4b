"""Estimators of advantages against hand values, and what must hold for every row of `ADVANTAGES`."""

import doctest
import importlib
import inspect
import math
from dataclasses import replace

import annotated_types
import pytest
import torch
from pydantic import ConfigDict, create_model

from accord.groups import RolloutBatch
from accord.objectives import OBJECTIVES
from accord.objectives.advantages import ADVANTAGES, advance_entropy_coef, advance_kl_coef
from accord.objectives.methods import METHODS

rows = pytest.mark.parametrize("name", list(ADVANTAGES))


def rollout(reward, *, lengths=None, seed: int = 0, **changes) -> RolloutBatch:
    """Rewards per response with random log-probabilities, values and step rewards; None = unknown."""
    values = torch.tensor([[0.0 if r is None else r for r in row] for row in reward], dtype=torch.float64)
    lengths = torch.tensor(lengths) if lengths is not None else torch.full(values.shape, 3)
    generator = torch.Generator().manual_seed(seed)
    shape = (*values.shape, int(lengths.max()))

    def uniform() -> torch.Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64) - 0.5

    batch = RolloutBatch(
        reward_PK=values, is_scored_PK=torch.tensor([[r is not None for r in row] for row in reward]),
        is_token_PKT=torch.arange(shape[2]) < lengths[..., None],
        old_logps_PKT=uniform(), reference_logps_PKT=uniform(), value_PKT=uniform(),
        step_reward_PKT=torch.zeros(shape, dtype=torch.float64), is_step_end_PKT=torch.zeros(shape, dtype=torch.bool),
    )  # fmt: skip
    return replace(batch, **changes)


def with_steps(batch: RolloutBatch, scale: float = 1.0, shift: float = 0.0) -> RolloutBatch:
    """A step ends at every other token; its reward is a fixed function of its place."""
    place = torch.arange(batch.is_token_PKT.numel()).view(batch.is_token_PKT.shape)
    return replace(
        batch,
        is_step_end_PKT=batch.is_token_PKT & (place % 2 == 0),
        step_reward_PKT=scale * (place * 7 % 5).double() + shift,
    )


def advantage(name: str, batch: RolloutBatch, **settings) -> torch.Tensor:
    return ADVANTAGES[name].fn(batch, **settings).advantage_PKT


EIGHT = [[1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0]]


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("grpo", 1.207381, -0.724429),
        ("rloo", 5 / 7, -3 / 7),
        ("dr_grpo", 5 / 8, -3 / 8),
        ("reinforce", 5 / 8, -3 / 8),
        ("reinforce_pp", (5 / 8) / math.sqrt(5.625 / 23), (-3 / 8) / math.sqrt(5.625 / 23)),  # over 24 tokens
    ],
)
def test_binary_rewards_by_hand(name, right, wrong):
    expected = torch.tensor([[right if r else wrong for r in EIGHT[0]]], dtype=torch.float64)
    found = advantage(name, rollout(EIGHT))
    torch.testing.assert_close(found, expected[..., None].expand(1, 8, 3), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("gamma", "lam", "expected"),
    [
        (1.0, 0.95, (0.705125, 0.6475, 0.45, 0.4)),
        (1.0, 1.0, (0.78, 0.69, 0.47, 0.4)),
        (1.0, 0.0, (0.09, 0.22, 0.07, 0.4)),
        (0.99, 0.9, (0.612313, 0.589576, 0.4204, 0.4)),
    ],
)
def test_gae_by_hand(gamma, lam, expected):
    """r = (−.01, .02, −.03, 1) as −k1 with β = 1 and no reward but at the end, V = (.2, .3, .5, .6)."""
    kl = torch.tensor([[[0.01, -0.02, 0.03, 0.0]]], dtype=torch.float64)
    value = torch.tensor([[[0.2, 0.3, 0.5, 0.6]]], dtype=torch.float64)
    batch = rollout([[1.0]], lengths=[[4]], old_logps_PKT=kl, reference_logps_PKT=torch.zeros_like(kl), value_PKT=value)
    found = ADVANTAGES["gae"].fn(batch, gamma=gamma, lam=lam, kl_coef=1.0, whitened=False)
    torch.testing.assert_close(found.advantage_PKT, torch.tensor([[expected]], dtype=torch.float64), atol=1e-6, rtol=0)
    torch.testing.assert_close(found.return_PKT, found.advantage_PKT + value)


def test_gae_limits_and_padding():
    batch = rollout([[1.0, -2.0], [0.5, 3.0]], lengths=[[4, 2], [1, 3]])
    to_go = torch.where(batch.is_token_PKT, batch.reward_PK[..., None], 0.0)
    full = ADVANTAGES["gae"].fn(batch, lam=1.0, whitened=False)
    torch.testing.assert_close(full.return_PKT, to_go)  # λ = γ = 1: return less value
    blind = advantage("gae", replace(batch, value_PKT=torch.zeros_like(batch.value_PKT)), lam=1.0, whitened=False)
    torch.testing.assert_close(blind, advantage("reinforce", batch, baseline="none"))  # no critic: REINFORCE
    garbage = torch.where(batch.is_token_PKT, batch.value_PKT, 1e9)
    torch.testing.assert_close(advantage("gae", replace(batch, value_PKT=garbage)), advantage("gae", batch))
    whitened = advantage("gae", batch)[batch.is_token_PKT]
    assert whitened.mean().item() == pytest.approx(0.0, abs=1e-12)
    assert whitened.std().item() == pytest.approx(1.0, abs=1e-6)


def test_the_reward_stands_at_the_last_token_and_nowhere_else():
    """With λ = 0 and no values the surprise of a token is its own reward."""
    batch = rollout([[5.0, 7.0]], lengths=[[3, 1]], value_PKT=torch.zeros(1, 2, 3, dtype=torch.float64))
    found = advantage("gae", batch, lam=0.0, whitened=False)
    assert found.tolist() == [[[0.0, 0.0, 5.0], [7.0, 0.0, 0.0]]]


def test_what_is_no_token_of_the_policys_is_stepped_over():
    """A user's turn in the middle: the same numbers as without it."""
    value = torch.tensor([[[0.2, 9.0, 0.3, 0.6]]], dtype=torch.float64)
    gap = rollout([[1.0]], lengths=[[4]], value_PKT=value, is_token_PKT=torch.tensor([[[True, False, True, True]]]))
    plain = rollout([[1.0]], lengths=[[3]], value_PKT=value[..., [0, 2, 3]])
    found = advantage("gae", gap, whitened=False)
    torch.testing.assert_close(found[..., [0, 2, 3]], advantage("gae", plain, whitened=False))
    assert found[0, 0, 1].item() == 0.0


@pytest.mark.parametrize("name", ["reinforce", "rloo", "dr_grpo"])
def test_kl_in_the_reward_is_a_sum_over_tokens(name):
    batch = rollout([[1.0, 2.0, 4.0]], lengths=[[1, 2, 3]])
    kl = torch.where(batch.is_token_PKT, batch.old_logps_PKT - batch.reference_logps_PKT, 0.0).sum(dim=2)
    shifted = replace(batch, reward_PK=batch.reward_PK - 0.3 * kl)
    torch.testing.assert_close(advantage(name, batch, kl_coef=0.3), advantage(name, shifted))
    assert ADVANTAGES[name].needs_reference({"kl_coef": 0.3})
    assert not ADVANTAGES[name].needs_reference({"kl_coef": 0.0})


def test_reinforce_pp_has_the_kl_of_the_tokens_to_come():
    """k1 = (1, 0, 0) and (0, 0, 1): rewards to go −1, 0, 0 and −1, −1, −1 times β, then whitened."""
    old = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]], dtype=torch.float64)
    batch = rollout([[0.0, 0.0]], old_logps_PKT=old, reference_logps_PKT=torch.zeros_like(old))
    to_go = -0.5 * torch.tensor([[[1.0, 0.0, 0.0], [1.0, 1.0, 1.0]]], dtype=torch.float64)
    expected = (to_go - to_go.mean()) / (to_go.var() + 1e-8).sqrt()
    torch.testing.assert_close(advantage("reinforce_pp", batch, kl_coef=0.5), expected)


def test_reinforce_pp_less_the_groups_mean_is_proportional_to_rloo():
    batch = rollout([[1.0, 0.0], [5.0, 4.0]])
    found = advantage("reinforce_pp", batch, baseline="group_mean")
    torch.testing.assert_close(found / advantage("rloo", batch), torch.full_like(found, found[0, 0, 0].item()))


def test_the_mean_baseline_is_rloo_times_a_constant():
    batch = rollout([[1.0, 0.3, -2.0, 7.0]])
    torch.testing.assert_close(advantage("dr_grpo", batch), 3 / 4 * advantage("rloo", batch))
    pair = advantage("rloo", rollout([[1.0, 3.5]]))
    assert pair[0, :, 0].tolist() == [-2.5, 2.5]


def test_steps_of_a_group_are_standardised_together():
    """Rewards 1, 0 | 2 of the steps of two responses: mean 1, s = 1; a token is worth the steps still to end."""
    ends = torch.tensor([[[True, False, True], [False, True, False]]])
    step = torch.tensor([[[1.0, 9.0, 0.0], [9.0, 2.0, 9.0]]], dtype=torch.float64)
    batch = rollout([[0.0, 0.0]], lengths=[[3, 2]], step_reward_PKT=step, is_step_end_PKT=ends)
    found = advantage("grpo_process", batch, epsilon=1e-12)
    expected = torch.tensor([[[-1.0, -1.0, -1.0], [1.0, 1.0, 0.0]]], dtype=torch.float64)
    torch.testing.assert_close(found, expected)


def test_a_moving_average_remembers_the_rollouts_before():
    spec = ADVANTAGES["reinforce"]
    settings = {"baseline": "moving_average", "momentum": 0.5}
    state = spec.state.start(**settings)
    first, second = rollout([[2.0], [4.0]], state=state), rollout([[5.0], [6.0]])
    assert advantage("reinforce", first, **settings)[:, 0, 0].tolist() == [-1.0, 1.0]  # no past: its own mean
    state = spec.state.advance(first, **settings)
    second = replace(second, state=state)
    assert advantage("reinforce", second, **settings)[:, 0, 0].tolist() == [2.0, 3.0]  # the past is 3
    state = spec.state.advance(second, **settings)
    third = rollout([[0.0]], state=state)
    expected = -(0.25 * 3.0 + 0.5 * 5.5) / 0.75
    assert advantage("reinforce", third, **settings)[0, 0, 0].item() == pytest.approx(expected)
    unknown = rollout([[None]], state=state)
    assert spec.state.advance(unknown, **settings) == state


# Every row -----------------------------------------------------------------------------------------------------------


def batch_for(name: str, reward, **shape) -> RolloutBatch:
    batch = rollout(reward, **shape)
    return with_steps(batch) if name == "grpo_process" else batch


@rows
def test_an_unknown_reward_enters_no_baseline(name):
    lengths = [[2, 3, 1, 3], [1, 2, 3, 2]]
    known = batch_for(name, [[1.0, 4.0, 2.0, 0.0], [3.0, 0.0, 1.0, 5.0]], lengths=lengths)
    gone = replace(known, is_scored_PK=torch.tensor([[True, True, True, False], [True, True, True, True]]))
    poisoned = replace(
        gone,
        reward_PK=torch.where(gone.is_scored_PK, gone.reward_PK, torch.nan),
        **{
            key: torch.where(gone.is_scored_PK[..., None], getattr(gone, key), torch.nan)
            for key in ("old_logps_PKT", "reference_logps_PKT", "value_PKT", "step_reward_PKT")
        },
    )
    found = ADVANTAGES[name].fn(poisoned)
    assert torch.equal(found.is_counted_PK, gone.is_scored_PK)
    assert found.advantage_PKT[0, 3].tolist() == [0.0, 0.0, 0.0]
    torch.testing.assert_close(found.advantage_PKT, ADVANTAGES[name].fn(gone).advantage_PKT)
    if ADVANTAGES[name].unit == "group":  # the other three as if the fourth had never been
        alone = replace(gone, **{
            key: getattr(gone, key)[:, :3] for key in (
                "reward_PK", "is_scored_PK", "is_token_PKT", "old_logps_PKT", "reference_logps_PKT", "value_PKT",
                "step_reward_PKT", "is_step_end_PKT",
            )
        })  # fmt: skip
        torch.testing.assert_close(found.advantage_PKT[0, :3], ADVANTAGES[name].fn(alone).advantage_PKT[0])


@pytest.mark.parametrize("reward", [0.1, -3.7, 1e8])
@pytest.mark.parametrize("name", [name for name in ADVANTAGES if name not in ("gae", "grpo_process")])
def test_a_constant_reward_is_worth_exactly_nothing(name, reward):
    """Whatever rounding does to a mean; a critic's advantages are those of its errors instead."""
    batch = rollout([[reward] * 3, [reward] * 2 + [None]], lengths=[[1, 3, 2], [2, 2, 2]])
    assert not advantage(name, batch).any()


@rows
def test_one_response_and_no_reward_give_zero_not_nan(name):
    single, none = batch_for(name, [[2.0], [2.0]]), batch_for(name, [[None, None]])
    assert advantage(name, single).isfinite().all()
    if ADVANTAGES[name].unit == "group" and name != "grpo_process":
        assert not advantage(name, batch_for(name, [[2.0], [7.0]])).any()
    assert not advantage(name, none).any()
    assert not ADVANTAGES[name].fn(none).is_counted_PK.any()


@rows
@pytest.mark.parametrize(("kind", "scale", "shift"), [("shift", 1.0, 4.0), ("scale", 3.0, 0.0)])
def test_invariances_are_exactly_those_declared(name, kind, scale, shift):
    reward = [[1.0, 4.0, 2.0, 0.0], [3.0, 0.0, 1.0, 5.0]]
    lengths = [[2, 3, 1, 3], [1, 2, 3, 2]]
    before = batch_for(name, reward, lengths=lengths)
    changed = [[scale * value + shift for value in row] for row in reward]
    after = rollout(changed, lengths=lengths)
    after = with_steps(after, scale, shift) if name == "grpo_process" else after
    spec = ADVANTAGES[name]
    first, second = (spec.fn(batch).advantage_PKT for batch in (before, after))
    assert torch.allclose(first, second, atol=1e-3) == (kind in spec.invariant_to)


@rows
def test_permuting_responses_permutes_advantages(name):
    batch = batch_for(name, [[1.0, 4.0, 2.0, 0.0]], lengths=[[2, 3, 1, 3]])
    order = torch.tensor([2, 0, 3, 1])
    permuted = replace(batch, **{
        key: value[:, order] for key in (
            "reward_PK", "is_scored_PK", "is_token_PKT", "old_logps_PKT", "reference_logps_PKT", "value_PKT",
            "step_reward_PKT", "is_step_end_PKT",
        ) if (value := getattr(batch, key)) is not None
    })  # fmt: skip
    torch.testing.assert_close(advantage(name, permuted), advantage(name, batch)[:, order])


@pytest.mark.parametrize("name", ["grpo", "rloo", "dr_grpo"])
def test_advantages_of_a_group_sum_to_zero(name):
    found = advantage(name, rollout([[1.0, 4.0, None, 0.3], [3.0, 0.0, 1.0, 5.0]]))
    assert found[..., 0].sum(dim=1).tolist() == pytest.approx([0.0, 0.0], abs=1e-12)


@rows
def test_settings_are_bounded_and_documented(name):
    spec = ADVANTAGES[name]
    fields = {}
    for setting, parameter in spec.settings().items():
        assert parameter.default is not inspect.Parameter.empty
        if isinstance(parameter.default, float):
            bounds = (annotated_types.Gt, annotated_types.Ge, annotated_types.Interval)
            assert any(isinstance(bound, bounds) for bound in parameter.annotation.__metadata__)
        fields[setting] = (parameter.annotation, parameter.default)
    assert create_model(name, __config__=ConfigDict(extra="forbid"), **fields)().model_dump() == spec.defaults()
    documentation = inspect.getdoc(spec.fn) or ""
    assert spec.summary.endswith(".")
    for part in ("Formula:", "Use:", "Limits:", "Source:", ">>> "):
        assert part in documentation, part


@pytest.mark.parametrize("module", ["rewards", "baselines", "returns"])
def test_examples_in_docstrings_are_true(module):
    results = doctest.testmod(importlib.import_module(f"accord.objectives.advantages.{module}"))
    assert results.attempted > 0
    assert results.failed == 0


def test_k3_in_the_reward_is_refused_with_the_reason():
    with_kl = [spec for spec in ADVANTAGES.values() if spec.reference_when]
    assert len(with_kl) == 5
    assert all("∇KL(π_ref‖π)" in spec.refused["kl_estimator=k3"] for spec in with_kl)
    assert not any("kl_estimator" in spec.settings() for spec in ADVANTAGES.values())


# Controllers and methods ---------------------------------------------------------------------------------------------


def test_the_kl_controller_steers_to_its_target():
    assert [advance_kl_coef(0.2, kl, target=6.0) for kl in (3.0, 6.0, 9.0, 12.0)] == pytest.approx(
        [0.2 * (1 - 0.1 * 0.2), 0.2, 0.2 * (1 + 0.1 * 0.2), 0.2 * (1 + 0.1 * 0.2)]
    )
    assert advance_kl_coef(0.2, 6.6, target=6.0) == pytest.approx(0.2 * (1 + 0.1 * 0.1))  # within the clip


def test_the_entropy_controller_stays_in_its_range():
    assert advance_entropy_coef(0.5, 0.1) == pytest.approx(0.505)
    assert advance_entropy_coef(0.5, 0.3) == pytest.approx(0.495)
    assert (advance_entropy_coef(1.0, 0.1), advance_entropy_coef(0.0, 0.3)) == (1.0, 0.0)


@pytest.mark.parametrize("name", list(METHODS))
def test_a_method_is_made_of_rows_and_settings_that_exist(name):
    method = METHODS[name]
    objective = OBJECTIVES[method.objective]
    assert (method.advantage is not None) == any(need.value == "advantages" for need in objective.needs)
    offered = {f"objective.{key}": item for key, item in objective.settings().items()}
    if method.advantage is not None:
        offered |= {f"advantage.{key}": item for key, item in ADVANTAGES[method.advantage].settings().items()}
    for key, value in method.settings.items():
        if key.startswith("rollout."):
            continue
        parameter = offered[key]
        model = create_model("one", value=(parameter.annotation, parameter.default))
        assert model(value=value).value == value
    assert method.num_responses >= 1
    assert method.summary.endswith(".")
