"""Losses as logic: the published table recomputed, its order, formulas read and refused, and rows as formulas."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from accord.lab.row_checks import random_groups
from accord.objectives import OBJECTIVES, Need
from accord.objectives.logic.compiled import dpa_logic
from accord.objectives.logic.forms import FORMS
from accord.objectives.logic.formula import assignments, parse_formula
from accord.objectives.logic.structure import Structure, entails

A, B = 0.3, 0.2
LOG_ODDS = {
    "CE": A / (1 - A),
    "Unl": A * (1 - B) / (1 - A * (1 - B)),
    "bCE": (1 - (1 - A) * B) / (1 - A),
    "cUnl": A * (1 - B) / B,
    "fUnl": (1 - B) / B,
    "qfUnl": (1 - B) / (1 - A),
    "cfUnl": (1 - B) / ((1 - A) * B),
    "ORPO": A * (1 - B) / ((1 - A) * B),
    "CPO": A / B,
    "cCPO": A / ((1 - A) * B),
    "uncCPO": (1 - (1 - A) * B) / ((1 - A) * B),
}
CHAINS = (
    ("Unl", "cUnl", "ORPO", "cCPO", "uncCPO"),
    ("cUnl", "CPO", "cCPO"),
    ("cUnl", "fUnl", "cfUnl"),
    ("Unl", "qfUnl", "cfUnl", "uncCPO"),
    ("ORPO", "cfUnl"),
    ("CE", "bCE"),
)


def log_odds(structure: Structure, **probabilities: float) -> float:
    logps = {name: torch.tensor(p, dtype=torch.float64).log() for name, p in probabilities.items()}
    return structure.log_odds(logps).item()


@pytest.mark.parametrize("name", LOG_ODDS)
def test_the_published_ratios(name):
    assert log_odds(FORMS[name], M_w=A, M_l=B) == pytest.approx(math.log(LOG_ODDS[name]), abs=1e-12)


def test_dpo_is_a_ratio_of_four_probabilities():
    found = log_odds(FORMS["DPO"], M_w=A, M_l=B, R_w=0.5, R_l=0.1)
    assert found == pytest.approx(math.log(A * 0.1 / (0.5 * B)), abs=1e-12)


@pytest.mark.parametrize("chain", CHAINS, ids=lambda chain: " ≥ ".join(chain))
def test_entailment_orders_the_losses_everywhere(chain):
    generator = torch.Generator().manual_seed(0)
    logps = {name: torch.rand(200, generator=generator, dtype=torch.float64).log() for name in ("M_w", "M_l")}
    for strict, loose in itertools.pairwise(chain):
        assert entails(FORMS[strict], FORMS[loose])
        assert not entails(FORMS[loose], FORMS[strict])
        assert (FORMS[strict].log_odds(logps) <= FORMS[loose].log_odds(logps) + 1e-12).all()


def test_unordered_structures_do_not_entail_each_other():
    assert not entails(FORMS["ORPO"], FORMS["CPO"])
    assert not entails(FORMS["CPO"], FORMS["ORPO"])


def test_counts_are_sums_over_models():
    """The count of a formula by enumeration in probability space, for four propositions at once."""
    p = {"M_w": 0.3, "M_l": 0.6, "R_w": 0.2, "R_l": 0.9}
    structure = Structure("(M_l & R_w) >> (M_w | ~R_l)", condition="R_w | M_w", both="M_l & R_l")
    sums = {True: 0.0, False: 0.0}
    for row in assignments(("M_w", "M_l", "R_w", "R_l")):
        weight = math.prod(p[name] if value else 1 - p[name] for name, value in row.items())
        holds = not (row["M_l"] and row["R_w"]) or (row["M_w"] or not row["R_l"])
        if row["R_w"] or row["M_w"]:
            for side in (True, False):
                sums[side] += weight * (holds == side or (row["M_l"] and row["R_l"]))
    assert log_odds(structure, **p) == pytest.approx(math.log(sums[True] / sums[False]), abs=1e-12)


@pytest.mark.parametrize(
    ("row", "form", "settings", "same"),
    [
        ("dpo", "DPO", {"beta": 0.3}, {"beta": 0.3, "normalisation": "sum"}),
        ("ipo", "DPO", {"tau": 0.3}, {"beta": 0.3, "normalisation": "sum", "link": "squared"}),
        ("ipo", "DPO", {"tau": 0.3, "normalisation": "mean"}, {"beta": 0.3, "link": "squared"}),
        ("simpo", "CPO", {"beta": 2.0, "gamma_beta_ratio": 0.0}, {"beta": 2.0}),
    ],
)
def test_rows_are_their_structures_compiled(row, form, settings, same):
    groups = random_groups(frozenset({Need.PREFERENCES}), seed=3)
    groups = replace(groups, policy_logps_PK=groups.policy_logps_PK - 5.0)  # 1 − p ≈ 1 is not needed, p < 1 is
    groups = replace(groups, reference_logps_PK=groups.reference_logps_PK - 5.0)
    structure = FORMS[form]
    named = OBJECTIVES[row].fn(groups, **settings)
    compiled = dpa_logic(
        groups, formula=structure.formula, condition=structure.condition, both=structure.both, **same
    )  # fmt: skip
    torch.testing.assert_close(compiled.loss_P, named.loss_P)


def test_the_odds_term_of_orpo_is_its_structure():
    groups = random_groups(frozenset({Need.PREFERENCES}), seed=4)
    whole, imitation = (OBJECTIVES["orpo"].fn(groups, odds_weight=weight).loss_P for weight in (1.0, 0.0))
    form = FORMS["ORPO"]
    compiled = dpa_logic(groups, formula=form.formula, condition=form.condition, both=form.both)
    torch.testing.assert_close(compiled.loss_P, whole - imitation)


@pytest.mark.parametrize("text", ["M_w and M_l", "M_x", "M_w +", "f(M_w)", "1", "__import__('os')", ""])
def test_what_is_no_formula_is_refused_with_what_would_be(text):
    with pytest.raises(ValueError, match=r"expected .*"):
        parse_formula(text)


@pytest.mark.parametrize("formula", ["True", "M_w | ~M_w", "M_w & ~M_w"])
def test_a_formula_that_is_always_or_never_true_teaches_nothing(formula):
    with pytest.raises(ValueError, match="no model counts"):
        Structure(formula).check()


def test_the_truth_table_can_be_read():
    text = Structure("M_l >> M_w", condition="M_w | M_l").to_text()
    assert text.splitlines()[-5:] == ["M_w  M_l  counts", " T    T   +", " T    F   +", " F    T     −", " F    F"]
