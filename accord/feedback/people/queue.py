"""Who is given what: leases, gold and repeated items, qualification, the uncertain first.

Functions of an open transaction that is alone in writing to its project. An item's slots are the judgements it still
wants; a lease takes one for a time, an answer for good.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection, Sequence
from random import Random
from typing import Any

import sqlalchemy as sa

from accord.errors import FeedbackError
from accord.feedback.people.answers import is_right, judgements_of, read_answer
from accord.feedback.people.items import known_answers, prompt_turns, response_text, stored_group
from accord.feedback.people.store import ANNOTATORS, ASSIGNMENTS, EVENTS, GROUPS, ITEMS, Desk
from accord.feedback.people.values import (
    AnnotatorState,
    Assignment,
    AssignmentKind,
    AssignmentState,
    EventKind,
    Idle,
    IdleReason,
    ItemRole,
    ProjectSettings,
    QuestionKind,
    Selection,
)

_OPEN = str(AssignmentState.OPEN)
_ANSWERED = str(AssignmentState.ANSWERED)


def take_next(
    desk: Desk, annotator_id: int, state: AnnotatorState, *, in_hand: Collection[int] = ()
) -> Assignment | Idle:
    """Return what the annotator judges next: what they hold, else a new assignment, leased to them.

    `in_hand`: items that are to be left out, because they were taken just now.
    """
    if state not in (AnnotatorState.QUALIFYING, AnnotatorState.ACTIVE):
        return Idle(reason=IdleReason.PAUSED)
    held = _held(desk, annotator_id, in_hand)
    if held is not None:
        return _lease(desk, held)
    if state is AnnotatorState.QUALIFYING:
        item_id = _unseen(desk, annotator_id, ItemRole.QUALIFICATION, in_hand)[:1]
        if item_id:
            return _assign(desk, annotator_id, item_id[0], AssignmentKind.QUALIFICATION)
        if in_hand:
            return Idle(reason=IdleReason.FINISHED)
        return take_next(desk, annotator_id, settle_qualification(desk, annotator_id))
    number = _count_assignments(desk, annotator_id)
    rng = Random(f"{desk.settings.seed}/{annotator_id}/{number}")
    is_control = desk.settings.selection is Selection.RANDOM or rng.random() < desk.settings.control_share
    work = _pick_work(desk, annotator_id, in_hand, by_draw=is_control)
    if work is None:
        left = _num_left(desk, annotator_id)
        return Idle(reason=IdleReason.LEASED if left else IdleReason.FINISHED, num_leased=left)
    extra = _pick_extra(desk, annotator_id, in_hand, rng)
    if extra is not None:
        return _assign(desk, annotator_id, *extra)
    chosen_by = Selection.RANDOM if is_control else Selection.UNCERTAIN
    return _assign(desk, annotator_id, work, AssignmentKind.WORK, selected_by=chosen_by)


def settle_qualification(desk: Desk, annotator_id: int) -> AnnotatorState:
    """Let the annotator in, or pause them, once nothing of the qualification is left; return where they stand."""
    if _unseen(desk, annotator_id, ItemRole.QUALIFICATION):
        return AnnotatorState.QUALIFYING
    closed = answers_checked(desk, annotator_id, AssignmentKind.QUALIFICATION)
    num_right = sum(closed)
    is_passed = num_right >= desk.settings.qualification_pass * len(closed)
    state = AnnotatorState.ACTIVE if is_passed else AnnotatorState.PAUSED
    note = f"qualification: {num_right} of {len(closed)} right, {desk.settings.qualification_pass:.0%} wanted"
    set_state(desk, annotator_id, state, note="" if is_passed else note, why=note)
    return state


def set_state(desk: Desk, annotator_id: int, state: AnnotatorState, *, note: str, why: str) -> None:
    """Record that an annotator's state changes, and why."""
    desk.connection.execute(
        ANNOTATORS.update().where(ANNOTATORS.c.id == annotator_id).values(state=str(state), note=note)
    )
    record(desk, EventKind.STATE, annotator_id, payload={"state": str(state), "why": why})


def answers_checked(desk: Desk, annotator_id: int, kind: AssignmentKind) -> list[bool]:
    """Return for each closed assignment of a kind whose answers are known whether it is right; a skip is not."""
    any_event = EVENTS.alias()
    last = sa.select(sa.func.max(any_event.c.id)).where(any_event.c.assignment_id == ASSIGNMENTS.c.id)
    rows = desk.connection.execute(
        sa.select(EVENTS.c.kind, EVENTS.c.payload, EVENTS.c.shown_order, ITEMS.c.members, ITEMS.c.kind, GROUPS.c.row)
        .select_from(ASSIGNMENTS)
        .join(EVENTS, EVENTS.c.id == last.scalar_subquery())
        .join(ITEMS, ITEMS.c.id == ASSIGNMENTS.c.item_id)
        .join(GROUPS, GROUPS.c.id == ITEMS.c.group_id)
        .where(
            ASSIGNMENTS.c.annotator_id == annotator_id, ASSIGNMENTS.c.kind == str(kind), ASSIGNMENTS.c.state != _OPEN
        )
    ).all()
    return [
        event == EventKind.ANSWER
        and answer_is_right(desk.settings, QuestionKind(question), payload, json.loads(order), members, group)
        for event, payload, order, members, question, group in rows
    ]


def answer_is_right(
    settings: ProjectSettings, kind: QuestionKind, payload: str, order: Sequence[int], members: str, group: str
) -> bool:
    """Whether a stored answer agrees with what is known of its item."""
    own = json.loads(members)
    answer = read_answer(kind, json.loads(payload), settings, num_responses=len(own))
    given = judgements_of(answer, [own[place] for place in order], None)
    return is_right(given, known_answers(stored_group(group), own), settings)


def load_assignment(desk: Desk, assignment_id: str, annotator_id: int) -> Assignment:
    """Return one of the annotator's assignments. Raises FeedbackError: not there, or not theirs (told alike)."""
    row = (
        desk.connection.execute(
            sa.select(ASSIGNMENTS, ITEMS.c.kind.label("question"), ITEMS.c.members, GROUPS.c.row)
            .join(ITEMS, ITEMS.c.id == ASSIGNMENTS.c.item_id)
            .join(GROUPS, GROUPS.c.id == ITEMS.c.group_id)
            .where(
                ASSIGNMENTS.c.id == assignment_id,
                ASSIGNMENTS.c.annotator_id == annotator_id,
                ASSIGNMENTS.c.project_id == desk.project_id,
            )
        )
        .mappings()
        .one_or_none()
    )
    if row is None:
        raise FeedbackError(f"got the assignment {assignment_id!r} — expected one of annotator {annotator_id}'s own")
    group, members, order = stored_group(row["row"]), json.loads(row["members"]), tuple(json.loads(row["shown_order"]))
    return Assignment(
        id=row["id"],
        item_id=row["item_id"],
        annotator_id=row["annotator_id"],
        kind=AssignmentKind(row["kind"]),
        question=QuestionKind(row["question"]),
        prompt=prompt_turns(group.prompt),
        responses=tuple(response_text(group.responses[members[index]].content) for index in order),
        shown_order=order,
        state=AssignmentState(row["state"]),
        assigned_at=row["assigned_at"],
        lease_until=row["lease_until"],
        selected_by=Selection(row["selected_by"]),
    )


def record(
    desk: Desk,
    kind: EventKind,
    annotator_id: int,
    *,
    payload: dict[str, Any],
    assignment: Assignment | None = None,
    seconds: float | None = None,
    corrects: int | None = None,
    key: str | None = None,
) -> int:
    """Add an event and return its id."""
    done = desk.connection.execute(
        EVENTS.insert().values(
            project_id=desk.project_id,
            annotator_id=annotator_id,
            assignment_id=assignment and assignment.id,
            item_id=assignment and assignment.item_id,
            kind=str(kind),
            payload=json.dumps(payload, sort_keys=True),
            shown_order=json.dumps(assignment.shown_order) if assignment else None,
            seconds=seconds,
            corrects=corrects,
            idempotency_key=key,
            created_at=desk.now,
        )
    )
    assert done.inserted_primary_key is not None
    return int(done.inserted_primary_key[0])


def close_assignment(desk: Desk, assignment: Assignment, state: AssignmentState) -> None:
    """Put an assignment into a state, OPEN to open it again with a new lease, and count its item's judgements."""
    lease = desk.now + desk.settings.lease_seconds if state is AssignmentState.OPEN else assignment.lease_until
    desk.connection.execute(
        ASSIGNMENTS.update().where(ASSIGNMENTS.c.id == assignment.id).values(state=str(state), lease_until=lease)
    )
    change = (state is AssignmentState.ANSWERED) - (assignment.state is AssignmentState.ANSWERED)
    if assignment.kind is AssignmentKind.WORK and change:
        count = ITEMS.c.num_judgements + change
        desk.connection.execute(
            ITEMS.update()
            .where(ITEMS.c.id == assignment.item_id)
            .values(num_judgements=count, is_finished=count >= desk.settings.judgements_per_item)
        )
    if AssignmentState.FLAGGED in (state, assignment.state):
        _set_aside(desk, assignment.item_id, is_new=state is AssignmentState.FLAGGED)


def _set_aside(desk: Desk, item_id: int, *, is_new: bool) -> None:
    """A flag sets its item aside; a flag taken back returns it where nobody else flagged it."""
    flagged = sa.exists().where(
        ASSIGNMENTS.c.item_id == item_id, ASSIGNMENTS.c.state == str(AssignmentState.FLAGGED)
    )  # what the caller changed is seen already
    aside = sa.true() if is_new else sa.and_(ITEMS.c.is_aside, flagged)
    desk.connection.execute(ITEMS.update().where(ITEMS.c.id == item_id).values(is_aside=aside))


def release_leases(desk: Desk, annotator_id: int) -> None:
    """Return to the queue what an annotator holds."""
    desk.connection.execute(
        ASSIGNMENTS.update()
        .where(ASSIGNMENTS.c.annotator_id == annotator_id, ASSIGNMENTS.c.state == _OPEN)
        .values(lease_until=desk.now)
    )


def _held(desk: Desk, annotator_id: int, in_hand: Collection[int]) -> Assignment | None:
    """What the annotator was given and did not answer; the newest lease first, so that what was undone comes first."""
    found = desk.connection.execute(
        sa.select(ASSIGNMENTS.c.id)
        .join(ITEMS, ITEMS.c.id == ASSIGNMENTS.c.item_id)
        .where(
            ASSIGNMENTS.c.annotator_id == annotator_id,
            ASSIGNMENTS.c.state == _OPEN,
            ASSIGNMENTS.c.lease_until > desk.now,
            sa.not_(ITEMS.c.is_aside),
            *([ASSIGNMENTS.c.item_id.not_in(in_hand)] if in_hand else []),
        )
        .order_by(ASSIGNMENTS.c.lease_until.desc())
        .limit(1)
    ).scalar_one_or_none()
    return None if found is None else load_assignment(desk, found, annotator_id)


def _lease(desk: Desk, assignment: Assignment) -> Assignment:
    until = desk.now + desk.settings.lease_seconds
    desk.connection.execute(ASSIGNMENTS.update().where(ASSIGNMENTS.c.id == assignment.id).values(lease_until=until))
    return load_assignment(desk, assignment.id, assignment.annotator_id)


def _assign(
    desk: Desk, annotator_id: int, item_id: int, kind: AssignmentKind, *, selected_by: Selection = Selection.RANDOM
) -> Assignment:
    """Give an item: anew, or the assignment the annotator once let run out."""
    occasion = int(kind is AssignmentKind.REPEAT)
    earlier = desk.connection.execute(
        sa.select(ASSIGNMENTS.c.id).where(
            ASSIGNMENTS.c.annotator_id == annotator_id,
            ASSIGNMENTS.c.item_id == item_id,
            ASSIGNMENTS.c.occasion == occasion,
        )
    ).scalar_one_or_none()
    if earlier is not None:
        return _lease(desk, load_assignment(desk, earlier, annotator_id))
    name = secrets.token_urlsafe(12)
    desk.connection.execute(
        ASSIGNMENTS.insert().values(
            id=name,
            project_id=desk.project_id,
            item_id=item_id,
            annotator_id=annotator_id,
            kind=str(kind),
            occasion=occasion,
            number=_count_assignments(desk, annotator_id),
            shown_order=json.dumps(_order(desk, annotator_id, item_id, is_repeat=bool(occasion))),
            selected_by=str(selected_by),
            state=_OPEN,
            assigned_at=desk.now,
            lease_until=desk.now + desk.settings.lease_seconds,
        )
    )
    return load_assignment(desk, name, annotator_id)


def _order(desk: Desk, annotator_id: int, item_id: int, *, is_repeat: bool) -> list[int]:
    """A random order to show the responses in; the repetition has the first time's reversed."""
    if is_repeat:
        first = desk.connection.execute(
            sa.select(ASSIGNMENTS.c.shown_order).where(
                ASSIGNMENTS.c.annotator_id == annotator_id,
                ASSIGNMENTS.c.item_id == item_id,
                ASSIGNMENTS.c.occasion == 0,
            )
        ).scalar_one()
        return json.loads(first)[::-1]
    members = desk.connection.execute(sa.select(ITEMS.c.members).where(ITEMS.c.id == item_id)).scalar_one()
    order = list(range(len(json.loads(members))))
    Random(f"{desk.settings.seed}/order/{annotator_id}/{item_id}").shuffle(order)
    return order


def _count_assignments(desk: Desk, annotator_id: int) -> int:
    query = sa.select(sa.func.count()).where(ASSIGNMENTS.c.annotator_id == annotator_id)
    return desk.connection.execute(query).scalar_one()


def _open_items(
    desk: Desk, annotator_id: int, role: ItemRole, in_hand: Collection[int] = ()
) -> list[sa.ColumnElement[bool]]:
    """The conditions for an item to be given to the annotator at all, slots aside."""
    seen = sa.exists().where(
        ASSIGNMENTS.c.item_id == ITEMS.c.id,
        ASSIGNMENTS.c.annotator_id == annotator_id,
        ASSIGNMENTS.c.state != _OPEN,
    )
    return [
        ITEMS.c.project_id == desk.project_id,
        ITEMS.c.role == str(role),
        ITEMS.c.is_finished == sa.false(),
        ITEMS.c.is_aside == sa.false(),
        sa.not_(seen),
        *([ITEMS.c.id.not_in(in_hand)] if in_hand else []),
    ]


def _pick_work(desk: Desk, annotator_id: int, in_hand: Collection[int], *, by_draw: bool) -> int | None:
    taken = (
        sa.select(sa.func.count())
        .where(
            ASSIGNMENTS.c.item_id == ITEMS.c.id,
            ASSIGNMENTS.c.state == _OPEN,
            ASSIGNMENTS.c.kind == str(AssignmentKind.WORK),
            ASSIGNMENTS.c.lease_until > desk.now,
            ASSIGNMENTS.c.annotator_id != annotator_id,
        )
        .scalar_subquery()
    )
    order = (ITEMS.c.draw,) if by_draw else (ITEMS.c.rank, ITEMS.c.draw)
    return desk.connection.execute(
        sa.select(ITEMS.c.id)
        .where(
            *_open_items(desk, annotator_id, ItemRole.WORK, in_hand),
            ITEMS.c.num_judgements + taken < desk.settings.judgements_per_item,
        )
        .order_by(*order)
        .limit(1)
    ).scalar_one_or_none()


def _num_left(desk: Desk, annotator_id: int) -> int:
    """How many unfinished items the annotator may yet be given, were it not for others' leases."""
    query = sa.select(sa.func.count(ITEMS.c.id)).where(*_open_items(desk, annotator_id, ItemRole.WORK))
    return desk.connection.execute(query).scalar_one()


def _unseen(desk: Desk, annotator_id: int, role: ItemRole, in_hand: Collection[int] = ()) -> list[int]:
    """Items of a role that the annotator has not answered, in random order."""
    query = sa.select(ITEMS.c.id).where(*_open_items(desk, annotator_id, role, in_hand)).order_by(ITEMS.c.draw)
    return list(desk.connection.execute(query).scalars())


def _pick_extra(
    desk: Desk, annotator_id: int, in_hand: Collection[int], rng: Random
) -> tuple[int, AssignmentKind] | None:
    """Draw whether a gold item or a repetition comes now instead of work, and which."""
    drawn, settings = rng.random(), desk.settings
    if drawn < settings.gold_share:
        gold = _unseen(desk, annotator_id, ItemRole.GOLD, in_hand)
        return (rng.choice(gold), AssignmentKind.GOLD) if gold else None
    if drawn < settings.gold_share + settings.repeat_share:
        again = [item for item in _repeatable(desk, annotator_id) if item not in in_hand]
        return (rng.choice(again), AssignmentKind.REPEAT) if again else None
    return None


def _repeatable(desk: Desk, annotator_id: int) -> list[int]:
    """Items of work that the annotator answered once, with enough other items given since."""
    repeated = ASSIGNMENTS.alias()
    latest = _count_assignments(desk, annotator_id) - desk.settings.repeat_gap
    query = (
        sa.select(ASSIGNMENTS.c.item_id)
        .join(ITEMS, ITEMS.c.id == ASSIGNMENTS.c.item_id)
        .where(
            ASSIGNMENTS.c.annotator_id == annotator_id,
            ASSIGNMENTS.c.kind == str(AssignmentKind.WORK),
            ASSIGNMENTS.c.state == _ANSWERED,
            ASSIGNMENTS.c.number < latest,
            ITEMS.c.is_aside == sa.false(),
            ~sa.exists().where(
                repeated.c.item_id == ASSIGNMENTS.c.item_id,
                repeated.c.annotator_id == annotator_id,
                repeated.c.occasion == 1,
                repeated.c.state != _OPEN,
            ),
        )
        .order_by(ASSIGNMENTS.c.number)
    )
    return list(desk.connection.execute(query).scalars())
