"""Databases to test with: SQLite always, PostgreSQL where ACCORD_TEST_POSTGRES gives the URL of one to fill."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty database."""
    if request.param == "sqlite":
        yield str(tmp_path / "judgements.db")
        return
    given = os.environ.get("ACCORD_TEST_POSTGRES")
    if not given:
        pytest.skip("no PostgreSQL to test with: ACCORD_TEST_POSTGRES is not set")
    server = sa.make_url(given).set(drivername="postgresql+psycopg")
    name = f"accord_{uuid.uuid4().hex}"
    engine = sa.create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    try:
        yield server.set(drivername="postgresql", database=name).render_as_string(hide_password=False)
    finally:
        with engine.connect() as connection:
            connection.execute(sa.text(f"DROP DATABASE {name} WITH (FORCE)"))
        engine.dispose()
