"""A project with known texts, its page, and somebody who is signed in to it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the page needs the extra accord[web]")

from starlette.testclient import TestClient

from accord.feedback.people.project import Project, create_project
from accord.feedback.people.values import ProjectSettings, Role
from accord.records import Comparison, Group, Response
from accord.web.app import create_app
from accord.web.security import WebSettings

SECRET = "not a secret, but long enough for one 0123"
ADDRESS = "http://127.0.0.1:8765"
MODEL_NAME = "the-secret-policy-7b"


def make_groups(count: int, *, first: str = "first", num_responses: int = 2) -> list[Group]:
    """Return groups whose texts say who they are."""
    return [
        Group(
            prompt=f"prompt {i}",
            responses=tuple(
                Response(content=f"{first} {i}" if k == 0 else f"other {k} of {i}", source=MODEL_NAME)
                for k in range(num_responses)
            ),
        )
        for i in range(count)
    ]


def known(groups: list[Group]) -> list[Group]:
    """Return the groups with their first response known to be the better one."""
    from dataclasses import replace

    return [replace(group, judgements=(Comparison(better=0, worse=1, strength=3.0),)) for group in groups]


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


def csrf_of(page: str) -> str:
    """Return the token a page carries for its forms and scripts."""
    found = re.search(r'name="csrf-token" content="([0-9a-f]{64})"', page)
    assert found, "the page carries no token"
    return found[1]


def enter(client: TestClient, project: Project, *, role: Role = Role.ANNOTATOR, name: str = "Ada") -> TestClient:
    """Redeem a new invitation with this browser; its later requests carry the CSRF token."""
    path = f"/i/{project.create_invitation(role)}"
    token = csrf_of(client.get(path).text)
    done = client.post(path, data={"name": name, "csrf": token})
    assert done.status_code == 303, done.text
    client.headers["x-csrf-token"] = csrf_of(client.get(done.headers["location"]).text)
    return client


def key(number: int) -> str:
    """Return an idempotency key."""
    return f"key-of-the-test-{number:04d}"
