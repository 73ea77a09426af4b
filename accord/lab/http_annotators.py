"""Simulated annotators before the judging page: invited, qualified and paid in milliseconds, all through HTTP."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx2
import numpy as np

from accord.errors import DataError, FeedbackError
from accord.feedback.people import QuestionKind
from accord.lab.annotators import SimulatedAnnotator
from accord.lab.queue import simulated_answer
from accord.records import Message

Answer = Callable[[QuestionKind, tuple[Message, ...], Sequence[str], np.random.Generator], dict[str, Any]]
"""(question, prompt, responses as shown, rng) → the payload of an answer."""

MAX_TRIES = 8
_CSRF = re.compile(r'name="csrf-token" content="([0-9a-f]+)"')


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkReport:
    """What one simulated annotator did at the page."""

    name: str
    events: tuple[int, ...]  # one per answer, as the server acknowledged it
    seconds: tuple[float, ...]  # how long each acknowledgement took, sending again included
    num_resent: int
    is_finished: bool  # False: told to stop, or others held what was left for too long


def work_through(
    url: str,
    invitation: str,
    taste: SimulatedAnnotator | Answer,
    *,
    name: str | None = None,
    seed: int = 0,
    limit: int | None = None,
    patience_seconds: float = 60.0,
    timeout_seconds: float = 60.0,
) -> WorkReport:
    """Redeem an invitation and judge until nothing is left, or `limit` answers are given.

    `url` is where the page is, `invitation` a link or its token. `taste` judges texts of the text world, or is a
    function of (question, prompt, responses, rng) that returns any payload. An answer that is not acknowledged is sent
    again under its key, as the browser does. Where responses are still being written it waits; where
    others hold all that is left, for `patience_seconds`.
    Raises FeedbackError when the page refuses, DataError when a taste cannot judge what it is shown.
    """
    shown_as = name or (taste.name if isinstance(taste, SimulatedAnnotator) else "simulated")
    answer = _answer_of(taste) if isinstance(taste, SimulatedAnnotator) else taste
    rng = np.random.default_rng(seed)
    with httpx2.Client(base_url=url.rstrip("/"), timeout=timeout_seconds) as client:
        desk = _Desk(client)
        desk.enter(invitation.rsplit("/", 1)[-1], shown_as)
        events: list[int] = []
        seconds: list[float] = []
        waited_since: float | None = None
        while limit is None or len(events) < limit:
            found = desk.ask("GET", "/api/next", params={"form": "texts"})
            if found["state"] == "idle":
                waited_since = waited_since or time.monotonic()
                is_over = found["reason"] == "leased" and time.monotonic() - waited_since > patience_seconds
                if is_over or found["reason"] not in ("leased", "preparing"):
                    is_finished = found["reason"] == "finished"
                    break
                time.sleep(0.2)
                continue
            waited_since = None
            prompt = tuple(Message(role=turn["role"], content=turn["content"]) for turn in found["prompt"])
            payload = answer(QuestionKind(found["question"]), prompt, found["responses"], rng)
            began = time.perf_counter()
            body = {"assignment": found["assignment"], "key": secrets.token_hex(16), "payload": payload, "seconds": 0.0}
            events.append(desk.ask("POST", "/api/answer", json=body)["event"])
            seconds.append(time.perf_counter() - began)
        else:
            is_finished = False
    return WorkReport(
        name=shown_as,
        events=tuple(events),
        seconds=tuple(seconds),
        num_resent=desk.num_resent,
        is_finished=is_finished,
    )


def work_together(
    url: str,
    invitations: Sequence[str],
    tastes: Sequence[SimulatedAnnotator | Answer],
    *,
    seed: int = 0,
    limit: int | None = None,
    patience_seconds: float = 60.0,
) -> list[WorkReport]:
    """Have one annotator per invitation work at the same time, each as `work_through`; return their reports in order.

    Raises DataError unless there is a taste per invitation.
    """
    if len(invitations) != len(tastes) or not tastes:
        raise DataError(f"got {len(invitations)} invitations for {len(tastes)} tastes — expected one each")
    names = [taste.name if isinstance(taste, SimulatedAnnotator) else f"sim-{i}" for i, taste in enumerate(tastes)]
    with ThreadPoolExecutor(max_workers=len(tastes)) as pool:
        futures = [
            pool.submit(
                work_through,
                url,
                invitation,
                taste,
                name=name,
                seed=seed + i,
                limit=limit,
                patience_seconds=patience_seconds,
            )
            for i, (invitation, taste, name) in enumerate(zip(invitations, tastes, names, strict=True))
        ]
        return [future.result() for future in futures]


def _answer_of(taste: SimulatedAnnotator) -> Answer:
    def answer(
        question: QuestionKind, prompt: tuple[Message, ...], responses: Sequence[str], rng: np.random.Generator
    ) -> dict[str, Any]:
        return simulated_answer(taste, question, prompt, responses, rng)

    return answer


@dataclass(slots=True)
class _Desk:
    """A browser without a screen: a cookie, a CSRF token, and the patience to send again."""

    client: httpx2.Client
    num_resent: int = 0

    def enter(self, token: str, name: str) -> None:
        page = self._send("GET", f"/i/{token}")
        done = self._send("POST", f"/i/{token}", data={"name": name, "csrf": self._csrf(page)})
        if done.status_code != 303:
            raise FeedbackError(f"got {done.status_code} for an invitation — expected to be let in — ask for another")
        self.client.headers["x-csrf-token"] = self._csrf(self._send("GET", done.headers["location"]))

    def ask(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        """Return what the page says. Raises FeedbackError when it refuses."""
        response = self._send(method, path, **request)
        if response.status_code != 200:
            raise FeedbackError(f"{path}: got {response.status_code}: {response.text[:300]}")
        return response.json()

    def _send(self, method: str, path: str, **request: Any) -> httpx2.Response:
        problem = ""
        for tried in range(MAX_TRIES):
            try:
                response = self.client.request(method, path, **request)
            except httpx2.TransportError as error:
                problem = f"{type(error).__name__}: {error}"
            else:
                if response.status_code not in (429, 500, 502, 503, 504):
                    return response
                problem = f"{response.status_code}: {response.text[:200]}"
            self.num_resent += 1
            time.sleep(min(5.0, 0.1 * 2**tried))
        raise FeedbackError(f"{path}: no answer after {MAX_TRIES} tries ({problem}) — is the page open?")

    @staticmethod
    def _csrf(page: httpx2.Response) -> str:
        found = _CSRF.search(page.text)
        if not found:
            raise FeedbackError(f"got {page.status_code} and no form — expected a page of Accord's — look at the url")
        return found[1]
