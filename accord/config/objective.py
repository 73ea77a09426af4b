"""The settings of an objective or an estimator of advantages, read off its function's signature and checked."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Annotated, Any

from annotated_types import Gt
from pydantic import ConfigDict, ValidationError, create_model

from accord.config.online.sections import AdvantageConfig
from accord.config.sections import ObjectiveConfig
from accord.config.unknown import unknown
from accord.errors import ConfigError


def validate_objective(given: ObjectiveConfig) -> ObjectiveConfig:
    """Fill in and check an objective's settings against its signature, those of a sum part by part."""
    from accord.objectives.combined import SUM, spec_of

    if given.name != SUM:
        return ObjectiveConfig(name=given.name, **_objective_settings(given.name, given.settings, "objective"))
    parts = given.settings.get("parts")
    if not isinstance(parts, Mapping) or not parts or len(given.settings) > 1:
        found = ", ".join(f"objective.{key}" for key in given.settings) or "no part"
        raise ConfigError(
            f"got objective=sum with {found} — expected only parts with their weights and settings, such as "
            "objective.parts.dpo.weight=1 objective.parts.sft.weight=0.2"
        )
    for name, part in parts.items():
        if part is not None and not isinstance(part, Mapping):
            raise ConfigError(f"got objective.parts.{name}={part!r} — expected its settings, such as weight: 1.0")
    settled = {name: _objective_settings(name, part or {}, f"objective.parts.{name}") for name, part in parts.items()}
    try:
        spec_of(SUM, {"parts": settled})
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return ObjectiveConfig(name=SUM, **{"parts": settled})


def _objective_settings(name: str, given: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Return the settings of one row, filled in and checked; as a part of a sum it has a weight besides."""
    from accord.objectives import OBJECTIVES
    from accord.objectives.combined import SUM

    is_part = prefix != "objective"
    if name not in OBJECTIVES:
        known = [*OBJECTIVES] if is_part else [*OBJECTIVES, SUM]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(known))}"
        raise ConfigError(f"got {prefix if is_part else f'objective={name}'} — {hint} (`accord methods` lists them)")
    spec = OBJECTIVES[name]
    fields: dict[str, Any] = {key: (p.annotation, p.default) for key, p in spec.settings().items()}
    if is_part:
        fields = {"weight": (Annotated[float, Gt(0)], 1.0)} | fields
    for key in given:
        if key not in fields:
            valid = [*([] if is_part else ["objective.name"]), *(f"{prefix}.{field}" for field in fields)]
            owners = [other for other, row in OBJECTIVES.items() if key in row.settings()]
            owners += [SUM] if key == "parts" else []
            shown = ", ".join(owners[:3]) + (", …" if len(owners) > 3 else "")
            also = f" ({shown} {'has' if len(owners) == 1 else 'have'} {key})" if owners else ""
            raise ConfigError(f"{unknown(f'{prefix}.{key}', valid)}; {name} does not use it{also}")
    settings = _validated(name, fields, given, prefix, spec.refused)
    try:
        if spec.check is not None:
            spec.check(**{key: value for key, value in settings.items() if key != "weight" or not is_part})
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from None
    return settings


def _validated(
    name: str, fields: Mapping[str, Any], given: Mapping[str, Any], prefix: str, refused: Mapping[str, str]
) -> dict[str, Any]:
    """Return settings, filled in, of their kind and in their bounds; say why of those that are not offered."""
    for key, value in given.items():
        if why := refused.get(f"{key}={value}"):
            raise ConfigError(f"got {prefix}.{key}={value} — {why}")
    model = create_model(f"{name}_settings", __config__=ConfigDict(extra="forbid"), **fields)
    try:
        return model.model_validate(dict(given)).model_dump()
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        raise ConfigError(f"got {prefix}.{key}={problem['input']!r} — {problem['msg']}") from None


def validate_advantage(given: AdvantageConfig) -> AdvantageConfig:
    """Fill in and check the settings of an estimator of advantages against its signature."""
    from accord.objectives.advantages import ADVANTAGES

    if given.name is None:
        if given.settings:
            raise ConfigError(
                f"got {', '.join(f'advantage.{key}' for key in given.settings)} without advantage.name — there are "
                f"{', '.join(sorted(ADVANTAGES))}"
            )
        return given
    if given.name not in ADVANTAGES:
        near = difflib.get_close_matches(given.name, ADVANTAGES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(ADVANTAGES))}"
        raise ConfigError(f"got advantage.name={given.name} — {hint}")
    spec = ADVANTAGES[given.name]
    fields = {key: (p.annotation, p.default) for key, p in spec.settings().items()}
    for key in given.settings:
        if key not in fields and f"{key}={given.settings[key]}" not in spec.refused:
            valid = ["advantage.name", *(f"advantage.{field}" for field in fields)]
            raise ConfigError(f"{unknown(f'advantage.{key}', valid)}; {given.name} does not use it")
    settings = _validated(given.name, fields, given.settings, "advantage", spec.refused)
    return AdvantageConfig(name=given.name, **settings)
