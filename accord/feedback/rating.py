"""Findings as ratings of a group's responses: what objectives, files and the judging of rollouts read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from accord.feedback.findings import Finding
from accord.records import Group, Rating


def with_ratings(
    groups: Sequence[Group],
    findings: Sequence[Sequence[Finding]],
    *,
    attribute: str = "reward",
    judge: str | None = None,
    parts: bool = True,
) -> list[Group]:
    """Return the groups with a rating of every known score, and of its known parts as "attribute/part".

    Earlier ratings by the same judge of the same attributes are replaced; unknown scores make no rating.
    """
    rated = []
    for group, row in zip(groups, findings, strict=True):
        fresh = [
            Rating(response=place, value=value, attribute=name, judge=judge)
            for place, finding in enumerate(row)
            for name, value in _named_values(finding, attribute, parts=parts)
        ]
        kept = tuple(
            old
            for old in group.judgements
            if not (isinstance(old, Rating) and old.judge == judge and old.attribute.split("/")[0] == attribute)
        )
        rated.append(replace(group, judgements=(*kept, *fresh)))
    return rated


def _named_values(finding: Finding, attribute: str, *, parts: bool) -> list[tuple[str, float]]:
    named = [(attribute, finding.score), *((f"{attribute}/{k}", v) for k, v in finding.parts.items() if parts)]
    return [(name, float(value)) for name, value in named if value is not None]
