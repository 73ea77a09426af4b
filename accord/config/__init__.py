"""All settings, strictly: an unknown key is an error that names the nearest valid one. No torch.

A run's settings come as dotted keys (`train.lr=1e-6`), from a YAML recipe, the command line or Python; later ones win.
The settings of an objective are read off its function's signature, so that they are written down once.
"""

from accord.config.build import build_config, settle_reward_model
from accord.config.objective import validate_objective
from accord.config.online.methods import SHORT
from accord.config.reading import flatten, parse_assignment, read_recipe
from accord.config.sections import (
    BFLOAT16_IS_TOO_COARSE,
    AlignConfig,
    DataConfig,
    EvaluateConfig,
    ModelConfig,
    ObjectiveConfig,
    ReferenceConfig,
    Section,
    TemplateConfig,
    TrackingConfig,
    TrainConfig,
    default_lr,
    idle_keys,
)
from accord.config.unknown import valid_keys

__all__ = [
    "BFLOAT16_IS_TOO_COARSE", "SHORT", "AlignConfig", "DataConfig", "EvaluateConfig", "ModelConfig", "ObjectiveConfig",
    "ReferenceConfig", "Section", "TemplateConfig", "TrackingConfig", "TrainConfig", "build_config", "default_lr",
    "flatten", "idle_keys", "parse_assignment", "read_recipe", "settle_reward_model", "valid_keys",
    "validate_objective",
]  # fmt: skip
