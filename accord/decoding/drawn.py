"""Drawing responses token by token from continuations of a prompt, with the local sampler's own random numbers.

Axes: B rows, K responses, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from accord.data.policies import own_columns
from accord.decoding.cached import decoding, room_for
from accord.errors import ConfigError
from accord.policy.policy import Policy
from accord.policy.sampling import SamplingSettings, stop_ids, tempered_logps
from accord.policy.sampling.draw import CHUNK, uniforms
from accord.records import FinishReason, Group, Response


class Rows(Protocol):
    """Continuations of a prompt that grow token by token, as `CachedRows` are; `logps_BV` are of the next token."""

    logps_BV: Tensor

    def step(self, rows_B: Tensor, tokens_B: Tensor) -> Tensor:
        """Go on from these rows, each with one more token; return the next `logps_BV`."""
        ...


def random_numbers(settings: SamplingSettings, stream: int, room: int) -> np.ndarray:
    """Return the local sampler's own numbers (responses, tokens): at λ = 1 it draws what the sampler draws."""
    chunks = range(-(-room // CHUNK))
    drawn = [
        np.concatenate([uniforms(settings.seed, stream, response, chunk) for chunk in chunks])
        for response in range(settings.num_responses)
    ]
    return np.stack(drawn)[:, :room]


def draw_each(
    models: Sequence[Policy], prompts: Sequence[Sequence[int]], settings: SamplingSettings, *,
    rows_at: Callable[[Sequence[int]], Rows], streams: Sequence[int] | None, ends: frozenset[int] | None,
) -> list[tuple[Response, ...]]:  # fmt: skip
    """Draw K responses to each prompt from the rows that `rows_at` opens there; the first model's tokenizer reads them.

    The random numbers are the local sampler's; a response has room in the window of every model.
    Raises ConfigError for settings that drawing token by token does not look at, PolicyError as `CachedRows` does.
    """
    if settings.stop or settings.min_tokens or settings.repetition_penalty != 1:
        raise ConfigError(
            "got stop, min_tokens or repetition_penalty for decoding token by token — expected temperature, top_k, "
            "top_p and min_p only"
        )
    stops = stop_ids(models[0]) if ends is None else ends
    found = []
    with decoding(*models):
        for index, prompt in enumerate(prompts):
            room = min(room_for(model, prompt, settings.max_tokens) for model in models)
            uniform = random_numbers(settings, index if streams is None else streams[index], room)
            found.append(draw_rows(rows_at(prompt), models[0], settings, stops=stops, uniform=uniform))
    return found


def answered(groups: Sequence[Group], drawn: Sequence[tuple[Response, ...]]) -> list[Group]:
    """Return groups with these responses in the place of their own, and no judgement yet."""
    return [
        replace(group, responses=responses, judgements=(), extra=own_columns(group))
        for group, responses in zip(groups, drawn, strict=True)
    ]


def draw_rows(
    rows: Rows, policy: Policy, settings: SamplingSettings, *, stops: frozenset[int], uniform: np.ndarray
) -> tuple[Response, ...]:
    """Draw K responses token by token from rows that stand at a prompt; `uniform` (K, tokens) says which, how long."""
    room = uniform.shape[1]
    ids: list[list[int]] = [[] for _ in range(settings.num_responses)]
    logps: list[list[float]] = [[] for _ in ids]
    alive = list(range(len(ids)))
    next_BV = rows.logps_BV.repeat_interleave(len(ids), 0)
    origin = [0] * len(ids)  # the cached row each response goes on from
    for step in range(room):
        logps_BV = tempered_logps(next_BV, settings).double()
        tokens = _inverse_cdf(logps_BV, uniform[alive, step], is_greedy=settings.temperature == 0)
        going = []
        for place, (row, token) in enumerate(zip(alive, tokens, strict=True)):
            ids[row].append(token)
            logps[row].append(float(logps_BV[place, token]))
            if token not in stops and step + 1 < room:
                going.append(place)
        if not going:
            break
        rows_B = torch.tensor([origin[place] for place in going])
        tokens_B = torch.tensor([tokens[place] for place in going])
        alive, origin = [alive[place] for place in going], list(range(len(going)))
        next_BV = rows.step(rows_B, tokens_B)
    return tuple(
        replace(as_response(policy, own, stops), behaviour_logps=tuple(own_logps))
        for own, own_logps in zip(ids, logps, strict=True)
    )


def _inverse_cdf(logps_BV: Tensor, uniform_B: np.ndarray, *, is_greedy: bool) -> list[int]:
    if is_greedy:
        return logps_BV.argmax(-1).tolist()
    cdf_BV = logps_BV.exp().cumsum(-1)
    target_B1 = torch.from_numpy(np.ascontiguousarray(uniform_B)).to(cdf_BV)[:, None] * cdf_BV[:, -1:]
    return torch.searchsorted(cdf_BV, target_B1, right=True).squeeze(-1).clamp(max=logps_BV.shape[-1] - 1).tolist()


def as_response(policy: Policy, ids: Sequence[int], ends: frozenset[int]) -> Response:
    """Return decoded ids as a response; an end mark is among its ids and no part of its text."""
    has_stopped = bool(ids) and ids[-1] in ends
    text = policy.tokenizer.decode(list(ids[:-1] if has_stopped else ids), skip_special_tokens=True)
    return Response(
        content=str(text), token_ids=tuple(ids), source=policy.path or None,
        finish_reason=FinishReason.STOP if has_stopped else FinishReason.LENGTH,
    )  # fmt: skip
