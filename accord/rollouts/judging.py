"""Findings as judgements: what a source of feedback said of sampled responses, kept with them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from accord.errors import AccordError, FeedbackError
from accord.feedback.findings import Finding, Reward, Scores
from accord.records import Group, Judgement, Outcome, Rating, Verdict
from accord.run.metrics import Sums


def check_prompts(groups: Sequence[Group], reward: Reward) -> None:
    """Raise DataError where a row lacks what a reward reads beside the texts, before anything is sampled for it."""
    check = getattr(reward, "check_groups", None)  # a reward that reads only texts has nothing to say
    if check is not None:
        check(groups)


def judge(groups: Sequence[Group], reward: Reward) -> list[Group]:
    """Return groups with a rating per response whose reward is known, and one per part of it.

    A reward that is not known, or is no finite number, is a verdict "unknown" with its reason, and no rating: never
    zero. Raises FeedbackError when the source of feedback is down or fails, or returns something else than a finding
    per response.
    """
    if not groups:
        return []
    found = _asked(groups, reward)
    if [len(of_group) for of_group in found] != [len(group.responses) for group in groups]:
        raise FeedbackError(
            f"reward {reward.name} returned {sum(map(len, found))} findings for "
            f"{sum(len(group.responses) for group in groups)} responses — expected one per response, group by group"
        )
    if strange := [item for of_group in found for item in of_group if not isinstance(item, Finding)]:
        raise FeedbackError(
            f"reward {reward.name} returned {strange[0]!r:.80} for a response — expected a Finding: "
            "Finding(score=1.0), or Finding(score=None, reason=…) where it cannot know"
        )
    return [
        replace(group, judgements=(*group.judgements, *_judgements(of_group, reward.name)))
        for group, of_group in zip(groups, found, strict=True)
    ]


def _asked(groups: Sequence[Group], reward: Reward) -> list[list[Finding]]:
    try:
        return reward(groups)
    except AccordError:
        raise
    except Exception as error:  # whatever a user's reward raises must not cost the run, nor leave a process waiting
        raise FeedbackError(f"reward {reward.name} failed with {type(error).__name__}: {error}") from error


def _judgements(findings: Sequence[Finding], name: str) -> Iterator[Judgement]:
    for index, finding in enumerate(findings):
        if finding.score is None:
            yield Verdict(response=index, outcome=Outcome.UNKNOWN, reason=finding.reason, judge=name)
        elif not math.isfinite(finding.score):
            reason = f"the score is {finding.score}, which is no number"
            yield Verdict(response=index, outcome=Outcome.UNKNOWN, reason=reason, judge=name)
        else:
            yield Rating(response=index, value=finding.score, judge=name)
        for part, value in finding.parts.items():
            if value is not None and math.isfinite(value):
                yield Rating(response=index, value=value, attribute=part, judge=name)


def with_totals(groups: Sequence[Group], totals: Scores) -> list[Group]:
    """Return judged groups whose known rewards are replaced by other totals of the same parts."""
    return [
        replace(group, judgements=tuple(_with_total(judgement, row) for judgement in group.judgements))
        for group, row in zip(groups, totals, strict=True)
    ]


def _with_total(judgement: Judgement, totals: Sequence[float | None]) -> Judgement:
    if not isinstance(judgement, Rating) or judgement.attribute != "overall":
        return judgement
    total = totals[judgement.response]
    assert total is not None, "weights change what a reward is, not whether it is known"
    return replace(judgement, value=total)


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
