"""Every way out of the sandbox that a program may try, tried for real."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from accord.feedback.sandbox import BubblewrapSandbox, Ended, Limits, Program, ProgramOutcome

pytestmark = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")

PYTHON = str(Path(sys.executable).resolve())
LIMITS = Limits(cpu_seconds=20, wall_seconds=60.0, memory_bytes=512 * 1024 * 1024, processes=12)


WHOLE_DISK = str(Path("/proc", "1", "root"))
"""The disk as the first process sees it, by a link of the kernel's."""


def run(code: str, limits: Limits = LIMITS, **given) -> ProgramOutcome:
    """Run Python text in the sandbox."""
    argv = (PYTHON, "-I", "-c", textwrap.dedent(code))
    return BubblewrapSandbox().run(Program(argv=argv, **given), limits)


def said(outcome: ProgramOutcome) -> str:
    """Return what a program printed, which must have ended well."""
    assert outcome.is_success, outcome
    return outcome.stdout.decode().strip()


@pytest.fixture
def server() -> Iterator[tuple[int, list[str]]]:
    """A listener on this machine's loopback, and who called."""
    callers: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.1)
        stop = threading.Event()

        def accept() -> None:
            while not stop.is_set():
                try:
                    connection, address = listener.accept()
                except TimeoutError:
                    continue
                callers.append(str(address))
                connection.close()

        thread = threading.Thread(target=accept)
        thread.start()
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            pass  # the server is there for those outside
        while not callers:
            time.sleep(0.01)
        callers.clear()
        yield port, callers
        stop.set()
        thread.join()


def test_the_network_of_this_machine_is_not_there(server: tuple[int, list[str]]) -> None:
    port, callers = server
    outcome = run(f"""
        import socket
        for host in ("127.0.0.1", "localhost", "1.1.1.1"):
            try:
                socket.create_connection((host, {port}), timeout=5)
                print("connected to", host)
            except OSError as error:
                print("no")
        try:
            socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)
            print("raw socket")
        except OSError:
            print("no")
        print(sorted(name for _, name in socket.if_nameindex()))
    """)
    assert said(outcome).splitlines() == ["no"] * 4 + ["['lo']"]
    assert callers == []


def test_a_fork_bomb_ends_at_the_limit() -> None:
    outcome = run("""
        import os
        made = 0
        try:
            while made < 1000:
                if os.fork() == 0:
                    import time
                    time.sleep(600)
                made += 1
        except OSError:
            print("stopped", made)
    """)
    word, made = said(outcome).split()
    assert word == "stopped"
    assert int(made) < LIMITS.processes


def test_a_fork_bomb_without_end_dies_with_its_time() -> None:
    code = """
        import os
        while True:
            try:
                os.fork()
            except OSError:
                pass
    """
    outcome = run(code, Limits(cpu_seconds=60, wall_seconds=3.0, processes=12))
    assert outcome.ended is Ended.TIME


def test_files_outside_are_not_there(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("the answer")
    outside = [str(secret), str(Path.home()), "/etc/passwd", "/etc/shadow", "/var", __file__]
    outside.append(f"{WHOLE_DISK}/etc/passwd")
    outcome = run(f"""
        import os
        for path in {outside!r}:
            try:
                print(os.listdir(path) if os.path.isdir(path) else open(path).read())
            except OSError:
                print("no")
    """)
    lines = said(outcome).splitlines()
    assert "the answer" not in lines
    listed = [line for line in lines if line != "no"]
    assert all(PYTHON.startswith(str(Path.home())) and len(line) < 30 for line in listed), "only the interpreter's way"


def test_nothing_outside_can_be_written(tmp_path: Path) -> None:
    places = ["/usr/x", "/x", "/dev/x", "/files/x", "/proc/sys/kernel/hostname", str(tmp_path / "x"), PYTHON]
    outcome = run(f"""
        for path in {places!r}:
            try:
                open(path, "a").write("x")
                print("wrote", path)
            except OSError:
                print("no")
        open("/tmp/mine", "w").write("x")
        print(open("/tmp/mine").read())
    """, files={"data": b""})  # fmt: skip
    assert said(outcome).splitlines() == ["no"] * len(places) + ["x"]
    assert not Path("/tmp/mine").exists()
    assert list(tmp_path.iterdir()) == []
    assert said(run("import os; print(os.listdir('/tmp'))")) == "[]", "nothing is left for the next"


def test_a_link_leads_nowhere_outside(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("the answer")
    outcome = run(f"""
        import os
        os.symlink({str(tmp_path)!r}, "/tmp/link")
        os.symlink({WHOLE_DISK!r}, "/tmp/root")
        for path in ("/tmp/link/secret.txt", "/tmp/root{tmp_path}/secret.txt", "/tmp/../..{tmp_path}/secret.txt"):
            try:
                print(open(path).read())
            except OSError:
                print("no")
    """)
    assert said(outcome).splitlines() == ["no"] * 3


def test_memory_of_one_process_ends() -> None:
    outcome = run("x = bytearray(10**10); print(len(x))")
    assert outcome.exit_code == 1
    assert b"MemoryError" in outcome.stderr


def test_memory_of_many_processes_ends() -> None:
    outcome = run(
        """
        import os, time
        for _ in range(8):
            if os.fork() == 0:
                break
        x = bytearray(b"1") * (60 * 1024 * 1024)
        time.sleep(600)
        """,
        Limits(memory_bytes=256 * 1024 * 1024, processes=12, wall_seconds=120.0),
    )
    assert outcome.ended is Ended.MEMORY


def test_endless_output_is_cut() -> None:
    outcome = run("while True: print('x' * 1000)", Limits(output_bytes=10_000))
    assert outcome.ended is Ended.OUTPUT
    assert outcome.is_cut
    assert len(outcome.stdout) == 10_000


def test_disks_are_small() -> None:
    limits = Limits(file_bytes=1024 * 1024, disk_bytes=2 * 1024 * 1024)
    outcome = run(
        """
        import signal
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        for folder in ("/tmp", "/home", "/dev/shm"):
            total = 0
            try:
                for number in range(100):
                    with open(f"{folder}/{number}", "wb", buffering=0) as file:
                        total += file.write(b"x" * 10**7)
            except OSError:
                pass
            print(total)
        """,
        limits,
    )
    assert all(0 < int(line) <= limits.disk_bytes for line in said(outcome).splitlines())


def test_standard_input_is_closed_unless_given() -> None:
    assert said(run("import sys; print(repr(sys.stdin.read()))")) == "''"
    assert said(run("import sys; print(sys.stdin.read()[::-1])", stdin=b"abc")) == "cba"


def test_a_process_that_hides_dies_with_the_rest() -> None:
    mark = f"hidden-{os.getpid()}-{time.monotonic_ns()}"
    code = f"""
        import os, time
        read, write = os.pipe()
        os.set_inheritable(write, True)
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.execv({PYTHON!r}, [{PYTHON!r}, "-I", "-c",
                    "import os, sys, time; os.write(int(sys.argv[2]), b'x'); time.sleep(600)", {mark!r}, str(write)])
            os._exit(0)
        os.wait()
        os.read(read, 1)  # the hidden one runs now
        print("main is done", flush=True)
    """
    outcome = run(code)
    assert said(outcome) == "main is done"
    assert not alive(mark)


def alive(mark: str) -> list[str]:
    """Return the processes of this machine whose command line holds a mark."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if mark.encode() in path.read_bytes():
                found.append(path.parent.name)
        except OSError:
            continue
    return found


def test_time_ends_whoever_ignores_signals() -> None:
    code = f"""
        import os, signal, time
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGXCPU):
            signal.signal(number, signal.SIG_IGN)
        "mark-{os.getpid()}-ignores"
        time.sleep(600)
    """
    outcome = run(code, Limits(wall_seconds=2.0))
    assert outcome.ended is Ended.TIME
    assert outcome.exit_code is None
    assert not alive(f"mark-{os.getpid()}-ignores")
    assert run("while True: pass", Limits(cpu_seconds=1, wall_seconds=120.0)).ended is Ended.TIME


def test_processes_outside_are_not_seen() -> None:
    outcome = run("""
        import json, os
        pids = sorted(int(name) for name in os.listdir("/proc") if name.isdigit())
        print(json.dumps([pids, os.getpid(), [open(f"/proc/{pid}/comm").read().strip() for pid in pids]]))
        print(os.uname().nodename)
    """)
    listed, name = said(outcome).splitlines()
    pids, own, commands = json.loads(listed)
    assert set(commands) <= {"bwrap", Path(PYTHON).name}
    assert len(pids) <= 4
    assert own == max(pids) < 20, "numbered from 1"
    assert name == "sandbox"


def test_the_environment_stays_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "the answer")
    outcome = run("""
        import os
        print(" ".join(sorted(os.environ)))
        found = False
        for name in os.listdir("/proc"):
            try:
                found |= b"SECRET_TOKEN" in open(f"/proc/{name}/environ", "rb").read()
            except OSError:
                continue
        print(found)
    """)
    names, leaks = said(outcome).splitlines()
    assert set(names.split()) <= {"PATH", "HOME", "LANG", "PWD", "LC_CTYPE"}
    assert leaks == "False"


def test_no_descriptor_of_ours_is_open(tmp_path: Path) -> None:
    with open(tmp_path / "open.txt", "w") as file:
        os.set_inheritable(file.fileno(), True)
        outcome = run("import os; print(sorted(int(name) for name in os.listdir('/proc/self/fd')))")
    assert said(outcome) == "[0, 1, 2, 3]", "3 is the listing itself"


def test_there_are_no_privileges_to_use() -> None:
    outcome = run("""
        import ctypes, os
        status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
        print(os.getuid() != 0, int(status["CapEff"], 16), status["NoNewPrivs"].strip())
        libc = ctypes.CDLL(None, use_errno=True)
        print(libc.mount(b"none", b"/tmp", b"tmpfs", 0, None), libc.sethostname(b"x", 1), libc.setuid(0))
    """)
    assert said(outcome).splitlines() == ["True 0 1", "-1 -1 -1"]


@pytest.mark.skipif(
    os.geteuid() != 0, reason="only root can become another user here; else every test here is the test"
)
@pytest.mark.skipif(not Path("/usr/bin/python3").exists(), reason="no interpreter another user can reach")
def test_an_ordinary_user_gets_the_same_walls() -> None:
    code = """
import sys
sys.path.insert(0, sys.argv[1])
from accord.feedback.sandbox import BubblewrapSandbox, Limits, Program
inner = "import os, time\\ntry:\\n  while True: os.fork() or time.sleep(600)\\nexcept OSError: print(os.getuid())"
print(BubblewrapSandbox().run(Program(argv=(sys.executable, "-I", "-c", inner)), Limits(processes=8)))
"""
    root = Path(__file__).resolve().parents[3]
    as_nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--", "/usr/bin/python3", "-B"]
    if subprocess.run([*as_nobody, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"], check=False).returncode:
        pytest.skip("the system's Python is older than 3.11")
    if subprocess.run([*as_nobody, "-c", f"open({str(root / 'pyproject.toml')!r})"], check=False, stderr=-3).returncode:
        pytest.skip("another user cannot read this checkout")
    done = subprocess.run([*as_nobody, "-c", code, str(root)], capture_output=True, text=True, check=False)
    assert "ended=<Ended.FINISHED: 'finished'>, exit_code=0, stdout=b'65534\\n'" in done.stdout, done
