"""How held-out prompts are answered and judged, and work that is shared by processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from accord.data.tokens import TokenGroup
from accord.errors import AccordError
from accord.policy.judgements import ratings
from accord.policy.sampling import SamplingSettings
from accord.records import Group, Response

Gather = Callable[[list[Any]], list[Any]]
"""Join the lists of all processes, in rank order."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """How held-out prompts are answered: as the evaluation's settings say, or as a run that samples does."""

    sampling: SamplingSettings | None = None
    judge: Callable[[Sequence[Group]], list[Group]] | None = None

    def rewards(self, groups: Sequence[TokenGroup], drawn: Sequence[tuple[Response, ...]]) -> list[float | None]:
        """Return the reward of each group's one response, where there is a judge and it knows."""
        if self.judge is None:
            return [None] * len(groups)
        asked = [
            replace(group.source, responses=responses, judgements=())
            for group, responses in zip(groups, drawn, strict=True)
            if group.source is not None
        ]
        return [ratings(group.judgements).get(0) for group in self.judge(asked)]


def gathered(gather: Gather, work: Callable[[], list[Any]]) -> list[Any]:
    """Do some work in every process and join the lists; where one fails, all raise its error instead of waiting."""
    mine, failed = [], None
    try:
        mine = work()
    except AccordError as error:
        failed = error
    told = gather([None if failed is None else (type(failed), str(failed))])
    if failed is not None:
        raise failed
    for kind, text in (item for item in told if item is not None):
        raise kind(text)
    return gather(mine)
