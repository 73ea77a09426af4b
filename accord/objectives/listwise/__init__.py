"""Objectives of K judged responses at once: of orders, of ratings, and of negatives drawn among them."""

from accord.objectives.listwise import ranked, rated, sampled
from accord.objectives.spec import ObjectiveSpec

ROWS: dict[str, ObjectiveSpec] = {**ranked.ROWS, **rated.ROWS, **sampled.ROWS}
