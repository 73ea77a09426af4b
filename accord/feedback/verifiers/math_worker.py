"""The program of a worker process: one question of mathematics per line in, one answer per line out.

It is run as a file by `mathematics.py` and imports nothing of Accord. A question is `{"gold", "given", "seconds"}`;
its answer `{"outcome": "equal" | "different" | "gold unread" | "given unread" | "failed", "detail"}`.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from typing import Any

MEMORY_BYTES = 2 * 1024**3
SPARE_SECONDS = 2.0  # the caller stops waiting first; this only ends a worker whose caller is gone


def main() -> None:
    """Answer questions until the input ends; a question over its time ends the process, whatever it is doing."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no answer
    logging.disable(logging.CRITICAL)
    import math_verify  # noqa: F401 — the slow part, before the first question's clock runs

    _limit_memory()
    _write(answers, {"outcome": "ready"})
    for line in sys.stdin:
        question = json.loads(line)
        _set_alarm(question["seconds"] + SPARE_SECONDS)
        _write(answers, _compare(question["gold"], question["given"]))
        _set_alarm(0.0)


def _compare(gold: str, given: str) -> dict[str, str]:
    from math_verify import verify

    try:
        right, answer = _parse(gold), _parse(given)
        if right is None:
            return {"outcome": "gold unread"}
        if answer is None:
            return {"outcome": "given unread"}
        is_equal = verify(right, answer, timeout_seconds=None, raise_on_error=True)
        return {"outcome": "equal" if is_equal else "different"}
    except Exception as error:  # sympy raises anything; what it could not compare is unknown, not wrong
        return {"outcome": "failed", "detail": type(error).__name__}


def _parse(text: str) -> Any:
    from math_verify import LatexExtractionConfig, parse

    found = parse(
        f"\\boxed{{{text}}}",
        [LatexExtractionConfig(boxed_match_priority=0)],
        fallback_mode="no_fallback",
        extraction_mode="first_match",
        parsing_timeout=None,  # pyright: ignore[reportArgumentType] -- documented: the caller keeps the time
        raise_on_error=True,
    )
    return found[0] if found else None


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # not on this system: the time limit is the only one
        return
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _set_alarm(seconds: float) -> None:
    import signal

    if hasattr(signal, "setitimer"):  # its default action ends the process even inside a C function
        signal.setitimer(signal.ITIMER_REAL, seconds)


def _write(stream: Any, answer: dict[str, str]) -> None:
    stream.write(json.dumps(answer) + "\n")
    stream.flush()


if __name__ == "__main__":
    main()
