"""Length, repetition and abstention: published numbers, groups of one length, and what is not known."""

from __future__ import annotations

import math

import pytest

from accord.errors import ConfigError
from accord.feedback.composition.shaping import (
    Abstention,
    CosineLength,
    KimiLength,
    LengthReward,
    OverlongReward,
    RepetitionReward,
    cosine_length_reward,
    kimi_length_rewards,
    overlong_penalty,
    repetition_penalty,
    response_units,
)
from accord.feedback.findings import Finding
from accord.records import Group, Message, Response


def of_tokens(*counts: int) -> Group:
    return Group(prompt="p", responses=tuple(Response(token_ids=(7,) * count, content="x") for count in counts))


def of_words(*texts: str) -> Group:
    return Group(prompt="p", responses=tuple(Response(content=text) for text in texts))


def scores(found: list[list[Finding]]) -> list[float | None]:
    return [finding.score for row in found for finding in row]


def test_overlong_shaping_of_dapo():
    """L_max = 100, L_c = 20: 80, 81, 90, 100, 101 tokens."""
    expected = [0.0, -0.05, -0.5, -1.0, -1.0]
    assert [overlong_penalty(n, max_length=100, buffer=20) for n in (80, 81, 90, 100, 101)] == pytest.approx(expected)
    reward = OverlongReward(max_length=100, buffer=20)
    assert scores(reward([of_tokens(80, 81, 90, 100, 101)])) == pytest.approx(expected)


def test_kimi_length_rewards():
    lengths = [100, 200, 400]
    assert kimi_length_rewards(lengths, [True] * 3) == pytest.approx([0.5, 0.5 - 100 / 300, -0.5])
    assert kimi_length_rewards(lengths, [False] * 3) == pytest.approx([0.0, 0.0, -0.5])
    assert kimi_length_rewards([5, 5], [True, False]) == [0.0, 0.0]


def test_the_cosine_of_half_the_length():
    half = {"max_length": 100, "right": (1.0, 0.5), "wrong": (-1.0, -0.5)}
    assert cosine_length_reward(50, is_right=True, **half) == pytest.approx(0.75)
    assert cosine_length_reward(50, is_right=False, **half) == pytest.approx(-0.75)
    assert cosine_length_reward(0, is_right=True, **half) == 1.0
    assert cosine_length_reward(500, is_right=True, **half) == pytest.approx(0.5)  # clamped beyond L
    assert cosine_length_reward(0, is_right=False, **half) == -1.0


def test_repeated_ngrams():
    assert repetition_penalty(["a", "b", "a", "b", "a", "b"], ngram=2) == pytest.approx(2 / 5 - 1)  # ab ba ab ba ab
    assert repetition_penalty(["a", "b", "c"], ngram=2) == 0.0
    assert repetition_penalty(["a"], ngram=2) == 0.0
    assert scores(RepetitionReward(ngram=1)([of_words("a a a a", "a b")])) == [pytest.approx(-0.75), 0.0]


def test_lengths_in_tokens_words_and_characters():
    response = Response(content="two words", token_ids=(1, 2, 3))
    assert len(response_units(response, "tokens")) == 3
    assert len(response_units(response, "words")) == 2
    assert len(response_units(response, "characters")) == 9
    turns = Response(content=(Message(role="assistant", content="a b"), Message(role="assistant", content="c")))
    assert len(response_units(turns, "words")) == 3
    assert len(response_units(Response(content="a b"), "tokens", lambda text, **_: {"input_ids": text.split()})) == 2


def test_a_length_that_is_not_known_is_no_length():
    found = LengthReward()([of_words("no tokenizer")])[0][0]
    assert found.score is None
    assert "tokens" in found.reason
    assert scores(LengthReward(unit="words")([of_words("a b c", "d")])) == [-3.0, -1.0]


@pytest.mark.parametrize("reward", [LengthReward(), KimiLength()])
def test_a_group_of_one_length_moves_no_advantage(reward):
    group, right = of_tokens(5, 5, 5), [[Finding(score=1.0), Finding(score=0.0), Finding(score=1.0)]]
    found = scores(reward([group], right) if isinstance(reward, KimiLength) else reward([group]))
    assert len(set(found)) == 1


def test_shapings_of_what_is_unknown_are_unknown():
    group = of_tokens(100, 200, 400)
    given = [[Finding(score=1.0), Finding(score=None, reason="late"), Finding(score=0.0)]]
    kimi = KimiLength()([group], given)[0]
    assert [finding.score for finding in kimi] == [0.5, None, -0.5]  # the shortest and longest of the known two
    assert kimi[1].reason == "late"
    cosine = CosineLength(max_length=200)([group], given)[0]
    assert [finding.score for finding in cosine] == [pytest.approx(0.75), None, pytest.approx(-0.5)]


def test_abstaining_is_worth_more_than_being_wrong():
    group = of_words("It is 4.", "I don't know.", "It is 5.", "I am not sure, maybe 4.", "It is 6.")
    given = [[Finding(score=s) for s in (1.0, 0.0, 0.0, 1.0)] + [Finding(score=None, reason="timeout")]]
    found = Abstention()([group], given)[0]
    assert [finding.score for finding in found] == [1.0, 0.0, -1.0, 0.0, None]  # a hedged answer abstains, right or not
    assert found[4].reason == "timeout"


def test_answering_pays_from_c_over_1_plus_c():
    for cost in (0.5, 1.0, 3.0):
        assert Abstention(wrong=-cost).answers_from == pytest.approx(cost / (1 + cost))
    p, reward = 0.75, Abstention(wrong=-3.0)
    assert p * reward.right + (1 - p) * reward.wrong == pytest.approx(reward.abstain)  # indifferent exactly there


@pytest.mark.parametrize("values", [{"abstain": 1.0}, {"wrong": 0.0}])
def test_abstention_that_cannot_work_is_refused(values):
    with pytest.raises(ConfigError):
        Abstention(**values)


def test_a_buffer_longer_than_the_limit_is_refused():
    with pytest.raises(ConfigError, match="0 < buffer"):
        OverlongReward(max_length=10, buffer=11)
    assert math.isclose(overlong_penalty(10, max_length=10, buffer=10), -1.0)
