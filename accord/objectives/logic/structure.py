"""Preference structures: what a loss says of a pair, as logic (Richardson et al. 2024, arXiv:2412.17696).

A structure is a formula P that should hold, a condition PC on what is looked at, and PA, what counts for both sides.
With p(F) the weighted count of F's models (each proposition true with its probability, independently),

    ρ = log p((P ∨ PA) ∧ PC) − log p((¬P ∨ PA) ∧ PC)

and a loss is a decreasing function of ρ. Axes: P prompts, K responses.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from accord.objectives._ops import log1mexp
from accord.objectives.logic.formula import Assignment, assignments, parse_formula, propositions_in


@dataclass(frozen=True)
class Structure:
    """Formulas as text: `formula` should hold, given `condition`; models of `both` count on both sides."""

    formula: str
    condition: str = "True"
    both: str = "False"

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The propositions mentioned."""
        return propositions_in(self.formula, self.condition, self.both)

    @cached_property
    def table(self) -> list[tuple[Assignment, bool, bool]]:
        """The truth table: (assignment, counts for, counts against) of every assignment, all true first."""
        wanted, given, both = (parse_formula(text) for text in (self.formula, self.condition, self.both))
        return [
            (row, (wanted(row) or both(row)) and given(row), (not wanted(row) or both(row)) and given(row))
            for row in assignments(self.names)
        ]

    def check(self) -> None:
        """Raise ValueError where a formula cannot be read, or where nothing counts for or nothing against."""
        for side, counted in (("for", [row[1] for row in self.table]), ("against", [row[2] for row in self.table])):
            if not any(counted):
                raise ValueError(
                    f"got formula={self.formula!r} under condition={self.condition!r}, for which no model counts "
                    f"{side} — expected some on both sides, otherwise there is nothing to learn"
                )

    def log_odds(self, logps: dict[str, Tensor]) -> Tensor:
        """Return ρ, nats, of log-probabilities (< 0) by proposition, all of one shape."""
        log_false = {name: log1mexp(logps[name]) for name in self.names}

        def count(side: int) -> Tensor:
            terms = [
                sum((logps[name] if row[0][name] else log_false[name] for name in self.names), torch.zeros(()))
                for row in self.table
                if row[side]
            ]
            return torch.logsumexp(torch.stack(torch.broadcast_tensors(*terms)), dim=0)

        return count(1) - count(2)

    def to_text(self) -> str:
        """Return the formulas and the truth table for reading."""
        lines = [f"P  = {self.formula}", f"PC = {self.condition}", f"PA = {self.both}", ""]
        lines.append("  ".join(self.names) + "  counts")
        for row, is_for, is_against in self.table:
            values = "  ".join(("T" if row[name] else "F").center(len(name)) for name in self.names)
            lines.append(f"{values}  {'+' if is_for else ' '} {'−' if is_against else ' '}")
        return "\n".join(line.rstrip() for line in lines)


def entails(strict: Structure, loose: Structure) -> bool:
    """Whether all that counts for `strict` counts for `loose`, and all against `loose` against `strict`.

    Then the loss of `strict` is nowhere below that of `loose`, whatever the probabilities and the link.
    """
    names = tuple(dict.fromkeys((*strict.names, *loose.names)))

    def models(structure: Structure, side: int) -> set[tuple[bool, ...]]:
        kept = {tuple(row[0].values()) for row in structure.table if row[side]}
        return {
            tuple(row.values()) for row in assignments(names) if tuple(row[n] for n in structure.names) in kept
        }  # fmt: skip

    return models(strict, 1) <= models(loose, 1) and models(loose, 2) <= models(strict, 2)
