"""Judgements as tensors: what people, models and verifiers said of P × K responses.

Axes: P groups, K responses. Every kind of judgement that a group holds is written; where the kind an objective needs
was not given, it is derived where that is a matter of definition: pairs from rankings, ratings or labels, labels from
pairs and verdicts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from accord.data.tokens import TokenGroup
from accord.groups import ScoredGroups
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
        **judgement_tensors(groups, scores.logps_PK),
    )


def judgement_tensors(groups: Sequence[TokenGroup], like_PK: Tensor) -> dict[str, Any]:
    """Return the judgement fields of `ScoredGroups` for groups, shaped and typed like `like_PK`."""
    num_groups, width = like_PK.shape
    preferred = torch.zeros((num_groups, width, width), dtype=torch.bool)
    strength = torch.zeros((num_groups, width, width), dtype=torch.float64)
    desirable, is_labelled = (torch.zeros((num_groups, width), dtype=torch.bool) for _ in range(2))
    reward = torch.zeros((num_groups, width), dtype=torch.float64)
    is_rated = torch.zeros((num_groups, width), dtype=torch.bool)
    for row, group in enumerate(groups):
        pairs = preferences(group.judgements)
        for (better, worse), how_much in pairs.items():
            preferred[row, better, worse] = True
            strength[row, better, worse] = how_much
        for index, is_good in labels(group.judgements, pairs).items():
            desirable[row, index], is_labelled[row, index] = is_good, True
        for index, value in ratings(group.judgements).items():
            reward[row, index], is_rated[row, index] = value, True
    device, dtype = like_PK.device, like_PK.dtype
    return {
        "preferred_PKK": preferred.to(device),
        "strength_PKK": strength.to(device, dtype),
        "desirable_PK": desirable.to(device),
        "is_labelled_PK": is_labelled.to(device),
        "reward_PK": reward.to(device, dtype),
        "is_rated_PK": is_rated.to(device),
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
