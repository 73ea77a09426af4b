"""Simulated annotators at the queue: their answers are as their tastes say, and are exported like anybody's."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from accord.data import load_groups
from accord.errors import DataError
from accord.feedback.people import ItemRole, ProjectSettings, QuestionKind, create_project
from accord.lab.annotators import GOLD
from accord.lab.queue import simulated_answer, work_queue
from accord.lab.text_world import all_requests, gold_reward, render_request, write_response
from accord.records import Comparison, Group, Response

SURE = replace(GOLD, name="sure", temperature=1e-6)


def pairs(count: int, *, seed: int = 0) -> list[Group]:
    """Requests of the text world with two answers of different quality each."""
    rng = np.random.default_rng(seed)
    found = []
    for request in all_requests():
        texts = [write_response(request, quality, rng) for quality in (1.0, 0.0)]
        if len({gold_reward(request, text, True) for text in texts}) == 2:
            responses = tuple(Response(content=text) for text in texts)
            found.append(Group(prompt=render_request(request), responses=responses))
    return found[:count]


def gold_of(group: Group) -> list[float]:
    """The gold reward of a group's responses."""
    request = next(r for r in all_requests() if render_request(r) == group.prompt)
    return [gold_reward(request, str(response.content), True) for response in group.responses]


def test_a_panel_works_the_queue_and_the_export_is_read_back(tmp_path: Path):
    panel = [replace(SURE, name=f"sure-{number}") for number in range(3)]
    with create_project(tmp_path / "a.db", "lab", ProjectSettings(judgements_per_item=2)) as project:
        project.add_items(pairs(10))
        assert work_queue(project, panel, seed=0) == 20
        assert work_queue(project, panel, seed=0) == 0
        project.export(tmp_path / "judged.jsonl")
    groups = load_groups(tmp_path / "judged.jsonl").groups
    assert len(groups) == 10
    for group in groups:
        gold = gold_of(group)
        comparisons = [j for j in group.judgements if isinstance(j, Comparison)]
        assert len({j.judge for j in comparisons}) == len(comparisons) == 2
        assert all(gold[j.better] > gold[j.worse] and j.strength == 4.0 for j in comparisons)


def test_they_qualify_and_stop_where_they_are_told(tmp_path: Path):
    work, rest = pairs(6)[:4], pairs(6)[4:]
    known = [
        replace(g, judgements=(Comparison(better=int(np.argmax(gold_of(g))), worse=int(np.argmin(gold_of(g)))),))
        for g in rest
    ]
    with create_project(tmp_path / "a.db", "lab") as project:
        project.add_items(work)
        project.add_items(known, role=ItemRole.QUALIFICATION)
        assert work_queue(project, [SURE], seed=0, limit=3) == 3  # two to qualify, one of work
        assert project.progress().num_finished == 1


def test_levels_follow_the_probability():
    group = pairs(1)[0]
    shown = [str(response.content) for response in group.responses]
    margin = (gold_of(group)[1] - gold_of(group)[0]) / GOLD.temperature  # the log-odds of the second, flips aside
    rng = np.random.default_rng(3)
    levels = [simulated_answer(GOLD, QuestionKind.PAIRWISE8, group.prompt, shown, rng)["level"] for _ in range(2000)]  # type: ignore[arg-type]  # a plain prompt
    assert {abs(level) for level in levels} == {min(4, math.ceil(abs(margin)))}
    share = sum(level > 0 for level in levels) / 2000
    expected = 1 / (1 + math.exp(-margin))
    assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / 2000) + 1e-3


def test_equals_tie_and_rankings_put_the_best_first():
    group = pairs(1)[0]
    good, poor = (str(response.content) for response in group.responses)
    rng = np.random.default_rng(0)
    ask = {
        kind: lambda *texts, kind=kind: simulated_answer(SURE, kind, str(group.prompt), texts, rng)
        for kind in QuestionKind
    }
    assert ask[QuestionKind.PAIRWISE_TIES](good, good) == {"level": 0}
    assert abs(ask[QuestionKind.PAIRWISE8](good, good)["level"]) == 1
    assert ask[QuestionKind.RANKING](poor, good) == {"order": [[1], [0]]}
    with pytest.raises(DataError, match="edit"):
        ask[QuestionKind.EDIT](good)


def test_annotators_need_names_of_their_own(tmp_path: Path):
    with create_project(tmp_path / "a.db", "lab") as project, pytest.raises(DataError, match="one name"):
        work_queue(project, [GOLD, GOLD], seed=0)


@pytest.mark.parametrize(
    ("kind", "objective"),
    [(QuestionKind.PAIRWISE_TIES, "dpo"), (QuestionKind.THUMBS, "kto"), (QuestionKind.RANKING, "dpo")],
)
def test_what_was_collected_is_what_align_reads(tmp_path: Path, kind: QuestionKind, objective: str):
    from toy_runs import judged_groups, run

    with create_project(tmp_path / "a.db", "lab", ProjectSettings(kinds=(kind,))) as project:
        project.add_items(judged_groups(8, num_responses=2))  # their own judgements are left out
        work_queue(project, [replace(SURE, name=f"sure-{number}") for number in range(2)], seed=0)
        exported = project.export(tmp_path / "judged.jsonl")
    done = run(tmp_path / "judged.jsonl", tmp_path / "out", objective=objective, dry_run=True)
    assert len(exported) == 8
    assert done.plan["groups"] == 6  # a quarter is held out
    trained = run(exported, tmp_path / "out", objective=objective)
    assert trained.summary["steps"] >= 1
