"""Runs inside a sandbox: loads a solution and answers calls of its functions. Knows nothing of the tests."""

from __future__ import annotations

import sys
import types
from typing import Any

from accord.feedback.sandbox.messages import CannotSendError, Line, decode, encode


def main(descriptor: int, path: str) -> None:
    """Answer calls that arrive on the descriptor until it closes."""
    line = Line(descriptor)
    namespace, failure = _load(path)
    while (request := line.receive()) is not None:
        answer = failure or _call(namespace, request)
        try:
            line.send(answer)
        except CannotSendError as error:
            line.send({"raised": "CannotSend", "text": str(error)})


def _load(path: str) -> tuple[dict[str, Any], dict[str, Any] | None]:
    module = types.ModuleType("solution")  # not __main__: what a script does when started is not asked for
    sys.modules["solution"] = module
    with open(path, encoding="utf-8") as file:
        text = file.read()
    try:
        exec(compile(text, "solution.py", "exec"), module.__dict__)
    except Exception as error:  # whatever it raises is the answer to every call
        return module.__dict__, _raised(error)
    return module.__dict__, None


def _call(namespace: dict[str, Any], request: dict[str, Any]) -> dict[str, Any]:
    try:
        function = namespace[request["name"]]
    except KeyError:
        return {"raised": "NameError", "text": f"the solution defines no {request['name']}"}
    try:
        return {"value": encode(function(*decode(request["args"]), **decode(request["kwargs"])))}
    except Exception as error:  # whatever it raises is the answer
        return _raised(error)


def _raised(error: Exception) -> dict[str, Any]:
    known = [kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "builtins"]
    return {"raised": "CannotSend" if isinstance(error, CannotSendError) else known[0], "text": str(error)[:500]}
