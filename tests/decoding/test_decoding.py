"""Search and realignment while decoding, on models small enough to enumerate every sequence."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
import transformers as hf
from models import build_model, build_policy, build_tokenizer

from accord.data.tokens import TokenGroup, TokenResponse
from accord.decoding.answering import Way, answer
from accord.decoding.beam import beam_search, search_answers
from accord.decoding.cached import CachedRows, decoding
from accord.decoding.guided import guided_answers
from accord.decoding.realigned import mixed_logps, sample_realigned
from accord.errors import ConfigError, FeedbackError, PolicyError
from accord.feedback.findings import Finding
from accord.policy.load import silence_dropout
from accord.policy.policy import Policy
from accord.policy.sampling import SamplingSettings, sample_responses
from accord.records import FinishReason, Group, Rating, Response

VOCABULARY = 5  # <pad>, <eos>, w2, w3, w4
PROMPT = (2, 3)


def small(seed: int, name: str = "llama") -> Policy:
    """A policy of five tokens, so that all sequences of a few tokens can be listed."""
    model = build_model(name, seed=seed, vocab_size=VOCABULARY)
    silence_dropout(model)
    return Policy(model, build_tokenizer(VOCABULARY))


def prompt_group(**extra) -> Group:
    return Group(prompt="w2 w3", responses=(Response(token_ids=()),), extra={"is_prompt_only": True, **extra})


def all_sequences(depth: int) -> list[tuple[int, ...]]:
    """Every response of at most `depth` tokens: ended by <eos>, or of full length."""
    found = []
    for length in range(1, depth + 1):
        for ids in product(range(VOCABULARY), repeat=length):
            if 1 not in ids[:-1] and (ids[-1] == 1 or length == depth):
                found.append(ids)
    return found


@torch.no_grad()
def log_probs(policy: Policy, sequences) -> np.ndarray:
    group = TokenGroup(prompt_ids=PROMPT, responses=tuple(TokenResponse(ids=ids) for ids in sequences))
    return policy(([group]), layout="plain").logps_PK[0].numpy()


# Rows with a cache ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "mistral_window"])
def test_rows_that_branch_and_end_keep_their_own_past(name: str):
    policy = build_policy(name)
    prompt = tuple(range(2, 14))
    with decoding(policy):
        rows = CachedRows(policy, prompt)
        rows.step(torch.tensor([0, 0, 0]), torch.tensor([10, 11, 12]))  # three branches
        rows.step(torch.tensor([2, 1, 2]), torch.tensor([13, 14, 15]))  # the last twice, the first not at all
        logps_BV = rows.step(torch.tensor([2, 1]), torch.tensor([16, 17]))
        for row, sequence in enumerate([(*prompt, 12, 15, 16), (*prompt, 11, 14, 17)]):
            own = policy.causal_lm(torch.tensor([sequence]), use_cache=False).logits[0, -1].log_softmax(-1)
            torch.testing.assert_close(logps_BV[row], own.to(logps_BV.dtype), rtol=0, atol=1e-5)


def test_a_model_without_such_a_cache_is_refused():
    with decoding(policy := build_policy("mamba")), pytest.raises(PolicyError, match="attention cache"):
        CachedRows(policy, PROMPT)


def test_models_come_back_as_they_were():
    policy = small(0).train()
    with decoding(policy, small(1)):
        assert not policy.training
    assert policy.training


# Beam search ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["implicit_reward", "log_prob"])
def test_a_wide_beam_finds_what_enumeration_finds(by):
    policy, reference, depth = small(0), small(1), 3
    sequences = all_sequences(depth)
    ours, theirs = log_probs(policy, sequences), log_probs(reference, sequences)
    value = ours - theirs if by == "implicit_reward" else ours
    best = np.argsort(-value)[:4]
    found = beam_search(
        policy, reference, PROMPT, width=len(sequences), expand=VOCABULARY, max_tokens=depth, by=by, ends=(1,)
    )
    assert len(found) == len(sequences)
    assert [beam.ids for beam in found[:4]] == [sequences[place] for place in best]
    assert [beam.logp for beam in found[:4]] == pytest.approx(ours[best].tolist(), abs=1e-5)
    assert [beam.log_ratio for beam in found[:4]] == pytest.approx((ours - theirs)[best].tolist(), abs=1e-5)


def test_a_beam_of_one_is_greedy():
    policy = small(0)
    (found,) = beam_search(policy, small(1), PROMPT, width=1, max_tokens=6, by="log_prob", ends=(1,))
    settings = SamplingSettings(temperature=0, max_tokens=6)
    ((greedy,),) = sample_responses(policy, [PROMPT], settings)
    assert found.ids == greedy.token_ids


def test_tokens_the_policy_finds_unlikely_are_not_proposed():
    policy, reference = small(0), small(1)
    with decoding(policy):
        likeliest = CachedRows(policy, PROMPT).logps_BV[0].topk(2).indices.tolist()
    found = beam_search(policy, reference, PROMPT, width=8, expand=2, max_tokens=2, ends=(1,))
    assert {beam.ids[0] for beam in found} <= set(likeliest)


def test_searched_answers_are_groups():
    policy, reference = small(0), small(1)
    (found,) = search_answers(policy, reference, [prompt_group(answer="4")], num_responses=2, width=3, max_tokens=4)
    assert len(found.responses) == 2
    assert found.extra == {"answer": "4"}
    for response in found.responses:
        assert (response.finish_reason is FinishReason.STOP) == (response.token_ids[-1] == 1)
    with pytest.raises(ConfigError, match="at most as many"):
        search_answers(policy, reference, [prompt_group()], num_responses=4, width=3)


# Realignment ----------------------------------------------------------------------------------------------------------


def test_the_mixture_of_tilted_policies_is_the_policy_of_another_strength():
    """π ∝ π_ref e^{r/β}: then π_ref^{1−λ} π^λ ∝ π_ref e^{λ r/β}, for λ beyond 1 too."""
    reference, reward, beta = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).double().log(), torch.arange(4.0).double(), 1.0
    policy = (reference + reward / beta).log_softmax(-1)
    for strength in (0.0, 0.3, 1.0, 2.5):
        expected = (reference + strength * reward / beta).log_softmax(-1)
        torch.testing.assert_close(mixed_logps(reference, policy, strength), expected)
    golden = mixed_logps(reference, policy, 1.5).exp()[0].tolist()  # tilt 1.5 r
    assert golden == pytest.approx([0.027094, 0.091071, 0.272100, 0.609735], abs=1e-6)


def test_what_a_model_rules_out_stays_out():
    zero = torch.tensor([[0.5, 0.5, 0.0]]).log()
    full = torch.tensor([[0.2, 0.3, 0.5]]).log()
    for one, other in ((zero, full), (full, zero)):
        mixed = mixed_logps(one, other, 2.0)
        assert mixed[0, 2] == -math.inf
        assert mixed.exp().sum().item() == pytest.approx(1.0)


def test_strength_0_and_1_draw_what_each_model_draws():
    policy, reference = small(0), small(1)
    settings = SamplingSettings(num_responses=4, max_tokens=6, seed=3)
    for strength, model in ((0.0, reference), (1.0, policy)):
        mixed = sample_realigned(policy, reference, [PROMPT, (4,)], settings, strength=strength)
        plain = sample_responses(model, [PROMPT, (4,)], settings)
        assert [[r.token_ids for r in row] for row in mixed] == [[r.token_ids for r in row] for row in plain]
        for one, other in zip(mixed[0], plain[0], strict=True):
            assert one.behaviour_logps == pytest.approx(other.behaviour_logps, abs=1e-5)


def test_draws_follow_the_mixture_token_by_token():
    policy, reference, strength = small(0), small(1), 1.7
    settings = SamplingSettings(num_responses=3, max_tokens=4, temperature=0.8, seed=1)
    (row,) = sample_realigned(policy, reference, [PROMPT], settings, strength=strength)
    for response in row:
        for place, token in enumerate(response.token_ids):
            ids = torch.tensor([[*PROMPT, *response.token_ids[:place]]])
            ours, theirs = (model.causal_lm(ids).logits[0, -1].log_softmax(-1) for model in (policy, reference))
            law = (((1 - strength) * theirs + strength * ours) / 0.8).log_softmax(-1)
            assert response.behaviour_logps[place] == pytest.approx(law[token].item(), abs=1e-4)


def test_first_tokens_come_as_often_as_the_mixture_says():
    policy, reference = small(0), small(1)
    settings = SamplingSettings(num_responses=4000, max_tokens=1)
    (row,) = sample_realigned(policy, reference, [PROMPT], settings, strength=0.5)
    ids = torch.tensor([PROMPT])
    ours, theirs = (model.causal_lm(ids).logits[0, -1].log_softmax(-1) for model in (policy, reference))
    law = ((ours + theirs) / 2).softmax(-1)
    drawn = torch.bincount(torch.tensor([r.token_ids[0] for r in row]), minlength=VOCABULARY) / len(row)
    torch.testing.assert_close(drawn.double(), law.double(), rtol=0, atol=4 * math.sqrt(0.25 / len(row)))


def test_settings_that_a_mixture_does_not_know_are_refused():
    policy, reference = small(0), small(1)
    for settings, strength in (
        (SamplingSettings(), -1.0), (SamplingSettings(), math.nan), (SamplingSettings(stop=("x",)), 0.5),
    ):  # fmt: skip
        with pytest.raises(ConfigError):
            sample_realigned(policy, reference, [PROMPT], settings, strength=strength)
    with pytest.raises(PolicyError, match="not the same"):
        sample_realigned(policy, build_policy(), [PROMPT], SamplingSettings(), strength=0.5)


# Guided by a reward ---------------------------------------------------------------------------------------------------


class Likes:
    """Counts one token id in a response."""

    name = "reward"

    def __init__(self, token: int) -> None:
        self.token, self.seen = token, []

    def __call__(self, groups):
        self.seen += [len(group.responses) for group in groups]
        return [[Finding(score=float(r.token_ids.count(self.token))) for r in group.responses] for group in groups]


class Never:
    """Knows no score."""

    name = "reward"

    def __call__(self, groups):
        return [[Finding(score=None, reason="down") for _ in group.responses] for group in groups]


def test_one_block_of_all_tokens_is_best_of_n():
    policy, reward = small(0), Likes(3)
    settings = SamplingSettings(max_tokens=5, seed=2)
    (guided,) = guided_answers(policy, [prompt_group()], reward, settings, num_candidates=6, block_tokens=5)
    ((best,), _) = answer(policy, [prompt_group()], settings, Way(best_of=6), reward=reward)
    assert guided.responses[0].token_ids == best.responses[0].token_ids
    assert guided.responses[0].behaviour_logps == best.responses[0].behaviour_logps


def test_blocks_of_one_token_with_many_candidates_follow_the_reward():
    (found,) = guided_answers(
        small(0), [prompt_group()], Likes(3), SamplingSettings(max_tokens=4), num_candidates=200, block_tokens=1
    )
    assert found.responses[0].token_ids == (3, 3, 3, 3)  # every token has some chance, so one of 200 is it


def test_without_a_known_score_the_first_goes_on():
    settings = SamplingSettings(max_tokens=4, seed=5)
    (found,) = guided_answers(small(0), [prompt_group()], Never(), settings, num_candidates=3, block_tokens=4)
    ((first, *_),) = sample_responses(small(0), [PROMPT], SamplingSettings(max_tokens=4, seed=5, num_responses=3))
    assert found.responses[0].token_ids == first.token_ids


# All ways together ----------------------------------------------------------------------------------------------------


def test_best_of_n_keeps_the_best_k_with_ratings_and_columns():
    policy, reward = small(0), Likes(3)
    settings = SamplingSettings(num_responses=2, max_tokens=5)
    (found,), notes = answer(policy, [prompt_group(answer="4")], settings, Way(best_of=8), reward=reward, judge="me")
    assert reward.seen == [8]
    values = [j.value for j in found.judgements if isinstance(j, Rating)]
    assert values == sorted(values, reverse=True)
    assert len(found.responses) == 2
    assert found.extra == {"answer": "4"}
    assert f"{math.log(8) - 7 / 8:.3f}" in notes[0]


def test_a_reward_alone_rates_and_rejection_leaves_out():
    policy = small(0)
    settings = SamplingSettings(num_responses=4, max_tokens=5)
    (rated,), notes = answer(policy, [prompt_group()], settings, Way(), reward=Likes(3))
    assert (len(rated.responses), len(rated.judgements), notes) == (4, 4, [])
    none, notes = answer(policy, [prompt_group()], settings, Way(threshold=99.0), reward=Likes(3))
    assert none == []
    assert "1 prompts are left without a response" in notes[1]
    (mixed,), _ = answer(
        policy, [prompt_group()], settings, Way(strength=0.5, best_of=4), reward=Likes(3), reference=small(1)
    )
    assert len(mixed.responses) == 4


@pytest.mark.parametrize(
    ("way", "given"),
    [
        ({"best_of": 2}, {}),
        ({"beam": 2}, {}),
        ({}, {"reference": True}),
        ({"best_of": 1}, {"reward": Likes(3)}),
        ({"best_of": 2, "threshold": 0.1}, {"reward": Likes(3)}),
        ({"beam": 2, "strength": 0.5}, {"reference": True}),
        ({"best_of": 0}, {"reward": Likes(3)}),
    ],
)
def test_ways_that_do_not_fit_are_refused(way, given):
    if given.get("reference"):
        given = {"reference": small(1)}
    with pytest.raises(ConfigError):
        answer(small(0), [prompt_group()], SamplingSettings(num_responses=2), Way(**way), **given)


def test_a_reward_that_knows_nothing_is_an_error_and_no_choice():
    with pytest.raises(FeedbackError, match="down"):
        answer(small(0), [prompt_group()], SamplingSettings(max_tokens=2), Way(best_of=2), reward=Never())


def test_the_window_of_the_model_ends_a_search():
    model = build_model("llama", vocab_size=VOCABULARY, max_position_embeddings=6)
    policy = Policy(model, build_tokenizer(VOCABULARY))
    assert isinstance(model.config, hf.LlamaConfig)
    found = beam_search(policy, policy, PROMPT, width=3, max_tokens=50, ends=(1,))
    assert max(len(beam.ids) for beam in found) <= 4
    (answered,) = guided_answers(
        policy, [prompt_group()], Likes(3), SamplingSettings(max_tokens=50), num_candidates=50, block_tokens=3
    )
    assert len(answered.responses[0].token_ids) <= 4
