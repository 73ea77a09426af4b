"""The direction of imports, and that what must start fast does."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter

from sources import Import, imports_of, module_names, sources, unit_of

# Which other parts of Accord a part may import, at any time. A new part needs a line here: where does it belong?
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "records": {"errors"},
    "claims": set(),
    "data": {"errors", "records"},
    "groups": {"errors"},
    "objectives": {"groups"},
    "config": {"errors", "objectives"},  # asks an objective's signature which settings it has, inside a function
    "durable": {"errors"},
    "environment": set(),
    "store": {"durable", "environment", "errors"},
    "tracking": {"errors", "store"},
    "terminal": {"claims", "objectives"},
    "diagnostics": {"errors", "groups"},
    "evaluation": {"diagnostics", "errors", "records", "durable", "store"},
    "policy": {"errors", "records", "data", "groups"},
    "certify": {"errors", "claims", "records", "data", "policy"},
    "endpoint": {"errors", "durable"},
    "engines": {"data", "endpoint", "errors", "policy", "records"},
    "agreement": {"errors", "records"},
    "feedback": {"data", "endpoint", "errors", "groups", "policy", "records"},
    "decoding": {"data", "errors", "feedback", "groups", "policy", "records"},
    "web": {"agreement", "errors", "feedback", "records"},
    "run": {
        "config", "data", "diagnostics", "errors", "evaluation", "groups", "objectives", "policy", "records", "store",
    },
    "rollouts": {
        "config", "data", "decoding", "diagnostics", "errors", "feedback", "groups", "objectives", "policy", "records",
        "run", "store",
    },
    "train": {"config", "data", "errors", "objectives", "policy", "run", "store", "tracking"},
    "alignment": {
        "config", "data", "errors", "evaluation", "feedback", "objectives", "policy", "records", "rollouts", "run",
        "store", "tracking", "train",
    },
    "rounds": {"alignment", "config", "durable", "errors", "policy"},
}  # fmt: skip
EVERYTHING = set(ALLOWED) | {"lab", "accord"}
ALLOWED["lab"] = EVERYTHING - {"accord", "terminal"}
ALLOWED["accord"] = EVERYTHING - {"lab", "terminal"}  # the public names, imported when asked for
ALLOWED["cli"] = EVERYTHING  # and nobody imports cli

OBJECTIVES_MAY_IMPORT = {
    "__future__", "annotated_types", "ast", "collections", "dataclasses", "enum", "functools", "inspect", "itertools",
    "jaxtyping", "math",
    "torch", "typing",
}  # fmt: skip
LIGHT = {
    "accord", "agreement", "claims", "cli", "config", "data", "durable", "endpoint", "errors", "evaluation", "records",
    "store", "terminal", "tracking",
}  # fmt: skip
HEAVY = {"torch", "transformers", "accelerate", "peft", "datasets", "safetensors", "tokenizers"}


def all_imports() -> list[Import]:
    """Return every import of every module."""
    return [found for source in sources() for found in imports_of(source)]


def test_every_part_has_a_place_in_the_table():
    assert {unit_of(name) for name in module_names()} == set(ALLOWED)


def test_imports_go_in_the_allowed_direction():
    wrong = [
        f"{found.module}:{found.line} imports {found.target}: {unit_of(found.module)} may import "
        f"{', '.join(sorted(ALLOWED[unit_of(found.module)])) or 'nothing of Accord'}"
        for found in all_imports()
        if found.target.split(".")[0] == "accord"
        and unit_of(found.target) != unit_of(found.module)
        and unit_of(found.target) not in ALLOWED[unit_of(found.module)]
    ]
    assert not wrong, "\n".join(wrong)


def test_objectives_import_torch_and_groups_and_nothing_else():
    outside = {
        f"{found.module}:{found.line} imports {found.target}"
        for found in all_imports()
        if unit_of(found.module) == "objectives"
        and unit_of(found.target) not in ("objectives", "groups")
        and found.target.split(".")[0] not in OBJECTIVES_MAY_IMPORT
    }
    assert not outside


def test_light_modules_import_nothing_heavy_when_loaded():
    heavy = {
        f"{found.module}:{found.line} imports {found.target}"
        for found in all_imports()
        if unit_of(found.module) in LIGHT and found.when == "load" and found.target.split(".")[0] in HEAVY
    }
    assert not heavy


def test_no_module_needs_itself_to_load():
    edges: dict[str, set[str]] = {name: set() for name in module_names()}
    for found in all_imports():
        if found.when == "load" and found.target in edges and found.target != found.module:
            edges[found.module].add(found.target)
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        raise AssertionError(f"modules import each other: {' → '.join(error.args[1])}") from None


def test_the_parts_form_no_circle_even_inside_functions():
    edges = {unit: ALLOWED[unit] - {unit} for unit in ALLOWED if unit not in ("accord", "lab", "cli")}
    TopologicalSorter(edges).prepare()  # raises CycleError
    assert all("cli" not in allowed for allowed in ALLOWED.values())


def test_a_fresh_interpreter_loads_light_modules_without_torch():
    light = sorted(name for name in module_names() if unit_of(name) in LIGHT)
    code = (
        "import importlib, json, sys\n"
        f"for name in {light!r}: importlib.import_module(name)\n"
        f"print(json.dumps(sorted({HEAVY!r} & set(sys.modules))))"
    )
    assert {"accord", "accord.cli", "accord.config", "accord.store", "accord.data", "accord.evaluation.report"} <= {
        *light
    }
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def test_help_takes_at_most_half_a_second_of_cpu():
    used = []
    for _ in range(2):  # the first may write byte code
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, "-m", "accord.cli", "--help"], capture_output=True, text=True, check=True
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        used.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert "align" in done.stdout
    assert min(used) <= 0.5, f"{used} s of CPU"
