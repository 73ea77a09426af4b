"""Mathematics: the final answer of a response, and whether it equals the right one, asked of worker processes."""

from __future__ import annotations

import atexit
import json
import os
import queue
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Gt, Le

from accord.errors import FeedbackError
from accord.feedback.findings import Finding
from accord.feedback.verifiers.spec import Column, VerifierSpec, require
from accord.feedback.verifiers.texts import NO_TEXT, Answer, boxed_contents, final_text, last_boxed, response_text

_START_SECONDS = 300.0  # a loaded machine imports slowly; a worker that never starts is an error, not a verdict
_MAX_CHARACTERS = 2000  # of a final answer; longer ones are no answers
_MAX_LINE = 300  # of a response that is nothing but its answer
_SAID = re.compile(r"\banswer\b[*_ ]*(?:is|:|=)[*_: ]*", re.IGNORECASE)
_SPAN = re.compile(r"\$\$(.+?)\$\$|\$([^$\n]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_MARKED = re.compile(r"^[ \t]*####[ \t]*(.+)$", re.MULTILINE)


def math(
    response: Answer,
    answer: str | int | float,
    *,
    extraction: Literal["strict", "loose"] = "strict",
    timeout_seconds: Annotated[float, Gt(0), Le(600)] = 5.0,
) -> Finding:
    r"""Score 1 where the final answer of the response equals the right one as mathematics, else 0.

    `strict` reads one answer: the last `\boxed{…}`; without one what follows the last "answer is" or "answer:"; then
    a last line `#### …`; then the whole response, if it is one line. `loose` tries these and the last formula, and one
    that is right suffices: a response that offers several answers wins, so do not train on it. What precedes `</think>`
    is not read. Equality is that of the text with LaTeX's spacing and delimiters taken away, or that of `math-verify`
    (numbers agree to six decimals, sets as sets, expressions after simplification), in a worker process.
    Unknown: over `timeout_seconds`, the worker died or failed, or `answer` is not read as mathematics and differs from
    the response as text. Raises FeedbackError without the extra `verifiers`.
    """
    text = response_text(response)
    if text is None:
        return NO_TEXT
    if len(str(answer)) > _MAX_CHARACTERS or not (right := plain_latex(str(answer))):
        return Finding(score=None, reason=f"the right answer has 0 or more than {_MAX_CHARACTERS} characters")
    candidates = possible_answers(text) if extraction == "loose" else _candidates(final_text(text))[:1]
    if not candidates:
        return Finding(score=0.0, reason="the response has no final answer")
    findings = [_judge(right, candidate, timeout_seconds) for candidate in candidates]
    known = [finding for finding in findings if finding.score is not None]
    best = next((finding for finding in known if finding.score == 1), None)
    return best or next((finding for finding in findings if finding.score is None), findings[0])


def equivalent(one: str, other: str, *, timeout_seconds: float = 5.0) -> bool | None:
    """Return whether two final answers are equal as mathematics, as `math` compares them; None where that is unknown.

    `one` is taken as the right answer: where a statement such as `x = 3` meets a bare `3`, order may matter.
    """
    if len(one) > _MAX_CHARACTERS:
        return None
    score = _judge(plain_latex(one), other, timeout_seconds).score
    return None if score is None else score == 1


def final_answer(text: str) -> str | None:
    """Return the final answer of a response as `math` reads it with `extraction="strict"`; None without one."""
    return next(iter(_candidates(final_text(text))), None)


def possible_answers(text: str) -> list[str]:
    """Return what `math` tries with `extraction="loose"`: what may be the answer, and the last formula."""
    text = final_text(text)
    tail = text[-2 * _MAX_CHARACTERS :]  # an opening delimiter without its end costs a pass over the rest
    spans = [next(part for part in found if part) for found in _SPAN.findall(tail)][-1:]
    return [*_candidates(text), *(span.strip() for span in spans)]


def _candidates(text: str) -> list[str]:
    """What may be the answer, best first; a last box that never closes is no answer, whatever else there is."""
    if re.search(r"\\(?:boxed|fbox)\b", text):
        box = last_boxed(text)
        return [box] if box else []
    said = [_first_formula(text[found.end() :]) for found in [*_SAID.finditer(text)][-1:]]
    marked = _MARKED.findall(text)[-1:]
    whole = [text] if len(text) <= _MAX_LINE and len(text.strip().splitlines()) == 1 else []
    return [candidate.strip() for candidate in (*said, *marked, *whole) if candidate.strip()]


def _first_formula(rest: str) -> str:
    """What "the answer is" introduces: a formula, or the words up to the end of the sentence."""
    rest = rest[: _MAX_CHARACTERS + 100].lstrip()
    span = _SPAN.match(rest)
    if span:
        return next(part for part in span.groups() if part)
    return re.split(r"(?<=[^.\s])\.(?:\s|$)|[*]{2}|\n", rest, maxsplit=1)[0]


def plain_latex(text: str) -> str:
    """Return an answer without delimiters, spacing and the other habits of typesetting that mean nothing."""
    text = text.strip()
    span = _SPAN.fullmatch(text)
    text = next(part for part in span.groups() if part) if span else text
    text = text.strip().rstrip(".").replace("{,}", ",")
    text = re.sub(r"\\(?:left|right|displaystyle)(?![A-Za-z])|\\[!,;:> ]", "", text)
    text = re.sub(r"\\[dt]frac(?![A-Za-z])", r"\\frac", text)
    text = re.sub(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))(?![^(\[{]*[)\]}])", "", text)  # not inside a tuple or set
    return " ".join(text.split())


def _judge(right: str, candidate: str, seconds: float) -> Finding:
    if len(candidate) > _MAX_CHARACTERS:
        return Finding(
            score=0.0, reason=f"the final answer has {len(candidate)} characters (at most {_MAX_CHARACTERS})"
        )
    given = plain_latex(candidate)
    shown = f"got {given:.80}, the right answer is {right:.80}"
    if "".join(given.split()) == "".join(right.split()):
        return Finding(score=1.0, reason=shown)
    if not given:
        return Finding(score=0.0, reason="the final answer is empty")
    if boxed_contents(f"\\boxed{{{given}}}") != [given]:
        return Finding(score=0.0, reason=f"{shown}; the braces of the first do not close")
    if all(re.fullmatch(r"-?[0-9]{1,100}", number) for number in (given, right)):
        return Finding(score=float(int(given) == int(right)), reason=shown)
    require("math_verify", "the verifier 'math'")
    reply = _pool().ask({"gold": right, "given": given, "seconds": seconds}, seconds)
    match reply["outcome"]:
        case "equal":
            return Finding(score=1.0, reason=shown)
        case "different":
            return Finding(score=0.0, reason=shown)
        case "given unread":
            return Finding(score=0.0, reason=f"{shown}; the first is not read as mathematics and the texts differ")
        case "gold unread":
            return Finding(score=None, reason=f"{shown}; the latter is not read as mathematics and the texts differ")
    return Finding(score=None, reason=f"{shown}; {reply['detail']}")


_NO_REPLY = {"outcome": "died", "detail": "the asking was interrupted"}


class _Worker:
    """A process with a thread that reads what it writes."""

    def __init__(self) -> None:
        program = Path(__file__).with_name("math_worker.py")
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(program)],  # -P: the folder's own modules must not shadow the library's
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        ready = self._next_line(_START_SECONDS)
        if not ready:
            self.close()
            raise FeedbackError(
                f"got no sign of life from a worker of math-verify in {_START_SECONDS:g} s — expected it to start — "
                f"see what `{sys.executable} -c 'import math_verify'` says"
            )

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(b"")  # it has ended

    def _next_line(self, seconds: float) -> bytes | None:
        try:
            return self._lines.get(timeout=seconds)
        except queue.Empty:
            return None

    def ask(self, question: dict[str, object], seconds: float) -> dict[str, str]:
        """Return the reply, or one that says why there is none; after that the worker is of no more use."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:  # it ended between two questions
            return {"outcome": "died", "detail": "the worker had ended"}
        line = self._next_line(seconds)
        if line is None:
            return {"outcome": "timeout", "detail": f"no result in {seconds:g} s"}
        return json.loads(line) if line else {"outcome": "died", "detail": "the worker died over it"}

    def close(self) -> None:
        """End the process and collect it."""
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except OSError:  # a question it never read is lost with it
                continue


class WorkerPool:
    """Workers kept over questions, each asked one at a time; one that runs over its time or dies is replaced."""

    def __init__(self, num_workers: int) -> None:
        self._places = threading.BoundedSemaphore(num_workers)
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []

    def ask(self, question: dict[str, object], seconds: float) -> dict[str, str]:
        """Return a worker's reply. Raises FeedbackError where no worker can be started."""
        with self._places:
            reply, is_fresh = self._ask_one(question, seconds)
            if reply["outcome"] == "died" and not is_fresh:  # something else may have ended it while it was idle
                reply, _ = self._ask_one(question, seconds)
            return reply

    def _ask_one(self, question: dict[str, object], seconds: float) -> tuple[dict[str, str], bool]:
        """Return a worker's reply, and whether the worker was started for it."""
        with self._lock:
            idle = self._idle.pop() if self._idle else None
        worker = idle or _Worker()
        reply = _NO_REPLY
        try:
            reply = worker.ask(question, seconds)
        finally:
            if reply["outcome"] in ("died", "timeout"):
                worker.close()
            else:
                with self._lock:
                    self._idle.append(worker)
        return reply, idle is None

    def close(self) -> None:
        """End all idle workers."""
        with self._lock:
            idle, self._idle = self._idle, []
        for worker in idle:
            worker.close()


_pool_lock = threading.Lock()
_pools: list[WorkerPool] = []  # of this process: none, or one
_inherited: list[WorkerPool] = []  # after a fork: the parent's, kept and left alone


def _pool() -> WorkerPool:
    with _pool_lock:
        if not _pools:
            _pools.append(WorkerPool(num_workers=max(1, min(8, os.cpu_count() or 1))))
        return _pools[0]


def close_workers() -> None:
    """End the worker processes of `math`; they are started again when needed, and end with this process anyway."""
    with _pool_lock:
        pools, _pools[:] = _pools[:], []
    for pool in pools:
        pool.close()


def _forget_inherited() -> None:
    global _pool_lock
    _pool_lock = threading.Lock()  # another thread may have held it when the process forked
    _inherited.extend(_pools)
    _pools.clear()


atexit.register(close_workers)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_inherited)


ROWS: dict[str, VerifierSpec] = {
    "math": VerifierSpec(
        fn=math,
        columns={"answer": Column("answer", "the right answer, in LaTeX or plain")},
        requires=("math_verify",),
        waits=True,
        source="math-verify (Hugging Face)",
    ),
}
