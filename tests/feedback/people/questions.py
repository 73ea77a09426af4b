"""Groups to ask about, and a clock that tests set."""

from __future__ import annotations

from dataclasses import dataclass

from accord.records import Comparison, Group, Judgement, Response


def group(number: int, *judgements: Judgement, size: int = 2) -> Group:
    """A prompt with `size` responses, each told apart by its text."""
    return Group(
        prompt=f"question {number}",
        responses=tuple(Response(content=f"answer {number}.{place}", source="policy") for place in range(size)),
        judgements=judgements,
    )


def known(number: int, *, better: int = 0) -> Group:
    """A pair of which the better one is known."""
    return group(number, Comparison(better=better, worse=1 - better))


@dataclass
class Clock:
    """A clock that stands until it is set."""

    now: float = 1_000_000.0

    def __call__(self) -> float:
        return self.now
