"""Coefficients of agreement against published worked examples and against their definitions."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accord.agreement import cohen_kappa, fleiss_kappa, krippendorff_alpha

NAN = math.nan

# Krippendorff 2011, "Computing Krippendorff's alpha-reliability", section C: four observers, twelve units
KRIPPENDORFF = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
    [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
]
# the worked example of Fleiss' kappa: ten subjects, fourteen raters, five categories
FLEISS = [
    [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
    [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
]  # fmt: skip


@pytest.mark.parametrize(
    ("level", "published"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849), ("ratio", 0.797)]
)
def test_krippendorff_published(level, published: float) -> None:
    assert krippendorff_alpha(KRIPPENDORFF, level=level) == pytest.approx(published, abs=5e-4)


def test_krippendorff_by_hand() -> None:
    """Two judges, items (0,0), (0,1), (1,1): o_00 = 2, o_01 = o_10 = 1, o_11 = 2, n = 6, n_0 = n_1 = 3.

    D_o = 2/6, D_e = 2·3·3/(6·5): α = 1 − (1/3)/(3/5).
    """
    assert krippendorff_alpha([[0, 0, 1], [0, 1, 1]]) == pytest.approx(1 - (1 / 3) / (3 / 5))


def test_cohen_published() -> None:
    """p_o = 35/50, p_e = (25·30 + 25·20)/50²: κ = (0.7 − 0.5)/0.5."""
    assert cohen_kappa([[20, 5], [10, 15]]) == pytest.approx((0.7 - 0.5) / 0.5)
    table = [[10, 3, 1], [2, 12, 4], [0, 3, 15]]
    assert cohen_kappa(table, weights="quadratic") == pytest.approx(0.744898, abs=5e-7)
    assert cohen_kappa(table, weights="quadratic", values=[0, 10, 20]) == pytest.approx(0.744898, abs=5e-7)


def test_quadratic_weights_do_not_matter_with_two_categories() -> None:
    assert cohen_kappa([[20, 5], [10, 15]], weights="quadratic") == pytest.approx(0.4)


def test_fleiss_published() -> None:
    assert fleiss_kappa(FLEISS) == pytest.approx(0.209931, abs=5e-7)


def test_one_value_only_says_nothing() -> None:
    assert math.isnan(cohen_kappa([[5, 0], [0, 0]]))
    assert math.isnan(fleiss_kappa([[3, 0], [3, 0]]))
    assert math.isnan(krippendorff_alpha([[1, 1], [1, 1]]))
    assert math.isnan(krippendorff_alpha([[1, NAN], [NAN, 2]])), "no item was judged twice"
    assert math.isnan(fleiss_kappa([[1, 0], [0, 1]]))


def test_prevalence_paradox() -> None:
    """Both tables agree in 90 of 100; chance explains it in the second: p_e = 0.95² + 0.05² = 0.905."""
    assert cohen_kappa([[45, 5], [5, 45]]) == pytest.approx(0.8)
    assert cohen_kappa([[90, 5], [5, 0]]) == pytest.approx((0.9 - 0.905) / (1 - 0.905))


def by_definition(ratings: np.ndarray, distance) -> float:
    """Return α from single pairs: within items (weighed 1/(m − 1)) over those among all values that have a partner."""
    columns = [column[np.isfinite(column)] for column in ratings.T]
    columns = [column for column in columns if len(column) >= 2]
    values = np.concatenate(columns)
    within = sum(distance(a, b) / (len(column) - 1) for column in columns for a, b in permutations(column, 2))
    among = sum(distance(a, b) for a, b in permutations(values, 2))
    return 1 - (within / len(values)) / (among / (len(values) * (len(values) - 1)))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.lists(st.one_of(st.just(NAN), st.integers(0, 4).map(float)), min_size=3, max_size=3), min_size=3, max_size=9
    )
)
def test_alpha_is_its_definition(rows: list[list[float]]) -> None:
    ratings = np.array(rows).T
    paired = [column[np.isfinite(column)] for column in ratings.T if np.isfinite(column).sum() >= 2]
    if not paired or len(np.unique(np.concatenate(paired))) < 2:
        assert math.isnan(krippendorff_alpha(ratings))
        return
    assert krippendorff_alpha(ratings) == pytest.approx(by_definition(ratings, lambda a, b: float(a != b)))
    assert krippendorff_alpha(ratings, level="interval") == pytest.approx(
        by_definition(ratings, lambda a, b: (a - b) ** 2)
    )
    assert krippendorff_alpha(ratings, level="ratio") == pytest.approx(
        by_definition(ratings, lambda a, b: ((a - b) / (a + b)) ** 2 if a + b else 0.0)
    )


def test_wrong_shapes_are_errors() -> None:
    with pytest.raises(ValueError, match="as many rows as columns"):
        cohen_kappa([[1, 2, 3], [1, 2, 3]])
    with pytest.raises(ValueError, match="judges × items"):
        krippendorff_alpha([1, 2, 3])
    with pytest.raises(ValueError, match="items × categories"):
        fleiss_kappa([1, 2])
