"""Claims of methods on fresh samples that need no advantage, and of what every rollout is measured with.

Notation as in the objectives. π* ∝ π_ref e^(r/β); Bradley–Terry judges prefer i to j with probability σ(r_i − r_j).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from accord.claims import Claim
from accord.groups import RolloutBatch, ScoredGroups
from accord.lab.enumerable import Population, SoftmaxPolicy, fit
from accord.lab.optima._bandit import (
    Bandit,
    all_groups,
    both_verdicts,
    estimated_by,
    follow,
    four_arms,
    gradient_at,
    judged,
    loss_of,
    pairs_of,
    rollout,
    worth,
)
from accord.lab.optima.policy_gradient import ELSEWHERE, EXACT, GOLDEN
from accord.lab.row_checks import equal_everywhere
from accord.objectives.policy_gradient.parts import Shared, kl_in_loss, sampler_weights


def _numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# Best of K ------------------------------------------------------------------------------------------------------------


def best_of(probs_K: Tensor, reward_K: Tensor, num: int) -> Tensor:
    """Return the distribution of the best of `num` draws; arms that tie share as they are drawn."""
    at_most_K = torch.stack([probs_K[reward_K <= value].sum() for value in reward_K])
    below_K = torch.stack([probs_K[reward_K < value].sum() for value in reward_K])
    tied_K = torch.stack([probs_K[reward_K == value].sum() for value in reward_K])
    return (at_most_K**num - below_K**num) * probs_K / tied_K


def _kl(first_K: Tensor, second_K: Tensor) -> float:
    return float((first_K * (first_K / second_K).log()).sum())


def _imitated(bandit: Bandit, num: int, *, threshold: float | None = None) -> Tensor:
    """Return what imitating the best of `num` samples of the reference comes to."""
    arm_SG = all_groups(len(bandit.reference_K), num)
    reward_SG = bandit.reward_K[arm_SG]
    weight_S = bandit.reference_K.log()[arm_SG].sum(dim=1).exp()
    policy = SoftmaxPolicy(bandit.reference_K.log()[None])

    def loss() -> Tensor:
        groups = ScoredGroups(
            policy_logps_PK=policy.logps_PK()[0][arm_SG],
            num_tokens_PK=torch.ones_like(arm_SG),
            is_valid_PK=torch.ones_like(arm_SG, dtype=torch.bool),
            reward_PK=reward_SG,
            is_rated_PK=torch.ones_like(arm_SG, dtype=torch.bool),
        )
        population = Population(groups=groups, weight_G=weight_S)
        return loss_of(population, "raft", reduction="sequence", threshold=threshold)

    fit(policy, loss)
    return policy.logps_PK()[0].detach().exp()


def _raft_claims() -> Iterator[Claim]:
    bandit = four_arms()
    now = bandit
    for _ in range(3):
        now = replace(now, reference_K=_imitated(now, 2))
    golden = _numbers(0.000655, 0.056993, 0.372819, 0.569533)
    yield equal_everywhere("three rounds of the best of 2: the best of 8", golden, now.reference_K, tolerance=GOLDEN)
    yield equal_everywhere("… = F(y)^8 − F(y⁻)^8", best_of(bandit.reference_K, bandit.reward_K, 8), now.reference_K)
    tied = Bandit(reference_K=_numbers(0.1, 0.2, 0.3, 0.4), reward_K=_numbers(3.0, 1.0, 1.0, 0.0))
    reached = _imitated(tied, 4)
    yield equal_everywhere("ties share as they are drawn: best of 4", _numbers(0.3439, 0.2522, 0.3783, 0.0256), reached)
    yield Claim.equal("its KL", expected=0.500624, reached=_kl(reached, tied.reference_K), tolerance=GOLDEN)
    for num in (2, 4):
        found = _imitated(bandit, num)
        bound = math.log(num) - (num - 1) / num
        yield Claim.at_least(
            f"KL of the best of {num} ≤ log N − (N − 1)/N", bound=0.0, reached=bound - _kl(found, bandit.reference_K)
        )
    # spread over ever more arms the bound is reached
    many = torch.full((4096,), 1 / 4096, dtype=torch.float64)
    fine = best_of(many, torch.arange(4096).double(), 4)
    yield Claim.equal("… and reached without atoms, N = 4", expected=0.636294, reached=_kl(fine, many), tolerance=2e-3)
    halves = Bandit(reference_K=bandit.reference_K, reward_K=_numbers(0.0, 1.0, 0.0, 1.0))
    policy = _imitated(halves, 1, threshold=0.5)
    yield equal_everywhere(
        "only rewards above a threshold: the policy conditioned on them",
        _numbers(0.0, 0.75, 0.0, 0.25),
        policy,
        note="KL −log of their share, 0.916291",
    )


# Duels ----------------------------------------------------------------------------------------------------------------


def _bradley_terry(reward_K: Tensor) -> Tensor:
    return torch.sigmoid(reward_K[:, None] - reward_K[None, :])


def _xpo_claims() -> Iterator[Claim]:
    bandit = four_arms()
    frac_KK = _bradley_terry(bandit.reward_K)

    def loss(logps_K: Tensor, name: str = "xpo", **settings: object) -> Tensor:
        return loss_of(
            both_verdicts(pairs_of(bandit, logps_K, bandit.reference_K.log()), frac_KK), name, beta=1.0, **settings
        )

    yield equal_everywhere(
        "α = 0: online DPO against the reference's samples",
        gradient_at(ELSEWHERE, lambda logps_K: loss(logps_K, "dpo")),
        gradient_at(ELSEWHERE, lambda logps_K: loss(logps_K, alpha=0.0)),
        tolerance=EXACT,
    )
    still = gradient_at(bandit.optimum(1.0), lambda logps_K: loss(logps_K, alpha=0.0))
    yield equal_everywhere(
        "α = 0, Bradley–Terry judges: gradient 0 at π*", torch.zeros_like(still), still, tolerance=EXACT
    )
    reached = follow(bandit.reference_K.log(), lambda logps_K: loss(logps_K, alpha=0.0), lr=8.0)
    yield equal_everywhere("α = 0: rests at π*", bandit.optimum(1.0), reached)
    alpha, probs_K = 0.1, ELSEWHERE

    def theirs(logps_K: Tensor) -> Tensor:
        drawn = both_verdicts(pairs_of(bandit, logps_K, bandit.reference_K.log()), frac_KK)
        return (drawn.weight_G * drawn.groups.policy_logps_PK[:, 1]).sum() / drawn.weight_G.sum()

    bonus = gradient_at(probs_K, lambda logps_K: loss(logps_K, alpha=alpha))
    yield equal_everywhere(
        "the bonus: α ∇ log π of the reference's sample",
        alpha * gradient_at(probs_K, theirs),
        bonus - gradient_at(probs_K, lambda logps_K: loss(logps_K, alpha=0.0)),
        tolerance=EXACT,
    )


def _nash_md_claims() -> Iterator[Claim]:
    bandit = four_arms()
    cyclic = torch.tensor(
        [[0.5, 0.9, 0.1, 0.6], [0.1, 0.5, 0.8, 0.7], [0.9, 0.2, 0.5, 0.3], [0.4, 0.3, 0.7, 0.5]], dtype=torch.float64
    )
    for what, frac_KK, tau, golden in (
        ("Bradley–Terry judges, τ = 1", _bradley_terry(bandit.reward_K), 1.0, (0.326003, 0.295487, 0.238975, 0.139535)),
        ("judges who go in circles, τ = 0.1", cyclic, 0.1, (0.340391, 0.250820, 0.323065, 0.085725)),
    ):
        reached = follow(
            bandit.reference_K.log(),
            lambda logps_K, frac_KK=frac_KK, tau=tau: loss_of(
                judged(pairs_of(bandit, logps_K, logps_K), frac_KK), "nash_md", tau=tau
            ),
            steps=800,
        )
        yield equal_everywhere(f"against itself: the Nash equilibrium of {what}", _numbers(*golden), reached)
    mixture_K = (0.5 * bandit.reference_K.log() + 0.5 * ELSEWHERE.log()).log_softmax(dim=0)
    win_K = (cyclic * mixture_K.exp()).sum(dim=1)
    expected = (bandit.reference_K.log() + win_K / 0.5).softmax(dim=0)
    still = gradient_at(
        expected, lambda logps_K: loss_of(judged(pairs_of(bandit, logps_K, mixture_K), cyclic), "nash_md", tau=0.5)
    )
    yield equal_everywhere(
        "against a mixture: gradient 0 at π_ref e^(P(y ≻ mixture)/τ)", torch.zeros_like(still), still, tolerance=EXACT
    )


def _reward_scaled_claims() -> Iterator[Claim]:
    """One pair, the first preferred with probability p, held δ = 1 apart by the reward."""
    scaled = 0.1 * (1 + 0.5 * (1 - math.exp(-0.5)))
    yield Claim.equal("β(1) of β = 0.1, w = k = 1/2", expected=0.119673, reached=scaled, tolerance=GOLDEN)
    bandit = Bandit(reference_K=_numbers(0.5, 0.5), reward_K=_numbers(1.0, 0.0))
    for p in (0.55, 0.9):
        policy = SoftmaxPolicy(bandit.reference_K.log()[None])

        def loss(
            policy: SoftmaxPolicy = policy, p: float = p, name: str = "dpo_reward_scaled", **settings: float
        ) -> Tensor:
            logps_P2 = policy.logps_PK().expand(2, 2)
            preferred = torch.tensor([[[False, True], [False, False]], [[False, False], [True, False]]])
            groups = ScoredGroups(
                policy_logps_PK=logps_P2,
                reference_logps_PK=bandit.reference_K.log().expand(2, 2),
                num_tokens_PK=torch.ones(2, 2, dtype=torch.long),
                is_valid_PK=torch.ones(2, 2, dtype=torch.bool),
                preferred_PKK=preferred,
                reward_PK=bandit.reward_K.expand(2, 2),
                is_rated_PK=torch.ones(2, 2, dtype=torch.bool),
            )
            return loss_of(Population(groups=groups, weight_G=_numbers(p, 1 - p)), name, **settings)

        fit(policy, loss)
        gap = policy.logps_PK()[0].diff().neg()
        yield equal_everywhere(
            f"p = {p:g}: p β(δ) σ(−β(δ) D) = (1 − p) β σ(β D)",
            p * scaled * torch.sigmoid(-scaled * gap),
            (1 - p) * 0.1 * torch.sigmoid(0.1 * gap),
        )
        (ours,) = torch.autograd.grad(loss(scale=0.0), policy.logits_PK)
        (dpo,) = torch.autograd.grad(loss(name="dpo"), policy.logits_PK)
        yield equal_everywhere(f"p = {p:g}: w = 0 is DPO", dpo, ours, tolerance=EXACT)


# Around the rows ------------------------------------------------------------------------------------------------------


def _kl_claims() -> Iterator[Claim]:
    """Values and gradients of the estimators, their samples drawn from the policy and then fixed."""
    bandit, probs_K = four_arms(), ELSEWHERE
    ours, theirs = bandit.reference_K.log(), probs_K.log()
    exact = gradient_at(probs_K, lambda logps_K: (logps_K.exp() * (logps_K - ours)).sum())
    other = gradient_at(probs_K, lambda logps_K: (ours.exp() * (ours - logps_K)).sum())
    yield equal_everywhere(
        "∇KL(π ‖ π_ref)", _numbers(-0.143612, -0.108804, 0.113115, 0.139301), exact, tolerance=GOLDEN
    )
    yield equal_everywhere(
        "∇KL(π_ref ‖ π)", _numbers(-0.135516, -0.104066, 0.123041, 0.116541), other, tolerance=GOLDEN
    )

    def mean_of(**settings: object) -> Callable[[Tensor], Tensor]:
        def mean(logps_K: Tensor) -> Tensor:
            drawn = rollout(bandit, logps_K, worth(torch.zeros(4, dtype=torch.float64)))
            return (drawn.weight_G * kl_in_loss(drawn.groups, Shared().changed(settings))[:, 0, 0]).sum()

        return mean

    for estimator, value in (("k2", 0.142171), ("k3", 0.129306)):
        reached = float(mean_of(kl_estimator=estimator)(theirs))
        yield Claim.equal(f"E[{estimator}]", expected=value, reached=reached, tolerance=GOLDEN)
    for name, settings, expected in (
        ("E[∇k2] = ∇KL(π ‖ π_ref)", {"kl_estimator": "k2"}, exact),
        ("E[∇k3] = ∇KL(π_ref ‖ π)", {"kl_estimator": "k3"}, other),
        ("E[∇(ρ k3)] = ∇KL(π ‖ π_ref)", {"kl_estimator": "k3", "kl_weight": "ratio"}, exact),
    ):
        yield equal_everywhere(name, expected, gradient_at(probs_K, mean_of(**settings)), tolerance=EXACT)

    def k1_alone(logps_K: Tensor) -> Tensor:
        return (logps_K.detach().exp() * (logps_K - ours)).sum()

    nothing = gradient_at(probs_K, k1_alone)
    yield equal_everywhere("E[∇k1] = 0: k1 is no loss", torch.zeros_like(nothing), nothing, tolerance=EXACT)
    indifferent = replace(bandit, reward_K=torch.zeros(4, dtype=torch.float64))
    in_reward = gradient_at(
        probs_K,
        lambda logps_K: loss_of(
            rollout(indifferent, logps_K, estimated_by("reinforce", baseline="none", kl_coef=1.0)), "reinforce"
        ),
    )
    yield equal_everywhere("k1 in the reward: ∇KL(π ‖ π_ref)", exact, in_reward, tolerance=EXACT)
    k3_K = (ours - theirs).exp() - 1 + theirs - ours
    wrong = gradient_at(probs_K, lambda logps_K: loss_of(rollout(bandit, logps_K, worth(-k3_K)), "reinforce"))
    yield equal_everywhere(
        "k3 in the reward would pull along ∇KL(π ‖ π_ref) − ∇KL(π_ref ‖ π)", exact - other, wrong, tolerance=EXACT
    )


def _weight_claims() -> Iterator[Claim]:
    bandit = four_arms()
    drawn = rollout(bandit, ELSEWHERE.log(), estimated_by("rloo"), size=2)
    for mode in ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask"):
        weight = sampler_weights(drawn.groups, Shared().changed({"sampler_correction": mode, "sampler_cap": 1.0}))
        yield equal_everywhere(f"on-policy every weight is 1: {mode}", torch.ones_like(weight), weight, tolerance=0.0)


def _iterative_claims() -> Iterator[Claim]:
    """DPO on all duels, trained to the end of each round: what the next round starts from, and is compared with."""
    bandit, beta, rounds = four_arms(), 2.0, 3
    frac_KK = _bradley_terry(bandit.reward_K)
    now = bandit
    for _ in range(rounds):
        policy, drawn_from = SoftmaxPolicy(now.reference_K.log()[None]), now

        def loss(policy: SoftmaxPolicy = policy, drawn_from: Bandit = drawn_from) -> Tensor:
            opponents = drawn_from.reference_K.log()
            pairs = pairs_of(drawn_from, policy.logps_PK()[0], opponents)
            even = replace(pairs, weight_G=torch.ones_like(pairs.weight_G))
            return loss_of(both_verdicts(even, frac_KK), "dpo", beta=beta)

        fit(policy, loss)
        now = replace(now, reference_K=policy.logps_PK()[0].detach().exp())
    golden = _numbers(0.027094, 0.091071, 0.272100, 0.609735)
    yield equal_everywhere("reference renewed, β = 2: three rounds are one with β/3", golden, now.reference_K)
    yield equal_everywhere("… which is π* of β/3", bandit.optimum(beta / rounds), now.reference_K)
    reached = follow(
        bandit.reference_K.log(),
        lambda logps_K: loss_of(both_verdicts(pairs_of(bandit, logps_K, logps_K), frac_KK), "dpo", beta=1.0),
        lr=8.0,
    )
    yield equal_everywhere("online, reference fixed, own pairs: rests at π*", bandit.optimum(1.0), reached)


def _advantage_claims() -> Iterator[Claim]:
    batch = RolloutBatch(
        reward_PK=_numbers(1, 0, 0, 1, 1, 0, 0, 0)[None],
        is_scored_PK=torch.ones(1, 8, dtype=torch.bool),
        is_token_PKT=torch.ones(1, 8, 1, dtype=torch.bool),
        old_logps_PKT=torch.zeros(1, 8, 1, dtype=torch.float64),
    )
    arms = torch.arange(8)[None]
    for name, right in (("grpo", 1.207381), ("rloo", 5 / 7), ("dr_grpo", 5 / 8)):
        found = estimated_by(name)(batch, arms).advantage_PKT
        yield Claim.equal(
            f"{name} of (1, 0, 0, 1, 1, 0, 0, 0): the right ones",
            expected=right, reached=float(found[0, 0, 0]), tolerance=GOLDEN,
        )  # fmt: skip
        yield Claim.equal(f"{name}: the sum", expected=0.0, reached=float(found.sum()), tolerance=EXACT)


CLAIMS: dict[str, Callable[[], Iterator[Claim]]] = {
    "raft": _raft_claims,
    "xpo": _xpo_claims,
    "nash_md": _nash_md_claims,
    "dpo_reward_scaled": _reward_scaled_claims,
}

OUTER: dict[str, Callable[[], Iterator[Claim]]] = {
    "KL estimators": _kl_claims,
    "advantages": _advantage_claims,
    "sampler correction": _weight_claims,
    "iterative DPO": _iterative_claims,
}
"""Claims of what is no row."""
