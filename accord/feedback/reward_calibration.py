"""What a reward model's scores mean: centre, scale, temperature and dependence on length, measured on samples.

The result is a small JSON file beside the model. Scores of a reward model are known up to a constant per prompt only,
and their scale is that of its training; no torch here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from accord.errors import FeedbackError

CALIBRATION_FILE = "accord_calibration.json"
NUM_BINS = 10
NUM_KNOTS = 24
NEIGHBOURS = 0.5
"""Share of the samples that each local regression looks at."""
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """A reward model measured on samples of a reference policy, and on comparisons where there were any.

    `lengths` and `expected` are the knots of E[score | length], lengths in tokens. σ(margin/`temperature`) is the
    probability that a comparison comes out so.
    """

    mean: float
    std: float
    num_samples: int
    lengths: tuple[float, ...] = ()
    expected: tuple[float, ...] = ()
    temperature: float | None = None
    ece: float | None = None  # of σ(margin), before …
    ece_refitted: float | None = None  # … and after the temperature, on the same comparisons
    num_comparisons: int = 0

    def expected_at(self, length: float) -> float:
        """Return E[score | length], linear between the knots and level beyond them; the mean without knots."""
        return float(np.interp(length, self.lengths, self.expected)) if self.lengths else self.mean


def measure_calibration(
    scores: Sequence[float], lengths: Sequence[float], *, margins: Sequence[float] = ()
) -> Calibration:
    """Return a reward model's calibration from scores of samples, their lengths, and margins r(better) − r(worse).

    Raises FeedbackError for fewer than two samples, numbers that are not finite, and scores that are all equal.
    """
    found = np.asarray(scores, dtype=float)
    if len(found) < 2 or not np.isfinite(found).all() or len(lengths) != len(found):
        raise FeedbackError(
            f"got {len(found)} scores of {len(lengths)} samples — expected two or more finite ones each"
        )
    spread = float(found.std(ddof=1))
    if spread == 0:
        raise FeedbackError(f"got {len(found)} samples that all score {found[0]:.4g} — expected a trained reward model")
    knots, values = length_curve(lengths, found)
    temperature = fit_temperature(margins) if len(margins) else None
    return Calibration(
        mean=float(found.mean()), std=spread, num_samples=len(found), lengths=tuple(knots), expected=tuple(values),
        temperature=temperature,
        ece=expected_calibration_error(margins) if len(margins) else None,
        ece_refitted=expected_calibration_error(margins, temperature=temperature) if temperature else None,
        num_comparisons=len(margins),
    )  # fmt: skip


def fit_temperature(margins: ArrayLike) -> float:
    """Return T = argmin mean log(1 + e^{−m/T}) over margins m = r(better) − r(worse); within [10⁻³, 10³].

    Without a single wrong comparison the likelihood has no maximum, and the lower bound comes back.
    """
    from scipy.optimize import minimize_scalar

    found = np.asarray(margins, dtype=float)
    bound = math.log(1e3)
    best = minimize_scalar(
        lambda log_t: np.logaddexp(0.0, -found * math.exp(-log_t)).mean(), bounds=(-bound, bound), method="bounded",
        options={"xatol": 1e-10},
    )  # fmt: skip
    return float(math.exp(best.x))


def expected_calibration_error(margins: ArrayLike, *, temperature: float | None = None) -> float:
    """Return Σ_b (n_b/n) |acc_b − conf_b| over ten bins of confidence σ(|m|/T), m = r(better) − r(worse)."""
    found = np.asarray(margins, dtype=float) / (temperature or 1.0)
    confidence = 1 / (1 + np.exp(-np.abs(found)))
    right = np.where(found == 0, 0.5, found > 0)
    place = np.minimum((2 * NUM_BINS * (confidence - 0.5)).astype(int), NUM_BINS - 1)
    return float(sum(abs((right - confidence)[place == b].sum()) for b in range(NUM_BINS)) / len(found))


def length_curve(lengths: ArrayLike, scores: ArrayLike) -> tuple[list[float], list[float]]:
    """Return knots of length and E[score | length] there, by locally weighted linear regression with tricube weights.

    Each knot looks at the nearest half of the samples. Exact for scores linear in length.
    Source: Huang et al. 2024, arXiv:2409.17407; Cleveland 1979.
    """
    x, y = np.asarray(lengths, dtype=float), np.asarray(scores, dtype=float)
    knots = np.unique(np.quantile(x, np.linspace(0, 1, NUM_KNOTS)))
    count = min(len(x), max(3, math.ceil(NEIGHBOURS * len(x))))
    return knots.tolist(), [_local_fit(x, y, at, count) for at in knots.tolist()]


def _local_fit(x: Floats, y: Floats, at: float, count: int) -> float:
    distance = np.abs(x - at)
    reach = np.partition(distance, count - 1)[count - 1]
    weight = (1 - np.clip(distance / (reach * (1 + 1e-9) + 1e-12), 0, 1) ** 3) ** 3
    centre = np.average(x, weights=weight)
    spread = np.average((x - centre) ** 2, weights=weight)
    level = np.average(y, weights=weight)
    if spread <= 1e-12:
        return float(level)
    return float(level + (at - centre) * np.average((x - centre) * y, weights=weight) / spread)


def write_calibration(folder: str | Path, calibration: Calibration) -> Path:
    """Write the calibration beside a model and return its path."""
    path = Path(folder) / CALIBRATION_FILE
    path.write_text(json.dumps(asdict(calibration), indent=1))
    return path


def read_calibration(folder: str | Path) -> Calibration | None:
    """Return the calibration beside a model; None without one. Raises FeedbackError for a file that is none."""
    path = Path(folder) / CALIBRATION_FILE
    if not path.is_file():
        return None
    try:
        row: dict[str, Any] = json.loads(path.read_text())
        known = {item.name for item in fields(Calibration)}
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in row.items() if k in known}
        return Calibration(**values)
    except (ValueError, TypeError, AttributeError) as error:
        raise FeedbackError(
            f"{path} cannot be read as a calibration ({error}) — write it again: accord score --calibrate"
        ) from error


def ensemble_scores(scores_MK: ArrayLike, *, how: str = "mean", penalty: float = 0.5) -> Floats:
    """Return one score per response from M members': their mean, "worst" (min) or "uncertainty" (mean − λ var).

    The variance is over the members (ddof 0), λ = `penalty`. Members are standardised and centred before. Unknown
    (NaN) in a member makes the response unknown. Source: Coste et al. 2023, arXiv:2310.02743.
    """
    members = np.asarray(scores_MK, dtype=float)
    if how == "worst":
        return np.where(np.isnan(members).any(axis=0), np.nan, members.min(axis=0))
    mean = members.mean(axis=0)
    return mean - penalty * members.var(axis=0) if how == "uncertainty" else mean
