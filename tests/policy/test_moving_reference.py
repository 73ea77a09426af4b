"""A reference that follows the policy: the right values at the right step, no trace in the policy's own gradient."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from models import build_model, build_policy, ragged_groups, save_model
from torch import Tensor

from accord.errors import PolicyError
from accord.policy.load import load_policy
from accord.policy.moving_reference import MovingReference, UpdateRule
from accord.policy.policy import Policy

GROUPS = ragged_groups((2, 3))


def make(policy: Policy, *, every: int = 1, share: float = 1.0) -> MovingReference:
    return MovingReference(policy, UpdateRule(every=every, share=share), max_tokens=4096)


def move(policy: Policy, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))


def logps(policy: Policy) -> Tensor:
    with torch.no_grad():
        return policy.score(GROUPS).logps_PK


def trained(policy: Policy) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in policy.model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("rank", [0, 2])
def test_it_begins_as_the_policy_and_stays_when_the_policy_moves(rank: int, tmp_path: Path) -> None:
    policy = load_policy(save_model(tmp_path), lora_rank=rank, device="cpu")
    start_PK = logps(policy)
    reference = make(policy)
    assert torch.equal(reference.logps(GROUPS, start_PK), start_PK)
    move(policy, 0)
    assert (logps(policy) - start_PK).abs().max() > 0.01
    assert torch.equal(reference.logps(GROUPS, start_PK), start_PK)
    num_trained = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    assert reference.num_bytes == 4 * num_trained  # with adapters theirs alone, float32


def test_hard_is_a_copy_soft_a_mixture_and_between_updates_it_stays() -> None:
    for share in (1.0, 0.25):
        policy = build_policy("llama_tied")
        reference = make(policy, every=3, share=share)
        expected = trained(policy)
        for step in range(1, 8):
            move(policy, step)
            assert reference.follow(step) == (step in (3, 6))
            if step in (3, 6):
                now = trained(policy)
                expected = {name: share * now[name] + (1 - share) * old for name, old in expected.items()}
            for name, tensor in expected.items():
                torch.testing.assert_close(reference.weights[name], tensor, rtol=0, atol=1e-14)
    assert UpdateRule(every=3, share=0.25).share_at(6) == 0.25


def test_what_it_said_before_an_update_is_forgotten() -> None:
    policy = build_policy()
    reference = make(policy)
    before_PK = reference.logps(GROUPS, logps(policy))
    move(policy, 0)
    reference.follow(1)
    now_PK = logps(policy)
    assert torch.equal(reference.logps(GROUPS, now_PK), now_PK)
    assert not torch.equal(before_PK, now_PK)


@pytest.mark.parametrize("name", ["llama", "llama_tied", "gpt2"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_its_pass_between_forward_and_backward_leaves_no_trace(name: str, checkpointing: bool) -> None:
    """The loop scores the policy, then the reference, then goes backward: as with a second model beside it."""
    policy = build_policy(name)
    if checkpointing:
        policy.enable_gradient_checkpointing()
    reference, second = make(policy), Policy(copy.deepcopy(policy.model), policy.tokenizer)
    move(policy, 0)
    addresses = {key: p.data_ptr() for key, p in policy.named_parameters()}

    def gradient(of_reference: object) -> list[Tensor]:
        own_PK = policy.score(GROUPS).logps_PK
        if isinstance(of_reference, MovingReference):
            their_PK = of_reference.logps(GROUPS, own_PK)
        else:
            with torch.no_grad():
                their_PK = second.score(GROUPS).logps_PK
        ratio_PK = own_PK - their_PK
        loss = -F.logsigmoid(0.1 * (ratio_PK[:, 0] - ratio_PK[:, 1])).sum()
        return list(torch.autograd.grad(loss, [p for p in policy.parameters() if p.requires_grad]))

    for mine, theirs in zip(gradient(reference), gradient(second), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)
    assert {key: p.data_ptr() for key, p in policy.named_parameters()} == addresses


def test_a_failure_inside_its_pass_leaves_the_policy_its_own_weights() -> None:
    policy = build_policy()
    reference = make(policy)
    move(policy, 0)
    before = trained(policy)
    broken = [GROUPS[0].__class__(prompt_ids=(10**6,), responses=GROUPS[0].responses)]  # no such token
    with pytest.raises(IndexError):
        reference.logps(broken, torch.zeros(1, 2))
    assert all(torch.equal(tensor, before[name]) for name, tensor in trained(policy).items())


def test_frozen_weights_are_not_copied_and_another_start_is_taken() -> None:
    policy, other = build_policy(), build_policy(seed=1)
    (frozen,) = (p for name, p in policy.model.named_parameters() if name == "lm_head.weight")
    frozen.requires_grad_(False)
    assert "lm_head.weight" not in make(policy).weights
    start = {name: p for name, p in other.model.named_parameters() if name != "lm_head.weight"}
    reference = MovingReference(policy, UpdateRule(every=1, share=1.0), max_tokens=4096, start=start)
    with torch.no_grad():
        dict(other.model.named_parameters())["lm_head.weight"].copy_(frozen)
    torch.testing.assert_close(reference.logps(GROUPS, logps(policy)), logps(other), rtol=0, atol=1e-10)


def test_weights_of_another_model_are_refused() -> None:
    policy = build_policy()
    wider = dict(build_model(intermediate_size=32).named_parameters())
    with pytest.raises(PolicyError, match=r"the reference has the weight .* \(32, 16\)"):
        MovingReference(policy, UpdateRule(every=1, share=1.0), max_tokens=64, start=wider)
    with pytest.raises(PolicyError, match="the reference in the checkpoint lacks the weight"):
        make(policy).restore({})
