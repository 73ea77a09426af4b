"""The structures of known losses, by the names of the paper, and which row of the menu has which."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from accord.objectives.logic.structure import Structure

_ONE = "M_w | M_l"  # at least one of the two is given
_ONE_HOT = "(M_w & ~M_l) | (~M_w & M_l)"
_FORWARD, _BACKWARD = "R_l & M_w", "R_w & M_l"

FORMS: dict[str, Structure] = {
    "CE": Structure("M_w"),
    "Unl": Structure("M_w & ~M_l"),
    "bCE": Structure("M_l >> M_w", both="~M_w & ~M_l"),
    "cUnl": Structure("M_w & ~M_l", condition=_ONE),
    "fUnl": Structure("~M_l"),
    "qfUnl": Structure("~M_l", condition="~(M_w & M_l)", both="~M_w & ~M_l"),
    "cfUnl": Structure("~M_l", condition="~(M_w & M_l)"),
    "ORPO": Structure("M_l >> M_w", condition=_ONE_HOT),
    "CPO": Structure("M_l >> M_w", condition=_ONE, both="M_w & M_l"),
    "cCPO": Structure("M_w", condition=_ONE),
    "uncCPO": Structure("M_l >> M_w"),
    "DPO": Structure(
        f"({_BACKWARD}) >> ({_FORWARD})",
        condition=f"({_BACKWARD}) | ({_FORWARD})",
        both=f"({_BACKWARD}) & ({_FORWARD})",
    ),
}
"""Over probabilities a = p(M_w), b = p(M_l): CE is log a/(1 − a), CPO log a/b, ORPO the log-odds ratio, DPO log
a·R_l/(R_w·b), and so on; raw probabilities of sequences are so small that ORPO = CPO, hence per-token means there."""

Link = Literal["logistic", "squared", "hinge"]


@dataclass(frozen=True)
class Form:
    """How a row of the menu reads as logic: a structure, a link of ρ, what a response's probability is, a remark."""

    structure: str
    link: Link
    normalisation: Literal["sum", "mean"]
    remark: str = ""


ROW_FORMS: dict[str, Form] = {
    "dpo": Form("DPO", "logistic", "sum"),
    "ipo": Form("DPO", "squared", "sum"),
    "ipo_sum": Form("DPO", "squared", "sum"),
    "ipo_avg": Form("DPO", "squared", "mean"),
    "ln_dpo": Form("DPO", "logistic", "mean"),
    "hinge": Form("DPO", "hinge", "sum"),
    "cpo": Form("CPO", "logistic", "sum", "plus likelihood of the chosen, which is CE's positive side alone"),
    "simpo": Form("CPO", "logistic", "mean", "with a margin: a reference whose log-ratio is the constant γ"),
    "orpo": Form("ORPO", "logistic", "mean", "plus likelihood of the chosen"),
    "slic": Form("CPO", "hinge", "sum", "plus likelihood of the chosen"),
    "rrhf": Form("CPO", "hinge", "mean", "with the hinge at 0, plus likelihood of the best"),
}


def form_of(name: str) -> dict[str, Any] | None:
    """Return how a row reads as logic, as plain values for `accord methods NAME --logic`; None where it has no form."""
    if name not in ROW_FORMS:
        return None
    form = ROW_FORMS[name]
    structure = FORMS[form.structure]
    return {
        "structure": form.structure,
        "formula": structure.formula,
        "condition": structure.condition,
        "both": structure.both,
        "link": form.link,
        "normalisation": form.normalisation,
        "remark": form.remark,
        "table": [{**row, "for": is_for, "against": is_against} for row, is_for, is_against in structure.table],
    }
