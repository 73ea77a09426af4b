"""Objectives of judged pairs, one file per kind of score and link; their rows together."""

from accord.objectives.pairwise import logistic
from accord.objectives.spec import ObjectiveSpec

ROWS: dict[str, ObjectiveSpec] = {**logistic.ROWS}
