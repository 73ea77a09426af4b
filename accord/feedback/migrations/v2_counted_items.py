"""Layout 2: items know how often they were judged, and annotators that are models which prompt and version they had."""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import op

revision = "v2"
down_revision = "v1"


def upgrade() -> None:
    """Add the columns and count what was judged so far."""
    for name in ("prompt", "version"):
        op.add_column("annotators", sa.Column(name, sa.Text, nullable=False, server_default=""))
    op.add_column("items", sa.Column("num_judgements", sa.Integer, nullable=False, server_default="0"))
    op.add_column("items", sa.Column("is_finished", sa.Boolean, nullable=False, server_default=sa.false()))
    op.drop_index("items_by_rank", "items")
    op.create_index("items_by_rank", "items", ["project_id", "role", "is_finished", "is_aside", "rank", "draw"])
    op.create_index("items_by_draw", "items", ["project_id", "role", "is_finished", "is_aside", "draw"])
    _count()


def _count() -> None:
    connection = op.get_bind()
    connection.execute(
        sa.text(
            "UPDATE items SET num_judgements = (SELECT count(*) FROM assignments WHERE assignments.item_id = items.id "
            "AND assignments.kind = 'work' AND assignments.state = 'answered')"
        )
    )
    finish = sa.text(
        "UPDATE items SET is_finished = :yes "
        "WHERE project_id = :project AND role = 'work' AND num_judgements >= :wanted"
    ).bindparams(sa.bindparam("yes", True, sa.Boolean))
    for project, settings in connection.execute(sa.text("SELECT id, settings FROM projects")).all():
        wanted = json.loads(settings).get("judgements_per_item", 1)
        connection.execute(finish, {"project": project, "wanted": wanted})
