"""Scores of single tokens as the record that objectives see: (N,) in a row becomes (P, K, T) with its mask.

Axes: P groups, K responses, T tokens of a response (padded), N response tokens of all groups in order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain
from typing import Literal

import torch
from torch import Tensor

from accord.data.tokens import TokenGroup, TokenResponse
from accord.groups import ScoredTokens
from accord.policy.judgements import preferences
from accord.policy.policy import Scores
from accord.policy.tokens.edits import kept_tokens


def to_scored_tokens(
    groups: Sequence[TokenGroup], scores: Scores, reference_logps_N: Tensor | None = None
) -> ScoredTokens:
    """Return the scores of the groups' tokens, by-products and what came with the data included where it is there.

    What is not a trained token holds 0 everywhere; log-probabilities sum to those of the responses. Carries grad.
    """
    spread, like_N = _spreader(groups, scores), scores.token_logps_N
    log_sum_sq_N = scores.statistics.get("log_sum_sq")
    responses = [response for group in groups for response in group.responses]

    def given(of: Callable[[TokenResponse], Sequence[float] | Sequence[bool] | None]) -> Tensor:
        """Join one fact per token of all responses; 1 for a response that has none."""
        found = [values if (values := of(response)) is not None else (1,) * len(response.ids) for response in responses]
        return spread(torch.tensor(list(chain.from_iterable(found)), dtype=like_N.dtype).to(like_N.device))

    def recorded(name: RolloutFact) -> Tensor | None:
        values_N = recorded_logps(groups, name, like_N)
        return None if values_N is None else spread(values_N)

    policy_logps_PKT = spread(like_N)
    sampler_logps_PKT, old_logps_PKT = recorded("sampler_logps"), recorded("old_logps")
    advantage_PKT = recorded("advantages")
    if old_logps_PKT is None and advantage_PKT is not None:  # this pass is before any update
        old_logps_PKT = policy_logps_PKT.detach()
    is_aligned = all(response.is_kept is not None for response in responses)
    is_estimated = all(response.critical is not None for response in responses)
    return ScoredTokens(
        policy_logps_PKT=policy_logps_PKT,
        reference_logps_PKT=None if reference_logps_N is None else spread(reference_logps_N),
        is_trained_PKT=spread(torch.ones_like(like_N)) > 0,
        weight_PKT=given(lambda response: response.weights),
        is_kept_PKT=given(lambda response: response.is_kept) > 0 if is_aligned else None,
        critical_PKT=given(lambda response: response.critical) if is_estimated else None,
        log_sum_sq_PKT=None if log_sum_sq_N is None else spread(log_sum_sq_N),
        position_kl_PKT=None if scores.position_kl_N is None else spread(scores.position_kl_N),
        sampler_logps_PKT=sampler_logps_PKT,
        old_logps_PKT=old_logps_PKT,
        advantage_PKT=advantage_PKT,
        return_PKT=recorded("returns"),
        old_value_PKT=recorded("old_values"),
        value_PKT=None if scores.value_N is None else spread(scores.value_N),
        entropy_PKT=None if scores.entropy_N is None else spread(scores.entropy_N),
        **_of_q_values(scores, spread),
    )


def _of_q_values(scores: Scores, spread: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    if scores.q_values is None:
        return {}
    of_heads = {"q_PKT2": scores.q_values.q_N2, "q_logps_PKT2": scores.q_values.q_logps_N2}
    pairs = {name: torch.stack([spread(x) for x in pair.unbind(-1)], dim=-1) for name, pair in of_heads.items()}
    return pairs | {"target_q_PKT": spread(scores.q_values.target_q_N)}


RolloutFact = Literal["old_logps", "sampler_logps", "reference_logps", "advantages", "returns", "old_values"]


def recorded_logps(groups: Sequence[TokenGroup], name: RolloutFact, like_N: Tensor) -> Tensor | None:
    """Return what a rollout recorded of every response token (N,), typed like `like_N`; None where it did not."""
    rollouts = [response.rollout for group in groups for response in group.responses]
    found: list[tuple[float, ...]] = []
    for rollout in rollouts:
        values = None if rollout is None else getattr(rollout, name)
        if values is None:
            return None
        found.append(values)
    return torch.tensor(list(chain.from_iterable(found)), dtype=like_N.dtype).to(like_N.device)


def _spreader(groups: Sequence[TokenGroup], scores: Scores) -> Callable[[Tensor], Tensor]:
    """Return what lays numbers of all tokens (N,) out as (P, K, T), 0 where there is no trained token."""
    shape = (*scores.is_valid_PK.shape, max(len(response.ids) for group in groups for response in group.responses))
    slots = [
        ((row * shape[1] + column) * shape[2], len(response.ids))
        for row, group in enumerate(groups)
        for column, response in enumerate(group.responses)
    ]
    places = [place for first, length in slots for place in range(first, first + length)]
    place_N = torch.tensor(places, dtype=torch.long, device=scores.is_trained_N.device)

    def spread(values_N: Tensor) -> Tensor:
        values_N = torch.where(scores.is_trained_N, values_N, 0.0)
        return values_N.new_zeros(shape).flatten().index_put((place_N,), values_N).view(shape)

    return spread


def with_edits(groups: Sequence[TokenGroup]) -> list[TokenGroup]:
    """Return the groups, each token of a compared response marked by whether the responses beside it kept it.

    A token is kept where every response that this one was judged better or worse than shares it, by alignment.
    """
    return [_with_edits(group) for group in groups]


def _with_edits(group: TokenGroup) -> TokenGroup:
    kept = [[True] * len(response.ids) for response in group.responses]
    for pair in {tuple(sorted(pair)) for pair in preferences(group.judgements)}:
        flags = kept_tokens(*(group.responses[index].ids for index in pair))
        for index, by_this_one in zip(pair, flags, strict=True):
            kept[index] = [before and now for before, now in zip(kept[index], by_this_one, strict=True)]
    responses = [replace(r, is_kept=tuple(flags)) for r, flags in zip(group.responses, kept, strict=True)]
    return replace(group, responses=tuple(responses))
