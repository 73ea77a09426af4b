"""The menu of objectives: pure functions of scored groups, one row each.

An objective is `fn(groups, *, setting=default, …) -> ObjectiveResult`: no model, device, config or logging. To add
one: write the function, its row in `ROWS` of the same file, its claims in `lab/optima/`, a test with a derived number.
Settings, their bounds and defaults are read off the signature; the property battery, `accord verify` and the docs pick
the row up by themselves.
"""

from __future__ import annotations

from typing import Any

from accord.objectives import (
    implicit_q,
    likelihood,
    listwise,
    logic,
    pairwise,
    pointwise,
    policy_gradient,
    reward_model,
    robust,
    token_level,
)
from accord.objectives.spec import Need, ObjectiveSpec, StateSpec

__all__ = ["OBJECTIVES", "Need", "ObjectiveSpec", "StateSpec", "methods_table"]

OBJECTIVES: dict[str, ObjectiveSpec] = {
    **likelihood.ROWS,
    **pairwise.ROWS,
    **robust.ROWS,
    **pointwise.ROWS,
    **listwise.ROWS,
    **reward_model.ROWS,
    **token_level.ROWS,
    **implicit_q.ROWS,
    **policy_gradient.ROWS,
    **logic.ROWS,
}


def methods_table() -> list[dict[str, Any]]:
    """Return one plain row per objective, in the order of the menu, with the keys of `accord methods --json`."""
    return [
        {
            "name": name,
            "family": spec.family,
            "level": spec.level,
            "needs": sorted(need.value for need in spec.needs),
            "reference": spec.reference,
            "paper": spec.paper,
            "defaults": spec.defaults(),
            "proof": spec.proof,
        }
        for name, spec in OBJECTIVES.items()
    ]
