"""No sandbox at all: a program run as this user, limited in resources only, for those who ask for it in words."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

from accord.errors import ConfigError, FeedbackError
from accord.feedback.sandbox.program import Limits, Program, ProgramOutcome
from accord.feedback.sandbox.watching import WatchedProcess

WARNING = (
    "programs run WITHOUT a sandbox, as you: they can read and delete your files, use the network and leave processes "
    "behind — only for programs you would run yourself"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class UnsafeLocalSandbox:
    """Runs programs as this user: time, memory and output are limited, nothing else is.

    Raises ConfigError unless `unsafe_local=True` says that this is meant; warns once all the same.
    """

    unsafe_local: bool = False

    def __post_init__(self) -> None:
        if self.unsafe_local is not True:
            raise ConfigError(f"got unsafe_local={self.unsafe_local!r} — {WARNING}; say unsafe_local=True to do so")
        warnings.warn(WARNING, stacklevel=3)

    def start(self, program: Program, limits: Limits) -> WatchedProcess:
        """Start a program. Raises FeedbackError when it cannot be started."""
        folder = Path(tempfile.mkdtemp(prefix="accord-unsafe-"))
        for name, content in program.files.items():
            (folder / name).write_bytes(content)
        prlimit = shutil.which("prlimit")
        if prlimit is None:
            raise FeedbackError("there is no program 'prlimit' to limit resources with — install util-linux")
        # the number of processes is left alone: the kernel would count all of this user's
        restrict = [
            prlimit, f"--cpu={limits.cpu_seconds}:{limits.cpu_seconds + 1}", f"--as={limits.memory_bytes}",
            f"--fsize={limits.file_bytes}", f"--nofile={limits.open_files}", "--core=0", "--",
        ]  # fmt: skip
        return WatchedProcess(
            [*restrict, *(part.replace("{files}", str(folder)) for part in program.argv)], limits=limits,
            environment={"PATH": "/usr/bin:/bin", "HOME": str(folder), "LANG": "C.UTF-8"}, folder=str(folder),
            stdin=program.stdin, descriptors=program.descriptors,
            clean_up=lambda: shutil.rmtree(folder, ignore_errors=True),
        )  # fmt: skip

    def run(self, program: Program, limits: Limits) -> ProgramOutcome:
        """Run a program to its end. Raises FeedbackError when it cannot be started."""
        return self.start(program, limits).wait()
