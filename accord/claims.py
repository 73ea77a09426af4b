"""A claim and whether it held: what `accord verify` prints. Plain Python, no torch."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One thing theory says, what was measured, and the verdict.

    `gap` is the distance that `tolerance` bounds; both are in the unit of the claim.
    """

    name: str
    expected: float
    reached: float
    gap: float
    tolerance: float
    passed: bool
    note: str = ""

    @classmethod
    def equal(cls, name: str, *, expected: float, reached: float, tolerance: float, note: str = "") -> Claim:
        """Claim that two numbers agree to an absolute tolerance. A NaN never passes."""
        return cls._judge(name, expected, reached, abs(reached - expected), tolerance, note)

    @classmethod
    def at_least(cls, name: str, *, bound: float, reached: float, tolerance: float = 0.0, note: str = "") -> Claim:
        """Claim that a number does not fall below a bound; the gap is how far it does. A NaN never passes."""
        shortfall = bound - reached
        gap = shortfall if math.isnan(shortfall) else max(0.0, shortfall)
        return cls._judge(name, bound, reached, gap, tolerance, note)

    @classmethod
    def _judge(cls, name: str, expected: float, reached: float, gap: float, tolerance: float, note: str) -> Claim:
        passed = gap <= tolerance
        return cls(
            name=name, expected=expected, reached=reached, gap=gap, tolerance=tolerance, passed=passed, note=note
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the claim as plain JSON values; a number that is not finite becomes None, which JSON can hold."""
        return {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in asdict(self).items()
        }
