"""The sampler over an endpoint, against a real server that has the very model: the local sampler's own answers."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from model_server import ModelServer
from models import build_policy, build_tokenizer, save_model
from scipy.stats import chisquare

from accord.endpoint import Endpoint, EndpointDown, EndpointSettings, RequestRefused
from accord.engines import EndpointSampler, VllmSampler, VllmServerSampler
from accord.engines.endpoint_sampler import row_seed
from accord.errors import PolicyError
from accord.policy.policy import Policy
from accord.policy.sampling import LocalSampler, Sampler, SamplingSettings
from accord.records import FinishReason, Response

PROMPTS = [(5, 6, 7, 8, 9), (8,), (9, 10, 11)]
GREEDY = SamplingSettings(max_tokens=24, temperature=0)
DRAWN = SamplingSettings(num_responses=3, max_tokens=12, seed=4)
WITH_IDS = {"return_token_ids": True}


@pytest.fixture(scope="module")
def server() -> Iterator[ModelServer]:
    with ModelServer(build_policy(dtype=torch.float32)) as running:
        yield running


def endpoint(server: ModelServer, **changes: Any) -> Endpoint:
    return Endpoint(EndpointSettings(url=server.url, model=server.name, **({"num_attempts": 1} | changes)))


def own_logps(policy: Policy, prompt: tuple[int, ...], response: Response, temperature: float = 1.0) -> list[float]:
    """log-probabilities by one full forward pass."""
    ids = response.token_ids or ()
    with torch.no_grad():
        logits = policy.causal_lm(torch.tensor([[*prompt, *ids]]), use_cache=False).logits[0, len(prompt) - 1 : -1]
    logps_TV = (logits.double() / temperature).log_softmax(-1)
    return logps_TV[torch.arange(len(ids)), torch.tensor(ids)].tolist()


@pytest.mark.parametrize("sends_token_ids", [False, True])
def test_greedy_answers_are_the_local_sampler_s(server: ModelServer, sends_token_ids: bool):
    local = LocalSampler(server.policy).sample(PROMPTS, GREEDY)
    with endpoint(server) as client:
        sampler = EndpointSampler(client, server.policy.tokenizer, sends_token_ids=sends_token_ids, policy_version=7)
        assert isinstance(sampler, Sampler)
        remote = sampler.sample(PROMPTS, GREEDY)
    assert remote.policy_version == 7
    for (ours,), (theirs,) in zip(local.responses, remote.responses, strict=True):
        assert (theirs.token_ids, theirs.content) == (ours.token_ids, ours.content)
        assert theirs.finish_reason is ours.finish_reason
        assert theirs.behaviour_logps == ours.behaviour_logps  # 0: the likeliest token was certain
        assert theirs.source == "tiny"
    assert {row[0].finish_reason for row in local.responses} == {FinishReason.STOP, FinishReason.LENGTH}


def test_behaviour_log_probabilities_are_of_the_distribution_sampled_from(server: ModelServer):
    with endpoint(server) as client:
        by_text = EndpointSampler(client, server.policy.tokenizer).sample(PROMPTS, DRAWN)
        by_ids = EndpointSampler(client, server.policy.tokenizer, options=WITH_IDS).sample(PROMPTS, DRAWN)
    for row, exact in zip(by_text.responses, by_ids.responses, strict=True):
        for response, sampled in zip(row, exact, strict=True):
            has_padding = 0 in (sampled.token_ids or ())  # a special token has no text: what was sampled is not known
            assert (response.behaviour_logps is None) == has_padding
            assert response.behaviour_logps in (None, sampled.behaviour_logps)
    for prompt, row in zip(PROMPTS, by_ids.responses, strict=True):
        assert len({response.token_ids for response in row}) > 1  # each has a seed of its own
        for response in row:
            assert response.behaviour_logps == pytest.approx(own_logps(server.policy, prompt, response), abs=1e-4)


def test_untrue_log_probabilities_are_left_out(server: ModelServer):
    """This server's are of the model's own distribution; tempered responses come from another one."""
    tempered = SamplingSettings(max_tokens=8, temperature=0.5)
    with endpoint(server) as client:
        raw = EndpointSampler(client, server.policy.tokenizer).sample(PROMPTS, tempered)
        said = EndpointSampler(client, server.policy.tokenizer, logprobs="processed", options=WITH_IDS).sample(
            PROMPTS, tempered
        )
        none = EndpointSampler(client, server.policy.tokenizer, logprobs="none").sample(PROMPTS, DRAWN)
    assert all(row[0].behaviour_logps is None for row in raw.responses)
    assert all(row[0].behaviour_logps is not None for row in said.responses)  # the user's word is taken
    assert all(response.behaviour_logps is None for row in none.responses for response in row)


def test_text_that_encodes_to_other_tokens_has_no_log_probabilities(server: ModelServer):
    """A tokenizer of 20 words reads w25 as unknown: ids of the text are not the ids sampled."""
    with endpoint(server) as client:
        found = EndpointSampler(client, build_tokenizer(20)).sample([(5, 6)], DRAWN)
    responses = [response for response in found.responses[0] if 0 in (response.token_ids or ())]
    assert responses
    assert all(response.behaviour_logps is None for response in responses)


def test_a_response_depends_on_its_own_numbers_alone(server: ModelServer, tmp_path: Path):
    with endpoint(server, cache_folder=tmp_path) as client:
        sampler = EndpointSampler(client, server.policy.tokenizer)
        whole = sampler.sample(PROMPTS, DRAWN)
        part = sampler.sample(PROMPTS[1:], DRAWN, streams=[1, 2])
        assert [[r.token_ids for r in row] for row in part.responses] == [
            [r.token_ids for r in row] for row in whole.responses[1:]
        ]
        assert client.usage.num_cached == 6
    assert row_seed(0, 1, 2) == row_seed(0, 1, 2)
    seeds = [row_seed(s, p, k) for s in range(8) for p in range(25) for k in range(20)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert chisquare([sum(seed % 8 == rest for seed in seeds) for rest in range(8)]).pvalue > 0.001


def test_what_a_server_may_ignore_is_refused(server: ModelServer):
    with endpoint(server) as client:
        sampler = EndpointSampler(client, server.policy.tokenizer)
        for name, value in {"top_k": 4, "min_p": 0.1, "repetition_penalty": 1.2, "min_tokens": 2}.items():
            with pytest.raises(PolicyError, match=f"got {name}={value}"):
                sampler.sample(PROMPTS, SamplingSettings(**{name: value}))  # type: ignore[arg-type]  # one of several
        known = EndpointSampler(client, server.policy.tokenizer, knows=["top_k"])
        greedy = LocalSampler(server.policy).sample(PROMPTS, GREEDY)
        first = known.sample(PROMPTS, SamplingSettings(max_tokens=24, top_k=1))
        assert [row[0].token_ids for row in first.responses] == [row[0].token_ids for row in greedy.responses]
        with pytest.raises(PolicyError, match="heat"):
            EndpointSampler(client, server.policy.tokenizer, knows=["heat"])


def test_stop_strings_end_a_response(server: ModelServer):
    (row,) = LocalSampler(server.policy).sample(PROMPTS[:1], GREEDY).responses
    word = str(row[0].content).split()[3]
    with endpoint(server) as client:
        settings = SamplingSettings(max_tokens=24, temperature=0, stop=(word,))
        (found,) = EndpointSampler(client, server.policy.tokenizer).sample(PROMPTS[:1], settings).responses
    assert found[0].finish_reason is FinishReason.STOP
    assert word not in str(found[0].content)
    assert str(row[0].content).startswith(str(found[0].content).strip())


def test_a_prompt_that_does_not_survive_as_text_is_named(server: ModelServer):
    """The unknown token's text is left out, and what comes back is shorter."""
    with endpoint(server) as client, pytest.raises(PolicyError, match=r"2 tokens whose text.*sends_token_ids"):
        EndpointSampler(client, server.policy.tokenizer).sample([(5, 60_000)], GREEDY)
    with endpoint(server) as client, pytest.raises(RequestRefused, match="128 positions"):
        EndpointSampler(client, server.policy.tokenizer).sample([(5,) * 200], GREEDY)


def test_a_sampler_whose_server_is_down_says_so(server: ModelServer):
    with ModelServer(server.policy) as gone:
        client = endpoint(gone)
    with client, pytest.raises(EndpointDown):
        EndpointSampler(client, server.policy.tokenizer).sample(PROMPTS, GREEDY)


def test_a_server_of_vllm_s_protocol_gives_ids_and_takes_new_weights(tmp_path: Path):
    """Token ids in and out, and the control requests of vLLM's own server, on a server that reloads in earnest."""
    folder = save_model(tmp_path / "later", seed=3)
    later = build_policy(dtype=torch.float32, seed=3)
    with ModelServer(build_policy(dtype=torch.float32)) as running, endpoint(running) as client:
        sampler = VllmServerSampler(client, running.policy.tokenizer, logprobs="raw")
        before = sampler.sample(PROMPTS, GREEDY)
        drawn = sampler.sample(PROMPTS[:1], DRAWN).responses[0]
        assert drawn[0].behaviour_logps == pytest.approx(own_logps(running.policy, PROMPTS[0], drawn[0]), abs=1e-4)
        sampler.update_weights(folder, policy_version=1)
        after = sampler.sample(PROMPTS, GREEDY)
    assert (before.policy_version, after.policy_version) == (0, 1)
    expected = LocalSampler(later).sample(PROMPTS, GREEDY)
    assert [row[0].token_ids for row in after.responses] == [row[0].token_ids for row in expected.responses]
    assert before.responses != after.responses
    body = next(body for path, body in running.requests if path == "/collective_rpc")
    assert body == {"method": "reload_weights", "kwargs": {"weights_path": str(folder.resolve())}}


def test_a_cache_and_changing_weights_do_not_go_together(server: ModelServer, tmp_path: Path):
    with endpoint(server, cache_folder=tmp_path) as client, pytest.raises(PolicyError, match="cache of answers"):
        VllmServerSampler(client, server.policy.tokenizer)


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vllm is installed")
def test_vllm_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(PolicyError, match="pip install vllm"):
        VllmSampler(tmp_path)
