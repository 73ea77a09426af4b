"""Objectives of a rollout against published implementations as numbers, and against what they must be by hand."""

import itertools
import math
from dataclasses import replace
from typing import get_args

import pytest
import torch

from accord.groups import ScoredGroups, ScoredTokens
from accord.objectives import OBJECTIVES, Need
from accord.objectives.policy_gradient.parts import Shared, off_policy_weights, sampler_weights

LENGTHS = (5, 3, 4, 2)
ADVANTAGE = (1.0, -1.0, 0.5, -0.5)
DELTA = ((0.30, -0.25, 0.10, 0.0, -0.40), (0.05, 0.35, -0.10), (-0.30, 0.20, 0.50, -0.05), (0.02, 0.26))
OLD = ((-1.0, -0.5, -2.0, -1.5, -0.2), (-0.7, -0.3, -1.1), (-2.2, -0.9, -0.4, -0.6), (-0.1, -1.9))
REFERENCE_GAP = ((0.1, 0.0, -0.2, 0.1, 0.0), (0.0, -0.1, 0.2), (0.3, 0.1, -0.1, 0.0), (-0.05, 0.1))
RATIO_ROWS = ("reinforce", "ppo_clip", "cispo", "gspo", "luspo", "rloo_clip")


def padded(rows) -> torch.Tensor:
    """Four responses as two groups of two, five tokens wide."""
    return torch.tensor([[*row, *[0.0] * (5 - len(row))] for row in rows], dtype=torch.float64).view(2, 2, 5)


def rollout(delta=DELTA, **changes) -> ScoredGroups:
    """The fixed rollout of the golden numbers: ℓ = ℓ_old + Δ."""
    is_trained_PKT = (torch.arange(5) < torch.tensor(LENGTHS)[:, None]).view(2, 2, 5)
    old_PKT = padded(OLD)
    tokens = ScoredTokens(
        policy_logps_PKT=(old_PKT + padded(delta)).requires_grad_(),
        reference_logps_PKT=old_PKT + padded(REFERENCE_GAP),
        old_logps_PKT=old_PKT,
        advantage_PKT=padded([[a] * n for a, n in zip(ADVANTAGE, LENGTHS, strict=True)]),
        is_trained_PKT=is_trained_PKT,
    )
    return of_tokens(replace(tokens, **changes))


def of_tokens(tokens: ScoredTokens) -> ScoredGroups:
    assert tokens.reference_logps_PKT is not None
    return ScoredGroups(
        policy_logps_PK=tokens.policy_logps_PKT.sum(-1),
        reference_logps_PK=tokens.reference_logps_PKT.sum(-1),
        num_tokens_PK=tokens.is_trained_PKT.sum(-1),
        is_valid_PK=torch.ones(tokens.is_trained_PKT.shape[:2], dtype=torch.bool),
        tokens=tokens,
    )


def loss_of(groups: ScoredGroups, name: str, **settings) -> torch.Tensor:
    """The loss as the loop divides it."""
    result = OBJECTIVES[name].fn(groups, **settings)
    return result.loss_P.sum() / result.denominators().sum()


def gradient_of(groups: ScoredGroups, name: str, **settings) -> torch.Tensor:
    (gradient,) = torch.autograd.grad(loss_of(groups, name, **settings), groups.tokens.policy_logps_PKT)
    return gradient


GRPO = {"aggregation": "seq_mean_token_mean"}
WIDE = {"clip_low": 0.2, "clip_high": 0.2}


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("ppo_clip", GRPO, 0.0604943098),
        ("ppo_clip", {"aggregation": "token_mean"}, -0.1618981281),
        ("ppo_clip", {"aggregation": "token_mean", "clip_high": 0.28}, -0.1712339409),
        ("ppo_clip", {"aggregation": "constant", "max_length": 8}, -0.0708304310),
        ("gspo", WIDE, 0.0458393152),
        ("gspo", WIDE | {"per_token": True}, 0.0458393152),
        ("gspo", {}, 0.0572195983),
        ("ppo_clip", GRPO | {"kl_coef": 0.04, "kl_estimator": "k3", "kl_weight": "none"}, 0.0623531232),
        ("ppo_clip", GRPO | {"kl_coef": 0.04, "kl_estimator": "k3", "kl_weight": "ratio"}, 0.0625242324),
        ("ppo_clip", GRPO | {"kl_coef": 0.04, "kl_estimator": "k3", "kl_weight": "held_ratio"}, 0.0625242324),
        ("ppo_clip", GRPO | {"delta": 1.1}, 0.0476890963),
        ("luspo", WIDE, -0.6183112746),
        ("rloo_clip", WIDE, 0.1581557327),
        ("cispo", {}, 0.3060886783),
    ],
)
def test_losses_are_those_of_the_published_trainer(name, settings, expected):
    assert loss_of(rollout(), name, **settings).item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        (
            "ppo_clip", GRPO,
            ((0, -0.038940, -0.055259, -0.05, -0.033516), (0.087606, 0.118256, 0.075403),
             (-0.023151, 0, 0, -0.029726), (0.063763, 0.081058)),
        ),
        (
            "ppo_clip", {"aggregation": "token_mean"},
            ((0, -0.055629, -0.078941, -0.071429, -0.047880), (0.075091, 0.101362, 0.064631),
             (-0.026458, 0, 0, -0.033972), (0.036436, 0.046319)),
        ),
        ("gspo", WIDE, ([-0.047561] * 5, [0.092098] * 3, [-0.034108] * 4, [0.071892] * 2)),
        ("gspo", WIDE | {"per_token": True}, ([-0.047561] * 5, [0.092098] * 3, [-0.034108] * 4, [0.071892] * 2)),
        (
            "cispo", {},
            ((-0.091429, -0.055629, -0.078941, -0.071429, -0.047880), (0.075091, 0.091429, 0.064631),
             (-0.026458, -0.043622, -0.045714, -0.033972), (0.036436, 0.045714)),
        ),
    ],
)  # fmt: skip
def test_gradients_are_those_of_the_published_trainer(name, settings, expected):
    torch.testing.assert_close(gradient_of(rollout(), name, **settings), padded(expected), atol=1e-6, rtol=0)


def test_a_clipped_token_has_no_gradient_and_a_bad_one_with_a_large_ratio_keeps_it():
    gradient = gradient_of(rollout(), "ppo_clip", **GRPO)
    ratio, advantage = padded(DELTA).exp(), padded([[a] * n for a, n in zip(ADVANTAGE, LENGTHS, strict=True)])
    is_clipped = ((ratio > 1.2) & (advantage > 0)) | ((ratio < 0.8) & (advantage < 0))
    assert torch.equal(gradient == 0, is_clipped | (advantage == 0))
    assert gradient[0, 1, 1] > 0  # A = −1, ρ = e^0.35 = 1.42


# Aggregation ---------------------------------------------------------------------------------------------------------

AGGREGATIONS = ("seq_mean_token_mean", "token_mean", "constant", "seq_mean_token_sum")


@pytest.mark.parametrize("name", RATIO_ROWS)
def test_all_aggregations_agree_but_for_the_length_when_lengths_are_equal(name):
    tokens = rollout().tokens
    equal = of_tokens(replace(tokens, is_trained_PKT=(torch.arange(5) < 2).expand(2, 2, 5)))
    losses = [loss_of(equal, name, aggregation=choice, max_length=8).item() for choice in AGGREGATIONS]
    assert losses[1] == pytest.approx(losses[0])
    assert losses[2] == pytest.approx(losses[0] * 2 / 8)
    assert losses[3] == pytest.approx(losses[0] * 2)


def test_aggregations_by_hand():
    """REINFORCE with A = 1: the loss is the named mean of −ℓ over 2 + 1 tokens."""
    is_trained = torch.tensor([[[True, True], [True, False]]])
    logps = torch.tensor([[[-1.0, -2.0], [-6.0, 0.0]]])
    tokens = ScoredTokens(
        policy_logps_PKT=logps, reference_logps_PKT=logps, old_logps_PKT=logps, is_trained_PKT=is_trained,
        advantage_PKT=torch.ones(1, 2, 2),
    )  # fmt: skip
    losses = [loss_of(of_tokens(tokens), "reinforce", aggregation=a, max_length=10).item() for a in AGGREGATIONS]
    assert losses == pytest.approx([(3 / 2 + 6) / 2, 9 / 3, 9 / (2 * 10), 9 / 2])


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("cuts", [(2, 2), (1, 3), (1, 1, 1, 1)])
def test_cutting_a_batch_into_micro_batches_changes_nothing(aggregation, cuts):
    """Four prompts of one response each, of lengths 5, 3, 4 and 2, summed part by part and divided once."""
    tokens = rollout().tokens
    flat = {
        key: value.detach().reshape(4, 1, 5)
        for key in ("policy_logps_PKT", "reference_logps_PKT", "old_logps_PKT", "advantage_PKT", "is_trained_PKT")
        if (value := getattr(tokens, key)) is not None
    }
    settings = {"aggregation": aggregation, "max_length": 8, "kl_coef": 0.1}
    whole = loss_of(of_tokens(ScoredTokens(**flat)), "ppo_clip", **settings)
    starts = [0, *itertools.accumulate(cuts)]
    parts = [
        OBJECTIVES["ppo_clip"].fn(
            of_tokens(ScoredTokens(**{key: value[a:b] for key, value in flat.items()})), **settings
        )
        for a, b in itertools.pairwise(starts)
    ]
    summed = sum(part.loss_P.sum() for part in parts) / sum(part.denominators().sum() for part in parts)
    assert summed.item() == pytest.approx(whole.item(), abs=1e-12)


def test_a_local_token_mean_would_depend_on_the_cut_and_is_refused_by_name():
    for name in RATIO_ROWS:
        with pytest.raises(ValueError, match="changes with how the batch is cut up"):
            loss_of(rollout(), name, aggregation="local_token_mean")
        assert "aggregation=local_token_mean" in OBJECTIVES[name].refused


def test_dr_grpo_counts_each_token_once_where_grpo_divides_by_length():
    """A response whose every token stands twice: the gradient on it doubles under "constant", not under GRPO."""
    tokens = rollout().tokens

    def total(factor: int, **settings) -> float:
        wide = {
            key: torch.cat([value.detach()] * factor, dim=2)
            for key in ("policy_logps_PKT", "reference_logps_PKT", "old_logps_PKT", "advantage_PKT", "is_trained_PKT")
            if (value := getattr(tokens, key)) is not None
        }
        wide["policy_logps_PKT"].requires_grad_()
        groups = of_tokens(ScoredTokens(**wide))
        return gradient_of(groups, "ppo_clip", **settings)[0, 1].sum().item()

    constant = {"aggregation": "constant", "max_length": 8}
    assert total(2, **constant) == pytest.approx(2 * total(1, **constant))
    assert total(2, **GRPO) == pytest.approx(total(1, **GRPO))


# On-policy -----------------------------------------------------------------------------------------------------------

ON_POLICY = tuple((0.0,) * n for n in LENGTHS)


def test_on_policy_all_ratios_are_one_and_all_methods_of_one_aggregation_have_one_gradient():
    for aggregation in AGGREGATIONS:
        settings = {"aggregation": aggregation, "max_length": 8}
        expected = gradient_of(rollout(ON_POLICY), "reinforce", **settings)
        for name in ("ppo_clip", "cispo"):
            torch.testing.assert_close(gradient_of(rollout(ON_POLICY), name, **settings), expected)
    expected = gradient_of(rollout(ON_POLICY), "reinforce", aggregation="seq_mean_token_mean")
    torch.testing.assert_close(gradient_of(rollout(ON_POLICY), "gspo"), expected)
    sums = gradient_of(rollout(ON_POLICY), "reinforce")
    torch.testing.assert_close(gradient_of(rollout(ON_POLICY), "rloo_clip"), sums)
    torch.testing.assert_close(gradient_of(rollout(ON_POLICY), "luspo"), sums)


def test_gspo_of_one_token_is_grpo():
    one = replace(rollout().tokens, is_trained_PKT=(torch.arange(5) < 1).expand(2, 2, 5))
    for clip in ({"clip_low": 0.2, "clip_high": 0.28}, {"clip_low": 0.01, "clip_high": 0.01}):
        torch.testing.assert_close(
            gradient_of(of_tokens(one), "gspo", **clip), gradient_of(of_tokens(one), "ppo_clip", **GRPO, **clip)
        )


@pytest.mark.parametrize("name", RATIO_ROWS)
def test_zero_advantages_leave_the_kl_alone(name):
    tokens = rollout().tokens
    still = of_tokens(replace(tokens, advantage_PKT=torch.zeros(2, 2, 5, dtype=torch.float64)))
    assert not gradient_of(still, name).any()
    kl = gradient_of(still, name, kl_coef=0.5, kl_weight="none", aggregation="seq_mean_token_sum")
    expected = 0.5 * (padded(DELTA) - padded(REFERENCE_GAP)) / 4  # ∇k2 = u, mean over four responses
    torch.testing.assert_close(kl, torch.where(tokens.is_trained_PKT, expected, 0.0))


@pytest.mark.parametrize("name", RATIO_ROWS)
def test_a_response_without_trained_tokens_is_in_no_mean(name):
    """Its reward is unknown, or it was cut and masked: the other three decide alone; all masked is no division by 0."""
    groups = rollout()
    is_trained = groups.tokens.is_trained_PKT.clone()
    is_trained[0, 1] = False
    result = OBJECTIVES[name].fn(of_tokens(replace(groups.tokens, is_trained_PKT=is_trained)), aggregation="token_mean")
    assert result.denominators().tolist() == [5.0, 6.0]
    nothing = of_tokens(replace(groups.tokens, is_trained_PKT=torch.zeros_like(is_trained)))
    for aggregation in AGGREGATIONS:
        result = OBJECTIVES[name].fn(nothing, aggregation=aggregation)
        assert not result.is_counted_P.any()
        assert result.loss_P.tolist() == result.denominators().tolist() == [0.0, 0.0]


@pytest.mark.parametrize("name", RATIO_ROWS)
def test_padding_tokens_change_nothing(name):
    tokens = rollout().tokens

    def wider(value: torch.Tensor, filler: float) -> torch.Tensor:
        return torch.nn.functional.pad(value, (0, 3), value=filler)

    padded_tokens = ScoredTokens(
        policy_logps_PKT=wider(tokens.policy_logps_PKT, -7.0),
        reference_logps_PKT=wider(tokens.reference_logps_PKT, 0.0),
        old_logps_PKT=wider(tokens.old_logps_PKT, 0.0),
        advantage_PKT=wider(tokens.advantage_PKT, 9.0),
        is_trained_PKT=wider(tokens.is_trained_PKT, False),
    )
    for aggregation in AGGREGATIONS:
        settings = {"aggregation": aggregation, "kl_coef": 0.3}
        expected = loss_of(rollout(), name, **settings)
        assert loss_of(of_tokens(padded_tokens), name, **settings).item() == pytest.approx(expected.item(), abs=1e-12)


# Bounds, values, entropy ---------------------------------------------------------------------------------------------


def one_token(log_ratio: float, advantage: float, **more) -> ScoredGroups:
    logps = torch.tensor([[[log_ratio]]], dtype=torch.float64, requires_grad=True)
    return of_tokens(
        ScoredTokens(
            policy_logps_PKT=logps, reference_logps_PKT=torch.zeros_like(logps), old_logps_PKT=torch.zeros_like(logps),
            advantage_PKT=torch.full_like(logps, advantage), is_trained_PKT=torch.ones(1, 1, 1, dtype=torch.bool),
            **{key: torch.tensor([[[value]]], dtype=torch.float64) for key, value in more.items()},
        )
    )  # fmt: skip


def test_dual_clip_bounds_the_loss_of_bad_tokens_only():
    bad, good = one_token(math.log(10.0), -1.0), one_token(math.log(10.0), 1.0)
    assert loss_of(bad, "ppo_clip").item() == pytest.approx(10.0)
    assert loss_of(bad, "ppo_clip", dual_clip=3.0).item() == pytest.approx(3.0)
    assert gradient_of(bad, "ppo_clip", dual_clip=3.0).item() == 0.0
    assert loss_of(good, "ppo_clip", dual_clip=3.0).item() == pytest.approx(-1.2)


@pytest.mark.parametrize(
    ("value", "old", "target", "expected"),
    [
        (1.0, 1.0, 0.0, 0.5),  # (1 − 0)²/2
        (0.5, 1.0, 0.0, 0.32),  # it came closer by more than 0.2: (1 − 0.2 − 0)²/2
        (1.5, 1.0, 0.0, 1.125),  # it went away: nothing is held back, 1.5²/2
    ],
)
def test_the_critic_is_charged_for_its_clipped_step_where_that_is_worse(value, old, target, expected):
    groups = one_token(0.0, 0.0, value_PKT=value, old_value_PKT=old, return_PKT=target)
    assert loss_of(groups, "ppo_clip", value_coef=1.0).item() == pytest.approx(expected)
    assert loss_of(groups, "ppo_clip", value_coef=0.1).item() == pytest.approx(0.1 * expected)
    assert loss_of(groups, "ppo_clip").item() == 0.0


def test_entropy_is_taken_off_token_by_token():
    groups = one_token(0.0, 0.0, entropy_PKT=2.0)
    assert loss_of(groups, "ppo_clip", entropy_coef=0.01).item() == pytest.approx(-0.02)


def test_settings_that_need_more_say_so():
    spec = OBJECTIVES["ppo_clip"]
    plain = spec.at(spec.defaults())
    assert (plain.needs, plain.reference) == (frozenset({Need.TOKENS, Need.ADVANTAGES}), False)
    full = spec.at(
        spec.defaults()
        | {"kl_coef": 0.1, "value_coef": 0.1, "entropy_coef": 0.01, "sampler_correction": "token_truncate"}
    )
    assert full.reference
    assert full.needs - plain.needs == {Need.VALUES, Need.ENTROPY, Need.SAMPLER_LOGPS}
    assert Need.SAMPLER_LOGPS in spec.at(spec.defaults() | {"off_policy_mask": 0.1}).needs


@pytest.mark.parametrize("name", RATIO_ROWS)
def test_k1_in_the_loss_is_refused_with_the_reason(name):
    with pytest.raises(ValueError, match="its expected gradient is 0"):
        loss_of(rollout(), name, kl_coef=0.1, kl_estimator="k1")
    assert "kl_estimator=k1" in OBJECTIVES[name].refused


@pytest.mark.parametrize("name", RATIO_ROWS)
def test_shared_settings_are_offered_with_the_rows_own_defaults_and_no_others(name):
    spec = OBJECTIVES[name]
    assert spec.shared_settings <= set(spec.settings())
    own = {"reinforce": "seq_mean_token_sum", "luspo": "seq_mean_token_sum", "ppo_clip": "token_mean"}
    expected = own.get(name, "token_mean" if name == "cispo" else "seq_mean_token_mean")
    assert spec.defaults()["aggregation"] == expected
    assert torch.equal(loss_of(rollout(), name), loss_of(rollout(), name, **spec.defaults()))
    for key in spec.refused:
        setting, _, choice = key.partition("=")
        assert choice not in get_args(spec.settings()[setting].annotation)
    with pytest.raises(TypeError):
        loss_of(rollout(), name, no_such_setting=1.0)


# Sampler against trainer ---------------------------------------------------------------------------------------------


def drawn_elsewhere(gap: torch.Tensor) -> ScoredGroups:
    """A rollout whose sampler said ℓ_old − gap."""
    tokens = rollout().tokens
    return of_tokens(replace(tokens, sampler_logps_PKT=torch.where(tokens.is_trained_PKT, padded(OLD) - gap, 0.0)))


MODES = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")


@pytest.mark.parametrize("mode", MODES)
def test_weights_are_one_when_the_sampler_is_the_trained_model(mode):
    groups = drawn_elsewhere(torch.zeros(2, 2, 5, dtype=torch.float64))
    assert sampler_weights(groups, Shared(sampler_correction=mode)).unique().tolist() == [1.0]
    for name in RATIO_ROWS:
        expected = gradient_of(groups, name)
        assert torch.equal(gradient_of(groups, name, sampler_correction=mode, sampler_cap=1.5), expected)


def test_weights_by_hand():
    """Token log-weights of the last response (ln 2, ln 3): its whole weight is 6."""
    gap = torch.zeros(2, 2, 5, dtype=torch.float64)
    gap[1, 1, :2] = torch.tensor([2.0, 3.0]).log()
    groups = drawn_elsewhere(gap)

    def last(mode: str, **bounds) -> list[float]:
        return sampler_weights(groups, Shared(sampler_correction=mode, **bounds))[1, 1, :2].tolist()

    assert last("token_truncate", sampler_cap=2.5) == pytest.approx([2.0, 2.5])
    assert last("token_mask", sampler_cap=2.5) == pytest.approx([2.0, 0.0])
    assert last("token_mask", sampler_cap=4.0, sampler_floor=2.5) == pytest.approx([0.0, 3.0])
    assert last("sequence_truncate", sampler_cap=5.0) == pytest.approx([5.0, 5.0])
    assert last("sequence_mask", sampler_cap=5.0) == [0.0, 0.0]
    assert last("sequence_mask", sampler_cap=7.0) == pytest.approx([6.0, 6.0])


def test_a_mismatch_of_a_thousand_nats_stays_finite():
    groups = drawn_elsewhere(torch.full((2, 2, 5), 1e3, dtype=torch.float64))
    for mode in MODES:
        assert loss_of(groups, "ppo_clip", sampler_correction=mode).isfinite()


def test_bad_responses_that_the_policy_has_left_are_masked():
    """mean_t(ℓ_μ − ℓ) with ℓ_μ = ℓ_old is −mean Δ: .05 for the first response, −.1, −.0875 and −.14 for the others."""
    groups = drawn_elsewhere(torch.zeros(2, 2, 5, dtype=torch.float64))
    assert off_policy_weights(groups, 0.01).unique().tolist() == [1.0]  # the first has A = 1: kept
    flipped = of_tokens(replace(groups.tokens, advantage_PKT=-groups.tokens.advantage_PKT))
    weight = off_policy_weights(flipped, 0.04)
    assert weight[0, 0].tolist() == [0.0] * 5
    assert weight[0, 1].unique().tolist() == weight[1].unique().tolist() == [1.0]
    assert off_policy_weights(flipped, 0.06).unique().tolist() == [1.0]
    assert not gradient_of(flipped, "ppo_clip", off_policy_mask=0.04)[0, 0].any()


def test_truncation_loses_less_bias_the_higher_the_cap():
    """A bandit whose sampler differs from the trained policy: the gap to E_π[A ∇ log π] falls with the cap."""
    logits = torch.tensor([0.2, -0.1, 0.4, 0.0], dtype=torch.float64, requires_grad=True)
    logp = logits.log_softmax(0)
    sampler = torch.tensor([0.1, 0.4, 0.1, 0.4], dtype=torch.float64)
    reward = torch.tensor([0.0, 1.0, 2.0, 3.0], dtype=torch.float64)
    (exact,) = torch.autograd.grad((logp.exp() * reward).sum(), logits, retain_graph=True)

    def bias(**settings) -> float:
        tokens = ScoredTokens(
            policy_logps_PKT=logp[:, None, None], reference_logps_PKT=logp.detach()[:, None, None],
            old_logps_PKT=logp.detach()[:, None, None], sampler_logps_PKT=sampler.log()[:, None, None],
            advantage_PKT=reward[:, None, None], is_trained_PKT=torch.ones(4, 1, 1, dtype=torch.bool),
        )  # fmt: skip
        loss_P = OBJECTIVES["reinforce"].fn(of_tokens(tokens), **settings).loss_P
        (found,) = torch.autograd.grad((sampler * loss_P).sum(), logits, retain_graph=True)
        return (found + exact).norm().item()

    plain = bias()
    biases = [bias(sampler_correction="token_truncate", sampler_cap=cap) for cap in (1.0, 1.5, 2.0, 2.5, 3.5)]
    assert biases == sorted(biases, reverse=True)
    assert biases[0] < plain
    assert biases[-1] == pytest.approx(0.0, abs=1e-12)  # beyond the largest weight, 0.32/0.1, nothing is cut


# Samples that need no advantage --------------------------------------------------------------------------------------


def test_raft_shares_one_weight_among_ties_and_knows_a_threshold():
    groups = ScoredGroups(
        policy_logps_PK=torch.tensor([[-2.0, -3.0, -4.0, -9.0]]), num_tokens_PK=torch.tensor([[4, 6, 1, 1]]),
        is_valid_PK=torch.ones(1, 4, dtype=torch.bool), reward_PK=torch.tensor([[1.0, 1.0, 0.0, 5.0]]),
        is_rated_PK=torch.tensor([[True, True, True, False]]),
    )  # fmt: skip
    by_sequence = OBJECTIVES["raft"].fn(groups, reduction="sequence")
    assert (by_sequence.loss_P.item(), by_sequence.denominators().item()) == (2.5, 1.0)
    by_token = OBJECTIVES["raft"].fn(groups)
    assert (by_token.loss_P.item(), by_token.denominators().item()) == (2.5, 5.0)
    above = OBJECTIVES["raft"].fn(groups, threshold=2.0)
    assert not above.is_counted_P.any()


def test_xpo_pulls_the_opponents_sample_down_by_alpha():
    logps = torch.tensor([[-2.0, -3.0]], dtype=torch.float64, requires_grad=True)
    groups = ScoredGroups(
        policy_logps_PK=logps, reference_logps_PK=logps.detach(), num_tokens_PK=torch.ones(1, 2, dtype=torch.long),
        is_valid_PK=torch.ones(1, 2, dtype=torch.bool), is_own_PK=torch.tensor([[True, False]]),
        preferred_PKK=torch.tensor([[[False, True], [False, False]]]),
    )  # fmt: skip
    found = [
        torch.autograd.grad(OBJECTIVES["xpo"].fn(groups, beta=0.1, alpha=a).loss_P.sum(), logps)[0] for a in (0.0, 0.01)
    ]
    torch.testing.assert_close(found[0], torch.tensor([[-0.05, 0.05]], dtype=torch.float64))  # ∓β σ(0)
    torch.testing.assert_close(found[1] - found[0], torch.tensor([[0.0, 0.01]], dtype=torch.float64))
    same_side = replace(groups, is_own_PK=torch.tensor([[True, True]]))
    assert not OBJECTIVES["xpo"].fn(same_side).is_counted_P.any()


def test_nash_md_weighs_own_responses_by_what_they_win_over_one_half():
    logps = torch.tensor([[-2.0, -3.0, -1.0]], dtype=torch.float64, requires_grad=True)
    win_frac = torch.tensor([[[0.5, 0.9, 0.2], [0.1, 0.5, 0.6], [0.8, 0.4, 0.5]]], dtype=torch.float64)
    groups = ScoredGroups(
        policy_logps_PK=logps, reference_logps_PK=torch.tensor([[-3.0, -3.0, -1.0]], dtype=torch.float64),
        num_tokens_PK=torch.ones(1, 3, dtype=torch.long), is_valid_PK=torch.ones(1, 3, dtype=torch.bool),
        win_frac_PKK=win_frac, is_compared_PKK=~torch.eye(3, dtype=torch.bool)[None],
        is_own_PK=torch.tensor([[True, True, False]]),
    )  # fmt: skip
    (gradient,) = torch.autograd.grad(OBJECTIVES["nash_md"].fn(groups, tau=0.1).loss_P.sum(), logps)
    expected = [[-(0.2 - 0.5 - 0.1 * 1.0) / 2, -(0.6 - 0.5) / 2, 0.0]]  # only duels with the third, which is no own
    torch.testing.assert_close(gradient, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize(("gap", "beta"), [(0.0, 0.1), (1.0, 0.119673), (5.0, 0.145896), (-2.0, 0.1)])
def test_dpo_is_scaled_by_how_far_apart_the_reward_holds_a_pair(gap, beta):
    """β(δ) as published; a reward that disagrees with the judgement scales nothing."""
    groups = ScoredGroups(
        policy_logps_PK=torch.tensor([[-12.0, -15.0]]), reference_logps_PK=torch.tensor([[-13.0, -14.5]]),
        num_tokens_PK=torch.ones(1, 2, dtype=torch.long), is_valid_PK=torch.ones(1, 2, dtype=torch.bool),
        preferred_PKK=torch.tensor([[[False, True], [False, False]]]), reward_PK=torch.tensor([[gap, 0.0]]),
        is_rated_PK=torch.tensor([[True, True]]),
    )  # fmt: skip
    expected = OBJECTIVES["dpo"].fn(groups, beta=beta).loss_P.item()
    assert OBJECTIVES["dpo_reward_scaled"].fn(groups).loss_P.item() == pytest.approx(expected, abs=1e-6)
    unknown = replace(groups, is_rated_PK=torch.tensor([[True, False]]))
    plain = OBJECTIVES["dpo"].fn(groups, beta=0.1).loss_P.item()
    assert OBJECTIVES["dpo_reward_scaled"].fn(unknown).loss_P.item() == pytest.approx(plain)
