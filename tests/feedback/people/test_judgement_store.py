"""The database: append-only events, migrations with data, backups, and what is refused."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from questions import group

from accord.errors import FeedbackError
from accord.feedback.people import Assignment, Project, create_project, list_projects, open_project
from accord.feedback.people.store import EVENTS, ITEMS, LAYOUT, Store, migrate_connection


def judged(database: str, count: int = 3) -> Project:
    """A project with `count` answers."""
    project = create_project(database, "study")
    project.add_items([group(number) for number in range(count + 1)])
    annotator = project.add_annotator("Ann").id
    for number in range(count):
        found = project.next_assignment(annotator)
        assert isinstance(found, Assignment)
        project.submit(annotator, found.id, {"level": 1 + number % 4}, f"key {number}", 2.0)
    return project


def engine_of(database: str) -> sa.Engine:
    url = sa.URL.create("sqlite", database=database) if "://" not in database else sa.make_url(database)
    return sa.create_engine(url.set(drivername="postgresql+psycopg") if "://" in database else url)


def test_sqlite_is_in_wal_mode_and_judgements_wait_for_the_disk(tmp_path: Path):
    store = Store(tmp_path / "a.db", is_new=True)
    with store.writing(is_durable=False):
        pass  # a lease before it leaves nothing behind on the connection
    with store.writing() as connection:
        pragmas = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        }
    store.close()
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}  # 2 = FULL


def test_postgresql_waits_for_the_disk_but_for_leases(database: str):
    if "://" not in database:
        pytest.skip("SQLite has a test of its own")
    store = Store(database, is_new=True)
    found = []
    for is_durable in (True, False, True):
        with store.writing(is_durable=is_durable) as connection:
            found.append(connection.exec_driver_sql("SHOW synchronous_commit").scalar_one())
    store.close()
    assert found == ["on", "off", "on"]


@pytest.mark.parametrize("attempt", ["UPDATE events SET payload = '{}'", "DELETE FROM events"])
def test_events_can_only_be_added(database: str, attempt: str):
    with judged(database) as project:
        before = project.events()
    engine = engine_of(database)  # from outside: the database itself refuses
    with pytest.raises(sa.exc.DBAPIError, match="append-only"), engine.begin() as connection:
        connection.execute(sa.text(attempt))
    if engine.dialect.name == "postgresql":
        with pytest.raises(sa.exc.DBAPIError, match="append-only"), engine.begin() as connection:
            connection.execute(sa.text("TRUNCATE events"))
    engine.dispose()
    with open_project(database) as project:
        assert project.events() == before
        assert len(before) == 3


def test_replacing_an_event_is_refused_too(tmp_path: Path):
    database = tmp_path / "a.db"
    judged(str(database)).close()
    store = Store(database)
    with store.reading() as connection:
        row = dict(connection.execute(sa.select(EVENTS)).mappings().first() or {})
    names, marks = ", ".join(row), ", ".join(f":{name}" for name in row)
    with pytest.raises(FeedbackError, match="append-only"), store.writing() as connection:
        connection.execute(sa.text(f"INSERT OR REPLACE INTO events ({names}) VALUES ({marks})"), row)
    store.close()


def test_the_tables_are_what_the_migrations_make(database: str):
    store = Store(database, is_new=True)
    with store.reading() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": "accord_version"})
        differences = compare_metadata(context, LAYOUT)
    store.close()
    assert differences == []


def fill_version_1(engine: sa.Engine) -> None:
    """Two projects as layout 1 kept them: one wants two judgements of an item, one wants one."""
    row = json.dumps({"accord": 1, "prompt": "p", "responses": [{"content": "a"}, {"content": "b"}]})
    statements = [
        "INSERT INTO projects (id, name, settings, created_at) VALUES "
        "(1, 'two', '{\"judgements_per_item\": 2}', 5), (2, 'one', '{}', 5)",
        "INSERT INTO annotators (id, project_id, name, pseudonym, role, state, kind, note, created_at) VALUES "
        "(1, 1, 'Ann', 'annotator-1', 'annotator', 'active', 'person', '', 5),"
        "(2, 1, 'Bob', 'annotator-2', 'annotator', 'active', 'person', '', 5),"
        "(3, 2, 'Cy', 'annotator-1', 'annotator', 'active', 'person', '', 5)",
        f"INSERT INTO groups (id, project_id, digest, row) VALUES (1, 1, 'x', '{row}'), (2, 2, 'x', '{row}'),"
        f"(3, 1, 'y', '{row}')",
        "INSERT INTO items (id, project_id, group_id, kind, role, members, margin, rank, draw, is_aside) VALUES "
        "(1, 1, 1, 'pairwise8', 'work', '[0, 1]', NULL, 0.1, 0.1, FALSE),"
        "(2, 2, 2, 'pairwise8', 'work', '[0, 1]', NULL, 0.1, 0.1, FALSE),"
        "(3, 1, 3, 'pairwise8', 'work', '[0, 1]', NULL, 0.2, 0.2, FALSE)",
    ]
    columns = "id, project_id, item_id, annotator_id, kind, occasion, number, shown_order, selected_by, state"
    assignments = [
        ("a", 1, 1, 1, "work", 0, 0, "[1, 0]", "random", "answered"),
        ("b", 1, 1, 2, "work", 0, 0, "[0, 1]", "random", "answered"),
        ("c", 1, 3, 1, "work", 0, 1, "[0, 1]", "random", "answered"),
        ("d", 1, 3, 1, "repeat", 1, 2, "[1, 0]", "random", "answered"),  # no judgement more
        ("e", 2, 2, 3, "work", 0, 0, "[0, 1]", "random", "answered"),
    ]
    statements += [
        f"INSERT INTO assignments ({columns}, assigned_at, lease_until) VALUES {(*row, 6, 7)}" for row in assignments
    ]
    statements += [
        "INSERT INTO events (project_id, annotator_id, assignment_id, item_id, kind, payload, shown_order, seconds, "
        f"idempotency_key, created_at) VALUES ({project}, {who}, '{name}', {item}, 'answer', '{{\"level\": -3}}', "
        f"'{order}', 1.5, 'key {name}', 8)"
        for name, project, item, who, _, _, _, order, _, _ in assignments
    ]
    with engine.begin() as connection:
        migrate_connection(connection, "v1")
        for statement in statements:
            connection.exec_driver_sql(statement.replace("%", "%%"))
        if engine.dialect.name == "postgresql":
            for table in ("projects", "annotators", "groups", "items"):
                connection.exec_driver_sql(f"SELECT setval('{table}_id_seq', 10)")


def test_a_database_of_an_older_version_is_migrated_with_all_its_judgements(database: str):
    engine = engine_of(database)
    fill_version_1(engine)
    names = {column["name"] for column in sa.inspect(engine).get_columns("items")}
    assert "is_finished" not in names  # it is the older layout
    engine.dispose()
    with open_project(database, "two") as project:
        assert [project.item(i).num_judgements for i in (1, 3)] == [2, 1]
        assert [project.item(i).is_finished for i in (1, 3)] == [True, False]
        assert len(project.events()) == 4
        (exported,) = project.export()
        # −3 = the first shown is better: response 1 to Ann, who saw (1, 0), response 0 to Bob
        assert [(j.judge, j.better, j.strength) for j in exported.judgements] == [  # type: ignore[attr-defined]  # Comparisons
            ("annotator-1", 1, 3.0),
            ("annotator-2", 0, 3.0),
        ]
        found = project.next_assignment(2)  # and work goes on: item 3 wants one more judgement, Bob's
        assert isinstance(found, Assignment)
        assert found.item_id == 3
        project.submit(2, found.id, {"level": 1}, "new")
        assert project.progress().num_finished == 2
        assert project.annotator(1).version == ""
    with open_project(database, "one") as project:
        assert project.progress().num_finished == 1
    if "://" not in database:  # a copy of the file as it was lies beside it
        with closing(sqlite3.connect(f"{database}.v1.backup")) as connection:
            assert connection.execute("SELECT count(*) FROM events").fetchone() == (5,)
            assert connection.execute("SELECT version_num FROM accord_version").fetchone() == ("v1",)


def test_a_database_of_a_later_release_is_left_alone(database: str):
    judged(database).close()
    engine = engine_of(database)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE accord_version SET version_num = 'v99'"))
    engine.dispose()
    with pytest.raises(FeedbackError, match="later release"):
        open_project(database)


def test_a_database_of_somebody_else_is_left_alone(database: str):
    engine = engine_of(database)
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE projects (name TEXT)"))
    engine.dispose()
    with pytest.raises(FeedbackError, match="other tables"):
        create_project(database, "study")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("sqlite://", "in memory"),
        ("mysql://somewhere/db", "mysql"),
        ("nothing://", "cannot be read|nothing"),
        ("postgresql://127.0.0.1:1/db", "refused"),
    ],
)
def test_a_database_that_cannot_be_used_says_why(url: str, says: str):
    with pytest.raises(FeedbackError, match=says):
        open_project(url)


def test_a_file_that_is_not_there_or_no_database_says_so(tmp_path: Path):
    with pytest.raises(FeedbackError, match="no file"):
        open_project(tmp_path / "missing.db")
    (tmp_path / "text.db").write_text("this is no database, and is long enough to be read as one " * 20)
    with pytest.raises(FeedbackError, match="not a database"):
        open_project(tmp_path / "text.db")


def test_a_password_is_not_repeated_in_errors():
    with pytest.raises(FeedbackError) as caught:
        open_project("postgresql://me:secret@127.0.0.1:1/db")
    assert "secret" not in str(caught.value)


def test_a_backup_is_whole_while_others_write(database: str, tmp_path: Path):
    with judged(database, count=5) as project:
        with project._store.writing(project.id) as connection:  # a write that is not finished is in no backup
            connection.execute(ITEMS.update().values(is_aside=True))
            project.backup(tmp_path / "copy.db")
            connection.execute(ITEMS.update().values(is_aside=False))
        expected = project.events()
        with pytest.raises(FeedbackError, match="exists"):
            project.backup(tmp_path / "copy.db")
    with open_project(tmp_path / "copy.db") as copy:
        assert copy.events() == expected
        assert copy.progress().num_aside == 0
        assert copy.progress().num_judgements == 5
        found = copy.next_assignment(1)  # and it can be worked with
        assert isinstance(found, Assignment)
        assert copy.submit(1, found.id, {"level": 1}, "in the copy") == len(expected) + 1
    assert sorted(path.name for path in tmp_path.iterdir() if "tmp" in path.name) == []


def test_projects_are_listed(database: str):
    create_project(database, "b").close()
    create_project(database, "a").close()
    assert list_projects(database) == ["b", "a"]


def test_a_failed_call_leaves_nothing_behind(database: str):
    with judged(database) as project:
        before = project.events(), project.progress()
        with pytest.raises(RuntimeError, match="on purpose"):
            finish_all_and_fail(project)
        assert (project.events(), project.progress()) == before


def finish_all_and_fail(project: Project) -> None:
    """A call that breaks down after it has written."""
    with project._writing() as desk:
        desk.connection.execute(ITEMS.update().values(is_finished=True))
        raise RuntimeError("on purpose")
