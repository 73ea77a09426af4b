"""What the rest of Accord may ask about an objective: the row type of `OBJECTIVES`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import Any, Literal

from accord.groups import ObjectiveResult

Family = Literal["likelihood", "pairwise", "pointwise", "listwise", "token", "policy_gradient", "reward_model"]
Level = Literal["sequence", "token"]


class Need(Enum):
    """Something beyond log-probabilities and lengths that an objective reads; the value is its name in tables."""

    PREFERENCES = "preferences"  # preferred_PKK
    STRENGTHS = "strengths"  # strength_PKK
    LABELS = "labels"  # desirable_PK and is_labelled_PK
    RATINGS = "ratings"  # reward_PK and is_rated_PK
    MISMATCHED_KL = "mismatched_kl"  # a scoring statistic, not a judgement: one extra forward pass per batch


@dataclass(frozen=True, kw_only=True)
class ObjectiveSpec:
    """One row of `OBJECTIVES`: a pure function and what a caller must know to run it.

    The settings, their bounds and defaults are read off the signature of `fn`, the summary off its docstring; a
    variant of an existing function is `functools.partial(fn, setting=value)`, whose fixed settings are not offered.
    """

    fn: Callable[..., ObjectiveResult]
    family: Family
    needs: frozenset[Need]  # refused without these
    reads: frozenset[Need] = field(default=frozenset())  # used when present, not required
    reference: bool  # reads reference_logps_PK
    level: Level = "sequence"
    is_difference_only: bool = False  # at the defaults: unchanged when all log-ratios of a prompt shift by a constant
    initial_loss: Callable[..., float | None] | None = None  # of the settings: the loss at policy = reference
    implicit_reward: str  # formula of implicit_reward_PK
    paper: str

    @property
    def summary(self) -> str:
        """Return the first sentence of the function's docstring."""
        documented = self.fn.func if isinstance(self.fn, partial) else self.fn
        return (inspect.getdoc(documented) or "").partition("\n")[0]

    def settings(self) -> dict[str, inspect.Parameter]:
        """Return the keyword-only settings in order, annotations (with their bounds) resolved to objects."""
        fixed = self.fn.keywords if isinstance(self.fn, partial) else {}
        parameters = inspect.signature(self.fn, eval_str=True).parameters
        return {
            name: parameter
            for name, parameter in parameters.items()
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY and name not in fixed
        }

    def defaults(self) -> dict[str, Any]:
        """Return the default of every setting."""
        return {name: parameter.default for name, parameter in self.settings().items()}
