"""The database of judgements: its tables, its transactions, its migrations and its backup.

SQLite in WAL mode with synchronous=FULL, or PostgreSQL. Events are only ever added: triggers refuse the rest.
Times are seconds since 1970, UTC; structured values are JSON text.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import ScriptDirectory
from sqlalchemy.event import listen
from sqlalchemy.exc import ArgumentError, DBAPIError

from accord.errors import FeedbackError
from accord.feedback.people.values import ProjectSettings

_BUSY_SECONDS = 60.0  # how long a writer waits for another process's
_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_VERSION_TABLE = "accord_version"
_MIGRATIONS = Path(__file__).resolve().parents[1] / "migrations"

LAYOUT = sa.MetaData()
PROJECTS = sa.Table(
    "projects",
    LAYOUT,
    sa.Column("id", _KEY, primary_key=True),
    sa.Column("name", sa.Text, nullable=False, unique=True),
    sa.Column("settings", sa.Text, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
)
ANNOTATORS = sa.Table(
    "annotators",
    LAYOUT,
    sa.Column("id", _KEY, primary_key=True),
    sa.Column("project_id", _KEY, sa.ForeignKey("projects.id"), nullable=False, index=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("pseudonym", sa.Text, nullable=False),
    sa.Column("role", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("note", sa.Text, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("prompt", sa.Text, nullable=False, server_default=""),
    sa.Column("version", sa.Text, nullable=False, server_default=""),
    sa.UniqueConstraint("project_id", "pseudonym", name="one_pseudonym"),
)
TOKENS = sa.Table(  # of invitations and sessions; never the token, always its hash
    "tokens",
    LAYOUT,
    sa.Column("id", _KEY, primary_key=True),
    sa.Column("annotator_id", _KEY, sa.ForeignKey("annotators.id"), nullable=False, index=True),
    sa.Column("purpose", sa.Text, nullable=False),
    sa.Column("token_hash", sa.Text, nullable=False, unique=True),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("expires_at", sa.Double, nullable=False),
    sa.Column("ended_at", sa.Double),  # redeemed, closed or revoked
)
GROUPS = sa.Table(
    "groups",
    LAYOUT,
    sa.Column("id", _KEY, primary_key=True),
    sa.Column("project_id", _KEY, sa.ForeignKey("projects.id"), nullable=False),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("row", sa.Text, nullable=False),
    sa.UniqueConstraint("project_id", "digest", name="one_group"),
)
ITEMS = sa.Table(
    "items",
    LAYOUT,
    sa.Column("id", _KEY, primary_key=True),
    sa.Column("project_id", _KEY, sa.ForeignKey("projects.id"), nullable=False),
    sa.Column("group_id", _KEY, sa.ForeignKey("groups.id"), nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("role", sa.Text, nullable=False),
    sa.Column("members", sa.Text, nullable=False),
    sa.Column("margin", sa.Double),
    sa.Column("rank", sa.Double, nullable=False),  # smallest first: the margin, or the same number as `draw`
    sa.Column("draw", sa.Double, nullable=False),  # random
    sa.Column("is_aside", sa.Boolean, nullable=False),
    sa.Column("num_judgements", sa.Integer, nullable=False, server_default="0"),
    sa.Column("is_finished", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.UniqueConstraint("group_id", "kind", "role", "members", name="one_item"),
    sa.Index("items_by_rank", "project_id", "role", "is_finished", "is_aside", "rank", "draw"),
    sa.Index("items_by_draw", "project_id", "role", "is_finished", "is_aside", "draw"),
)
ASSIGNMENTS = sa.Table(
    "assignments",
    LAYOUT,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("project_id", _KEY, sa.ForeignKey("projects.id"), nullable=False),
    sa.Column("item_id", _KEY, sa.ForeignKey("items.id"), nullable=False),
    sa.Column("annotator_id", _KEY, sa.ForeignKey("annotators.id"), nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("occasion", sa.Integer, nullable=False),  # 0 = the first time, 1 = the repetition
    sa.Column("number", sa.Integer, nullable=False),  # how many the annotator had been given before
    sa.Column("shown_order", sa.Text, nullable=False),
    sa.Column("selected_by", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("assigned_at", sa.Double, nullable=False),
    sa.Column("lease_until", sa.Double, nullable=False),
    sa.UniqueConstraint("annotator_id", "item_id", "occasion", name="once_per_annotator"),
    sa.Index("assignments_of_annotator", "annotator_id", "state"),
    sa.Index("assignments_of_item", "item_id", "state"),
)
EVENTS = sa.Table(
    "events",
    LAYOUT,
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
    sa.Index("events_of_project", "project_id", "id"),
    sa.Index("events_of_assignment", "assignment_id", "id"),
    sqlite_autoincrement=True,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """Where work on a project is done: an open transaction, whose it is, and the time it is."""

    connection: sa.Connection
    project_id: int
    settings: ProjectSettings
    now: float


class Store:
    """A database of judgements, at this release's layout; threads may share it, processes each open their own."""

    def __init__(self, url: str | Path, *, is_new: bool = False) -> None:
        """Connect, and migrate what is older. Without `is_new` a database that is not there is an error.

        Raises FeedbackError: nothing there, not reachable, not Accord's, or written by a later release.
        """
        self.url = _full_url(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        if self.is_sqlite and not is_new and not Path(str(self.url.database)).is_file():
            raise FeedbackError(f"got {self.url.database}, where there is no file — expected a database of judgements")
        self._writing = threading.Lock()  # threads queue up fairly here; SQLite would have them poll
        self._engine = _connect(self.url)
        try:
            self._migrate()
        except BaseException:
            self._engine.dispose()
            raise

    def close(self) -> None:
        """Close the connections."""
        self._engine.dispose()

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """Give a connection that sees the database as of one moment, whatever is written meanwhile."""
        with _speaking(self.url), self._engine.connect() as connection:
            if not self.is_sqlite:
                connection = connection.execution_options(isolation_level="REPEATABLE READ")
            with connection.begin():
                yield connection

    @contextmanager
    def writing(self, project_id: int | None = None, *, is_durable: bool = True) -> Iterator[sa.Connection]:
        """Give a transaction that is alone in writing to the project; on leaving it is on disk, or undone.

        Not `is_durable`: it is on disk with the next one that is, at the latest. A power cut before that takes it
        back, which for a lease is no loss, and nothing durable can rest on it.
        """
        with _speaking(self.url), self._writing, self._engine.connect() as plain:
            connection = plain.execution_options(accord_writes=True, accord_syncs=is_durable)
            with connection.begin():
                if not (is_durable or self.is_sqlite):
                    connection.execute(sa.text("SET LOCAL synchronous_commit TO off"))
                if project_id is not None and not self.is_sqlite:
                    # so queue and idempotency need no retries, and events become visible in the order of their ids
                    connection.execute(sa.select(PROJECTS.c.id).where(PROJECTS.c.id == project_id).with_for_update())
                yield connection

    def backup(self, path: str | Path) -> None:
        """Write the whole database as one SQLite file, consistent, while others go on; whole or not at all.

        Raises FeedbackError when the file exists or cannot be written.
        """
        path = Path(path)
        if path.exists():
            raise FeedbackError(f"got {path}, which exists — expected a new file — choose another name")
        temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
        try:
            with _speaking(self.url):
                if self.is_sqlite:
                    _copy_file(Path(str(self.url.database)), temporary)
                else:
                    self._copy_rows(temporary)
            _sync(temporary)
            os.replace(temporary, path)
            _sync(path.parent)
        except OSError as error:
            raise FeedbackError(f"cannot write the backup {path}: {error}") from error
        finally:
            for leftover in (temporary, *(temporary.with_name(temporary.name + end) for end in ("-wal", "-shm"))):
                leftover.unlink(missing_ok=True)

    def _copy_rows(self, path: Path) -> None:
        target = Store(path, is_new=True)
        try:
            with self.reading() as source, target.writing() as sink:
                for table in LAYOUT.sorted_tables:
                    rows = source.execution_options(yield_per=1000).execute(
                        sa.select(table).order_by(*table.primary_key)
                    )
                    for part in rows.mappings().partitions():
                        sink.execute(table.insert(), [dict(row) for row in part])
        finally:
            target.close()
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA journal_mode=DELETE").close()

    def _migrate(self) -> None:
        script = ScriptDirectory(str(_MIGRATIONS), version_locations=[str(_MIGRATIONS)])
        newest = script.get_current_head()
        with self.reading() as connection:
            if _layout_of(connection) == newest:
                return
        with self.writing() as connection:
            if not self.is_sqlite:  # two processes that open a database at once
                connection.execute(sa.text("SELECT pg_advisory_xact_lock(20260105)"))
            now = _layout_of(connection)
            if now == newest:
                return
            if now is not None and now not in {revision.revision for revision in script.walk_revisions()}:
                raise FeedbackError(
                    f"got a database of layout {now!r}, which a later release of Accord wrote — this one knows up to "
                    f"{newest!r} — install the later release"
                )
            if now is None and set(sa.inspect(connection).get_table_names()) & set(LAYOUT.tables):
                raise FeedbackError(
                    f"got {self.url.render_as_string()}, which holds other tables of these names — expected an empty "
                    "database or one of judgements — choose another"
                )
            if now is not None and self.is_sqlite:
                _keep_copy(Path(str(self.url.database)), now)
            migrate_connection(connection, "head")


def migrate_connection(connection: sa.Connection, revision: str) -> None:
    """Bring the database of an open transaction up to a layout, "head" being this release's."""
    script = ScriptDirectory(str(_MIGRATIONS), version_locations=[str(_MIGRATIONS)])
    steps = {"fn": lambda now, _: script._upgrade_revs(revision, now)}  # as Alembic's manual does without an env.py
    context = MigrationContext.configure(connection, opts={"version_table": _VERSION_TABLE, **steps})
    with Operations.context(context):
        context.run_migrations()


def _layout_of(connection: sa.Connection) -> str | None:
    return MigrationContext.configure(connection, opts={"version_table": _VERSION_TABLE}).get_current_revision()


def _full_url(url: str | Path) -> sa.URL:
    text = str(url)
    if "://" not in text:
        return sa.URL.create("sqlite", database=str(Path(text).expanduser()))
    try:
        parsed = sa.make_url(text)
    except ArgumentError as error:
        raise FeedbackError(f"got the database URL {text!r}, which cannot be read: {error}") from error
    name = parsed.get_backend_name()
    if name not in ("sqlite", "postgresql"):
        raise FeedbackError(f"got a database of kind {name!r} — expected the path of an SQLite file, or postgresql://…")
    if name == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise FeedbackError("got an SQLite database in memory — expected a file: judgements are kept")
    return parsed if name == "sqlite" else parsed.set(drivername="postgresql+psycopg")


def _connect(url: sa.URL) -> sa.Engine:
    if url.get_backend_name() != "sqlite":
        try:
            # a role or server may have it off, and then what was acknowledged could be lost
            return sa.create_engine(
                url, pool_pre_ping=True, max_overflow=40, connect_args={"options": "-c synchronous_commit=on"}
            )
        except ImportError as error:
            raise FeedbackError(
                f"got {url.render_as_string()} and no driver for it ({error}) — install accord[postgres]"
            ) from error
    engine = sa.create_engine(url, max_overflow=40, connect_args={"timeout": _BUSY_SECONDS})
    listen(engine, "connect", _set_up_sqlite)
    listen(engine, "begin", _begin_sqlite)
    return engine


def _set_up_sqlite(connection: sqlite3.Connection, _: object) -> None:
    connection.isolation_level = None  # transactions begin below, not where the driver guesses
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "recursive_triggers=ON"):
        connection.execute(f"PRAGMA {pragma}").close()


def _begin_sqlite(connection: sa.Connection) -> None:
    options = connection.get_execution_options()
    if not options.get("accord_writes", False):
        connection.exec_driver_sql("BEGIN")
        return
    # both logs are written in order: what is synced later takes with it what came before
    connection.exec_driver_sql(f"PRAGMA synchronous={'FULL' if options['accord_syncs'] else 'NORMAL'}")
    connection.exec_driver_sql("BEGIN IMMEDIATE")


@contextmanager
def _speaking(url: sa.URL) -> Iterator[None]:
    """Turn what the database says into an error that a user can read."""
    try:
        yield
    except DBAPIError as error:
        raise FeedbackError(
            f"the database {url.render_as_string()} refused: {error.orig} — nothing of this call was stored; "
            "check that it is there, reachable and not full, then try again"
        ) from error


def _copy_file(source: Path, target: Path) -> None:
    with closing(sqlite3.connect(source, timeout=_BUSY_SECONDS)) as old, closing(sqlite3.connect(target)) as new:
        old.backup(new)
        new.execute("PRAGMA journal_mode=DELETE").close()  # so that one file holds all of it


def _keep_copy(path: Path, layout: str) -> None:
    """Keep the file as it was before a migration, beside it; an earlier copy of that layout stays."""
    copy = path.with_name(f"{path.name}.{layout}.backup")
    if not copy.exists():
        _copy_file(path, copy)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
