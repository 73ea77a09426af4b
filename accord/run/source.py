"""Where the groups of each optimiser step come from: a file, in an order fixed by the seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

from accord.config import TrainConfig
from accord.data.batching import epoch_batches
from accord.data.tokens import TokenGroup
from accord.run.metrics import Sums


class GroupSource(Protocol):
    """What the loop asks for groups; steps are asked for in order, each perhaps more than once."""

    num_steps: int
    steps_per_epoch: int

    def batch_at(self, step: int) -> list[TokenGroup]:
        """Return the groups of an optimiser step; every process must call."""
        ...

    def take_sums(self) -> Sums:
        """Return what was measured while the last groups were made, once, as sums and counts."""
        ...

    def check(self, sums: Sums) -> None:
        """Look at what a step measured. Raises TrainingError where it must not go on."""
        ...

    def state(self) -> dict[str, Any]:
        """Return what moves, as plain values and tensors, for a checkpoint."""
        ...

    def take_up(self, state: dict[str, Any]) -> None:
        """Put what a checkpoint held in place."""
        ...


class FileSource:
    """Groups that are all there from the start: a function of the step, the seed and the data alone."""

    def __init__(self, groups: Sequence[TokenGroup], settings: TrainConfig) -> None:
        self._groups, self._settings = groups, settings
        self.steps_per_epoch = math.ceil(len(groups) / settings.batch_size)
        planned = max(1, round(settings.epochs * self.steps_per_epoch))
        self.num_steps = min(planned, settings.max_steps or planned)
        self._epoch: tuple[int, list[list[int]]] = (-1, [])

    def batch_at(self, step: int) -> list[TokenGroup]:
        """Return the groups of an optimiser step."""
        epoch, place = divmod(step, self.steps_per_epoch)
        settings = self._settings
        if self._epoch[0] != epoch:
            batches = epoch_batches(
                self._groups, settings.batch_size, window=settings.length_window, seed=settings.seed, epoch=epoch
            )
            self._epoch = (epoch, batches)
        return [self._groups[index] for index in self._epoch[1][place]]

    def take_sums(self) -> Sums:
        """Return nothing: nothing is made."""
        return {}

    def check(self, sums: Sums) -> None:
        """Accept whatever a step measured."""

    def state(self) -> dict[str, Any]:
        """Return nothing: the order follows from the step."""
        return {}

    def take_up(self, state: dict[str, Any]) -> None:
        """Take up nothing."""
