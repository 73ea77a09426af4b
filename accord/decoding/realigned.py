"""How strongly a policy is aligned, chosen while decoding: a geometric mixture of reference and policy, by token.

π_λ(token) ∝ π_ref^{1−λ} π^λ. Where π ∝ π_ref e^{r/β} token by token, π_λ ∝ π_ref e^{λr/β}: the policy of strength
β/λ. λ = 0 is the reference, 1 the policy, and beyond 1 is more aligned than was trained.
Source: DeRa, Liu et al. 2024, arXiv:2402.02992.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from accord.data import encode_prompts
from accord.decoding.cached import CachedRows, check_same_vocabulary, decoding, room_for
from accord.errors import ConfigError
from accord.policy.policy import Policy
from accord.policy.sampling import SamplingSettings, stop_ids, tempered_logps
from accord.policy.sampling.draw import CHUNK, uniforms
from accord.records import FinishReason, Group, Response


def mixed_logps(reference_logps_BV: Tensor, policy_logps_BV: Tensor, strength: float) -> Tensor:
    """Return log π_λ, nats, normalised over the vocabulary. What the reference rules out stays out for λ > 1."""
    mixed_BV = torch.lerp(reference_logps_BV, policy_logps_BV, strength)  # at 0 and 1 one of them exactly
    impossible_BV = torch.isneginf(reference_logps_BV) | torch.isneginf(policy_logps_BV)
    if strength in (0, 1):
        return policy_logps_BV if strength else reference_logps_BV
    return mixed_BV.masked_fill(impossible_BV, -math.inf).log_softmax(-1)


def sample_realigned(
    policy: Policy,
    reference: Policy,
    prompts: Sequence[Sequence[int]],
    settings: SamplingSettings,
    *,
    strength: float,
    streams: Sequence[int] | None = None,
    ends: frozenset[int] | None = None,
) -> list[tuple[Response, ...]]:
    """Draw K responses to each prompt of token ids from the mixture with λ = `strength`.

    Temperature, top-k and top-p apply to the mixture; `behaviour_logps` are those of what was drawn from. The random
    numbers are those of the local sampler: row (seed, prompt, response) has a stream of its own; `streams` as there.
    Raises PolicyError for models with different vocabularies, and as `CachedRows` does.
    """
    if not math.isfinite(strength) or strength < 0:
        raise ConfigError(f"got strength={strength} — expected λ ≥ 0: 0 = the reference, 1 = the policy")
    if settings.stop or settings.min_tokens or settings.repetition_penalty != 1:
        raise ConfigError(
            "got stop, min_tokens or repetition_penalty for a mixture of models — expected temperature, top_k, top_p "
            "and min_p only"
        )
    check_same_vocabulary(policy, reference)
    stops = stop_ids(policy) if ends is None else ends
    found = []
    with decoding(policy, reference):
        for index, prompt in enumerate(prompts):
            room = min(room_for(model, prompt, settings.max_tokens) for model in (policy, reference))
            uniform = random_numbers(settings, index if streams is None else streams[index], room)
            rows = _Mixture(CachedRows(reference, prompt), CachedRows(policy, prompt), strength)
            found.append(draw_rows(rows, policy, settings, stops=stops, uniform=uniform))
    return found


class Rows(Protocol):
    """Continuations of a prompt that grow token by token, as `CachedRows` are; `logps_BV` are of the next token."""

    logps_BV: Tensor

    def step(self, rows_B: Tensor, tokens_B: Tensor) -> Tensor:
        """Go on from these rows, each with one more token; return the next `logps_BV`."""
        ...


class _Mixture:
    def __init__(self, reference: CachedRows, policy: CachedRows, strength: float) -> None:
        self._models, self._strength = (reference, policy), strength
        self.logps_BV = self._mix(*(model.logps_BV for model in self._models))

    def step(self, rows_B: Tensor, tokens_B: Tensor) -> Tensor:
        self.logps_BV = self._mix(*(model.step(rows_B, tokens_B) for model in self._models))
        return self.logps_BV

    def _mix(self, first_BV: Tensor, second_BV: Tensor) -> Tensor:
        return mixed_logps(first_BV, second_BV.to(first_BV.device), self._strength)


def random_numbers(settings: SamplingSettings, stream: int, room: int) -> np.ndarray:
    """Return the local sampler's own numbers (responses, tokens): at λ = 1 it draws what the sampler draws."""
    chunks = range(-(-room // CHUNK))
    drawn = [
        np.concatenate([uniforms(settings.seed, stream, response, chunk) for chunk in chunks])
        for response in range(settings.num_responses)
    ]
    return np.stack(drawn)[:, :room]


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


def answer_realigned(
    policy: Policy, reference: Policy, groups: Sequence[Group], settings: SamplingSettings, *, strength: float,
    chat_template: str = "auto",
) -> list[Group]:  # fmt: skip
    """Return groups with the same prompts and K responses each, drawn from the mixture with λ = `strength`."""
    prompts = encode_prompts(groups, policy.tokenizer, chat_template=chat_template)
    ends = stop_ids(policy, chat_template)
    drawn = sample_realigned(policy, reference, prompts, settings, strength=strength, ends=ends)
    return [
        replace(
            group, responses=responses, judgements=(),
            extra={key: value for key, value in group.extra.items() if key != "is_prompt_only"},
        )
        for group, responses in zip(groups, drawn, strict=True)
    ]  # fmt: skip
