"""Gradients of an optimisation batch, micro-batch by micro-batch: sums over groups, divided by nobody here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from accord.data.batching import micro_batches
from accord.data.tokens import TokenGroup
from accord.run.held_out.evaluation import INDICATORS
from accord.run.held_out.predictions import predict, prediction_sums, with_predictions
from accord.run.loop_state import Passed
from accord.run.metrics import add_up, example_rows, measure
from accord.run.scored import BatchFacts, Scoring, add_state_sums


@dataclass(frozen=True, kw_only=True)
class Gradients:
    """Adds gradients up in a module's weights. `gathers_rows`: rows of all processes are wanted at every step."""

    accelerator: Accelerator
    module: nn.Module  # the policy, inside a wrapper for many devices
    with_statistics: bool
    gathers_rows: bool

    def accumulate(
        self, scoring: Scoring, batch: Sequence[TokenGroup], *, step: int, max_tokens: int, weight: float = 1.0
    ) -> Passed:
        """Add the gradient of a batch's summed loss, times `weight`; return what all processes measured."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        budget = max_tokens
        if world > 1:  # work for every process
            budget = min(budget, math.ceil(sum(group.num_tokens for group in batch) / world))
        parts = micro_batches(batch, budget, layout=scoring.policy.layout)
        mine = parts[rank::world]
        facts = scoring.facts(batch, visit=step, max_tokens=max_tokens, is_split=len(parts) > 1)
        passed: list[Passed] = []
        num_slots = math.ceil(len(parts) / world)
        for slot in range(num_slots):
            counts = slot < len(mine)  # every process runs as many passes; a spare one carries no weight
            places = list(mine[slot] if counts else parts[0])
            is_last = slot == num_slots - 1
            with nullcontext() if is_last else self.accelerator.no_sync(self.module):
                part = [batch[place] for place in places]
                done = self._backward(scoring, part, places, facts, weight=weight if counts else 0.0)
            passed += [done] if counts else []
        sums = add_up(gather_object([part.sums for part in passed]))
        rows = [row for part in passed for row in part.rows]
        if self.gathers_rows or step == 0:
            rows = gather_object(rows)
        state_sums = {}
        if scoring.spec.state is not None:
            state_sums = add_state_sums(gather_object([part.state_sums for part in passed]))
        return Passed(sums, rows, state_sums)

    def _backward(
        self, scoring: Scoring, part: list[TokenGroup], places: list[int], facts: BatchFacts, *, weight: float
    ) -> Passed:
        """Score a micro-batch and take its gradient; one of weight 0 only keeps the processes in step."""
        scores, scored = scoring.score(
            part, facts, places=places, module=self.module, statistics=INDICATORS if self.with_statistics else ()
        )
        result = scoring.result(scored)
        loss = result.loss_P.sum()
        if not loss.requires_grad:
            loss = loss + 0.0 * scores.graded_PK.sum()  # no usable judgement here
        if self.accelerator.num_processes > 1 and scores.value_N is not None:
            loss = loss + 0.0 * scores.value_N.sum()  # wrappers for many devices wait for every weight's gradient
        self.accelerator.backward(loss if weight == 1.0 else loss * weight)
        predicted = predict(scoring.spec.needs, scored)
        metrics = measure(scored, result, scores) | prediction_sums(scoring.spec.needs, predicted)
        metrics["groups/skipped"] = (float((~result.is_counted_P).sum()), float(len(part)))
        rows = with_predictions(example_rows(part, scored, result, step=facts.visit + 1), predicted)
        return Passed(metrics, rows, {name: value.detach() for name, value in result.state_sums.items()})
