"""Derived values, gradients and identities of the objectives that read single tokens.

The pair of the other families, its sums spread over tokens: log π = (−12, −15), log π_ref = (−13, −14.5), lengths
(10, 12). So u = (1, −0.5) and D = 1.5; per token the log-ratio is 0.1 of the better and −0.5/12 of the worse response.
"""

import math
from dataclasses import replace

import pytest
import torch

from accord.groups import ScoredGroups, ScoredTokens, groups_from_pairs
from accord.lab.row_checks import HeldConstants
from accord.objectives import OBJECTIVES
from accord.objectives._ops import tangent_log1mexp
from accord.objectives.pairwise.logistic import dpo
from accord.objectives.token_level import dpo_critical, ld_dpo, salt, tdpo1, tdpo2, token_weighted_dpo, wpo

LENGTHS = (10, 12)
RATIO_W, RATIO_L = 1.0 / 10, -0.5 / 12


def softplus(z: float) -> float:
    return math.log1p(math.exp(z))


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def pair(lengths=LENGTHS, **of_tokens: tuple[float, float]) -> ScoredGroups:
    """The pair, sums spread evenly; each further field of the tokens has one value per response."""
    is_trained_PKT = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    is_trained_PKT = is_trained_PKT[None]

    def spread(values: tuple[float, float], divide: bool = False) -> torch.Tensor:
        per_token = torch.tensor(values, dtype=torch.float64)
        if divide:
            per_token = per_token / torch.tensor(lengths).clamp(min=1)
        return torch.where(is_trained_PKT, per_token[None, :, None], 0.0)

    policy_PKT = spread((-12.0, -15.0), divide=True).requires_grad_()
    tokens = ScoredTokens(
        policy_logps_PKT=policy_PKT,
        reference_logps_PKT=spread((-13.0, -14.5), divide=True),
        is_trained_PKT=is_trained_PKT,
        **{name: spread(values) for name, values in of_tokens.items()},
    )
    whole = groups_from_pairs(
        torch.where(is_trained_PKT, policy_PKT, 0.0).sum(dim=2),
        reference_logps_P2=torch.tensor([[-13.0, -14.5]], dtype=torch.float64),
        num_tokens_P2=torch.tensor([lengths]),
    )
    return replace(whole, tokens=tokens)


def gradient(groups: ScoredGroups, loss: torch.Tensor) -> torch.Tensor:
    """d loss / d log π of every token, (K, T)."""
    assert groups.tokens is not None
    return torch.autograd.grad(loss.sum(), groups.tokens.policy_logps_PKT)[0][0]


# Golden values -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        # K = (0.4, 0.9): 0.04 a token over 10, 0.075 over 12
        (tdpo1(pair(position_kl_PKT=(0.04, 0.075)), beta=0.1), softplus(-0.1 * (1.5 + 0.4 - 0.9))),
        (tdpo2(pair(position_kl_PKT=(0.04, 0.075)), beta=0.1), softplus(-0.1 * (1.5 + 0.5 * (0.4 - 0.9)))),
        # the worse response's last two tokens count half
        (ld_dpo(pair(), beta=0.1, alpha=0.5), softplus(-0.1 * (1.0 - 10 * RATIO_L - 0.5 * 2 * RATIO_L))),
        (dpo_critical(pair(critical_PKT=(0.3, 0.4)), beta=0.1), softplus(-0.1 * (1.0 + 0.6 * 0.5))),
        (
            dpo_critical(pair(critical_PKT=(0.3, 0.4)), beta=0.1, weighted="both"),
            softplus(-0.1 * (0.3 * 1.0 + 0.6 * 0.5)),
        ),
        (token_weighted_dpo(pair(weight_PKT=(0.5, 2.0)), beta=0.1), softplus(-0.1 * (0.5 * 1.0 + 2.0 * 0.5))),
        # mean log π − log Σ π²: −1.2 + 1.0 and −1.25 + 1.2
        (wpo(pair(log_sum_sq_PKT=(-1.0, -1.2)), beta=0.1), math.exp(-0.2 - 0.05) * softplus(-0.15)),
        (wpo(pair(log_sum_sq_PKT=(-2.0, -1.2)), beta=0.1), softplus(-0.15)),  # e^(0.8 − 0.05), held at 1
        (wpo(pair(log_sum_sq_PKT=(-2.0, -1.2)), beta=0.1, max_weight=9.0), math.exp(0.75) * softplus(-0.15)),
    ],
)
def test_values(result, expected):
    assert result.loss_P.item() == pytest.approx(expected, abs=1e-12)


def test_the_specification_s_numbers():
    assert tdpo1(pair(position_kl_PKT=(0.04, 0.075)), beta=0.1).loss_P.item() == pytest.approx(0.644397, abs=1e-6)
    assert tdpo2(pair(position_kl_PKT=(0.04, 0.075)), beta=0.1).loss_P.item() == pytest.approx(0.632599, abs=1e-6)


@pytest.mark.parametrize(
    "result",
    [
        tdpo1(pair(position_kl_PKT=(0.12, 0.1)), beta=0.1),  # 1.2 on both sides
        tdpo2(pair(position_kl_PKT=(0.12, 0.1)), beta=0.1),
        tdpo2(pair(position_kl_PKT=(0.7, 0.1)), beta=0.1, alpha=0.0),
        ld_dpo(pair(), beta=0.1, alpha=1.0),
        ld_dpo(pair(lengths=(7, 7)), beta=0.1, alpha=0.3),  # nothing is longer
        dpo_critical(pair(critical_PKT=(0.7, 0.0)), beta=0.1),
        dpo_critical(pair(critical_PKT=(1.0, 0.0)), beta=0.1, weighted="both"),
        token_weighted_dpo(pair(weight_PKT=(1.0, 1.0)), beta=0.1),
        token_weighted_dpo(pair(weight_PKT=(4.0, 4.0)), beta=0.025),
        wpo(pair(log_sum_sq_PKT=(-1.2, -1.25)), beta=0.1),
    ],
)
def test_limits_that_are_dpo(result):
    assert result.loss_P.item() == pytest.approx(dpo(pair(), beta=0.1).loss_P.item(), abs=1e-12)


# Gradients -----------------------------------------------------------------------------------------------------------


def test_gradients_by_token():
    """β σ(−z) times the weight of each token; z as in the values above."""
    groups = pair()
    found = gradient(groups, ld_dpo(groups, beta=0.1, alpha=0.25).loss_P)
    push = 0.1 * sigmoid(-0.1 * (1.0 - 10 * RATIO_L - 0.25 * 2 * RATIO_L))
    assert found[0].tolist() == pytest.approx([-push] * 10 + [0.0] * 2, abs=1e-12)
    assert found[1].tolist() == pytest.approx([push] * 10 + [0.25 * push] * 2, abs=1e-12)

    groups = pair(critical_PKT=(0.3, 0.4))
    found = gradient(groups, dpo_critical(groups, beta=0.1).loss_P)
    push = 0.1 * sigmoid(-0.13)
    assert found[0].tolist() == pytest.approx([-push] * 10 + [0.0] * 2, abs=1e-12)
    assert found[1].tolist() == pytest.approx([0.6 * push] * 12, abs=1e-12)

    groups = pair(log_sum_sq_PKT=(-1.0, -1.2))
    found = gradient(groups, wpo(groups, beta=0.1).loss_P)
    push = math.exp(-0.25) * 0.1 * sigmoid(-0.15)  # nothing through the weight
    assert found[0].tolist() == pytest.approx([-push] * 10 + [0.0] * 2, abs=1e-12)
    assert found[1].tolist() == pytest.approx([push] * 12, abs=1e-12)


@pytest.mark.parametrize(
    ("objective", "on_chosen", "on_rejected"),
    [(tdpo1, -0.1 * sigmoid(-0.1), 0.1 * sigmoid(-0.1)), (tdpo2, 0.0, 0.05 * sigmoid(-0.125))],
)
def test_divergence_pulls_only_where_the_method_says(objective, on_chosen, on_rejected):
    groups = pair(position_kl_PKT=(0.04, 0.075))
    assert groups.tokens is not None
    kl_PKT = groups.tokens.position_kl_PKT.requires_grad_()
    (found,) = torch.autograd.grad(objective(groups, beta=0.1).loss_P.sum(), kl_PKT)
    assert found[0, 0].tolist() == pytest.approx([on_chosen] * 10 + [0.0] * 2, abs=1e-12)
    assert found[0, 1].tolist() == pytest.approx([on_rejected] * 12, abs=1e-12)


def test_held_constants_are_what_finite_differences_must_not_move():
    """Without holding them, the difference quotient of WPO's loss sees its weight move and disagrees."""
    groups = pair(log_sum_sq_PKT=(-1.0, -1.2))
    assert groups.tokens is not None
    at = groups.tokens.policy_logps_PKT.detach()

    def loss(step: float) -> float:
        moved = at.clone()
        moved[0, 0, 0] += step
        sums = torch.where(groups.tokens.is_trained_PKT, moved, 0.0).sum(dim=2)
        return wpo(
            replace(groups, policy_logps_PK=sums, tokens=replace(groups.tokens, policy_logps_PKT=moved)), beta=0.1
        ).loss_P.item()

    expected = -math.exp(-0.25) * 0.1 * sigmoid(-0.15)
    constants = HeldConstants()
    held = []
    for step in (0.0, 1e-5, -1e-5):
        with constants:
            held.append(loss(step))
    assert (held[1] - held[2]) / 2e-5 == pytest.approx(expected, rel=1e-6)
    assert (loss(1e-5) - loss(-1e-5)) / 2e-5 != pytest.approx(expected, rel=0.1)


# SALT ----------------------------------------------------------------------------------------------------------------


def edited(probabilities=((0.8, 0.4, 0.5), (0.8, 0.6)), kept=((True, False, True), (True, False))) -> ScoredGroups:
    """An edit of three tokens beside a draft of two."""
    shape = (1, 2, 3)
    policy_PKT, is_kept = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.bool)
    is_trained = torch.zeros(shape, dtype=torch.bool)
    for k, row in enumerate(probabilities):
        policy_PKT[0, k, : len(row)] = torch.tensor(row, dtype=torch.float64).log()
        is_kept[0, k, : len(row)] = torch.tensor(kept[k])
        is_trained[0, k, : len(row)] = True
    policy_PKT.requires_grad_()
    whole = groups_from_pairs(policy_PKT.sum(dim=2), num_tokens_P2=torch.tensor([[len(row) for row in probabilities]]))
    return replace(
        whole, tokens=ScoredTokens(policy_logps_PKT=policy_PKT, is_trained_PKT=is_trained, is_kept_PKT=is_kept)
    )


def test_salt_imitates_the_edit_and_takes_the_changed_tokens_out():
    groups = edited()
    imitated, taken_out = -(math.log(0.8) + math.log(0.4) + math.log(0.5)) / 3, -0.1 * math.log(1 - 0.6)
    result = salt(groups)
    assert result.loss_P.item() == pytest.approx(imitated + taken_out, abs=1e-12)
    found = gradient(groups, result.loss_P)
    assert found[0].tolist() == pytest.approx([-1 / 3] * 3, abs=1e-12)
    assert found[1].tolist() == pytest.approx([0.0, 0.1 * 0.6 / 0.4, 0.0], abs=1e-12)


def test_salt_s_weights_by_kind_of_token():
    weights = {"chosen_kept_weight": 0.0, "chosen_changed_weight": 2.0, "rejected_kept_weight": 0.5}
    expected = -2.0 * math.log(0.4) - 0.1 * math.log(1 - 0.6) - 0.5 * math.log(0.8)
    assert salt(edited(), **weights).loss_P.item() == pytest.approx(expected, abs=1e-12)


def test_salt_of_an_identical_pair_is_imitation():
    same = edited(((0.8, 0.4), (0.8, 0.4)), ((True, True), (True, True)))
    assert salt(same).loss_P.item() == pytest.approx(-(math.log(0.8) + math.log(0.4)) / 2, abs=1e-12)


def test_salt_of_an_empty_response_has_only_the_other_half():
    no_draft, no_edit = edited(((0.8,), ()), ((False,), ())), edited(((), (0.6,)), ((), (False,)))
    assert salt(no_draft).loss_P.item() == pytest.approx(-math.log(0.8), abs=1e-12)
    assert salt(no_edit).loss_P.item() == pytest.approx(-0.1 * math.log(0.4), abs=1e-12)


def test_salt_s_published_softmax_of_log_1_minus_p_is_a_constant_away():
    """Σ_v (1 − p_v) = V − 1, so normalising log(1 − p) once more shifts it by log(V − 1): the same gradient."""
    logits = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    log_1_minus_p = tangent_log1mexp(logits.log_softmax(dim=-1))
    published = torch.log_softmax(log_1_minus_p, dim=-1)
    torch.testing.assert_close(published, log_1_minus_p - math.log(7 - 1))


def test_a_certain_token_is_still_pushed_away():
    """p = 1 in float32: log(1 − p) is −∞; the tangent at exp(−1e-6) is finite and keeps its slope of −1e6."""
    logp = torch.tensor([0.0, -1e-6, -1e-3], dtype=torch.float32, requires_grad=True)
    value = tangent_log1mexp(logp)
    (slope,) = torch.autograd.grad(value.sum(), logp)
    assert value.tolist() == pytest.approx([math.log(1e-6) - 1, math.log(1e-6), math.log(1e-3)], rel=1e-3)
    assert slope[0].item() == pytest.approx(-1e6, rel=1e-2)
    assert slope[2].item() == pytest.approx(-1 / math.expm1(1e-3), rel=1e-4)


# Edges ---------------------------------------------------------------------------------------------------------------

FACTS = {
    "wpo": {"log_sum_sq_PKT": (-1.0, -1.0)},
    "ld_dpo": {},
    "tdpo1": {"position_kl_PKT": (0.1, 0.1)},
    "tdpo2": {"position_kl_PKT": (0.1, 0.1)},
    "dpo_critical": {"critical_PKT": (0.5, 0.5)},
    "token_weighted_dpo": {"weight_PKT": (1.0, 1.0)},
}


@pytest.mark.parametrize("name", FACTS)
def test_a_tie_is_no_pair_and_an_empty_response_no_error(name):
    groups = pair(**FACTS[name])
    tie = replace(groups, preferred_PKK=torch.zeros(1, 2, 2, dtype=torch.bool))
    result = OBJECTIVES[name].fn(tie)
    assert (result.loss_P.item(), result.is_counted_P.item()) == (0.0, False)
    empty = pair(lengths=(10, 0), **FACTS[name])
    assert OBJECTIVES[name].fn(empty).loss_P.isfinite().all()


def test_ld_dpo_counts_trained_tokens_wherever_they_stand():
    """A turn of the user inside a response is neither weighed nor counted."""
    groups = pair(lengths=(2, 4))
    assert groups.tokens is not None
    is_trained = torch.tensor([[[True, True, False, False], [True, False, True, True]]])
    tokens = replace(groups.tokens, is_trained_PKT=is_trained)
    # of the worse response's three trained tokens the first two count fully, the third half
    expected = softplus(-0.1 * (1.0 - (2 + 0.5) * -0.5 / 4))
    assert ld_dpo(replace(groups, tokens=tokens), alpha=0.5).loss_P.item() == pytest.approx(expected, abs=1e-12)


def test_ld_dpo_of_a_ranking_cuts_at_each_pair_s_shorter_response():
    lengths, ratio = (1, 2, 3), torch.tensor([0.5, -0.25, 0.125], dtype=torch.float64)
    is_trained = (torch.arange(3) < torch.tensor(lengths)[:, None])[None]
    policy = torch.where(is_trained, ratio[None, :, None], 0.0)
    tokens = ScoredTokens(
        policy_logps_PKT=policy, reference_logps_PKT=torch.zeros_like(policy), is_trained_PKT=is_trained
    )
    groups = ScoredGroups(
        policy_logps_PK=policy.sum(2), reference_logps_PK=torch.zeros(1, 3, dtype=torch.float64),
        num_tokens_PK=torch.tensor([lengths]), is_valid_PK=torch.ones(1, 3, dtype=torch.bool),
        preferred_PKK=torch.ones(3, 3, dtype=torch.bool).triu(1)[None], tokens=tokens,
    )  # fmt: skip
    margins = (0.5 - (-0.25 * 1.5), 0.5 - 0.125 * 2, 2 * -0.25 - 0.125 * 2.5)  # pairs (0, 1), (0, 2), (1, 2), α = 1/2
    expected = sum(softplus(-0.1 * margin) for margin in margins) / 3
    assert ld_dpo(groups, beta=0.1, alpha=0.5).loss_P.item() == pytest.approx(expected, abs=1e-12)
