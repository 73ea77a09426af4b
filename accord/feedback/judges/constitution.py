"""Constitutional AI: answers criticised and revised by principles, and soft labels by principles (arXiv:2212.08073)."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from accord.errors import FeedbackError
from accord.feedback.judges.chat import Chat, Conversation
from accord.feedback.judges.judging import Judged
from accord.feedback.judges.pairwise import OPTIONS, sigmoid
from accord.feedback.judges.prompts import Principle, Prompt, answer_text, load_principles, load_prompt, text_of
from accord.records import Comparison, Critique, Group, Message, Response

SUREST = 1e-6  # a soft label of 0 or 1 would have infinite log-odds


def critique_and_revise(
    groups: Sequence[Group],
    chat: Chat,
    *,
    principles: Sequence[Principle] | None = None,
    num_revisions: int = 4,
    seed: int = 0,
    prompt: str | Path = "revise.v1",
) -> list[Group]:
    """Return each group with its first response and the revisions of it, each by a principle drawn uniformly.

    Response i + 1 is the revision of response i; the critique that led to it is a `Critique` of response i. Where the
    model says nothing, the chain of that group ends early. Raises FeedbackError where nothing can be asked.
    """
    if num_revisions < 1:
        raise FeedbackError(f"got num_revisions={num_revisions} — expected at least 1")
    chosen, written = list(principles or load_principles()), load_prompt(prompt)
    judge = f"llm:{chat.name}/{written.label}"
    chains = [
        replace(group, responses=(replace(group.responses[0], content=answer_text(group, 0)),), judgements=())
        for group in groups
    ]
    open_ = list(range(len(chains)))
    for step in range(num_revisions):
        drawn = [
            random.Random(f"{seed} {step} {index} {text_of(chains[index].prompt)}").choice(chosen) for index in open_
        ]
        steps = _revise_once([chains[index] for index in open_], drawn, chat, written, judge)
        for index, group in zip(open_, steps, strict=True):
            chains[index] = group
        open_ = [index for index in open_ if len(chains[index].responses) == step + 2]
    return chains


def _revise_once(
    groups: Sequence[Group], principles: Sequence[Principle], chat: Chat, prompt: Prompt, judge: str
) -> list[Group]:
    asked = [
        prompt.render(
            request=text_of(group.prompt),
            answer=answer_text(group, len(group.responses) - 1),
            critique=principle.critique,
            revision=principle.revision,
        )
        for group, principle in zip(groups, principles, strict=True)
    ]
    critiques = [reply.text for reply in chat.answer(asked)] if asked else []
    rows = [row for row, critique in enumerate(critiques) if critique]
    follow_ups: list[Conversation] = [
        (
            *asked[row],
            Message(role="assistant", content=str(critiques[row])),
            prompt.render_then(revision=principles[row].revision),
        )
        for row in rows
    ]
    revisions = [reply.text for reply in chat.answer(follow_ups)] if follow_ups else []
    found = list(groups)
    for row, revision in zip(rows, revisions, strict=True):
        if not revision:
            continue
        group, last = groups[row], len(groups[row].responses) - 1
        found[row] = replace(
            group,
            responses=(*group.responses, Response(content=revision, source=chat.name)),
            judgements=(
                *group.judgements,
                Critique(response=last, text=str(critiques[row]), edited=revision, judge=judge),
            ),
        )
    return found


def demonstrations(groups: Sequence[Group]) -> list[Group]:
    """Return what the supervised stage trains on: the revisions of all steps, without the first answers.

    A group that was never revised is left out.
    """
    return [
        replace(group, responses=group.responses[1:], judgements=()) for group in groups if len(group.responses) > 1
    ]


@dataclass(frozen=True, kw_only=True)
class ConstitutionJudge:
    """Soft preferences of a model asked by principles: a `Judge` (the AI feedback of RLAIF).

    Formula: p = mean over principles and both orders of π(option of i) / (π(A) + π(B)); strength = |logit p|, so that
    σ(strength) is the soft label of the better response. With `is_reasoned` the model thinks first and each p is kept
    within `clamp`. `num_principles` are drawn for each pair; None = all of them.
    """

    chat: Chat
    principles: tuple[Principle, ...] = field(default_factory=load_principles)
    num_principles: int | None = None
    is_reasoned: bool = False
    clamp: tuple[float, float] = (0.4, 0.6)
    prompt: str | Path = "choice.v1"
    seed: int = 0

    def __post_init__(self) -> None:
        low, high = self.clamp
        if not 0 < low <= 0.5 <= high < 1:
            raise FeedbackError(f"got clamp={self.clamp} — expected 0 < low ≤ 0.5 ≤ high < 1")
        if not self.principles or not 1 <= (self.num_principles or 1) <= len(self.principles):
            raise FeedbackError(
                f"got num_principles={self.num_principles} of {len(self.principles)} principles — expected 1 to as "
                "many as there are"
            )

    @cached_property
    def _prompt(self) -> Prompt:
        return load_prompt(self.prompt)

    @property
    def name(self) -> str:
        """`llm:MODEL/PROMPT.vN#DIGEST`."""
        return f"llm:{self.chat.name}/{self._prompt.label}"

    def judge(self, groups: Sequence[Group]) -> list[Judged]:
        """Return a comparison with a strength for each pair; see `Judge`."""
        labels = iter(self.soft_labels(groups))
        judged = []
        for group in groups:
            comparisons, unknown = [], []
            for i, j in _pairs(group):
                label = next(labels)
                if label is None:
                    unknown.append(f"responses {i} and {j}: a choice between A and B was not given")
                else:
                    comparisons.append(self._comparison(i, j, label))
            judged.append(Judged(judgements=tuple(comparisons), unknown=tuple(unknown)))
        return judged

    def soft_labels(self, groups: Sequence[Group]) -> list[float | None]:
        """Return the probability that i is better than j, of each pair i < j of each group in order; None = unknown.

        A pair is unknown where any of its questions is: a mean over what happened to be answered would lean.
        """
        pairs = [(group, i, j) for group in groups for i, j in _pairs(group)]
        asked = [
            self._prompt.render(
                request=text_of(group.prompt), answer_a=answer_text(group, first), answer_b=answer_text(group, second),
                principle=principle.choice, is_reasoned=self.is_reasoned,
            )
            for group, i, j in pairs
            for principle in self._drawn(group, i, j)
            for first, second in ((i, j), (j, i))
        ]  # fmt: skip
        first_wins = self._first_wins(asked)
        per_pair = len(asked) // len(pairs) if pairs else 0
        return [_mean_over_orders(first_wins[start * per_pair : (start + 1) * per_pair]) for start in range(len(pairs))]

    def _drawn(self, group: Group, i: int, j: int) -> list[Principle]:
        if self.num_principles is None:
            return list(self.principles)
        return random.Random(f"{self.seed} {i} {j} {text_of(group.prompt)}").sample(
            self.principles, self.num_principles
        )

    def _first_wins(self, asked: list[Conversation]) -> list[float | None]:
        """The probability that the answer shown first is chosen, of every question."""
        if not asked:
            return []
        reasoned: list[Conversation | None] = list(asked)
        if self.is_reasoned:
            reasoned = [
                (*turns, Message(role="assistant", content=reply.text), self._prompt.render_then())
                if reply.text
                else None
                for turns, reply in zip(asked, self.chat.answer(asked), strict=True)
            ]
        open_ = [turns for turns in reasoned if turns is not None]
        logps = iter(self.chat.option_logps(open_, OPTIONS) if open_ else [])
        found = [None if turns is None else next(logps) for turns in reasoned]
        return [None if pair is None else self._clamped(sigmoid(pair[0] - pair[1])) for pair in found]

    def _clamped(self, probability: float) -> float:
        return min(max(probability, self.clamp[0]), self.clamp[1]) if self.is_reasoned else probability

    def _comparison(self, i: int, j: int, label: float) -> Comparison:
        sure = min(max(label, SUREST), 1 - SUREST)
        odds = math.log(sure) - math.log1p(-sure)
        better, worse = (i, j) if label >= 0.5 else (j, i)
        return Comparison(
            better=better, worse=worse, strength=abs(odds), is_tie=label == 0.5, judge=self.name, shown_order=(i, j)
        )


def _pairs(group: Group) -> list[tuple[int, int]]:
    count = len(group.responses)
    return [(i, j) for i in range(count) for j in range(i + 1, count)]


def _mean_over_orders(first_wins: Sequence[float | None]) -> float | None:
    """Of questions that alternate between both orders: the mean probability of the one that was shown first first."""
    known = [p for p in first_wins if p is not None]
    if len(known) < len(first_wins):
        return None
    return math.fsum(p if place % 2 == 0 else 1 - p for place, p in enumerate(known)) / len(known)
