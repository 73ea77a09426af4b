"""One reward made of several: weighted sums, products, stages, group-normalised sums, gates; every part is recorded."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, get_args

import numpy as np

from accord.errors import ConfigError, FeedbackError
from accord.feedback.findings import Finding, Reward, Scores
from accord.records import Group

Combine = Literal["sum", "product", "min", "lexicographic", "normalised_sum", "log_sigmoid"]
OnUnknown = Literal["unknown", "leave_out", "worst"]
STD_EPSILON = 1e-4
"""Added to the standard deviation of a group, as GRPO implementations do."""


class Shaping(Protocol):
    """A part that is computed from another part's findings: length by correctness, a calibrated score, abstention."""

    @property
    def name(self) -> str:
        """What its scores are recorded under."""
        ...

    def __call__(self, groups: Sequence[Group], given: Sequence[Sequence[Finding]]) -> list[list[Finding]]:
        """Return a finding per response from the findings of another part about the same groups."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One component: where its scores come from and how they count. Exactly one of `source` and `shaping` is set.

    A gate (`is_gate`) adds nothing by itself unless it has a weight: below `passes_at` it closes the whole reward. In a
    lexicographic composition `passes_at` is what a part must reach for those after it to count. `reference_score` is
    the r_ref of the log-sigmoid transform; None = a quantile of the group.
    """

    name: str
    source: Reward | None = None
    shaping: Shaping | None = None
    of: str | None = None  # whose findings the shaping reads
    weight: float = 1.0
    is_gate: bool = False
    passes_at: float = 1.0
    reference_score: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Composition:
    """A `Reward` made of parts; `finding.parts` holds the raw score of each, None where it is unknown.

    combine: "sum" Σ w_k s_k; "product" Π s_k; "min" min w_k s_k; "lexicographic" Σ w_k s_k over the parts before and
    including the first that stays below its `passes_at`; "normalised_sum" Σ w_k z_k with z the score standardised over
    the responses of the prompt (ddof 1, ε = 1e-4), so that no part's scale drowns another's; "log_sigmoid"
    Σ w_k log σ(s_k − r_ref), close to a logical AND (Wang et al. 2024, arXiv:2402.00742).
    Where a gate stays below its `passes_at`, the total is `closed` whatever the rest says.
    on_unknown, for a part that counts and is unknown: "unknown" makes the total unknown; "leave_out" takes the total
    of the known parts (a sum is scaled up by Σ|w| / Σ_known |w|); "worst" takes that part's lowest known score of the
    group. A part of weight 0 is recorded only. Nothing unknown is ever taken for 0.
    Raises ConfigError for parts that do not fit together, FeedbackError where a part loses count of the responses.
    """

    parts: tuple[Part, ...]
    combine: Combine = "sum"
    on_unknown: OnUnknown = "unknown"
    closed: float = 0.0
    quantile: float = 0.85
    name: str = "reward"

    def __post_init__(self) -> None:
        for option, given, kind in (("combine", self.combine, Combine), ("on_unknown", self.on_unknown, OnUnknown)):
            if given not in get_args(kind):
                raise ConfigError(f"got {option}={given!r} — expected one of {', '.join(get_args(kind))}")
        check_parts(self.parts, combine=self.combine, quantile=self.quantile)
        for part in self.parts:
            _check_source(part, self.parts)

    def __call__(self, groups: Sequence[Group]) -> list[list[Finding]]:
        """Ask every part once about all groups, then combine response by response."""
        asked: dict[str, list[list[Finding]]] = {}
        for part in sorted(self.parts, key=lambda part: part.shaping is not None):  # shapings read the others
            found = part.source(groups) if part.source else part.shaping(groups, asked[part.of or ""])  # type: ignore[misc]  # one of them is set: _check_source
            asked[part.name] = _checked(part.name, found, groups)
        return [
            self._of_group({part.name: asked[part.name][place] for part in self.parts}, len(group.responses))
            for place, group in enumerate(groups)
        ]

    def check_groups(self, groups: Sequence[Group]) -> None:
        """Raise DataError where a row lacks a column that a part reads, before there are responses."""
        for part in self.parts:
            check = getattr(part.source, "check_groups", None)  # other sources read texts alone
            if check is not None:
                check(groups)

    def totals(self, parts: Mapping[str, Scores], weights: Mapping[str, float]) -> Scores:
        """Return the totals of parts that are scored already (all of them, by name), under other weights."""
        other = replace(self, parts=tuple(replace(p, weight=weights.get(p.name, p.weight)) for p in self.parts))
        sizes = [len(row) for row in parts[self.parts[0].name]]
        return [
            [
                finding.score
                for finding in other._of_group(
                    {p.name: [Finding(score=score) for score in parts[p.name][place]] for p in self.parts}, size
                )
            ]
            for place, size in enumerate(sizes)
        ]

    def _of_group(self, found: Mapping[str, Sequence[Finding]], num_responses: int) -> list[Finding]:
        raw = {name: [finding.score for finding in findings] for name, findings in found.items()}
        scores = raw if self.on_unknown != "worst" else {name: _worst_for_unknown(row) for name, row in raw.items()}
        if self.combine == "normalised_sum":
            scores = {
                part.name: scores[part.name] if part.is_gate else z_scores(scores[part.name]) for part in self.parts
            }
        if self.combine == "log_sigmoid":
            scores = {p.name: scores[p.name] if p.is_gate else self._log_sigmoid(p, scores[p.name]) for p in self.parts}
        findings = []
        for place in range(num_responses):
            score, reason = self._total({name: row[place] for name, row in scores.items()})
            if score is None:
                reason = f"{reason}: {found[reason][place].reason or 'unknown'}" if reason in found else reason
            findings.append(Finding(score=score, reason=reason, parts=_parts(found, place)))
        return findings

    def _log_sigmoid(self, part: Part, row: Sequence[float | None]) -> list[float | None]:
        known = [score for score in row if score is not None]
        if not known:
            return list(row)
        reference = float(np.quantile(known, self.quantile)) if part.reference_score is None else part.reference_score
        return [None if score is None else log_sigmoid(score - reference) for score in row]

    def _total(self, scores: Mapping[str, float | None]) -> tuple[float | None, str]:
        """Return the total and why; where it is unknown, the reason is the name of the part that is."""
        for part in self.parts:
            if part.is_gate:
                score = scores[part.name]
                if score is None:
                    return None, part.name
                if score < part.passes_at:
                    return self.closed, f"the gate {part.name} is closed"
        counted = [part for part in self.parts if part.weight]
        known = [(part, score) for part in counted if (score := scores[part.name]) is not None]
        if not known or (len(known) < len(counted) and self.on_unknown != "leave_out" and not self._is_settled(scores)):
            return None, next(part.name for part in counted if scores[part.name] is None)
        return self._combined(known, counted), "" if len(known) == len(counted) else "without the unknown parts"

    def _is_settled(self, scores: Mapping[str, float | None]) -> bool:
        """Whether the unknown parts of a lexicographic reward come after a part that already failed."""
        if self.combine != "lexicographic":
            return False
        for part in self.parts:
            if part.weight and not part.is_gate:
                score = scores[part.name]
                if score is None:
                    return False
                if score < part.passes_at:
                    return True
        return False

    def _combined(self, known: Sequence[tuple[Part, float]], counted: Sequence[Part]) -> float:
        match self.combine:
            case "product":
                return math.prod(score for _, score in known)
            case "min":
                return min(part.weight * score for part, score in known)
            case "lexicographic":
                total = 0.0
                for part, score in known:
                    total += part.weight * score
                    if score < part.passes_at:
                        break
                return total
        total = math.fsum(part.weight * score for part, score in known)
        share = math.fsum(abs(part.weight) for part, _ in known) / math.fsum(abs(part.weight) for part in counted)
        return total / share


def z_scores(row: Sequence[float | None]) -> list[float | None]:
    """Return (s − mean)/(std + 1e-4) over the known scores of a group, std with ddof 1; 0 for a single known one."""
    known = np.array([score for score in row if score is not None], dtype=float)
    if not len(known):
        return list(row)
    spread = float(known.std(ddof=1)) if len(known) > 1 else 0.0
    return [None if score is None else float((score - known.mean()) / (spread + STD_EPSILON)) for score in row]


def log_sigmoid(x: float) -> float:
    """Return log σ(x) = −log(1 + e^−x), without overflow."""
    return min(x, 0.0) - math.log1p(math.exp(-abs(x)))


def each(groups: Sequence[Group], score: Callable[[Group, int], Finding]) -> list[list[Finding]]:
    """Return the finding of every response, group by group."""
    return [[score(group, index) for index in range(len(group.responses))] for group in groups]


def _worst_for_unknown(row: Sequence[float | None]) -> list[float | None]:
    worst = min((score for score in row if score is not None), default=None)
    return [worst if score is None else score for score in row]


def _parts(found: Mapping[str, Sequence[Finding]], place: int) -> dict[str, float | None]:
    parts: dict[str, float | None] = {}
    for name, findings in found.items():
        parts[name] = findings[place].score
        parts |= {f"{name}/{inner}": value for inner, value in findings[place].parts.items()}
    return parts


def _checked(name: str, found: Sequence[Sequence[Finding]], groups: Sequence[Group]) -> list[list[Finding]]:
    """Return the findings, a number that is none made unknown. Raises FeedbackError for another count."""
    sizes, expected = [len(row) for row in found], [len(group.responses) for group in groups]
    if sizes != expected:
        raise FeedbackError(f"{name} returned findings of {sizes} responses — expected {expected}, one per response")
    return [
        [
            finding
            if finding.score is None or math.isfinite(finding.score)
            else Finding(score=None, reason=f"{name} gave {finding.score}, which is no number", parts=finding.parts)
            for finding in row
        ]
        for row in found
    ]


def check_parts(parts: Sequence[Part], *, combine: Combine, quantile: float) -> None:
    """Raise ConfigError for parts whose names, weights or kind of combination mean nothing."""
    names = [part.name for part in parts]
    if not any(part.weight for part in parts):
        raise ConfigError(f"got a reward of {', '.join(names) or 'no part'} without a weight — expected one or more")
    if len(set(names)) < len(names):
        raise ConfigError(f"got parts named {', '.join(names)} — expected each name once")
    if not 0 <= quantile <= 1:
        raise ConfigError(f"got quantile={quantile} — expected a share from 0 to 1")
    for part in parts:
        if not math.isfinite(part.weight):
            raise ConfigError(f"got weight {part.weight} of {part.name} — expected a finite number")
        if combine == "product" and part.weight not in (0, 1):
            raise ConfigError(
                f"got weight {part.weight} of {part.name} in a product — expected 1, or 0 to only record it: a factor "
                "changes nothing but the scale"
            )


def _check_source(part: Part, parts: Sequence[Part]) -> None:
    if (part.source is None) == (part.shaping is None):
        raise ConfigError(f"got the part {part.name} — expected it to have either a source or a shaping")
    if part.shaping is not None and not any(other.name == part.of and other.source for other in parts):
        own = ", ".join(other.name for other in parts if other.source) or "none"
        raise ConfigError(
            f"got {part.name} of={part.of} — expected the name of a part with scores of its own, which are: {own}"
        )
