"""How to reach an endpoint and what it costs; what it is to be down."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from accord.errors import FeedbackError


class EndpointDown(FeedbackError):
    """An endpoint that stayed unreachable or overloaded through every attempt; answers had before are in the cache.

    Whoever trains can pause with a checkpoint and try again: `url`, `reason`, `num_attempts` and, where the server
    named one, `retry_after_seconds` say what is known.
    """

    def __init__(self, url: str, reason: str, num_attempts: int, retry_after_seconds: float | None = None) -> None:
        after = f", and asks to wait {retry_after_seconds:g} s" if retry_after_seconds is not None else ""
        super().__init__(
            f"got {reason} from {url} after {num_attempts} attempt{'s' if num_attempts != 1 else ''}{after} — "
            "expected an answer — look whether the server runs and is reachable, then do the same again: "
            "answers had before are not asked again where there is a cache"
        )
        self.url, self.reason, self.num_attempts = url, reason, num_attempts
        self.retry_after_seconds = retry_after_seconds


class RequestRefused(FeedbackError):
    """One request the server will not take as it is (too long, or a setting it does not know), by its `status`."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointSettings:
    """Where an endpoint is and how patiently it is asked. `url` ends where `/chat/completions` would be added.

    The key is read from the environment variable `api_key_variable` at each request; None sends none. Prices are per
    million tokens in a currency of your own; None = unknown, tokens are counted all the same.
    Raises FeedbackError for values out of range.
    """

    url: str
    model: str
    api_key_variable: str | None = None
    timeout_seconds: float = 300.0  # for one answer
    connect_timeout_seconds: float = 10.0
    num_attempts: int = 6
    backoff_seconds: float = 1.0  # before the second attempt; doubles each time, with jitter
    max_backoff_seconds: float = 60.0
    max_retry_after_seconds: float = 600.0  # a server that asks to wait longer than this counts as down
    max_concurrent: int = 8
    cache_folder: Path | None = None  # None = every question is asked again
    prompt_price: float | None = None
    completion_price: float | None = None

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise FeedbackError(f"got the endpoint {self.url!r} — expected an address such as http://localhost:8000/v1")
        for name, is_fine, expected in (
            ("timeout_seconds", self.timeout_seconds > 0, "> 0"),
            ("connect_timeout_seconds", self.connect_timeout_seconds > 0, "> 0"),
            ("num_attempts", self.num_attempts >= 1, "≥ 1"),
            ("backoff_seconds", self.backoff_seconds >= 0, "≥ 0"),
            ("max_backoff_seconds", self.max_backoff_seconds >= 0, "≥ 0"),
            ("max_retry_after_seconds", self.max_retry_after_seconds >= 0, "≥ 0"),
            ("max_concurrent", self.max_concurrent >= 1, "≥ 1"),
            ("prompt_price", self.prompt_price is None or self.prompt_price >= 0, "≥ 0 or None"),
            ("completion_price", self.completion_price is None or self.completion_price >= 0, "≥ 0 or None"),
        ):
            if not is_fine:
                raise FeedbackError(f"got {name}={getattr(self, name)} — expected {name} {expected}")

    def headers(self) -> dict[str, str]:
        """Return what authorises a request. Raises FeedbackError where the named variable is not set."""
        if self.api_key_variable is None:
            return {}
        key = os.environ.get(self.api_key_variable, "").strip()
        if not key:
            raise FeedbackError(
                f"got no key for {self.url}: the environment variable {self.api_key_variable} is not set — "
                "expected the endpoint's key in it — export it, or name another variable"
            )
        return {"Authorization": f"Bearer {key}"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What was asked since the client was made. Tokens are the server's count, of answers that were not cached."""

    num_requests: int = 0  # answered by the server
    num_cached: int = 0  # answered from the cache, at no cost
    num_retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    num_uncounted: int = 0  # answers whose server did not say how many tokens they took
    cost: float | None = None  # None = at least one price, or one answer's count, is unknown
