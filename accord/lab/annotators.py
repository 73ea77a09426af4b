"""Simulated annotators of the text world: people of known taste, noise and bias, to check what was learnt.

Every annotator has a utility u and prefers response i to j with Bradley–Terry probability σ((u_i − u_j)/temperature),
after which the answer is flipped with a fixed rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Protocol

import numpy as np

from accord.errors import DataError
from accord.lab.text_world import Request, content_text, gold_breakdown, parse_request, parse_response
from accord.records import Comparison, FinishReason, Group, Response


class Annotator(Protocol):
    """Anyone who can compare two answers to a request."""

    @property
    def name(self) -> str:
        """Who it is, as recorded in the judgement."""
        ...

    def preference_probability(self, request: Request, first: Response, second: Response) -> float:
        """Return the probability of preferring `first` to `second`, noise included."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedAnnotator:
    """A Bradley–Terry annotator; as it stands, one who values the gold reward and nothing else.

    u = gold reward (its tone term weighted by `tone_weight`) + `formal_taste`·sign(#formal − #casual) + `length_bias`·L
    with L in items. P(first ≻ second) = (1 − flip_rate)·σ(Δu/temperature) + flip_rate·(1 − σ(Δu/temperature)).
    Raises DataError when temperature ≤ 0 or flip_rate is outside [0, 0.5].
    """

    name: str = "gold"
    temperature: float = 0.5
    flip_rate: float = 0.0
    tone_weight: float = 1.0
    formal_taste: float = 0.0
    length_bias: float = 0.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise DataError(f"got temperature {self.temperature} — expected a number > 0 — use 1e-6 for no noise")
        if not 0.0 <= self.flip_rate <= 0.5:
            raise DataError(f"got flip_rate {self.flip_rate} — expected a rate in [0, 0.5] — beyond it answers reverse")

    def utility(self, request: Request, response: Response) -> float:
        """Return u, in units of the gold reward. A response counts as ended unless it met the token limit."""
        text = response_text(response)
        gold = gold_breakdown(request, text, response.finish_reason is not FinishReason.LENGTH)
        parsed = parse_response(text)
        taste = (self.tone_weight - 1.0) * gold.tone + self.formal_taste * parsed.tone_balance
        return gold.total + taste + self.length_bias * parsed.num_items

    def preference_probability(self, request: Request, first: Response, second: Response) -> float:
        """Return P(first ≻ second), flips included; exactly 1/2 between equals."""
        margin = (self.utility(request, first) - self.utility(request, second)) / self.temperature
        clean = 0.5 * (1.0 + float(np.tanh(0.5 * margin)))  # the logistic function, without overflow
        return (1.0 - self.flip_rate) * clean + self.flip_rate * (1.0 - clean)


GOLD = SimulatedAnnotator()
NOISY = SimulatedAnnotator(name="noisy", flip_rate=0.2)
FORMAL_LOVER = SimulatedAnnotator(name="formal-lover", tone_weight=0.0, formal_taste=1.5)
CASUAL_LOVER = SimulatedAnnotator(name="casual-lover", tone_weight=0.0, formal_taste=-1.5)
LENGTH_LOVER = SimulatedAnnotator(name="length-lover", length_bias=0.35)


def annotator_panel(share_formal: float, size: int = 20) -> tuple[SimulatedAnnotator, ...]:
    """Return `size` annotators, a share of them formal-lovers the rest casual-lovers, each with a name of its own."""
    if not 0.0 <= share_formal <= 1.0 or size < 1:
        raise DataError(f"got share_formal {share_formal}, size {size} — expected a share in [0, 1] of at least one")
    num_formal = round(share_formal * size)
    kinds = [FORMAL_LOVER] * num_formal + [CASUAL_LOVER] * (size - num_formal)
    return tuple(replace(kind, name=f"{kind.name}-{i}") for i, kind in enumerate(kinds))


def judge(
    annotator: Annotator,
    request: Request,
    responses: Sequence[Response],
    rng: np.random.Generator,
    *,
    pair: tuple[int, int] = (0, 1),
) -> Comparison:
    """Show two of the responses in random order and return which one the annotator preferred.

    `shown_order` holds the pair's indices as shown. Raises DataError when the pair names no two responses.
    """
    first, second = pair
    if first == second or not all(0 <= index < len(responses) for index in pair):
        raise DataError(f"got the pair {pair} of {len(responses)} responses — expected two different indices of them")
    if rng.random() < 0.5:
        first, second = second, first
    prefers_first = rng.random() < annotator.preference_probability(request, responses[first], responses[second])
    better, worse = (first, second) if prefers_first else (second, first)
    return Comparison(better=better, worse=worse, judge=annotator.name, shown_order=(first, second))


def judge_groups(
    groups: Sequence[Group], annotators: Sequence[Annotator], *, seed: int, num_pairs: int | None = None
) -> list[Group]:
    """Have pairs of every group compared, each by an annotator drawn at random; return the judged groups.

    `num_pairs` pairs per group are drawn without replacement (None: all K(K − 1)/2). Texts equal to each other are
    judged like any others: it is for the reader of the data to notice. Raises DataError without annotators, when a
    group has fewer than two responses, or when a prompt is no request of the text world (DataError).
    """
    if not annotators:
        raise DataError("got no annotators — expected at least one — pass for instance (GOLD,)")
    rng = np.random.default_rng(seed)
    return [_judge_group(group, annotators, rng, num_pairs) for group in groups]


def _judge_group(
    group: Group, annotators: Sequence[Annotator], rng: np.random.Generator, num_pairs: int | None
) -> Group:
    request = parse_request(group.prompt)
    pairs = list(combinations(range(len(group.responses)), 2))
    if not pairs:
        raise DataError(f"{group.origin or 'a group'}: got one response — expected two to compare — sample more")
    chosen = range(len(pairs)) if num_pairs is None else rng.permutation(len(pairs))[:num_pairs]
    judgements = tuple(
        judge(annotators[int(rng.integers(len(annotators)))], request, group.responses, rng, pair=pairs[i])
        for i in chosen
    )
    return replace(group, judgements=group.judgements + judgements)


def response_text(response: Response) -> str:
    """Return the words of a response. Raises DataError when it holds token ids only."""
    if response.content is None:
        raise DataError("got a response of token ids — expected words to read — decode it first")
    return content_text(response.content)
