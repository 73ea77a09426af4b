"""Journeys of the lab: their parts by derived numbers, and the shortest of them run whole."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest

from accord.data import load_groups
from accord.feedback.judges import ConstitutionJudge
from accord.feedback.judges.constitution import critique_and_revise
from accord.lab.annotators import GOLD
from accord.lab.gold import request_prompts
from accord.lab.journeys import collect, instructgpt, overoptimise, rlvr
from accord.lab.journeys.__main__ import run_journey, shown
from accord.lab.journeys.constitutional import PRINCIPLES, LabChat, num_violations, rewritten
from accord.lab.journeys.overoptimise import account
from accord.lab.journeys.rlvr import problems, write_problems
from accord.lab.journeys.sampled import AnnotatorReward
from accord.lab.text_world import Request, gold_reward, render_request, user_prompt
from accord.records import Comparison, Group, Response

REQUEST = Request("bees", 2, "formally")
BAD = "lol bees make honey. bees make honey. cats hunt mice. also"


def test_violations_are_those_of_the_principle():
    assert num_violations(REQUEST, BAD, "on the topic") == 1  # the cats
    assert num_violations(REQUEST, BAD, "not twice") == 1  # the honey again
    assert num_violations(REQUEST, BAD, "in the tone") == 1  # lol
    assert num_violations(REQUEST, BAD, "in full") == 1  # two facts were asked for, one is said
    assert num_violations(REQUEST, "bees fly.", "on the topic") == 1  # invented


def test_revisions_take_away_what_violates_and_add_what_is_missing():
    assert rewritten(REQUEST, BAD, "on the topic") == "lol bees make honey. bees make honey. also"
    assert rewritten(REQUEST, BAD, "not twice") == "lol bees make honey. cats hunt mice. also"
    assert rewritten(REQUEST, BAD, "in the tone") == "bees make honey. bees make honey. cats hunt mice. also"
    assert rewritten(REQUEST, BAD, "in full") == f"{BAD} bees dance directions."
    assert rewritten(REQUEST, "lol", "in the tone") == "lol"  # nothing would be left


def test_a_chain_of_revisions_is_worth_more_step_by_step():
    group = Group(prompt=user_prompt(render_request(REQUEST)), responses=(Response(content=BAD),))
    (chain,) = critique_and_revise([group], LabChat(), principles=PRINCIPLES, num_revisions=6, seed=1)
    gold = [gold_reward(REQUEST, str(response.content), True) for response in chain.responses]
    assert len(gold) == 7
    assert all(after >= before - 0.12 for before, after in itertools.pairwise(gold))  # a shorter answer costs
    assert gold[-1] > gold[0] + 0.5


def test_ai_labels_are_the_log_odds_of_violations():
    good = "indeed bees make honey. bees visit flowers."
    group = Group(
        prompt=user_prompt(render_request(REQUEST)), responses=(Response(content=good), Response(content=BAD))
    )
    label, *_ = ConstitutionJudge(chat=LabChat(), principles=PRINCIPLES).soft_labels([group])
    # one violation less of each of the four principles: log-odds of 1 under each, in both orders
    assert label == pytest.approx(1 / (1 + math.exp(-1)))
    same = Group(prompt=group.prompt, responses=(Response(content=good), Response(content=good)))
    assert ConstitutionJudge(chat=LabChat(), principles=PRINCIPLES).soft_labels([same]) == [0.5]


def test_an_annotators_scores_order_pairs_as_bradley_terry_does():
    good, fair = "indeed bees make honey. bees visit flowers.", "bees make honey. bees visit flowers."
    group = Group(
        prompt=user_prompt(render_request(REQUEST)), responses=(Response(content=good), Response(content=fair))
    )
    reward = AnnotatorReward(seed=0)
    rows = reward([group] * 4000)
    scores = np.array([[one.score for one in row] for row in rows], dtype=float)
    wins = np.mean(scores[:, 0] > scores[:, 1])
    expected = GOLD.preference_probability(REQUEST, *group.responses)
    assert 0.6 < expected < 0.95
    assert wins == pytest.approx(expected, abs=0.025)  # three standard errors of 4000 draws


def test_problems_are_right_and_split_by_sum():
    train, held_out = problems(seed=3)
    assert (len(train), len(held_out)) == (150, 50)
    asked = {tuple(word for word in one.prompt.split() if word.isdigit()) for one in train}
    for one in held_out:
        a, b = (word for word in one.prompt.split() if word.isdigit())
        assert (a, b) not in asked
        assert one.answer.replace(" ", "") == str(int(a) + int(b))


def test_problems_are_read_back_with_their_answers(tmp_path: Path):
    train, _ = problems()
    groups = load_groups(write_problems(tmp_path / "problems.jsonl", train[:5])).groups
    assert [group.extra["answer"] for group in groups] == [one.answer for one in train[:5]]
    assert groups[0].prompt == user_prompt(train[0].prompt)


def test_peak_fall_and_warning_are_read_from_a_history():
    gold = [1.0, *[1.4] * 6, *[0.5] * 8]
    history = [
        {
            "step": place + 1, "rollout/reward/gold": value, "rollout/kl": float(place), "rollout/length": 12.0,
            "rollout/reward": 0.1 * place, "rollout/reward_std_within": 0.5,
        }
        for place, value in enumerate(gold)
    ]  # fmt: skip
    found = account(history)
    assert found["peak"]["step"] == 6  # five lines of 1.4 in the mean
    # means of five after it: 1.4 (step 7), then 1.22, 1.04 < 0.8 × 1.4 = 1.12
    assert found["fallen"]["step"] == 9
    assert found["warning"]["step"] < 9  # 4 nats at a shift of 0.4: (0.8)²/2 = 0.32 would do
    assert list(found["by_rule"]) == ["unpaid_distance"]


def test_people_judge_over_http_and_nothing_is_lost(tmp_path: Path):
    pytest.importorskip("fastapi", reason="the page needs the extra accord[web]")
    from accord.feedback.people import ProjectSettings, create_project

    pairs = [
        Group(prompt=group.prompt, responses=(Response(content="bees make honey."), Response(content=f"also {i}.")))
        for i, group in enumerate(request_prompts([REQUEST] * 6))
    ]
    with create_project(tmp_path / "people.sqlite3", "answers", ProjectSettings()) as project:
        project.add_items(pairs)
        assert collect.judge_over_http(project, seed=0) == 6
        judged = project.export()
    assert sum(isinstance(one, Comparison) for group in judged for one in group.judgements) == 6


def test_verified_rewards_raise_the_share_of_right_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(rlvr.GRPO, "train.max_steps", 60)
    summary = run_journey("rlvr", tmp_path, seed=0)
    assert summary["right_gain_ci95"][0] > 0.05
    assert json.loads((tmp_path / "summary.json").read_text("utf-8"))["right_after"] == summary["right_after"]
    assert "right_gain" in shown(summary)


def test_the_recipe_people_know_raises_gold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(instructgpt, "PAIRS_PER_REQUEST", 24)
    summary = run_journey("instructgpt", tmp_path, seed=0)
    assert summary["stages"]["ppo"]["gold_gain"] > 0.05
    assert summary["stages"]["dpo, same pairs"]["gold_gain_ci95"][0] > 0
    assert "ppo" in shown(summary)


def test_over_optimisation_is_recorded_step_by_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The whole of it in small: too short to fall, long enough to be paid by one reward and watched by another."""
    monkeypatch.setattr(overoptimise, "PAIRS_PER_REQUEST", 1)
    monkeypatch.setattr(overoptimise, "SAMPLES_PER_REQUEST", 2)
    monkeypatch.setattr(overoptimise, "RLOO", overoptimise.RLOO | {"train.max_steps": 6, "train.batch_size": 4})
    summary = run_journey("overoptimise", tmp_path, seed=0)
    for name in ("proxy, no KL", "gold, no KL"):
        lines = summary["history"][name]
        assert [line["step"] for line in lines] == list(range(1, 7))
        assert summary[name]["start"]["kl"] == pytest.approx(0.0, abs=1e-6)
        assert all(0 <= line["rollout/reward/above_reference"] <= 1 for line in lines)
    paid, own = ([line["rollout/reward"] for line in summary["history"][name]] for name in summary["history"])
    gold = [line["rollout/reward/gold"] for line in summary["history"]["gold, no KL"]]
    assert own == pytest.approx(gold)  # the control is paid by what it is measured by
    assert paid != own
