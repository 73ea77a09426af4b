"""The package as syntax trees: what the architecture tests look at."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "accord"


@dataclass(frozen=True, slots=True)
class Source:
    """One module: its dotted name, file, text and syntax tree."""

    name: str
    path: Path
    text: str
    tree: ast.Module


@dataclass(frozen=True, slots=True)
class Import:
    """One import statement of a module, its target as a dotted name.

    `when`: "load" runs with the module, "call" inside a function, "typing" only for a type checker.
    """

    module: str
    target: str
    line: int
    when: str


@cache
def sources() -> tuple[Source, ...]:
    """Return every module of the package, in order of its path."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        text = path.read_text("utf-8")
        found.append(Source(name, path, text, ast.parse(text)))
    assert len(found) > 40, "the package was not found"
    return tuple(found)


@cache
def module_names() -> frozenset[str]:
    """Return the dotted names of all modules and packages."""
    return frozenset(source.name for source in sources())


def imports_of(source: Source) -> Iterator[Import]:
    """Yield every import of a module; `from accord import x` names `accord.x` where that is a module."""
    yield from _walk(source, source.tree, "load")


def _walk(source: Source, node: ast.AST, when: str) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(source.name, alias.name, child.lineno, when)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"{source.name}:{child.lineno}: relative import"
            assert child.module is not None
            for alias in child.names:
                below = f"{child.module}.{alias.name}"
                target = below if below in module_names() else child.module
                yield Import(source.name, target, child.lineno, when)
        else:
            yield from _walk(source, child, _when(child, when))


def _when(node: ast.AST, when: str) -> str:
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        return "typing"
    is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    return "call" if is_function and when == "load" else when


def unit_of(module: str) -> str:
    """Return the part of Accord a module belongs to: `accord.data.readers.own` belongs to `data`."""
    return module.split(".")[1] if "." in module else "accord"
