"""The engine's promises: the same text whatever the batch, rows that come and go, prompts kept once."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from models import SHAREABLE, build_policy
from torch import nn

from accord.data.tokens import TokenGroup, TokenResponse
from accord.policy.policy import Policy
from accord.policy.sampling import LocalSampler, Sampler, SamplingSettings, packed, sample_responses
from accord.policy.sampling.draw import uniforms
from accord.policy.sampling.fused import FusedStep, fused_step
from accord.records import Response

PLAIN = ["bloom", "gpt_oss"]


def random_prompts(count: int, *, longest: int = 30, seed: int = 0) -> list[tuple[int, ...]]:
    rng = random.Random(seed)
    return [tuple(rng.randrange(2, 61) for _ in range(rng.randint(1, longest))) for _ in range(count)]


def ids_of(drawn: Sequence[Sequence[Response]]) -> list[list[tuple[int, ...]]]:
    return [[response.token_ids or () for response in responses] for responses in drawn]


def scored(policy: Policy, prompts: Sequence[tuple[int, ...]], drawn: Sequence[Sequence[Response]]) -> torch.Tensor:
    groups = [
        TokenGroup(prompt_ids=p, responses=tuple(TokenResponse(ids=r.token_ids or ()) for r in rs))
        for p, rs in zip(prompts, drawn, strict=True)
    ]
    with torch.no_grad():
        return policy.score(groups).token_logps_N


def sampled(drawn: Sequence[Sequence[Response]]) -> torch.Tensor:
    return torch.tensor([x for rs in drawn for r in rs for x in r.behaviour_logps or ()], dtype=torch.float64)


@pytest.fixture
def shares_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep every prompt's keys and values once, however short it is."""
    monkeypatch.setattr(packed, "SHARED_PROMPT", 1)


@pytest.mark.usefixtures("shares_all")
@pytest.mark.parametrize("name", SHAREABLE)
def test_shared_prompts_give_what_copied_ones_do(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two softmaxes joined are one softmax, also with windows (9, 11, 7 tokens), soft-caps, grouped heads."""
    policy, prompts = build_policy(name, dtype=torch.float64), random_prompts(5)
    settings = SamplingSettings(num_responses=3, max_tokens=24, seed=3, max_rows=7)
    drawn = sample_responses(policy, prompts, settings)
    assert policy.layout == "tree"
    torch.testing.assert_close(sampled(drawn), scored(policy, prompts, drawn).double(), rtol=0, atol=2e-6)
    monkeypatch.setattr(packed, "SHARED_PROMPT", 10**9)
    assert ids_of(sample_responses(policy, prompts, settings)) == ids_of(drawn)


@pytest.mark.parametrize(
    ("name", "shared_from"),
    [
        ("llama", 1),
        ("qwen3", 12),
        ("mistral_window", 1),
        ("gemma2", 12),
        ("gpt2", 10**9),
        *((name, 1) for name in PLAIN),
    ],
)
def test_same_text_whatever_the_batch(name: str, shared_from: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Budgets, orders, company and the number of responses asked for: none of them shows in a response."""
    monkeypatch.setattr(packed, "SHARED_PROMPT", shared_from)
    policy = build_policy(name, dtype=torch.float32 if name in PLAIN else torch.float64)  # BLOOM pads in float32
    policy.causal_lm.generation_config.eos_token_id = [1, 20, 30, 40]  # lengths differ
    prompts = random_prompts(9, seed=1)
    settings = SamplingSettings(num_responses=4, max_tokens=14, seed=11)
    expected = ids_of(sample_responses(policy, prompts, settings))
    assert len({len(ids) for row in expected for ids in row}) > 4
    changes: list[dict[str, Any]] = [
        {"max_rows": 3}, {"max_rows": 13}, {"max_batch_tokens": 1},
        {"max_batch_tokens": 60}, {"max_batch_tokens": 400, "max_rows": 9},
    ]  # fmt: skip
    for change in changes:
        assert ids_of(sample_responses(policy, prompts, replace(settings, **change))) == expected, change
    order = [4, 0, 8, 2, 6, 1, 7, 3, 5]
    shuffled = sample_responses(policy, [prompts[i] for i in order], replace(settings, max_rows=10), streams=order)
    assert ids_of(shuffled) == [expected[i] for i in order]
    for i in (0, 5):
        assert ids_of(sample_responses(policy, [prompts[i]], settings, streams=[i])) == [expected[i]]
    fewer = sample_responses(policy, prompts, replace(settings, num_responses=2, max_tokens=9))
    assert ids_of(fewer) == [[ids[:9] for ids in row[:2]] for row in expected]
    same = sample_responses(policy, [prompts[3]] * 3, settings, streams=[3, 3, 5])
    assert ids_of(same)[0] == ids_of(same)[1] == expected[3] != ids_of(same)[2]


def test_long_responses_pass_chunks_of_random_numbers_and_growing_slots() -> None:
    """100 tokens: two chunks of 64 numbers, slots grown past what a new row gets."""
    policy = build_policy("qwen2")
    policy.causal_lm.generation_config.eos_token_id = [1]
    prompts = random_prompts(6, longest=20, seed=4)
    settings = SamplingSettings(num_responses=2, max_tokens=100, seed=2)
    drawn = sample_responses(policy, prompts, settings)
    assert max(len(ids) for row in ids_of(drawn) for ids in row) == 100
    assert ids_of(sample_responses(policy, prompts, replace(settings, max_rows=3))) == ids_of(drawn)
    torch.testing.assert_close(sampled(drawn), scored(policy, prompts, drawn), rtol=0, atol=1e-9)


def test_waiting_prompts_enter_before_the_batch_is_empty() -> None:
    """16 rows of which 4 fit: fewer steps than four batches that wait for their longest row, and never more rows."""
    policy = build_policy("llama")
    policy.causal_lm.generation_config.eos_token_id = [1, 20, 30, 40]
    sample_responses(policy, [(5, 6)], SamplingSettings(max_tokens=1))  # the layout is checked before
    rows: list[int] = []
    handle = policy.causal_lm.get_input_embeddings().register_forward_hook(
        lambda module, given, out: rows.append(out.shape[1])
    )
    prompts = [(5, 6)] * 16
    settings = SamplingSettings(max_tokens=40, seed=5, max_rows=4)
    drawn = ids_of(sample_responses(policy, prompts, settings))
    handle.remove()
    lengths = [len(row[0]) for row in drawn]
    in_batches = sum(max(lengths[start : start + 4]) - 1 for start in range(0, 16, 4))
    assert rows[0] == max(rows) == 8  # four prompts of two tokens, then at most four rows or prompts
    assert len(rows) < in_batches  # prefills counted


@pytest.mark.parametrize("name", ["llama", "llama_tied", "mistral_window", "qwen2", "qwen3"])
def test_the_written_out_step_is_the_models_own(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, prompts = build_policy(name, dtype=torch.float32), random_prompts(4, seed=6)
    settings = SamplingSettings(num_responses=2, max_tokens=16, seed=1)
    calls: list[int] = []
    run = FusedStep.__call__
    monkeypatch.setattr(
        FusedStep, "__call__", lambda self, ids, *rest: (calls.append(len(ids)), run(self, ids, *rest))[1]
    )
    fast = sample_responses(policy, prompts, settings)
    assert len(calls) >= 10
    monkeypatch.setattr(packed, "fused_step", lambda policy, longest: None)
    own = sample_responses(policy, prompts, settings)
    assert ids_of(own) == ids_of(fast)
    torch.testing.assert_close(sampled(own), sampled(fast), rtol=0, atol=2e-5)
    torch.testing.assert_close(sampled(fast), scored(policy, prompts, fast).double(), rtol=0, atol=2e-5)


def test_a_model_that_only_looks_like_llama_runs_its_own_step() -> None:
    """A layer whose sum is doubled: the written-out step is compared, found different and not used."""
    policy = build_policy("llama")
    policy.score([TokenGroup(prompt_ids=(5, 6), responses=(TokenResponse(ids=(7, 8)),))])
    assert fused_step(policy, 40) is not None
    layers: Any = policy.causal_lm.base_model.layers
    layer = layers[0]
    own = layer.mlp.forward
    layer.mlp.forward = lambda x: 2 * own(x)
    prompts = random_prompts(3, seed=7)
    drawn = sample_responses(policy, prompts, SamplingSettings(num_responses=2, max_tokens=8))
    torch.testing.assert_close(sampled(drawn), scored(policy, prompts, drawn), rtol=0, atol=1e-9)
    hooked = build_policy("llama")
    hooked.score([TokenGroup(prompt_ids=(5, 6), responses=(TokenResponse(ids=(7, 8)),))])
    hooked.causal_lm.get_input_embeddings().register_forward_hook(lambda *given: None)
    assert fused_step(hooked, 40) is None


def test_random_numbers_are_a_function_of_seed_stream_response_and_token() -> None:
    numbers = {uniforms(*key)[0] for key in ((0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1))}
    assert len(numbers) == 5
    assert uniforms(3, 2**63, 5, 7).tolist() == uniforms(3, 2**63, 5, 7).tolist()


def test_the_local_sampler_is_a_sampler() -> None:
    policy = build_policy("llama")
    sampler, settings = LocalSampler(policy, policy_version=7), SamplingSettings(num_responses=2, max_tokens=5)
    assert isinstance(sampler, Sampler)
    found = sampler.sample([(5, 6), (7,)], settings, streams=[4, 2])
    assert (found.policy_version, found.settings) == (7, settings)
    assert list(found.responses) == sample_responses(policy, [(5, 6), (7,)], settings, streams=[4, 2])


@pytest.mark.parametrize("trainable", [True, False])
def test_mixed_precision_casts_each_weight_once_a_call(trainable: bool) -> None:
    """Under autocast a frozen weight would be cast again for every token: casts do not grow with the length."""
    policy = build_policy("llama", dtype=torch.float32)
    policy.autocast = torch.bfloat16
    policy.requires_grad_(trainable)
    sample_responses(policy, [(5, 6)], SamplingSettings(max_tokens=1))

    def casts(num_tokens: int) -> int:
        weights = {tuple(w.shape) for m in policy.modules() if isinstance(m, nn.Linear) for w in [m.weight]}
        policy.causal_lm.generation_config.eos_token_id = []
        with torch.profiler.profile(record_shapes=True) as found:
            sample_responses(policy, [(5, 6)], SamplingSettings(max_tokens=num_tokens, min_tokens=num_tokens))
        return sum(e.name == "aten::_to_copy" and tuple(e.input_shapes[0]) in weights for e in found.events() or ())

    assert casts(4) == casts(12) > 0
    assert all(p.requires_grad == trainable for p in policy.parameters())


def test_low_precision_samples_near_what_is_scored() -> None:
    policy, prompts = build_policy("llama", dtype=torch.bfloat16), random_prompts(4, seed=8)
    drawn = sample_responses(policy, prompts, SamplingSettings(num_responses=4, max_tokens=16))
    gap = (sampled(drawn) - scored(policy, prompts, drawn).double()).abs()
    assert float(gap.mean()) < 0.05
