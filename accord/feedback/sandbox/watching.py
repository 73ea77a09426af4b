"""A started process watched from outside: output read up to a cap, time and memory limited, the whole of it killed."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from accord.errors import FeedbackError
from accord.feedback.sandbox.program import Ended, Limits, ProgramOutcome

_TICK = 0.05  # seconds between two looks at time and memory
_CHUNK = 65536
_PAGE = os.sysconf("SC_PAGE_SIZE")
_CPU_SIGNALS = (128 + signal.SIGXCPU, -signal.SIGXCPU)


class WatchedProcess:
    """A process and everything it starts, read and limited by a thread of its own.

    `find_failure` is asked at the end, with the standard error, why the sandbox failed ("" = it did not); what it says
    counts where the process ended by itself. `clean_up` is called last.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        limits: Limits,
        environment: dict[str, str],
        folder: str,
        stdin: bytes | None = None,
        descriptors: Sequence[int] = (),
        find_failure: Callable[[bytes], str] | None = None,
        clean_up: Callable[[], None] | None = None,
    ) -> None:
        self._limits = limits
        self._find_failure = find_failure
        self._clean_up = clean_up
        self._ended: Ended | None = None
        self._failure = ""
        self._output: dict[str, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
        self._is_cut = False
        self._start = time.monotonic()
        source = subprocess.DEVNULL if stdin is None else file_of(stdin)
        try:
            self._process = subprocess.Popen(
                argv, stdin=source, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, cwd=folder,
                pass_fds=tuple(descriptors), start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise FeedbackError(f"cannot start {argv[0]}: {error}") from error
        finally:
            if stdin is not None:
                os.close(source)
        self._thread = threading.Thread(target=self._watch, name="sandbox", daemon=True)
        self._thread.start()

    def wait(self) -> ProgramOutcome:
        """Return how it ended. Raises FeedbackError when it was the sandbox that failed."""
        self._thread.join()
        if self._failure:
            raise FeedbackError(self._failure)
        code = self._process.returncode
        ended = _reason_of(code) if self._ended is None else self._ended
        return ProgramOutcome(
            ended=ended,
            exit_code=None if ended is not Ended.FINISHED else code if code >= 0 else 128 - code,
            stdout=bytes(self._output["stdout"]),
            stderr=bytes(self._output["stderr"]),
            is_cut=self._is_cut,
        )

    def kill(self) -> None:
        """End it with its group."""
        self._end(Ended.KILLED)

    def _end(self, reason: Ended) -> None:
        if self._ended is None and self._process.poll() is None:
            self._ended = reason
        self._kill_group()

    def _kill_group(self) -> None:
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return

    def _watch(self) -> None:
        process = self._process
        assert process.stdout is not None
        assert process.stderr is not None
        with selectors.DefaultSelector() as selector, process.stdout, process.stderr:
            selector.register(process.stdout, selectors.EVENT_READ, "stdout")
            selector.register(process.stderr, selectors.EVENT_READ, "stderr")
            while selector.get_map():
                for key, _ in selector.select(_TICK):
                    self._read(selector, key)
                self._look()
                if process.poll() is not None and not selector.select(0):
                    break  # it is gone and what it left behind says nothing: do not wait for that to close
        while process.poll() is None:
            time.sleep(_TICK / 10)
            self._look()
        self._kill_group()
        process.wait()
        if self._find_failure is not None:
            failure = self._find_failure(bytes(self._output["stderr"]))
            self._failure = failure if self._ended is None else ""
        if self._clean_up is not None:
            self._clean_up()

    def _read(self, selector: selectors.BaseSelector, key: selectors.SelectorKey) -> None:
        chunk = os.read(key.fd, _CHUNK)
        if not chunk:
            selector.unregister(key.fileobj)
            return
        room = self._limits.output_bytes - sum(len(kept) for kept in self._output.values())
        self._output[key.data] += chunk[: max(room, 0)]
        if len(chunk) > room:
            self._is_cut = True
            self._end(Ended.OUTPUT)

    def _look(self) -> None:
        if self._process.poll() is not None:
            return
        if time.monotonic() - self._start > self._limits.wall_seconds:
            self._end(Ended.TIME)
        elif resident_bytes(self._process.pid) > self._limits.memory_bytes:
            self._end(Ended.MEMORY)


def _reason_of(code: int) -> Ended:
    """Return why a process ended that nobody here ended."""
    if code in _CPU_SIGNALS:
        return Ended.TIME
    return Ended.KILLED if code in (128 + signal.SIGKILL, -signal.SIGKILL) else Ended.FINISHED


def file_of(content: bytes) -> int:
    """Return a descriptor of a nameless file in memory with this content, at its start."""
    descriptor = os.memfd_create("sandbox")
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.write(content)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process and its descendants; pages they share after a fork count for each."""
    total, waiting = 0, [pid]
    while waiting:
        folder = Path("/proc") / str(waiting.pop())
        try:
            _, resident, shared = (folder / "statm").read_text().split()[:3]
            total += (int(resident) - int(shared)) * _PAGE
            for children in folder.glob("task/*/children"):
                waiting += [int(child) for child in children.read_text().split()]
        except (OSError, ValueError):
            continue  # it ended while it was looked at
    return total
