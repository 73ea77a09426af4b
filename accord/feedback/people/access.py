"""Who takes part in a project, and by which tokens: annotators, invitations, sessions.

Functions of an open transaction. A token is random and shown once; the database holds its SHA-256 alone, which is
enough for 256 random bits.
"""

from __future__ import annotations

import hashlib
import secrets

import sqlalchemy as sa

from accord.errors import FeedbackError
from accord.feedback.people.answers import check_text
from accord.feedback.people.store import ANNOTATORS, ITEMS, TOKENS, Desk
from accord.feedback.people.values import Annotator, AnnotatorKind, AnnotatorState, ItemRole, Role

INVITATION = "invitation"
SESSION = "session"
_MAX_NAME = 200


def to_annotator(row: sa.RowMapping) -> Annotator:
    """Return a row of the table as a value."""
    return Annotator(
        id=row["id"],
        name=row["name"],
        pseudonym=row["pseudonym"],
        role=Role(row["role"]),
        state=AnnotatorState(row["state"]),
        kind=AnnotatorKind(row["kind"]),
        note=row["note"],
        prompt=row["prompt"],
        version=row["version"],
        created_at=row["created_at"],
    )


def find_annotators(desk: Desk, *conditions: sa.ColumnElement[bool]) -> list[Annotator]:
    """Return the project's annotators that meet the conditions, in the order they were added."""
    query = sa.select(ANNOTATORS).where(ANNOTATORS.c.project_id == desk.project_id, *conditions)
    return [to_annotator(row) for row in desk.connection.execute(query.order_by(ANNOTATORS.c.id)).mappings()]


def get_annotator(desk: Desk, annotator_id: int) -> Annotator:
    """Return one annotator of the project. Raises FeedbackError when there is none of that id."""
    found = find_annotators(desk, ANNOTATORS.c.id == annotator_id)
    if not found:
        raise FeedbackError(f"got annotator {annotator_id} — expected one of this project's")
    return found[0]


def add_annotator(
    desk: Desk, name: str, *, role: Role, kind: AnnotatorKind, state: AnnotatorState, prompt: str, version: str
) -> Annotator:
    """Add an annotator. A person's pseudonym is a number within the project; others go by name and version."""
    check_text("a name", name, _MAX_NAME)
    taken = {annotator.pseudonym for annotator in find_annotators(desk)}
    if kind is AnnotatorKind.PERSON:
        wanted = f"annotator-{len(taken) + 1}"
    else:
        wanted = f"{name}@{version}" if version else name
    names = (wanted if i == 1 else f"{wanted}#{i}" for i in range(1, len(taken) + 2))
    pseudonym = next(text for text in names if text not in taken)
    done = desk.connection.execute(
        ANNOTATORS.insert().values(
            project_id=desk.project_id,
            name=name,
            pseudonym=pseudonym,
            role=str(role),
            state=str(state),
            kind=str(kind),
            note="",
            prompt=prompt,
            version=version,
            created_at=desk.now,
        )
    )
    assert done.inserted_primary_key is not None
    return get_annotator(desk, done.inserted_primary_key[0])


def rename(desk: Desk, annotator_id: int, name: str) -> None:
    """Give an annotator a name."""
    check_text("a name", name, _MAX_NAME)
    desk.connection.execute(ANNOTATORS.update().where(ANNOTATORS.c.id == annotator_id).values(name=name))


def arrival_state(desk: Desk, role: Role) -> AnnotatorState:
    """Return where somebody stands who has just arrived: qualifying where there is a qualification."""
    has_qualification = desk.connection.execute(
        sa.select(sa.exists().where(ITEMS.c.project_id == desk.project_id, ITEMS.c.role == str(ItemRole.QUALIFICATION)))
    ).scalar_one()
    return AnnotatorState.QUALIFYING if has_qualification and role is Role.ANNOTATOR else AnnotatorState.ACTIVE


def create_token(desk: Desk, annotator_id: int, purpose: str, valid_seconds: float) -> str:
    """Return a new token of the annotator's; it is nowhere else."""
    if not valid_seconds > 0:
        raise FeedbackError(f"got a token valid for {valid_seconds} s — expected a time > 0")
    token = secrets.token_urlsafe(32)
    desk.connection.execute(
        TOKENS.insert().values(
            annotator_id=annotator_id,
            purpose=purpose,
            token_hash=hash_token(token),
            created_at=desk.now,
            expires_at=desk.now + valid_seconds,
        )
    )
    return token


def token_owner(desk: Desk, token: str, purpose: str) -> Annotator | None:
    """Return whose token this is; None when unknown, of another project or purpose, over, or ended."""
    return next(
        iter(
            find_annotators(
                desk,
                ANNOTATORS.c.id.in_(
                    sa.select(TOKENS.c.annotator_id).where(
                        TOKENS.c.token_hash == hash_token(token),
                        TOKENS.c.purpose == purpose,
                        TOKENS.c.expires_at > desk.now,
                        TOKENS.c.ended_at.is_(None),
                    )
                ),
                ANNOTATORS.c.state != str(AnnotatorState.REVOKED),
            )
        ),
        None,
    )


def end_token(desk: Desk, token: str) -> None:
    """Make a token void."""
    desk.connection.execute(
        TOKENS.update()
        .where(TOKENS.c.token_hash == hash_token(token), TOKENS.c.ended_at.is_(None))
        .values(ended_at=desk.now)
    )


def end_all_tokens(desk: Desk, annotator_id: int) -> None:
    """Make every token of an annotator void."""
    desk.connection.execute(
        TOKENS.update()
        .where(TOKENS.c.annotator_id == annotator_id, TOKENS.c.ended_at.is_(None))
        .values(ended_at=desk.now)
    )


def hash_token(token: str) -> str:
    """Return what is stored of a token."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()
