"""The client: one request with its retries, many at once, and what they cost."""

from __future__ import annotations

import email.utils
import json
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2

from accord.endpoint.answers import Answer, read_answers, read_usage
from accord.endpoint.cache import AnswerCache, hash_request
from accord.endpoint.settings import EndpointDown, EndpointSettings, RequestRefused, Usage
from accord.errors import FeedbackError

MAY_PASS = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})  # a later attempt may be answered
OF_ONE_REQUEST = frozenset({400, 413, 422})  # another request may be answered
WHAT_TO_DO = {
    400: "look at the settings it names: the server does not take one of them",
    401: "set the environment variable named by api_key_variable to a valid key",
    403: "set the environment variable named by api_key_variable to a key that may use this model",
    404: "look at the address (it usually ends in /v1) and at the model's name",
    413: "send less, or raise the server's limit",
}

Message = Mapping[str, str]  # {"role": …, "content": …}


class Endpoint:
    """A client of one model at one OpenAI-compatible address; threads may share it, `close` or `with` ends it.

    Every method raises `EndpointDown` where the server stays away through all attempts, `RequestRefused` where it does
    not take the request, and FeedbackError where it takes none (a wrong key or model) or does not speak the protocol.
    No key is ever logged, kept or shown.
    """

    def __init__(
        self,
        settings: EndpointSettings,
        *,
        sleep: Callable[[float], None] = time.sleep,
        jitter: random.Random | None = None,
    ) -> None:
        self.settings = settings
        self.url = settings.url.rstrip("/")
        self._client = httpx2.Client(
            timeout=httpx2.Timeout(settings.timeout_seconds, connect=settings.connect_timeout_seconds),
            limits=httpx2.Limits(max_connections=settings.max_concurrent),
        )
        self._cache = AnswerCache(settings.cache_folder) if settings.cache_folder is not None else None
        self._sleep, self._jitter = sleep, jitter or random.Random()
        self._turn = threading.BoundedSemaphore(settings.max_concurrent)
        self._counting = threading.Lock()
        names = ("requests", "cached", "retries", "prompt", "completion", "uncounted")
        self._counts: dict[str, int] = dict.fromkeys(names, 0)

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the connections."""
        self._client.close()

    @property
    def usage(self) -> Usage:
        """What was asked so far, and its cost where prices and counts are known."""
        with self._counting:
            counts = dict(self._counts)
        price_in, price_out = self.settings.prompt_price, self.settings.completion_price
        cost = None
        if price_in is not None and price_out is not None and not counts["uncounted"]:
            cost = (counts["prompt"] * price_in + counts["completion"] * price_out) / 1e6
        return Usage(
            num_requests=counts["requests"], num_cached=counts["cached"], num_retries=counts["retries"],
            prompt_tokens=counts["prompt"], completion_tokens=counts["completion"],
            num_uncounted=counts["uncounted"], cost=cost,
        )  # fmt: skip

    def models(self) -> list[str]:
        """Return the names of the models the server lists."""
        body = self._send("GET", self.url + "/models", None)
        try:
            return [str(item["id"]) for item in body["data"]]
        except (KeyError, TypeError) as error:
            raise FeedbackError(
                f"got an answer without a list of models from {self.url}/models — expected `data` with an id each — "
                "is this address an OpenAI-compatible endpoint?"
            ) from error

    def chat(self, conversations: Sequence[Sequence[Message]], **options: Any) -> list[list[Answer]]:
        """Answer conversations of {"role", "content"}: of each its choices. `options` go into the request as they are.

        Conversations are asked side by side, `max_concurrent` at a time, and equal ones once.
        """
        return _unrefused(self.ask("/chat/completions", chat_requests(conversations, **options)))

    def complete(self, prompts: Sequence[str | Sequence[int]], **options: Any) -> list[list[Answer]]:
        """Continue texts, or token ids where the server takes them: of each its choices."""
        requests = [{"prompt": p if isinstance(p, str) else list(p), **options} for p in prompts]
        return _unrefused(self.ask("/completions", requests))

    def post(self, address: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Send one request to an absolute address of the same server, uncached: what steers a server, not a model."""
        return self._send("POST", address, body)

    def ask(self, path: str, requests: Sequence[Mapping[str, Any]]) -> list[list[Answer] | RequestRefused]:
        """Send requests side by side; return the choices of each, or why it alone was refused, in order.

        The settings' model is added to each. After a failure of another kind no further request is started; those
        under way are waited for, and their answers are in the cache.
        """
        bodies = [{"model": self.settings.model, **request} for request in requests]
        keys = [hash_request(self.url + path, body) for body in bodies]
        once = dict(zip(keys, bodies, strict=True))
        if not once:
            return []
        stop = threading.Event()

        def answer(item: tuple[str, dict[str, Any]]) -> list[Answer] | RequestRefused:
            if stop.is_set():
                return []  # never seen: the error that stopped us is raised below
            try:
                return self._answer(path, *item)
            except RequestRefused as refused:
                return refused
            except BaseException:
                stop.set()
                raise

        with ThreadPoolExecutor(min(self.settings.max_concurrent, len(once))) as pool:
            futures = [pool.submit(answer, item) for item in once.items()]
        errors = [error for future in futures if (error := future.exception()) is not None]
        if errors:
            raise errors[0]
        found = {key: future.result() for key, future in zip(once, futures, strict=True)}
        return [found[key] for key in keys]

    def _answer(self, path: str, key: str, body: dict[str, Any]) -> list[Answer]:
        kept = self._cache.read(key) if self._cache is not None else None
        if kept is not None:
            self._count(cached=1)
            return read_answers(kept, self.url + path, is_cached=True)
        said = self._send("POST", self.url + path, body)
        tokens = read_usage(said)
        prompt, completion = tokens or (0, 0)
        self._count(requests=1, prompt=prompt, completion=completion, uncounted=0 if tokens else 1)
        answers = read_answers(said, self.url + path)
        if self._cache is not None:
            self._cache.write(key, body, said)
        return answers

    def _send(self, method: str, address: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        """Send one request until it is answered, refused or out of attempts."""
        reason = ""
        for attempt in range(1, self.settings.num_attempts + 1):
            wait = None
            try:
                with self._turn:
                    response = self._client.request(method, address, json=body, headers=self.settings.headers())
            except httpx2.TransportError as error:
                reason = f"{type(error).__name__}{f' ({error})' if str(error) else ''}"
            except (httpx2.HTTPError, httpx2.InvalidURL) as error:
                raise FeedbackError(
                    f"got {type(error).__name__} ({error}) for {address} — expected an answer — look at the address"
                ) from error
            else:
                if response.status_code not in MAY_PASS:
                    return self._read(response, address)
                reason, wait = f"{response.status_code} ({_said(response)})", retry_after(response.headers)
                if wait is not None and wait > self.settings.max_retry_after_seconds:
                    raise EndpointDown(address, reason, attempt, wait)
            if attempt < self.settings.num_attempts:
                self._count(retries=1)
                self._sleep(self._pause(attempt, wait))
            elif wait is not None:
                raise EndpointDown(address, reason, attempt, wait)
        raise EndpointDown(address, reason, self.settings.num_attempts)

    def _pause(self, attempt: int, wait: float | None) -> float:
        """Seconds before the next attempt: half to all of the doubled back-off, or what the server asks for."""
        longest = min(self.settings.max_backoff_seconds, self.settings.backoff_seconds * 2 ** (attempt - 1))
        backoff = longest * self._jitter.uniform(0.5, 1.0)
        return max(backoff, wait or 0.0)

    def _read(self, response: httpx2.Response, address: str) -> dict[str, Any]:
        status = response.status_code
        if status != 200:
            message = (
                f"got {status} ({_said(response)}) from {address} — expected an answer — "
                f"{WHAT_TO_DO.get(status, 'look at the address and the settings')}"
            )
            raise RequestRefused(message, status) if status in OF_ONE_REQUEST else FeedbackError(message)
        try:
            body = json.loads(response.text)
        except ValueError:
            body = None
        if not isinstance(body, dict):
            raise FeedbackError(
                f"got an answer that is not a JSON object from {address} ({_said(response)}) — expected the OpenAI "
                "protocol — look at the address: it usually ends in /v1"
            )
        return body

    def _count(self, **more: int) -> None:
        with self._counting:
            for name, number in more.items():
                self._counts[name] += number


def chat_requests(conversations: Sequence[Sequence[Message]], **options: Any) -> list[dict[str, Any]]:
    """Return the bodies that ask for answers to conversations; an option that is None is left out."""
    options = {name: value for name, value in options.items() if value is not None}
    return [{"messages": [dict(message) for message in turns], **options} for turns in conversations]


def _unrefused(found: Sequence[list[Answer] | RequestRefused]) -> list[list[Answer]]:
    refused = next((item for item in found if isinstance(item, RequestRefused)), None)
    if refused is not None:
        raise refused
    return [item for item in found if not isinstance(item, RequestRefused)]


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds a server asks to wait, from Retry-After as seconds or as a date; None where it does not."""
    value = headers.get("retry-after", "").strip()
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _said(response: httpx2.Response) -> str:
    """The server's own words, short; a reply is no place for our key."""
    try:
        body = response.json()
        error = body.get("error", body.get("detail", body.get("message", "")))
        text = str(error.get("message", error) if isinstance(error, dict) else error)
    except (ValueError, AttributeError):
        text = response.text
    key = response.request.headers.get("authorization", "").removeprefix("Bearer ").strip()
    text = " ".join(text.split())[:200] or response.reason_phrase
    return text.replace(key, "…") if key else text
