"""What a sandbox promises its caller: how a program ended, clear refusals, several runs at once."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from pathlib import Path

import pytest

from accord.errors import ConfigError, FeedbackError
from accord.feedback.sandbox import (
    BubblewrapSandbox,
    Ended,
    Limits,
    Program,
    Sandbox,
    UnsafeLocalSandbox,
    bubblewrap,
    find_sandbox,
    run_many,
)
from accord.feedback.sandbox.bubblewrap import _setup_failure

PYTHON = str(Path(sys.executable).resolve())
needs_bwrap = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")


def python(code: str, **given) -> Program:
    """Return a program of Python text."""
    return Program(argv=(PYTHON, "-I", "-c", code), **given)


@pytest.fixture(params=[pytest.param("bubblewrap", marks=needs_bwrap), "local"])
def sandbox(request: pytest.FixtureRequest) -> Sandbox:
    """Each kind of sandbox."""
    if request.param == "bubblewrap":
        return BubblewrapSandbox()
    with pytest.warns(UserWarning, match="WITHOUT a sandbox"):
        return UnsafeLocalSandbox(unsafe_local=True)


def test_a_program_reads_its_files_and_says_how_it_ended(sandbox: Sandbox) -> None:
    code = "import sys; print(open(sys.argv[1]).read(), end=''); print('bad', file=sys.stderr); sys.exit(3)"
    program = Program(argv=(PYTHON, "-I", "-c", code, "{files}/a.txt"), files={"a.txt": b"text"})
    outcome = sandbox.run(program, Limits())
    assert (outcome.ended, outcome.exit_code, outcome.stdout, outcome.stderr) == (Ended.FINISHED, 3, b"text", b"bad\n")
    assert not outcome.is_success
    assert not outcome.is_cut


@pytest.mark.parametrize(
    ("code", "limits", "ended"),
    [
        ("while True: pass", Limits(cpu_seconds=1, wall_seconds=120.0), Ended.TIME),
        ("import time; time.sleep(600)", Limits(wall_seconds=1.0), Ended.TIME),
        ("while True: print('x' * 1000)", Limits(output_bytes=5000), Ended.OUTPUT),
        ("import os; os.kill(os.getpid(), 9)", Limits(), Ended.KILLED),
        ("import os; os.kill(os.getpid(), 15)", Limits(), Ended.FINISHED),
    ],
)
def test_why_it_ended(sandbox: Sandbox, code: str, limits: Limits, ended: Ended) -> None:
    outcome = sandbox.run(python(code), limits)
    assert outcome.ended is ended
    assert outcome.exit_code == (128 + 15 if ended is Ended.FINISHED else None)


def test_a_started_program_can_be_killed(sandbox: Sandbox) -> None:
    running = sandbox.start(python("import time; time.sleep(600)"), Limits(wall_seconds=600.0))
    running.kill()
    assert running.wait().ended is Ended.KILLED


def test_a_status_that_breaks_off_is_no_report() -> None:
    assert "could not set up" in _setup_failure(b'{ "child-pid": 5954', b"")
    assert "could not set up" in _setup_failure(b'{ "child-pid": 5954 }\n{ "exit-', b"")
    assert _setup_failure(b'{ "child-pid": 5954 }\n{ "exit-code": 3 }\n', b"") == ""


@needs_bwrap
def test_what_is_not_there_cannot_be_run() -> None:
    outcome = BubblewrapSandbox().run(Program(argv=("/no/such/program",)), Limits())
    assert outcome.exit_code == 127
    assert b"No such file" in outcome.stderr


@needs_bwrap
def test_a_sandbox_that_cannot_be_set_up_is_an_error_and_no_outcome() -> None:
    broken = BubblewrapSandbox(readable=("/no/such/folder",))
    with pytest.raises(FeedbackError, match=r"could not set up the sandbox .*no/such/folder.*install bubblewrap"):
        broken.run(python("print(1)"), Limits())


@needs_bwrap
def test_further_folders_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    tmp_path.chmod(0o755)
    code = f"print(open({str(tmp_path / 'a.txt')!r}).read())\nopen({str(tmp_path / 'b')!r}, 'w')"
    outcome = BubblewrapSandbox(readable=(str(tmp_path),)).run(python(code), Limits())
    assert outcome.stdout == b"text\n"
    assert b"Read-only file system" in outcome.stderr


def test_without_bubblewrap_nothing_runs_unless_asked_in_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    bubblewrap._check_works.cache_clear()
    with pytest.raises(FeedbackError, match=r"no program 'bwrap'.*apt-get install bubblewrap"):
        find_sandbox()
    with pytest.raises(ConfigError, match="say unsafe_local=True"):
        UnsafeLocalSandbox()
    with pytest.warns(UserWarning, match="WITHOUT a sandbox"):
        assert isinstance(find_sandbox(unsafe_local=True), UnsafeLocalSandbox)


def test_a_bubblewrap_that_does_not_work_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("bwrap", "setpriv", "prlimit"):
        tool = tmp_path / name
        tool.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    bubblewrap._check_works.cache_clear()
    bubblewrap._can_forbid_namespaces.cache_clear()
    with pytest.raises(FeedbackError, match="No permissions to create new namespace"):
        find_sandbox()
    bubblewrap._can_forbid_namespaces.cache_clear()


def test_many_run_in_order_and_no_more_at_once_than_allowed() -> None:
    lock, now, most = threading.Lock(), 0, 0

    def work(number: int) -> int:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.01)
        with lock:
            now -= 1
        return number * number

    assert run_many(work, range(20), max_workers=3) == [number * number for number in range(20)]
    assert most <= 3
    with pytest.raises(ConfigError, match="max_workers=0"):
        run_many(work, [1], max_workers=0)


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden"])
def test_file_names_stay_in_their_folder(name: str) -> None:
    with pytest.raises(ConfigError, match="expected a plain name"):
        Program(argv=("true",), files={name: b""})


def test_limits_are_positive() -> None:
    with pytest.raises(ConfigError, match="wall_seconds=0"):
        Limits(wall_seconds=0)
