"""Claims of objectives of a rollout: expected gradients by enumeration, and the policies they come to rest at.

Notation as in the objectives. π* ∝ π_ref e^(r/β) is the maximum of E[r] − β KL(π ‖ π_ref).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from accord.claims import Claim
from accord.groups import ScoredTokens
from accord.lab.enumerable import Population, TreePolicy
from accord.lab.optima._bandit import (
    Bandit,
    Estimator,
    as_groups,
    estimated_by,
    follow,
    four_arms,
    gradient_at,
    loss_of,
    rollout,
    worth,
)
from accord.lab.row_checks import equal_everywhere

EXACT = 1e-12
GOLDEN = 1e-6  # numbers that were written down to six places
ELSEWHERE = torch.tensor([0.2, -0.1, 0.4, 0.0], dtype=torch.float64).softmax(dim=0)
"""A policy that is neither the reference nor an optimum."""


def _numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _on_policy(estimator: Estimator, name: str, *, size: int = 1, **settings: object) -> Callable[[Tensor], Tensor]:
    return lambda logps_K: loss_of(rollout(four_arms(), logps_K, estimator, size=size), name, **settings)


def _standardised(logps_K: Tensor) -> Tensor:
    """Return (r − E r)/σ under the policy: GRPO's advantage of infinitely many responses."""
    probs_K, reward_K = logps_K.detach().exp(), four_arms().reward_K
    gap_K = reward_K - (probs_K * reward_K).sum()
    return gap_K / (probs_K * gap_K.square()).sum().sqrt()


def _standing_still(name: str, what: str, gradient: Tensor) -> Claim:
    return equal_everywhere(f"{what}: {name}", torch.zeros_like(gradient), gradient, tolerance=EXACT)


# REINFORCE ------------------------------------------------------------------------------------------------------------


def _reinforce_claims() -> Iterator[Claim]:
    bandit = four_arms()
    golden = _numbers(0.085073, 0.173439, 0.314304, 0.427184)
    yield equal_everywhere("π* of four arms, β = 1", golden, bandit.optimum(1.0), tolerance=GOLDEN)
    start = bandit.reference_K.log()
    rloo = estimated_by("rloo", kl_coef=1.0)
    reached = follow(start, _on_policy(rloo, "reinforce", size=2))
    yield equal_everywhere("k1 in the reward, leave-one-out of two: rests at π*", bandit.optimum(1.0), reached)
    plain = estimated_by("rloo")
    reached = follow(start, _on_policy(plain, "reinforce", size=2, kl_coef=1.0))
    yield equal_everywhere("k2 in the loss, one token: rests at π*", bandit.optimum(1.0), reached)
    reached = follow(start, _on_policy(plain, "reinforce", size=2, kl_coef=1.0, kl_estimator="k3"))
    k3 = _numbers(0.125921, 0.137830, 0.169982, 0.566267)
    yield equal_everywhere("β π_ref/(λ − r) of four arms, β = 1", k3, bandit.forward_optimum(1.0), tolerance=GOLDEN)
    yield equal_everywhere(
        "k3 in the loss: rests elsewhere, at β π_ref/(λ − r)",
        bandit.forward_optimum(1.0),
        reached,
        note="its gradient is that of KL(π_ref ‖ π)",
    )
    weighed = {"kl_coef": 1.0, "kl_estimator": "k3", "kl_weight": "ratio"}
    yield _standing_still(
        "gradient 0 at π*",
        "k3 times ρ",
        gradient_at(bandit.optimum(1.0), _on_policy(plain, "reinforce", size=2, **weighed)),
    )
    reached = follow(
        start, _on_policy(estimated_by("rloo", kl_coef=1.0), "reinforce", size=2, entropy_coef=0.5), lr=3.0
    )
    expected = (bandit.reference_K.log() / 1.5 + bandit.reward_K / 1.5).softmax(dim=0)
    yield equal_everywhere("entropy bonus c: π ∝ π_ref^(β/(β + c)) e^(r/(β + c))", expected, reached)
    yield from _unbiased_claims()
    yield from _tree_claims()


def _unbiased_claims() -> Iterator[Claim]:
    bandit = four_arms()
    exact = _numbers(-0.4, 0.0, 0.2, 0.2)  # π (r − E r) at the reference
    for name, share in (("rloo", 1.0), ("dr_grpo", 0.5)):
        found = -gradient_at(bandit.reference_K, _on_policy(estimated_by(name), "reinforce", size=2))
        yield equal_everywhere(
            f"{name} of two: {share:g} × the gradient of E[r]", share * exact, found, tolerance=EXACT
        )
    for name in ("rloo", "grpo", "dr_grpo"):
        still = replace(bandit, reward_K=torch.full_like(bandit.reward_K, 0.1))
        drawn = rollout(still, bandit.reference_K.log(), estimated_by(name), size=3)
        assert drawn.groups.tokens is not None
        assert drawn.groups.tokens.advantage_PKT is not None
        largest = float(drawn.groups.tokens.advantage_PKT.abs().max())
        yield Claim.equal(f"a constant reward moves nothing: {name}", expected=0.0, reached=largest, tolerance=0.0)


@dataclass(frozen=True, kw_only=True)
class _Tree:
    """All responses of a tree with their tokens under a policy, the reference's beside."""

    policy: TreePolicy
    reference: TreePolicy

    def rollout(self, advantage_K: Tensor, old: TreePolicy | None = None) -> Population:
        """Return every response as a group of its own, drawn from `old` (None: the policy itself)."""
        tokens = self.policy.tokens(self.reference)
        drawn = tokens if old is None else old.tokens(self.reference)
        old_PKT = drawn.policy_logps_PKT.detach()
        weight_K = torch.where(tokens.is_trained_PKT, old_PKT, 0.0).sum(dim=2)[0].exp()

        def flat(value: Tensor) -> Tensor:
            return value[0][:, None]

        assert tokens.reference_logps_PKT is not None
        scored = ScoredTokens(
            policy_logps_PKT=flat(tokens.policy_logps_PKT),
            reference_logps_PKT=flat(tokens.reference_logps_PKT),
            is_trained_PKT=flat(tokens.is_trained_PKT),
            old_logps_PKT=flat(old_PKT),
            advantage_PKT=torch.where(flat(tokens.is_trained_PKT), advantage_K[:, None, None], 0.0),
        )
        return Population(groups=as_groups(scored), weight_G=weight_K)

    def gradient(self, advantage_K: Tensor, name: str, *, old: TreePolicy | None = None, **settings: object) -> Tensor:
        """Return the gradient of a row's expected loss by the logits of the tree."""
        loss = loss_of(self.rollout(advantage_K, old), name, **settings)
        (gradient,) = torch.autograd.grad(loss, self.policy.logits_PNV)
        return gradient


def _tree(responses: tuple[tuple[int, ...], ...], *, seed: int = 3) -> tuple[_Tree, Tensor]:
    """Return a tree with random policies, and a random reward per response."""
    generator = torch.Generator().manual_seed(seed)
    policy, reference = (TreePolicy(responses, num_prompts=1) for _ in range(2))
    for tree in (policy, reference):
        with torch.no_grad():
            tree.logits_PNV.copy_(0.5 * torch.randn(tree.logits_PNV.shape, generator=generator, dtype=torch.float64))
    return _Tree(policy=policy, reference=reference), torch.randn(len(responses), generator=generator).double()


TWO_DEEP = tuple((first, second, 0) for first in (1, 2) for second in (1, 2))
RAGGED = ((0,), (1, 0), (2, 0), (1, 1, 0), (1, 2, 0), (2, 1, 0), (2, 2, 0))


def _tree_claims() -> Iterator[Claim]:
    """The token-level form: a tree of depth two, its last token closing by rule, β = 1/2."""
    reference_K = _numbers(0.6 * 0.5, 0.6 * 0.5, 0.4 * 0.25, 0.4 * 0.75)
    reward_K, beta = _numbers(1.0, 0.0, 2.0, 0.5), 0.5
    golden = _numbers(0.252128, 0.034122, 0.620997, 0.092753)
    optimum = (reference_K.log() + reward_K / beta).softmax(dim=0)
    yield equal_everywhere("π* of a tree of depth two, β = 1/2", golden, optimum, tolerance=GOLDEN)
    reference = TreePolicy(TWO_DEEP, num_prompts=1)
    with torch.no_grad():  # no mass on EOS before the second token
        reference.logits_PNV.fill_(-60.0)
    reference.start_at(reference_K[None].log())
    reference.logits_PNV.data.clamp_(min=-60.0)
    policy = TreePolicy(TWO_DEEP, num_prompts=1)
    policy.load_state_dict(reference.state_dict())
    policy.start_at(optimum[None].log())
    policy.logits_PNV.data.clamp_(min=-60.0)
    tree = _Tree(policy=policy, reference=reference)
    log_ratio_K = (policy.logps_PK() - reference.logps_PK())[0].detach()
    k1 = tree.gradient(reward_K - beta * log_ratio_K, "reinforce")
    yield _standing_still("gradient 0 at π*, token by token", "k1 in the reward", k1)
    both = _with_future(tree, reward_K, beta)
    yield _standing_still("gradient 0 at π*, token by token", "k2 in the loss, later KL in the reward", both)
    k2 = tree.gradient(reward_K, "reinforce", kl_coef=beta)
    yield Claim.at_least(
        "k2 in the loss alone: over several tokens it pulls away from π*",
        bound=1e-3,
        reached=float(k2.abs().max()),
        note="per token it is the KL of the next token; what a token does to later KL it does not see",
    )


def _with_future(tree: _Tree, reward_K: Tensor, beta: float) -> Tensor:
    """Return the gradient with k2 at each token in the loss and the KL of later tokens in the reward."""
    tokens = tree.policy.tokens(tree.reference)
    assert tokens.reference_logps_PKT is not None
    ratio_KT = (tokens.policy_logps_PKT - tokens.reference_logps_PKT).detach()[0]
    later_KT = ratio_KT.flip(1).cumsum(1).flip(1) - ratio_KT
    population = tree.rollout(reward_K)
    of_tokens = population.groups.tokens
    assert of_tokens is not None
    advantage = torch.where(of_tokens.is_trained_PKT, (reward_K[:, None] - beta * later_KT)[:, None], 0.0)
    changed = replace(population, groups=as_groups(replace(of_tokens, advantage_PKT=advantage)))
    (gradient,) = torch.autograd.grad(loss_of(changed, "reinforce", kl_coef=beta), tree.policy.logits_PNV)
    return gradient


# Clipped token ratios -------------------------------------------------------------------------------------------------


def _ppo_clip_claims() -> Iterator[Claim]:
    bandit, start = four_arms(), four_arms().reference_K.log()
    k1 = gradient_at(bandit.optimum(1.0), _on_policy(estimated_by("rloo", kl_coef=1.0), "ppo_clip", size=2))
    yield _standing_still("gradient 0 at π*", "k1 in the reward, leave-one-out of two", k1)
    for name, settings, golden in (
        ("k2", {"kl_estimator": "k2"}, (0.075509, 0.162894, 0.312362, 0.449235)),
        ("k3", {"kl_estimator": "k3"}, (0.137666, 0.150000, 0.182746, 0.529588)),
    ):
        reached = follow(
            start,
            lambda logps_K, settings=settings: loss_of(
                rollout(bandit, logps_K, worth(_standardised(logps_K))), "ppo_clip", kl_coef=1.0, **settings
            ),
            steps=300,
        )
        yield equal_everywhere(
            f"GRPO of many responses, {name} in the loss: rests where its own σ says",
            _numbers(*golden),
            reached,
            tolerance=2 * GOLDEN,
        )
    yield from _binary_claims()
    yield from _length_claims()
    yield from _dynamic_sampling_claims()


def _binary_claims() -> Iterator[Claim]:
    """Success with probability .2 under the reference: the success that GRPO with k2 amplifies it to."""
    odds = torch.logit(_numbers(0.2))
    for beta, golden in ((1.0, 0.681301), (2.0, 0.408733), (4.0, 0.301242), (10.0, 0.240091)):
        p = _numbers(0.2)
        for _ in range(400):
            p = 0.5 * p + 0.5 * torch.sigmoid(odds + 1.0 / (beta * (p * (1 - p)).sqrt()))
        yield Claim.equal(
            f"binary reward, β = {beta:g}: p = σ(logit p_0 + 1/(β√(p(1 − p))))",
            expected=golden, reached=float(p), tolerance=GOLDEN,
        )  # fmt: skip
        yield _standing_still(
            f"β = {beta:g}: gradient 0 at that p", "GRPO of many responses", _binary_gradient(float(p), beta)
        )


def _binary_gradient(p: float, beta: float) -> Tensor:
    bandit = Bandit(reference_K=_numbers(0.8, 0.2), reward_K=_numbers(0.0, 1.0))
    gap_K = (bandit.reward_K - p) / (p * (1 - p)) ** 0.5
    return gradient_at(
        _numbers(1 - p, p), lambda logps_K: loss_of(rollout(bandit, logps_K, worth(gap_K)), "ppo_clip", kl_coef=beta)
    )


def _length_claims() -> Iterator[Claim]:
    """Right or wrong is settled by the first token; how long a response gets is free."""
    tree, _ = _tree(RAGGED)
    is_right_K = torch.tensor([response[0] == 1 for response in RAGGED])
    is_wrong_K = torch.tensor([response[0] == 2 for response in RAGGED])
    length_K = torch.tensor([len(response) for response in RAGGED]).double()
    advantage_K = is_right_K.double() - is_wrong_K.double()
    for name, is_kind_K, sign in (("right", is_right_K, -1.0), ("wrong", is_wrong_K, 1.0)):
        logps_K = tree.policy.logps_PK()[0]
        expected_length = (logps_K[is_kind_K].softmax(dim=0) * length_K[is_kind_K]).sum()
        (slope,) = torch.autograd.grad(expected_length, tree.policy.logits_PNV)
        for aggregation in ("constant", "seq_mean_token_mean"):
            step = -tree.gradient(advantage_K, "ppo_clip", aggregation=aggregation)
            change = float((step * slope).sum())
            if aggregation == "constant":
                yield Claim.equal(
                    f"sum over a constant: the first step leaves the length of {name} responses",
                    expected=0.0, reached=change, tolerance=EXACT,
                )  # fmt: skip
            else:
                grows = "shortens" if sign < 0 else "lengthens"
                yield Claim.at_least(
                    f"mean over a response's tokens: the first step {grows} {name} ones",
                    bound=1e-4,
                    reached=sign * change,
                )


def _dynamic_sampling_claims() -> Iterator[Claim]:
    """Binary rewards, groups of four: leaving out flat groups rescales the gradient by the share of the others."""
    bandit = Bandit(reference_K=_numbers(0.3, 0.4, 0.3), reward_K=_numbers(0.0, 0.0, 1.0))
    p, size = 0.3, 4

    def gradient(*, only_mixed: bool) -> Tensor:
        def loss(logps_K: Tensor) -> Tensor:
            drawn = rollout(bandit, logps_K, estimated_by("grpo"), size=size)
            assert drawn.groups.tokens is not None
            assert drawn.groups.tokens.advantage_PKT is not None
            is_mixed = drawn.groups.tokens.advantage_PKT.abs().amax(dim=(1, 2)) > 0
            weight = drawn.weight_G * is_mixed if only_mixed else drawn.weight_G
            return loss_of(replace(drawn, weight_G=weight), "ppo_clip")

        return gradient_at(bandit.reference_K, loss)

    share = 1 - p**size - (1 - p) ** size
    yield equal_everywhere(
        "dynamic sampling: the same direction, 1/(1 − p^G − (1 − p)^G) times as long",
        gradient(only_mixed=False) / share,
        gradient(only_mixed=True),
        tolerance=EXACT,
    )


# Bounded weights and whole responses ----------------------------------------------------------------------------------


def _cispo_claims() -> Iterator[Claim]:
    bandit = four_arms()
    k1 = gradient_at(bandit.optimum(1.0), _on_policy(estimated_by("rloo", kl_coef=1.0), "cispo", size=2))
    yield _standing_still("gradient 0 at π*", "k1 in the reward, leave-one-out of two", k1)
    tree, reward_K = _tree(RAGGED)
    yield equal_everywhere(
        "on-policy: REINFORCE's gradient, mean over tokens",
        tree.gradient(reward_K, "reinforce", aggregation="token_mean"),
        tree.gradient(reward_K, "cispo"),
        tolerance=EXACT,
    )


def _gspo_claims() -> Iterator[Claim]:
    bandit = four_arms()
    k1 = gradient_at(bandit.optimum(1.0), _on_policy(estimated_by("rloo", kl_coef=1.0), "gspo", size=2))
    yield _standing_still("gradient 0 at π*", "k1 in the reward, leave-one-out of two", k1)
    tree, reward_K = _tree(RAGGED)
    expected = tree.gradient(reward_K, "reinforce", aggregation="seq_mean_token_mean")
    yield equal_everywhere(
        "on-policy: REINFORCE's gradient, mean over each response's tokens",
        expected, tree.gradient(reward_K, "gspo"), tolerance=EXACT,
    )  # fmt: skip
    yield equal_everywhere(
        "a ratio per token: the same", expected, tree.gradient(reward_K, "gspo", per_token=True), tolerance=EXACT
    )


def _luspo_claims() -> Iterator[Claim]:
    bandit = four_arms()
    k1 = gradient_at(bandit.optimum(1.0), _on_policy(estimated_by("rloo", kl_coef=1.0), "luspo", size=2))
    yield _standing_still("gradient 0 at π*", "k1 in the reward, leave-one-out of two", k1)
    tree, reward_K = _tree(RAGGED)
    yield equal_everywhere(
        "on-policy: REINFORCE's gradient, summed over tokens",
        tree.gradient(reward_K, "reinforce"), tree.gradient(reward_K, "luspo"), tolerance=EXACT,
    )  # fmt: skip


def _rloo_clip_claims() -> Iterator[Claim]:
    bandit = four_arms()
    k1 = gradient_at(bandit.optimum(1.0), _on_policy(estimated_by("rloo", kl_coef=1.0), "rloo_clip", size=2))
    yield _standing_still("gradient 0 at π*", "k1 in the reward, leave-one-out of two", k1)
    tree, reward_K = _tree(RAGGED)
    other, _ = _tree(RAGGED, seed=8)
    expected_reward = (tree.policy.logps_PK()[0].exp() * reward_K).sum()
    (exact,) = torch.autograd.grad(expected_reward, tree.policy.logits_PNV)
    yield equal_everywhere(
        "off-policy, unclipped: the gradient of the expected reward",
        exact,
        -tree.gradient(reward_K, "rloo_clip", old=other.policy, clip_low=1.0, clip_high=100.0),
        tolerance=EXACT,
    )


CLAIMS: dict[str, Callable[[], Iterator[Claim]]] = {
    "reinforce": _reinforce_claims,
    "ppo_clip": _ppo_clip_claims,
    "cispo": _cispo_claims,
    "gspo": _gspo_claims,
    "luspo": _luspo_claims,
    "rloo_clip": _rloo_clip_claims,
}
