"""Claims of losses as logic: the published ratios, their order, and rows that are their structures compiled."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch

from accord.claims import Claim
from accord.lab.row_checks import equal_everywhere, random_groups
from accord.objectives import OBJECTIVES, Need
from accord.objectives.logic.compiled import dpa_logic
from accord.objectives.logic.forms import FORMS

_ODDS_OF_DPO = 0.3 * 0.1 / (0.5 * 0.2)


def _dpa_logic_claims() -> Iterator[Claim]:
    a, b = torch.tensor(0.3, dtype=torch.float64), torch.tensor(0.2, dtype=torch.float64)
    published = {
        "CE": 1.203973, "Unl": 1.427116, "bCE": 0.595509, "cUnl": 0.606136, "fUnl": 0.223144, "qfUnl": 0.628609,
        "cfUnl": 0.161268, "ORPO": 0.459532, "CPO": 0.510826, "cCPO": 0.382992, "uncCPO": 0.150823,
        "DPO": math.log1p(1 / _ODDS_OF_DPO),
    }  # fmt: skip
    logps = {"M_w": a.log(), "M_l": b.log(), "R_w": torch.tensor(0.5).log(), "R_l": torch.tensor(0.1).log()}
    reached = [torch.nn.functional.softplus(-FORMS[name].log_odds(logps)).item() for name in published]
    yield equal_everywhere(
        "the published values of twelve structures at P(w) = 0.3, P(l) = 0.2",
        torch.tensor(list(published.values())),
        torch.tensor(reached),
        tolerance=1e-6,
    )
    groups = random_groups(frozenset({Need.PREFERENCES}), seed=5)
    assert groups.reference_logps_PK is not None
    # probabilities below one: the draw is of any numbers
    groups = replace(
        groups, policy_logps_PK=groups.policy_logps_PK - 5.0, reference_logps_PK=groups.reference_logps_PK - 5.0
    )
    rows: tuple[tuple[str, str, dict[str, Any], dict[str, Any]], ...] = (
        ("dpo", "DPO", {"beta": 0.3}, {"beta": 0.3, "normalisation": "sum"}),
        ("simpo", "CPO", {"beta": 2.0, "gamma_beta_ratio": 0.0}, {"beta": 2.0}),
    )
    for row, form, own, same in rows:
        structure = FORMS[form]
        formulas = {"formula": structure.formula, "condition": structure.condition, "both": structure.both}
        yield equal_everywhere(
            f"the structure {form} compiled is {row}",
            OBJECTIVES[row].fn(groups, **own).loss_P,
            dpa_logic(groups, **formulas, **same).loss_P,
            tolerance=1e-9,
        )


CLAIMS: dict[str, Callable[[], Iterator[Claim]]] = {"dpa_logic": _dpa_logic_claims}
