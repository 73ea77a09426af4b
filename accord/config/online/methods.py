"""`method=ppo`: what a name stands for, under what was said besides."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from accord.config.online.sections import RolloutConfig
from accord.config.reading import flatten
from accord.errors import ConfigError

SHORT = {
    "model": "model.path", "data": "data.path", "objective": "objective.name", "reference": "reference.path",
    "advantage": "advantage.name",
}  # fmt: skip
"""Keys that may be given as one word: `objective=dpo` is `objective.name=dpo`."""


def expand_method(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the dotted keys of a run, those of its method first; what is given besides wins.

    Another objective, or another estimator of advantages, drops the settings of the method's own. Raises ConfigError
    for an unknown method.
    """
    given = [(key if isinstance(value, Mapping) else SHORT.get(key, key), value) for key, value in flatten(settings)]
    keys = dict(given)
    preset = _preset(keys["method"]) if keys.get("method") is not None else {}
    for part in ("objective", "advantage"):
        if keys.get(f"{part}.name", preset.get(f"{part}.name")) != preset.get(f"{part}.name"):
            preset = {key: value for key, value in preset.items() if not key.startswith(f"{part}.")}
    yield from ((key, value) for key, value in preset.items() if key not in keys)
    yield from given


def with_constant_length(settings: Iterable[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Return settings in which sums over a constant length take the length limit of responses, where none is given."""
    given = list(settings)
    keys = dict(given)
    if keys.get("objective.aggregation") == "constant" and "objective.max_length" not in keys:
        given.append(("objective.max_length", keys.get("rollout.max_tokens", _default_length())))
    return given


def _default_length() -> int:
    return RolloutConfig().max_tokens


def _preset(name: Any) -> dict[str, Any]:
    from accord.objectives.methods import METHODS

    if name not in METHODS:
        near = difflib.get_close_matches(str(name), METHODS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(METHODS)}"
        raise ConfigError(f"got method={name} — {hint}")
    method = METHODS[name]
    advantage = {} if method.advantage is None else {"advantage.name": method.advantage}
    return {
        "source": "rollouts", "objective.name": method.objective, **advantage,
        "rollout.num_responses": method.num_responses, **method.settings,
    }  # fmt: skip
