"""What a reward model predicted of judgements, and what was judged: accuracy and calibration with intervals.

A prediction is a logit: of a judged pair that the better response is preferred, of a labelled response or step that it
is right. It is set against the judgement it was made for, one list per group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np
import torch

from accord.evaluation.intervals import clustered_mean_interval, wilson
from accord.groups import ScoredGroups
from accord.objectives import Need
from accord.objectives.reward_model import pair_probabilities

Predictions = list[list[tuple[float, bool]]]
"""By group: (logit, whether it was judged so)."""

NUM_BINS = 10  # of the confidence max(p, 1 − p), equally wide between ½ and 1
_COUNTED = {
    Need.LABELS: "labels/accuracies",
    Need.STEP_LABELS: "steps/accuracies",
    Need.PAIR_SCORES: "pairs/accuracies",  # of P(i ≻ j) itself, where no score of single responses stands behind it
}


@torch.no_grad()
def predict(needs: AbstractSet[Need], scored: ScoredGroups) -> Predictions | None:
    """Return what was predicted of the judgements that an objective reads; None where no reward model scored."""
    found: Predictions = [[] for _ in scored.num_tokens_PK]
    if scored.pair_score_PKK is not None:
        logit_PKK = torch.logit(pair_probabilities(scored), eps=1e-6)
    elif scored.score_PK is not None:
        logit_PKK = scored.score_PK[:, :, None] - scored.score_PK[:, None, :]
    else:
        return None
    if Need.STEP_LABELS in needs and scored.steps is not None:
        logits, is_so, where = scored.steps.score_PKS, scored.steps.is_right_PKS, scored.steps.is_labelled_PKS
    elif Need.LABELS in needs and scored.score_PK is not None and scored.is_labelled_PK is not None:
        logits, is_so, where = scored.score_PK, scored.desirable_PK, scored.is_labelled_PK & scored.is_valid_PK
    else:
        logits, is_so, where = logit_PKK, scored.preferred_PKK, scored.preferred_PKK
    assert is_so is not None
    assert where is not None
    rows = where.nonzero(as_tuple=True)[0].tolist()
    for row, logit, was_so in zip(rows, logits[where].tolist(), is_so[where].tolist(), strict=True):
        found[row].append((logit, was_so))
    return found


def prediction_sums(needs: AbstractSet[Need], predictions: Predictions | None) -> dict[str, tuple[float, float]]:
    """Return (sum, count) of what is added up: the squared error of probabilities, and right answers."""
    flat = [one for group in predictions or [] for one in group]
    if not flat:
        return {}
    sums = {"calibration/brier": (sum(_squared_error(*one) for one in flat), float(len(flat)))}
    if (name := _name_of_accuracy(needs)) is not None:
        sums[name] = (sum(_success(*one) for one in flat), float(len(flat)))
    return sums


def with_predictions(rows: list[dict[str, Any]], predictions: Predictions | None) -> list[dict[str, Any]]:
    """Return per-example rows with the predictions beside them, in place of log-probabilities that were not made."""
    if predictions is None:
        return rows
    return [
        row
        | {
            "policy_logps": None,
            "predicted_logits": [logit for logit, _ in group],
            "was_judged_so": [was_so for _, was_so in group],
        }
        for row, group in zip(rows, predictions, strict=True)
    ]


def summarise_predictions(needs: AbstractSet[Need], rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return accuracy, the Brier score and the expected calibration error of held-out rows.

    Predictions about one prompt are no independent draws: intervals are over prompts. The expected calibration error is
    the mean over predictions of |share right − mean confidence| of their bin of confidence.
    """
    flat, prompts = [], []
    for place, row in enumerate(rows):
        for one in zip(row.get("predicted_logits") or (), row.get("was_judged_so") or (), strict=True):
            flat.append(one)
            prompts.append(place)
    if not flat:
        return {}
    num_prompts = len(set(prompts))
    found: dict[str, float] = {"calibration/ece": expected_calibration_error(flat)}
    if num_prompts > 1:
        errors = [_squared_error(*one) for one in flat]
        found |= clustered_mean_interval(errors, prompts).as_dict("calibration/brier")
    if (name := _name_of_accuracy(needs)) is not None:
        share = sum(_success(*one) for one in flat) / len(flat)
        found |= wilson(share * num_prompts, num_prompts).as_dict(name)
    return found


def expected_calibration_error(predictions: Sequence[tuple[float, bool]]) -> float:
    """Return Σ over bins of (share of predictions in it) × |share right − mean confidence|."""
    logits = np.array([logit for logit, _ in predictions])
    confidence = 1 / (1 + np.exp(-np.abs(logits)))
    right = np.array([_success(*one) for one in predictions])
    place = np.minimum((2 * NUM_BINS * (confidence - 0.5)).astype(int), NUM_BINS - 1)
    gaps = [abs((right - confidence)[place == number].sum()) for number in range(NUM_BINS)]
    return float(sum(gaps) / len(predictions))


def _name_of_accuracy(needs: AbstractSet[Need]) -> str | None:
    """Return the name of the accuracy; that of pairs by differences of scores is among all objectives' metrics."""
    return next((name for need, name in _COUNTED.items() if need in needs), None)


def _success(logit: float, was_so: bool) -> float:
    return 0.5 if logit == 0 else float((logit > 0) == was_so)


def _squared_error(logit: float, was_so: bool) -> float:
    wrong = logit if not was_so else -logit
    return float(torch.sigmoid(torch.tensor(wrong, dtype=torch.float64)) ** 2)
