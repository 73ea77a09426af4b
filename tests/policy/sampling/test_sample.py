"""The local sampler against full recomputation without a cache, and against the distribution it claims to draw from."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from models import HYBRID, SHAREABLE, build_model, build_policy, build_tokenizer, own_token_logps, save_model
from scipy.stats import chisquare
from torch.nn import functional as F

from accord.data import encode_groups
from accord.data.tokens import TokenGroup, TokenResponse
from accord.errors import PolicyError
from accord.policy.load import load_policy
from accord.policy.policy import Policy
from accord.policy.sampling import (
    NoSampler,
    SamplingSettings,
    answer_prompts,
    sample_responses,
    stop_ids,
    tempered_logps,
    trained_ends,
)
from accord.records import Comparison, FinishReason, Group, Message, Response

PROMPTS = [(5, 6, 7, 8, 9, 10, 11, 12, 13), (8,), (9, 10, 11)]
SETTINGS = SamplingSettings(num_responses=3, max_tokens=10, seed=7)


def own_logits(policy: Policy, prompt: tuple[int, ...], response: Response) -> torch.Tensor:
    """Logits of every step by one full forward pass, no cache, no padding."""
    assert response.token_ids
    sequence = torch.tensor([prompt + response.token_ids])
    return policy.causal_lm(sequence, use_cache=False).logits[0, len(prompt) - 1 : -1]


@pytest.mark.parametrize("name", [*SHAREABLE, "gpt_oss", "bloom", "mpt", "falcon", "llama4", "stablelm"])
def test_sampled_logps_equal_the_scorers(name: str) -> None:
    """At temperature 1 the sampler, the scorer and the model's own forward pass name the same distribution."""
    policy = build_policy(name, dtype=torch.float32)
    drawn = sample_responses(policy, PROMPTS, SETTINGS)
    assert [len(responses) for responses in drawn] == [3, 3, 3]
    groups = [
        TokenGroup(prompt_ids=p, responses=tuple(TokenResponse(ids=r.token_ids or ()) for r in rs))
        for p, rs in zip(PROMPTS, drawn, strict=True)
    ]
    sampled_N = torch.tensor([logp for rs in drawn for r in rs for logp in r.behaviour_logps or ()])
    with torch.no_grad():
        torch.testing.assert_close(sampled_N, own_token_logps(policy.causal_lm, groups), rtol=0, atol=2e-5)
        torch.testing.assert_close(sampled_N, policy(groups, layout="plain").token_logps_N, rtol=0, atol=2e-5)


@torch.no_grad()
def test_greedy_is_the_argmax_of_full_recomputation() -> None:
    policy = build_policy("llama")
    drawn = sample_responses(policy, PROMPTS, SamplingSettings(max_tokens=12, temperature=0))
    for prompt, (response,) in zip(PROMPTS, drawn, strict=True):
        assert list(response.token_ids or ()) == own_logits(policy, prompt, response).argmax(-1).tolist()
        assert set(response.behaviour_logps or ()) == {0.0}  # a certain choice


@torch.no_grad()
@pytest.mark.parametrize("cut", [{}, {"top_k": 4}, {"top_p": 0.6}, {"top_k": 7, "top_p": 0.8}], ids=str)
def test_behaviour_logps_are_of_the_distribution_drawn_from(cut: dict[str, float]) -> None:
    policy, settings = build_policy("llama"), replace(SETTINGS, temperature=1.7, **cut)
    for prompt, responses in zip(PROMPTS, sample_responses(policy, PROMPTS, settings), strict=True):
        for response in responses:
            logps_TV = tempered_logps(own_logits(policy, prompt, response), settings)
            ids_T = torch.tensor(response.token_ids)
            expected_T = logps_TV[torch.arange(len(ids_T)), ids_T]
            found_T = torch.tensor(response.behaviour_logps, dtype=expected_T.dtype)
            torch.testing.assert_close(found_T, expected_T, rtol=0, atol=1e-5)


def test_tempered_logps_by_hand() -> None:
    """p = (.5, .3, .15, .05): cuts keep the head and renormalise; top-p keeps the token that crosses the mass."""
    p_V = torch.tensor([[0.15, 0.5, 0.05, 0.3]], dtype=torch.float64)

    def of(**settings: float) -> list[float]:
        return tempered_logps(p_V.log(), SamplingSettings(**settings)).exp()[0].tolist()  # type: ignore[arg-type]

    assert of() == pytest.approx([0.15, 0.5, 0.05, 0.3])
    assert of(top_k=2) == pytest.approx([0, 0.5 / 0.8, 0, 0.3 / 0.8])
    assert of(top_p=0.5) == pytest.approx([0, 1, 0, 0])
    assert of(top_p=0.51) == pytest.approx([0, 0.5 / 0.8, 0, 0.3 / 0.8])
    assert of(top_k=3, top_p=0.9) == pytest.approx([0.15 / 0.95, 0.5 / 0.95, 0, 0.3 / 0.95])
    squared = p_V**2 / (p_V**2).sum()
    assert of(temperature=0.5) == pytest.approx(squared[0].tolist())
    assert of(temperature=0) == [0, 1, 0, 0]


def test_same_seed_same_ids_whatever_the_batch() -> None:
    policy = build_policy("llama")
    ids = [[r.token_ids for r in rs] for rs in sample_responses(policy, PROMPTS, SETTINGS)]
    for max_rows in (1, 4, 7):
        again = sample_responses(policy, PROMPTS, replace(SETTINGS, max_rows=max_rows))
        assert [[r.token_ids for r in rs] for rs in again] == ids
    alone = sample_responses(policy, PROMPTS[:1], SETTINGS)
    assert [r.token_ids for r in alone[0]] == ids[0]
    other = sample_responses(policy, PROMPTS, replace(SETTINGS, seed=8))
    assert [[r.token_ids for r in rs] for rs in other] != ids
    assert len({r for rs in ids for r in rs}) == 9  # the K responses of a prompt have streams of their own
    assert sample_responses(policy, [], SETTINGS) == []


def test_endings_and_stop_ids() -> None:
    """EOS is part of the response; every id of the generation config's list ends one; the limit says LENGTH."""
    policy = build_policy("llama")
    settings = replace(SETTINGS, num_responses=40, max_tokens=6)
    ends: Counter[FinishReason] = Counter()
    policy.causal_lm.generation_config.eos_token_id = [1, 20, 30]
    for responses in sample_responses(policy, PROMPTS, settings):
        for response in responses:
            *body, last = response.token_ids or ()
            assert not {1, 20, 30} & set(body)
            assert (response.finish_reason is FinishReason.STOP) == (last in {1, 20, 30})
            assert (response.finish_reason is FinishReason.STOP) or len(body) == 5
            assert len(response.behaviour_logps or ()) == len(response.token_ids or ())
            assert "<eos>" not in str(response.content)
            ends[response.finish_reason] += 1
    assert ends[FinishReason.STOP] >= 5
    assert ends[FinishReason.LENGTH] >= 5


def test_samples_end_where_the_template_ends_a_turn() -> None:
    """A template that closes turns with w9, which is not the EOS: what is trained as the end ends a response."""
    policy = build_policy("llama")
    assert stop_ids(policy) == {1}
    policy.tokenizer.add_tokens("w9")  # a token of its own, not a special one
    policy.tokenizer.chat_template = (
        "{% for m in messages %}w4 {{ m['content'] }} w9 {% endfor %}{% if add_generation_prompt %}w4 {% endif %}"
    )
    assert stop_ids(policy) == {1, 9}
    assert stop_ids(policy, "transcript") == {1}
    row = Group(
        prompt=(Message(role="user", content="w5"),),
        responses=(Response(content="w6 w7"), Response(content="w8")),
        judgements=(Comparison(better=0, worse=1),),
    )
    assert trained_ends(encode_groups([row], policy.tokenizer).groups) == {9}
    (answered,) = answer_prompts(policy, [row], replace(SETTINGS, num_responses=200))
    ends = Counter((r.token_ids or ())[-1] for r in answered.responses if r.finish_reason is FinishReason.STOP)
    assert set(ends) == {1, 9}
    assert not any("w9" in str(response.content) for response in answered.responses)
    (drawn,) = sample_responses(policy, [(5,)], replace(SETTINGS, num_responses=200), more_stop_ids=[11])
    assert {(r.token_ids or ())[-1] for r in drawn if r.finish_reason is FinishReason.STOP} == {1, 9, 11}


def test_a_response_ends_where_the_models_positions_do() -> None:
    """GPT-2 has 128 learned positions: 125 in the prompt leave room for three tokens, whatever else is in the batch."""
    policy = build_policy("gpt2")
    policy.causal_lm.generation_config.eos_token_id = None
    policy.tokenizer = build_tokenizer()
    policy.tokenizer.eos_token = None  # type: ignore[assignment]
    long = tuple(range(2, 52)) * 2 + tuple(range(2, 27))
    (cut,), (whole,) = sample_responses(policy, [long, (5, 6)], SamplingSettings(max_tokens=9))
    assert (len(cut.token_ids or ()), cut.finish_reason) == (3, FinishReason.LENGTH)
    assert (len(whole.token_ids or ()), whole.finish_reason) == (9, FinishReason.LENGTH)
    with pytest.raises(PolicyError, match="got prompt 0 of 128 tokens — expected fewer than the model's 128 positions"):
        sample_responses(policy, [(*long, 5, 6, 7)], SamplingSettings(max_tokens=9))


def test_frequencies_match_the_distribution() -> None:
    """5 words, 4000 first tokens at temperature 1.3: chi-square against the model's own probabilities, p > 0.001."""
    policy = Policy(build_model("llama", vocab_size=5), build_tokenizer(5))
    settings = SamplingSettings(num_responses=4000, max_tokens=1, temperature=1.3, max_rows=4000, seed=1)
    ((drawn),) = sample_responses(policy, [(2, 3, 4)], settings)
    counts = Counter(ids[0] for response in drawn if (ids := response.token_ids))
    with torch.no_grad():
        logits_V = policy.causal_lm(torch.tensor([[2, 3, 4]])).logits[0, -1].double()
    expected = 4000 * F.softmax(logits_V / 1.3, dim=-1)
    assert float(expected.min()) > 5
    assert chisquare([counts[i] for i in range(5)], expected.tolist()).pvalue > 1e-3


def test_sampling_leaves_the_policy_as_it_was(tmp_path: Path) -> None:
    policy = load_policy(save_model(tmp_path, "llama"), gradient_checkpointing=True)
    expected = sample_responses(load_policy(tmp_path), PROMPTS, SETTINGS)
    found = sample_responses(policy, PROMPTS, SETTINGS)
    assert [[r.token_ids for r in rs] for rs in found] == [[r.token_ids for r in rs] for rs in expected]
    assert policy.training
    assert policy.layout == "tree"
    assert found[0][0].source == str(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_responses": 0}, "got num_responses=0 — expected num_responses ≥ 1"),
        ({"max_tokens": 0}, "got max_tokens=0 — expected max_tokens ≥ 1"),
        ({"temperature": -0.1}, "got temperature=-0.1 — expected temperature ≥ 0"),
        ({"top_p": 0.0}, r"got top_p=0.0 — expected top_p in \(0, 1\]"),
        ({"top_p": 1.1}, r"got top_p=1.1 — expected top_p in \(0, 1\]"),
        ({"top_k": -1}, "got top_k=-1 — expected top_k ≥ 0"),
        ({"seed": -1}, "got seed=-1 — expected seed ≥ 0"),
        ({"max_rows": 0}, "got max_rows=0 — expected max_rows ≥ 1"),
    ],
)
def test_settings_out_of_range(settings: dict[str, float], message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        SamplingSettings(**settings)  # type: ignore[arg-type]


def test_what_cannot_be_sampled() -> None:
    with pytest.raises(PolicyError, match="prompt 1 has no tokens"):
        sample_responses(build_policy("llama"), [(5,), ()], SETTINGS)
    with pytest.raises(PolicyError, match="MambaForCausalLM keeps no attention cache"):
        sample_responses(build_policy("mamba", dtype=torch.float32), PROMPTS, SETTINGS)
    for name in (*HYBRID, "falcon_h1"):
        with pytest.raises(NoSampler, match="keeps a recurrent state besides its attention cache"):
            sample_responses(build_policy(name, dtype=torch.float32), PROMPTS, SETTINGS)
    broken = build_policy("llama")
    with torch.no_grad():
        broken.causal_lm.get_output_embeddings().weight.fill_(float("nan"))
    with pytest.raises(PolicyError, match="gave logits that are not numbers, at token 1"):
        sample_responses(broken, PROMPTS, SETTINGS)
