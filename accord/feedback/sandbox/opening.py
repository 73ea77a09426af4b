"""Which sandbox there is, and many runs at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from accord.errors import ConfigError
from accord.feedback.sandbox.bubblewrap import BubblewrapSandbox
from accord.feedback.sandbox.local import UnsafeLocalSandbox
from accord.feedback.sandbox.program import Sandbox

Item = TypeVar("Item")
Result = TypeVar("Result")


def find_sandbox(*, unsafe_local: bool = False, readable: tuple[str, ...] = ()) -> Sandbox:
    """Return the sandbox of this machine, tried with a harmless program.

    Raises FeedbackError, which says what to install, when bubblewrap is missing or does not work and `unsafe_local`
    does not allow running without.
    """
    if unsafe_local:
        return UnsafeLocalSandbox(unsafe_local=True)
    sandbox = BubblewrapSandbox(readable=readable)
    sandbox.check()
    return sandbox


def run_many(
    function: Callable[[Item], Result], items: Iterable[Item], *, max_workers: int | None = None
) -> list[Result]:
    """Return the function of every item in order, at most `max_workers` at once (None: one per processor).

    The first error is raised when the runs that had begun are over.
    """
    if max_workers is not None and max_workers < 1:
        raise ConfigError(f"got max_workers={max_workers} — expected at least 1")
    with ThreadPoolExecutor(max_workers=max_workers or os.cpu_count() or 1) as pool:
        waiting = [pool.submit(function, item) for item in items]
        try:
            return [future.result() for future in waiting]
        finally:
            for future in waiting:
                future.cancel()
