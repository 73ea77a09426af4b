"""What every judge gives, and groups with a judge's judgements added."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from accord.records import Group, Judgement


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A judge's judgements of one group, and for each question that stayed without an answer the reason."""

    judgements: tuple[Judgement, ...]
    unknown: tuple[str, ...] = ()


class Judge(Protocol):
    """Judges groups: comparisons, ratings or whatever else it has to say of their responses."""

    @property
    def name(self) -> str:
        """What its judgements are signed with."""
        ...

    def judge(self, groups: Sequence[Group]) -> list[Judged]:
        """Return what it says of each group, in order. Raises FeedbackError when it is down for good."""
        ...


def judge_groups(groups: Sequence[Group], judge: Judge) -> list[Group]:
    """Return the groups with the judge's judgements after their own; what stayed unknown adds nothing."""
    return with_judgements(groups, judge.judge(groups))


def with_judgements(groups: Sequence[Group], judged: Sequence[Judged]) -> list[Group]:
    """Return groups with judgements added."""
    return [
        replace(group, judgements=(*group.judgements, *found.judgements))
        for group, found in zip(groups, judged, strict=True)
    ]
