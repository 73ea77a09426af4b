"""Kernels that draw negatives, exactly and by frequency, and the rows that contrast the best response with draws.

The golden contest: r_0 = 0.3 for the best response, r = (0.1, −0.4, 0.8) for the three judged worse, β = 1.
"""

import math
from dataclasses import replace

import pytest
import torch

from accord.groups import ScoredGroups, concatenate_groups
from accord.lab.optima.sampled import cis_matrix, contest, importance_bias, mean_gradient, row_gradient, toy
from accord.objectives import OBJECTIVES
from accord.objectives.listwise.kernels import kernel_probs, pick, visit_numbers, walk_ends

R = [0.3, 0.1, -0.4, 0.8]
DRAWING = ["hard_negative", "cis", "random", "max_margin", "second_best"]


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def softplus(z: float) -> float:
    return math.log1p(math.exp(z))


def softmax(values: list[float]) -> list[float]:
    return [math.exp(v) / sum(map(math.exp, values)) for v in values]


def golden(num_groups: int = 1, *, ratings: list[float] | None = None) -> ScoredGroups:
    """The golden contest, as often as wanted, each group with a seed of its own."""
    groups = concatenate_groups([contest(torch.tensor(R, dtype=torch.float64))] * num_groups)
    rated = torch.ones(num_groups, 4, dtype=torch.bool)
    return replace(
        groups,
        policy_logps_PK=groups.policy_logps_PK.clone().requires_grad_(),
        draw_seed_P=torch.arange(num_groups),
        reward_PK=None if ratings is None else torch.tensor([ratings], dtype=torch.float64).expand(num_groups, 4),
        is_rated_PK=None if ratings is None else rated,
    )


def mc_po(groups: ScoredGroups, **settings):
    return OBJECTIVES["mc_po"].fn(groups, beta=1.0, **settings)


def gradient(groups: ScoredGroups, **settings) -> torch.Tensor:
    return torch.autograd.grad(mc_po(groups, **settings).loss_P.sum(), groups.policy_logps_PK)[0]


def law(kernel: str, score=R, quality=(0.0, 3.0, 1.0, 2.0), current: int = 0) -> list[float]:
    """The law of the next response of a walk that is at `current`, all others open."""
    is_current = torch.arange(len(score)) == current
    score, quality = (torch.tensor(x, dtype=torch.float64) for x in (score, quality))
    return kernel_probs(kernel, score, quality, ~is_current, is_current).tolist()


# Laws ----------------------------------------------------------------------------------------------------------------


def test_laws_by_hand():
    assert law("hard_negative") == pytest.approx([0.0, *softmax(R[1:])], abs=1e-12)
    assert law("cis") == pytest.approx(softmax(R), abs=1e-12)
    assert law("random") == pytest.approx([0.0, 1 / 3, 1 / 3, 1 / 3], abs=1e-12)
    assert law("max_margin") == [0.0, 0.0, 1.0, 0.0]  # the lowest quality
    assert law("second_best") == [0.0, 1.0, 0.0, 0.0]  # the highest
    assert law("max_margin", quality=(0.0, 1.0, 1.0, 2.0)) == pytest.approx([0.0, 0.5, 0.5, 0.0], abs=1e-12)


def test_a_law_with_nothing_open_is_zero_and_draws_nothing():
    for kernel in DRAWING:
        alone, here = torch.zeros(3, dtype=torch.bool), torch.arange(3) == 0
        probs = kernel_probs(kernel, torch.zeros(3).double(), torch.zeros(3).double(), alone, here)
        assert probs.tolist() == ([1.0, 0.0, 0.0] if kernel == "cis" else [0.0] * 3)
        assert pick(probs, torch.tensor(0.999).double()).tolist() == probs.tolist()


def test_picking_inverts_the_cumulative_law():
    probs = torch.tensor([0.0, 0.25, 0.0, 0.75, 0.0], dtype=torch.float64)
    for uniform, chosen in ((0.0, 1), (0.2499, 1), (0.25, 3), (1 - 1e-16, 3)):
        assert pick(probs, torch.tensor(uniform, dtype=torch.float64)).tolist().index(1.0) == chosen
    poisoned = torch.tensor([0.5, math.nan, 0.5], dtype=torch.float64)
    assert pick(poisoned, torch.tensor(0.1, dtype=torch.float64)).isnan().all()


def test_sampler_temperature_reaches_its_limits():
    """→ 0: the hardest negative; → ∞: a random one. Measured by which response takes the gradient, over many seeds."""
    groups = golden(2000)
    coldest = gradient(groups, sampler_temperature=1e-3)[:, 1:] != 0
    assert coldest.double().mean(dim=0).tolist() == [0.0, 0.0, 1.0]
    hottest = (gradient(groups, sampler_temperature=1e6)[:, 1:] != 0).double().mean(dim=0)
    assert hottest.tolist() == pytest.approx([1 / 3] * 3, abs=4 * math.sqrt(2 / 9 / 2000))


@pytest.mark.parametrize("num_proposals", [1, 2, 3])
def test_cis_leaves_the_model_unchanged_and_importance_sampling_is_biased(num_proposals):
    for seed in range(3):
        world = toy(seed)
        matrix_KK = cis_matrix(world.proposal_logps_K.exp(), world.reward_K, num_proposals)
        torch.testing.assert_close(world.model_K @ matrix_KK, world.model_K, rtol=0, atol=1e-14)
        torch.testing.assert_close(matrix_KK.sum(dim=1), torch.ones(5, dtype=torch.float64), rtol=0, atol=1e-14)
        assert abs(importance_bias(world, num_proposals)) > 0.05


def test_one_cis_step_with_one_proposal_is_barkers_rule():
    world = toy()
    proposal_K, reward_K = world.proposal_logps_K.exp(), world.reward_K
    accept_KK = torch.sigmoid(reward_K[None, :] - reward_K[:, None])
    moves_KK = proposal_K[None, :] * accept_KK
    barker_KK = moves_KK - torch.diag(moves_KK.diagonal())
    barker_KK += torch.diag(1 - barker_KK.sum(dim=1))
    torch.testing.assert_close(cis_matrix(proposal_K, reward_K, 1), barker_KK, rtol=0, atol=1e-14)


# Draws ---------------------------------------------------------------------------------------------------------------

MANY = 6000


def frequencies(kernel: str, *, num_steps: int = 1) -> torch.Tensor:
    """Where walks from the first response of the golden contest end, over many seeds."""
    uniform_PMS, key_PK = visit_numbers(torch.arange(MANY), num_walks=1, num_steps=num_steps, width=4)
    is_candidate = torch.zeros(MANY, 4, 4, dtype=torch.bool)
    is_candidate[:, 0, 1:] = True
    score_PK = torch.tensor([R], dtype=torch.float64).expand(MANY, 4)
    quality_PK = torch.tensor([[0.0, 3.0, 1.0, 2.0]], dtype=torch.float64).expand(MANY, 4)
    return walk_ends(kernel, score_PK, quality_PK, is_candidate, uniform_PMS, key_PK)[:, 0].mean(dim=0)


@pytest.mark.parametrize("kernel", DRAWING)
def test_draws_follow_the_law(kernel):
    expected = torch.tensor(law(kernel), dtype=torch.float64)
    error = 4 * (expected * (1 - expected) / MANY).sqrt()
    assert ((frequencies(kernel) - expected).abs() <= error + 1e-12).all()


def test_two_steps_of_hard_negative_are_the_squared_matrix():
    matrix = torch.tensor([law("hard_negative", current=k) for k in range(4)], dtype=torch.float64)
    expected = (matrix @ matrix)[0]
    assert ((frequencies("hard_negative", num_steps=2) - expected).abs() <= 4 * (0.25 / MANY) ** 0.5).all()
    weight = torch.tensor(R, dtype=torch.float64).exp()
    still = weight * (weight.sum() - weight)
    torch.testing.assert_close(still @ matrix, still)  # what the chain leaves unchanged: e^r (Z − e^r)


def test_two_steps_of_cis_choose_within_one_part_after_the_other():
    """Each candidate falls into either part with probability 1/2; averaged over all eight deals."""
    expected = torch.zeros(4, dtype=torch.float64)
    for deal in range(8):
        state = {0: 1.0}
        for part in (0, 1):
            shown = [k for k in (1, 2, 3) if (deal >> (k - 1)) & 1 == part]
            moved: dict[int, float] = {}
            for here, mass in state.items():
                places = [here, *shown]
                for place, share in zip(places, softmax([R[k] for k in places]), strict=True):
                    moved[place] = moved.get(place, 0.0) + mass * share
            state = moved
        for place, mass in state.items():
            expected[place] += mass / 8
    assert ((frequencies("cis", num_steps=2) - expected).abs() <= 4 * (0.25 / MANY) ** 0.5).all()


def test_draws_are_fresh_at_each_visit_and_the_same_for_the_same_seed():
    groups = golden(64)
    once, again = gradient(groups), gradient(groups)
    assert torch.equal(once, again)
    other = gradient(replace(groups, draw_seed_P=groups.draw_seed_P + 1000))
    assert 0 < (once != other).any(dim=1).double().mean().item() < 1


def test_draws_do_not_depend_on_the_neighbours():
    groups = golden(8)
    alone = [mc_po(replace(golden(), draw_seed_P=torch.tensor([seed])), num_steps=2).loss_P for seed in range(8)]
    torch.testing.assert_close(mc_po(groups, num_steps=2).loss_P, torch.cat(alone), rtol=0, atol=0)


# The objective -------------------------------------------------------------------------------------------------------


def test_expected_weights_of_the_golden_contest():
    score_K = torch.tensor(R, dtype=torch.float64)
    omega = softmax(R[1:])
    derived = [w * sigmoid(r - R[0]) for w, r in zip(omega, R[1:], strict=True)]
    weights = mean_gradient("hard_negative", score_K, "ranking")[1:].tolist()
    assert weights == pytest.approx(derived, abs=1e-12)
    assert weights == pytest.approx([0.124346, 0.055591, 0.346238], abs=1e-6)
    assert row_gradient("rnce", score_K)[1:].tolist() == pytest.approx([0.206540, 0.125273, 0.415920], abs=1e-6)
    # same direction, another gate: ω_k σ(LSE_j r_j − r_0)
    gate = sigmoid(math.log(sum(map(math.exp, R[1:]))) - R[0])
    assert row_gradient("rnce", score_K)[1:].tolist() == pytest.approx([w * gate for w in omega], abs=1e-12)


@pytest.mark.parametrize(("kernel", "loss"), [("hard_negative", "ranking"), ("cis", "divergence")])
def test_the_mean_of_many_visits_is_the_expected_gradient(kernel, loss):
    mean = gradient(golden(MANY), kernel=kernel, loss=loss).mean(dim=0)
    expected = mean_gradient(kernel, torch.tensor(R, dtype=torch.float64), loss)
    assert ((mean - expected).abs() <= 4 * (0.5 / MANY) ** 0.5).all()


def test_all_is_rnce_and_one_candidate_is_dpo():
    torch.testing.assert_close(mc_po(golden(), kernel="all").loss_P, OBJECTIVES["rnce"].fn(golden(), beta=1.0).loss_P)
    pair = contest(torch.tensor([1.0, -0.5], dtype=torch.float64))
    for kernel in ("hard_negative", "random", "max_margin", "second_best", "all"):
        found = mc_po(replace(pair, draw_seed_P=torch.tensor([5])), kernel=kernel).loss_P.item()
        assert found == pytest.approx(softplus(-1.5), abs=1e-12), kernel


def test_several_draws_count_as_often_as_they_came():
    pair = replace(contest(torch.tensor([1.0, -0.5], dtype=torch.float64)), draw_seed_P=torch.tensor([5]))
    assert mc_po(pair, num_negatives=3).loss_P.item() == pytest.approx(softplus(math.log(3) - 1.5), abs=1e-12)
    assert mc_po(pair, num_negatives=3, loss="divergence").loss_P.item() == pytest.approx(-1.5, abs=1e-12)


def test_cis_draws_of_the_best_itself_are_no_update():
    hopeless = replace(contest(torch.tensor([50.0, 0.0], dtype=torch.float64)), draw_seed_P=torch.tensor([5]))
    for loss in ("ranking", "divergence"):
        result = mc_po(hopeless, kernel="cis", loss=loss)
        assert (result.loss_P.item(), result.is_counted_P.item()) == (0.0, True)


def test_heuristics_go_by_ratings_and_else_by_the_judged_order():
    def drawn(groups: ScoredGroups, kernel: str) -> list[int]:
        return gradient(groups, kernel=kernel)[0].nonzero().flatten().tolist()

    rated = golden(ratings=[9.0, 5.0, 2.0, 4.0])
    assert (drawn(rated, "max_margin"), drawn(rated, "second_best")) == ([0, 2], [0, 1])
    ranked = golden()
    for better, worse in ((3, 1), (3, 2), (1, 2)):  # 0 > 3 > 1 > 2
        ranked.preferred_PKK[0, better, worse] = True
    assert (drawn(ranked, "max_margin"), drawn(ranked, "second_best")) == ([0, 2], [0, 3])


def test_the_false_negative_filter_leaves_out_what_the_policy_prefers_by_more():
    groups = golden(500)
    filtered = gradient(groups, false_negative_margin=0.4)
    assert (filtered[:, 3] == 0).all()  # 0.8 − 0.3 > 0.4
    assert (filtered[:, 1] != 0).any()
    assert torch.equal(gradient(groups, false_negative_margin=0.6), gradient(groups))
    drowned = replace(contest(torch.tensor([0.0, 2.0], dtype=torch.float64)), draw_seed_P=torch.tensor([1]))
    for kernel in ("hard_negative", "cis", "all"):
        result = mc_po(drowned, kernel=kernel, false_negative_margin=1.0)
        assert (result.loss_P.item(), result.is_counted_P.item()) == (0.0, True), kernel


def test_corrected_scores_enter_the_draw_and_the_loss():
    """r + log π_ref − log q; when the policy itself wrote the responses, (β − 1) u."""
    log_ratio, beta = [1.0, 0.2, -0.5], 0.3
    groups = replace(contest(torch.tensor(log_ratio, dtype=torch.float64)), draw_seed_P=torch.tensor([1]))
    groups = replace(groups, behaviour_logps_PK=groups.policy_logps_PK)
    scores = [(beta - 1) * u for u in log_ratio]
    expected = -math.log(softmax(scores)[0])
    found = OBJECTIVES["mc_po"].fn(groups, beta=beta, kernel="all", correct_proposal=True)
    assert found.loss_P.item() == pytest.approx(expected, abs=1e-12)
    cold = OBJECTIVES["mc_po"].fn(groups, beta=beta, sampler_temperature=1e-3, correct_proposal=True)
    assert cold.loss_P.item() == pytest.approx(softplus(scores[2] - scores[0]), abs=1e-12)  # its hardest is the last


def test_shifting_all_scores_changes_neither_the_draw_nor_the_loss():
    groups = golden(50)
    shifted = replace(groups, policy_logps_PK=(groups.policy_logps_PK - 3.0).detach().requires_grad_())
    for kernel in DRAWING:
        before, after = (mc_po(either, kernel=kernel, num_negatives=2).loss_P for either in (groups, shifted))
        torch.testing.assert_close(before, after, rtol=0, atol=1e-12)


def test_the_gradient_does_not_pass_through_the_draw():
    """At the drawn response it is that of the two-response contest; at the others nothing."""
    found = gradient(golden(200))
    for row in found.tolist():
        (drawn,) = [k for k in (1, 2, 3) if row[k] != 0]
        assert row[drawn] == pytest.approx(sigmoid(R[drawn] - R[0]), abs=1e-12)
        assert row[0] == pytest.approx(-row[drawn], abs=1e-12)


def test_settings_without_effect_are_refused():
    check, defaults = OBJECTIVES["mc_po"].check, OBJECTIVES["mc_po"].defaults()
    check(**defaults)
    for wrong, named in (
        ({"kernel": "all", "num_negatives": 2}, "num_negatives"),
        ({"kernel": "max_margin", "num_negatives": 2}, "num_negatives"),
        ({"kernel": "random", "num_steps": 2}, "num_steps"),
        ({"kernel": "second_best", "sampler_temperature": 0.5}, "sampler_temperature"),
    ):
        with pytest.raises(ValueError, match=named):
            check(**defaults | wrong)


def test_correcting_the_proposal_needs_what_the_sampler_said():
    spec = OBJECTIVES["mc_po"]
    names = [sorted(need.value for need in spec.at({"correct_proposal": on}).needs) for on in (False, True)]
    assert names == [["draws", "preferences"], ["behaviour", "draws", "preferences"]]


# The rows beside it --------------------------------------------------------------------------------------------------


def test_ml_is_by_hand_and_its_unbounded_pair():
    groups = contest(torch.tensor(R, dtype=torch.float64))
    expected = -R[0] + math.log(sum(map(math.exp, R[1:])) / 3)
    assert OBJECTIVES["ml_is"].fn(groups, beta=1.0).loss_P.item() == pytest.approx(expected, abs=1e-12)
    assert row_gradient("ml_is", torch.tensor(R, dtype=torch.float64)).tolist() == pytest.approx(
        [-1.0, *softmax(R[1:])], abs=1e-12
    )
    pair = contest(torch.tensor([100.0, -100.0], dtype=torch.float64))
    assert OBJECTIVES["ml_is"].fn(pair, beta=1.0).loss_P.item() == pytest.approx(-200.0, abs=1e-9)


def test_nce_by_hand_and_its_intercept():
    level = 0.4
    groups = replace(
        contest(torch.tensor(R, dtype=torch.float64)),
        state={"log_normaliser": torch.tensor(level, dtype=torch.float64)},
    )
    z = [r - level - math.log(3) for r in R]
    result = OBJECTIVES["nce"].fn(groups, beta=1.0)
    assert result.loss_P.item() == pytest.approx(softplus(-z[0]) + sum(map(softplus, z[1:])), abs=1e-12)
    slope = sigmoid(-z[0]) - sum(map(sigmoid, z[1:]))
    assert result.state_sums["slope"].item() == pytest.approx(slope, abs=1e-12)
    advance = OBJECTIVES["nce"].state.advance
    moved = advance(groups.state, dict(result.state_sums), beta=1.0, normaliser_rate=0.5)
    assert moved["log_normaliser"].item() == pytest.approx(level - 0.5 * slope, abs=1e-12)


def test_conditional_nce_with_symmetric_noise_at_strength_one_is_cpo_without_its_likelihood():
    groups = contest(torch.tensor([-3.0, -5.0], dtype=torch.float64))
    groups = replace(groups, reference_logps_PK=torch.tensor([[-2.0, -9.0]], dtype=torch.float64))
    symmetric, independent = (
        OBJECTIVES["cnce"].fn(groups, beta=beta, noise=noise).loss_P.item()
        for beta, noise in ((1.0, "symmetric"), (0.4, "independent"))
    )
    assert symmetric == pytest.approx(softplus(-2.0), abs=1e-12)  # log π alone
    assert independent == pytest.approx(softplus(0.4 * 5.0), abs=1e-12)  # u = −1 and 4


def test_conditional_nce_averages_its_negatives():
    groups = contest(torch.tensor(R, dtype=torch.float64))
    expected = sum(softplus(r - R[0]) for r in R[1:]) / 3
    assert OBJECTIVES["cnce"].fn(groups, beta=1.0).loss_P.item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", ["mc_po", "ml_is", "nce", "cnce"])
def test_ties_circles_and_single_responses_are_not_counted(name):
    spec = OBJECTIVES[name]
    for pairs in ([], [(0, 1), (1, 2), (2, 0)]):
        groups = contest(torch.tensor(R, dtype=torch.float64))
        preferred = torch.zeros(1, 4, 4, dtype=torch.bool)
        for better, worse in pairs:
            preferred[0, better, worse] = True
        state = spec.state.start() if spec.state else None
        result = spec.fn(replace(groups, preferred_PKK=preferred, draw_seed_P=torch.tensor([0]), state=state))
        assert (result.loss_P.tolist(), result.is_counted_P.tolist()) == ([0.0], [False])


@pytest.mark.parametrize("name", ["mc_po", "ml_is", "nce", "cnce"])
def test_two_best_are_averaged(name):
    spec, score = OBJECTIVES[name], torch.tensor([1.0, 0.4, -0.5], dtype=torch.float64)

    def loss(pairs: list[tuple[int, int]]) -> float:
        preferred = torch.zeros(1, 3, 3, dtype=torch.bool)
        for better, worse in pairs:
            preferred[0, better, worse] = True
        state = spec.state.start() if spec.state else None
        groups = replace(contest(score), preferred_PKK=preferred, draw_seed_P=torch.tensor([0]), state=state)
        return spec.fn(groups).loss_P.item()

    assert loss([(0, 2), (1, 2)]) == pytest.approx((loss([(0, 2)]) + loss([(1, 2)])) / 2, abs=1e-12)
