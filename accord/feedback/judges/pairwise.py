"""Judging two responses against each other, shown in both orders so that the place counts for nothing."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from accord.errors import FeedbackError
from accord.feedback.judges.chat import Chat, Conversation, answer_until_read
from accord.feedback.judges.judging import Judged
from accord.feedback.judges.prompts import Preferred, Prompt, answer_text, load_prompt, read_verdict, text_of
from accord.records import Comparison, Group

OPTIONS = ("A", "B")
Order = tuple[int, int]  # the two responses, as shown


@dataclass(frozen=True, slots=True, kw_only=True)
class PairFinding:
    """What a judge made of one pair: per order shown, the response it preferred or the log-odds of the first place."""

    orders: tuple[Order, ...]
    comparison: Comparison | None  # None = unknown, for the reason given
    preferred: tuple[Preferred | None, ...] = ()  # as said, by place; None = unreadable
    log_odds: tuple[float | None, ...] = ()  # nats, log p(A) − log p(B)
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class PairwiseJudge:
    """An LLM that compares responses.

    mode "verdict": a written [[A]], [[B]] or [[C]] is read; shown in both orders, a win is a win only if it is one in
    both, else the pair is tied (Zheng et al. 2023, arXiv:2306.05685). mode "logprobs": the log-odds of the answers A
    and B to a question without reasoning; their average over both orders takes out a bias of the place that adds to
    the log-odds, exactly, and is the comparison's strength (nats).
    Without `swap` one order is shown, drawn by `seed` and the pair. `pairs` is "all", or "first": each response
    against response 0. `reference_key` names what of `group.extra` is shown as a correct answer.
    """

    chat: Chat
    mode: Literal["verdict", "logprobs"] = "verdict"
    prompt: str | Path | None = None  # None = pairwise.v1, or choice.v1 for log-probabilities
    rubric: str = ""
    reference_key: str | None = None
    swap: bool = True
    pairs: Literal["all", "first"] = "all"
    num_attempts: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.mode not in ("verdict", "logprobs") or self.pairs not in ("all", "first") or self.num_attempts < 1:
            raise FeedbackError(
                f"got mode={self.mode!r}, pairs={self.pairs!r}, num_attempts={self.num_attempts} — expected "
                "verdict or logprobs, all or first, and at least one attempt"
            )
        if self.mode == "logprobs" and (self.rubric or self.reference_key) and self.prompt is None:
            raise FeedbackError(
                "got a rubric or reference for mode logprobs, whose prompt choice.v1 shows neither — expected a prompt "
                "of your own that does, or mode verdict"
            )

    @cached_property
    def _prompt(self) -> Prompt:
        return load_prompt(self.prompt or ("pairwise.v1" if self.mode == "verdict" else "choice.v1"))

    @property
    def name(self) -> str:
        """`llm:MODEL/PROMPT.vN#DIGEST`."""
        return f"llm:{self.chat.name}/{self._prompt.label}"

    def judge(self, groups: Sequence[Group]) -> list[Judged]:
        """Return a comparison of each pair of each group; see `Judge`."""
        return [
            Judged(
                judgements=tuple(pair.comparison for pair in pairs if pair.comparison is not None),
                unknown=tuple(pair.reason for pair in pairs if pair.comparison is None),
            )
            for pairs in self.compare(groups)
        ]

    def compare(self, groups: Sequence[Group]) -> list[list[PairFinding]]:
        """Return what the judge said of each pair in each order it was shown in."""
        asked = [(group, self._orders(group, i, j)) for group in groups for i, j in self._pairs(len(group.responses))]
        missing = [self._missing(group) for group, _ in asked]
        conversations = [
            self._conversation(group, order)
            for (group, orders), reason in zip(asked, missing, strict=True)
            for order in orders
            if not reason
        ]
        said = iter(self._verdicts(conversations) if self.mode == "verdict" else self._log_odds(conversations))
        found = iter(
            [
                PairFinding(orders=orders, comparison=None, reason=reason)
                if reason
                else self._finding(orders, [next(said) for _ in orders])
                for (_, orders), reason in zip(asked, missing, strict=True)
            ]
        )
        return [[next(found) for _ in self._pairs(len(group.responses))] for group in groups]

    def _pairs(self, num_responses: int) -> list[Order]:
        last = num_responses if self.pairs == "all" else min(1, num_responses)
        return [(i, j) for i in range(last) for j in range(i + 1, num_responses)]

    def _orders(self, group: Group, i: int, j: int) -> tuple[Order, ...]:
        if self.swap:
            return (i, j), (j, i)
        is_turned = random.Random(f"{self.seed} {i} {j} {text_of(group.prompt)}").random() < 0.5
        return ((j, i) if is_turned else (i, j),)

    def _missing(self, group: Group) -> str:
        if self.reference_key is None or group.extra.get(self.reference_key) not in (None, ""):
            return ""
        return f"{group.origin or 'the group'} has no {self.reference_key!r} in its extra columns"

    def _conversation(self, group: Group, order: Order) -> Conversation:
        return self._prompt.render(
            request=text_of(group.prompt),
            answer_a=answer_text(group, order[0]),
            answer_b=answer_text(group, order[1]),
            reference="" if self.reference_key is None else str(group.extra[self.reference_key]),
            rubric=self.rubric,
            principle="",
            is_reasoned=False,
        )

    def _verdicts(self, conversations: Sequence[Conversation]) -> list[tuple[Preferred | None, str]]:
        return answer_until_read(self.chat, conversations, read_verdict, num_attempts=self.num_attempts)

    def _log_odds(self, conversations: Sequence[Conversation]) -> list[tuple[float | None, str]]:
        unknown = "A and B were not both among the likeliest tokens, or the conversation was too long"
        return [
            (None, unknown) if logps is None else (logps[0] - logps[1], "")
            for logps in (self.chat.option_logps(conversations, OPTIONS) if conversations else [])
        ]

    def _finding(self, orders: tuple[Order, ...], said: list[tuple[Preferred | float | None, str]]) -> PairFinding:
        values = tuple(value for value, _ in said)
        preferred = tuple(v if isinstance(v, Preferred) else None for v in values) if self.mode == "verdict" else ()
        log_odds = tuple(v if isinstance(v, float) else None for v in values) if self.mode == "logprobs" else ()
        reasons = [reason for value, reason in said if value is None]
        if reasons:
            comparison = None
        elif self.mode == "verdict":
            comparison = self._decided(orders, [v for v in preferred if v is not None])
        else:
            comparison = self._weighed(orders, [v for v in log_odds if v is not None])
        return PairFinding(
            orders=orders, comparison=comparison, preferred=preferred, log_odds=log_odds, reason="; ".join(reasons)
        )

    def _decided(self, orders: tuple[Order, ...], preferred: list[Preferred]) -> Comparison:
        winners = {
            {Preferred.FIRST: order[0], Preferred.SECOND: order[1], Preferred.TIE: None}[place]
            for order, place in zip(orders, preferred, strict=True)
        }
        winner = winners.pop() if len(winners) == 1 else None
        first, second = orders[0]
        better, worse = (second, first) if winner == second else (first, second)
        return Comparison(better=better, worse=worse, is_tie=winner is None, judge=self.name, shown_order=orders[0])

    def _weighed(self, orders: tuple[Order, ...], log_odds: list[float]) -> Comparison:
        odds = swapped_log_odds(*log_odds) if len(log_odds) == 2 else log_odds[0]
        first, second = orders[0]
        better, worse = (first, second) if odds >= 0 else (second, first)
        return Comparison(
            better=better, worse=worse, strength=abs(odds), is_tie=odds == 0, judge=self.name, shown_order=orders[0]
        )


def swapped_log_odds(first_ab: float, first_ba: float) -> float:
    """Return the log-odds that A is better than B, from those of the first place with A first and with B first.

    Formula: ½ [logit p₁(A, B) − logit p₁(B, A)] = d, where logit p₁ = ±d + b: a bias b of the place that adds to the
    log-odds drops out exactly.
    """
    return 0.5 * (first_ab - first_ba)


def swapped_probability(first_ab: float, first_ba: float) -> float:
    """Return the mean probability that A is better: ½ [p₁(A, B) + 1 − p₁(B, A)], from log-odds of the first place.

    Of the same judge it is ½ [σ(d + b) + σ(d − b)], shrunk towards ½ by a bias b; its side of ½ is right.
    """
    return 0.5 * (sigmoid(first_ab) + sigmoid(-first_ba))


def sigmoid(x: float) -> float:
    """Return 1 / (1 + e^{−x}) without overflow."""
    return 1.0 / (1.0 + math.exp(-x)) if x >= 0 else math.exp(x) / (1.0 + math.exp(x))
