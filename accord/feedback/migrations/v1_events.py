"""Layout 1: projects, annotators, their tokens, groups, items, assignments, and events that are only ever added."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "v1"
down_revision = None

_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

_SQLITE_TRIGGERS = (
    "CREATE TRIGGER events_never_change BEFORE UPDATE ON events "
    "BEGIN SELECT RAISE(ABORT, 'events are append-only'); END",
    "CREATE TRIGGER events_never_go BEFORE DELETE ON events BEGIN SELECT RAISE(ABORT, 'events are append-only'); END",
)
_POSTGRES_TRIGGERS = (
    "CREATE FUNCTION accord_refuse() RETURNS trigger LANGUAGE plpgsql AS "
    "$$ BEGIN RAISE EXCEPTION 'events are append-only'; END $$",
    "CREATE TRIGGER events_never_change BEFORE UPDATE OR DELETE ON events "
    "FOR EACH ROW EXECUTE FUNCTION accord_refuse()",
    "CREATE TRIGGER events_never_go BEFORE TRUNCATE ON events FOR EACH STATEMENT EXECUTE FUNCTION accord_refuse()",
)


def upgrade() -> None:
    """Make the tables."""
    _make_members()
    _make_questions()
    _make_work()
    is_sqlite = op.get_bind().dialect.name == "sqlite"
    for trigger in _SQLITE_TRIGGERS if is_sqlite else _POSTGRES_TRIGGERS:
        op.execute(trigger)


def _make_members() -> None:
    op.create_table(
        "projects",
        sa.Column("id", _KEY, primary_key=True),
        sa.Column("name", sa.Text, nullable=False, unique=True),
        sa.Column("settings", sa.Text, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
    )
    op.create_table(
        "annotators",
        sa.Column("id", _KEY, primary_key=True),
        sa.Column("project_id", _KEY, sa.ForeignKey("projects.id"), nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("pseudonym", sa.Text, nullable=False),
        sa.Column("role", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("note", sa.Text, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.UniqueConstraint("project_id", "pseudonym", name="one_pseudonym"),
    )
    op.create_index("ix_annotators_project_id", "annotators", ["project_id"])
    op.create_table(
        "tokens",
        sa.Column("id", _KEY, primary_key=True),
        sa.Column("annotator_id", _KEY, sa.ForeignKey("annotators.id"), nullable=False),
        sa.Column("purpose", sa.Text, nullable=False),
        sa.Column("token_hash", sa.Text, nullable=False, unique=True),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("expires_at", sa.Double, nullable=False),
        sa.Column("ended_at", sa.Double),
    )
    op.create_index("ix_tokens_annotator_id", "tokens", ["annotator_id"])


def _make_questions() -> None:
    op.create_table(
        "groups",
        sa.Column("id", _KEY, primary_key=True),
        sa.Column("project_id", _KEY, sa.ForeignKey("projects.id"), nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("row", sa.Text, nullable=False),
        sa.UniqueConstraint("project_id", "digest", name="one_group"),
    )
    op.create_table(
        "items",
        sa.Column("id", _KEY, primary_key=True),
        sa.Column("project_id", _KEY, sa.ForeignKey("projects.id"), nullable=False),
        sa.Column("group_id", _KEY, sa.ForeignKey("groups.id"), nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("role", sa.Text, nullable=False),
        sa.Column("members", sa.Text, nullable=False),
        sa.Column("margin", sa.Double),
        sa.Column("rank", sa.Double, nullable=False),
        sa.Column("draw", sa.Double, nullable=False),
        sa.Column("is_aside", sa.Boolean, nullable=False),
        sa.UniqueConstraint("group_id", "kind", "role", "members", name="one_item"),
    )
    op.create_index("items_by_rank", "items", ["project_id", "role", "is_aside", "rank", "draw"])


def _make_work() -> None:
    op.create_table(
        "assignments",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("project_id", _KEY, sa.ForeignKey("projects.id"), nullable=False),
        sa.Column("item_id", _KEY, sa.ForeignKey("items.id"), nullable=False),
        sa.Column("annotator_id", _KEY, sa.ForeignKey("annotators.id"), nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("occasion", sa.Integer, nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("shown_order", sa.Text, nullable=False),
        sa.Column("selected_by", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("assigned_at", sa.Double, nullable=False),
        sa.Column("lease_until", sa.Double, nullable=False),
        sa.UniqueConstraint("annotator_id", "item_id", "occasion", name="once_per_annotator"),
    )
    op.create_index("assignments_of_annotator", "assignments", ["annotator_id", "state"])
    op.create_index("assignments_of_item", "assignments", ["item_id", "state"])
    op.create_table(
        "events",
        sa.Column("id", _KEY, primary_key=True),
        sa.Column("project_id", _KEY, sa.ForeignKey("projects.id"), nullable=False),
        sa.Column("annotator_id", _KEY, sa.ForeignKey("annotators.id"), nullable=False),
        sa.Column("assignment_id", sa.Text, sa.ForeignKey("assignments.id")),
        sa.Column("item_id", _KEY, sa.ForeignKey("items.id")),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("payload", sa.Text, nullable=False),
        sa.Column("shown_order", sa.Text),
        sa.Column("seconds", sa.Double),
        sa.Column("corrects", _KEY, sa.ForeignKey("events.id")),
        sa.Column("idempotency_key", sa.Text),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.UniqueConstraint("annotator_id", "idempotency_key", name="one_event_per_key"),
        sqlite_autoincrement=True,
    )
    op.create_index("events_of_project", "events", ["project_id", "id"])
    op.create_index("events_of_assignment", "events", ["assignment_id", "id"])
