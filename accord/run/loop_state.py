"""What moves in the loop besides weights, what a pass leaves behind, and how a loop ends."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from accord.run.held_out.evaluation import Evaluation
from accord.run.metrics import Sums


@dataclass
class LoopState:
    """What moves, besides weights and moments. The order of the data follows from `step`; nothing else does."""

    step: int = 0  # optimiser steps taken
    num_tokens: int = 0  # laid-out tokens trained on
    max_batch_tokens: int = 0  # halved when memory runs out
    best_loss: float = math.inf
    best_step: int = -1
    num_worse: int = 0  # evaluations since the best one
    evaluated_step: int = -1  # of the last evaluation that was recorded
    grad_norm: float = 0.0  # of the last step
    pending: Sums = field(default_factory=dict)  # of the steps since the last report


class Passed(NamedTuple):
    """What passes over groups leave behind, besides gradients."""

    sums: Sums
    rows: list[dict[str, Any]]
    state_sums: dict[str, Tensor]  # of the objective


@dataclass(frozen=True, kw_only=True)
class LoopResult:
    """How a loop ended."""

    state: LoopState
    was_stopped: bool  # by a signal
    first: Evaluation | None  # before the first step of this process
    last: Evaluation | None  # of the weights that the policy now has, where there are held-out groups
    weights_step: int  # whose weights the policy now has: the last step, or the best one after an early stop
