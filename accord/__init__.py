"""Accord aligns language models with preferences: judged responses in, an aligned and evaluated model out.

Public names are imported on first use, so that `import accord` stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from accord.alignment import AlignResult, align
    from accord.config import AlignConfig, build_config
    from accord.data import encode_groups, load_groups
    from accord.groups import ObjectiveResult, ScoredGroups
    from accord.objectives import OBJECTIVES
    from accord.objectives.combined import weighted_sum
    from accord.policy.load import load_policy
    from accord.policy.policy import Policy
    from accord.policy.reward import load_reward
    from accord.policy.weights.merge import merge_adapters
    from accord.rounds import accelerated_rounds

__version__ = "0.1.0"

_PLACES = {
    "OBJECTIVES": "accord.objectives",
    "AlignConfig": "accord.config",
    "AlignResult": "accord.alignment",
    "ObjectiveResult": "accord.groups",
    "Policy": "accord.policy.policy",
    "ScoredGroups": "accord.groups",
    "accelerated_rounds": "accord.rounds",
    "align": "accord.alignment",
    "build_config": "accord.config",
    "encode_groups": "accord.data",
    "load_groups": "accord.data",
    "load_policy": "accord.policy.load",
    "load_reward": "accord.policy.reward",
    "merge_adapters": "accord.policy.weights.merge",
    "weighted_sum": "accord.objectives.combined",
}

__all__ = [
    "OBJECTIVES",
    "AlignConfig",
    "AlignResult",
    "ObjectiveResult",
    "Policy",
    "ScoredGroups",
    "accelerated_rounds",
    "align",
    "build_config",
    "encode_groups",
    "load_groups",
    "load_policy",
    "load_reward",
    "merge_adapters",
    "weighted_sum",
]


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'accord' has no attribute {name!r}")
