"""Sampled responses as token groups, and as plain values for a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from accord.data import group_to_row, read_group
from accord.data.tokens import RolloutTokens, TokenGroup, TokenResponse
from accord.records import FinishReason, Group, Response

OPPONENT = "reference"
"""What `Response.source` says of responses that the reference drew."""


def to_token_group(group: Group, prompt_ids: Sequence[int], *, index: int, mask_truncated: bool = False) -> TokenGroup:
    """Return a sampled group as the policy sees it; `mask_truncated`: responses that were cut count for nothing."""
    return TokenGroup(
        prompt_ids=tuple(prompt_ids),
        responses=tuple(_to_token_response(response, mask_truncated=mask_truncated) for response in group.responses),
        judgements=group.judgements,
        index=index,
        source=group,
    )


def _to_token_response(response: Response, *, mask_truncated: bool) -> TokenResponse:
    assert response.token_ids is not None
    was_cut = response.finish_reason is FinishReason.LENGTH
    return TokenResponse(
        ids=response.token_ids,
        is_trained=(False,) * len(response.token_ids) if was_cut and mask_truncated else None,
        has_eos=response.finish_reason is FinishReason.STOP,
        was_truncated=was_cut,
        rollout=RolloutTokens(
            sampler_logps=response.behaviour_logps, was_truncated=was_cut, is_own=response.source != OPPONENT
        ),
    )


def without_gradient(response: TokenResponse) -> TokenResponse:
    """Return the response with no token trained: its reward is unknown."""
    return replace(response, is_trained=(False,) * len(response.ids))


def to_plain(group: TokenGroup) -> dict[str, Any]:
    """Return everything of a sampled group as plain values."""
    assert group.source is not None
    return {
        "row": group_to_row(group.source),
        "prompt_ids": list(group.prompt_ids),
        "index": group.index,
        "responses": [asdict(response) for response in group.responses],
    }


def from_plain(plain: dict[str, Any]) -> TokenGroup:
    """Return what `to_plain` was given, bit for bit."""
    source = read_group(plain["row"])
    return TokenGroup(
        prompt_ids=tuple(plain["prompt_ids"]),
        responses=tuple(_response_from_plain(values) for values in plain["responses"]),
        judgements=source.judgements,
        index=plain["index"],
        source=source,
    )


def _response_from_plain(plain: dict[str, Any]) -> TokenResponse:
    rollout = plain["rollout"]
    values: dict[str, Any] = _with_tuples(plain)
    values["rollout"] = None if rollout is None else RolloutTokens(**_with_tuples(rollout))
    return TokenResponse(**values)


def _with_tuples(plain: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in plain.items()}
