"""Eyes on a run that samples: do sampler and trainer agree, and is the reward being gamed?"""

from __future__ import annotations

import logging
from typing import Any

from accord.diagnostics.hacking import RULES
from accord.run.metrics import Sums, means

log = logging.getLogger(__name__)
_READ = ("rollout/", "log_ratio/")


class Watch:
    """Says once what each rule of `accord.diagnostics.hacking` sees in the steps so far."""

    def __init__(self) -> None:
        self._history: list[dict[str, float]] = []
        self._told: list[int] = []

    def look(self, sums: Sums) -> None:
        """Take a step's metrics in, and warn of what they show."""
        line = {name: value for name, value in means(sums).items() if name.startswith(_READ)}
        if "rollout/reward" not in line:
            return
        self._history.append(line)
        for number, rule in enumerate(RULES):
            if number not in self._told and (sentence := rule(self._history)) is not None:
                self._told.append(number)
                log.warning("%s", sentence)

    def state(self) -> dict[str, Any]:
        """Return what was seen and said, as plain values."""
        return {"history": self._history, "told": self._told}

    def take_up(self, state: dict[str, Any]) -> None:
        """Put what a checkpoint held in place."""
        self._history, self._told = list(state["history"]), list(state["told"])
