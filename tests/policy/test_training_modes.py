"""Gradient checkpointing, adapters, mixed precision and dropout: the same policy, scored and trained another way."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from models import SHAREABLE, build_model, build_policy, build_tokenizer, own_token_logps, ragged_groups, save_model
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import GradientCheckpointingLayer

from accord.policy.load import hash_weights, load_policy, silence_dropout
from accord.policy.policy import Policy


@pytest.fixture
def lora(tmp_path: Path) -> Policy:
    """Llama with adapters whose B is not zero, so that they change the scores."""
    policy = load_policy(save_model(tmp_path, "llama"), lora_rank=2)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.3)
    return policy


def gradients(policy: Policy, layout: str) -> torch.Tensor:
    policy.zero_grad()
    policy(ragged_groups((2, 3)), layout=layout).logps_PK.sum().backward()
    return torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])


@pytest.mark.parametrize("layout", ["tree", "plain"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_gradient_checkpointing_changes_no_gradient(name: str, layout: str) -> None:
    expected = gradients(build_policy(name), layout)
    policy = build_policy(name)
    own_attention = policy.causal_lm.config._attn_implementation
    policy.enable_gradient_checkpointing()
    policy.train()
    num_runs = [0]
    for layer in policy.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            layer.register_forward_hook(lambda *_: num_runs.__setitem__(0, num_runs[0] + 1))
    found = gradients(policy, layout)
    policy(ragged_groups((2, 3)), layout="plain")  # another layout between two backward passes leaves no trace
    torch.testing.assert_close(gradients(policy, layout), found, rtol=0, atol=0)
    assert float((found - expected).norm() / expected.norm()) < 1e-7
    assert num_runs[0] > 2 * 2 * 2  # two layers, twice forward and twice again in the backward pass
    assert policy.causal_lm.config._attn_implementation == own_attention  # ready for saving and generating


def test_as_base_equals_the_base_model(lora: Policy) -> None:
    policy, groups = lora, ragged_groups((2, 3))
    base = build_policy("llama", dtype=torch.float32)
    with torch.no_grad():
        expected = base.score(groups).token_logps_N
        with policy.as_base():
            torch.testing.assert_close(policy.score(groups).token_logps_N, expected, rtol=0, atol=1e-5)
        adapted = policy.score(groups).token_logps_N
        own = own_token_logps(policy.model, groups)
    assert float((adapted - expected).abs().max()) > 0.1  # the adapters are on again
    torch.testing.assert_close(adapted, own, rtol=0, atol=1e-5)
    assert hash_weights(policy, base_only=True) == hash_weights(base)
    assert hash_weights(policy) != hash_weights(base)


def test_adapters_alone_are_trained(lora: Policy) -> None:
    lora.score(ragged_groups((2,))).logps_PK.sum().backward()
    trained = {name for name, p in lora.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert len(trained) == 2 * 2 * 7  # A and B of seven linear maps in each of two layers
    assert all("lora_" in name for name in trained)
    assert {name for name, p in lora.named_parameters() if p.requires_grad} == trained


@pytest.mark.parametrize("name", ["llama", "gpt2", "granite"])
def test_mixed_precision_stays_near_float32(name: str) -> None:
    """bf16 products round at 2⁻⁸ relative; gradients are float32, of the float32 weights."""
    wide = build_policy(name, dtype=torch.float32)
    mixed = Policy(build_model(name, dtype=torch.float32), build_tokenizer(), autocast=torch.bfloat16)
    silence_dropout(mixed)
    groups = ragged_groups((2, 3))
    with torch.no_grad():
        expected, found = wide.score(groups).token_logps_N, mixed.score(groups).token_logps_N
    assert found.dtype == torch.float32
    assert 0 < float((found - expected).abs().max()) < 0.3
    ours, theirs = gradients(mixed, "tree"), gradients(wide, "tree")
    assert ours.dtype == torch.float32
    assert float((ours - theirs).norm() / theirs.norm()) < 0.1


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft's own call
def test_frozen_dropout_means_equal_scores_in_training_mode() -> None:
    """Dropout in modules, in attributes and in adapters: in training mode two passes must give the same numbers."""
    groups = ragged_groups((2, 3))
    settings = LoraConfig(r=2, target_modules="all-linear", lora_dropout=0.5, init_lora_weights=False)
    models: list[nn.Module] = [get_peft_model(build_model("llama", dtype=torch.float32), settings)]
    for name, noise in (
        ("gpt2", {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5}),
        ("llama", {"attention_dropout": 0.5}),
        ("opt", {"dropout": 0.5, "attention_dropout": 0.5, "layerdrop": 0.5}),
        ("mixtral", {"router_jitter_noise": 0.5}),
        ("bloom", {"hidden_dropout": 0.5, "attention_dropout": 0.5}),
    ):
        models.append(build_model(name, dtype=torch.float32, **noise))
    for model in models:
        silence_dropout(model)
        policy = Policy(model, build_tokenizer())
        policy.train()
        with torch.no_grad():
            first, second = (policy(groups, layout="plain").token_logps_N for _ in range(2))
            policy.eval()
            third = policy(groups, layout="plain").token_logps_N
        assert first.tolist() == second.tolist() == third.tolist(), type(model).__name__


def test_every_trainable_parameter_is_reached_by_scoring() -> None:
    """Data-parallel wrappers wait for every parameter's gradient (a mixture's idle experts excepted)."""
    for name in set(SHAREABLE) - {"mixtral", "qwen3_moe"}:
        policy = build_policy(name)
        policy.score(ragged_groups((1, 2))).logps_PK.sum().backward()
        assert not [n for n, p in policy.named_parameters() if p.requires_grad and p.grad is None], name
