"""Derived values and gradients of implicit Q-learning, token by token."""

from __future__ import annotations

from dataclasses import replace

import torch

from accord.groups import ObjectiveResult, ScoredGroups, ScoredTokens
from accord.objectives.implicit_q import ilql

PLAIN = {"alpha": 0.0, "bc": 0.0}


def response(
    *, values: tuple[float, ...] = (1.0, 2.0, 3.0), trained: tuple[bool, ...] = (True, True, True), rating: float = 5.0
) -> ScoredGroups:
    """One rated response of three tokens; both Q heads say (10, 20, 30), their copies less by 1.5, 1 and 0.5 than V."""
    is_trained_PKT = torch.tensor([[trained]])

    def spread(numbers: tuple[float, ...]) -> torch.Tensor:
        return torch.where(is_trained_PKT, torch.tensor([[numbers]], dtype=torch.float64), 0.0)

    q_PKT = spread((10.0, 20.0, 30.0))
    tokens = ScoredTokens(
        policy_logps_PKT=spread((-1.0, -2.0, -4.0)),
        is_trained_PKT=is_trained_PKT,
        value_PKT=spread(values).requires_grad_(),
        q_PKT2=torch.stack([q_PKT, q_PKT], dim=-1).requires_grad_(),
        q_logps_PKT2=torch.stack([spread((-1.0, -1.0, -1.0)), spread((-3.0, -2.0, -1.0))], dim=-1),
        target_q_PKT=spread((values[0] - 1.5, values[1] - 1.0, values[2] - 0.5)),
    )
    return ScoredGroups(
        policy_logps_PK=tokens.policy_logps_PKT.sum(-1),
        num_tokens_PK=is_trained_PKT.sum(-1),
        is_valid_PK=torch.tensor([[True]]),
        reward_PK=torch.tensor([[rating]], dtype=torch.float64),
        is_rated_PK=torch.tensor([[True]]),
        tokens=tokens,
    )


def slopes(groups: ScoredGroups, result: ObjectiveResult) -> tuple[list[float], list[float]]:
    """d loss by V and by the first Q of each token."""
    assert groups.tokens is not None
    by_value, by_q = torch.autograd.grad(result.loss_P.sum(), [groups.tokens.value_PKT, groups.tokens.q_PKT2])
    return by_value.flatten().tolist(), by_q[..., 0].flatten().tolist()


def test_each_token_looks_one_ahead_and_the_rating_comes_after_the_last():
    groups = response()
    result = ilql(groups, gamma=0.5, tau=0.9, **PLAIN)
    # y = (0.5 · 2, 0.5 · 3, 5); every copy is below V, so w = 0.1
    aims, gaps = (1.0, 1.5, 5.0), (-1.5, -1.0, -0.5)
    expected = sum(2 * (y - q) ** 2 for y, q in zip(aims, (10, 20, 30), strict=True)) + sum(0.1 * g**2 for g in gaps)
    torch.testing.assert_close(result.loss_P, torch.tensor([expected], dtype=torch.float64))
    assert result.denominators().tolist() == [3.0]
    by_value, by_q = slopes(groups, result)
    torch.testing.assert_close(by_value, [-2 * 0.1 * g for g in gaps])  # nothing from y, in which V is held
    torch.testing.assert_close(by_q, [-2 * (y - q) for y, q in zip(aims, (10, 20, 30), strict=True)])
    assert result.implicit_reward_PK.tolist() == [[-3.0]]


def test_what_is_not_trained_is_no_state():
    """Tokens between two turns are nobody's choice: the value behind them is looked at instead."""
    groups = response(trained=(True, False, True))
    result = ilql(groups, gamma=0.5, tau=0.9, **PLAIN)
    expected = 2 * (0.5 * 3 - 10) ** 2 + 2 * (5 - 30) ** 2 + 0.1 * (1.5**2 + 0.5**2)
    torch.testing.assert_close(result.loss_P, torch.tensor([expected], dtype=torch.float64))
    ends_early = ilql(response(trained=(True, True, False)), gamma=0.5, tau=0.9, **PLAIN)
    expected = 2 * (0.5 * 2 - 10) ** 2 + 2 * (5 - 20) ** 2 + 0.1 * (1.5**2 + 1.0**2)
    torch.testing.assert_close(ends_early.loss_P, torch.tensor([expected], dtype=torch.float64))


def test_the_other_terms_are_likelihoods():
    groups = response()
    alone = ilql(groups, **PLAIN).loss_P
    conservative = ilql(groups, alpha=0.2, bc=0.0).loss_P - alone
    torch.testing.assert_close(conservative, torch.tensor([0.2 * (3.0 + 6.0)], dtype=torch.float64))
    imitating = ilql(groups, alpha=0.0, bc=0.5).loss_P - alone
    torch.testing.assert_close(imitating, torch.tensor([0.5 * 7.0], dtype=torch.float64))


def test_an_unrated_response_is_not_imitated_either():
    groups = response()
    groups = replace(groups, is_rated_PK=torch.tensor([[False]]))
    result = ilql(groups)
    assert (result.loss_P.item(), result.denominators().item(), result.is_counted_P.item()) == (0.0, 0.0, False)


def test_the_share_of_the_copies_is_not_in_the_loss():
    assert torch.equal(ilql(response(), polyak=1.0).loss_P, ilql(response()).loss_P)
