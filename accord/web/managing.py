"""The manager's side: progress, annotators, invitations, flagged items, agreement, export."""

from __future__ import annotations

import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter, HTTPException
from fastapi.responses import FileResponse, RedirectResponse, Response
from starlette.background import BackgroundTask

from accord.errors import AccordError, FeedbackError
from accord.feedback.people.export import ExportSettings
from accord.feedback.people.values import EventKind, Role
from accord.web.visits import Managing, OwnForm, Visit

router = APIRouter(prefix="/manage")

EXPORT_NAME = re.compile(r"[A-Za-z0-9_-]{1,60}\.(jsonl|jsonl\.gz|parquet)")
MAX_SHOWN_FLAGS = 100
MAX_INVITATIONS = 200
NUM_RESAMPLES = 200  # of the intervals shown on the page, which should not be long in coming


@dataclass(frozen=True, slots=True, kw_only=True)
class Flagged:
    """An item that somebody found unsafe and nobody has released since."""

    item_id: int
    by: str
    reason: str
    prompt: str


@router.get("")
def show_progress(visit: Managing) -> Response:
    """Show how far the project is."""
    return _overview(visit)


@router.post("/invitations")
def invite(visit: Managing, form: OwnForm) -> Response:
    """Make invitations and show their links, once: only their hashes are kept."""
    role = Role.MANAGER if form.get("role") == "manager" else Role.ANNOTATOR
    count = form.get("count", "1")
    if not (count.isascii() and count.isdigit() and 1 <= int(count) <= MAX_INVITATIONS):
        raise HTTPException(422, f"got {count!r} invitations — expected a number from 1 to {MAX_INVITATIONS}")
    tokens = [visit.site.project.create_invitation(role) for _ in range(int(count))]
    return _overview(visit, links=[invitation_link(visit.site.settings.url, token) for token in tokens])


@router.post("/annotators/{annotator_id}/{action}")
def change_annotator(visit: Managing, form: OwnForm, annotator_id: int, action: str) -> Response:
    """Pause, resume or revoke an annotator."""
    project = visit.site.project
    try:
        if action == "pause":
            project.pause_annotator(annotator_id, "A manager has paused your work.")
        elif action == "resume":
            project.resume_annotator(annotator_id)
        elif action == "revoke":
            project.revoke_annotator(annotator_id)
        else:
            raise HTTPException(404, "this page does not exist")
    except FeedbackError as error:
        raise HTTPException(409, str(error)) from error
    return RedirectResponse("/manage", 303)


@router.post("/items/{item_id}/release")
def release(visit: Managing, form: OwnForm, item_id: int) -> Response:
    """Give a flagged item back to the queue."""
    try:
        visit.site.project.release_item(item_id)
    except FeedbackError as error:
        raise HTTPException(404, str(error)) from error
    return RedirectResponse("/manage", 303)


@router.get("/agreement")
def show_agreement(visit: Managing) -> Response:
    """Say whether the judgements can be trusted."""
    try:
        text, problem = agreement_text(visit), ""
    except AccordError as error:
        text, problem = "", str(error)
    return visit.page("agreement.html.jinja", text=text, problem=problem)


@router.get("/export/{name}")
def export(visit: Managing, name: str) -> Response:
    """Send what was judged as a file that `accord align` and `accord reward` read."""
    if not EXPORT_NAME.fullmatch(name):
        raise HTTPException(
            404, f"got the file name {name[:80]!r} — expected NAME.jsonl, NAME.jsonl.gz or NAME.parquet"
        )
    folder = Path(tempfile.mkdtemp(prefix="accord-export-"))
    try:
        visit.site.project.export(folder / name)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, AccordError):
            raise HTTPException(409, str(error)) from error
        raise
    return FileResponse(
        folder / name,
        filename=name,
        media_type="application/octet-stream",
        background=BackgroundTask(shutil.rmtree, folder, ignore_errors=True),
    )


def invitation_link(url: str, token: str) -> str:
    """Return the address that redeems an invitation."""
    return f"{url}/i/{token}"


def agreement_text(visit: Visit) -> str:
    """Return the agreement report of what was judged so far, in words."""
    from accord.agreement import measure_agreement  # numpy and scipy: not before they are needed

    everything = ExportSettings(include_unfinished=True, include_repeats=True, include_gold=True, include_aside=True)
    groups = visit.site.project.export(settings=everything)
    return measure_agreement(groups, num_resamples=NUM_RESAMPLES).to_text()


def flagged_items(visit: Visit) -> list[Flagged]:
    """Return the items that are set aside, the latest flag of each."""
    project = visit.site.project
    latest = {event.item_id: event for event in project.events() if event.kind is EventKind.FLAG}
    names = {annotator.id: annotator.name for annotator in project.annotators()}
    found = []
    for item_id, event in list(latest.items())[-MAX_SHOWN_FLAGS:]:
        if item_id is None or not (item := project.item(item_id)).is_aside:
            continue
        prompt = item.prompt[-1].content if item.prompt else ""
        reason = str(event.payload.get("reason", ""))
        found.append(
            Flagged(item_id=item_id, by=names.get(event.annotator_id, "?"), reason=reason, prompt=prompt[:200])
        )
    return found


def _overview(visit: Visit, *, links: list[str] | None = None) -> Response:
    progress = visit.site.project.progress()
    return visit.page(
        "manage.html.jinja",
        progress=progress,
        flagged=flagged_items(visit) if progress.num_aside else [],
        links=links or [],
        preparing=visit.site.preparing,
        failure=visit.site.failure,
        max_invitations=MAX_INVITATIONS,
    )
