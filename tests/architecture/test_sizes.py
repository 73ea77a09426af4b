"""Ceilings on the tail of sizes, and small habits that keep files easy to find and to trust."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from sources import PACKAGE, ROOT, sources

MAX_FILE_LINES = 450
MAX_FUNCTION_LINES = 80
MAX_OBJECTIVE_LINES = 70
MAX_FILES = 9

# file → its own ceiling and why it has one
LONGER_FILES = {
    "accord/store.py": (500, "the layout of a run folder is one class's affair; what is generic is in durable.py"),
}
# folder → its own ceiling and why it has one
FULLER_FOLDERS = {
    "accord/cli": (12, "a file per group of commands"),
    "accord": (16, "the verbs and records at the top are the table of contents"),
    "accord/objectives": (12, "a file per family, and the table of all"),
    "accord/lab/optima": (20, "a file of claims per file of objectives"),
    "accord/rollouts": (11, "a rollout step by step: prompts, drawing, judging, what it is worth, what is watched"),
    "accord/run": (12, "a run seen part by part"),
    "accord/feedback/people": (11, "a project seen part by part, and the one database below them all"),
    "accord/decoding": (10, "a file per way of answering, and the two that they stand on"),
    "accord/lab": (13, "two worlds: three files of the enumerable one, eight of the readable one"),
    "accord/policy": (17, "one model seen from every side: layout, attention, head, check, reference, sampling, …"),
}
PROGRAMS = {"accord.lab.build", "accord.lab.journeys.__main__"}
VAGUE = {"utils", "util", "common", "helpers", "misc", "base", "core", "tools"}


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef, int]]:
    """Yield (place, function, lines) of every function, its decorators and docstring counted."""
    for source in sources():
        for node in ast.walk(source.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
                assert node.end_lineno is not None
                yield f"{source.name}:{node.lineno} {node.name}", node, node.end_lineno - first + 1


def test_files_are_short():
    for source in sources():
        relative = source.path.relative_to(ROOT).as_posix()
        ceiling, _ = LONGER_FILES.get(relative, (MAX_FILE_LINES, ""))
        lines = len(source.text.splitlines())
        assert lines <= ceiling, f"{relative} has {lines} lines, its ceiling is {ceiling}: split it by subject"


def test_functions_are_short():
    long = [f"{place}: {lines} lines" for place, _, lines in functions() if lines > MAX_FUNCTION_LINES]
    assert not long, f"longer than {MAX_FUNCTION_LINES} lines: {', '.join(long)}"


def test_objectives_are_shorter_still():
    long = [
        f"{place}: {lines} lines"
        for place, _, lines in functions()
        if place.startswith("accord.objectives") and lines > MAX_OBJECTIVE_LINES
    ]
    assert not long


def test_functions_take_few_positional_parameters():
    many = [
        f"{place}: {count} positional parameters"
        for place, node, _ in functions()
        if (count := len(node.args.posonlyargs) + len(node.args.args)) > 8 and node.name != "forward"
    ]
    assert not many, f"name them: {', '.join(many)}"


def test_folders_hold_few_files():
    for folder in [PACKAGE, *(path for path in PACKAGE.rglob("*") if path.is_dir() and path.name != "__pycache__")]:
        relative = folder.relative_to(ROOT).as_posix()
        files = [path for path in folder.iterdir() if path.is_file()]
        ceiling, _ = FULLER_FOLDERS.get(relative, (MAX_FILES, ""))
        assert len(files) <= ceiling, f"{relative} holds {len(files)} files, its ceiling is {ceiling}"


def test_packages_are_at_most_two_deep():
    assert all(source.name.count(".") <= 3 for source in sources())


def test_names_of_modules_say_what_is_in_them():
    vague = [source.name for source in sources() if source.path.stem.strip("_") in VAGUE]
    assert not vague


def test_every_module_says_what_it_is():
    silent = [source.name for source in sources() if source.text.strip() and not ast.get_docstring(source.tree)]
    assert not silent


def test_silenced_checks_say_why():
    """`# type: ignore[code]  # why` and `# noqa: CODE — why`: a code and, after it, a reason."""
    marks = re.compile(r"#\s*(?:(?:type|pyright): ignore|noqa)(?P<code>\[[\w-]+\]|: [A-Z]+[0-9]+)?(?P<rest>.*)")
    lazy = []
    for source in sources():
        for number, line in enumerate(source.text.splitlines(), start=1):
            found = marks.search(line)
            above = source.text.splitlines()[max(0, number - 3) : number - 1]
            has_reason = found and (
                len(found["rest"].strip(" #—-")) > 8 or any(text.lstrip().startswith("# ") for text in above)
            )
            if found and not (found["code"] and has_reason):
                lazy.append(f"{source.name}:{number}: {line.strip()}")
    assert not lazy, "\n".join(lazy)


def test_errors_are_caught_by_name():
    """No bare `except`; a broad one carries its reason on the line."""
    wrong = []
    for source in sources():
        lines = source.text.splitlines()
        for node in ast.walk(source.tree):
            if not isinstance(node, ast.ExceptHandler):
                continue
            if node.type is None:
                wrong.append(f"{source.name}:{node.lineno}: bare except")
            elif ast.unparse(node.type) == "Exception" and "#" not in lines[node.lineno - 1]:
                wrong.append(f"{source.name}:{node.lineno}: except Exception without a reason")
    assert not wrong, "\n".join(wrong)


def test_no_print_outside_the_command_line():
    speaking = [
        f"{source.name}:{node.lineno}"
        for source in sources()
        if not source.name.startswith("accord.cli") and source.name not in PROGRAMS
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert not speaking
