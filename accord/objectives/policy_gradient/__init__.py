"""Objectives of responses that the policy sampled, one file per kind of ratio; their rows together."""

from accord.objectives.policy_gradient import online, sequence_ratio, token_ratio
from accord.objectives.spec import ObjectiveSpec

ROWS: dict[str, ObjectiveSpec] = {**token_ratio.ROWS, **sequence_ratio.ROWS, **online.ROWS}
