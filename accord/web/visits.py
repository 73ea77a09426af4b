"""Who stands behind a request: the dependencies every route begins with."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import parse_qsl

from fastapi import Depends, HTTPException, Request
from fastapi.responses import HTMLResponse

from accord.feedback.people.project import Project
from accord.feedback.people.values import Annotator, Role
from accord.web.limits import RateLimit
from accord.web.rendering import render_page
from accord.web.security import Doorkeeper, Session, WebSettings

MAX_FORM_FIELDS = 50


@dataclass(slots=True, kw_only=True)
class Site:
    """What the routes share: the project, who may enter, how often, and a sentence on what is being prepared."""

    project: Project
    settings: WebSettings
    doorkeeper: Doorkeeper
    sessions: RateLimit
    entries: RateLimit
    preparing: str = ""  # shown where there is nothing to judge yet: "responses are being sampled"
    failure: str = ""  # why preparing them failed; shown to managers


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """One request: the site, the browser's session and who it belongs to, if anybody."""

    site: Site
    request: Request
    session: Session
    annotator: Annotator | None

    @property
    def person(self) -> Annotator:
        """Who is signed in; only for routes that asked for somebody."""
        assert self.annotator is not None, "the route must depend on an annotator or a manager"
        return self.annotator

    def page(self, template: str, *, status: int = 200, **values: Any) -> HTMLResponse:
        """Return a page, with the frame every page has."""
        shared = {
            "project_name": self.site.project.name,
            "person": self.annotator,
            "csrf": self.site.doorkeeper.csrf_token(self.session),
        }
        response = HTMLResponse(render_page(template, shared | values), status_code=status)
        if self.session.is_new:
            self.site.doorkeeper.give(response, self.session)
        return response


def find_visit(request: Request) -> Visit:
    """Return the visit of a request. Raises 429 when its session comes too often."""
    site: Site = request.app.state.site
    session = site.doorkeeper.read(request)
    seconds = site.sessions.wait_seconds(session.key) if session.token else 0.0
    if seconds:
        wait = {"Retry-After": str(max(1, math.ceil(seconds)))}
        raise HTTPException(429, "too many requests from this session — wait a moment", wait)
    annotator = site.project.session_annotator(session.token) if session.token else None
    return Visit(site=site, request=request, session=session, annotator=annotator)


Visiting = Annotated[Visit, Depends(find_visit)]


def find_annotator(visit: Visiting) -> Visit:
    """Return the visit of somebody who is signed in. Raises 401 for anybody else, 403 for a manager."""
    if visit.annotator is None:
        raise HTTPException(
            401, "you are not signed in — open the invitation link you were given, or ask for a new one"
        )
    if visit.annotator.role is not Role.ANNOTATOR:
        raise HTTPException(403, "this page is for annotators — you are signed in as a manager")
    return visit


def find_manager(visit: Visiting) -> Visit:
    """Return the visit of a manager. Raises 401 for nobody, 403 for an annotator."""
    if visit.annotator is None:
        raise HTTPException(401, "you are not signed in — open the manager's link, or ask for a new one")
    if visit.annotator.role is not Role.MANAGER:
        raise HTTPException(403, "this page is for managers")
    return visit


async def read_form(request: Request) -> dict[str, str]:
    """Return the fields of a submitted form. Raises 422 when it is none."""
    try:
        pairs = parse_qsl(
            (await request.body()).decode("ascii"), keep_blank_values=True, max_num_fields=MAX_FORM_FIELDS
        )
    except ValueError as error:
        raise HTTPException(422, "the form cannot be read — go back and send it again") from error
    return dict(pairs)


def check_own_form(visit: Visiting, form: Annotated[dict[str, str], Depends(read_form)]) -> dict[str, str]:
    """Return a form that our own page sent in this session. Raises 403 for any other."""
    _check_own(visit, form.get("csrf", ""))
    return form


def check_own_script(visit: Visiting) -> None:
    """Let a request of our own script in this session pass. Raises 403 for any other."""
    _check_own(visit, visit.request.headers.get("x-csrf-token", ""))


def _check_own(visit: Visit, token: str) -> None:
    if not visit.site.doorkeeper.is_own_form(visit.request, visit.session, token):
        raise HTTPException(
            403, "this request did not come from the page you have open — reload the page and try again"
        )


Annotating = Annotated[Visit, Depends(find_annotator)]
Managing = Annotated[Visit, Depends(find_manager)]
OwnForm = Annotated[dict[str, str], Depends(check_own_form)]
