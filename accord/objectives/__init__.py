"""The menu of objectives: pure functions of scored groups, one row each.

An objective is `fn(groups, *, setting=default, …) -> ObjectiveResult`: no model, device, config or logging. To add
one: write the function, add its row here, a test with a derived number, a page in docs/objectives/. Settings, their
bounds and defaults are read off the signature; the property battery and `accord verify` pick the row up by themselves.
"""

from __future__ import annotations

import math
from typing import Any

from accord.objectives.likelihood import sft
from accord.objectives.pairwise import dpo, ipo, orpo, simpo
from accord.objectives.pointwise import kto
from accord.objectives.spec import Need, ObjectiveSpec

__all__ = ["OBJECTIVES", "Need", "ObjectiveSpec", "methods_table"]


def _kto_initial_loss(*, desirable_weight: float, undesirable_weight: float, **_: float) -> float | None:
    # With unequal weights the value depends on the share of thumbs up in the data.
    return desirable_weight / 2 if desirable_weight == undesirable_weight else None


OBJECTIVES: dict[str, ObjectiveSpec] = {
    "sft": ObjectiveSpec(
        fn=sft,
        family="likelihood",
        needs=frozenset(),
        reads=frozenset({Need.PREFERENCES, Need.LABELS}),
        reference=False,
        implicit_reward="log π(y|x)/|y|",
        paper="Ouyang et al. 2022, arXiv:2203.02155, section 3.5",
    ),
    "dpo": ObjectiveSpec(
        fn=dpo,
        family="pairwise",
        needs=frozenset({Need.PREFERENCES}),
        reference=True,
        is_difference_only=True,
        initial_loss=lambda **_: math.log(2.0),
        implicit_reward="β·log(π/π_ref)",
        paper="Rafailov et al. 2023, arXiv:2305.18290, eq. 7",
    ),
    "ipo": ObjectiveSpec(
        fn=ipo,
        family="pairwise",
        needs=frozenset({Need.PREFERENCES}),
        reference=True,
        is_difference_only=True,
        initial_loss=lambda *, tau, **_: 0.25 / tau**2,
        implicit_reward="τ·log(π/π_ref), per token for normalisation=mean",
        paper="Azar et al. 2023, arXiv:2310.12036, eq. 17",
    ),
    "simpo": ObjectiveSpec(
        fn=simpo,
        family="pairwise",
        needs=frozenset({Need.PREFERENCES}),
        reference=False,
        implicit_reward="β·log π(y|x)/|y|",
        paper="Meng et al. 2024, arXiv:2405.14734, eq. 6",
    ),
    "orpo": ObjectiveSpec(
        fn=orpo,
        family="pairwise",
        needs=frozenset({Need.PREFERENCES}),
        reference=False,
        implicit_reward="log-odds of exp(log π(y|x)/|y|)",
        paper="Hong et al. 2024, arXiv:2403.07691, eq. 6",
    ),
    "kto": ObjectiveSpec(
        fn=kto,
        family="pointwise",
        needs=frozenset({Need.LABELS, Need.MISMATCHED_KL}),
        reference=True,
        initial_loss=_kto_initial_loss,
        implicit_reward="β·log(π/π_ref)",
        paper="Ethayarajh et al. 2024, arXiv:2402.01306, eq. 8",
    ),
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
        }
        for name, spec in OBJECTIVES.items()
    ]
