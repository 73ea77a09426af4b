"""What Q heads say of the tokens that were taken: values, and how likely a softmax of the values makes them.

Axes: N response tokens, H hidden, V vocabulary. The (N, V) values of all tokens never exist at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from accord.policy.head import linear_logps


@dataclass(frozen=True, kw_only=True)
class QValues:
    """Action values of the response tokens, by two heads and by the slow copies of both."""

    q_N2: Tensor  # Q_i(s, a) of the token taken, in the reward's units; carries grad
    q_logps_N2: Tensor  # log softmax Q_i(s, ·) at that token, nats; carries grad
    target_q_N: Tensor  # the smaller of the two copies' values of it, no grad


def q_values_of(
    hidden_NH: Tensor, heads: Sequence[nn.Linear], targets: Sequence[nn.Linear], taken_N: Tensor
) -> QValues:
    """Return what two heads and their slow copies say of the tokens taken in N states."""
    taken = [q_of_taken(hidden_NH, head, taken_N) for head in heads]
    logps = [linear_logps(hidden_NH, head.weight, head.bias, taken_N)[0] for head in heads]
    with torch.no_grad():
        slow = [q_of_taken(hidden_NH, head, taken_N) for head in targets]
    return QValues(
        q_N2=torch.stack(taken, dim=-1), q_logps_N2=torch.stack(logps, dim=-1), target_q_N=torch.stack(slow).amin(0)
    )


def q_of_taken(hidden_NH: Tensor, head: nn.Linear, taken_N: Tensor) -> Tensor:
    """Return h · w_a + b_a of the token a taken in each state (N,): one row of the head each."""
    return (hidden_NH * head.weight[taken_N]).sum(dim=-1) + head.bias[taken_N]
