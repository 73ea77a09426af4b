"""From judged groups to a report on their judges."""

from __future__ import annotations

from collections.abc import Sequence

from accord.agreement.values import AgreementReport
from accord.records import Group


def measure_agreement(
    groups: Sequence[Group],
    *,
    gold: Sequence[Group] = (),
    num_resamples: int = 500,
    confidence: float = 0.95,
    seed: int = 0,
) -> AgreementReport:
    """Return what the judgements of groups say of their judges. (SIGNATURE FIXED; the body is being written.)

    Reads judge names and every Comparison, Ranking (as its pairs), Label and Rating; groups with the same prompt and
    responses are one item, in whatever order the responses stand; a judge's second answer to an item is a repetition.
    Known answers: the judgements of `gold` groups (matched by texts), or `extra["gold"]` of a group: index of the better
    response. Seconds: `extra["seconds"]`, a list beside the group's judgements (None where unknown) or judge → seconds.
    Judges named "principle:NAME" are principles, not annotators.
    """
    raise NotImplementedError
