"""Values before each token: of a head on the policy or of a model of its own, whatever stands beside them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from models import build_model, build_policy, ragged_groups, save_model
from safetensors.torch import load_file

from accord.data.tokens import TokenGroup, TokenResponse
from accord.errors import PolicyError
from accord.policy.critic import ActorCritic
from accord.policy.policy import Policy
from accord.policy.reward import RewardModel, load_reward

VARIANTS = ["head", "own model"]


def reward_model(folder: Path, *, seed: int = 1) -> RewardModel:
    """A reward model whose head is not zero any more."""
    model = load_reward(save_model(folder, seed=seed), kind="response").double()
    with torch.no_grad():
        torch.nn.init.normal_(model._head[0].weight, generator=torch.Generator().manual_seed(seed))
    return model


def actor_critic(variant: str, folder: Path) -> ActorCritic:
    if variant == "own model":
        return ActorCritic(build_policy(), critic=reward_model(folder))
    found = ActorCritic(build_policy())
    assert found.value_head is not None
    with torch.no_grad():
        torch.nn.init.normal_(found.value_head.weight, generator=torch.Generator().manual_seed(2))
        found.value_head.bias.fill_(0.3)
    return found


def values(policy: Policy, groups: list[TokenGroup], **options: Any) -> torch.Tensor:
    found = policy(groups, **options).value_N
    assert found is not None
    return found


@pytest.mark.parametrize("variant", VARIANTS)
def test_values_depend_neither_on_the_batch_nor_on_the_layout(variant: str, tmp_path: Path):
    policy, groups = actor_critic(variant, tmp_path), ragged_groups((2, 4, 1), longest=9)
    together_N = values(policy, groups)
    assert len(together_N) == sum(len(response.ids) for group in groups for response in group.responses)
    assert together_N.std() > 0.1
    close: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(together_N, torch.cat([values(policy, [group]) for group in groups]), **close)
    single = [replace(group, responses=(response,)) for group in groups for response in group.responses]
    torch.testing.assert_close(together_N, torch.cat([values(policy, [group]) for group in single]), **close)
    assert policy.layout == "tree"
    policy.fall_back_to_plain("to compare")
    if policy.critic is not None:
        policy.critic.fall_back_to_plain("to compare")
    torch.testing.assert_close(together_N, values(policy, groups), **close)


def test_a_head_reads_the_state_before_each_token_at_any_temperature(tmp_path: Path):
    """V(x, y_<t) = w · h_{t−1} + b of the model's own last hidden states: the token itself is not seen."""
    policy, groups = actor_critic("head", tmp_path), ragged_groups((3,), longest=7)
    model, head = build_model(), policy.value_head
    assert head is not None
    expected = []
    for response in groups[0].responses:
        whole = torch.tensor([groups[0].prompt_ids + response.ids])
        hidden_LH = model.get_decoder()(whole, use_cache=False).last_hidden_state[0]
        first = len(groups[0].prompt_ids) - 1
        expected.append(head(hidden_LH[first : first + len(response.ids)]).squeeze(-1))
    for temperature in (1.0, 0.5):
        policy.temperature = temperature
        torch.testing.assert_close(values(policy, groups), torch.cat(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_value_sees_its_own_token_or_a_later_one(variant: str, tmp_path: Path):
    policy = actor_critic(variant, tmp_path)
    one, other = ([TokenGroup(prompt_ids=(5, 6), responses=(TokenResponse(ids=(7, 8, last, 11)),))] for last in (9, 10))
    first, second = values(policy, one), values(policy, other)
    torch.testing.assert_close(first[:3], second[:3], rtol=0, atol=1e-6)
    assert abs(first[3] - second[3]) > 1e-4


def test_both_start_at_zero_where_nothing_was_trained(tmp_path: Path):
    groups = ragged_groups((2, 3), longest=9)
    fresh = load_reward(save_model(tmp_path), kind="response")
    for policy in (ActorCritic(build_policy()), ActorCritic(build_policy(), critic=fresh)):
        assert values(policy, groups).tolist() == [0.0] * len(values(policy, groups))


def test_a_critic_made_of_a_reward_model_says_what_it_scores(tmp_path: Path):
    """Before a token that follows the response it has read all of it: there V is the reward model's score."""
    judge, groups = reward_model(tmp_path), ragged_groups((2, 3), longest=9)
    critic = ActorCritic(build_policy(), critic=judge)
    longer = [
        replace(
            group, responses=tuple(TokenResponse(ids=(*response.ids, 3)) for response in group.responses)
        )
        for group in groups
    ]  # fmt: skip
    found_N, last, at_the_end = values(critic, longer), -1, []
    for group in longer:
        for response in group.responses:
            last += len(response.ids)
            at_the_end.append(found_N[last])
    scores = judge.score(groups)
    assert scores.score_PK is not None
    torch.testing.assert_close(torch.stack(at_the_end), scores.score_PK[scores.is_valid_PK], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_only_a_head_moves_the_policys_weights(variant: str, tmp_path: Path):
    policy, groups = actor_critic(variant, tmp_path), ragged_groups((2,), longest=9)
    values(policy, groups).sum().backward()
    of_policy = [p.grad for p in policy.model.parameters()]
    moved = [grad for grad in of_policy if grad is not None and bool(grad.any())]
    assert bool(moved) is (variant == "head")
    beside = policy.value_head if policy.critic is None else policy.critic
    assert beside is not None
    assert all(p.grad is not None and bool(p.grad.any()) for p in beside.parameters())


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_trained_names_the_critic_apart_and_everything_once(variant: str, tmp_path: Path):
    policy = actor_critic(variant, tmp_path)
    trained = policy.trained()
    assert {id(p) for p in trained.values()} == {id(p) for p in policy.parameters() if p.requires_grad}
    assert len(trained) == len({id(p) for p in trained.values()})
    of_policy = {name for name in trained if not name.startswith("critic/")}
    assert of_policy == set(build_policy().trained())


def test_a_model_that_makes_its_logits_itself_has_no_place_for_a_head():
    with pytest.raises(PolicyError, match=r"a value head cannot read its states — .*critic.path=policy"):
        ActorCritic(build_policy("cohere"))(ragged_groups((2,), longest=5))


def test_both_are_written_beside_the_policy(tmp_path: Path):
    groups = ragged_groups((2, 3), longest=9)
    head = actor_critic("head", tmp_path / "a")
    head.save(tmp_path / "with_head")
    assert head.value_head is not None
    kept = load_file(tmp_path / "with_head" / "value_head.safetensors")
    assert torch.equal(kept["weight"], head.value_head.weight)
    assert torch.equal(kept["bias"], head.value_head.bias)
    own = actor_critic("own model", tmp_path / "b")
    own.save(tmp_path / "with_model")
    again = ActorCritic(build_policy(), critic=load_reward(tmp_path / "with_model" / "critic").double())
    torch.testing.assert_close(values(again, groups), values(own, groups), rtol=1e-5, atol=1e-5)
