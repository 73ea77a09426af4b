"""What a source of feedback says of one response, and the contract of every such source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from accord.records import Group


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A score of one response with its reason; `score` None = unknown (timeout, crash, unparsable), never 0."""

    score: float | None
    reason: str = ""
    parts: Mapping[str, float | None] = field(default_factory=dict)  # the scores it was made of, by name

    @property
    def is_known(self) -> bool:
        """Whether there is a score."""
        return self.score is not None


class Reward(Protocol):
    """Scores every response of every group; what it needs beside the texts (an answer, tests) is in `group.extra`."""

    @property
    def name(self) -> str:
        """What its scores are recorded under."""
        ...

    def __call__(self, groups: Sequence[Group]) -> list[list[Finding]]:
        """Return a finding per response, group by group, in order. Raises FeedbackError when it is down for good."""
        ...
