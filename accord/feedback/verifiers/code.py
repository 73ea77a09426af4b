"""Code judged by unit tests: the solution in one sandbox, its tests in another, plain values between them."""

from __future__ import annotations

import ast
import io
import json
import re
import socket
import sys
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge

from accord.errors import ConfigError, DataError, FeedbackError
from accord.feedback.findings import Finding
from accord.feedback.sandbox import Ended, Limits, Program, ProgramOutcome, Sandbox, find_sandbox, run_many
from accord.feedback.sandbox import messages as _messages
from accord.feedback.sandbox import solution_side as _solution_side
from accord.feedback.sandbox import tests_side as _tests_side
from accord.feedback.verifiers.spec import Column, VerifierSpec
from accord.feedback.verifiers.texts import NO_TEXT, Answer, response_text
from accord.records import Group, Response

Mode = Literal["all", "fraction"]
Tests = str | Sequence[str] | Sequence[Mapping[str, str]]
"""A text of assertions or with `check(candidate)`; several such texts; or rows of `input` and `output` of a script."""

_GRACE = 5.0  # seconds by which the tests outlive the solution, to say what it failed
_FENCE = re.compile(r"^[ \t]*```[ \t]*(?P<language>[\w+-]*)[^\n]*\n(?P<code>.*?)(?:^[ \t]*```[ \t]*$|\Z)", re.M | re.S)
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)
_PYTHON = {"", "python", "python3", "py"}


def code(
    response: Answer,
    tests: Tests,
    *,
    mode: Mode = "all",
    cpu_seconds: Annotated[int, Ge(1)] = 6,
    memory_mib: Annotated[int, Ge(64)] = 1024,
    unsafe_local: bool = False,
) -> Finding:
    """Score the last fenced Python block of a response (else all of it) by unit tests, in a sandbox.

    Score: with mode "all" 1 where every test passes, else 0; with "fraction" the share of assertions that hold (of
    rows, for scripts). Limits are per problem and process, wall time three times the CPU time. See `CodeJudge`.
    Raises FeedbackError where there is no sandbox and `unsafe_local` does not say to do without.
    """
    limits = code_limits(cpu_seconds=cpu_seconds, memory_mib=memory_mib)
    judge = CodeJudge(sandbox=_sandbox(unsafe_local=unsafe_local), limits=limits, mode=mode)
    return judge.finding(response, tests)


def code_limits(*, cpu_seconds: int = 6, memory_mib: int = 1024) -> Limits:
    """Return the limits of a solution: wall time is generous, since a busy machine is not the solution's fault."""
    return Limits(
        cpu_seconds=cpu_seconds, wall_seconds=3.0 * cpu_seconds, memory_bytes=memory_mib * 1024 * 1024, processes=8
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeReward:
    """`CodeJudge` for every response of every group, several at once.

    A group says its tests in `extra["tests"]` or `extra["test"]`, its `extra["entry_point"]` where the tests have
    `check(candidate)`, and `extra["imports"]`, code every solution may rely on; a prompt that is itself Python is used
    as such. Raises DataError for a group without tests, FeedbackError where there is no sandbox.
    """

    name: str = "code"
    mode: Mode = "all"
    limits: Limits = field(default_factory=code_limits)
    max_workers: int | None = None
    unsafe_local: bool = False
    sandbox: Sandbox | None = None

    def __call__(self, groups: Sequence[Group]) -> list[list[Finding]]:
        """Return a finding per response, group by group."""
        sandbox = _sandbox(unsafe_local=self.unsafe_local) if self.sandbox is None else self.sandbox
        judge = CodeJudge(sandbox=sandbox, limits=self.limits, mode=self.mode)
        asked = [(group, _tests_of(group), response) for group in groups for response in group.responses]
        found = iter(run_many(lambda item: _judged(judge, *item), asked, max_workers=self.max_workers))
        return [[next(found) for _ in group.responses] for group in groups]


@cache
def _sandbox(*, unsafe_local: bool) -> Sandbox:
    return find_sandbox(unsafe_local=unsafe_local)


def _judged(judge: CodeJudge, group: Group, tests: Tests, response: Response) -> Finding:
    prompt = group.prompt if isinstance(group.prompt, str) else ""
    imports, entry_point = group.extra.get("imports"), group.extra.get("entry_point")
    prompt = f"{imports}\n{prompt}" if imports else prompt
    return judge.finding(response, tests, prompt=prompt, entry_point=entry_point)


def _tests_of(group: Group) -> Tests:
    tests = group.extra.get("tests") or group.extra.get("test")
    if not tests:
        found = ", ".join(group.extra) or "none"
        raise DataError(
            f"{group.origin or 'a group'}: got the columns {found} beside the texts — code needs `tests` or `test`: a "
            "text of assertions, a list of such texts, or a list of {input, output}"
        )
    return tests


def extract_code(response: str) -> str:
    """Return the last fenced Python block of a response, or all of it where there is none."""
    blocks = [found["code"] for found in _FENCE.finditer(response) if found["language"].lower() in _PYTHON]
    return blocks[-1] if blocks else response


def code_prompt(prompt: str) -> tuple[str, str]:
    """Return a prompt that is the beginning of a program, as it stands and so that it runs; two empty texts else."""
    for runs in (prompt, f"{prompt.rstrip()}\n    pass\n"):
        tree = _tree(runs)
        if tree is not None and any(isinstance(node, _DEFINITIONS) for node in tree.body):
            return prompt, runs
    return "", ""


def solution_of(response: str, prompt: str, entry_point: str | None) -> str | None:
    """Return the program a response makes with a code prompt, None where neither reading of it parses.

    A response that defines the entry point stands on its own, after the prompt's imports and helpers; any other
    continues the prompt.
    """
    written = extract_code(response)
    tree, before = _tree(written), _tree(code_prompt(prompt)[1])
    if before is None or not before.body:
        return None if tree is None else written
    if tree is not None and (entry_point is None or entry_point in _names(tree)):
        kept = [node for node in before.body if entry_point is None or getattr(node, "name", None) != entry_point]
        return f"{ast.unparse(ast.Module(kept, []))}\n{written}"
    continued = prompt + written
    return None if _tree(continued) is None else continued


def _tree(text: str) -> ast.Module | None:
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # null bytes; nesting deeper than the parser
        return None


def _last_function(tree: ast.Module) -> str | None:
    names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return names[-1] if names else None


def _names(tree: ast.Module) -> list[str]:
    """Return the top-level functions and assigned names of a program."""
    names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)]
    for node in tree.body:
        if isinstance(node, ast.Assign):
            names += [target.id for target in node.targets if isinstance(target, ast.Name)]
    return names


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeJudge:
    """Judges solutions by tests: each problem in fresh processes, the tests where the solution cannot reach them.

    A solution that does not parse, ends early, runs out of a limit or gives no comparable value fails. Unknown: the
    sandbox failed, or the tests themselves do not run. Arguments and answers cross as copies of built-in types, so a
    solution that answers by changing its argument, or with objects of its own classes, cannot be judged right.
    """

    sandbox: Sandbox
    limits: Limits = field(default_factory=code_limits)
    mode: Mode = "all"

    def __post_init__(self) -> None:
        if self.mode not in ("all", "fraction"):
            raise ConfigError(f"got mode={self.mode!r} — expected 'all' or 'fraction'")

    def finding(self, response: Answer, tests: Tests, *, prompt: str = "", entry_point: str | None = None) -> Finding:
        """Return what the tests say of a response.

        A `prompt` that is Python (HumanEval) gives the solution its imports and helpers, or its beginning where the
        response continues it; any other is ignored. `entry_point` names what `check(candidate)` gets: by default the
        last function of the solution.
        """
        text = response_text(response)
        if text is None:
            return NO_TEXT
        prompt, helpers = code_prompt(prompt)
        solution = solution_of(text, prompt, entry_point)
        if solution is None:
            return Finding(score=0.0, reason="the code does not parse")
        try:
            if isinstance(tests, str):
                return self._asserted([tests], solution, helpers, entry_point)
            if all(isinstance(test, str) for test in tests):
                return self._asserted([str(test) for test in tests], solution, helpers, entry_point)
            return self._scripted([dict(test) for test in tests if isinstance(test, Mapping)], solution)
        except FeedbackError as error:
            return Finding(score=None, reason=f"the sandbox failed: {error}")

    def _asserted(self, tests: list[str], solution: str, helpers: str, entry_point: str | None) -> Finding:
        tree, passed, total = _tree(solution), 0, 0
        assert tree is not None, "a solution parses"
        names = [entry_point] if entry_point else _names(tree)
        entry_point = entry_point or _last_function(tree)
        reason = ""
        for text in tests:
            task = {
                "prompt": helpers, "tests": text, "names": names, "entry_point": entry_point,
                "mode": self.mode,
            }  # fmt: skip
            report, said = self._report(task, solution)
            if report.get("broken"):
                return Finding(score=None, reason=f"the tests do not run: {report['broken']}")
            held, broke = int(report.get("passed", 0)), int(report.get("failed", 0))
            stopped = str(report.get("stopped") or ("" if "passed" in report else said))
            if not stopped and report["asserts"] == 0:
                return Finding(score=None, reason="the tests assert nothing")
            passed += held
            total += max(held + broke + bool(stopped), int(report.get("asserts", 1)) if stopped or not held else 0)
            reason = reason or (f"{stopped} ({said})" if stopped and said and said != stopped else stopped)
            if self.mode == "all" and (stopped or passed < total):
                break
        return self._scored(passed, total, reason or _why(passed, total))

    def _scored(self, passed: int, total: int, reason: str) -> Finding:
        is_whole = passed == total and total > 0
        share = passed / max(total, 1)
        reason = reason or f"{passed} of {total} hold"
        return Finding(score=float(is_whole) if self.mode == "all" else share, reason=reason, parts={"passed": share})

    def _report(self, task: Mapping[str, Any], solution: str) -> tuple[dict[str, Any], str]:
        """Return what the tests reported (nothing where they came to no end) and how the solution ended, in words."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            asked = self.sandbox.start(self._side("solution", theirs.fileno(), solution.encode()), self.limits)
            try:
                limits = _longer(self.limits)
                task_text = json.dumps(task).encode()
                testing = self.sandbox.start(self._side("tests", ours.fileno(), stdin=task_text), limits)
            except FeedbackError:
                asked.kill()
                asked.wait()
                raise
        try:
            outcome = testing.wait()
        finally:
            asked.kill()
            solution_outcome = asked.wait()
        if outcome.ended is Ended.KILLED or (outcome.ended is Ended.FINISHED and not outcome.is_success):
            raise FeedbackError(f"the tests' process failed: {_last_line(outcome) or outcome.exit_code}")
        said = _words(solution_outcome)
        if outcome.ended is not Ended.FINISHED:
            return {}, said or f"the tests ran out of {outcome.ended.value}"
        return json.loads(outcome.stdout), said

    def _side(self, side: str, descriptor: int, solution: bytes = b"", stdin: bytes | None = None) -> Program:
        argv = (_interpreter(), "-I", "{files}/judge.zip", side, str(descriptor), "{files}/solution.py")
        files = {"judge.zip": _judge_archive()} | ({"solution.py": solution} if side == "solution" else {})
        return Program(argv=argv, files=files, stdin=stdin, descriptors=(descriptor,))

    def _scripted(self, rows: list[dict[str, str]], solution: str) -> Finding:
        """Run a script on each input; outputs are compared here, line by line without trailing space."""
        if not rows or not all("input" in row and "output" in row for row in rows):
            return Finding(score=None, reason="the tests do not run: expected texts, or rows of `input` and `output`")
        passed, reason = 0, ""
        for row in rows:
            program = Program(
                argv=(_interpreter(), "-I", "{files}/solution.py"), files={"solution.py": solution.encode()},
                stdin=row["input"].encode(),
            )  # fmt: skip
            outcome = self.sandbox.run(program, self.limits)
            is_same = _lines(outcome.stdout.decode(errors="replace")) == _lines(row["output"])
            passed += outcome.is_success and is_same
            if not (outcome.is_success and is_same):
                reason = reason or _words(outcome) or "the output differs"
                if self.mode == "all":
                    break
        return self._scored(passed, len(rows), reason)


def _why(passed: int, total: int) -> str:
    if passed == total:
        return ""
    return "no assertion was reached or none holds" if passed == 0 else f"only {passed} of {total} assertions hold"


def _longer(limits: Limits) -> Limits:
    return replace(limits, wall_seconds=limits.wall_seconds + _GRACE, cpu_seconds=limits.cpu_seconds + int(_GRACE))


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip().splitlines()]


def _words(outcome: ProgramOutcome) -> str:
    """Return how a program ended other than well, or nothing."""
    if outcome.ended is Ended.FINISHED:
        return (
            "" if outcome.exit_code == 0 and not outcome.stderr else _last_line(outcome) or f"exit {outcome.exit_code}"
        )
    return "" if outcome.ended is Ended.KILLED else f"the solution ran out of {outcome.ended.value}"


def _last_line(outcome: ProgramOutcome) -> str:
    lines = outcome.stderr.decode(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else ""


@cache
def _interpreter() -> str:
    return str(Path(sys.executable).resolve())


@cache
def _judge_archive() -> bytes:
    """Return the two sides as a program Python runs from one file."""
    start = (
        "import sys\n"
        "side, descriptor, path = sys.argv[1:]\n"
        "if side == 'tests':\n"
        "    from accord.feedback.sandbox.tests_side import main\n"
        "    main(int(descriptor))\n"
        "else:\n"
        "    from accord.feedback.sandbox.solution_side import main\n"
        "    main(int(descriptor), path)\n"
    )
    kept = io.BytesIO()
    with zipfile.ZipFile(kept, "w") as archive:
        archive.writestr("__main__.py", start)
        for package in ("accord", "accord/feedback", "accord/feedback/sandbox"):
            archive.writestr(f"{package}/__init__.py", "")
        for module in (_messages, _solution_side, _tests_side):
            archive.writestr(f"{module.__name__.replace('.', '/')}.py", Path(str(module.__file__)).read_text("utf-8"))
    return kept.getvalue()


def _check_tests(tests: Any) -> None:
    """Raise ValueError for tests that no solution can be judged by."""
    rows = [tests] if isinstance(tests, str) else tests
    if not isinstance(rows, Sequence) or not rows or not all(isinstance(row, str | Mapping) for row in rows):
        raise ValueError(
            f"got tests of type {type(tests).__name__} — expected a text of assertions, a list of such texts, or "
            "a list of {input, output}"
        )


ROWS: dict[str, VerifierSpec] = {
    "code": VerifierSpec(
        fn=code,
        columns={"tests": Column("tests", "assertions as text or a list of texts, or a list of {input, output}")},
        check_columns=_check_tests,
        waits=True,
        source="Chen et al. 2021, arXiv:2107.03374 (HumanEval)",
    ),
}
