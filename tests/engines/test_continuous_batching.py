"""transformers' continuous batching, on this machine, against the local sampler and full recomputation."""

from __future__ import annotations

import pytest
import torch
from models import build_policy
from scipy.stats import chisquare

from accord.engines import ContinuousBatchingSampler
from accord.errors import PolicyError
from accord.policy.policy import Policy
from accord.policy.sampling import LocalSampler, Sampler, SamplingSettings, tempered_logps
from accord.records import FinishReason

PROMPTS = [(5, 6, 7, 8, 9, 10), (8,), (9, 10, 11)]


@pytest.fixture(scope="module")
def policy() -> Policy:
    return build_policy(dtype=torch.float32)


def test_greedy_answers_are_the_local_sampler_s(policy: Policy):
    settings = SamplingSettings(max_tokens=40, temperature=0)
    sampler = ContinuousBatchingSampler(policy)
    assert isinstance(sampler, Sampler)
    policy.train()
    assert sampler.sample(PROMPTS, settings) == LocalSampler(policy).sample(PROMPTS, settings)
    assert policy.training


def test_log_probabilities_are_of_the_distribution_drawn_from(policy: Policy):
    settings = SamplingSettings(num_responses=4, max_tokens=12, temperature=0.7, top_k=20, top_p=0.9, seed=3)
    found = ContinuousBatchingSampler(policy).sample(PROMPTS, settings)
    assert [len(row) for row in found.responses] == [4, 4, 4]
    for prompt, row in zip(PROMPTS, found.responses, strict=True):
        assert len({response.token_ids for response in row}) > 1
        for response in row:
            ids = response.token_ids or ()
            with torch.no_grad():
                logits = policy.causal_lm(torch.tensor([[*prompt, *ids]]), use_cache=False).logits[0]
            logps_TV = tempered_logps(logits[len(prompt) - 1 : -1], settings)
            expected = logps_TV[torch.arange(len(ids)), torch.tensor(ids)].tolist()
            assert response.behaviour_logps == pytest.approx(expected, abs=1e-4)
            assert (response.finish_reason is FinishReason.STOP) == (ids[-1] == 1)


def test_first_tokens_have_the_policy_s_distribution(policy: Policy):
    settings = SamplingSettings(num_responses=400, max_tokens=1, top_k=6, seed=1)
    (row,) = ContinuousBatchingSampler(policy).sample([(5, 6)], settings).responses
    with torch.no_grad():
        probs_V = tempered_logps(policy.causal_lm(torch.tensor([[5, 6]])).logits[:, -1], settings)[0].exp()
    drawn = torch.bincount(torch.tensor([(r.token_ids or ())[0] for r in row]), minlength=len(probs_V))
    kept = probs_V > 0
    assert drawn[~kept].sum() == 0
    expected = probs_V[kept].double()
    assert chisquare(drawn[kept].numpy(), (expected / expected.sum() * 400).numpy()).pvalue > 1e-3


def test_the_same_call_gives_the_same_text_and_other_streams_another(policy: Policy):
    settings = SamplingSettings(max_tokens=8, seed=5)
    sampler = ContinuousBatchingSampler(policy)
    state = torch.random.get_rng_state()
    first = sampler.sample(PROMPTS, settings)
    assert torch.equal(torch.random.get_rng_state(), state)  # nobody else's random numbers are touched
    assert sampler.sample(PROMPTS, settings) == first
    assert sampler.sample(PROMPTS, settings, streams=[7, 8, 9]) != first


def test_a_full_window_ends_a_response_and_a_full_prompt_is_refused(policy: Policy):
    """128 positions: a prompt of 120 leaves room for 8."""
    settings = SamplingSettings(max_tokens=30, temperature=0)
    (row,) = ContinuousBatchingSampler(policy).sample([(7,) * 120], settings).responses
    (local,) = LocalSampler(policy).sample([(7,) * 120], settings).responses
    assert row[0].token_ids == local[0].token_ids
    with pytest.raises(PolicyError, match="prompt 0 of 128 tokens"):
        ContinuousBatchingSampler(policy).sample([(7,) * 128], settings)


def test_what_it_cannot_do_is_refused(policy: Policy):
    sampler = ContinuousBatchingSampler(policy)
    for name, value in {"min_p": 0.1, "repetition_penalty": 1.2, "min_tokens": 2, "stop": ("w",)}.items():
        with pytest.raises(PolicyError, match=name):
            sampler.sample(PROMPTS, SamplingSettings(**{name: value}))  # type: ignore[arg-type]  # one of several
    assert sampler.sample([], SamplingSettings()).responses == ()


def test_a_model_without_a_paged_cache_is_named():
    with pytest.raises(PolicyError, match=r"continuous batching failed for MambaForCausalLM.*local engine"):
        ContinuousBatchingSampler(build_policy("mamba", dtype=torch.float32)).sample(
            PROMPTS, SamplingSettings(max_tokens=2)
        )
