"""Heads of Q and V on a policy: what they say of each token, how their copies follow, and what is saved."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from models import build_policy, ragged_groups, save_model

from accord.errors import PolicyError
from accord.policy.load import load_policy
from accord.policy.tokens.scored import to_scored_tokens
from accord.policy.value_heads import HEADS_FILE, ValueLearner, load_value_learner


def learner(name: str = "llama", *, polyak: float = 0.005) -> ValueLearner:
    """Heads that say something, each something else."""
    found, generator = ValueLearner(build_policy(name), polyak=polyak), torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in found.trained().items():
            if name.startswith("critic/"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return found


@pytest.mark.parametrize("layout", ["tree", "plain"])
def test_each_token_has_the_values_of_the_state_before_it(layout: str):
    policy, groups = learner(), ragged_groups((3, 1), longest=6)
    policy.temperature = 0.5  # of the words, not of the values
    scores = policy(groups, layout=layout)
    assert scores.q_values is not None
    assert scores.value_N is not None
    q, q_logps, slow, values = [], [], [], []
    for group in groups:
        for response in group.responses:
            whole = torch.tensor([group.prompt_ids + response.ids])
            hidden_LH = policy.causal_lm.base_model(whole, use_cache=False).last_hidden_state[0]
            first, taken_N1 = len(group.prompt_ids) - 1, torch.tensor(response.ids)[:, None]
            states_NH = hidden_LH[first : first + len(response.ids)]
            of_heads = [head(states_NH) for head in policy.q_heads]
            q.append(torch.cat([q_NV.gather(1, taken_N1) for q_NV in of_heads], dim=1))
            q_logps.append(torch.cat([q_NV.log_softmax(-1).gather(1, taken_N1) for q_NV in of_heads], dim=1))
            of_copies = [head(states_NH).gather(1, taken_N1) for head in policy.target_heads]
            slow.append(torch.minimum(*of_copies).squeeze(-1))
            values.append(policy.value_head(states_NH).squeeze(-1))
    close = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(scores.q_values.q_N2, torch.cat(q), **close)
    torch.testing.assert_close(scores.q_values.q_logps_N2, torch.cat(q_logps), **close)
    torch.testing.assert_close(scores.q_values.target_q_N, torch.cat(slow), **close)
    torch.testing.assert_close(scores.value_N, torch.cat(values), **close)
    assert not scores.q_values.target_q_N.requires_grad
    tokens = to_scored_tokens(groups, scores)
    assert tokens.q_PKT2 is not None
    torch.testing.assert_close(tokens.q_PKT2[tokens.is_trained_PKT], scores.q_values.q_N2)


def test_gradients_are_those_of_the_heads_written_out():
    """d Σ (Q + log softmax Q)[a] by each head and by the model's weights, against the whole (N, V) by autograd."""
    policy, groups = learner(), ragged_groups((2,), longest=5)
    scores = policy(groups, layout="plain")
    moved = {name: p for name, p in policy.trained().items() if p.requires_grad and "value_head" not in name}
    own = torch.autograd.grad(
        scores.q_values.q_N2.sum() + scores.q_values.q_logps_N2.sum(), list(moved.values()), allow_unused=True
    )
    total = torch.zeros(())
    for response in groups[0].responses:
        whole = torch.tensor([groups[0].prompt_ids + response.ids])
        hidden_LH = policy.causal_lm.base_model(whole, use_cache=False).last_hidden_state[0]
        first, taken_N1 = len(groups[0].prompt_ids) - 1, torch.tensor(response.ids)[:, None]
        for head in policy.q_heads:
            q_NV = head(hidden_LH[first : first + len(response.ids)])
            total = total + (q_NV + q_NV.log_softmax(-1)).gather(1, taken_N1).sum()
    written_out = torch.autograd.grad(total, list(moved.values()), allow_unused=True)
    for name, one, other in zip(moved, own, written_out, strict=True):
        assert (one is None) == (other is None), name
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


def test_heads_start_apart_and_near_zero_and_the_same_for_a_seed():
    one, same, other = (ValueLearner(build_policy(), seed=seed) for seed in (3, 3, 4))
    first, second = (head.weight for head in one.q_heads)
    assert not torch.equal(first, second)
    assert float(first.detach().abs().max()) < 0.05
    assert not one.value_head.weight.any()
    for own, copy in zip(one.q_heads.parameters(), one.target_heads.parameters(), strict=True):
        assert torch.equal(own, copy)
    assert torch.equal(first, same.q_heads[0].weight)
    assert not torch.equal(first, other.q_heads[0].weight)


def test_copies_take_up_their_share_and_learn_nothing_by_themselves():
    policy = learner(polyak=0.25)
    before = [p.clone() for p in policy.target_heads.parameters()]
    policy.follow()
    for was, now, own in zip(before, policy.target_heads.parameters(), policy.q_heads.parameters(), strict=True):
        torch.testing.assert_close(now, 0.75 * was + 0.25 * own)
    assert not any(p.requires_grad for p in policy.target_heads.parameters())
    assert {f"critic/target_heads.{place}.weight" for place in (0, 1)} <= policy.trained().keys()  # but are kept


def test_heads_are_saved_beside_the_model_and_come_back(tmp_path: Path):
    start = load_policy(save_model(tmp_path / "start"))
    policy = ValueLearner(start, seed=7)
    with torch.no_grad():
        policy.value_head.bias.fill_(0.3)
    policy.save(tmp_path / "model")
    again = load_value_learner(tmp_path / "model")
    assert again.trained().keys() == policy.trained().keys()
    for name, parameter in policy.trained().items():
        assert torch.equal(parameter, again.trained()[name]), name
    with pytest.raises(PolicyError, match=f"without {HEADS_FILE}"):
        load_value_learner(tmp_path / "start")


def test_a_model_that_makes_its_logits_itself_is_refused():
    with pytest.raises(PolicyError, match="linear vocabulary head"):
        ValueLearner(build_policy("cohere"))(ragged_groups((2,), longest=5))
