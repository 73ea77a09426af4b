"""Judges whose beliefs are known: they read numbers out of the conversation and answer by a formula."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from accord.feedback.judges import Reply
from accord.feedback.judges.chat import Conversation
from accord.records import Group, Response

PAIR_PROMPT = "--- user ---\n{{ answer_a }} or {{ answer_b }}?{{ principle }}\n--- then ---\nA or B?\n"
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def write_pair_prompt(folder: Path) -> Path:
    """A prompt that shows two numbers and nothing else."""
    path = folder / "numbers.v1.jinja"
    path.write_text(PAIR_PROMPT)
    return path


def numbers_group(*values: float, prompt: str = "which?") -> Group:
    """Responses that are numbers: how good each is."""
    return Group(prompt=prompt, responses=tuple(Response(content=str(value)) for value in values))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@dataclass
class LogOddsChat:
    """Believes the first answer better with log-odds d + b, d the difference of the numbers and b a bias of place."""

    bias: float = 0.0
    elsewhere: float = 0.3  # probability of saying neither A nor B
    name: str = "simulated"
    asked: int = 0

    def option_logps(
        self, conversations: Sequence[Conversation], options: Sequence[str]
    ) -> list[tuple[float, ...] | None]:
        assert tuple(options) == ("A", "B")
        self.asked += len(conversations)
        found = []
        for conversation in conversations:
            first, second = (float(x) for x in _NUMBER.findall(conversation[0].content)[:2])
            p = sigmoid(first - second + self.bias)
            found.append((math.log(p * (1 - self.elsewhere)), math.log((1 - p) * (1 - self.elsewhere))))
        return found

    def answer(self, conversations: Sequence[Conversation], *, attempt: int = 0) -> list[Reply]:
        return [Reply(text="the first number comes first") for _ in conversations]


@dataclass
class WritingChat:
    """Prefers the larger number and says so; each verdict is turned round with probability `flip`."""

    flip: float = 0.0
    seed: int = 0
    name: str = "simulated"
    rng: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)

    def answer(self, conversations: Sequence[Conversation], *, attempt: int = 0) -> list[Reply]:
        replies = []
        for conversation in conversations:
            first, second = (float(x) for x in _NUMBER.findall(conversation[0].content)[:2])
            likes_first = (first > second) != (self.rng.random() < self.flip)
            verdict = "C" if first == second else "A" if likes_first else "B"
            replies.append(Reply(text=f"[[A]] and [[B]] are both possible. [[{verdict}]]"))
        return replies

    def option_logps(
        self, conversations: Sequence[Conversation], options: Sequence[str]
    ) -> list[tuple[float, ...] | None]:
        raise AssertionError("asked for log-probabilities")


@dataclass
class SayingChat:
    """Says the lines it was given, one per conversation asked, the last one for ever; None = cannot be asked."""

    lines: list[str | None]
    name: str = "simulated"
    asked: list[tuple[int, Conversation]] = field(default_factory=list)

    def answer(self, conversations: Sequence[Conversation], *, attempt: int = 0) -> list[Reply]:
        replies = []
        for conversation in conversations:
            self.asked.append((attempt, conversation))
            line = self.lines.pop(0) if len(self.lines) > 1 else self.lines[0]
            replies.append(Reply(text=line, reason="too long" if line is None else ""))
        return replies

    def option_logps(
        self, conversations: Sequence[Conversation], options: Sequence[str]
    ) -> list[tuple[float, ...] | None]:
        return [None for _ in conversations]
