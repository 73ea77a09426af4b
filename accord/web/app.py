"""The web application: `create_app(project, settings)` puts routes, guard and static files together."""

from __future__ import annotations

import http
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from accord.feedback.people.project import Project
from accord.web import judging, managing
from accord.web.limits import Guard, RateLimit
from accord.web.security import Doorkeeper, WebSettings, check_settings
from accord.web.visits import Site, find_visit


def create_app(project: Project, settings: WebSettings) -> FastAPI:
    """Return the ASGI app on which people judge the items of a project.

    Raises ConfigError where the settings would leave it open (see `check_settings`).
    """
    check_settings(settings)
    app = FastAPI(title="Accord", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.site = Site(
        project=project,
        settings=settings,
        doorkeeper=Doorkeeper(settings),
        sessions=RateLimit(per_second=settings.requests_per_second, burst=settings.burst),
        entries=RateLimit(per_second=settings.entries_per_minute / 60.0, burst=settings.entries_per_minute),
    )
    app.include_router(judging.router)
    app.include_router(managing.router)
    app.mount("/static", StaticFiles(directory=Path(__file__).with_name("static")))
    app.add_exception_handler(HTTPException, _say_no)
    app.add_exception_handler(RequestValidationError, _say_what_is_wrong)
    app.add_middleware(
        Guard,
        hosts=settings.host_names(),
        max_body_bytes=settings.max_body_bytes,
        addresses=RateLimit(
            per_second=settings.address_requests_per_second, burst=settings.address_requests_per_second
        ),
        is_secure=settings.is_secure,
    )
    return app


def _say_no(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    if request.url.path.startswith("/api/"):
        return JSONResponse({"detail": error.detail}, status_code=error.status_code, headers=headers)
    try:
        visit = find_visit(request)
    except HTTPException:  # too many requests: also for a page that says so
        return JSONResponse({"detail": error.detail}, status_code=error.status_code, headers=headers)
    title = _TITLES.get(error.status_code, http.HTTPStatus(error.status_code).phrase)
    detail = error.detail if error.status_code != 404 or "—" in error.detail else "There is no such page."
    response = visit.page("message.html.jinja", status=error.status_code, title=title, detail=detail)
    response.headers.update(headers)
    return response


def _say_what_is_wrong(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part != "body")
    return JSONResponse({"detail": f"{where or 'the request'}: {first['msg']}"}, status_code=422)


_TITLES = {401: "Who are you?", 403: "This is not open to you", 404: "Nothing here", 409: "That cannot be done now"}
