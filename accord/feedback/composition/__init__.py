"""Rewards made of rewards: how parts are combined, shaped, calibrated and weighed, and `build_reward` from settings."""

from accord.feedback.composition.build import REWARDS, build_reward, check_reward, reward_names, reward_settings
from accord.feedback.composition.combine import Composition, Part, Shaping

__all__ = [
    "REWARDS",
    "Composition",
    "Part",
    "Shaping",
    "build_reward",
    "check_reward",
    "reward_names",
    "reward_settings",
]
