"""Gradient entanglement and CHES of held-out pairs: which pairs push their own chosen response down, and how often."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from accord.data.tokens import TokenGroup
from accord.diagnostics.gradients import pair_geometry
from accord.evaluation.intervals import mean_interval, wilson
from accord.run.scored import Scoring

log = logging.getLogger(__name__)

KEYS = (
    "gradient_cosine", "chosen_change", "rejected_change", "ches", "ches_normalised", "chosen_pull", "rejected_push",
)  # fmt: skip
"""Per-example columns: cos(g_w, g_l); first-order changes of log π(y_w) and log π(y_l) per unit of rate; CHES; d_w and
d_l, what the loss asks of each, which some objectives turn round on purpose (ipo beyond its target, apo_down)."""


def measure_gradients(scoring: Scoring, groups: Sequence[TokenGroup]) -> list[dict[str, Any]]:
    """Return one row of `KEYS` per group that has a judged pair: its first one. Output matrix only."""
    policy = scoring.policy
    head = policy.causal_lm.get_output_embeddings()
    if scoring.spec.level == "token" or not isinstance(head, nn.Linear):
        log.warning(
            "evaluate.gradient_pairs: nothing is measured, because %s",
            "the objective weighs tokens" if scoring.spec.level == "token" else "the model's head is not a matrix",
        )
        return []
    found = []
    for group in groups:
        with torch.no_grad():
            _, scored = scoring.score([group], scoring.held_out_facts())
        if scored.preferred_PKK is None:
            continue
        pairs = scored.preferred_PKK[0].nonzero().tolist()
        if not pairs or (states := policy.predicting_states(group)) is None:
            continue
        better, worse = pairs[0]
        with torch.enable_grad():
            logps_PK = scored.policy_logps_PK.detach().clone().requires_grad_()
            alone = torch.zeros_like(scored.preferred_PKK)  # the pair by itself: others of the group pull elsewhere
            alone[0, better, worse] = True
            loss = scoring.result(replace(scored, policy_logps_PK=logps_PK, preferred_PKK=alone)).loss_P.sum()
            (slope_PK,) = torch.autograd.grad(loss, logps_PK)
        ids = [torch.tensor(group.responses[place].ids, device=logps_PK.device) for place in (better, worse)]
        trained = [
            torch.tensor(group.responses[place].is_trained or [True] * len(group.responses[place].ids))
            for place in (better, worse)
        ]
        (h_w, ids_w), (h_l, ids_l) = (
            (states[place][mask], tokens[mask])
            for place, tokens, mask in zip((better, worse), ids, trained, strict=True)
        )
        geometry = pair_geometry(h_w, h_l, ids_w, ids_l, head.weight.to(h_w.dtype), head.bias)
        d_w, d_l = -float(slope_PK[0, better]), float(slope_PK[0, worse])
        found.append(
            {
                "index": group.index,
                "gradient_cosine": geometry.cosine,
                "chosen_change": geometry.better_change(d_w, d_l),
                "rejected_change": geometry.worse_change(d_w, d_l),
                "ches": geometry.ches,
                "ches_normalised": geometry.ches_normalised,
                "chosen_pull": d_w,
                "rejected_push": d_l,
            }
        )
    return found


def summarise_gradients(measured: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return shares of pairs that move a response the wrong way, with Wilson intervals, and mean cosine and CHES."""
    if len(measured) < 2:
        return {}
    # against what the loss asks: where d_w or d_l is not positive, it asks for that itself
    falls = sum(row["chosen_change"] < 0 < row["chosen_pull"] for row in measured)
    rises = sum(row["rejected_change"] > 0 and row["rejected_push"] > 0 for row in measured)
    return {
        **wilson(falls, len(measured)).as_dict("gradients/chosen_falls"),
        **wilson(rises, len(measured)).as_dict("gradients/rejected_rises"),
        **mean_interval([row["gradient_cosine"] for row in measured]).as_dict("gradients/cosine"),
        **mean_interval([row["ches_normalised"] for row in measured]).as_dict("gradients/ches_normalised"),
    }


def with_gradients(rows: Sequence[dict[str, Any]], measured: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return per-example rows with the columns `KEYS`; None where a pair was not measured."""
    by_index = {row["index"]: row for row in measured}
    nothing = dict.fromkeys(KEYS)
    return [row | {key: by_index.get(row["index"], nothing)[key] for key in KEYS} for row in rows]
