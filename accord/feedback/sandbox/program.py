"""What is run in a sandbox, within which limits, how it ended, and the contract of every sandbox."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Protocol

from accord.errors import ConfigError

MIB = 1024 * 1024


class Ended(Enum):
    """Why a program ended. Whatever is not FINISHED was ended from outside; what it left is then incomplete."""

    FINISHED = "finished"  # by itself: it exited, or a signal of its own doing ended it
    TIME = "time"  # the CPU or wall limit
    MEMORY = "memory"  # its processes together held more than the limit
    OUTPUT = "output"  # it wrote more than the limit
    KILLED = "killed"  # by whoever started it, or by the system


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much a program may use. Memory is per process as address space, and for all of them together as resident."""

    cpu_seconds: int = 10  # of each process
    wall_seconds: float = 30.0
    memory_bytes: int = 1024 * MIB
    processes: int = 16  # threads count
    file_bytes: int = 16 * MIB  # of each file
    disk_bytes: int = 64 * MIB  # of each private folder
    open_files: int = 64
    output_bytes: int = MIB  # standard output and error together

    def __post_init__(self) -> None:
        for item in fields(self):
            if getattr(self, item.name) <= 0:
                raise ConfigError(
                    f"got the sandbox limit {item.name}={getattr(self, item.name)} — expected more than 0"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A command, the files it reads (name → content, in its folder `files`), and its standard input.

    Without `stdin` the input is empty and closed. `descriptors` are open file descriptors it inherits under the same
    numbers: a way to talk to it. The word `{files}` in an argument stands for the folder of the files.
    """

    argv: tuple[str, ...]
    files: Mapping[str, bytes] = field(default_factory=dict)
    stdin: bytes | None = None
    descriptors: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        wrong = [name for name in self.files if not name or name.startswith(".") or "/" in name or "\0" in name]
        if wrong:
            raise ConfigError(f"got the file name {wrong[0]!r} — expected a plain name without folders")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramOutcome:
    """How a program ended. `exit_code` is 128 + the signal where one ended it, and None where it was ended for it."""

    ended: Ended
    exit_code: int | None
    stdout: bytes
    stderr: bytes
    is_cut: bool = False  # it wrote more than is kept

    @property
    def is_success(self) -> bool:
        """Whether it ended by itself with exit code 0."""
        return self.ended is Ended.FINISHED and self.exit_code == 0


class RunningProgram(Protocol):
    """A program that has been started."""

    def wait(self) -> ProgramOutcome:
        """Return how it ended, when it has; nothing of it is alive then."""
        ...

    def kill(self) -> None:
        """End it with all its processes."""
        ...


class Sandbox(Protocol):
    """Runs programs within limits."""

    def start(self, program: Program, limits: Limits) -> RunningProgram:
        """Start a program; the thread that starts it must outlive it.

        Raises FeedbackError when the sandbox itself cannot be set up.
        """
        ...

    def run(self, program: Program, limits: Limits) -> ProgramOutcome:
        """Run a program to its end. Raises FeedbackError when the sandbox itself cannot be set up."""
        ...
