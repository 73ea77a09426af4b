"""Objectives of judged pairs, one file per kind of score and link; their rows together."""

from accord.objectives.pairwise import (
    anchored,
    batchwise,
    divergence,
    imitation,
    logistic,
    reference_free,
    reward_scaled,
    targets,
)
from accord.objectives.spec import ObjectiveSpec

ROWS: dict[str, ObjectiveSpec] = {
    **logistic.ROWS,
    **targets.ROWS,
    **reward_scaled.ROWS,
    **imitation.ROWS,
    **divergence.ROWS,
    **anchored.ROWS,
    **reference_free.ROWS,
    **batchwise.ROWS,
}
