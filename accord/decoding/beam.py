"""Beam search over a policy's implicit reward β log π/π_ref: what preference training put into its tokens.

Source: "From r to Q*", Rafailov et al. 2024, arXiv:2404.12358.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from accord.data import encode_prompts
from accord.decoding.cached import CachedRows, check_same_vocabulary, decoding, room_for
from accord.decoding.drawn import answered, as_response
from accord.errors import ConfigError
from accord.policy.policy import Policy
from accord.policy.sampling import stop_ids
from accord.records import Group, Response

By = Literal["implicit_reward", "log_prob"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Beam:
    """One finished or cut-off sequence: its ids, log π and log π/π_ref of the whole, nats."""

    ids: tuple[int, ...]
    logp: float
    log_ratio: float
    has_ended: bool


def beam_search(
    policy: Policy,
    reference: Policy,
    prompt: Sequence[int],
    *,
    width: int = 5,
    expand: int | None = None,
    max_tokens: int = 128,
    by: By = "implicit_reward",
    ends: Iterable[int] = (),
) -> list[Beam]:
    """Return the best `width` continuations of a prompt's ids by Σ log π/π_ref (or log π), best first.

    Each beam proposes its `expand` likeliest tokens under the policy (None = as many as there are beams); without that
    cut, the ratio would favour tokens that both models find absurd. A sequence that ended keeps its place in the beam.
    With a width of all sequences and `expand` of all tokens the search is exhaustive.
    Raises PolicyError for models with different vocabularies, and as `CachedRows` does.
    """
    if width < 1 or max_tokens < 1 or (expand is not None and expand < 1):
        raise ConfigError(f"got width={width}, expand={expand}, max_tokens={max_tokens} — expected each at least 1")
    check_same_vocabulary(policy, reference)
    stops = frozenset(ends) or stop_ids(policy)
    room = min(room_for(model, prompt, max_tokens) for model in (policy, reference))
    per_beam = min(expand or width, policy.causal_lm.config.get_text_config().vocab_size)
    done: list[Beam] = []
    alive = [Beam(ids=(), logp=0.0, log_ratio=0.0, has_ended=False)]
    with decoding(policy, reference):
        ours, theirs = CachedRows(policy, prompt), CachedRows(reference, prompt)
        for step in range(room):
            proposed = _proposals(ours, theirs, alive, per_beam, stops)
            ranked = sorted([*proposed, *((None, beam) for beam in done)], key=lambda one: -_value(one[1], by))[:width]
            done = [beam for _, beam in ranked if beam.has_ended]
            going = [(row, beam) for row, beam in ranked if row is not None and not beam.has_ended]
            alive = [beam for _, beam in going]
            if not alive or step + 1 == room:
                break
            rows_B = torch.tensor([row for row, _ in going])
            tokens_B = torch.tensor([beam.ids[-1] for beam in alive])
            ours.step(rows_B, tokens_B)
            theirs.step(rows_B, tokens_B)
    return sorted([*done, *alive], key=lambda beam: -_value(beam, by))[:width]


def _proposals(
    ours: CachedRows, theirs: CachedRows, alive: Sequence[Beam], per_beam: int, stops: frozenset[int]
) -> list[tuple[int | None, Beam]]:
    logps_BE, tokens_BE = ours.logps_BV.topk(per_beam, dim=-1)
    reference_BE = theirs.logps_BV.to(tokens_BE.device).gather(-1, tokens_BE)
    found: list[tuple[int | None, Beam]] = []
    for row, beam in enumerate(alive):
        triples = zip(tokens_BE[row].tolist(), logps_BE[row].tolist(), reference_BE[row].tolist(), strict=True)
        found.extend(
            (
                row,
                Beam(
                    ids=(*beam.ids, token), logp=beam.logp + logp, log_ratio=beam.log_ratio + logp - ref_logp,
                    has_ended=token in stops,
                ),
            )
            for token, logp, ref_logp in triples
            if logp > -math.inf
        )  # fmt: skip
    return found


def _value(beam: Beam, by: By) -> float:
    return beam.log_ratio if by == "implicit_reward" else beam.logp


def search_answers(
    policy: Policy,
    reference: Policy,
    groups: Sequence[Group],
    *,
    num_responses: int = 1,
    width: int = 5,
    expand: int | None = None,
    max_tokens: int = 128,
    by: By = "implicit_reward",
    chat_template: str = "auto",
) -> list[Group]:
    """Return groups with the same prompts and the best `num_responses` of a beam search as responses.

    Raises ConfigError for more responses than beams, and as `beam_search` does.
    """
    if num_responses > width:
        raise ConfigError(f"got num_responses={num_responses} of {width} beams — expected at most as many")
    drawn = []
    ends = stop_ids(policy, chat_template)
    for prompt in encode_prompts(groups, policy.tokenizer, chat_template=chat_template):
        beams = beam_search(
            policy, reference, prompt, width=width, expand=expand, max_tokens=max_tokens, by=by, ends=ends
        )  # fmt: skip
        responses: tuple[Response, ...] = tuple(as_response(policy, beam.ids, ends) for beam in beams[:num_responses])
        drawn.append(responses)
    return answered(groups, drawn)
