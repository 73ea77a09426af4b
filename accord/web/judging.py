"""The annotator's side: invitation, guidelines, one item after another, undo."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Query
from fastapi.responses import JSONResponse, RedirectResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from accord.errors import FeedbackError
from accord.feedback.people.values import (
    AnnotatorState,
    Assignment,
    AssignmentState,
    Idle,
    IdleReason,
    QuestionKind,
    Role,
)
from accord.web.rendering import render_markdown, render_page
from accord.web.security import new_session
from accord.web.visits import Annotating, OwnForm, Site, Visit, Visiting, check_own_script

router = APIRouter()

MAX_NAME_CHARACTERS = 80
MAX_SECONDS = 86_400.0
SKIP_REASONS = ("I do not know this subject", "The prompt makes no sense", "I would rather not")
FLAG_REASONS = ("Dangerous advice", "Hateful", "Sexual", "Private data", "Tells me to do something")

Key = Annotated[str, Field(min_length=16, max_length=64, pattern=r"^[\w-]+$")]


class _Told(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    key: Key  # made by the browser, once per answer: sent twice, it counts once


class _OfItem(_Told):
    assignment: Annotated[str, Field(min_length=1, max_length=128)]
    seconds: Annotated[float, Field(ge=0.0)] | None = None  # while the page was visible


class Answered(_OfItem):
    """An answer; `answers.py` of the store says what `payload` holds for each kind of question."""

    payload: dict[str, Any]


class Passed(_OfItem):
    """A skip or a flag, with its reason."""

    reason: Annotated[str, Field(min_length=1, max_length=1000)]


class Undone(_Told):
    """The wish to take back the last answer."""


# --- pages -----------------------------------------------------------------------------------------------------------


@router.get("/")
def show_start(visit: Visiting) -> Response:
    """Lead everybody to their page."""
    if visit.annotator is None:
        return visit.page("message.html.jinja", title="You need an invitation", detail=_ASK_FOR_ONE)
    return RedirectResponse("/manage" if visit.annotator.role is Role.MANAGER else "/judge", 303)


@router.get("/i/{token}")
def show_invitation(visit: Visiting, token: str) -> Response:
    """Ask for a name; the link is used up by the answer, not by whoever looks at it first."""
    _slow_down(visit)
    if not visit.site.project.is_invitation(token):
        return visit.page("message.html.jinja", status=404, title="This link does not work", detail=_USED_UP)
    return visit.page("invitation.html.jinja", token=token, max_name=MAX_NAME_CHARACTERS)


@router.post("/i/{token}")
def enter(visit: Visiting, form: OwnForm, token: str) -> Response:
    """Use up an invitation: from now on this browser is signed in."""
    _slow_down(visit)
    name = " ".join(form.get("name", "").split())
    if not 1 <= len(name) <= MAX_NAME_CHARACTERS:
        return visit.page("invitation.html.jinja", status=422, token=token, max_name=MAX_NAME_CHARACTERS)
    try:
        annotator = visit.site.project.redeem_invitation(token, name)
    except FeedbackError:
        return visit.page("message.html.jinja", status=404, title="This link does not work", detail=_USED_UP)
    lasts = visit.site.settings.session_days * 86_400.0
    session = new_session(visit.site.project.open_session(annotator.id, valid_seconds=lasts))
    response = RedirectResponse("/manage" if annotator.role is Role.MANAGER else "/guidelines", 303)
    visit.site.doorkeeper.give(response, session)
    return response


@router.post("/leave")
def leave(visit: Visiting, form: OwnForm) -> Response:
    """Sign out."""
    if visit.session.token:
        visit.site.project.close_session(visit.session.token)
    response = RedirectResponse("/", 303)
    visit.site.doorkeeper.give(response, new_session())
    return response


@router.get("/guidelines")
def show_guidelines(visit: Annotating) -> Response:
    """Show what to judge by."""
    text = visit.site.project.settings.guidelines
    is_new = visit.person.state is AnnotatorState.QUALIFYING
    return visit.page("guidelines.html.jinja", guidelines=render_markdown(text) if text else "", is_new=is_new)


@router.get("/judge")
def show_judging(visit: Annotating) -> Response:
    """Show the next item, and run the script that shows all those after it."""
    return visit.page(
        "judge.html.jinja",
        item=next_item(visit)["html"],
        owner=visit.site.doorkeeper.owner_mark(visit.person.id),
        num_judged=own_number(visit),
    )


# --- what the script asks --------------------------------------------------------------------------------------------


@router.get("/api/next")
def give_next(visit: Annotating, form: Annotated[str, Query(pattern="^(html|texts)$")] = "html") -> JSONResponse:
    """Return the next item as HTML, or as plain texts for a program (`form=texts`)."""
    return JSONResponse(next_item(visit) if form == "html" else next_texts(visit))


@router.post("/api/answer", dependencies=[Depends(check_own_script)])
def take_answer(visit: Annotating, said: Answered) -> JSONResponse:
    """Record an answer; the reply comes once it is on disk."""
    project = visit.site.project
    return _recorded(
        visit,
        said.assignment,
        lambda: project.submit(visit.person.id, said.assignment, said.payload, said.key, _seconds(said)),
    )


@router.post("/api/skip", dependencies=[Depends(check_own_script)])
def take_skip(visit: Annotating, said: Passed) -> JSONResponse:
    """Record that the annotator passes on an item."""
    project = visit.site.project
    return _recorded(
        visit,
        said.assignment,
        lambda: project.skip(visit.person.id, said.assignment, said.reason, said.key, _seconds(said)),
    )


@router.post("/api/flag", dependencies=[Depends(check_own_script)])
def take_flag(visit: Annotating, said: Passed) -> JSONResponse:
    """Record that an item is unsafe."""
    project = visit.site.project
    return _recorded(
        visit,
        said.assignment,
        lambda: project.flag_unsafe(visit.person.id, said.assignment, said.reason, said.key, _seconds(said)),
    )


@router.post("/api/undo", dependencies=[Depends(check_own_script)])
def take_back(visit: Annotating, said: Undone) -> JSONResponse:
    """Take back the annotator's last answer; the item comes again."""
    try:
        event = visit.site.project.undo(visit.person.id, said.key)
    except FeedbackError as error:
        raise HTTPException(409, str(error)) from error
    return JSONResponse({"saved": True, "event": event, "num_judged": own_number(visit)})


# --- what they share -------------------------------------------------------------------------------------------------


def next_item(visit: Visit) -> dict[str, Any]:
    """Return what the annotator sees next: an item or why there is none, as HTML."""
    found = visit.site.project.next_assignment(visit.person.id)
    if isinstance(found, Idle):
        annotator = visit.site.project.annotator(visit.person.id)
        reason = _reason(visit.site, found)
        values = {"reason": reason, "note": annotator.note, "preparing": visit.site.preparing}
        return {"state": "idle", "reason": reason, "html": render_page("idle.html.jinja", values)}
    values = {
        "assignment": found,
        "prompt": _prompt_html(found),
        "responses": [render_markdown(text) for text in found.responses],
        "question": question_texts(found.question, visit.site),
        # not `found.kind`, which tells known items from others
        "is_qualifying": visit.person.state is AnnotatorState.QUALIFYING,
        "skip_reasons": (*([] if len(found.responses) == 1 else ["I cannot tell them apart"]), *SKIP_REASONS),
        "flag_reasons": FLAG_REASONS,
    }
    return {"state": "item", "assignment": found.id, "html": render_page("item.html.jinja", values)}


def next_texts(visit: Visit) -> dict[str, Any]:
    """Return what the annotator has to judge next as plain texts: what a person sees and no more."""
    found = visit.site.project.next_assignment(visit.person.id)
    if isinstance(found, Idle):
        return {"state": "idle", "reason": _reason(visit.site, found), "num_leased": found.num_leased}
    settings = visit.site.project.settings
    return {
        "state": "item",
        "assignment": found.id,
        "question": str(found.question),
        "prompt": [{"role": turn.role, "content": turn.content} for turn in found.prompt],
        "responses": list(found.responses),
        "attributes": list(settings.attributes),
        "rating_min": settings.rating_min,
        "rating_max": settings.rating_max,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One button of a scale: what is sent, what is written on it, the keys that press it."""

    value: int
    label: str
    keys: tuple[str, ...]


@cache
def choices_of(question: QuestionKind) -> tuple[Choice, ...]:
    """Return the buttons of a question that is answered by one key; none for the others."""
    if question is QuestionKind.THUMBS:
        return (Choice(value=1, label="Good", keys=("1", "a")), Choice(value=0, label="Not good", keys=("2", ";")))
    if question not in (QuestionKind.PAIRWISE8, QuestionKind.PAIRWISE_TIES):
        return ()
    levels = [-4, -3, -2, -1, 1, 2, 3, 4]
    words = ("slightly better", "somewhat better", "better", "much better")
    buttons = [
        Choice(
            value=level, label=f"{'A' if level < 0 else 'B'} {words[abs(level) - 1]}", keys=(str(i + 1), "asdfjkl;"[i])
        )
        for i, level in enumerate(levels)
    ]
    if question is QuestionKind.PAIRWISE_TIES:
        buttons.insert(4, Choice(value=0, label="Equally good", keys=("0", "g")))
    return tuple(buttons)


def question_texts(question: QuestionKind, site: Site) -> dict[str, Any]:
    """Return what a template needs to ask a question: its words, its buttons, the project's attributes and range."""
    settings = site.project.settings
    first, last = int(settings.rating_min), int(settings.rating_max)
    is_whole = first == settings.rating_min and last == settings.rating_max and last - first <= 10
    return {
        "title": _TITLES[question],
        "choices": choices_of(question),
        "attributes": settings.attributes,
        "points": list(range(first, last + 1)) if is_whole else [],
        "range": (settings.rating_min, settings.rating_max),
        "max_text": settings.max_text_characters,
    }


def own_number(visit: Visit) -> int:
    """Return how much the annotator has judged."""
    rows = visit.site.project.progress().annotators
    return next((row.num_judgements for row in rows if row.annotator.id == visit.person.id), 0)


def _recorded(visit: Visit, assignment_id: str, record: Callable[[], int]) -> JSONResponse:
    try:
        event = record()
    except FeedbackError as error:
        raise HTTPException(_status_of(visit, assignment_id), str(error)) from error
    return JSONResponse({"saved": True, "event": event})


def _status_of(visit: Visit, assignment_id: str) -> int:
    """404 for what is not there or another's, 409 for what was answered already, else the answer itself is wrong."""
    try:
        assignment = visit.site.project.assignment(visit.person.id, assignment_id)
    except FeedbackError:
        return 404
    return 422 if assignment.state is AssignmentState.OPEN else 409


def _reason(site: Site, idle: Idle) -> str:
    """Why there is nothing to do; with items still to come, an annotator has not finished."""
    return "preparing" if idle.reason is IdleReason.FINISHED and site.preparing else str(idle.reason)


def _prompt_html(assignment: Assignment) -> list[dict[str, Any]]:
    return [{"role": turn.role, "html": render_markdown(turn.content)} for turn in assignment.prompt]


def _seconds(said: _OfItem) -> float | None:
    return None if said.seconds is None else min(said.seconds, MAX_SECONDS)


def _slow_down(visit: Visit) -> None:
    address = visit.request.client.host if visit.request.client else "unknown"
    if visit.site.entries.wait_seconds(address):
        raise HTTPException(429, "too many invitations tried from this address — wait a minute", {"Retry-After": "60"})


_TITLES = {
    QuestionKind.PAIRWISE8: "Which response is better?",
    QuestionKind.PAIRWISE_TIES: "Which response is better?",
    QuestionKind.THUMBS: "Is this response good?",
    QuestionKind.RANKING: "Put the responses in order, best first",
    QuestionKind.RATING: "Rate this response",
    QuestionKind.CRITIQUE: "What is good, what is bad about this response?",
    QuestionKind.EDIT: "Write this response better",
}
_ASK_FOR_ONE = "This page is open to those who were invited. Open the link you were given, or ask for one."
_USED_UP = "An invitation works once and for a limited time. Ask for a new one."
