"""What a rollout's responses are worth: scored once by the model that will be trained, then advantages.

Axes: P groups, K responses (padded), T tokens (padded). Everything here is without gradient, in float64 on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from accord.data.batching import micro_batches
from accord.data.tokens import TokenGroup, TokenResponse
from accord.groups import Advantages, RolloutBatch
from accord.rollouts.judging import rewards_of
from accord.rollouts.tokens import without_gradient
from accord.run.scored import Scoring

PerToken = list[list[tuple[float, ...]]]  # group by group, response by response


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What models said of every token of a rollout, before any update; None = not asked."""

    old_logps: PerToken | None = None
    reference_logps: PerToken | None = None
    values: PerToken | None = None


@torch.no_grad()
def measure_tokens(
    groups: Sequence[TokenGroup], scoring: Scoring, *, max_tokens: int, with_reference: bool, with_values: bool
) -> Measured:
    """Score a rollout with the weights as they are; every process its share, and all get everything."""
    rank, world = scoring.share
    mine: list[tuple[int, dict[str, list[tuple[float, ...]]]]] = []
    for places in micro_batches(groups, max_tokens, layout=scoring.policy.layout)[rank::world]:
        part = [groups[place] for place in places]
        scores = scoring.policy.score(part)
        columns: dict[str, Tensor] = {"old_logps": scores.token_logps_N}
        if with_reference:
            assert scoring.reference is not None, "a run whose advantages need a reference has one"
            columns["reference_logps"] = scoring.reference.token_logps(part, scores.token_logps_N, keep=False)
        if with_values:
            assert scores.value_N is not None, "a run whose advantages need values has a critic"
            columns["values"] = scores.value_N
        split = {name: _by_response(part, values_N) for name, values_N in columns.items()}
        for row, place in enumerate(places):
            mine.append((place, {name: of_groups[row] for name, of_groups in split.items()}))
    joined = dict(scoring.gather(mine))
    ordered = [joined[place] for place in range(len(groups))]

    def column(name: str) -> PerToken | None:
        return [of_group[name] for of_group in ordered] if ordered and name in ordered[0] else None

    return Measured(
        old_logps=column("old_logps"), reference_logps=column("reference_logps"), values=column("values")
    )  # fmt: skip


def _by_response(groups: Sequence[TokenGroup], values_N: Tensor) -> PerToken:
    flat, found, place = values_N.detach().cpu().double().tolist(), [], 0
    for group in groups:
        found.append([])
        for response in group.responses:
            found[-1].append(tuple(flat[place : place + len(response.ids)]))
            place += len(response.ids)
    return found


def to_batch(groups: Sequence[TokenGroup], measured: Measured) -> RolloutBatch:
    """Return a rollout as the record that advantages are computed from."""
    shape = (len(groups), max(len(group.responses) for group in groups))
    width = max(1, max(len(response.ids) for group in groups for response in group.responses))
    reward_PK, is_scored_PK = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.bool)
    is_token_PKT = torch.zeros((*shape, width), dtype=torch.bool)
    for row, group in enumerate(groups):
        assert group.source is not None
        for column, (reward, response) in enumerate(zip(rewards_of(group.source), group.responses, strict=True)):
            is_scored_PK[row, column] = reward is not None
            reward_PK[row, column] = 0.0 if reward is None else reward
            is_token_PKT[row, column, : len(response.ids)] = True

    def spread(values: PerToken | None) -> Tensor | None:
        if values is None:
            return None
        found = torch.zeros((*shape, width), dtype=torch.float64)
        for row, of_group in enumerate(values):
            for column, of_response in enumerate(of_group):
                found[row, column, : len(of_response)] = torch.tensor(of_response, dtype=torch.float64)
        return found

    old_logps_PKT = spread(measured.old_logps)
    return RolloutBatch(
        reward_PK=reward_PK,
        is_scored_PK=is_scored_PK,
        is_token_PKT=is_token_PKT,
        old_logps_PKT=torch.zeros((*shape, width), dtype=torch.float64) if old_logps_PKT is None else old_logps_PKT,
        reference_logps_PKT=spread(measured.reference_logps),
        value_PKT=spread(measured.values),
    )


def with_advantages(groups: Sequence[TokenGroup], measured: Measured, found: Advantages | None) -> list[TokenGroup]:
    """Return groups whose tokens know what the model said of them and what they are worth.

    A response that counts for nothing, because its reward is unknown, trains no token.
    """
    return [
        replace(
            group,
            responses=tuple(
                _with(response, row, column, measured, found) for column, response in enumerate(group.responses)
            ),
        )
        for row, group in enumerate(groups)
    ]


def _with(
    response: TokenResponse, row: int, column: int, measured: Measured, found: Advantages | None
) -> TokenResponse:
    rollout = response.rollout
    assert rollout is not None, "a rollout's responses were sampled"
    more: dict[str, Any] = {}
    if measured.old_logps is not None:
        more["old_logps"] = measured.old_logps[row][column]
    if measured.reference_logps is not None:
        more["reference_logps"] = measured.reference_logps[row][column]
    if measured.values is not None:
        more["old_values"] = measured.values[row][column]
    if found is not None:
        length = len(response.ids)
        more["advantages"] = tuple(found.advantage_PKT[row, column, :length].tolist())
        if found.return_PKT is not None:
            more["returns"] = tuple(found.return_PKT[row, column, :length].tolist())
        if not bool(found.is_counted_PK[row, column]):
            response = without_gradient(response)
    return replace(response, rollout=replace(rollout, **more))
