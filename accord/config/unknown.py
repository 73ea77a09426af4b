"""Settings that are wrong, in words: what came, what was expected, the nearest valid key."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from pydantic import ValidationError

from accord.config.reading import flatten
from accord.config.sections import AlignConfig, Section


def valid_keys() -> list[str]:
    """Return every dotted key of a run, but for those of the objectives."""
    keys: list[str] = []
    for name, field in AlignConfig.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, Section):
            keys.extend(f"{name}.{key}" for key in section.model_fields)
        else:
            keys.append("objective.name" if name == "objective" else name)
    return keys


def _objective_keys() -> list[str]:
    from accord.objectives import OBJECTIVES

    return sorted({f"objective.{key}" for spec in OBJECTIVES.values() for key in spec.settings()})


def explain(error: ValidationError) -> str:
    """Return what is wrong with settings, one clause per problem."""
    lines = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            given = problem["input"]
            keys = [f"{key}.{leaf}" for leaf, _ in flatten(given)] if isinstance(given, Mapping) else [key]
            lines.extend(unknown(name, valid_keys() + _objective_keys()) for name in keys)
        elif problem["type"] == "missing":
            wanted = f"{key}.path" if key in ("model", "data") else key
            lines.append(
                f"{wanted} is missing — give it as {wanted}=… or, on the command line, --{wanted.split('.')[0]}"
            )
        else:
            is_section = not key or isinstance(problem["input"], Mapping)  # then the message names the keys
            what = "" if is_section else f"got {key}={problem['input']!r} — "
            lines.append(f"{what}{problem['msg'].removeprefix('Value error, ')}")
    return "; ".join(lines)


def unknown(key: str, valid: list[str]) -> str:
    """Return that a key is not known, and the nearest valid one: of its section, if there is such a section."""
    section, _, leaf = key.rpartition(".")
    near = difflib.get_close_matches(key, valid, n=1, cutoff=0.85)  # first, for a leaf such as `path` is not the only
    within = [name for name in valid if section and name.startswith(f"{section}.")] or valid
    leaves = {candidate.rsplit(".", 1)[-1]: candidate for candidate in within}
    near = near or [leaves[n] for n in difflib.get_close_matches(leaf, leaves, n=1, cutoff=0.6)]
    hint = f"did you mean {near[0]}?" if near else f"valid ones are {', '.join(sorted(within))}"
    return f"got the unknown setting {key} — {hint}"
