"""Prompt embeddings: the mean of the model's own last hidden states, whatever is scored beside them."""

from __future__ import annotations

import pytest
import torch
from toy_runs import BASE

from accord.data.tokens import TokenGroup, TokenResponse
from accord.policy.load import load_policy
from accord.policy.prompt_embedding import prompt_embeddings


def group(*prompt_ids: int, num_responses: int = 1) -> TokenGroup:
    return TokenGroup(prompt_ids=prompt_ids, responses=(TokenResponse(ids=(5, 6)),) * num_responses)


@pytest.fixture(scope="module")
def policy():
    return load_policy(BASE)


def test_an_embedding_is_the_mean_hidden_state_of_the_prompt_alone(policy):
    prompts = ((1, 7, 9, 4), (3,), (8, 2))
    found_PE = prompt_embeddings(policy, [group(*prompt) for prompt in prompts])
    for row, prompt in enumerate(prompts):  # one by one, without padding, as the model says it
        hidden = policy.causal_lm(torch.tensor([prompt]), output_hidden_states=True).hidden_states[-1]
        torch.testing.assert_close(found_PE[row], hidden[0].mean(dim=0), rtol=1e-4, atol=1e-5)
    assert not found_PE.requires_grad


def test_neither_responses_nor_neighbours_matter(policy):
    alone = prompt_embeddings(policy, [group(1, 7, 9)])
    beside = prompt_embeddings(policy, [group(1, 7, 9, num_responses=3), group(*range(1, 12))])
    torch.testing.assert_close(beside[:1], alone, rtol=1e-4, atol=1e-5)
