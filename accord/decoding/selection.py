"""Choosing among sampled responses by a reward: the best of N, those above a threshold, or by the dice of RSO."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from accord.data.policies import own_columns
from accord.errors import ConfigError
from accord.feedback.findings import Finding, Reward
from accord.feedback.rating import with_ratings
from accord.records import Group


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The groups with the responses that were kept, rated; and the groups of which none was, with why."""

    groups: list[Group]
    left_out: list[tuple[int, str]]  # position of the group, reason
    num_candidates: int
    num_kept: int
    num_unknown: int  # responses whose score is unknown: never kept

    @property
    def kept_share(self) -> float:
        """Kept responses per candidate."""
        return self.num_kept / self.num_candidates if self.num_candidates else 0.0


def best_of_n(groups: Sequence[Group], reward: Reward, *, keep: int = 1, judge: str | None = None) -> Selection:
    """Return each group with its `keep` best responses by a reward, best first, each with its rating.

    Ties go to the response that came first; a response of unknown score is never kept. KL(best-of-N ‖ π_ref) ≤
    log N − (N − 1)/N per response for keep = 1. Choosing and measuring by the same reward measures nothing.
    """
    if keep < 1:
        raise ConfigError(f"got keep={keep} — expected at least 1 response to keep")

    def choose(row: Sequence[Finding]) -> list[int]:
        known = [(-finding.score, place) for place, finding in enumerate(row) if finding.score is not None]
        return [place for _, place in sorted(known)[:keep]]

    return _select(groups, reward(groups), reward.name, judge, lambda index, row: choose(row))


def above_threshold(
    groups: Sequence[Group], reward: Reward, *, threshold: float, judge: str | None = None
) -> Selection:
    """Return each group with its responses of reward ≥ `threshold`, in order (rejection sampling, STaR, ReST-EM).

    The kept responses are draws of π(y | r ≥ τ). Prompts without one vanish, which shifts the prompts towards easy
    ones: `left_out` names them.
    """
    return _select(
        groups, reward(groups), reward.name, judge,
        lambda index, row: [p for p, f in enumerate(row) if f.score is not None and f.score >= threshold],
    )  # fmt: skip


def statistical_rejection(
    groups: Sequence[Group],
    reward: Reward,
    *,
    beta: float,
    seed: int = 0,
    highest: float | None = None,
    judge: str | None = None,
) -> Selection:
    """Return each group with responses accepted with probability exp((r − r_max)/β): draws of π* ∝ π e^{r/β}.

    Exact where `highest` is the true maximum of the reward; None = the largest of the group, as the paper does. Scores
    above `highest` count as it. The same seed keeps the same responses.
    Source: RSO, Liu et al. 2023, arXiv:2309.06657.
    """
    if not beta > 0:
        raise ConfigError(f"got beta={beta} — expected a temperature > 0")

    def choose(index: int, row: Sequence[Finding]) -> list[int]:
        scores = [finding.score for finding in row]
        top = max((s for s in scores if s is not None), default=0.0) if highest is None else highest
        uniform = np.random.Generator(np.random.Philox(key=[seed, index])).random(len(row))
        return [
            place
            for place, score in enumerate(scores)
            if score is not None and uniform[place] < math.exp(min(0.0, (score - top) / beta))
        ]

    return _select(groups, reward(groups), reward.name, judge, choose)


def keep_responses(group: Group, places: Sequence[int]) -> Group:
    """Return the group with only these responses, in this order, and without judgements."""
    responses = tuple(group.responses[place] for place in places)
    return replace(group, responses=responses, judgements=(), extra=own_columns(group))


def _select(groups, findings, attribute, judge, choose) -> Selection:  # type: ignore[no-untyped-def]  # three callers above
    kept: list[Group] = []
    left_out: list[tuple[int, str]] = []
    for index, (group, row) in enumerate(zip(groups, findings, strict=True)):
        places = choose(index, row)
        if places:
            chosen = keep_responses(group, places)
            kept += with_ratings([chosen], [[row[place] for place in places]], attribute=attribute, judge=judge)
            continue
        unknown = next((finding.reason or "unknown" for finding in row if finding.score is None), None)
        all_unknown = all(finding.score is None for finding in row)
        left_out.append((index, f"no score: {unknown}" if all_unknown else "no response was accepted"))
    return Selection(
        groups=kept, left_out=left_out, num_candidates=sum(map(len, findings)),
        num_kept=sum(len(group.responses) for group in kept),
        num_unknown=sum(finding.score is None for row in findings for finding in row),
    )  # fmt: skip
