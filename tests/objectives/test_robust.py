"""Derived values, limits and states of the robust combinators.

One pair throughout, unless said: log π = (−12, −15), log π_ref = (−13, −14.5), so D = 1.5: logit p = 0.15 at β = 0.1.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from accord.config import ObjectiveConfig, validate_objective
from accord.errors import ConfigError
from accord.groups import ScoredGroups, Votes, groups_from_pairs
from accord.objectives import OBJECTIVES
from accord.objectives.pairwise.logistic import dpo
from accord.objectives.robust import dpo_group_robust, group_robust, label_robust, re_dpo, re_ipo, re_simpo

RE_ROWS = ("re_dpo", "re_ipo", "re_simpo", "re_cpo")


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def softplus(z: float) -> float:
    return math.log1p(math.exp(z))


def voted(*votes: tuple[int, int, int], reliability=(0.9,), policy=(-12.0, -15.0), reference=(-13.0, -14.5)):
    """One group with votes (better, worse, judge)."""
    better, worse, judge = (torch.tensor([column]) for column in zip(*votes, strict=True))
    groups = groups_from_pairs(torch.tensor([policy[:2]], dtype=torch.float64), num_tokens_P2=torch.tensor([[10, 12]]))
    return replace(
        groups,
        policy_logps_PK=torch.tensor([policy], dtype=torch.float64, requires_grad=True),
        reference_logps_PK=torch.tensor([reference], dtype=torch.float64),
        num_tokens_PK=torch.tensor([[10, 12, 7][: len(policy)]]),
        is_valid_PK=torch.ones(1, len(policy), dtype=torch.bool),
        preferred_PKK=None,
        votes=Votes(better_PC=better, worse_PC=worse, judge_PC=judge, is_valid_PC=torch.ones_like(better).bool()),
        state={"reliability": torch.tensor(reliability, dtype=torch.float64)},
    )


def gradient_of(groups: ScoredGroups, loss: torch.Tensor) -> list[float]:
    (gradient_PK,) = torch.autograd.grad(loss.sum(), groups.policy_logps_PK)
    return gradient_PK[0].tolist()


def test_re_dpo_value_weight_and_gradient():
    groups = voted((0, 1, 0))
    result = re_dpo(groups, beta=0.1)
    w = sigmoid(0.15 + math.log(0.9 / 0.1))
    assert result.state_sums["right"].tolist() == pytest.approx([w], abs=1e-12)
    assert w == pytest.approx(0.912713, abs=1e-6)
    assert result.loss_P.item() == pytest.approx(softplus(-0.15) + (1 - w) * 0.15, abs=1e-12)
    assert result.loss_P.item() == pytest.approx(0.634050, abs=1e-6)
    assert gradient_of(groups, result.loss_P) == pytest.approx([-0.037528, 0.037528], abs=1e-6)
    assert gradient_of(groups, re_dpo(groups, beta=0.1).loss_P)[0] == pytest.approx(-0.1 * (w - sigmoid(0.15)))


@pytest.mark.parametrize("name", RE_ROWS)
def test_a_judge_who_is_right_half_the_time_moves_nothing(name):
    groups = voted((0, 1, 0), reliability=(0.5,))
    assert gradient_of(groups, OBJECTIVES[name].fn(groups).loss_P) == pytest.approx([0.0, 0.0], abs=1e-13)


@pytest.mark.parametrize("name", RE_ROWS)
@pytest.mark.parametrize("reliability", [0.5, 0.4, 1.0])
def test_a_run_may_not_start_at_one_half_or_certainty(name, reliability):
    with pytest.raises(ConfigError, match=r"objective\.reliability=.*(greater than 0\.5|less than 1)"):
        validate_objective(ObjectiveConfig(name=name, reliability=reliability))


def test_a_judge_who_is_mostly_wrong_counts_the_other_way_round():
    wrong, right = voted((0, 1, 0), reliability=(0.1,)), voted((1, 0, 0), reliability=(0.9,))
    assert gradient_of(wrong, re_dpo(wrong).loss_P) == pytest.approx(gradient_of(right, re_dpo(right).loss_P))


def test_a_reliability_of_almost_one_is_the_base():
    groups = voted((0, 1, 0), reliability=(1 - 1e-9,))
    torch.testing.assert_close(re_dpo(groups).loss_P, dpo(_as_pair(groups)).loss_P, rtol=0, atol=1e-8)


def _as_pair(groups: ScoredGroups) -> ScoredGroups:
    return replace(groups, preferred_PKK=torch.tensor([[[False, True], [False, False]]]))


def test_the_loss_of_a_vote_that_is_surely_wrong_is_bounded():
    """−log(p η + (1 − p)(1 − η)) < −log(1 − η): the pull of a vote the policy is sure is wrong fades."""
    far = voted((0, 1, 0), policy=(-12.0, -15.0), reference=(988.0, -15.0))  # D = −1000, logit p = −100
    slopes = gradient_of(far, re_dpo(far, beta=0.1).loss_P)
    assert max(map(abs, slopes)) < 1e-30
    assert gradient_of(far, dpo(_as_pair(far)).loss_P)[0] == pytest.approx(-0.1)


def test_every_vote_counts_with_its_own_judge_and_a_group_counts_once():
    votes, reliability = [(0, 1, 0), (1, 0, 1), (2, 0, 0)], (0.9, 0.6)
    policy, reference = (-12.0, -15.0, -9.0), (-13.0, -14.5, -9.5)
    whole = re_dpo(voted(*votes, reliability=reliability, policy=policy, reference=reference))
    single = [
        re_dpo(voted(vote, reliability=reliability, policy=policy, reference=reference)) for vote in votes
    ]  # fmt: skip
    assert whole.loss_P.item() == pytest.approx(sum(one.loss_P.item() for one in single) / 3, abs=1e-12)
    assert whole.denominators().tolist() == [1.0]
    assert whole.state_sums["votes"].tolist() == [2.0, 1.0]
    w = [sigmoid(0.15 + math.log(9)), sigmoid(-0.15 + math.log(1.5)), sigmoid(-0.05 + math.log(9))]
    assert whole.state_sums["right"].tolist() == pytest.approx([w[0] + w[2], w[1]], abs=1e-12)


def test_votes_about_padding_and_groups_without_votes_are_not_counted():
    groups = voted((0, 1, 0))
    groups = replace(groups, is_valid_PK=torch.tensor([[True, False]]))
    result = re_dpo(groups)
    assert (result.loss_P.tolist(), result.denominators().tolist()) == ([0.0], [0.0])
    assert result.state_sums["votes"].tolist() == [0.0]


def test_equal_scores_give_log_two_and_the_prior_as_posterior():
    groups = voted((0, 1, 0), reference=(-12.0, -15.0), reliability=(0.8,))
    result = re_dpo(groups)
    assert result.loss_P.item() == pytest.approx(math.log(2), abs=1e-12)
    assert result.state_sums["right"].tolist() == pytest.approx([0.8])


def test_re_ipo_is_logistic_with_slope_two_over_tau():
    groups = voted((0, 1, 0))
    torch.testing.assert_close(re_ipo(groups, tau=5.0).loss_P, re_dpo(groups, beta=0.4).loss_P)
    w = sigmoid(2 * 1.5 / 5 + math.log(9))
    assert re_ipo(groups, tau=5.0).loss_P.item() == pytest.approx(softplus(-0.6) + (1 - w) * 0.6, abs=1e-12)


def test_re_simpo_logit():
    x, gamma = 2.0 * (-1.2 + 1.25), 1.0
    logit = math.log((1 + math.exp(x + gamma)) / (1 + math.exp(gamma - x)))
    right = re_simpo(voted((0, 1, 0)), beta=2.0, gamma_beta_ratio=0.5).state_sums["right"].item()
    assert right == pytest.approx(sigmoid(logit + math.log(9)), abs=1e-12)


def test_reliabilities_move_by_their_rate_and_a_silent_judge_stays():
    state = OBJECTIVES["re_dpo"].state
    start = state.start(num_judges=3, **OBJECTIVES["re_dpo"].defaults())
    assert start["reliability"].tolist() == [0.9] * 3
    sums = {"right": torch.tensor([1.5, 4.0, 0.0]).double(), "votes": torch.tensor([3.0, 4.0, 0.0]).double()}
    moved = state.advance(start, sums, reliability_rate=0.1, reliability=0.9, beta=0.1)
    assert moved["reliability"].tolist() == pytest.approx([0.9 * 0.9 + 0.1 * 0.5, 0.9 * 0.9 + 0.1 * 1.0, 0.9])
    at_once = state.advance(start, sums, reliability_rate=1.0)["reliability"]
    assert at_once.tolist() == pytest.approx([0.5, 1 - 1e-6, 0.9])  # held where later votes still count


def test_any_pairwise_objective_can_be_wrapped():
    own = label_robust(dpo, "own", "Own.")
    assert own(voted((0, 1, 0)), beta=0.1).loss_P.item() == pytest.approx(0.634050, abs=1e-6)
    assert (own.__name__, own.__doc__) == ("own", "Own.")
    with pytest.raises(TypeError, match="no_such"):
        own(voted((0, 1, 0)), no_such=1.0)


# -- populations -------------------------------------------------------------------------------------------------------


def of_strata(weights: list[float], strata: list[int], fracs: list[float]) -> ScoredGroups:
    """One pair per stratum named, margins D = 1.5, 0.5, −1, … under β = 0.1."""
    margins = torch.tensor([1.5, 0.5, -1.0, 2.0][: len(strata)], dtype=torch.float64)
    groups = groups_from_pairs(
        torch.stack([margins, torch.zeros_like(margins)], dim=1),
        reference_logps_P2=torch.zeros(len(strata), 2, dtype=torch.float64),
    )
    return replace(
        groups,
        stratum_P=torch.tensor(strata),
        stratum_frac_P=torch.tensor(fracs, dtype=torch.float64)[torch.tensor(strata)],
        state={"weight": torch.tensor(weights, dtype=torch.float64)},
    )


def test_a_group_weighs_its_stratum_over_its_share():
    result = dpo_group_robust(of_strata([0.4, 0.6], [0, 1, 0, 0], [0.75, 0.25]), beta=0.1)
    plain = [softplus(-0.1 * margin) for margin in (1.5, 0.5, -1.0, 2.0)]
    weights = [0.4 / 0.75, 0.6 / 0.25, 0.4 / 0.75, 0.4 / 0.75]
    assert result.loss_P.tolist() == pytest.approx([w * loss for w, loss in zip(weights, plain, strict=True)])
    assert result.denominators().tolist() == [1.0] * 4
    mean = (0.4 * (plain[0] + plain[2] + plain[3]) / 3) + 0.6 * plain[1]
    assert result.loss_P.mean().item() == pytest.approx(mean, abs=1e-12)  # Σ q L where shares are the data's
    sums = result.state_sums
    assert (sums["loss"] / sums["groups"]).tolist() == pytest.approx([(plain[0] + plain[2] + plain[3]) / 3, plain[1]])
    assert sums["groups"].item() == 4.0


def test_one_stratum_is_the_base():
    groups = of_strata([1.0], [0, 0, 0], [1.0])
    assert torch.equal(dpo_group_robust(groups, beta=0.3).loss_P, dpo(groups, beta=0.3).loss_P)


def test_rate_zero_keeps_strata_balanced_and_a_step_favours_the_larger_loss():
    state = OBJECTIVES["dpo_group_robust"].state
    start = state.start(num_strata=2, beta=0.1, weight_step=0.5)
    sums = {"loss": torch.tensor([6.0, 2.0]).double(), "groups": torch.tensor(4.0).double()}
    assert state.advance(start, sums, weight_step=0.0)["weight"].tolist() == [0.5, 0.5]
    moved = state.advance(start, sums, weight_step=0.5)["weight"]
    ratio = math.exp(0.5 * (6 / 4 - 2 / 4))
    assert moved.tolist() == pytest.approx([ratio / (1 + ratio), 1 / (1 + ratio)])


def test_a_small_stratum_is_weighed_by_its_loss_and_not_by_its_size():
    """Nine batches of one group of the large stratum, one of the small: equal losses move the weights nowhere."""
    state = OBJECTIVES["dpo_group_robust"].state
    moved = state.start(num_strata=2)
    for stratum in [0] * 9 + [1]:
        groups = replace(of_strata([0.5, 0.5], [stratum], [0.9, 0.1]), state=moved)
        moved = state.advance(moved, dpo_group_robust(groups).state_sums, weight_step=0.1)
    assert moved["weight"].tolist() == pytest.approx([0.5, 0.5], abs=1e-12)


def test_a_group_without_pairs_counts_for_no_stratum():
    groups = of_strata([0.5, 0.5], [0, 1], [0.5, 0.5])
    groups = replace(groups, preferred_PKK=groups.preferred_PKK & torch.tensor([True, False])[:, None, None])
    result = dpo_group_robust(groups)
    assert result.is_counted_P.tolist() == [True, False]
    assert result.loss_P[1].item() == 0.0
    assert result.state_sums["groups"].item() == 1.0
    assert result.state_sums["loss"][1].item() == 0.0


def test_any_objective_can_be_weighted():
    own = group_robust(dpo, "own", "Own.")
    groups = of_strata([0.4, 0.6], [0, 1], [0.5, 0.5])
    torch.testing.assert_close(own(groups).loss_P, dpo_group_robust(groups).loss_P)
