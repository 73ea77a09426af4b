"""Gradients of a batch are sums: neither its cut into passes nor a weight changes anything but what they should."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate import Accelerator
from models import build_policy, ragged_groups

from accord.objectives import OBJECTIVES
from accord.policy.critic import ActorCritic
from accord.policy.policy import Policy
from accord.run.gradients import Gradients
from accord.run.loop_state import Passed
from accord.run.metrics import means
from accord.run.scored import Scoring

GROUPS = ragged_groups((2, 3, 1, 2), longest=9)


def accumulate(policy: Policy, **options: Any) -> tuple[Passed, dict[str, torch.Tensor]]:
    """Return what was measured and the gradients of `sft` on the groups, from nothing."""
    policy.zero_grad(set_to_none=True)
    spec = OBJECTIVES["sft"]
    scoring = Scoring(policy=policy, spec=spec, settings=spec.defaults(), reference=None)
    gradients = Gradients(
        accelerator=Accelerator(cpu=True), module=policy, with_statistics=True, gathers_rows=True
    )  # fmt: skip
    passed = gradients.accumulate(scoring, GROUPS, step=3, **{"max_tokens": 10_000} | options)
    return passed, {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("max_tokens", [1, 30, 60])
def test_the_cut_into_passes_changes_nothing(max_tokens: int):
    policy = build_policy()
    whole, expected = accumulate(policy)
    parts, found = accumulate(policy, max_tokens=max_tokens)
    assert found.keys() == expected.keys() == dict(policy.named_parameters()).keys()
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert means(parts.sums) == pytest.approx(means(whole.sums), rel=1e-9, abs=1e-12)
    assert {name: count for name, (_, count) in parts.sums.items()} == {
        name: count for name, (_, count) in whole.sums.items()
    }
    key = lambda row: row["index"]  # noqa: E731
    for here, there in zip(sorted(parts.rows, key=key), sorted(whole.rows, key=key), strict=True):
        assert here["policy_logps"] == pytest.approx(there["policy_logps"])


def test_the_sum_is_the_objectives_own_gradient():
    """Σ −log π over all tokens, of one plain pass, undivided."""
    policy = build_policy()
    _, found = accumulate(policy, max_tokens=30)
    policy.zero_grad(set_to_none=True)
    (-policy(GROUPS, layout="plain").logps_PK.sum()).backward()
    expected = {name: p.grad for name, p in policy.named_parameters()}
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)  # parts of the model work in float32


def test_a_weight_multiplies_the_gradient_and_no_metric():
    policy = build_policy()
    plain, expected = accumulate(policy, max_tokens=30)
    weighed, found = accumulate(policy, max_tokens=30, weight=0.25)
    torch.testing.assert_close(found, {name: 0.25 * grad for name, grad in expected.items()}, rtol=1e-9, atol=1e-12)
    assert weighed.sums == plain.sums
    _, nothing = accumulate(policy, weight=0.0)
    assert not any(bool(grad.any()) for grad in nothing.values())


def test_gradients_add_to_those_that_are_there():
    policy = build_policy()
    _, once = accumulate(policy)
    scoring = Scoring(policy=policy, spec=OBJECTIVES["sft"], settings=OBJECTIVES["sft"].defaults(), reference=None)
    gradients = Gradients(
        accelerator=Accelerator(cpu=True), module=policy, with_statistics=False, gathers_rows=False
    )  # fmt: skip
    gradients.accumulate(scoring, GROUPS, step=3, max_tokens=10_000, weight=2.0)
    twice = {name: p.grad for name, p in policy.named_parameters()}
    torch.testing.assert_close(twice, {name: 3.0 * grad for name, grad in once.items()}, rtol=1e-9, atol=1e-12)


def test_no_groups_are_no_pass():
    """A rollout whose groups were all left out: nothing to train on, and nothing that fails."""
    policy = build_policy()
    spec = OBJECTIVES["sft"]
    scoring = Scoring(policy=policy, spec=spec, settings=spec.defaults(), reference=None)
    gradients = Gradients(
        accelerator=Accelerator(cpu=True), module=policy, with_statistics=False, gathers_rows=True
    )  # fmt: skip
    assert gradients.accumulate(scoring, [], step=0, max_tokens=100) == Passed({}, [], {})


def test_an_objective_without_values_leaves_the_critic_alone():
    policy = ActorCritic(build_policy())
    _, found = accumulate(policy)
    assert not any(name.startswith("value_head") and bool(grad.any()) for name, grad in found.items())


def test_a_scorings_own_temperature_holds_for_its_passes_alone():
    policy = build_policy()
    _, expected = accumulate(policy)
    policy.temperature = 1.6
    spec = OBJECTIVES["sft"]
    scoring = Scoring(policy=policy, spec=spec, settings=spec.defaults(), reference=None, temperature=1.0)
    policy.zero_grad(set_to_none=True)
    gradients = Gradients(
        accelerator=Accelerator(cpu=True), module=policy, with_statistics=False, gathers_rows=False
    )  # fmt: skip
    gradients.accumulate(scoring, GROUPS, step=3, max_tokens=10_000)
    found = {name: p.grad for name, p in policy.named_parameters()}
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert policy.temperature == 1.6
