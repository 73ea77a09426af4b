"""What others may build on: every module loads, every public name is explained, and signatures change on purpose only.

After a change that is meant: `python tests/architecture/test_public.py` writes the snapshot again.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

from sources import Source, module_names, sources

SNAPSHOT = Path(__file__).with_name("public.txt")
Documented = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def public_definitions(source: Source) -> Iterator[tuple[str, Documented]]:
    """Yield public functions, classes and their public methods; what is inside a function is not public."""
    for node in source.tree.body:
        if isinstance(node, Documented) and not node.name.startswith("_"):
            yield node.name, node
            if isinstance(node, ast.ClassDef):
                yield from (
                    (f"{node.name}.{method.name}", method)
                    for method in node.body
                    if isinstance(method, ast.FunctionDef) and not method.name.startswith("_")
                )


def protocol_methods(source: Source) -> set[str]:
    """Return the methods that a Protocol of the module explains for all its implementations."""
    return {
        method.name
        for node in source.tree.body
        if isinstance(node, ast.ClassDef) and any("Protocol" in ast.unparse(base) for base in node.bases)
        for method in node.body
        if isinstance(method, ast.FunctionDef) and ast.get_docstring(method)
    }


def test_every_public_name_is_explained():
    silent = [
        f"{source.name}.{name}"
        for source in sources()
        for name, node in public_definitions(source)
        if not ast.get_docstring(node) and ("." not in name or node.name not in protocol_methods(source))
    ]
    assert not silent, f"without a docstring: {', '.join(silent)}"


def test_every_public_function_says_its_types():
    loose = [
        f"{source.name}.{name}({argument.arg})"
        for source in sources()
        for name, node in public_definitions(source)
        if isinstance(node, ast.FunctionDef)
        for argument in [*node.args.args, *node.args.kwonlyargs]
        if argument.annotation is None and argument.arg not in ("self", "cls")
    ]
    assert not loose


def test_every_module_can_be_imported():
    for name in sorted(module_names()):
        importlib.import_module(name)


def test_every_name_of_all_is_there():
    for name in sorted(module_names()):
        module = importlib.import_module(name)
        for public in getattr(module, "__all__", ()):
            assert hasattr(module, public), f"{name}.__all__ names {public}, which is not there"
        assert sorted(set(getattr(module, "__all__", ()))) == sorted(getattr(module, "__all__", ())), name


def test_public_names_are_not_hidden_by_modules_of_the_same_name():
    """`import accord.x` puts the module x into the package: a function of that name would then be gone."""
    import accord

    places = [importlib.import_module(place) for place in accord._PLACES.values()]
    assert [name for name in accord.__all__ if getattr(accord, name) in places] == []


def test_an_unknown_public_name_is_an_attribute_error():
    import accord

    assert not hasattr(accord, "no_such_name")


def public_signatures() -> str:
    """Return what `accord.__all__` offers, one line per name, method and field."""
    import accord

    lines = []
    for name in sorted(accord.__all__):
        thing = getattr(importlib.import_module(accord._PLACES[name]), name)
        if inspect.isclass(thing):
            lines += [f"class {name}", *(f"    {line}" for line in sorted(_members(thing)))]
        elif inspect.isfunction(thing):
            lines.append(f"def {name}({_parameters(thing)})")
        else:
            lines.append(f"{name}: {type(thing).__name__}")
            lines += [f"    {key}({', '.join(map(str, row.settings().values()))})" for key, row in thing.items()]
    return "\n".join(lines) + "\n"


def _members(thing: type) -> Iterator[str]:
    if is_dataclass(thing):
        for field in fields(thing):
            has_default = field.default is not MISSING or field.default_factory is not MISSING
            yield f"{field.name}: {field.type}" + (" = …" if has_default else "")
    else:
        yield from (f"{key}: {kind}" for key, kind in getattr(thing, "__annotations__", {}).items() if key[0] != "_")
    for key, value in vars(thing).items():
        if key.startswith("_") and key != "__init__":
            continue
        if isinstance(value, property):
            yield f"{key} -> {inspect.signature(value.fget).return_annotation}"  # type: ignore[arg-type]  # it has one
        elif inspect.isfunction(value) and not (key == "__init__" and is_dataclass(thing)):
            yield f"{key}({_parameters(value)})"


def _parameters(function: Callable[..., Any]) -> str:
    """Return the parameters as they are written, but for defaults that are functions."""
    parts, was_starred = [], False
    for parameter in inspect.signature(function).parameters.values():
        is_keyword_only = parameter.kind is inspect.Parameter.KEYWORD_ONLY
        if is_keyword_only and not was_starred:
            parts.append("*")
        was_starred |= is_keyword_only or parameter.kind is inspect.Parameter.VAR_POSITIONAL
        shown = parameter.replace(annotation=inspect.Parameter.empty, default=inspect.Parameter.empty)
        text = str(shown) if parameter.name == "self" else f"{shown}: {parameter.annotation}"
        if parameter.default is not inspect.Parameter.empty:
            text += " = …" if callable(parameter.default) else f" = {parameter.default!r}"
        parts.append(text)
    return ", ".join(parts)


def test_public_signatures_change_on_purpose_only():
    assert public_signatures() == SNAPSHOT.read_text("utf-8"), (
        "the public signatures changed — if that is meant, say so in CHANGELOG.md and run "
        "`python tests/architecture/test_public.py`"
    )


if __name__ == "__main__":
    SNAPSHOT.write_text(public_signatures(), "utf-8")
