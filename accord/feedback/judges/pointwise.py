"""Judging one response at a time: a grade from 1 to 10, with or without a review written first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from accord.errors import FeedbackError
from accord.feedback.findings import Finding
from accord.feedback.judges.chat import Chat, Conversation, answer_until_read
from accord.feedback.judges.judging import Judged
from accord.feedback.judges.prompts import Prompt, answer_text, load_prompt, read_rating, text_of
from accord.records import Critique, Group, Judgement, Message, Rating


@dataclass(frozen=True, kw_only=True)
class PointwiseJudge:
    """An LLM that grades responses from `lowest` to `highest`: a `Reward` and a `Judge`.

    prompt "pointwise.v1" has reasons and grade in one reply; "critique_then_score.v1" asks for a review first and,
    having read it, for the grade; the review becomes a `Critique`. `reference_key` names what of `group.extra` is
    shown as a correct answer. A grade that cannot be read after `num_attempts` is unknown.
    """

    chat: Chat
    prompt: str | Path = "pointwise.v1"
    rubric: str = ""
    reference_key: str | None = None
    lowest: float = 1
    highest: float = 10
    num_attempts: int = 3

    def __post_init__(self) -> None:
        if self.num_attempts < 1 or not self.lowest < self.highest:
            raise FeedbackError(
                f"got num_attempts={self.num_attempts} and grades from {self.lowest:g} to {self.highest:g} — expected "
                "at least one attempt and a scale that goes up"
            )

    @cached_property
    def _prompt(self) -> Prompt:
        return load_prompt(self.prompt)

    @property
    def name(self) -> str:
        """`llm:MODEL/PROMPT.vN#DIGEST`."""
        return f"llm:{self.chat.name}/{self._prompt.label}"

    def __call__(self, groups: Sequence[Group]) -> list[list[Finding]]:
        """Return a grade per response; its reason is the judge's, or why the grade is unknown."""
        found = iter(self._grade(groups))
        return [[next(found)[0] for _ in group.responses] for group in groups]

    def judge(self, groups: Sequence[Group]) -> list[Judged]:
        """Return a rating, and a critique where one was written, of every response; see `Judge`."""
        graded = iter(self._grade(groups))
        judged = []
        for group in groups:
            judgements: list[Judgement] = []
            unknown = []
            for index in range(len(group.responses)):
                finding, review = next(graded)
                if review:
                    judgements.append(Critique(response=index, text=review, judge=self.name))
                if finding.score is None:
                    unknown.append(f"response {index}: {finding.reason}")
                else:
                    judgements.append(Rating(response=index, value=finding.score, judge=self.name))
            judged.append(Judged(judgements=tuple(judgements), unknown=tuple(unknown)))
        return judged

    def _grade(self, groups: Sequence[Group]) -> list[tuple[Finding, str]]:
        """Of every response, in order: its finding, and the review that came before the grade ("" = none)."""
        places = [(group, index) for group in groups for index in range(len(group.responses))]
        found = [(self._without_reference(group), "") for group, _ in places]
        asked = [row for row, (finding, _) in enumerate(found) if finding is None]
        conversations = [self._conversation(*places[row]) for row in asked]
        reviews = [""] * len(asked)
        if "then" in self._prompt.turns and conversations:
            asked, conversations, reviews = self._review(asked, conversations, found)
        read = answer_until_read(self.chat, conversations, self._read, num_attempts=self.num_attempts)
        for row, (grade, text), review in zip(asked, read, reviews, strict=True):
            found[row] = (Finding(score=grade, reason=review or text), review)
            if grade is None:
                found[row] = (Finding(score=None, reason=text), review)
        return [(finding or Finding(score=None, reason="not asked"), review) for finding, review in found]

    def _review(
        self, asked: list[int], conversations: list[Conversation], found: list[tuple[Finding | None, str]]
    ) -> tuple[list[int], list[Conversation], list[str]]:
        replies = self.chat.answer(conversations)
        for row, reply in zip(asked, replies, strict=True):
            if not reply.text:
                found[row] = (Finding(score=None, reason=reply.reason or "an empty review"), "")
        written = [
            (row, turns, reply.text)
            for row, turns, reply in zip(asked, conversations, replies, strict=True)
            if reply.text
        ]
        question = self._prompt.render_then()
        return (
            [row for row, _, _ in written],
            [(*turns, Message(role="assistant", content=text), question) for _, turns, text in written],
            [text for _, _, text in written],
        )

    def _without_reference(self, group: Group) -> Finding | None:
        if self.reference_key is None or group.extra.get(self.reference_key) not in (None, ""):
            return None
        reason = f"{group.origin or 'the group'} has no {self.reference_key!r} in its extra columns"
        return Finding(score=None, reason=reason)

    def _conversation(self, group: Group, index: int) -> Conversation:
        return self._prompt.render(
            request=text_of(group.prompt),
            answer=answer_text(group, index),
            reference="" if self.reference_key is None else str(group.extra[self.reference_key]),
            rubric=self.rubric,
        )

    def _read(self, text: str) -> float | None:
        return read_rating(text, lowest=self.lowest, highest=self.highest)
