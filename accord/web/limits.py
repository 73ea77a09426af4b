"""What stands before every request: which host it names, how large it may be, how often it may come, what it may load.

`Guard` is plain ASGI, so that a body is counted while it comes and no route can forget a header.
"""

from __future__ import annotations

import json
import math
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

from starlette.exceptions import HTTPException

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS: dict[str, str] = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",  # an invitation is part of an address: no other site is told it
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=(), payment=(), usb=()",
    "x-robots-tag": "noindex, nofollow",
}


@dataclass(slots=True)
class RateLimit:
    """Token buckets: `burst` requests at once, then `per_second`; the least recently seen of many keys is forgotten."""

    per_second: float
    burst: float
    max_keys: int = 10_000
    clock: Callable[[], float] = time.monotonic
    _buckets: OrderedDict[str, tuple[float, float]] = field(default_factory=OrderedDict)  # key → (tokens left, seen at)

    def wait_seconds(self, key: str) -> float:
        """Take one token of `key`; return 0, or for how long there is none."""
        now = self.clock()
        left, seen = self._buckets.pop(key, (self.burst, now))
        left = min(self.burst, left + (now - seen) * self.per_second)
        is_allowed = left >= 1.0
        self._buckets[key] = (left - 1.0 if is_allowed else left, now)
        while len(self._buckets) > self.max_keys:
            self._buckets.popitem(last=False)
        return 0.0 if is_allowed else (1.0 - left) / self.per_second


@dataclass(slots=True)
class Guard:
    """Wrap an ASGI app: 400 for a foreign host, 413 for a body too large, 429 for too many, and headers on the rest."""

    app: App
    _: KW_ONLY
    hosts: frozenset[str]
    max_body_bytes: int
    addresses: RateLimit
    is_secure: bool = False

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        refusal = self._refuse(scope)
        if refusal:
            await _answer(self._dressed(send, scope), *refusal)
            return
        await self.app(scope, _Counted(receive, self.max_body_bytes), self._dressed(send, scope))

    def _refuse(self, scope: MutableMapping[str, Any]) -> tuple[int, str, int | None] | None:
        headers = {name.lower(): value for name, value in scope["headers"]}
        host = host_name(headers.get(b"host", b"").decode("latin-1"))
        if host not in self.hosts:
            return 400, f"got the host {host!r} — expected one of {', '.join(sorted(self.hosts))}", None
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self.max_body_bytes:
            return 413, _TOO_LARGE.format(limit=self.max_body_bytes), None
        if not scope["path"].startswith("/static/"):
            address = (scope.get("client") or ("unknown", 0))[0]
            seconds = self.addresses.wait_seconds(address)
            if seconds:
                return 429, "too many requests from this address — wait a moment", max(1, math.ceil(seconds))
        return None

    def _dressed(self, send: Send, scope: MutableMapping[str, Any]) -> Send:
        extra = dict(HEADERS)
        if self.is_secure:
            extra["strict-transport-security"] = "max-age=31536000"
        extra["cache-control"] = "max-age=300" if scope["path"].startswith("/static/") else "no-store"
        encoded = [(name.encode(), value.encode()) for name, value in extra.items()]

        async def send_dressed(message: Message) -> None:
            if message["type"] == "http.response.start":
                kept = [pair for pair in message.get("headers", ()) if pair[0].lower().decode("latin-1") not in extra]
                message["headers"] = [*kept, *encoded]
            await send(message)

        return send_dressed


def host_name(host: str) -> str:
    """Return the name in a Host header without its port: `[::1]:80` gives `::1`."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()


class _Counted:
    """`receive` that answers 413 once the body is over the limit, whatever its headers said."""

    def __init__(self, receive: Receive, limit: int) -> None:
        self.receive = receive
        self.limit = limit
        self.left = limit

    async def __call__(self) -> Message:
        message = await self.receive()
        self.left -= len(message.get("body", b""))
        if self.left < 0:
            raise HTTPException(413, _TOO_LARGE.format(limit=self.limit))
        return message


_TOO_LARGE = "the request is too large — expected at most {limit} bytes — shorten the text"


async def _answer(send: Send, status: int, detail: str, retry_after: int | None) -> None:
    body = json.dumps({"detail": detail}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if retry_after is not None:
        headers.append((b"retry-after", str(retry_after).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
