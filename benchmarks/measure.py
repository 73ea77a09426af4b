"""What a contender reports about itself: CPU seconds, wall seconds, peak memory. One process, one thread."""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass
class Clock:
    """CPU and wall seconds of a stretch of work; `with clock:` adds to it, so one clock may run several times."""

    cpu_s: float = 0.0
    wall_s: float = 0.0
    _started: tuple[float, float] = field(default=(0.0, 0.0), repr=False)

    def __enter__(self) -> Clock:
        self._started = (time.process_time(), time.perf_counter())
        return self

    def __exit__(self, *exc: object) -> None:
        self.cpu_s += time.process_time() - self._started[0]
        self.wall_s += time.perf_counter() - self._started[1]


@dataclass
class Result:
    """One run of one contender, as written to its result file. Memory in MiB."""

    contender: str
    versions: dict[str, str]
    cpu_s: float  # reference pass and training
    wall_s: float
    cpu_s_all: float  # loading the model, reading the data and (Accord) saving and reporting too
    peak_mib: float  # resident, with the interpreter and its libraries
    peak_over_start_mib: float  # the same, minus what was resident before the model was loaded
    losses: list[float]
    num_prompt_tokens: int
    num_response_tokens: int
    ids_sha256: str
    num_processed_tokens: int | None = None  # positions that went through the network's layers, padding included
    details: dict[str, object] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write the result for the parent process."""
        path.write_text(json.dumps(asdict(self), indent=1))


def reset_peak() -> float:
    """Set the process's peak to what is resident now and return that, MiB."""
    with contextlib.suppress(OSError):  # not permitted in some containers: the peak then includes the small warm-up
        Path("/proc/self/clear_refs").write_text("5")
    return _status_mib("VmRSS")


def peak_mib() -> float:
    """Return the peak resident memory since `reset_peak`, MiB."""
    return _status_mib("VmHWM")


def _status_mib(name: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {name}; the benchmark reads memory from it, so it needs Linux")
