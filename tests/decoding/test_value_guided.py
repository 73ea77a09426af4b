"""Drawing by learnt values: the formula token by token, and both ends of β."""

from __future__ import annotations

import pytest
import torch
from models import build_policy

from accord.decoding.answering import Way, answer
from accord.decoding.cached import decoding
from accord.decoding.value_guided import ValueGuidedRows, sample_value_guided
from accord.errors import ConfigError
from accord.policy.sampling import SamplingSettings, sample_responses
from accord.policy.value_heads import ValueLearner
from accord.records import Group, Response

PROMPT = (5, 9, 4)
SETTINGS = SamplingSettings(num_responses=3, max_tokens=6, seed=11)


def learner(name: str = "llama") -> ValueLearner:
    found, generator = ValueLearner(build_policy(name)), torch.Generator().manual_seed(5)
    with torch.no_grad():
        for head in found.target_heads:
            head.weight.copy_(torch.randn(head.weight.shape, generator=generator))
    return found


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("strength", [0.0, 0.7])
def test_next_tokens_are_weighed_by_the_smaller_of_the_copies(name: str, strength: float):
    """log π + β (min Q̄ − V), normalised, of a model that reads the whole text anew."""
    policy = learner(name)
    with decoding(policy):
        rows = ValueGuidedRows(policy, PROMPT, strength)
        logps_BV = rows.step(torch.tensor([0, 0]), torch.tensor([7, 8]))
        for row, token in enumerate((7, 8)):
            ids = torch.tensor([[*PROMPT, token]])
            hidden_H = policy.causal_lm.base_model(ids, use_cache=False).last_hidden_state[0, -1]
            q_V = torch.minimum(*(head(hidden_H) for head in policy.target_heads))
            logits_V = policy.causal_lm(ids, use_cache=False).logits[0, -1]
            expected_V = (logits_V.log_softmax(-1) + strength * (q_V - policy.value_head(hidden_H))).log_softmax(-1)
            torch.testing.assert_close(logps_BV[row], expected_V.to(logps_BV.dtype), rtol=1e-4, atol=1e-4)


def test_without_strength_it_is_the_policy_and_with_much_it_is_the_values():
    policy = learner()
    plain = sample_responses(policy, [PROMPT], SETTINGS)[0]
    guided = sample_value_guided(policy, [PROMPT], SETTINGS, strength=0.0)[0]
    assert [r.token_ids for r in guided] == [r.token_ids for r in plain]
    for one, other in zip(guided, plain, strict=True):
        torch.testing.assert_close(one.behaviour_logps, other.behaviour_logps, rtol=1e-4, atol=1e-4)
    (greedy, *_) = sample_value_guided(policy, [PROMPT], SETTINGS, strength=1e4)[0]
    ids = list(PROMPT)
    for token in greedy.token_ids or ():
        with torch.no_grad():
            hidden_H = policy.causal_lm.base_model(torch.tensor([ids]), use_cache=False).last_hidden_state[0, -1]
            best = int(torch.minimum(*(head(hidden_H) for head in policy.target_heads)).argmax())
        assert token == best
        ids.append(token)
    assert len(ids) > len(PROMPT)


def test_it_is_one_of_the_ways_to_answer_and_goes_with_best_of_n():
    policy, asked = learner(), [Group(prompt="w5 w9", responses=(Response(token_ids=()),))]
    found, _ = answer(policy, asked, SETTINGS, Way(value_guided=0.7))
    assert len(found[0].responses) == SETTINGS.num_responses
    with pytest.raises(ConfigError, match="value_guided"):
        Way(value_guided=0.7, beam=2)


def test_bad_input_says_what_to_do():
    with pytest.raises(ConfigError, match="objective=ilql"):
        sample_value_guided(build_policy(), [PROMPT], SETTINGS, strength=1.0)
    with pytest.raises(ConfigError, match="β ≥ 0"):
        sample_value_guided(learner(), [PROMPT], SETTINGS, strength=-1.0)
