"""Simulated annotators at the real page: they finish, they send again, they say why they cannot."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the page needs the extra accord[web]")

import uvicorn

from accord.errors import DataError, FeedbackError
from accord.feedback.people import EventKind, Project, ProjectSettings, QuestionKind, create_project
from accord.lab import http_annotators
from accord.lab.annotators import GOLD, LENGTH_LOVER
from accord.lab.http_annotators import work_through, work_together
from accord.records import Group, Response
from accord.web.app import create_app
from accord.web.security import WebSettings
from accord.web.serving import listen

REQUEST = "three facts about bees, formally"
BETTER = "indeed bees make honey. bees visit flowers. bees live in hives."
WORSE = "lol cats hunt mice."


def pairs(count: int) -> list[Group]:
    """Return pairs whose first response is worth more, each with texts of its own."""
    worse = [f"lol cats hunt mice. {'also ' * i}".strip() for i in range(count)]
    return [Group(prompt=REQUEST, responses=(Response(content=BETTER), Response(content=text))) for text in worse]


@contextmanager
def page_of(project: Project, **changes: float) -> Iterator[str]:
    """Serve a project on a free port and yield its address."""
    with listen("127.0.0.1", 0) as bound:
        port = bound.getsockname()[1]
        settings = WebSettings(secret="x" * 40, port=port, **changes)  # type: ignore[arg-type]  # numbers only
        server = uvicorn.Server(uvicorn.Config(create_app(project, settings), log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    settings = ProjectSettings(kinds=(QuestionKind.PAIRWISE8, QuestionKind.RATING), judgements_per_item=2)
    with create_project(tmp_path / "people.sqlite3", "lab", settings) as made:
        made.add_items(pairs(6))
        yield made


def test_two_work_at_the_same_time_and_every_answer_is_there_once(project):
    links = [project.create_invitation() for _ in range(2)]
    with page_of(project) as url:
        reports = work_together(url, [f"{url}/i/{links[0]}", links[1]], [GOLD, LENGTH_LOVER], seed=0)
    answers = [event for event in project.events() if event.kind is EventKind.ANSWER]
    assert sorted(event.id for event in answers) == sorted(event for report in reports for event in report.events)
    assert len({(event.annotator_id, event.item_id) for event in answers}) == len(answers) == 2 * 6
    assert [report.name for report in reports] == [GOLD.name, LENGTH_LOVER.name]
    assert all(report.is_finished for report in reports)


def test_what_was_not_let_in_is_sent_again_and_counts_once(project):
    with page_of(project, requests_per_second=0.5, burst=1) as url:
        report = work_through(url, project.create_invitation(), GOLD, limit=1)
    assert report.num_resent > 0  # 429 by 429
    assert (len(report.events), report.is_finished) == (1, False)
    assert sum(event.kind is EventKind.ANSWER for event in project.events()) == 1


def test_problems_are_said(project, monkeypatch):
    monkeypatch.setattr(http_annotators, "MAX_TRIES", 2)
    token = project.create_invitation()
    with page_of(project) as url:
        with pytest.raises(FeedbackError, match="422"):
            work_through(url, token, lambda *_: {"level": 0})  # no ties on this scale
        with pytest.raises(FeedbackError, match="404 for an invitation"):
            work_through(url, token, GOLD)  # used
        with pytest.raises(DataError, match="0 tastes"):
            work_together(url, [], [])
    with listen("127.0.0.1", 0) as bound:
        silent = f"http://127.0.0.1:{bound.getsockname()[1]}"
        with pytest.raises(FeedbackError, match="is the page open"):
            work_through(silent, token, GOLD, timeout_seconds=0.01)
