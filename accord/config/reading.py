"""What settings are written as: recipes, `key=value`, nested mappings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from accord.errors import ConfigError


def read_recipe(path: str | Path) -> dict[str, Any]:
    """Read a YAML recipe. Raises ConfigError when it is missing or not a mapping."""
    try:
        loaded = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"got the recipe {path}, which cannot be read: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"got the recipe {path}, which is not YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(loaded, dict):
        raise ConfigError(f"got the recipe {path} with {type(loaded).__name__} — expected keys and values")
    return loaded


def parse_assignment(text: str) -> tuple[str, Any]:
    """Split `key=value`; the value is read as YAML (so 1e-6 is a number and null is None)."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError(f"got {text!r} — expected key=value, such as train.lr=1e-6")
    return key, _plain_value(value)


def _plain_value(text: str) -> Any:
    try:
        return float(text) if "e" in text.lower() else yaml.safe_load(text)  # YAML 1.1 reads 1e-6 as a word
    except (ValueError, yaml.YAMLError):
        try:
            return yaml.safe_load(text)
        except yaml.YAMLError:
            return text


def flatten(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of nested settings; an empty section is yielded as such."""
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
