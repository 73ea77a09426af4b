"""The sandbox that holds: bubblewrap's namespaces around a program, resource limits within."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from accord.errors import FeedbackError
from accord.feedback.sandbox.program import Limits, Program, ProgramOutcome
from accord.feedback.sandbox.watching import WatchedProcess, file_of

FILES = "/files"
_NOBODY = 65534
_FIRST_UID, _NUM_UIDS = 1_000_000_000, 1_000_000_000  # far from any account, so that a run shares its own with nobody
_ENVIRONMENT = {"PATH": "/usr/bin:/bin", "HOME": "/home", "LANG": "C.UTF-8"}
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_INSTALL = "install bubblewrap and util-linux (Debian: apt-get install bubblewrap), where user namespaces are allowed"


@dataclass(frozen=True, slots=True, kw_only=True)
class BubblewrapSandbox:
    """Runs programs in namespaces of their own: no network, a read-only system, nothing of this machine's data.

    A program sees /usr, the interpreter this process runs under, `readable` (further folders) and its own files, all
    read-only, and empty /tmp, /home and /dev/shm that vanish with it; it runs without capabilities and, where
    bubblewrap is 0.8 or newer, cannot make further user namespaces. For root the program gets an unused user id.
    Limits: kernel bugs are not held back, and there is no system-call filter.
    """

    readable: tuple[str, ...] = ()

    def start(self, program: Program, limits: Limits) -> WatchedProcess:
        """Start a program. Raises FeedbackError when bubblewrap is missing or not allowed to work here."""
        _check_works()
        return self._start(program, limits)

    def check(self) -> None:
        """Raise FeedbackError, saying what to install, where bubblewrap is missing or not allowed to work."""
        _check_works()

    def run(self, program: Program, limits: Limits) -> ProgramOutcome:
        """Run a program to its end. Raises FeedbackError when bubblewrap is missing or not allowed to work here."""
        return self.start(program, limits).wait()

    def _start(self, program: Program, limits: Limits) -> WatchedProcess:
        bwrap = _tool("bwrap")
        contents = [file_of(content) for content in program.files.values()]
        status_read, status_write = os.pipe()
        status = os.fdopen(status_read, "rb")
        argv = [
            bwrap, *_namespaces(), "--json-status-fd", str(status_write), *self._mounts(limits),
            *_file_mounts(program.files, contents), "--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/tmp",
            "--", *_lower_privileges(), *_resource_limits(limits),
            *(part.replace("{files}", FILES) for part in program.argv),
        ]  # fmt: skip
        try:
            return WatchedProcess(
                argv, limits=limits, environment=_ENVIRONMENT, folder="/", stdin=program.stdin,
                descriptors=[status_write, *contents, *program.descriptors],
                find_failure=lambda stderr: _setup_failure(status.read(), stderr), clean_up=status.close,
            )  # fmt: skip
        except FeedbackError:
            status.close()
            raise
        finally:
            for descriptor in (status_write, *contents):
                os.close(descriptor)

    def _mounts(self, limits: Limits) -> list[str]:
        """Return what the program sees of the system, and its private folders."""
        arguments: list[str] = []
        for name in _SYSTEM:
            path = Path(name)
            if path.is_symlink():
                arguments += ["--symlink", os.readlink(path), name]
            elif path.is_dir():
                arguments += ["--ro-bind", name, name]
        arguments += ["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache", "--proc", "/proc", "--dev", "/dev"]
        for name in ("/tmp", "/home", "/dev/shm"):
            arguments += ["--perms", "1777", "--size", str(limits.disk_bytes), "--tmpfs", name]
        for folder in sorted({*_interpreter_folders(), *(str(Path(name).resolve()) for name in self.readable)}):
            if not folder.startswith("/usr/"):
                arguments += [*_open_parents(folder), "--ro-bind", folder, folder]
        return arguments


def _tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise FeedbackError(f"there is no program {name!r}, which the sandbox needs — {_INSTALL}")
    return found


@cache
def _check_works() -> None:
    """Raise FeedbackError unless a harmless program runs; asked once per process, errors are not remembered."""
    outcome = BubblewrapSandbox()._start(Program(argv=("/usr/bin/env", "true")), Limits()).wait()
    if not outcome.is_success:
        said = outcome.stderr.decode(errors="replace").strip()
        raise FeedbackError(f"bubblewrap does not work here ({said or outcome.ended.value}) — {_INSTALL}")


@cache
def _can_forbid_namespaces() -> bool:
    """Return whether this bubblewrap knows --disable-userns (0.8)."""
    said = subprocess.run([_tool("bwrap"), "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"(\d+)\.(\d+)", said)
    return found is not None and (int(found[1]), int(found[2])) >= (0, 8)


def _namespaces() -> list[str]:
    arguments = ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try",
                 "--hostname", "sandbox", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]  # fmt: skip
    if os.geteuid() == 0:  # stays root until everything is mounted, then becomes nobody in `_lower_privileges`
        return [*arguments, "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    return [*arguments, *_own_users(), "--uid", str(_NOBODY), "--gid", str(_NOBODY)]


def _own_users() -> list[str]:
    return ["--unshare-user", *(["--disable-userns"] if _can_forbid_namespaces() else [])]


def _lower_privileges() -> list[str]:
    """Return the command that makes root an unused user in a user namespace of its own.

    Limits on processes do not bind root, and files of root would be readable to it: a user namespace alone is no help.
    """
    if os.geteuid() != 0:
        return []
    uid = str(_FIRST_UID + secrets.randbelow(_NUM_UIDS) if _has_all_users() else _NOBODY)
    become = [_tool("setpriv"), "--reuid", uid, "--regid", uid, "--clear-groups", "--"]
    enclose = [_tool("bwrap"), *_own_users(), "--dev-bind", "/", "/", "--cap-drop", "ALL", "--die-with-parent"]
    return [*become, *enclose, "--chdir", "/tmp", "--"]


def _has_all_users() -> bool:
    """Return whether every user id exists here; in a container only some may."""
    try:
        return any(int(line.split()[2]) >= 2**32 - 1 for line in Path("/proc/self/uid_map").read_text().splitlines())
    except (OSError, ValueError):
        return False


def _resource_limits(limits: Limits) -> list[str]:
    """Return the command that limits a process; set within, where the kernel counts the sandbox's processes only."""
    return [
        _tool("prlimit"), f"--cpu={limits.cpu_seconds}:{limits.cpu_seconds + 1}", f"--as={limits.memory_bytes}",
        f"--nproc={limits.processes}", f"--fsize={limits.file_bytes}", f"--nofile={limits.open_files}", "--core=0",
        "--",
    ]  # fmt: skip


def _interpreter_folders() -> set[str]:
    """Return where the running interpreter lives: its installation, without this environment's packages."""
    return {str(Path(sys.base_prefix).resolve())}


def _open_parents(folder: str) -> list[str]:
    """Make the folders above a mount passable to the program's user; bubblewrap makes them its own alone."""
    above = [str(parent) for parent in reversed(Path(folder).parents) if str(parent) != "/"]
    return [part for parent in above for part in ("--perms", "0755", "--dir", parent)]


def _file_mounts(files: Iterable[str], contents: Sequence[int]) -> list[str]:
    arguments = ["--perms", "0755", "--dir", FILES]
    for name, descriptor in zip(files, contents, strict=True):
        arguments += ["--perms", "0444", "--file", str(descriptor), f"{FILES}/{name}"]
    return arguments


def _setup_failure(status: bytes, stderr: bytes) -> str:
    """Return why bubblewrap did not come to run the program, or nothing: it reports the exit code of what it ran.

    `status` is a JSON object per line; one that was killed as it wrote leaves a part of a line.
    """
    whole = status[: status.rfind(b"\n") + 1]
    if any("exit-code" in json.loads(line) for line in whole.splitlines()):
        return ""
    said = stderr.decode(errors="replace").strip().splitlines()
    return f"bubblewrap could not set up the sandbox ({said[-1] if said else 'no message'}) — {_INSTALL}"
