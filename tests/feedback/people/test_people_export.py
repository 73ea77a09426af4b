"""What is exported: every kind of judgement, latest answers only, read back and trained on as any other data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from questions import Clock, group, known

from accord.data import load_groups
from accord.feedback.people import (
    COLLECTED,
    Annotator,
    AnnotatorKind,
    Assignment,
    ExportSettings,
    ItemRole,
    Project,
    ProjectSettings,
    QuestionKind,
    create_project,
)
from accord.records import Comparison, Critique, Group, Label, Ranking, Rating

PAYLOADS: dict[QuestionKind, dict[str, Any]] = {
    QuestionKind.PAIRWISE8: {"level": 3, "comment": "clearer"},
    QuestionKind.PAIRWISE_TIES: {"level": 0},
    QuestionKind.THUMBS: {"is_desirable": True},
    QuestionKind.RANKING: {"order": [[2], [0, 1]]},
    QuestionKind.RATING: {"ratings": {"helpful": 4, "honest": 5, "harmless": 1}},
    QuestionKind.CRITIQUE: {"text": "too long", "edited": "shorter"},
    QuestionKind.EDIT: {"edited": "shorter still"},
}


def answer_all(project: Project, annotator: Annotator) -> list[Assignment]:
    done = []
    while isinstance(found := project.next_assignment(annotator.id), Assignment):
        project.submit(annotator.id, found.id, PAYLOADS[found.question], f"key {found.id}", 2.5)
        done.append(found)
    return done


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".parquet"])
def test_every_kind_of_judgement_comes_back_from_the_file(database: str, tmp_path: Path, suffix: str):
    with create_project(database, "study", ProjectSettings(kinds=tuple(QuestionKind)), clock=Clock(5.0)) as project:
        for kind in QuestionKind:
            project.add_items([group(0, size=3)], kind=kind)
        done = answer_all(project, project.add_annotator("Ann"))
        exported = project.export(tmp_path / f"out{suffix}")
    loaded = load_groups(tmp_path / f"out{suffix}")
    assert loaded.groups == exported
    (one,) = exported
    assert one.responses == group(0, size=3).responses  # with who wrote them, which was not shown
    assert {type(j) for j in one.judgements} == {Comparison, Label, Ranking, Rating, Critique}
    # 3 + 3 pairs, 3 thumbs, 1 ranking, 3 × 3 ratings, 3 critiques, 3 edits
    assert len(one.judgements) == 3 + 3 + 3 + 1 + 9 + 3 + 3
    about = one.extra[COLLECTED]
    assert len(about["judgements"]) == len(one.judgements)
    assert {entry["seconds"] for entry in about["judgements"]} == {2.5}
    assert {entry["created_at"] for entry in about["judgements"]} == {5.0}
    ranked = next(a for a in done if a.question is QuestionKind.RANKING)
    ranking = next(j for j in one.judgements if isinstance(j, Ranking))
    assert ranking.order == ((ranked.shown_order[2],), (ranked.shown_order[0], ranked.shown_order[1]))
    assert {j.judge for j in one.judgements} == {"annotator-1"}
    assert "Ann" not in str(exported)


def test_a_pair_is_in_terms_of_the_group(database: str):
    with create_project(database, "study") as project:
        project.add_items([group(number, size=4) for number in range(3)])
        done = {a.item_id: a for a in answer_all(project, project.add_annotator("Ann"))}
        exported = project.export()
        members = {item: project.item(item).members for item in done}
    assert sum(len(one.judgements) for one in exported) == 3 * 6
    for one in exported:
        for judgement, about in zip(one.judgements, one.extra[COLLECTED]["judgements"], strict=True):
            assert isinstance(judgement, Comparison)
            shown = tuple(members[about["item"]][place] for place in done[about["item"]].shown_order)
            assert (judgement.worse, judgement.better) == judgement.shown_order == shown  # level 3: the second shown
            assert judgement.strength == 3.0
            assert about["comment"] == "clearer"


def test_only_finished_work_is_exported_unless_asked_for(database: str):
    settings = ProjectSettings(judgements_per_item=2, gold_share=0.3, repeat_share=0.3, repeat_gap=1)
    with create_project(database, "study", settings) as project:
        project.add_items([group(number) for number in range(12)])
        project.add_items([known(50 + number) for number in range(4)], role=ItemRole.GOLD)
        project.add_items([known(60, better=1)], role=ItemRole.QUALIFICATION)
        ann, bob = project.add_annotator("Ann"), project.add_annotator("Bob")
        for person in (ann, bob):
            found = project.next_assignment(person.id)
            assert isinstance(found, Assignment)
            level = 1 if found.shown_order[1] == 1 else -1  # response 1 is better
            project.submit(person.id, found.id, {"level": level}, "qualify")
        counts = {ann.id: _kinds(answer_all(project, ann))}
        assert project.export() == []  # nothing was judged twice yet
        unfinished = project.export(settings=ExportSettings(include_unfinished=True))
        assert _count(unfinished) == counts[ann.id]["work"] == 12
        counts[bob.id] = _kinds(answer_all(project, bob))
        assert _count(project.export()) == 24
        for field, kind in (("include_gold", "gold"), ("include_repeats", "repeat")):
            more = project.export(settings=ExportSettings(**{field: True}))
            extra = counts[ann.id][kind] + counts[bob.id][kind]
            assert extra > 0
            assert _count(more) == 24 + extra
        qualified = project.export(settings=ExportSettings(include_qualification=True))
        assert _count(qualified) == 24 + 2
        checked = [e for one in qualified for e in one.extra[COLLECTED]["judgements"] if e["kind"] == "qualification"]
        assert [entry["is_right"] for entry in checked] == [True, True]


def _kinds(done: list[Assignment]) -> dict[str, int]:
    return {kind: sum(a.kind == kind for a in done) for kind in ("work", "gold", "repeat")}


def _count(groups: list[Group]) -> int:
    return sum(len(one.judgements) for one in groups)


def test_skips_and_flags_travel_with_the_group(database: str):
    with create_project(database, "study") as project:
        project.add_items([group(0)])
        ann, bob = project.add_annotator("Ann"), project.add_annotator("Bob")
        found = project.next_assignment(ann.id)
        assert isinstance(found, Assignment)
        project.skip(ann.id, found.id, "unclear", "k", 4.0)
        answer_all(project, bob)
        (one,) = project.export()
        assert [(entry["judge"], entry["reason"]) for entry in one.extra[COLLECTED]["skips"]] == [
            ("annotator-1", "unclear")
        ]
        assert [judgement.judge for judgement in one.judgements] == ["annotator-2"]
        project.undo(bob.id, "u")
        held = project.next_assignment(bob.id)
        assert isinstance(held, Assignment)
        project.flag_unsafe(bob.id, held.id, "harmful", "f")
        assert project.export() == []


def test_the_judge_says_with_which_prompt_and_version(database: str):
    with create_project(database, "study") as project:
        project.add_items([group(0)])
        model = project.add_annotator("judge", kind=AnnotatorKind.MODEL, prompt="Which is better?", version="7")
        answer_all(project, model)
        (one,) = project.export()
        assert one.judgements[0].judge == "judge@7"
        assert one.extra[COLLECTED]["judges"] == {
            "judge@7": {"kind": "model", "prompt": "Which is better?", "version": "7"}
        }


def test_the_judgements_a_file_came_with_are_not_mixed_with_those_collected(database: str):
    with create_project(database, "study") as project:
        project.add_items([known(0, better=0)])
        answer_all(project, project.add_annotator("Ann"))
        (one,) = project.export()
        assert [judgement.judge for judgement in one.judgements] == ["annotator-1"]
