"""Open the page on this machine, and fill the project beside it: what takes long happens in a thread of its own."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI

from accord.errors import AccordError, ConfigError
from accord.web.visits import Site


@dataclass(slots=True, kw_only=True)
class Preparation:
    """Work that puts items into a project while the page is open already; `stop` must end `work` soon."""

    work: Callable[[], None]
    stop: Callable[[], None]
    sentence: str  # shown meanwhile
    thread: threading.Thread | None = field(default=None, init=False)

    def start(self, site: Site) -> None:
        """Begin, and say on the page what is going on."""
        site.preparing = self.sentence
        self.thread = threading.Thread(target=self._run, args=(site,), name="accord-preparation", daemon=True)
        self.thread.start()

    def end(self) -> None:
        """Stop it if it still runs, and wait until it has."""
        self.stop()
        if self.thread is not None:
            self.thread.join()

    def _run(self, site: Site) -> None:
        try:
            self.work()
        except AccordError as error:
            site.failure = str(error)
        finally:
            site.preparing = ""


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that people can connect to, their requests waiting until `serve`; port 0 takes a free one.

    Raises ConfigError when the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=512)
    except OSError as error:
        raise ConfigError(
            f"got {host}:{port}, where no page can be opened ({error.strerror}) — expected a free port of this "
            "machine — choose another with --port"
        ) from error


def serve(
    app: FastAPI,
    bound: socket.socket,
    *,
    preparation: Preparation | None = None,
    when_open: Callable[[], None] | None = None,
) -> None:
    """Serve the page on a socket of `listen` until Ctrl-C or a TERM signal; requests under way are answered first."""
    import uvicorn

    site: Site = app.state.site
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,  # an address may hold an invitation
            server_header=False,
            proxy_headers=site.settings.public_url is not None,  # a proxy on this machine says who is behind it
            timeout_graceful_shutdown=10,
            limit_concurrency=1000,
        )
    )
    before = _leave_by_exception()
    try:
        if preparation is not None:
            preparation.start(site)
        if when_open is not None:
            when_open()
        server.run(sockets=[bound])
    except KeyboardInterrupt:
        pass  # how uvicorn hands on a signal once it has shut down
    finally:
        for number, handler in before.items():
            if handler is not None:  # None: not Python's to put back
                signal.signal(number, handler)
        if preparation is not None:
            preparation.end()


def _leave_by_exception() -> dict[signal.Signals, Any]:
    """Make both signals end the page, from before its address is known; return what they did, empty if not ours.

    A shell starts what it puts in the background with Ctrl-C ignored, and uvicorn listens only once it runs.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.signal(number, signal.default_int_handler) for number in (signal.SIGINT, signal.SIGTERM)}
