"""Texts to judge, and the steps of a visit to the page, for the tests of the page."""

from __future__ import annotations

import re
from dataclasses import replace

from starlette.testclient import TestClient

from accord.feedback.people.project import Project
from accord.feedback.people.values import Role
from accord.records import Comparison, Group, Response

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
    return [replace(group, judgements=(Comparison(better=0, worse=1, strength=3.0),)) for group in groups]


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
