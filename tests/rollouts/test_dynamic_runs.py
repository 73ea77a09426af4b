"""Runs whose reward has weights that move, or reads critiques: stopped, and what they learn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from feedback.test_reward_models import save_reward
from models import save_model
from rollouts.test_dynamic_rewards import RULES, moving
from rollouts.test_methods import ONLINE, PROMPTS
from rollouts.test_trust import BLOCKS, stop_at
from toy_runs import BASE, assert_same_bits, checkpoint_of, metrics_of, run

from accord.data import load_groups
from accord.errors import ConfigError
from accord.feedback.composition import Composition, Part, build_reward
from accord.feedback.composition.moving import make_dynamic
from accord.feedback.composition.shaping import LengthReward
from accord.lab.gold import GoldReward
from accord.records import Group, Rating, Response

TWO_PARTS: dict[str, Any] = {"reward.length_penalty.weight": 0.1, "reward.repetition_penalty.ngram": 2}


@pytest.mark.parametrize("rule", RULES)
def test_a_stop_inside_a_rollout_changes_nothing(rule: str, tmp_path: Path):
    settings = BLOCKS | TWO_PARTS | RULES[rule]
    whole = run(PROMPTS, tmp_path / "whole", **settings)
    first = run(PROMPTS, tmp_path / "parts", progress=stop_at(6), **settings)
    assert first.was_stopped
    second = run(PROMPTS, tmp_path / "parts", resume=True, **settings)
    assert_same_bits(metrics_of(whole), metrics_of(second))
    assert_same_bits(checkpoint_of(tmp_path / "whole", 12), checkpoint_of(tmp_path / "parts", 12))
    _follow_the_rule(rule, tmp_path / "whole")


def _follow_the_rule(rule: str, out: Path) -> None:
    """Compute every reward of the run again, from its recorded parts and reported weights."""
    lines = [line for line in metrics_of(out) if "rollout/reward" in line]
    reward, moved = moving(rule, length_penalty=0.1, repetition_penalty=1.0), []
    for number, path in enumerate(sorted((out / "rollouts").glob("*.parquet"))):
        groups = load_groups(path).groups
        said = {key.removeprefix("rollout/"): value for key, value in lines[number].items()}
        if rule == "gradients":
            shares = [said[f"weight/{part.name}"] for part in reward.parts]
            assert sum(shares) == pytest.approx(1.0)
            parts = [_ratings(groups, part.name) for part in reward.parts]
            totals = [1.1 * sum(w * s for w, s in zip(shares, of, strict=True)) for of in zip(*parts, strict=True)]
            moved.append(shares)
        else:
            found = reward.weigh(groups, lambda parts, layers: [])
            assert found.numbers == pytest.approx({key: said[key] for key in found.numbers})
            totals = [score for row in found.scores for score in row]
            moved.append(list(found.numbers.values()))
        assert _ratings(groups, "overall") == pytest.approx(totals)
    assert len(moved) == 3
    assert moved[-1] != pytest.approx(moved[0], abs=1e-6)


def _ratings(groups: Sequence[Group], attribute: str) -> list[float]:
    return [j.value for g in groups for j in g.judgements if isinstance(j, Rating) and j.attribute == attribute]


def test_maxmin_serves_the_group_that_a_mixture_leaves_behind(tmp_path: Path):
    """One group wants good answers, the other short ones, and good ones are longer: 95/5 lengthens them."""
    gold, short = (
        Part(name="gold", source=GoldReward(), weight=0.95),
        Part(name="short", source=LengthReward(unit="words"), weight=0.05),
    )
    mixture = Composition(parts=(gold, short))
    settings = ONLINE | {"method": "dr_grpo", "train.max_steps": 12, "rollout.num_responses": 6}
    served: dict[str, list[float]] = {}
    for name, reward in (("fixed", mixture), ("maxmin", make_dynamic(mixture, "maxmin", step=2.0, layers="middle"))):
        lines = metrics_of(run(PROMPTS, tmp_path / name, reward=reward, **settings))
        served[name] = [line["rollout/reward/short"] for line in lines if "rollout/reward/short" in line]
    start = served["fixed"][0]
    assert served["maxmin"][0] == start
    assert sum(served["fixed"][-3:]) / 3 < start < sum(served["maxmin"][-3:]) / 3


@pytest.mark.parametrize(
    ("dynamic", "method", "said"),
    [
        ("hypervolume", "grpo", "advantage.name=grpo nothing comes of that"),
        ("hypervolume", "reinforce_pp", "advantage.name=reinforce_pp nothing comes of that"),
        ("hypervolume", "ppo", "advantage.name=gae nothing comes of that"),
        ("hypervolume", "online_dpo", "with dpo nothing comes of that"),
        ("gradients", "ppo", "advantage.name=gae has no critic for"),
        ("gradients", "online_dpo", "dpo does not have"),
    ],
)
def test_methods_that_a_rule_does_nothing_for(dynamic: str, method: str, said: str, tmp_path: Path):
    settings: dict[str, Any] = BLOCKS | TWO_PARTS | {"method": method, "reward.dynamic": dynamic}
    with pytest.raises(ConfigError, match=said):
        run(PROMPTS[:2], tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


# -- critiques ---------------------------------------------------------------------------------------------------------


def test_a_reward_that_reads_critiques_is_built_from_settings(tmp_path: Path):
    critic, scorer = save_model(tmp_path / "critic"), save_reward(tmp_path / "scorer", seed=2)
    settings = {"critic": str(critic), "scorer": scorer, "max_tokens": 200, "temperature": 2.0}
    reward, alone = build_reward({"critique": settings}), build_reward({"model": {"path": scorer}})
    group = Group(prompt="w2 w3 ", responses=(Response(content="w5"), Response(content="w6 w7")))
    critiques = [finding.reason for finding in reward.parts[0].source([group])[0]]  # type: ignore[misc]  # it has one
    shown = tuple(Response(content=f"{a}\n\nCritique: {c}") for a, c in zip(("w5", "w6 w7"), critiques, strict=True))
    expected = [alone([Group(prompt="w2 w3 ", responses=(one,))])[0][0].score for one in shown]
    assert [finding.score for finding in reward([group])[0]] == pytest.approx(expected, abs=1e-5)
    assert any(critiques)
    assert expected[0] != pytest.approx(expected[1], abs=1e-2)
    cut = build_reward({"critique": settings | {"max_tokens": 1, "temperature": 0.0}})([group])[0]
    assert [finding.score for finding in cut] == [None, None]
    assert "cut off" in cut[0].reason
    for wrong, said in (
        ({"scorer": ""}, "scorer"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": -1}, "temperat"),
    ):
        given = {key: value for key, value in (settings | wrong).items() if value != ""}
        with pytest.raises(ConfigError, match=rf"reward\.critique\.{said}"):
            build_reward({"critique": given})


def test_a_run_is_rewarded_by_critiques(tmp_path: Path):
    """The base model criticises, a reward model scores answer and critique; greedy, so that a stop changes nothing."""
    settings: dict[str, Any] = BLOCKS | {
        "method": "grpo", "train.max_steps": 5, "reward.critique.critic": str(BASE),
        "reward.critique.scorer": save_reward(tmp_path / "scorer", seed=2), "reward.critique.max_tokens": 64,
    }  # fmt: skip
    whole = run(PROMPTS, tmp_path / "whole", **settings)
    assert run(PROMPTS, tmp_path / "parts", progress=stop_at(2), **settings).was_stopped
    again = run(PROMPTS, tmp_path / "parts", resume=True, **settings)
    assert_same_bits(metrics_of(whole), metrics_of(again))
    first = metrics_of(whole)[0]
    assert first["rollout/reward_unknown"] < 1
    assert first["rollout/reward_std_within"] > 0
