"""What a source of feedback says of one response, and the contract of every such source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from accord.records import Group

Scores = list[list[float | None]]
"""A score per response, group by group; None = unknown."""
Layers = Literal["middle", "all"]
"""Which trained weights gradients are taken of: the middle third in the model's order, or all."""


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


class PartGradients(Protocol):
    """Lent to a reward by who trains the policy."""

    def __call__(self, parts: Mapping[str, Scores], *, layers: Layers) -> list[list[float]]:
        """Return ⟨g_k, g_j⟩, g_k the policy gradient of part k's own advantages in this rollout; no step is taken."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Weighed:
    """What a rollout is worth under the weights of now; `numbers` are reported as `rollout/<name>`."""

    scores: Scores
    numbers: Mapping[str, float]


@runtime_checkable
class StatefulReward(Reward, Protocol):
    """A reward whose weights move with the rollouts. A call judges by fixed weights, so that evaluations compare.

    `weigh` is called once per rollout, in every process, with all its judged groups: nothing but them, the gradients
    and the state may enter, or the processes part.
    """

    def state(self) -> dict[str, Any]:
        """Return what moves, as plain values, for a checkpoint."""
        ...

    def take_up(self, state: Mapping[str, Any]) -> None:
        """Put what a checkpoint held in place."""
        ...

    def weigh(self, rollout: Sequence[Group], gradients: PartGradients) -> Weighed:
        """Return what the responses are worth in this rollout, and move the state."""
        ...
