"""Claims of the sampling view: kernels that leave the model's law unchanged, and the table of what equals what.

The model is p ∝ μ e^r over five states; expectations over draws are exact sums over all of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from accord.claims import Claim
from accord.groups import ScoredGroups, groups_from_pairs
from accord.lab.enumerable import Population, SoftmaxPolicy, build_world
from accord.lab.optima._training import BETA, chain_differences, chain_rater_frac, train_on_pairs
from accord.lab.optima.listwise import best_first, data_and_noise, ranked_in_order, rlhf_policy, shown, train_on
from accord.lab.row_checks import equal_everywhere
from accord.objectives import OBJECTIVES
from accord.objectives.listwise.kernels import Kernel, kernel_probs

EXACT = 1e-12


@dataclass(frozen=True, kw_only=True)
class Toy:
    """A proposal over a few states and a reward: p ∝ μ e^r."""

    proposal_logps_K: Tensor
    reward_K: Tensor

    @property
    def model_K(self) -> Tensor:
        """Return p."""
        return (self.proposal_logps_K + self.reward_K).softmax(dim=0)


def toy(seed: int = 0) -> Toy:
    """Return a random toy of five states."""
    generator = torch.Generator().manual_seed(seed)
    noise, reward = torch.randn(2, 5, generator=generator, dtype=torch.float64)
    return Toy(proposal_logps_K=noise.log_softmax(dim=0), reward_K=1.5 * reward)


def cis_matrix(
    proposal_K: Float[Tensor, " K"], score_K: Float[Tensor, " K"], num_proposals: int
) -> Float[Tensor, "K K"]:
    """Return the law of the next state from each state under the cis kernel, M fresh draws of the proposal a step."""
    width = len(proposal_K)
    shown_SK = torch.tensor(list(itertools.product(range(width), repeat=num_proposals + 1)))  # first where it is
    weight_S = proposal_K[shown_SK[:, 1:]].prod(dim=1)
    score_SK = score_K[shown_SK]
    is_current_SK = (torch.arange(num_proposals + 1) == 0).expand_as(shown_SK)
    share_SK = kernel_probs("cis", score_SK, score_SK, ~is_current_SK, is_current_SK)
    matrix_KK = proposal_K.new_zeros(width, width)
    places = (shown_SK[:, :1].expand_as(shown_SK).flatten(), shown_SK.flatten())
    return matrix_KK.index_put(places, (weight_S[:, None] * share_SK).flatten(), accumulate=True)


def importance_bias(world: Toy, num_proposals: int) -> float:
    """Return the bias of self-normalised importance sampling for E_p[r], from M draws of the proposal."""
    shown_SM = torch.tensor(list(itertools.product(range(len(world.reward_K)), repeat=num_proposals)))
    weight_S = world.proposal_logps_K[shown_SM].sum(dim=1).exp()
    score_SM = world.reward_K[shown_SM]
    is_all_SM = torch.ones_like(shown_SM, dtype=torch.bool)
    share_SM = kernel_probs("hard_negative", score_SM, score_SM, is_all_SM, ~is_all_SM)
    return float((weight_S * (share_SM * score_SM).sum(dim=1)).sum() - (world.model_K * world.reward_K).sum())


# Expected gradients -------------------------------------------------------------------------------------------------


def contest(score_K: Tensor) -> ScoredGroups:
    """Return one group whose first response was judged better than the others, with log-ratios `score_K` (β = 1)."""
    width = len(score_K)
    return ScoredGroups(
        policy_logps_PK=score_K[None],
        reference_logps_PK=torch.zeros(1, width, dtype=torch.float64),
        num_tokens_PK=torch.ones(1, width, dtype=torch.long),
        is_valid_PK=torch.ones(1, width, dtype=torch.bool),
        preferred_PKK=ranked_in_order(width, only_best=True),
    )


def mean_gradient(kernel: Kernel, score_K: Float[Tensor, " K"], loss: str) -> Float[Tensor, " K"]:
    """Return E over one drawn negative of ∂loss/∂r: every draw's gradient by its probability.

    A draw of k alone is the contest of the first response with k; a draw of itself (cis) is no update.
    """
    is_current_K = torch.arange(len(score_K)) == 0
    probs_K = kernel_probs(kernel, score_K, score_K, ~is_current_K, is_current_K)
    total_K = torch.zeros_like(score_K)
    for k in range(1, len(score_K)):
        both = score_K[[0, k]].clone().requires_grad_()
        groups = replace(contest(both), draw_seed_P=torch.tensor([0]))
        drawn = OBJECTIVES["mc_po"].fn(groups, beta=1.0, kernel="random", loss=loss).loss_P.sum()
        (gradient,) = torch.autograd.grad(drawn, both)
        total_K[[0, k]] += probs_K[k] * gradient
    return total_K


def row_gradient(name: str, score_K: Tensor) -> Tensor:
    """Return ∂loss/∂r of a row at β = 1."""
    score_K = score_K.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(OBJECTIVES[name].fn(contest(score_K), beta=1.0).loss_P.sum(), score_K)
    return gradient


def population_gradient(gradient_at: Callable[[Tensor], Tensor], reward_K: Tensor) -> Tensor:
    """Return the gradient at r = reward, where each response is the best with probability softmax(reward)."""
    total_K = torch.zeros_like(reward_K)
    for order, weight in zip(best_first(len(reward_K)), reward_K.softmax(dim=0), strict=True):
        total_K[order] += weight * gradient_at(reward_K[order])
    return total_K


def _mc_po_claims() -> Iterator[Claim]:
    world = toy()
    proposal_K, model_K = world.proposal_logps_K.exp(), world.model_K
    matrices = [cis_matrix(proposal_K, world.reward_K, number) for number in (1, 2, 3)]
    for number, matrix_KK in enumerate(matrices, start=1):
        yield equal_everywhere(
            f"cis, {number} fresh proposals: p K = p", model_K, model_K @ matrix_KK, tolerance=EXACT,
            note="so the normaliser's gradient is unbiased when the preferred response is a draw of p",
        )  # fmt: skip
    chain_KK = matrices[1] @ matrices[0] @ matrices[0]
    yield equal_everywhere("cis, three steps: p K₂K₁K₁ = p", model_K, model_K @ chain_KK, tolerance=EXACT)
    other_K = toy(seed=1).model_K  # negatives of another sampler
    log_weight_K = world.reward_K + world.proposal_logps_K - other_K.log()
    corrected_KK = cis_matrix(other_K, log_weight_K, 2)
    yield equal_everywhere(
        "negatives of another sampler q, r + log π_ref − log q: p K = p", model_K, model_K @ corrected_KK,
        tolerance=EXACT,
    )  # fmt: skip
    missed = (model_K @ cis_matrix(other_K, world.reward_K, 2) - model_K).abs().sum().item()
    yield Claim.at_least("without the correction p moves (total variation × 2)", bound=0.05, reached=missed)
    yield from _gradient_claims()
    yield from _fixed_point_claims()
    pair = _pairs()
    dpo = OBJECTIVES["dpo"].fn(pair, beta=BETA).loss_P
    for kernel in ("hard_negative", "random", "max_margin", "second_best", "all"):
        found = OBJECTIVES["mc_po"].fn(pair, beta=BETA, kernel=kernel).loss_P
        yield equal_everywhere(f"{kernel}, one candidate: DPO", dpo, found, tolerance=EXACT)


def _gradient_claims() -> Iterator[Claim]:
    score_K = torch.tensor([0.3, 0.1, -0.4, 0.8], dtype=torch.float64)
    hard = torch.tensor([0.124346, 0.055591, 0.346238], dtype=torch.float64)
    yield equal_everywhere(
        "hard_negative: expected weights ω_k σ(r_k − r_0)",
        hard,
        mean_gradient("hard_negative", score_K, "ranking")[1:],
        tolerance=1e-6,
    )
    yield equal_everywhere(
        "cis with the divergence loss: the expected gradient is rnce's",
        row_gradient("rnce", score_K),
        mean_gradient("cis", score_K, "divergence"),
        tolerance=EXACT,
    )
    yield equal_everywhere(
        "cis with one proposal (Barker's acceptance) and the divergence loss: the expected gradient is DPO's",
        row_gradient("dpo", score_K[:2]),
        mean_gradient("cis", score_K[:2], "divergence"),
        tolerance=EXACT,
    )


def _fixed_point_claims() -> Iterator[Claim]:
    reward_K = toy().reward_K
    rows: list[tuple[Kernel, str]] = [("cis", "divergence"), ("random", "ranking")]
    for kernel, loss in rows:
        found = population_gradient(lambda r, k=kernel, s=loss: mean_gradient(k, r, s), reward_K)
        yield equal_everywhere(
            f"{kernel} with {loss}: r = reward is a fixed point where the best is chosen by softmax(reward)",
            torch.zeros_like(found), found, tolerance=EXACT,
        )  # fmt: skip
    found = population_gradient(lambda r: mean_gradient("hard_negative", r, "ranking"), reward_K)
    pull = (found * (reward_K - reward_K.mean())).sum().item()
    yield Claim.at_least(
        "hard_negative: there the expected step shrinks the differences of r",
        bound=1e-3,
        reached=pull,
        note="a biased estimate of the likelihood's gradient: harder negatives for smaller margins",
    )


def _ml_is_claims() -> Iterator[Claim]:
    score_K = torch.tensor([0.3, 0.1, -0.4, 0.8], dtype=torch.float64)
    yield equal_everywhere(
        "the gradient is that of mc_po with hard_negative and the divergence loss, in expectation",
        mean_gradient("hard_negative", score_K, "divergence"),
        row_gradient("ml_is", score_K),
        tolerance=EXACT,
    )
    biases = [abs(importance_bias(toy(), number)) for number in (1, 2, 4)]
    yield Claim.at_least(
        "its estimate of E_p[r] is biased even where y_0 ~ p",
        bound=0.1,
        reached=biases[2],
        note=f"|bias| {biases[0]:.3f}, {biases[1]:.3f}, {biases[2]:.3f} for 1, 2, 4 draws; with y_0 among them 0",
    )


def _nce_claims() -> Iterator[Claim]:
    world = build_world(num_prompts=1)
    data_PK = world.reward_PK.log_softmax(dim=1)
    index_GK, weight_PG = data_and_noise(world, data_PK, 2)
    wanted_PK = data_PK - world.reference_logps_PK
    expected_PK = rlhf_policy(world, wanted_PK, BETA)
    level = (BETA * (expected_PK - world.reference_logps_PK) - wanted_PK)[0, 0].detach().requires_grad_()
    carried = {"log_normaliser": level}

    def population_at(logps_PK: Tensor) -> Population:
        found = shown(world, logps_PK, index_GK, weight_PG, preferred_PKK=ranked_in_order(3, only_best=True))
        return replace(found, groups=replace(found.groups, state=carried))

    policy = SoftmaxPolicy(world.reference_logps_PK)
    reached = train_on(policy, population_at, "nce", beta=BETA)
    yield equal_everywhere("two negatives of π_ref: β u − c = log(p/π_ref)", expected_PK, reached)
    population = population_at(reached)
    (slope,) = torch.autograd.grad(population.mean(OBJECTIVES["nce"].fn(population.groups, beta=BETA)), level)
    yield Claim.equal("and c, the log-normaliser, rests there", expected=0.0, reached=slope.item(), tolerance=1e-6)
    yield from _bco_claims()


def _bco_claims() -> Iterator[Claim]:
    """NCE with one negative and intercept c is BCO with δ = c, and without an intercept its pair form."""
    for name, level in (("bco", 0.4), ("bco_pair", 0.0)):
        pair = _pairs()
        desirable_PK = torch.tensor([[True, False]]).expand(2, 2)
        count = torch.tensor(1.0, dtype=torch.float64)
        state = {"log_normaliser": level * count, "reward_sum": level * count, "num_rewards": count}
        found = []
        for row in (name, "nce"):
            logps_PK = pair.policy_logps_PK.clone().requires_grad_()
            groups = replace(
                pair, policy_logps_PK=logps_PK, state=state,
                desirable_PK=desirable_PK, is_labelled_PK=torch.ones_like(desirable_PK),
            )  # fmt: skip
            loss_P = OBJECTIVES[row].fn(groups, beta=BETA).loss_P
            (gradient_PK,) = torch.autograd.grad(loss_P.sum(), logps_PK)
            found.append(torch.cat([loss_P.detach(), gradient_PK.flatten()]))
        yield equal_everywhere(
            f"one negative, c = {level:g}: {name}, value and gradient of the pair", *found, tolerance=EXACT
        )


def _cnce_claims() -> Iterator[Claim]:
    world = build_world(bradley_terry=False)
    policy = train_on_pairs(
        SoftmaxPolicy(world.reference_logps_PK), world, world.chain(), "cnce", beta=BETA, noise="symmetric"
    )
    mixed_PK = BETA * policy.logps_PK() + (1 - BETA) * world.reference_logps_PK
    yield equal_everywhere(
        "symmetric noise: β Δlog π + (1 − β) Δlog π_ref = logit p",
        torch.logit(chain_rater_frac(world)),
        chain_differences(mixed_PK),
    )
    score_K = torch.tensor([0.3, -0.4], dtype=torch.float64)
    for other in ("dpo", "rnce"):
        yield equal_everywhere(
            f"one negative, independent noise: {other}, value and gradient",
            torch.cat([OBJECTIVES[other].fn(contest(score_K), beta=1.0).loss_P, row_gradient(other, score_K)]),
            torch.cat([OBJECTIVES["cnce"].fn(contest(score_K), beta=1.0).loss_P, row_gradient("cnce", score_K)]),
            tolerance=EXACT,
        )


def _pairs() -> ScoredGroups:
    pairs = groups_from_pairs(
        torch.tensor([[-12.0, -15.0], [-3.0, -1.0]], dtype=torch.float64),
        reference_logps_P2=torch.tensor([[-13.0, -14.5], [-2.0, -2.5]], dtype=torch.float64),
    )
    return replace(pairs, draw_seed_P=torch.tensor([3, 4]))


CLAIMS: dict[str, Callable[[], Iterator[Claim]]] = {
    "mc_po": _mc_po_claims,
    "ml_is": _ml_is_claims,
    "nce": _nce_claims,
    "cnce": _cnce_claims,
}
