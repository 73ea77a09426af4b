"""What a report on agreement is made of: numbers with intervals, per kind of question and per judge. Plain values.

An estimate that cannot be made (no overlap, one value only, no gold) is None, never 0.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A number with its bootstrap interval (over items) and how many items it rests on."""

    value: float
    low: float
    high: float
    num_items: int
    spread: float = math.nan  # standard deviation of the bootstrap draws


@dataclass(frozen=True, slots=True, kw_only=True)
class Coefficients:
    """How much judges agree on one kind of question: "preference", "label" or "rating:ATTRIBUTE".

    Preferences count in both directions, so that it makes no difference which response a file names first.
    """

    kind: str
    num_items: int  # that at least two judges judged
    num_judges: int
    num_judgements: int
    raw: Estimate | None = None  # share of pairs of judgements of an item that are the same
    cohen_kappa: Estimate | None = None  # mean over pairs of judges, weighted by the items they share
    weighted_kappa: Estimate | None = None  # the same with quadratic weights, on the scale's steps
    fleiss_kappa: Estimate | None = None
    alpha_nominal: Estimate | None = None  # Krippendorff's
    alpha_ordinal: Estimate | None = None
    alpha_interval: Estimate | None = None
    alpha_ratio: Estimate | None = None  # ratings only: preferences and labels have no ratio scale


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeReport:
    """What can be said of one judge (of all together: `AgreementReport.overall`)."""

    judge: str
    num_judgements: int
    share: Estimate | None = None  # of all judgements
    agreement: Estimate | None = None  # with the other judges, as a share
    kappa: Estimate | None = None  # the same beyond chance: 0 = chance, 1 = always
    gold_accuracy: Estimate | None = None
    self_consistency: Estimate | None = None  # share of repeated questions answered the same way
    chose_first: Estimate | None = None  # share of choices that fell on the response shown first
    chose_longer: Estimate | None = None  # share of choices that fell on the longer response
    median_seconds: Estimate | None = None
    num_quick: int | None = None  # judgements much quicker than usual for all …
    num_slow: int | None = None  # … and much slower
    dawid_skene: Estimate | None = None  # probability of being right: confusion matrices (Dawid and Skene 1979)
    repo: Estimate | None = None  # the same by RE-PO's EM: one number per judge


@dataclass(frozen=True, slots=True, kw_only=True)
class DiscretionReport:
    """How annotators use their discretion where principles speak (Buyl et al. 2025, arXiv:2502.10441)."""

    principles: tuple[str, ...]
    annotators: tuple[str, ...]
    consensus: Estimate  # shares of cases: all principles that apply agree …
    conflict: Estimate  # … some contradict each other …
    indifference: Estimate  # … none applies
    arbitrariness: dict[str, Estimate | None] = field(default_factory=dict)  # annotator → against a consensus
    supremacy: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)  # annotator → c → c' → share
    priority: dict[str, dict[str, float]] = field(default_factory=dict)  # annotator → principle → weight, ±∞ possible
    discrepancy: dict[str, dict[str, Estimate | None]] = field(default_factory=dict)  # by pairs: (1 − τ)/2


@dataclass(frozen=True, slots=True, kw_only=True)
class AgreementReport:
    """Whether judgements can be trusted. `warnings` are sentences, each supported by its interval."""

    num_groups: int
    num_judges: int
    num_judgements: int
    num_unnamed: int  # judgements without a judge: they enter no comparison of judges
    confidence: float
    coefficients: tuple[Coefficients, ...]
    overall: JudgeReport
    judges: tuple[JudgeReport, ...]
    discretion: DiscretionReport | None = None
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON can hold it: what is not a number is None, infinite weights are words."""
        return _as_json(asdict(self))

    def to_text(self) -> str:
        """Return the report as a page of plain text."""
        from accord.agreement.words import report_text

        return report_text(self)


def _as_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value
