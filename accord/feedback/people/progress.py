"""How far a project and its annotators are, counted from the store."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict

import sqlalchemy as sa

from accord.feedback.people.access import find_annotators
from accord.feedback.people.queue import answers_checked
from accord.feedback.people.store import ASSIGNMENTS, EVENTS, ITEMS, Desk
from accord.feedback.people.values import (
    Annotator,
    AnnotatorProgress,
    AssignmentKind,
    AssignmentState,
    EventKind,
    ItemRole,
    Progress,
)

_COUNTED = (str(AssignmentKind.WORK), str(AssignmentKind.REPEAT))


def measure_progress(desk: Desk) -> Progress:
    """Count items, judgements, leases and what each annotator did."""
    states: dict[int, Counter[str]] = defaultdict(Counter)
    work_judgements = 0
    counted = desk.connection.execute(
        sa.select(ASSIGNMENTS.c.annotator_id, ASSIGNMENTS.c.kind, ASSIGNMENTS.c.state, sa.func.count())
        .where(ASSIGNMENTS.c.project_id == desk.project_id)
        .group_by(ASSIGNMENTS.c.annotator_id, ASSIGNMENTS.c.kind, ASSIGNMENTS.c.state)
    )
    for annotator_id, kind, state, number in counted:
        if state == AssignmentState.ANSWERED and kind == AssignmentKind.WORK:
            work_judgements += number
        if state != AssignmentState.ANSWERED or kind in _COUNTED:
            states[annotator_id][state] += number
    items = _count_items(desk)
    seconds = _seconds(desk)
    annotators = tuple(
        _annotator_progress(desk, annotator, states[annotator.id], seconds[annotator.id])
        for annotator in find_annotators(desk)
    )
    return Progress(
        num_items=items["all"],
        num_finished=items["finished"],
        num_aside=items["aside"],
        num_judgements=work_judgements,
        num_wanted=(items["all"] - items["aside"]) * desk.settings.judgements_per_item,
        num_leased=_count_leases(desk),
        num_skips=sum(counts[str(AssignmentState.SKIPPED)] for counts in states.values()),
        num_flags=sum(counts[str(AssignmentState.FLAGGED)] for counts in states.values()),
        annotators=annotators,
    )


def _annotator_progress(
    desk: Desk, annotator: Annotator, states: Counter[str], seconds: list[float]
) -> AnnotatorProgress:
    gold = answers_checked(desk, annotator.id, AssignmentKind.GOLD)
    return AnnotatorProgress(
        annotator=annotator,
        num_judgements=states[str(AssignmentState.ANSWERED)],
        num_skips=states[str(AssignmentState.SKIPPED)],
        num_flags=states[str(AssignmentState.FLAGGED)],
        num_gold=len(gold),
        num_gold_right=sum(gold),
        median_seconds=statistics.median(seconds) if seconds else None,
    )


def _count_items(desk: Desk) -> Counter[str]:
    counts: Counter[str] = Counter()
    rows = desk.connection.execute(
        sa.select(ITEMS.c.is_finished, ITEMS.c.is_aside, sa.func.count())
        .where(ITEMS.c.project_id == desk.project_id, ITEMS.c.role == str(ItemRole.WORK))
        .group_by(ITEMS.c.is_finished, ITEMS.c.is_aside)
    )
    for is_finished, is_aside, number in rows:
        counts["all"] += number
        counts["finished"] += number * bool(is_finished)
        counts["aside"] += number * bool(is_aside)
    return counts


def _count_leases(desk: Desk) -> int:
    return desk.connection.execute(
        sa.select(sa.func.count()).where(
            ASSIGNMENTS.c.project_id == desk.project_id,
            ASSIGNMENTS.c.state == str(AssignmentState.OPEN),
            ASSIGNMENTS.c.lease_until > desk.now,
        )
    ).scalar_one()


def _seconds(desk: Desk) -> dict[int, list[float]]:
    """The times of the latest answers, by annotator."""
    last = (
        sa.select(sa.func.max(EVENTS.c.id))
        .where(EVENTS.c.project_id == desk.project_id, EVENTS.c.assignment_id.is_not(None))
        .group_by(EVENTS.c.assignment_id)
    )
    rows = desk.connection.execute(
        sa.select(EVENTS.c.annotator_id, EVENTS.c.seconds).where(
            EVENTS.c.id.in_(last), EVENTS.c.kind == str(EventKind.ANSWER), EVENTS.c.seconds.is_not(None)
        )
    )
    found: dict[int, list[float]] = defaultdict(list)
    for annotator_id, seconds in rows:
        found[annotator_id].append(seconds)
    return found
