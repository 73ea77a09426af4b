"""Ranking accuracy of the policy, of its reference, and of the optimum: limits and the published crossing point."""

from dataclasses import replace

import pytest
import torch

from accord.diagnostics.ranking import BETAS, ranking_sums, summarise_ranking, whole_rankings
from accord.groups import groups_from_pairs


def columns_of(reference_gap: float, win_frac: float | None, *, policy=(-3.0, -2.0), lengths=(10, 4)):
    groups = groups_from_pairs(
        torch.tensor([policy], dtype=torch.float64),
        reference_logps_P2=torch.tensor([[reference_gap, 0.0]], dtype=torch.float64),
        num_tokens_P2=torch.tensor([lengths]),
    )
    if win_frac is not None:
        frac = torch.tensor([[[0.5, win_frac], [1 - win_frac, 0.5]]], dtype=torch.float64)
        groups = replace(groups, win_frac_PKK=frac, is_compared_PKK=~torch.eye(2, dtype=torch.bool)[None])
    return {name: total / count for name, (total, count) in ranking_sums(groups).items()}


def test_sums_and_means_may_rank_a_pair_differently():
    """−3 < −2 as sums, −3/10 > −2/4 as means."""
    assert columns_of(0.0, None)["ranking_accuracy/normalised"] == 1.0


@pytest.mark.parametrize(("gap", "expected"), [(-10.9, 1.0), (-11.0, 0.0)])
def test_three_quarters_of_raters_at_beta_a_tenth_turn_a_gap_of_eleven(gap, expected):
    """logit(0.75)/0.1 = 10.986."""
    assert columns_of(gap, 0.75)["ranking_accuracy/idealised@0.1"] == expected


def test_undecided_raters_leave_the_reference_as_it_is():
    for gap in (-2.0, 2.0):
        found = columns_of(gap, 0.5)
        assert {found[f"ranking_accuracy/idealised@{beta:g}"] for beta in BETAS} == {
            found["ranking_accuracy/reference"]
        }


def test_a_weak_tie_ranks_as_raters_do_and_a_strong_one_as_the_reference():
    found = columns_of(-5.0, 0.6)
    assert found["ranking_accuracy/idealised@0.01"] == 1.0  # logit(0.6)/0.01 = 40.5
    assert found["ranking_accuracy/idealised@10"] == found["ranking_accuracy/reference"] == 0.0


def test_without_fractions_a_judged_pair_counts_as_nearly_unanimous():
    """logit(1 − 0.001) = 6.907, at β = 1."""
    assert columns_of(-6.9, None)["ranking_accuracy/idealised@1"] == 1.0
    assert columns_of(-6.91, None)["ranking_accuracy/idealised@1"] == 0.0


def test_the_summary_is_the_median_over_beta_and_the_gap_to_what_was_reached():
    reached = zip(BETAS, (1.0, 0.9, 0.8, 0.5, 0.4), strict=True)
    metrics = {f"ranking_accuracy/idealised@{beta:g}": value for beta, value in reached}
    found = summarise_ranking(metrics | {"ranking_accuracy": 0.45})
    assert found["ranking_accuracy/idealised"] == 0.8
    assert (found["ranking_accuracy/idealised_low"], found["ranking_accuracy/idealised_high"]) == (0.4, 1.0)
    assert found["ranking_accuracy/alignment_gap"] == pytest.approx(0.35)
    assert summarise_ranking({"ranking_accuracy": 0.5}) == {}


def test_a_whole_ranking_counts_only_where_every_pair_is_right():
    rows = [
        {"policy_logps": [-1.0, -2.0, -3.0], "pairs": [(0, 1), (1, 2), (0, 2)]},
        {"policy_logps": [-1.0, -3.0, -2.0], "pairs": [(0, 1), (1, 2), (0, 2)]},
        {"policy_logps": [-1.0, -2.0], "pairs": [(0, 1)]},
    ]
    assert whole_rankings(rows) == (1, 2)
