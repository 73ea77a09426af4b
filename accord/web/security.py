"""Who is asking, and whether the request comes from our own page: signed cookies, CSRF tokens, where it may listen."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from itsdangerous import BadSignature, URLSafeTimedSerializer
from starlette.requests import Request
from starlette.responses import Response

from accord.errors import ConfigError

MIN_SECRET_CHARACTERS = 32
SECRET_VARIABLE = "ACCORD_SECRET"


@dataclass(frozen=True, slots=True, kw_only=True)
class WebSettings:
    """How the page is served. The defaults are for one machine: only it can reach the page."""

    host: str = "127.0.0.1"
    port: int = 8765
    secret: str  # what cookies are signed with, at least 32 characters
    is_secret_given: bool = False  # by a person, not made up in the project's folder
    public_url: str | None = None  # where a proxy with TLS shows the page, such as "https://judge.example.org"
    session_days: float = 14.0
    max_body_bytes: int = 256 * 1024
    requests_per_second: float = 20.0  # of one session, on average …
    burst: int = 100  # … and at once
    address_requests_per_second: float = 200.0  # of one address: many annotators may sit behind it
    entries_per_minute: float = 300.0  # invitations opened from one address: a class opens them at once

    @property
    def is_secure(self) -> bool:
        """Whether browsers reach the page by https."""
        return bool(self.public_url and self.public_url.startswith("https://"))

    @property
    def url(self) -> str:
        """Where people open the page, without a slash at the end."""
        if self.public_url:
            return self.public_url.rstrip("/")
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    def host_names(self) -> frozenset[str]:
        """Return the names a request may come in by; any other is refused (DNS rebinding)."""
        names = {"127.0.0.1", "localhost", "::1", self.host.lower()}
        if self.public_url:
            names.add(urlsplit(self.public_url).hostname or "")
        return frozenset(names - {"0.0.0.0", "::", ""})


def check_settings(settings: WebSettings) -> None:
    """Raise ConfigError where the page would stand open: a short secret, or a public address without a secret given."""
    if len(settings.secret) < MIN_SECRET_CHARACTERS:
        raise ConfigError(
            f"got a secret of {len(settings.secret)} characters — expected at least {MIN_SECRET_CHARACTERS} — "
            "make one with: python -c 'import secrets; print(secrets.token_urlsafe(48))'"
        )
    if settings.public_url is not None:
        parts = urlsplit(settings.public_url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path not in ("", "/"):
            raise ConfigError(
                f"got the public address {settings.public_url!r} — expected https://HOST with nothing behind it — "
                "give the page a host name of its own"
            )
    if is_loopback(settings.host):
        return
    if not settings.is_secret_given:
        raise ConfigError(
            f"got host {settings.host!r}, which others can reach, and no secret for signing sessions — expected one in "
            f"the variable {SECRET_VARIABLE} — set it, or stay on 127.0.0.1"
        )
    if settings.host in ("0.0.0.0", "::", "") and settings.public_url is None:
        raise ConfigError(
            f"got host {settings.host!r} and no public address — expected the address people will open — "
            "add --public-url https://…, or listen on one address"
        )


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach a server that listens on `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read_secret(folder: Path) -> tuple[str, bool]:
    """Return (secret, whether it was given): from ACCORD_SECRET, or a random one kept in `folder`/secret (mode 600)."""
    given = os.environ.get(SECRET_VARIABLE)
    if given:
        return given, True
    path = folder / "secret"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as stream:
                stream.write(secrets.token_urlsafe(48))
        except FileExistsError:
            pass  # another process of this project was first
    return path.read_text("utf-8").strip(), False


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What a browser holds: a random key, and after signing in the token the store knows the hash of."""

    key: str
    token: str | None = None
    is_new: bool = False  # the browser does not hold it yet


@dataclass(frozen=True, slots=True)
class Doorkeeper:
    """Gives and reads session cookies and the CSRF tokens that belong to them."""

    settings: WebSettings

    @property
    def cookie(self) -> str:
        """The cookie's name: with https bound to this very host, without it one per port."""
        return "__Host-accord" if self.settings.is_secure else f"accord-{self.settings.port}"

    def read(self, request: Request) -> Session:
        """Return the session of a request; a cookie that is missing, forged or too old gives a new, empty one."""
        sealed = request.cookies.get(self.cookie, "")
        try:
            held = self._serializer().loads(sealed, max_age=int(self.settings.session_days * 86_400))
            return Session(key=str(held["key"]), token=held["token"])
        except (BadSignature, KeyError, TypeError):
            return new_session()

    def give(self, response: Response, session: Session) -> None:
        """Put a session into the browser."""
        response.set_cookie(
            self.cookie,
            self._serializer().dumps({"key": session.key, "token": session.token}),
            max_age=int(self.settings.session_days * 86_400),
            path="/",
            httponly=True,
            samesite="lax",  # "strict" would lose the session of who comes back by a link in a message
            secure=self.settings.is_secure,
        )

    def owner_mark(self, person: int) -> str:
        """Return a name for somebody's own corner of a browser's storage; it tells nothing and lasts as the secret."""
        return hmac.new(self._key("owner"), str(person).encode(), "sha256").hexdigest()[:20]

    def csrf_token(self, session: Session) -> str:
        """Return the token that forms of this session carry: HMAC-SHA256 of the session's key."""
        return hmac.new(self._key("csrf"), session.key.encode(), "sha256").hexdigest()

    def is_own_form(self, request: Request, session: Session, token: str) -> bool:
        """Return whether a request that changes something comes from our page: its token, and its origin if it says."""
        origin = request.headers.get("origin")
        if origin is not None and origin not in self._origins(request):
            return False
        if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return False
        return hmac.compare_digest(token.encode(), self.csrf_token(session).encode())

    def _origins(self, request: Request) -> set[str]:
        # The guard has checked the Host header against the names this server has.
        own = {f"{request.url.scheme}://{request.headers.get('host', '')}"}
        return own | ({self.settings.url} if self.settings.public_url else set())

    def _key(self, purpose: str) -> bytes:
        return hashlib.sha256(f"accord {purpose} {self.settings.secret}".encode()).digest()

    def _serializer(self) -> URLSafeTimedSerializer:
        return URLSafeTimedSerializer(self.settings.secret, salt="accord session", signer_kwargs=_SIGNER)


def new_session(token: str | None = None) -> Session:
    """Return a session with a new key, so that one known before the sign-in is worth nothing."""
    return Session(key=secrets.token_urlsafe(24), token=token, is_new=True)


_SIGNER = {"key_derivation": "hmac", "digest_method": hashlib.sha256}
