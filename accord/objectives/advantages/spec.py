"""What the rest of Accord may ask about an estimator of advantages: the row type of `ADVANTAGES`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from accord.groups import Advantages

Invariance = Literal["shift", "scale"]
"""Unchanged when a constant is added to all rewards of a prompt, or when all rewards of a rollout are multiplied."""


@dataclass(frozen=True, kw_only=True)
class RolloutState:
    """Numbers an estimator carries from one rollout to the next; it sees them as `RolloutBatch.state`.

    `start(**settings)` makes them, `advance(batch, **settings)` returns the next ones from a rollout that holds the
    present ones. Both are pure; tensors are float64 on the CPU.
    """

    start: Callable[..., dict[str, Tensor]]
    advance: Callable[..., dict[str, Tensor]]


@dataclass(frozen=True, kw_only=True)
class AdvantageSpec:
    """One row of `ADVANTAGES`: a pure function `fn(batch, *, setting=default, …) -> Advantages` and what it needs."""

    fn: Callable[..., Advantages]
    unit: Literal["group", "batch"]  # what must be seen at once: a prompt's responses, or the whole rollout
    critic: bool = False  # reads value_PKT
    steps: Literal["none", "optional", "required"] = "none"  # whether it reads step_reward_PKT
    reference_when: str = ""  # the setting that must not be 0 for reference_logps_PKT to be read; "" = never read
    invariant_to: frozenset[Invariance] = frozenset()  # at the defaults; up to the ε of a division
    state: RolloutState | None = None
    refused: Mapping[str, str] = field(default_factory=dict)  # `setting=choice` that is not offered → why not
    paper: str

    @property
    def summary(self) -> str:
        """Return the first sentence of the function's docstring."""
        return (inspect.getdoc(self.fn) or "").partition("\n")[0]

    def settings(self) -> dict[str, inspect.Parameter]:
        """Return the keyword-only settings in order, annotations (with their bounds) resolved to objects."""
        parameters = inspect.signature(self.fn, eval_str=True).parameters
        return {name: item for name, item in parameters.items() if item.kind is inspect.Parameter.KEYWORD_ONLY}

    def defaults(self) -> dict[str, Any]:
        """Return the default of every setting."""
        return {name: parameter.default for name, parameter in self.settings().items()}

    def needs_reference(self, settings: Mapping[str, Any]) -> bool:
        """Return whether these settings, defaults filled in, make it read the reference."""
        return bool(self.reference_when and settings.get(self.reference_when))
