"""Runs inside a sandbox of its own: the tests of a problem, whose calls are answered by the solution in another one."""

from __future__ import annotations

import ast
import builtins
import json
import os
import sys
from collections.abc import Callable
from typing import Any

from accord.feedback.sandbox.messages import CannotSendError, Line, decode, encode

# dunders: within a class, other names with two underscores would be changed
_PASSED, _FAILED, _CANNOT_SEND = "__assertion_passed__", "__assertion_failed__", "__cannot_send__"


class SolutionGoneError(Exception):
    """The solution ended, or said something that is no answer."""


def main(descriptor: int) -> None:
    """Run the tests described on standard input; write what came of them to standard output, as JSON."""
    report_to = os.dup(1)
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)  # tests may print
    os.dup2(silence, 2)
    report = run(json.load(sys.stdin), Line(descriptor))
    os.write(report_to, json.dumps(report).encode())


def run(task: dict[str, Any], line: Line) -> dict[str, Any]:
    """Return how many assertions passed and failed, how many there are, and what stopped the tests."""
    counts = {"passed": 0, "failed": 0}

    def count(key: str) -> Callable[[], None]:
        def add() -> None:
            counts[key] += 1

        return add

    namespace: dict[str, Any] = {
        "__name__": "tests", _PASSED: count("passed"), _FAILED: count("failed"), _CANNOT_SEND: CannotSendError,
    }  # fmt: skip
    try:
        exec(compile(task["prompt"], "prompt.py", "exec"), namespace)
        tree = ast.parse(task["tests"])
        num_asserts = sum(isinstance(node, ast.Assert) for node in ast.walk(tree))
        counted = ast.fix_missing_locations(_Counted(task["mode"]).visit(tree))
        runnable = compile(counted, "tests.py", "exec")
    except Exception as error:  # the problem's own text is at fault, not the solution
        return {"broken": f"{type(error).__name__}: {error}"}
    for name in task["names"]:
        namespace[name] = _asked(name, line)
    stopped = ""
    broken = ""
    try:
        exec(runnable, namespace)
        if task["entry_point"] and callable(namespace.get("check")):
            namespace["check"](namespace[task["entry_point"]])
    except CannotSendError as error:
        broken = f"the tests pass on {error}"
    except Exception as error:  # any exception ends the tests, as it would without the walls
        stopped = f"{type(error).__name__}: {error}"[:500]
    return {**counts, "asserts": num_asserts, "stopped": stopped, "broken": broken}


class _Counted(ast.NodeTransformer):
    """Counts every assertion; with mode "fraction" a failed one does not stop the tests."""

    def __init__(self, mode: str) -> None:
        self.mode = mode

    def visit_Assert(self, node: ast.Assert) -> Any:
        passed, failed = (
            ast.Expr(ast.Call(ast.Name(name, ast.Load()), [], [])) for name in (_PASSED, _FAILED)
        )  # fmt: skip
        if self.mode != "fraction":
            return [node, passed]
        cannot = ast.ExceptHandler(ast.Name(_CANNOT_SEND, ast.Load()), None, [ast.Raise()])
        anything = ast.ExceptHandler(ast.Name("Exception", ast.Load()), None, [failed])
        return ast.Try([node], [cannot, anything], [passed], [])


def _asked(name: str, line: Line) -> Callable[..., Any]:
    """Return a function that asks the solution."""

    def ask(*args: Any, **kwargs: Any) -> Any:
        request = {"name": name, "args": encode(list(args)), "kwargs": encode(kwargs)}
        try:
            line.send(request)
            answer = line.receive()
        except (OSError, ValueError, RecursionError) as error:
            raise SolutionGoneError(str(error)) from None
        if answer is None:
            raise SolutionGoneError("the solution ended before it answered")
        if "raised" in answer:
            raise _exception(answer)
        try:
            return decode(answer.get("value"))
        except (ValueError, TypeError, RecursionError) as error:
            raise SolutionGoneError(f"the answer is no value: {error}") from None

    return ask


def _exception(answer: dict[str, Any]) -> Exception:
    kind = getattr(builtins, str(answer["raised"]), None)
    text = str(answer.get("text", ""))
    if isinstance(kind, type) and issubclass(kind, Exception):
        try:
            return kind(text)
        except TypeError:  # UnicodeDecodeError and its like want more than a text
            return SolutionGoneError(text)
    return SolutionGoneError(text)
