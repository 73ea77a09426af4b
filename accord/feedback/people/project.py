"""A project: what annotators, managers and programs may ask of a collection of judgements."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import sqlalchemy as sa

from accord.data import write_groups
from accord.errors import FeedbackError
from accord.feedback.people import access
from accord.feedback.people.answers import check_text, read_answer
from accord.feedback.people.export import ExportSettings, export_groups
from accord.feedback.people.items import Score, add_rows, group_rows, load_item
from accord.feedback.people.progress import measure_progress
from accord.feedback.people.queue import load_assignment, release_leases, set_state, take_next
from accord.feedback.people.recording import answer_assignment, take_back, to_event
from accord.feedback.people.store import EVENTS, ITEMS, PROJECTS, Desk, Store
from accord.feedback.people.values import (
    Annotator,
    AnnotatorKind,
    AnnotatorState,
    Assignment,
    Event,
    EventKind,
    Idle,
    Item,
    ItemRole,
    Progress,
    ProjectSettings,
    QuestionKind,
    Role,
    settings_from_json,
)
from accord.records import Group

_WORKING = (AnnotatorState.QUALIFYING, AnnotatorState.ACTIVE)
_MAX_PROJECT_NAME = 100
_PART = 200  # groups stored in one transaction


def create_project(
    url: str | Path, name: str, settings: ProjectSettings | None = None, *, clock: Callable[[], float] = time.time
) -> Project:
    """Create a project in a database (made or brought up to date where needed) and return it, open.

    `url`: the path of an SQLite file, or `postgresql://…`. Raises FeedbackError when the name is taken.
    """
    if not name.strip() or len(name) > _MAX_PROJECT_NAME:
        raise FeedbackError(f"got the project name {name[:40]!r} — expected 1 to {_MAX_PROJECT_NAME} characters")
    check_text("a project name", name, _MAX_PROJECT_NAME)
    settings = settings or ProjectSettings()
    store = Store(url, is_new=True)
    try:
        with store.writing() as connection:
            if connection.execute(sa.select(PROJECTS.c.id).where(PROJECTS.c.name == name)).first():
                raise FeedbackError(f"got the project {name!r}, which exists — open it, or choose another name")
            values = {"name": name, "settings": json.dumps(settings.to_json()), "created_at": clock()}
            done = connection.execute(PROJECTS.insert().values(values))
        assert done.inserted_primary_key is not None
        return Project(store, int(done.inserted_primary_key[0]), name, settings, clock)
    except BaseException:
        store.close()
        raise


def open_project(url: str | Path, name: str | None = None, *, clock: Callable[[], float] = time.time) -> Project:
    """Open a project of an existing database, migrated where it is older; `name` may be left out where there is one.

    Raises FeedbackError when the database or the project is not there.
    """
    store = Store(url)
    try:
        with store.reading() as connection:
            rows = connection.execute(sa.select(PROJECTS).order_by(PROJECTS.c.id)).mappings().all()
        chosen = [row for row in rows if name in (None, row["name"])]
        if len(chosen) != 1:
            known = ", ".join(repr(row["name"]) for row in rows) or "none"
            raise FeedbackError(f"got the project {name!r} — expected one of those in the database: {known}")
        settings = settings_from_json(json.loads(chosen[0]["settings"]))
        return Project(store, chosen[0]["id"], chosen[0]["name"], settings, clock)
    except BaseException:
        store.close()
        raise


def list_projects(url: str | Path) -> list[str]:
    """Return the names of the projects of a database, oldest first."""
    store = Store(url)
    try:
        with store.reading() as connection:
            return list(connection.execute(sa.select(PROJECTS.c.name).order_by(PROJECTS.c.id)).scalars())
    finally:
        store.close()


class Project:
    """One project of a database; safe to use from several threads, and from several processes that each open it.

    Every call that changes something is one transaction: when it returns, its effect is on disk (but for leases, which
    are with the next judgement).
    All raise FeedbackError for what is not there, not theirs, or cannot be done now.
    """

    def __init__(
        self, store: Store, project_id: int, name: str, settings: ProjectSettings, clock: Callable[[], float]
    ) -> None:
        """Not to be called: `create_project` and `open_project` do."""
        self.id, self.name, self.settings = project_id, name, settings
        self._store, self._clock = store, clock

    def add_items(
        self,
        groups: Sequence[Group],
        *,
        kind: QuestionKind | None = None,
        role: ItemRole = ItemRole.WORK,
        scores: Sequence[Sequence[Score]] | None = None,
        num_pairs: int | None = None,
    ) -> int:
        """Turn groups into items and return how many are new (the same question is never stored twice).

        `kind` None: the first of `settings.kinds`. Pairwise: an item per pair (`num_pairs` of them per group, all when
        None); ranking: one per group; else one per response. GOLD and QUALIFICATION groups carry the known answers as
        their judgements. `scores`: per group and response a model's score, or one per member of an ensemble; needed
        for the UNCERTAIN selection. A long file takes several transactions: after a crash, add it again.
        """
        kind = kind or self.settings.kinds[0]
        found = group_rows(groups, kind, role, self.settings, scores=scores, num_pairs=num_pairs)
        num_new = 0
        for start in range(0, len(found), _PART):  # so that annotators need not wait for all of a long file
            with self._writing() as desk:
                num_new += add_rows(desk, found[start : start + _PART])
        return num_new

    def item(self, item_id: int) -> Item:
        """Return an item."""
        with self._reading() as desk:
            return load_item(desk, item_id)[0]

    def item_extra(self, item_id: int) -> Mapping[str, Any]:
        """Return the further columns of the row that an item was made of (what verifiers read)."""
        with self._reading() as desk:
            return load_item(desk, item_id)[1].extra

    def release_item(self, item_id: int) -> None:
        """Return a flagged item to the queue."""
        with self._writing() as desk:
            load_item(desk, item_id)
            desk.connection.execute(ITEMS.update().where(ITEMS.c.id == item_id).values(is_aside=False))

    def next_assignment(self, annotator_id: int) -> Assignment | Idle:
        """Return what the annotator has to judge next, leased to them; asked again before an answer, the same."""
        with self._writing(is_durable=False) as desk:
            state = access.get_annotator(desk, annotator_id).state
            return take_next(desk, annotator_id, state)

    def next_assignments(self, annotator_id: int, limit: int) -> list[Assignment]:
        """Return up to `limit` assignments at once, as for a model that judges in batches: those held first."""
        taken: list[Assignment] = []
        with self._writing(is_durable=False) as desk:
            while len(taken) < limit:
                state = access.get_annotator(desk, annotator_id).state
                found = take_next(desk, annotator_id, state, in_hand=[assignment.item_id for assignment in taken])
                if isinstance(found, Idle):
                    break
                taken.append(found)
        return taken

    def assignment(self, annotator_id: int, assignment_id: str) -> Assignment:
        """Return one of the annotator's own assignments; another's is an error like one that is not there."""
        with self._reading() as desk:
            return load_assignment(desk, assignment_id, annotator_id)

    def submit(
        self,
        annotator_id: int,
        assignment_id: str,
        payload: Mapping[str, Any],
        idempotency_key: str,
        seconds: float | None = None,
    ) -> int:
        """Record an answer and return its event's id, once it is on disk.

        The same key with the same content returns the same event again; with another content it is an error, as is an
        assignment that was answered already. An answer after the lease has run out still counts.
        """
        with self._writing() as desk:
            assignment = load_assignment(desk, assignment_id, annotator_id)
            answer = read_answer(assignment.question, payload, self.settings, num_responses=len(assignment.responses))
            return answer_assignment(
                desk, assignment, EventKind.ANSWER, answer.model_dump(), key=idempotency_key, seconds=seconds
            )

    def skip(
        self, annotator_id: int, assignment_id: str, reason: str, idempotency_key: str, seconds: float | None = None
    ) -> int:
        """Pass on an item, saying why; it goes to others and never to this annotator again. Returns the event's id."""
        with self._writing() as desk:
            assignment = load_assignment(desk, assignment_id, annotator_id)
            payload = {"reason": self._reason(reason)}
            return answer_assignment(desk, assignment, EventKind.SKIP, payload, key=idempotency_key, seconds=seconds)

    def flag_unsafe(
        self, annotator_id: int, assignment_id: str, reason: str, idempotency_key: str, seconds: float | None = None
    ) -> int:
        """Flag an item as unsafe: it is set aside for everybody until a manager releases it. Returns the event's id."""
        with self._writing() as desk:
            assignment = load_assignment(desk, assignment_id, annotator_id)
            payload = {"reason": self._reason(reason)}
            return answer_assignment(desk, assignment, EventKind.FLAG, payload, key=idempotency_key, seconds=seconds)

    def undo(self, annotator_id: int, idempotency_key: str) -> int:
        """Take back the annotator's last answer, skip or flag and return the event's id; it comes next again.

        Raises FeedbackError when there is nothing to take back; a finished qualification stands.
        """
        with self._writing() as desk:
            return take_back(desk, annotator_id, key=idempotency_key)

    def progress(self) -> Progress:
        """Return how far the project and each annotator are."""
        with self._reading() as desk:
            return measure_progress(desk)

    def events(self, since: int = 0, limit: int | None = None) -> list[Event]:
        """Return the events after the one of id `since`, oldest first."""
        query = (
            sa.select(EVENTS)
            .where(EVENTS.c.project_id == self.id, EVENTS.c.id > since)
            .order_by(EVENTS.c.id)
            .limit(limit)
        )
        with self._reading() as desk:
            return [to_event(row) for row in desk.connection.execute(query).mappings()]

    def export(self, path: str | Path | None = None, settings: ExportSettings | None = None) -> list[Group]:
        """Return the judged groups; with `path` (.jsonl, .jsonl.gz, .parquet) also write them.

        Without settings: answers to finished work, the latest of each, without gold, qualification and repetitions.
        """
        with self._reading() as desk:
            groups = export_groups(desk, self.name, settings or ExportSettings())
        if path is not None:
            write_groups(path, groups)
        return groups

    def backup(self, path: str | Path) -> None:
        """Write the whole database as one SQLite file, consistent, while others go on working."""
        self._store.backup(path)

    def annotators(self) -> list[Annotator]:
        """Return everybody who is or was invited, in the order of invitation, managers too."""
        with self._reading() as desk:
            return access.find_annotators(desk)

    def annotator(self, annotator_id: int) -> Annotator:
        """Return one annotator."""
        with self._reading() as desk:
            return access.get_annotator(desk, annotator_id)

    def add_annotator(
        self,
        name: str,
        *,
        role: Role = Role.ANNOTATOR,
        kind: AnnotatorKind = AnnotatorKind.PERSON,
        prompt: str = "",
        version: str = "",
    ) -> Annotator:
        """Add an annotator without an invitation (a model, a simulated one, the manager on this machine).

        The same name, kind, prompt and version give the same annotator again. Models begin without qualification.
        """
        with self._writing() as desk:
            for known in access.find_annotators(desk):
                same = (known.name, known.role, known.kind, known.prompt, known.version)
                if same == (name, role, kind, prompt, version) and known.state is not AnnotatorState.REVOKED:
                    return known
            is_model = kind is AnnotatorKind.MODEL
            state = AnnotatorState.ACTIVE if is_model else access.arrival_state(desk, role)
            return access.add_annotator(
                desk, _checked_name(name), role=role, kind=kind, state=state, prompt=prompt, version=version
            )

    def create_invitation(self, role: Role = Role.ANNOTATOR, *, valid_seconds: float = 14 * 86400.0) -> str:
        """Return a new single-use token for an invitation link; only its hash is stored."""
        with self._writing() as desk:
            invited = access.add_annotator(
                desk,
                "",
                role=role,
                kind=AnnotatorKind.PERSON,
                state=AnnotatorState.INVITED,
                prompt="",
                version="",
            )
            return access.create_token(desk, invited.id, access.INVITATION, valid_seconds)

    def is_invitation(self, token: str) -> bool:
        """Whether the token could be redeemed now (for the page that asks for the name)."""
        with self._reading() as desk:
            return access.token_owner(desk, token, access.INVITATION) is not None

    def redeem_invitation(self, token: str, name: str) -> Annotator:
        """Use up a token: the invited one is now known by `name`, and qualifies or works.

        Every token that is no good meets the same error.
        """
        with self._writing() as desk:
            invited = access.token_owner(desk, token, access.INVITATION)
            if invited is None:
                raise FeedbackError("got an invitation that is unknown, used or over — ask for a new link")
            access.end_token(desk, token)
            access.rename(desk, invited.id, _checked_name(name))
            state = access.arrival_state(desk, invited.role)
            set_state(desk, invited.id, state, note="", why="invitation redeemed")
            return access.get_annotator(desk, invited.id)

    def pause_annotator(self, annotator_id: int, why: str) -> None:
        """Give the annotator nothing more to do until resumed; what they hold goes back to the queue."""
        self._check_reason_and_set(annotator_id, AnnotatorState.PAUSED, why, _WORKING)

    def resume_annotator(self, annotator_id: int) -> None:
        """Let a paused annotator work (one who failed the qualification too)."""
        self._check_reason_and_set(annotator_id, AnnotatorState.ACTIVE, "resumed", (AnnotatorState.PAUSED,))

    def revoke_annotator(self, annotator_id: int) -> None:
        """Shut an annotator out for good: sessions and invitations void, leases back; what they judged stays."""
        everywhere = tuple(state for state in AnnotatorState if state is not AnnotatorState.REVOKED)
        self._check_reason_and_set(annotator_id, AnnotatorState.REVOKED, "revoked", everywhere)

    def open_session(self, annotator_id: int, *, valid_seconds: float = 7 * 86400.0) -> str:
        """Return a new session token for the annotator's cookie; only its hash is stored."""
        with self._writing() as desk:
            owner = access.get_annotator(desk, annotator_id)
            if owner.state in (AnnotatorState.INVITED, AnnotatorState.REVOKED):
                raise FeedbackError(f"got annotator {annotator_id}, who is {owner.state} — expected somebody let in")
            return access.create_token(desk, annotator_id, access.SESSION, valid_seconds)

    def session_annotator(self, token: str) -> Annotator | None:
        """Return whose session this is; None when unknown, over, closed or revoked."""
        with self._reading() as desk:
            return access.token_owner(desk, token, access.SESSION)

    def close_session(self, token: str) -> None:
        """End a session; an unknown one is no error."""
        with self._writing() as desk:
            if access.token_owner(desk, token, access.SESSION) is not None:
                access.end_token(desk, token)

    def close(self) -> None:
        """Close the connections to the database."""
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def _reading(self) -> Iterator[Desk]:
        with self._store.reading() as connection:
            yield Desk(connection=connection, project_id=self.id, settings=self.settings, now=self._clock())

    @contextmanager
    def _writing(self, *, is_durable: bool = True) -> Iterator[Desk]:
        with self._store.writing(self.id, is_durable=is_durable) as connection:
            yield Desk(connection=connection, project_id=self.id, settings=self.settings, now=self._clock())

    def _reason(self, reason: str) -> str:
        if not reason.strip():
            raise FeedbackError("got no reason — expected a few words on why")
        check_text("a reason", reason, self.settings.max_text_characters)
        return reason

    def _check_reason_and_set(
        self, annotator_id: int, state: AnnotatorState, why: str, allowed: Sequence[AnnotatorState]
    ) -> None:
        why = self._reason(why)
        with self._writing() as desk:
            now = access.get_annotator(desk, annotator_id).state
            if now not in allowed:
                raise FeedbackError(f"got annotator {annotator_id}, who is {now} — expected {', '.join(allowed)}")
            set_state(desk, annotator_id, state, note="" if state is AnnotatorState.ACTIVE else why, why=why)
            if state is not AnnotatorState.ACTIVE:
                release_leases(desk, annotator_id)
            if state is AnnotatorState.REVOKED:
                access.end_all_tokens(desk, annotator_id)


def _checked_name(name: str) -> str:
    if not name.strip():
        raise FeedbackError("got an empty name — expected one to tell annotators apart")
    return name.strip()
