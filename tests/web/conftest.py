"""A project with known texts, its page, and a browser without cookies before it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the page needs the extra accord[web]")

from page_visits import ADDRESS, SECRET, make_groups
from starlette.testclient import TestClient

from accord.feedback.people.project import Project, create_project
from accord.feedback.people.values import ProjectSettings
from accord.records import Group
from accord.web.app import create_app
from accord.web.security import WebSettings


@pytest.fixture
def make_project(tmp_path: Path) -> Iterator[Callable[..., Project]]:
    """Make projects that are closed at the end."""
    made: list[Project] = []

    def make(groups: list[Group], settings: ProjectSettings | None = None) -> Project:
        project = create_project(tmp_path / f"judgements-{len(made)}.sqlite3", "bees", settings)
        made.append(project)
        if groups:
            project.add_items(groups)
        return project

    yield make
    for project in made:
        project.close()


@pytest.fixture
def project(make_project: Callable[..., Project]) -> Project:
    """A project of three pairs, each to be judged by two."""
    return make_project(make_groups(3), ProjectSettings(judgements_per_item=2, guidelines="Prefer **true** answers."))


@pytest.fixture
def open_page() -> Iterator[Callable[..., TestClient]]:
    """Open a browser without cookies on the page of a project."""
    opened: list[TestClient] = []

    def open_it(project: Project, **changes: object) -> TestClient:
        settings = WebSettings(secret=SECRET, **changes)  # type: ignore[arg-type]  # keyword settings of the test
        client = TestClient(create_app(project, settings), base_url=ADDRESS, follow_redirects=False)
        opened.append(client)
        return client

    yield open_it
    for client in opened:
        client.close()
