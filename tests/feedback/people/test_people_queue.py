"""Who is given what: leases, n judgements per item, gold, repetitions, qualification, the uncertain first."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from questions import Clock, group, known

from accord.errors import AccordError, ConfigError, DataError, FeedbackError
from accord.feedback.people import (
    AnnotatorKind,
    AnnotatorState,
    Assignment,
    AssignmentKind,
    EventKind,
    Idle,
    IdleReason,
    ItemRole,
    Project,
    ProjectSettings,
    QuestionKind,
    Selection,
    create_project,
    open_project,
)
from accord.feedback.people.items import margin
from accord.records import Message, Response


def make(database: str, clock: Clock | None = None, **settings: Any) -> Project:
    return create_project(database, "study", ProjectSettings(**settings), clock=clock or Clock())


def take(project: Project, annotator: int) -> Assignment:
    found = project.next_assignment(annotator)
    assert isinstance(found, Assignment), found
    return found


def answer(project: Project, annotator: int, level: int = 2) -> Assignment:
    found = take(project, annotator)
    project.submit(annotator, found.id, {"level": level}, f"key {found.id}", 1.5)
    return found


def answer_all(project: Project, annotator: int, better: int = 0) -> list[Assignment]:
    """Answer until idle: always that the response of this index is the better one."""
    done = []
    while isinstance(found := project.next_assignment(annotator), Assignment):
        level = -2 if found.shown_order[0] == better else 2
        project.submit(annotator, found.id, {"level": level}, f"key {found.id}", 1.0)
        done.append(found)
    return done


def idle(project: Project, annotator: int) -> IdleReason:
    found = project.next_assignment(annotator)
    assert isinstance(found, Idle), found
    return found.reason


def test_an_assignment_shows_texts_and_hides_who_wrote_them(database: str):
    with make(database) as project:
        project.add_items([group(0)])
        found = take(project, project.add_annotator("Ann").id)
        assert found.prompt == (Message(role="user", content="question 0"),)
        assert [found.responses[found.shown_order.index(i)] for i in (0, 1)] == ["answer 0.0", "answer 0.1"]
        assert "policy" not in repr(found)


def test_what_is_asked_again_is_the_same(database: str):
    with make(database) as project:
        project.add_items([group(number) for number in range(3)])
        annotator = project.add_annotator("Ann").id
        first = take(project, annotator)
        assert take(project, annotator) == first
        assert project.assignment(annotator, first.id) == first


def test_a_lease_keeps_others_away_until_it_runs_out(database: str):
    clock = Clock()
    with make(database, clock, lease_seconds=60) as project:
        project.add_items([group(0)])
        ann, bob = (project.add_annotator(name).id for name in ("Ann", "Bob"))
        held = take(project, ann)
        assert idle(project, bob) is IdleReason.LEASED
        clock.now += 59
        assert idle(project, bob) is IdleReason.LEASED
        clock.now += 1  # the lease is over at exactly 60 s
        taken = take(project, bob)
        assert taken.item_id == held.item_id
        assert taken.id != held.id
        assert idle(project, ann) is IdleReason.LEASED  # it is Bob's now
        clock.now += 61
        assert take(project, ann).id == held.id  # given back: the same assignment in the same order
        project.submit(bob, taken.id, {"level": 1}, "late")  # late, and counts: a judgement is never thrown away
        assert project.progress().num_judgements == 1
        project.submit(ann, held.id, {"level": 1}, "second")
        assert project.item(held.item_id).num_judgements == 2
        assert idle(project, ann) is idle(project, bob) is IdleReason.FINISHED


def test_each_item_goes_to_n_annotators_and_to_none_twice(database: str):
    with make(database, judgements_per_item=2) as project:
        project.add_items([group(number) for number in range(4)])
        people = [project.add_annotator(name).id for name in ("Ann", "Bob", "Cy")]
        seen: dict[int, list[int]] = {person: [] for person in people}
        for _ in range(4):
            for person in people:
                if isinstance(project.next_assignment(person), Assignment):
                    seen[person].append(answer(project, person).item_id)
        assert all(len(items) == len(set(items)) for items in seen.values())
        assert Counter(item for items in seen.values() for item in items) == dict.fromkeys((1, 2, 3, 4), 2)
        progress = project.progress()
        assert (progress.num_items, progress.num_finished, progress.num_judgements) == (4, 4, 8)
        assert progress.num_wanted == 4 * 2


def test_orders_shown_are_random_and_recorded_and_the_repetition_is_turned(database: str):
    with make(database, repeat_share=0.5, repeat_gap=2) as project:
        project.add_items([group(number) for number in range(40)])
        done = answer_all(project, project.add_annotator("Ann").id)
        first = {a.item_id: a for a in done if a.kind is AssignmentKind.WORK}
        again = [a for a in done if a.kind is AssignmentKind.REPEAT]
        orders = Counter(a.shown_order for a in first.values())
        # 40 fair coins: outside 8 … 32 with a probability below 2·10⁻⁴, and the seed is fixed
        assert len(first) == 40
        assert 8 <= orders[0, 1] <= 32
        assert len(again) == len({a.item_id for a in again}) > 10
        assert all(a.shown_order == first[a.item_id].shown_order[::-1] for a in again)
        place = {a.id: number for number, a in enumerate(done)}
        assert all(place[a.id] - place[first[a.item_id].id] > 2 for a in again)
        recorded = {event.assignment_id: event.shown_order for event in project.events()}
        assert all(recorded[a.id] == a.shown_order for a in done)
        assert project.progress().num_judgements == 40  # a repetition is not a judgement more


def test_gold_is_mixed_in_and_counted_but_looks_like_work(database: str):
    with make(database, gold_share=0.4) as project:
        project.add_items([group(number) for number in range(30)])
        project.add_items([known(100 + number, better=number % 2) for number in range(8)], role=ItemRole.GOLD)
        annotator = project.add_annotator("Ann").id
        done = answer_all(project, annotator, better=0)
        gold = [a for a in done if a.kind is AssignmentKind.GOLD]
        assert len({a.item_id for a in gold}) == len(gold) == 8
        own = project.progress().annotators[0]
        assert (own.num_gold, own.num_gold_right) == (8, 4)  # always "0 is better": right of the even four
        assert own.num_judgements == 30
        assert {len(a.id) for a in done} == {16}
        assert [a.kind for a in done] != sorted(a.kind for a in done)  # not all at one end


def test_work_waits_for_the_qualification(database: str):
    with make(database, qualification_pass=0.75) as project:
        project.add_items([group(0)])
        project.add_items([known(10 + number) for number in range(4)], role=ItemRole.QUALIFICATION)
        good, bad = (project.add_annotator(name) for name in ("Ann", "Bob"))
        assert good.state is AnnotatorState.QUALIFYING
        for wrong, person in ((1, good.id), (2, bad.id)):
            for number in range(4):
                found = take(project, person)
                assert found.kind is AssignmentKind.QUALIFICATION
                better = int(number < wrong)
                level = -1 if found.shown_order[0] == better else 1
                project.submit(person, found.id, {"level": level}, f"{person} {number}")
        assert project.annotator(good.id).state is AnnotatorState.ACTIVE  # 3 of 4 = 75 %
        assert project.annotator(bad.id).state is AnnotatorState.PAUSED
        assert project.annotator(bad.id).note == "qualification: 2 of 4 right, 75% wanted"
        assert take(project, good.id).kind is AssignmentKind.WORK
        assert idle(project, bad.id) is IdleReason.PAUSED
        with pytest.raises(FeedbackError, match="nothing"):
            project.undo(good.id, "again")  # a finished qualification stands
        project.resume_annotator(bad.id)
        assert idle(project, bad.id) is IdleReason.LEASED
        model = project.add_annotator("reward", kind=AnnotatorKind.MODEL)
        assert model.state is AnnotatorState.ACTIVE


def test_the_uncertain_come_first_and_random_is_the_control(database: str):
    # margins |s₀ − s₁| = 3, 0.5, 2, unknown, 0.1
    scores = [(3.0, 0.0), (0.0, 0.5), (1.0, -1.0), (None, 1.0), (0.1, 0.0)]
    with make(database, selection=Selection.UNCERTAIN) as project:
        project.add_items([group(number) for number in range(5)], scores=scores)
        done = answer_all(project, project.add_annotator("Ann").id)
        assert [a.prompt[0].content[-1] for a in done] == ["4", "1", "2", "0", "3"]
        assert {a.selected_by for a in done} == {Selection.UNCERTAIN}
    control = open_project(database)
    with control, create_project(database, "control", ProjectSettings(seed=1)) as project:
        project.add_items([group(number) for number in range(5)], scores=scores)
        done = answer_all(project, project.add_annotator("Ann").id)
        assert [a.prompt[0].content[-1] for a in done] != ["4", "1", "2", "0", "3"]
        assert {a.selected_by for a in done} == {Selection.RANDOM}


def test_a_share_of_uncertain_work_is_drawn_at_random(database: str):
    with make(database, selection=Selection.UNCERTAIN, control_share=0.5) as project:
        project.add_items([group(number) for number in range(60)], scores=[(float(n), 0.0) for n in range(60)])
        done = answer_all(project, project.add_annotator("Ann").id)
        assert 15 <= sum(a.selected_by is Selection.RANDOM for a in done) <= 45  # 30 ± 4 standard deviations of 3.9
        by_margin = [int(a.prompt[0].content.split()[1]) for a in done if a.selected_by is Selection.UNCERTAIN]
        assert by_margin == sorted(by_margin)


def test_margins_are_how_sure_a_model_is():
    assert margin([3.0, 1.5, 1.0], (0, 1)) == 1.5
    assert margin([3.0, 1.5, 1.0], (0, 1, 2)) == 0.5  # the closest neighbours
    assert margin([-0.25], (0,)) == 0.25
    assert margin([1.0, None], (0, 1)) is None
    # members' differences 1 and 3: mean 2, standard deviation √2
    assert margin([(2.0, 4.0), (1.0, 1.0)], (0, 1)) == pytest.approx(2 / 2**0.5)
    assert margin([(1.0, -1.0), (0.0, 0.0)], (0, 1)) == 0.0  # they contradict each other
    assert margin([(1.0, 1.0), (0.0, 0.0)], (0, 1)) == float("inf")  # unanimous


def test_groups_become_pairs_rankings_or_single_responses(database: str):
    with make(database, kinds=tuple(QuestionKind)) as project:
        three = [group(0, size=3)]
        assert project.add_items(three) == 3  # 3·2/2 pairs
        assert project.add_items(three) == 0  # the same questions are there already
        assert project.add_items(three, kind=QuestionKind.RANKING) == 1
        assert project.add_items(three, kind=QuestionKind.RATING) == 3
        assert project.add_items([group(1, size=4)], num_pairs=2) == 2
        assert project.item(4).responses == ("answer 0.0", "answer 0.1", "answer 0.2")
        assert [project.item(i).members for i in (1, 2, 3)] == [(0, 1), (0, 2), (1, 2)]


@pytest.mark.parametrize(
    ("add", "wrong", "says"),
    [
        ({"groups": [group(0)], "kind": QuestionKind.EDIT}, ConfigError, "edit"),
        ({"groups": [group(0, size=1)]}, DataError, "one response"),
        ({"groups": [group(0)], "role": ItemRole.GOLD}, DataError, "known"),
        ({"groups": [group(0)], "scores": [(1.0,)]}, ConfigError, "1 scores for 2"),
        ({"groups": [group(0)], "scores": []}, ConfigError, "0 groups for 1"),
    ],
)
def test_what_cannot_be_asked_is_refused(tmp_path: Path, add: dict[str, Any], wrong: type[AccordError], says: str):
    with make(str(tmp_path / "a.db")) as project, pytest.raises(wrong, match=says):
        project.add_items(**add)


def test_token_ids_and_bare_prompts_cannot_be_shown(tmp_path: Path):
    from dataclasses import replace

    with make(str(tmp_path / "a.db")) as project:
        ids = replace(group(0), responses=(Response(token_ids=(1, 2)), Response(content="x")))
        with pytest.raises(DataError, match="decode"):
            project.add_items([ids])
        with pytest.raises(DataError, match="sample them first"):
            project.add_items([replace(group(0), extra={"is_prompt_only": True})])
        with (
            pytest.raises(ConfigError, match="scores"),
            make(str(tmp_path / "b.db"), selection=Selection.UNCERTAIN) as other,
        ):
            other.add_items([group(0)])


def test_a_skipped_item_goes_to_somebody_else(database: str):
    with make(database) as project:
        project.add_items([group(0)])
        ann, bob = (project.add_annotator(name).id for name in ("Ann", "Bob"))
        found = take(project, ann)
        with pytest.raises(FeedbackError, match="reason"):
            project.skip(ann, found.id, "  ", "k")
        project.skip(ann, found.id, "I do not know this subject", "k")
        assert idle(project, ann) is IdleReason.FINISHED
        assert take(project, bob).item_id == found.item_id
        assert project.progress().num_skips == 1


def test_a_flagged_item_is_set_aside_until_it_is_released(database: str):
    with make(database, judgements_per_item=2) as project:
        project.add_items([group(0)])
        ann, bob, cy = (project.add_annotator(name).id for name in ("Ann", "Bob", "Cy"))
        held = take(project, bob)
        found = take(project, ann)
        project.flag_unsafe(ann, found.id, "a recipe for harm", "k")
        assert project.item(found.item_id).is_aside
        assert idle(project, cy) is IdleReason.FINISHED
        assert idle(project, bob) is IdleReason.FINISHED
        project.undo(ann, "u")
        assert not project.item(found.item_id).is_aside
        project.flag_unsafe(ann, take(project, ann).id, "it is, after all", "k2")
        project.release_item(found.item_id)
        assert take(project, bob).id == held.id
        assert take(project, cy).item_id == found.item_id
        progress = project.progress()
        assert (progress.num_flags, progress.num_aside) == (1, 0)


def test_an_undo_is_an_event_and_gives_the_item_again(database: str):
    clock = Clock()
    with make(database, clock) as project:
        project.add_items([group(number) for number in range(2)])
        annotator = project.add_annotator("Ann").id
        first = answer(project, annotator, level=4)
        ahead = take(project, annotator)  # the page has the next one already
        clock.now += 1
        undo = project.undo(annotator, "u1")
        assert project.undo(annotator, "u1") == undo
        assert project.progress().num_judgements == 0
        assert take(project, annotator).id == first.id  # before the one ahead
        again = project.submit(annotator, first.id, {"level": -1}, "second thoughts")
        assert take(project, annotator).id == ahead.id
        assert [(e.kind, e.corrects) for e in project.events()] == [
            (EventKind.ANSWER, None),
            (EventKind.UNDO, 1),
            (EventKind.ANSWER, 1),
        ]
        assert again == 3
        assert [e.id for e in project.events(since=1, limit=1)] == [2]
        assert project.export()[0].judgements[0].strength == 1.0  # type: ignore[attr-defined]  # a Comparison


def test_several_undos_go_back_step_by_step(database: str):
    with make(database) as project:
        project.add_items([group(number) for number in range(3)])
        annotator = project.add_annotator("Ann").id
        done = [answer(project, annotator).id for _ in range(3)]
        for number in range(3):
            project.undo(annotator, f"u{number}")
        undone = [e.assignment_id for e in project.events() if e.kind is EventKind.UNDO]
        assert undone == done[::-1]
        with pytest.raises(FeedbackError, match="nothing yet"):
            project.undo(annotator, "u3")


def test_a_key_counts_once_and_for_one_thing(database: str):
    with make(database) as project:
        project.add_items([group(number) for number in range(2)])
        ann, bob = (project.add_annotator(name).id for name in ("Ann", "Bob"))
        found = take(project, ann)
        event = project.submit(ann, found.id, {"level": 2}, "k", 3.0)
        assert project.submit(ann, found.id, {"level": 2}, "k", 3.0) == event
        assert project.submit(ann, found.id, {"level": 2}, "k", 99.0) == event  # a resent form may be slower
        with pytest.raises(FeedbackError, match="use a key once"):
            project.submit(ann, found.id, {"level": 3}, "k")
        with pytest.raises(FeedbackError, match="use a key once"):
            project.skip(ann, found.id, "no", "k")
        with pytest.raises(FeedbackError, match="second answer"):
            project.submit(ann, found.id, {"level": 2}, "another key")
        mine = take(project, bob)
        assert project.submit(bob, mine.id, {"level": 1}, "k") != event  # keys are each annotator's own
        with pytest.raises(FeedbackError, match="key"):
            project.undo(ann, "")
        assert len(project.events()) == 2


def test_nobody_answers_for_somebody_else(database: str):
    with make(database) as project:
        project.add_items([group(0)])
        ann, bob = (project.add_annotator(name).id for name in ("Ann", "Bob"))
        found = take(project, ann)
        for wrong in (found.id, "no such thing"):
            with pytest.raises(FeedbackError, match="own"):
                project.submit(bob, wrong, {"level": 1}, "k")
        with pytest.raises(FeedbackError, match="seconds"):
            project.submit(ann, found.id, {"level": 1}, "k", float("nan"))
        with pytest.raises(FeedbackError, match="item 9"):
            project.item(9)
        assert project.events() == []


def test_batches_hold_different_items(database: str):
    with make(database) as project:
        project.add_items([group(number) for number in range(5)])
        annotator = project.add_annotator("judge", kind=AnnotatorKind.MODEL).id
        first = project.next_assignments(annotator, 3)
        assert len({a.item_id for a in first}) == 3
        assert {a.id for a in project.next_assignments(annotator, 3)} == {a.id for a in first}  # held ones come first
        assert len(project.next_assignments(annotator, 9)) == 5


def test_projects_of_one_database_do_not_meet(database: str):
    with make(database) as project, create_project(database, "other") as other:
        project.add_items([group(0)])
        ann = project.add_annotator("Ann").id
        assert idle(other, other.add_annotator("Ann").id) is IdleReason.FINISHED
        with pytest.raises(FeedbackError, match="this project"):
            other.next_assignment(ann)
        with pytest.raises(FeedbackError, match="this project"):
            other.item(1)
        with pytest.raises(FeedbackError, match="'study', 'other'"):
            open_project(database)
        with pytest.raises(FeedbackError, match="exists"):
            create_project(database, "other")


@pytest.mark.parametrize(
    "settings",
    [
        {"gold_share": 0.5, "repeat_share": 0.5},
        {"gold_share": -0.1},
        {"judgements_per_item": 0},
        {"lease_seconds": 0.0},
        {"lease_seconds": float("inf")},
        {"rating_min": 5.0, "rating_max": 1.0},
        {"kinds": ()},
        {"kinds": (QuestionKind.RATING,), "attributes": ()},
        {"kinds": ("pairwise9",)},
        {"selection": "surely"},
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any]):
    with pytest.raises(ConfigError, match="expected"):
        ProjectSettings(**settings)


def test_settings_survive_the_database(database: str):
    settings = ProjectSettings(kinds=("rating", "thumbs"), selection="uncertain", attributes=("kind",), seed=3)  # type: ignore[arg-type]  # as words
    create_project(database, "study", settings).close()
    with open_project(database) as project:
        assert project.settings == settings
        assert project.settings.selection is Selection.UNCERTAIN


def test_a_long_file_added_again_adds_nothing(tmp_path: Path):
    with make(str(tmp_path / "a.db")) as project:
        assert project.add_items([group(number) for number in range(450)]) == 450
        assert project.add_items([group(number) for number in range(460)]) == 10
        assert project.progress().num_items == 460
