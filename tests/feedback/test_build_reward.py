"""From settings to a reward: what can be said, and that what cannot is refused by name."""

from __future__ import annotations

import pytest

from accord.errors import ConfigError
from accord.feedback.composition import REWARDS, build_reward, check_reward, reward_names, reward_settings
from accord.feedback.judges import PointwiseJudge
from accord.feedback.verifiers import VERIFIERS
from accord.records import Group, Response

GROUP = Group(
    prompt="how many?",
    responses=(Response(content="so it is 4"), Response(content="I don't know"), Response(content="so it is 5")),
    extra={"answer": "#### 4"},
)


def test_a_verifier_alone():
    reward = build_reward({"gsm8k": None})
    found = reward([GROUP])[0]
    assert [finding.score for finding in found] == [1.0, 0.0, 0.0]
    assert found[0].parts == {"gsm8k": 1.0}
    assert reward.name == "reward"


def test_accuracy_and_format_as_r1_adds_them():
    """R = R_acc + R_format, each 0 or 1."""
    texts = ("<think>2 + 2</think>4", "4", "<think>x</think>5")
    group = Group(prompt="p", responses=tuple(Response(content=text) for text in texts), extra={"answer": "4"})
    assert [f.score for f in build_reward({"gsm8k": {}, "think_format": {}})([group])[0]] == [2.0, 1.0, 1.0]
    gated = build_reward({"gsm8k": {}, "think_format": {"gate": True}})
    assert [f.score for f in gated([group])[0]] == [1.0, 0.0, 0.0]
    staged = build_reward({"think_format": {}, "gsm8k": {}, "combine": "lexicographic"})
    assert [f.score for f in staged([group])[0]] == [2.0, 0.0, 1.0]


def test_a_shaping_reads_the_only_other_part_and_takes_its_place():
    reward = build_reward({"gsm8k": {}, "abstention": {"wrong": -2.0}})
    assert [(part.name, part.weight) for part in reward.parts] == [("gsm8k", 0.0), ("abstention", 1.0)]
    found = reward([GROUP])[0]
    assert [finding.score for finding in found] == [1.0, 0.0, -2.0]
    assert found[2].parts == {"gsm8k": 0.0, "abstention": -2.0}


def test_a_length_reward_is_added_to_what_it_reads():
    reward = build_reward({"gsm8k": {"weight": 2.0}, "kimi_length": {"unit": "words"}})
    # words 4, 3, 4: λ = −½, ½, −½, and min(0, λ) for the wrong ones
    assert [finding.score for finding in reward([GROUP])[0]] == [2.0 - 0.5, 0.0, -0.5]


def test_names_of_ones_own():
    reward = build_reward(
        {
            "short": {"kind": "length_penalty", "unit": "words", "weight": 0.1},
            "shorter": {"kind": "length_penalty", "unit": "characters", "weight": 0},
        }
    )
    found = reward([GROUP])[0][0]
    assert found.score == pytest.approx(-0.4)
    assert found.parts == {"short": -4.0, "shorter": -10.0}


def test_settings_come_as_yaml_has_them():
    reward = build_reward({"gsm8k": {}, "cosine_length": {"max_length": 8, "right": [1, 0.5], "unit": "words"}})
    assert reward([GROUP])[0][0].score == pytest.approx(0.75)  # half the length


def test_an_llm_judge_is_a_part_like_others():
    reward = build_reward({"judge": {"url": "http://localhost:1/v1", "model": "m", "rubric": "be brief"}})
    (part,) = reward.parts
    assert isinstance(part.source, PointwiseJudge)
    assert part.source.rubric == "be brief"
    part.source.chat.endpoint.close()


def test_every_verifier_and_reward_can_be_named():
    assert set(reward_names()) == {*REWARDS, *VERIFIERS}
    for name in reward_names():
        assert isinstance(reward_settings(name), dict)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "got no reward"),
        ({"gsm8": {}}, "did you mean gsm8k"),
        ({"mine": {"kind": "gsm8"}}, "mine of kind gsm8 — did you mean gsm8k"),
        ({"gsm8k": {"wieght": 1}}, "did you mean reward.gsm8k.weight"),
        ({"gsm8k": 3}, "expected settings"),
        ({"gsm8k": {"weight": "much"}}, "reward.gsm8k.weight"),
        ({"gsm8k": {}, "combine": "add"}, "reward.combine"),
        ({"overlong": {}}, "needs reward.overlong.max_length"),
        ({"kimi_length": {}}, "reward.kimi_length.of"),
        ({"gsm8k": {}, "math": {}, "kimi_length": {}}, "reward.kimi_length.of"),
        ({"gsm8k": {"of": "math"}}, "reads no other part"),
        ({"gsm8k": {}, "kimi_length": {"of": "maths"}}, "which are: gsm8k"),
        ({"gsm8k": {"passes_at": 0.5}}, "reward.gsm8k.passes_at"),
        ({"gsm8k": {}, "closed": -1}, "reward.closed"),
        ({"gsm8k": {}, "quantile": 0.5}, "reward.quantile"),
        ({"gsm8k": {"reference_score": 0.5}}, "reference_score"),
        ({"gsm8k": {"gate": True}}, "without a weight"),
        ({"gsm8k": {}, "infalign": {"references": "absent.jsonl"}}, "absent.jsonl"),
    ],
)
def test_what_is_wrong_is_named(settings, said):
    from accord.errors import AccordError

    with pytest.raises(AccordError, match=said):
        build_reward(settings)


def test_settings_are_checked_before_anything_is_loaded():
    check_reward({"model": {"path": "a-model-that-is-not-there"}, "combine": "min"})
    with pytest.raises(ConfigError, match=r"reward\.closed"):
        build_reward({"model": {"path": "a-model-that-is-not-there"}, "closed": 1})


def test_a_wrong_setting_is_a_config_error():
    with pytest.raises(ConfigError):
        build_reward({"repetition_penalty": {"ngram": "four"}})
