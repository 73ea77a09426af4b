"""Invitations, sessions, pauses: tokens count once, are stored hashed, and end with their owner's rights."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from questions import Clock, group

from accord.errors import FeedbackError
from accord.feedback.people import (
    AnnotatorKind,
    AnnotatorState,
    Assignment,
    EventKind,
    Idle,
    Project,
    Role,
    create_project,
)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def project(database: str, clock: Clock):
    with create_project(database, "study", clock=clock) as project:
        yield project


def test_an_invitation_is_used_once(project: Project):
    token = project.create_invitation()
    assert project.is_invitation(token)
    assert [a.state for a in project.annotators()] == [AnnotatorState.INVITED]
    with pytest.raises(FeedbackError, match="empty name"):
        project.redeem_invitation(token, "  ")
    assert project.is_invitation(token)  # a slip of the keyboard does not use it up
    ann = project.redeem_invitation(token, " Ann ")
    assert (ann.name, ann.pseudonym, ann.role, ann.state) == (
        "Ann",
        "annotator-1",
        Role.ANNOTATOR,
        AnnotatorState.ACTIVE,
    )
    assert not project.is_invitation(token)
    for wrong in (token, "", "x" * 43, token[:-1], "\ud800"):
        with pytest.raises(FeedbackError, match="unknown, used or over"):
            project.redeem_invitation(wrong, "Eve")


def test_an_invitation_runs_out(project: Project, clock: Clock):
    token = project.create_invitation(Role.MANAGER, valid_seconds=60)
    clock.now += 60
    assert not project.is_invitation(token)
    with pytest.raises(FeedbackError, match="ask for a new link"):
        project.redeem_invitation(token, "Ann")


def test_no_token_is_stored(project: Project):
    ann = project.add_annotator("Ann", role=Role.MANAGER)
    tokens = [project.create_invitation(), project.open_session(ann.id)]
    with project._reading() as desk:
        everything = [
            str(value)
            for table in ("tokens", "annotators", "events")
            for row in desk.connection.exec_driver_sql(f"SELECT * FROM {table}")
            for value in row
        ]
    assert not any(token in value for token in tokens for value in everything)
    assert len(set(tokens)) == 2


def test_a_session_is_its_owners_until_it_ends(project: Project, clock: Clock):
    ann = project.add_annotator("Ann")
    token = project.open_session(ann.id, valid_seconds=100)
    other = project.open_session(ann.id)
    assert project.session_annotator(token) == ann
    assert project.session_annotator("forged") is None
    assert project.session_annotator(project.create_invitation()) is None  # a token of another purpose
    project.close_session(token)
    project.close_session("unknown")
    assert project.session_annotator(token) is None
    assert project.session_annotator(other) == ann
    clock.now += 8 * 86400
    assert project.session_annotator(other) is None


def test_a_session_of_one_project_opens_no_other(project: Project, database: str):
    token = project.open_session(project.add_annotator("Ann").id)
    with create_project(database, "other") as other:
        assert other.session_annotator(token) is None
        with pytest.raises(FeedbackError, match="unknown"):
            other.redeem_invitation(project.create_invitation(), "Ann")


def test_who_is_revoked_is_out_at_once_and_what_they_judged_stays(project: Project):
    project.add_items([group(number) for number in range(2)])
    ann, bob = project.add_annotator("Ann"), project.add_annotator("Bob")
    token = project.open_session(ann.id)
    first = project.next_assignment(ann.id)
    assert isinstance(first, Assignment)
    project.submit(ann.id, first.id, {"level": 1}, "k")
    held = project.next_assignment(ann.id)
    assert isinstance(held, Assignment)
    project.revoke_annotator(ann.id)
    assert project.session_annotator(token) is None
    with pytest.raises(FeedbackError, match="revoked"):
        project.submit(ann.id, held.id, {"level": 1}, "k2")
    with pytest.raises(FeedbackError, match="revoked"):
        project.open_session(ann.id)
    with pytest.raises(FeedbackError, match="revoked"):
        project.resume_annotator(ann.id)
    found = project.next_assignment(bob.id)
    assert isinstance(found, Assignment)
    assert found.item_id == held.item_id  # what they held is free again
    assert project.progress().num_judgements == 1
    assert project.add_annotator("Ann").id != ann.id


def test_an_invitation_that_was_revoked_lets_nobody_in(project: Project):
    token = project.create_invitation()
    project.revoke_annotator(project.annotators()[0].id)
    with pytest.raises(FeedbackError, match="unknown, used or over"):
        project.redeem_invitation(token, "Ann")


def test_a_pause_takes_the_work_away_and_is_recorded(project: Project):
    project.add_items([group(0)])
    ann, bob = project.add_annotator("Ann"), project.add_annotator("Bob")
    held = project.next_assignment(ann.id)
    assert isinstance(held, Assignment)
    project.pause_annotator(ann.id, "answers in two seconds")
    assert isinstance(project.next_assignment(ann.id), Idle)
    assert isinstance(project.next_assignment(bob.id), Assignment)
    with pytest.raises(FeedbackError, match="paused"):
        project.submit(ann.id, held.id, {"level": 1}, "k")
    assert project.annotator(ann.id).note == "answers in two seconds"
    project.resume_annotator(ann.id)
    assert project.annotator(ann.id).note == ""
    assert [(e.kind, e.payload["state"]) for e in project.events()] == [
        (EventKind.STATE, "paused"),
        (EventKind.STATE, "active"),
    ]


def test_pseudonyms_tell_everybody_apart(project: Project):
    assert project.add_annotator("Ann").pseudonym == "annotator-1"
    assert project.add_annotator("Ann").pseudonym == "annotator-1"  # the same Ann
    assert project.add_annotator("annotator-3", kind=AnnotatorKind.SIMULATED).pseudonym == "annotator-3"
    assert project.add_annotator("Bob").pseudonym == "annotator-3#2"
    judge = {"kind": AnnotatorKind.MODEL, "version": "2"}
    assert project.add_annotator("judge", prompt="be fair", **judge).pseudonym == "judge@2"
    assert project.add_annotator("judge", prompt="be strict", **judge).pseudonym == "judge@2#2"
    with pytest.raises(FeedbackError, match="at most 200"):
        project.add_annotator("x" * 201)
    with pytest.raises(FeedbackError, match="not text"):
        project.add_annotator("a\x00b")


def test_of_many_who_redeem_at_once_one_is_let_in(project: Project):
    token = project.create_invitation()

    def redeem(number: int) -> bool:
        try:
            project.redeem_invitation(token, f"person {number}")
        except FeedbackError:
            return False
        return True

    with ThreadPoolExecutor(max_workers=8) as pool:
        assert sum(pool.map(redeem, range(8))) == 1
    assert [annotator.state for annotator in project.annotators()] == [AnnotatorState.ACTIVE]
