"""Judgements as tensors: what people, models and verifiers said of P × K responses.

Axes: P groups, K responses. Every kind of judgement that a group holds is written; where the kind an objective needs
was not given, it is derived where that is a matter of definition: pairs from rankings, ratings or labels, labels from
pairs and verdicts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from accord.data.tokens import TokenGroup
from accord.data.transforms.strata import stratum_of
from accord.errors import DataError
from accord.groups import ScoredGroups, ScoredSteps, Votes
from accord.policy.policy import Scores
from accord.records import Comparison, Judgement, Label, Outcome, Ranking, Rating, Verdict


def to_scored_groups(
    groups: Sequence[TokenGroup],
    scores: Scores,
    reference_logps_PK: Tensor | None,
    mismatched_kl: Tensor | None = None,
) -> ScoredGroups:
    """Join log-probabilities and judgements into the record objectives see."""
    return ScoredGroups(
        policy_logps_PK=scores.logps_PK,
        reference_logps_PK=reference_logps_PK,
        num_tokens_PK=scores.num_tokens_PK,
        is_valid_PK=scores.is_valid_PK,
        mismatched_kl=mismatched_kl,
        score_PK=scores.score_PK,
        pair_score_PKK=scores.pair_score_PKK,
        steps=_steps(groups, scores),
        **_of_rollouts(groups, scores.is_valid_PK),
        **judgement_tensors(groups, scores.logps_PK),
    )


def _of_rollouts(groups: Sequence[TokenGroup], is_valid_PK: Tensor) -> dict[str, Tensor]:
    """Return what is known of whole responses that were sampled; nothing where not all were."""
    rollouts = [response.rollout for group in groups for response in group.responses]
    known = [rollout for rollout in rollouts if rollout is not None]
    if len(known) < len(rollouts):
        return {}

    def spread(flags: list[bool]) -> Tensor:
        return torch.zeros_like(is_valid_PK).masked_scatter(is_valid_PK, torch.tensor(flags).to(is_valid_PK.device))

    return {
        "is_truncated_PK": spread([rollout.was_truncated for rollout in known]),
        "is_own_PK": spread([rollout.is_own for rollout in known]),
    }


def judgement_tensors(groups: Sequence[TokenGroup], like_PK: Tensor) -> dict[str, Any]:
    """Return the judgement fields of `ScoredGroups` for groups, shaped and typed like `like_PK`."""
    num_groups, width = like_PK.shape
    preferred = torch.zeros((num_groups, width, width), dtype=torch.bool)
    strength = torch.zeros((num_groups, width, width), dtype=torch.float64)
    desirable, is_labelled = (torch.zeros((num_groups, width), dtype=torch.bool) for _ in range(2))
    reward = torch.zeros((num_groups, width), dtype=torch.float64)
    is_rated = torch.zeros((num_groups, width), dtype=torch.bool)
    win_frac = torch.full((num_groups, width, width), 0.5, dtype=torch.float64)
    is_compared = torch.zeros((num_groups, width, width), dtype=torch.bool)
    for row, group in enumerate(groups):
        pairs = preferences(group.judgements)
        for (better, worse), how_much in pairs.items():
            preferred[row, better, worse] = True
            strength[row, better, worse] = how_much
        for index, is_good in labels(group.judgements, pairs).items():
            desirable[row, index], is_labelled[row, index] = is_good, True
        for index, value in ratings(group.judgements).items():
            reward[row, index], is_rated[row, index] = value, True
        for pair, share in win_fractions(group.judgements).items():
            win_frac[row, *pair], is_compared[row, *pair] = share, True
    device, dtype = like_PK.device, like_PK.dtype
    return {
        "preferred_PKK": preferred.to(device),
        "strength_PKK": strength.to(device, dtype),
        "desirable_PK": desirable.to(device),
        "is_labelled_PK": is_labelled.to(device),
        "reward_PK": reward.to(device, dtype),
        "is_rated_PK": is_rated.to(device),
        "win_frac_PKK": win_frac.to(device, dtype),
        "is_compared_PKK": is_compared.to(device),
    }


def preferences(judgements: Sequence[Judgement]) -> dict[tuple[int, int], float]:
    """Return {(better, worse): strength}: comparisons and rankings as given, else from ratings, else from labels.

    Several judges of one pair are a vote: the majority counts, equal numbers give nothing, as ties do. The strength is
    the mean over the judges of the majority who said how much, 0 where none did; for ratings it is the difference.
    """
    votes: dict[tuple[int, int], list[float | None]] = {}
    for judgement in judgements:
        match judgement:
            case Comparison(better=better, worse=worse, strength=how_much, is_tie=False):
                votes.setdefault((better, worse), []).append(how_much)
            case Ranking(order=order):
                for place, tier in enumerate(order):
                    for pair in ((i, j) for i in tier for lower in order[place + 1 :] for j in lower):
                        votes.setdefault(pair, []).append(None)
    if votes or any(isinstance(judgement, Comparison | Ranking) for judgement in judgements):
        won = {(i, j): said for (i, j), said in votes.items() if len(said) > len(votes.get((j, i), ()))}
        return {pair: _mean([value for value in said if value is not None]) for pair, said in won.items()}
    scores = ratings(judgements) or {index: float(good) for index, good in _given_labels(judgements).items()}
    return {(i, j): a - b for i, a in scores.items() for j, b in scores.items() if a > b}


def labels(judgements: Sequence[Judgement], pairs: dict[tuple[int, int], float]) -> dict[int, bool]:
    """Return {response: is_desirable}: labels and verdicts as given, else better and worse ends of `pairs`.

    Several judges are a vote, and equal numbers say nothing; nor does an unknown verdict, nor a response that wins one
    pair and loses another.
    """
    given = _given_labels(judgements)
    if given or any(isinstance(judgement, Label) and judgement.step is None for judgement in judgements):
        return given
    winners, losers = {i for i, _ in pairs}, {j for _, j in pairs}
    return {index: index in winners for index in winners ^ losers}


def _given_labels(judgements: Sequence[Judgement]) -> dict[int, bool]:
    votes: dict[int, int] = {}
    for judgement in judgements:
        match judgement:
            case Label(response=index, is_desirable=is_good, step=None):
                votes[index] = votes.get(index, 0) + (1 if is_good else -1)
            case Verdict(response=index, outcome=outcome) if outcome is not Outcome.UNKNOWN:
                votes[index] = votes.get(index, 0) + (1 if outcome is Outcome.PASS else -1)
    return {index: net > 0 for index, net in votes.items() if net}


def step_labels(judgements: Sequence[Judgement]) -> dict[tuple[int, int], bool]:
    """Return {(response, step): is_right}. Several judges are a vote, and equal numbers say nothing."""
    votes: Counter[tuple[int, int]] = Counter()
    for judgement in judgements:
        if isinstance(judgement, Label) and judgement.step is not None:
            votes[judgement.response, judgement.step] += 1 if judgement.is_desirable else -1
    return {place: net > 0 for place, net in votes.items() if net}


def _steps(groups: Sequence[TokenGroup], scores: Scores) -> ScoredSteps | None:
    """Join a reward model's scores of steps and their labels; a step that was cut off has neither."""
    if scores.score_PK is None:
        return None
    score_PKS = scores.step_score_PKS
    if score_PKS is None:  # no steps in these groups
        score_PKS = scores.score_PK.new_zeros((*scores.score_PK.shape, 0))
    is_right, is_labelled = (torch.zeros(score_PKS.shape, dtype=torch.bool) for _ in range(2))
    for row, group in enumerate(groups):
        for (response, step), is_good in step_labels(group.judgements).items():
            if step < len(group.responses[response].step_ends):
                is_right[row, response, step], is_labelled[row, response, step] = is_good, True
    device = score_PKS.device
    return ScoredSteps(
        score_PKS=score_PKS, is_right_PKS=is_right.to(device), is_labelled_PKS=is_labelled.to(device)
    )  # fmt: skip


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def ratings(judgements: Sequence[Judgement]) -> dict[int, float]:
    """Return {response: value}: the mean over judges of the overall rating, else of all attributes, else verdicts."""
    given = [j for j in judgements if isinstance(j, Rating)]
    overall = [j for j in given if j.attribute == "overall"] or given
    found: dict[int, list[float]] = {}
    for rating in overall:
        found.setdefault(rating.response, []).append(rating.value)
    for judgement in judgements:
        if isinstance(judgement, Verdict) and judgement.outcome is not Outcome.UNKNOWN and not given:
            found.setdefault(judgement.response, []).append(float(judgement.outcome is Outcome.PASS))
    return {index: sum(values) / len(values) for index, values in found.items()}


def win_fractions(judgements: Sequence[Judgement]) -> dict[tuple[int, int], float]:
    """Return {(i, j): fraction of judgements that prefer i to j}, in both orders, for every pair that was compared.

    Comparisons and rankings as given, each one vote, a tie half a vote for either; where there are none, ratings, else
    labels, say 0, 1/2 (equal) or 1. Counts of votes are kept, unlike in `preferences`, where the majority has it all.
    """
    won: dict[tuple[int, int], float] = {}

    def count(i: int, j: int, share: float) -> None:
        won[i, j] = won.get((i, j), 0.0) + share
        won[j, i] = won.get((j, i), 0.0) + 1.0 - share

    for judgement in judgements:
        match judgement:
            case Comparison(better=better, worse=worse, is_tie=is_tie):
                count(better, worse, 0.5 if is_tie else 1.0)
            case Ranking(order=order):
                place = {index: number for number, tier in enumerate(order) for index in tier}
                for i, j in combinations(place, 2):
                    count(i, j, _share(place[j], place[i]))
    if not won and not any(isinstance(judgement, Comparison | Ranking) for judgement in judgements):
        scores = ratings(judgements) or {index: float(good) for index, good in _given_labels(judgements).items()}
        for i, j in combinations(scores, 2):
            count(i, j, _share(scores[i], scores[j]))
    return {(i, j): share / (share + won[j, i]) for (i, j), share in won.items()}


def _share(ours: float, theirs: float) -> float:
    return 0.5 if ours == theirs else float(ours > theirs)


def behaviour_logps(groups: Sequence[TokenGroup], like_PK: Tensor) -> Tensor:
    """Return log-probabilities (P, K) of the sampler that wrote the responses, over the same tokens as the policy's.

    Raises DataError where a response does not carry them for each of its tokens.
    """
    found = torch.zeros(like_PK.shape, dtype=torch.float64)
    for row, group in enumerate(groups):
        given = [None] * len(group.responses) if group.source is None else group.source.responses
        for place, (response, record) in enumerate(zip(group.responses, given, strict=True)):
            logps = () if record is None or record.behaviour_logps is None else record.behaviour_logps
            if len(logps) < len(response.ids) or (len(logps) > len(response.ids) and not response.was_truncated):
                origin = group.source.origin if group.source is not None else ""
                raise DataError(
                    f"{origin or 'a group'}: got {len(logps)} behaviour_logps for a response of {len(response.ids)} "
                    "tokens — expected one per token, of the sampler that wrote it — sample with Accord, or leave out "
                    "what needs them"
                )
            is_trained = response.is_trained or (True,) * len(response.ids)
            kept = zip(logps[: len(response.ids)], is_trained, strict=True)
            found[row, place] = math.fsum(logp for logp, is_one in kept if is_one)
    return found.to(like_PK.device, like_PK.dtype)


# Who judged, and whom a group stands for ------------------------------------------------------------------------------

ANONYMOUS = "(anonymous)"


def votes(judgements: Sequence[Judgement]) -> list[tuple[int, int, str]]:
    """Return (better, worse, judge) of every single comparison, before any vote is counted; ties give none.

    Comparisons and rankings as given; where there are none, each judge's own ratings, else labels, are compared. What
    names no judge is of one anonymous judge.
    """
    of_judge: dict[str, list[Judgement]] = {}
    for judgement in judgements:
        of_judge.setdefault(judgement.judge or ANONYMOUS, []).append(judgement)
    is_compared = any(isinstance(judgement, Comparison | Ranking) for judgement in judgements)
    found: list[tuple[int, int, str]] = []
    for judge, own in of_judge.items():
        if is_compared:  # one at a time: a judge who was asked twice has two votes, also against each other
            pairs = [pair for one in own if isinstance(one, Comparison | Ranking) for pair in preferences([one])]
        else:
            pairs = list(preferences(own))
        found += [(better, worse, judge) for better, worse in pairs]
    return found


@dataclass(frozen=True, kw_only=True)
class Populations:
    """The judges and strata that the groups of a run name, each with its number: its place in the tuple."""

    judges: tuple[str, ...] = ()
    strata: tuple[str, ...] = ()
    stratum_fracs: tuple[float, ...] = ()  # share of the groups trained on …
    held_out_fracs: tuple[float, ...] = ()  # … and of those held out; of groups with a judged pair, which alone count

    @classmethod
    def of(cls, groups: Sequence[TokenGroup], held_out: Sequence[TokenGroup] = ()) -> Populations:
        """Number what groups name, in the order of the names, so that the same data gives the same numbers."""
        everything = [*groups, *held_out]
        strata = tuple(sorted({name for group in everything if (name := _stratum(group)) is not None}))
        return cls(
            judges=tuple(sorted({judge for group in everything for _, _, judge in votes(group.judgements)})),
            strata=strata,
            stratum_fracs=_shares(groups, strata),
            held_out_fracs=_shares(held_out, strata),
        )

    def votes_of(self, groups: Sequence[TokenGroup], device: torch.device) -> Votes:
        """Return the votes of groups as tensors, padded."""
        number = {name: place for place, name in enumerate(self.judges)}
        rows = [[(i, j, number[judge]) for i, j, judge in votes(group.judgements)] for group in groups]
        width = max(1, *(len(row) for row in rows))
        padded = torch.tensor([row + [(0, 0, 0)] * (width - len(row)) for row in rows], dtype=torch.long)
        better, worse, judge = padded.view(len(rows), width, 3).to(device).unbind(dim=2)
        counts = torch.tensor([len(row) for row in rows], device=device)
        is_valid = torch.arange(width, device=device) < counts[:, None]
        return Votes(better_PC=better, worse_PC=worse, judge_PC=judge, is_valid_PC=is_valid)

    def strata_of(self, groups: Sequence[TokenGroup], like_PK: Tensor, *, held_out: bool) -> dict[str, Tensor]:
        """Return the stratum fields of `ScoredGroups` for groups that all name one."""
        number = {name: place for place, name in enumerate(self.strata)}
        places = [number[_stratum(group) or ""] for group in groups]
        shares = self.held_out_fracs if held_out else self.stratum_fracs
        fracs = [shares[place] or 1.0 for place in places]  # where none of a stratum counts, the share is never used
        return {
            "stratum_P": torch.tensor(places, device=like_PK.device),
            "stratum_frac_P": torch.tensor(fracs, device=like_PK.device, dtype=like_PK.dtype),
        }


def _shares(groups: Sequence[TokenGroup], strata: Sequence[str]) -> tuple[float, ...]:
    sizes = Counter(_stratum(group) for group in groups if preferences(group.judgements))
    return tuple(sizes[name] / max(1, sum(sizes.values())) for name in strata)


def _stratum(group: TokenGroup) -> str | None:
    return None if group.source is None else stratum_of(group.source)
