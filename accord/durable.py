"""Files and folders that are either whole or not there, whatever happens while they are written.

A crash, a kill or a full disk may cost what was being written, never what was there before; and every error of the
system becomes a `StoreError` that says what was lost. The layout of a run folder is `store.py`'s.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path
from typing import Any

from accord.errors import StoreError

INDEX = "index.json"

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
# torch and safetensors hide the system's error number; these are the words that are left of it
_FULL_WORDS = ("no space left", "file too large", "file write failed", "disk quota exceeded", "unexpected pos")
_LOCKS: dict[Path, int] = {}  # a POSIX record lock dies with its file descriptor, so descriptors stay open here


def atomic_write_bytes(path: Path, data: bytes) -> None:
    """Write a file so that it is either old or new after a crash: temporary, fsync, rename, fsync of the folder."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with storing(path.name, path):
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            _sync_folder(path.parent)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def atomic_write_text(path: Path, text: str) -> None:
    """Write UTF-8 text as `atomic_write_bytes` does."""
    atomic_write_bytes(path, text.encode("utf-8"))


def hash_file(path: str | Path) -> str:
    """Return a file's SHA-256 as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find_damage(folder: Path, *, read_files: bool = True) -> str | None:
    """Return why a sealed folder is not whole, None when it is. Without `read_files` only sizes are compared."""
    if not (folder / INDEX).is_file():
        return f"no {INDEX}, so writing it was never completed"
    try:
        files = read_json_file(folder / INDEX)["files"]
        for name, expected in files.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != expected["bytes"]:
                return f"{name} has {path.stat().st_size} bytes instead of {expected['bytes']}"
            if read_files and hash_file(path) != expected["sha256"]:
                return f"the content of {name} does not match its SHA-256"
    except (StoreError, KeyError, TypeError, AttributeError, OSError) as error:
        return f"{INDEX} cannot be used ({type(error).__name__}: {error})"
    return None


def seal_folder(folder: Path, facts: Mapping[str, Any]) -> None:
    """Hash and sync every file, then write the index: its presence says that all the rest is there."""
    files = {}
    for path in _files_below(folder):
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        files[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": digest}
    assert files, f"nothing was written into {folder}"
    for below in sorted(path for path in folder.rglob("*") if path.is_dir()):
        _sync_folder(below)
    atomic_write_text(folder / INDEX, dump_json({**facts, "created_at": time_stamp(), "files": files}, indent=1) + "\n")


def replace_folder(temporary: Path, final: Path) -> None:
    """Rename a finished folder into its place; an earlier one is removed only after the new one is there."""
    replaced = final.with_name(f".{final.name}.replaced")
    if final.exists():
        os.rename(final, replaced)
    os.rename(temporary, final)
    _sync_folder(final.parent)
    remove(replaced)


def _files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / INDEX)


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # Windows cannot open a folder; its rename is already durable enough
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def append_whole(path: Path, data: bytes) -> None:
    """Append whole lines or nothing: after a full disk the next line must not be glued to half of this one."""
    with storing(path.name, path), open(path, "ab", buffering=0) as file:
        before = file.seek(0, os.SEEK_END)
        try:
            written = file.write(data)
            if written != len(data):
                file.write(data[written:])  # raises the reason the first write was short
        except OSError:
            file.truncate(before)
            raise


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there (a link, never what it points to)."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Raise StoreError when a file cannot be written in this folder (permissions alone would not tell)."""
    probe = path / f".probe.tmp-{os.getpid()}"
    with storing("a run folder", path):
        probe.write_bytes(b"x")
        probe.unlink()


def lock_folder(path: Path) -> None:
    """Hold a record lock for as long as this process lives. It is not inherited by forked loader processes."""
    try:
        import fcntl
    except ImportError:  # Windows: two processes in one folder go unnoticed
        return
    file = path / ".lock"
    earlier = _LOCKS.pop(file, None)
    if earlier is not None:
        os.close(earlier)
    with storing("a lock", file):
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno in {errno.EACCES, errno.EAGAIN}:
            raise StoreError(
                f"got a run folder in which another process is running: {path} — expected one process — "
                "wait for it, stop it, or choose another output folder"
            ) from error
        return  # a file system without locks
    _LOCKS[file] = descriptor


@contextmanager
def storing(what: str, path: Path) -> Iterator[None]:
    """Turn an OSError of the body into a StoreError that names `what` was being written."""
    try:
        yield
    except OSError as error:
        raise store_error(error, what, path) from error


def store_error(error: BaseException, what: str, path: Path, consequence: str = "") -> StoreError:
    """Say what could not be written, why, and what became of it."""
    if is_full_disk(error):
        free = _free_bytes(path)
        return StoreError(
            f"got a full disk or a file-size limit while writing {what} ({path}; {format_bytes(free)} free; {error})"
            f"{consequence} — "
            "expected enough space — free some, then continue with --resume"
        )
    reason = getattr(error, "strerror", None) or error
    return StoreError(
        f"got '{reason}' while writing {what} ({path}){consequence} — expected a folder that can be written — "
        "choose another output folder or correct its permissions"
    )


def is_full_disk(error: BaseException | None) -> bool:
    """Return whether an error, or one it came from, means that no more bytes fit on the disk."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        if isinstance(error, Exception) and any(words in str(error).lower() for words in _FULL_WORDS):
            return True
        error = error.__cause__ or error.__context__
    return False


def _free_bytes(path: Path) -> int:
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def read_json_file(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises StoreError naming the file."""
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(f"got a file that cannot be read: {path} ({error}) — expected JSON — restore it") from error


def dump_json(value: Any, *, indent: int | None = None, non_finite: Any = lambda _: None) -> str:
    """Return strict JSON: nan and inf, which JSON does not know, become `non_finite(number)`."""
    return json.dumps(to_plain(value, non_finite), indent=indent, ensure_ascii=False, allow_nan=False)


def to_plain(value: Any, non_finite: Any = lambda number: number) -> Any:
    """Turn numpy and torch scalars, tuples, sets, enums and paths into what JSON and YAML know."""
    match value:
        case Enum():  # before its own base: an enum of strings is a str, which YAML would refuse
            return to_plain(value.value, non_finite)
        case None | bool() | int():
            return value
        case str():
            return str(value)
        case float():
            return float(value) if math.isfinite(value) else non_finite(float(value))
        case Mapping():
            return {str(key): to_plain(item, non_finite) for key, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [to_plain(item, non_finite) for item in value]
        case Path():
            return str(value)
    if hasattr(value, "tolist"):  # numpy and torch, arrays and scalars alike
        return to_plain(value.tolist(), non_finite)
    raise TypeError(f"a run folder stores plain values; got {type(value).__name__}")


def find_free_name(path: Path) -> Path:
    """Return `path`, or with -2, -3, … before its suffix when that is taken: nothing is ever overwritten."""
    number = 1
    candidate = path
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return candidate


def format_bytes(num_bytes: float) -> str:
    """Return a size as a person reads it: 1.5 GiB."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} {unit}" if unit == "bytes" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} TiB"


def time_stamp() -> str:
    """Return the local time with its offset, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
