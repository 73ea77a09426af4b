"""Findings as judgements: what a source of feedback said of sampled responses, kept with them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from accord.errors import FeedbackError
from accord.feedback.findings import Finding, Reward
from accord.records import Group, Judgement, Outcome, Rating, Verdict
from accord.run.metrics import Sums


def judge(groups: Sequence[Group], reward: Reward) -> list[Group]:
    """Return groups with a rating per response whose reward is known, and one per part of it.

    A reward that is not known is a verdict "unknown" with its reason, and no rating: never zero. Raises FeedbackError
    when the source of feedback is down, or returns another number of findings than there are responses.
    """
    if not groups:
        return []
    found = reward(groups)
    if [len(of_group) for of_group in found] != [len(group.responses) for group in groups]:
        raise FeedbackError(
            f"reward {reward.name} returned {sum(map(len, found))} findings for "
            f"{sum(len(group.responses) for group in groups)} responses — expected one per response, group by group"
        )
    return [
        replace(group, judgements=(*group.judgements, *_judgements(of_group, reward.name)))
        for group, of_group in zip(groups, found, strict=True)
    ]


def _judgements(findings: Sequence[Finding], name: str) -> Iterator[Judgement]:
    for index, finding in enumerate(findings):
        if finding.score is None:
            yield Verdict(response=index, outcome=Outcome.UNKNOWN, reason=finding.reason, judge=name)
        else:
            yield Rating(response=index, value=finding.score, judge=name)
        for part, value in finding.parts.items():
            if value is not None:
                yield Rating(response=index, value=value, attribute=part, judge=name)


def rewards_of(group: Group) -> list[float | None]:
    """Return the reward of every response; None where it is not known."""
    found: list[float | None] = [None] * len(group.responses)
    for judgement in group.judgements:
        if isinstance(judgement, Rating) and judgement.attribute == "overall":
            found[judgement.response] = judgement.value
    return found


def reward_sums(groups: Sequence[Group]) -> Sums:
    """Return rewards, their parts, and the share of unknown and of cut responses, as sums and counts."""
    sums: Sums = {}

    def add(name: str, value: float) -> None:
        total, count = sums.get(name, (0.0, 0.0))
        sums[name] = (total + value, count + 1.0)

    for group in groups:
        rewards = rewards_of(group)
        known = [value for value in rewards if value is not None]
        for value in rewards:
            add("rollout/reward_unknown", float(value is None))
        for value in known:
            add("rollout/reward", value)
        if len(known) > 1:
            mean = sum(known) / len(known)
            add("rollout/reward_std_within", (sum((v - mean) ** 2 for v in known) / (len(known) - 1)) ** 0.5)
            add("rollout/all_equal", float(max(known) == min(known)))
        for judgement in group.judgements:
            if isinstance(judgement, Rating) and judgement.attribute != "overall":
                add(f"rollout/reward/{judgement.attribute}", judgement.value)
        for response in group.responses:
            add("rollout/length", float(len(response.token_ids or ())))
            add("rollout/truncated", float(response.finish_reason.value == "length"))
    return sums
