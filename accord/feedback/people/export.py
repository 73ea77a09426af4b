"""What was judged, as Accord's groups: what `accord align` and `accord reward` read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import sqlalchemy as sa

from accord.feedback.people.access import find_annotators
from accord.feedback.people.answers import is_right, judgements_of, read_answer
from accord.feedback.people.items import known_answers, stored_group
from accord.feedback.people.store import ASSIGNMENTS, EVENTS, GROUPS, ITEMS, Desk
from accord.feedback.people.values import Annotator, AssignmentKind, EventKind, ItemRole, QuestionKind
from accord.records import Group, Judgement

COLLECTED = "collected"
"""Key of `Group.extra`: when, how fast, on which occasion each judgement was given, and what was skipped or flagged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportSettings:
    """What is exported beside the answers to finished work; each is another answer for the same responses."""

    include_unfinished: bool = False  # items that fewer annotators judged than the project asks for
    include_repeats: bool = False  # second answers of one annotator to one item
    include_gold: bool = False
    include_qualification: bool = False
    include_aside: bool = False  # items flagged as unsafe


@dataclass(slots=True)
class _Collected:
    judgements: list[Judgement] = field(default_factory=list)
    about: list[dict[str, Any]] = field(default_factory=list)  # one per judgement
    judges: dict[str, dict[str, str]] = field(default_factory=dict)
    passed: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {"skips": [], "flags": []})


def export_groups(desk: Desk, project_name: str, settings: ExportSettings) -> list[Group]:
    """Return the groups that were judged, with the latest answer of every assignment.

    Judgements carry the pseudonym, the order shown in terms of the group, and |level| as strength of a comparison.
    `extra["collected"]` has "judgements" (one entry per judgement: event, item, kind, seconds, created_at, comment,
    for known answers is_right), "judges" (each pseudonym's kind, prompt, version), "skips" and "flags".
    """
    judges = {annotator.id: annotator for annotator in find_annotators(desk)}
    found: dict[int, _Collected] = {}
    groups: dict[int, Group] = {}
    for row in _latest(desk, settings):
        group = groups.setdefault(row["group_id"], stored_group(row["row"]))
        own = found.setdefault(row["group_id"], _Collected())
        _collect(desk, own, group, row, judges[row["annotator_id"]])
    exported = []
    for number in sorted(found):
        own, group = found[number], groups[number]
        if not own.judgements:
            continue
        about = {"project": project_name, "judgements": own.about, "judges": own.judges, **own.passed}
        exported.append(
            replace(
                group,
                judgements=tuple(own.judgements),
                origin=group.origin or f"{project_name}:{number}",
                extra={**group.extra, COLLECTED: about},
            )
        )
    return exported


def _latest(desk: Desk, settings: ExportSettings) -> Iterable[sa.RowMapping]:
    """The last event of every assignment, unless it took the answer back, oldest first."""
    last = (
        sa.select(sa.func.max(EVENTS.c.id).label("id"))
        .where(EVENTS.c.project_id == desk.project_id, EVENTS.c.assignment_id.is_not(None))
        .group_by(EVENTS.c.assignment_id)
        .subquery()
    )
    roles = {
        ItemRole.WORK: True,
        ItemRole.GOLD: settings.include_gold,
        ItemRole.QUALIFICATION: settings.include_qualification,
    }
    conditions = [
        EVENTS.c.kind != str(EventKind.UNDO),
        ITEMS.c.role.in_([str(r) for r, wanted in roles.items() if wanted]),
    ]
    if not settings.include_unfinished:
        conditions.append(sa.or_(ITEMS.c.is_finished, ITEMS.c.role != str(ItemRole.WORK)))
    if not settings.include_repeats:
        conditions.append(ASSIGNMENTS.c.kind != str(AssignmentKind.REPEAT))
    if not settings.include_aside:
        conditions.append(sa.not_(ITEMS.c.is_aside))
    query = (
        sa.select(
            EVENTS,
            ITEMS.c.members,
            ITEMS.c.group_id,
            ITEMS.c.kind.label("question"),
            GROUPS.c.row,
            ASSIGNMENTS.c.kind.label("occasion"),
            ASSIGNMENTS.c.selected_by,
        )
        .join(last, last.c.id == EVENTS.c.id)
        .join(ASSIGNMENTS, ASSIGNMENTS.c.id == EVENTS.c.assignment_id)
        .join(ITEMS, ITEMS.c.id == EVENTS.c.item_id)
        .join(GROUPS, GROUPS.c.id == ITEMS.c.group_id)
        .where(*conditions)
        .order_by(EVENTS.c.id)
    )
    return desk.connection.execute(query).mappings()


def _collect(desk: Desk, own: _Collected, group: Group, row: sa.RowMapping, judge: Annotator) -> None:
    members: Sequence[int] = json.loads(row["members"])
    payload = json.loads(row["payload"])
    about: dict[str, Any] = {
        "event": row["id"],
        "item": row["item_id"],
        "kind": row["occasion"],
        "question": row["question"],
        "selected_by": row["selected_by"],
        "judge": judge.pseudonym,
        "seconds": row["seconds"],
        "created_at": row["created_at"],
    }
    own.judges[judge.pseudonym] = {"kind": str(judge.kind), "prompt": judge.prompt, "version": judge.version}
    if row["kind"] != EventKind.ANSWER:
        place = "skips" if row["kind"] == EventKind.SKIP else "flags"
        own.passed[place].append({**about, "responses": members, "reason": payload["reason"]})
        return
    answer = read_answer(QuestionKind(row["question"]), payload, desk.settings, num_responses=len(members))
    shown = [members[place] for place in json.loads(row["shown_order"])]
    given = judgements_of(answer, shown, judge.pseudonym)
    if answer.comment:
        about["comment"] = answer.comment
    if row["corrects"] is not None:
        about["corrects"] = row["corrects"]
    if row["occasion"] in (AssignmentKind.GOLD, AssignmentKind.QUALIFICATION):
        about["is_right"] = is_right(given, known_answers(group, members), desk.settings)
    own.judgements += given
    own.about += [about] * len(given)
