"""Claims of implicit Q-learning in a world of tables: three states, three tokens, six rated responses of two tokens.

Token c at the start and token c after a are in no response: values that ask about them would be made up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from accord.claims import Claim
from accord.groups import ScoredGroups, ScoredTokens
from accord.lab.row_checks import equal_everywhere
from accord.objectives import OBJECTIVES

A, B, C = range(3)
START, AFTER_A, AFTER_B = range(3)
RESPONSES = ((A, A, 1.0), (A, A, 1.0), (A, A, 1.0), (A, B, 4.0), (B, A, 2.0), (B, B, 3.0))
"""First token, second token, rating."""
GAMMA = 0.9
SWEEPS = 5  # a value is known two sweeps after those behind it
UNSEEN = ((START, C), (AFTER_A, C), (AFTER_B, C))


def as_groups(q_2SV: Tensor, value_S: Tensor, target_SV: Tensor) -> ScoredGroups:
    """Return the responses as one group whose values are read off tables; words are as likely as in the data."""
    first, second, rating = (torch.tensor(column) for column in zip(*RESPONSES, strict=True))
    taken_KT = torch.stack([first, second], dim=-1)
    state_KT = torch.stack([torch.full_like(first, START), torch.where(first == A, AFTER_A, AFTER_B)], dim=-1)
    logps_PKT = torch.zeros(1, *taken_KT.shape, dtype=torch.float64)
    tokens = ScoredTokens(
        policy_logps_PKT=logps_PKT,
        is_trained_PKT=torch.ones_like(logps_PKT, dtype=torch.bool),
        value_PKT=value_S[state_KT][None],
        q_PKT2=q_2SV[:, state_KT, taken_KT].movedim(0, -1)[None],
        q_logps_PKT2=q_2SV.log_softmax(dim=-1)[:, state_KT, taken_KT].movedim(0, -1)[None],
        target_q_PKT=target_SV[state_KT, taken_KT][None],
    )
    return ScoredGroups(
        policy_logps_PK=logps_PKT.sum(dim=-1),
        num_tokens_PK=torch.full((1, len(RESPONSES)), 2),
        is_valid_PK=torch.ones(1, len(RESPONSES), dtype=torch.bool),
        reward_PK=rating.double()[None],
        is_rated_PK=torch.ones(1, len(RESPONSES), dtype=torch.bool),
        tokens=tokens,
    )


def solve(*, tau: float, alpha: float = 0.0) -> tuple[Tensor, Tensor]:
    """Return Q (states, tokens; 0 where nothing is known of it) and V (states) where the row's loss comes to rest.

    Newton's method on each entry, targets copied after each sweep: the loss is a parabola in pieces.
    """
    generator = torch.Generator().manual_seed(3)
    q_2SV = torch.randn(2, 3, 3, generator=generator, dtype=torch.float64)  # twins that begin apart
    for state, token in UNSEEN:
        q_2SV[:, state, token] = 0.0
    value_S = torch.full((3,), -5.0, dtype=torch.float64)  # from below, where Newton's steps stay below
    for _ in range(SWEEPS):
        target_SV = q_2SV.amin(dim=0)
        for _ in range(len(RESPONSES)):
            value_S = _step(value_S, lambda x, q=q_2SV, t=target_SV: _loss(q, x, t, tau=tau, alpha=alpha))
        q_2SV = _step(q_2SV, lambda x, v=value_S, t=target_SV: _loss(x, v, t, tau=tau, alpha=alpha))
    return q_2SV.amin(dim=0), value_S


def _loss(q_2SV: Tensor, value_S: Tensor, target_SV: Tensor, *, tau: float, alpha: float) -> Tensor:
    result = OBJECTIVES["ilql"].fn(as_groups(q_2SV, value_S, target_SV), gamma=GAMMA, tau=tau, alpha=alpha)
    return result.loss_P.sum()


def _step(at: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    at = at.detach().requires_grad_()
    (slope,) = torch.autograd.grad(loss(at), at, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), at)
    is_known = curvature > 0
    return torch.where(is_known, at - slope / torch.where(is_known, curvature, 1.0), at).detach()


def _ilql_claims() -> Iterator[Claim]:
    # after a (3 · 1 + 4)/4, after b (2 + 3)/2; 4 of 6 began with a: at the start (4 · 0.9 · 1.75 + 2 · 0.9 · 2.5)/6
    q_SV, value_S = solve(tau=0.5)
    expected = torch.tensor([1.8, 1.75, 2.5], dtype=torch.float64)
    yield equal_everywhere("τ = ½: V = E_data[Q]", expected, value_S, tolerance=1e-12)
    of_words = torch.tensor([0.9 * 1.75, 0.9 * 2.5], dtype=torch.float64)
    yield equal_everywhere("τ = ½: Q(start, ·) = γ V(next), so b is better", of_words, q_SV[START, :2], tolerance=1e-12)
    q_SV, value_S = solve(tau=1 - 1e-7)
    expected = torch.tensor([0.9 * 4.0, 4.0, 3.0], dtype=torch.float64)
    yield equal_everywhere("τ → 1: V = max of Q over tokens in the data", expected, value_S)
    of_words = torch.tensor([0.9 * 4.0, 0.9 * 3.0], dtype=torch.float64)
    yield equal_everywhere("τ → 1: Q is that of value iteration on the data, so a is better", of_words, q_SV[START, :2])
    yield from _conservative_claims()


def _conservative_claims() -> Iterator[Claim]:
    generator = torch.Generator().manual_seed(4)
    q_2SV = torch.randn(2, 3, 3, generator=generator, dtype=torch.float64)
    zero_S, zero_SV = torch.zeros(3, dtype=torch.float64), torch.zeros(3, 3, dtype=torch.float64)

    def slope(alpha: float) -> Tensor:
        at = q_2SV.clone().requires_grad_()
        return torch.autograd.grad(_loss(at, zero_S, zero_SV, tau=0.5, alpha=alpha), at)[0]

    counts_SV = torch.zeros(3, 3, dtype=torch.float64)
    for first, second, _ in RESPONSES:
        counts_SV[START, first] += 1
        counts_SV[AFTER_A if first == A else AFTER_B, second] += 1
    pulled_2SV = 0.3 * (counts_SV.sum(dim=-1, keepdim=True) * q_2SV.softmax(dim=-1) - counts_SV)
    found = slope(0.3) - slope(0.0)
    yield equal_everywhere("α: ∂/∂Q = α n(s) (softmax Q − data)", pulled_2SV, found, tolerance=1e-12)
    lowest = min(float(found[:, state, token].min()) for state, token in UNSEEN)
    yield Claim.at_least("α: a token that nobody took loses value", reached=lowest, bound=0.0)


CLAIMS: dict[str, Callable[[], Iterator[Claim]]] = {"ilql": _ilql_claims}
