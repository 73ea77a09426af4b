"""Accord aligns language models with preferences: judged responses in, an aligned and evaluated model out.

Public names are imported on first use, so that `import accord` stays light.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from accord.align import AlignResult, align
    from accord.config import AlignConfig, build_config
    from accord.data import encode_groups, load_groups
    from accord.groups import ObjectiveResult, ScoredGroups
    from accord.objectives import OBJECTIVES
    from accord.policy.load import load_policy
    from accord.policy.policy import Policy

__version__ = "0.1.0"

_PLACES = {
    "OBJECTIVES": "accord.objectives",
    "AlignConfig": "accord.config",
    "AlignResult": "accord.align",
    "ObjectiveResult": "accord.groups",
    "Policy": "accord.policy.policy",
    "ScoredGroups": "accord.groups",
    "align": "accord.align",
    "build_config": "accord.config",
    "encode_groups": "accord.data",
    "load_groups": "accord.data",
    "load_policy": "accord.policy.load",
}

__all__ = [
    "OBJECTIVES",
    "AlignConfig",
    "AlignResult",
    "ObjectiveResult",
    "Policy",
    "ScoredGroups",
    "align",
    "build_config",
    "encode_groups",
    "load_groups",
    "load_policy",
]


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'accord' has no attribute {name!r}")


class _Package(ModuleType):
    """Keeps `accord.align` the function: on import, Python would put the module of that name in its place."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _PLACES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
