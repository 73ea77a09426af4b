"""What annotators say, written down once: events, the state of assignments, what is taken back.

Functions of an open transaction that is alone in writing to its project.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from accord.errors import FeedbackError
from accord.feedback.people.access import get_annotator
from accord.feedback.people.answers import check_text
from accord.feedback.people.queue import (
    close_assignment,
    load_assignment,
    record,
    settle_qualification,
)
from accord.feedback.people.store import ASSIGNMENTS, EVENTS, Desk
from accord.feedback.people.values import (
    AnnotatorState,
    Assignment,
    AssignmentKind,
    AssignmentState,
    Event,
    EventKind,
)

_WORKING = (AnnotatorState.QUALIFYING, AnnotatorState.ACTIVE)
_MAX_KEY = 200
_STATES = {
    EventKind.ANSWER: AssignmentState.ANSWERED,
    EventKind.SKIP: AssignmentState.SKIPPED,
    EventKind.FLAG: AssignmentState.FLAGGED,
}


def answer_assignment(
    desk: Desk,
    assignment: Assignment,
    kind: EventKind,
    payload: dict[str, Any],
    *,
    key: str,
    seconds: float | None,
) -> int:
    """Record what an annotator says to an assignment, once per key, close it, and return the event's id.

    Raises FeedbackError when the key said something else, the assignment is closed, or the annotator may not work.
    """
    earlier = _find_replay(desk, assignment.annotator_id, key, kind, assignment.id, payload)
    if earlier is not None:
        return earlier
    if seconds is not None and not (math.isfinite(seconds) and seconds >= 0):
        raise FeedbackError(f"got {seconds} seconds on an item — expected a number ≥ 0")
    _check_working(get_annotator(desk, assignment.annotator_id).state)
    if assignment.state is not AssignmentState.OPEN:
        raise FeedbackError(
            f"got a second answer to the assignment {assignment.id!r} — expected one — undo the first to change it"
        )
    event = record(
        desk,
        kind,
        assignment.annotator_id,
        payload=payload,
        assignment=assignment,
        seconds=seconds,
        corrects=_undone_event(desk, assignment.id),
        key=key,
    )
    close_assignment(desk, assignment, _STATES[kind])
    if assignment.kind is AssignmentKind.QUALIFICATION:
        settle_qualification(desk, assignment.annotator_id)
    return event


def take_back(desk: Desk, annotator_id: int, *, key: str) -> int:
    """Open again what the annotator closed last, and return the id of the event that says so.

    Raises FeedbackError when there is nothing to take back, or the annotator may not work.
    """
    state = get_annotator(desk, annotator_id).state
    earlier = _find_replay(desk, annotator_id, key, EventKind.UNDO, None, None)
    if earlier is not None:
        return earlier
    _check_working(state)
    last, assignment_id = _last_closing(desk, annotator_id, with_qualification=state is AnnotatorState.QUALIFYING)
    assignment = load_assignment(desk, assignment_id, annotator_id)
    close_assignment(desk, assignment, AssignmentState.OPEN)
    return record(desk, EventKind.UNDO, annotator_id, payload={}, assignment=assignment, corrects=last, key=key)


def _find_replay(
    desk: Desk,
    annotator_id: int,
    key: str,
    kind: EventKind,
    assignment_id: str | None,
    payload: Mapping[str, Any] | None,
) -> int | None:
    """Return the event that this key made before. Raises FeedbackError when it said something else."""
    if not key or len(key) > _MAX_KEY:
        raise FeedbackError(f"got an idempotency key of {len(key)} characters — expected 1 to {_MAX_KEY}")
    check_text("an idempotency key", key, _MAX_KEY)
    row = desk.connection.execute(
        sa.select(EVENTS).where(EVENTS.c.annotator_id == annotator_id, EVENTS.c.idempotency_key == key)
    ).one_or_none()
    if row is None:
        return None
    is_same = kind is EventKind.UNDO or (row.assignment_id == assignment_id and json.loads(row.payload) == payload)
    if row.kind != kind or not is_same:
        raise FeedbackError(f"got the idempotency key {key!r} for something else than before — use a key once")
    return row.id


def _check_working(state: AnnotatorState) -> None:
    if state not in _WORKING:
        raise FeedbackError(f"got something from an annotator who is {state} — expected one who may work")


def _last_closing(desk: Desk, annotator_id: int, *, with_qualification: bool) -> tuple[int, str]:
    """The event that closed what the annotator closed last, and the assignment."""
    kinds = [kind for kind in AssignmentKind if with_qualification or kind is not AssignmentKind.QUALIFICATION]
    found = desk.connection.execute(
        sa.select(EVENTS.c.id, EVENTS.c.assignment_id)
        .join(ASSIGNMENTS, ASSIGNMENTS.c.id == EVENTS.c.assignment_id)
        .where(
            EVENTS.c.annotator_id == annotator_id,
            EVENTS.c.kind.in_([str(kind) for kind in _STATES]),
            ASSIGNMENTS.c.state != str(AssignmentState.OPEN),
            ASSIGNMENTS.c.kind.in_([str(kind) for kind in kinds]),
        )
        .order_by(EVENTS.c.id.desc())
        .limit(1)
    ).one_or_none()
    if found is None:
        raise FeedbackError("got an undo — expected something to take back: there is nothing yet")
    return found.id, found.assignment_id


def _undone_event(desk: Desk, assignment_id: str) -> int | None:
    """The event that the assignment's last undo took back: what is said now corrects it."""
    return desk.connection.execute(
        sa.select(EVENTS.c.corrects)
        .where(EVENTS.c.assignment_id == assignment_id, EVENTS.c.kind == str(EventKind.UNDO))
        .order_by(EVENTS.c.id.desc())
        .limit(1)
    ).scalar_one_or_none()


def to_event(row: sa.RowMapping) -> Event:
    """Return a row of the table as a value."""
    order = row["shown_order"]
    return Event(
        id=row["id"],
        kind=EventKind(row["kind"]),
        annotator_id=row["annotator_id"],
        assignment_id=row["assignment_id"],
        item_id=row["item_id"],
        payload=json.loads(row["payload"]),
        shown_order=None if order is None else tuple(json.loads(order)),
        seconds=row["seconds"],
        corrects=row["corrects"],
        idempotency_key=row["idempotency_key"],
        created_at=row["created_at"],
    )
