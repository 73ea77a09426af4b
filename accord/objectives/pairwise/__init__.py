"""Objectives of judged pairs, one file per kind of score and link; their rows together."""

from accord.objectives.pairwise import anchored, batchwise, divergence, imitation, logistic, reference_free, targets
from accord.objectives.spec import ObjectiveSpec

ROWS: dict[str, ObjectiveSpec] = {
    **logistic.ROWS,
    **targets.ROWS,
    **imitation.ROWS,
    **divergence.ROWS,
    **anchored.ROWS,
    **reference_free.ROWS,
    **batchwise.ROWS,
}
