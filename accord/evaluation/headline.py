"""The numbers on top of the report: tiles, the table before/after, and how a number is written."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from accord.evaluation.indicators import read_metric

Records = Sequence[Mapping[str, Any]]

EVALUATION_ROWS = (  # metric, name, unit
    ("eval/reward", "Reward", ""),
    ("eval/score", "Score by another judge", ""),
    ("eval/ranking_accuracy", "Ranking accuracy", "share"),
    ("eval/rewards/accuracies", "Reward accuracy", "share"),
    ("eval/labels/accuracies", "Accuracy on labels", "share"),
    ("eval/steps/accuracies", "Accuracy on steps", "share"),
    ("eval/pairs/accuracies", "Accuracy on pairs", "share"),
    ("eval/calibration/brier", "Brier score", ""),
    ("eval/calibration/ece", "Calibration error", ""),
    ("eval/rewards/margins", "Margin", ""),
    ("eval/loss", "Loss", ""),
    ("eval/kl", "KL from the reference", "nats"),
    ("eval/length/sampled", "Length of answers", "tokens"),
)


def make_tiles(summary: Mapping[str, Any], records: Records) -> list[dict[str, str]]:
    """Return the few numbers on top of the page: {label, value, note}."""
    tiles = []
    if {"gold_before", "gold_after"} <= summary.keys():
        gain = summary["gold_after"] - summary["gold_before"]
        ends = _ends(summary.get("gold_gain_ci95"), "", signed=True)
        sure = f" ({ends})" if ends else ""
        tiles.append(
            {
                "label": "Gold reward",
                "value": f"{format_number(summary['gold_before'])} → {format_number(summary['gold_after'])}",
                "note": f"gain {gain:+.3g}".replace("-", "−") + sure,
            }
        )
    if "win_rate" in summary:
        note = _ends(summary.get("win_rate_ci95"), "share") or "against the model before"
        tiles.append({"label": "Win rate", "value": format_number(summary["win_rate"], "share"), "note": note})
    for name, label, unit in EVALUATION_ROWS:
        last = _last_with_ends(records, name)
        if last is not None and not (name == "eval/kl" and "kl" in summary) and name != "eval/loss":
            note = _ends(last[1], unit) or "held out, last evaluation"
            tiles.append({"label": label, "value": format_number(last[0], unit), "note": note})
    if "kl" in summary:
        note = "per response, from the model before"
        tiles.append({"label": "KL divergence", "value": format_number(summary["kl"], "nats"), "note": note})
    seconds = summary.get("seconds") or next(
        (r["time_seconds"] for r in reversed(records) if r.get("time_seconds")), None
    )
    if seconds is not None:
        num_steps = max((int(record["step"]) for record in records), default=0)
        note = f"{num_steps} steps" if num_steps else "from start to end"
        tiles.append({"label": "Time", "value": format_duration(seconds), "note": note})
    return tiles


def make_table(summary: Mapping[str, Any], records: Records) -> list[dict[str, str]]:
    """Return rows {name, before, after, before_note, after_note}: the summary's own table, else the evaluations."""
    rows = []
    for row in summary.get("table") or []:
        unit = row.get("unit") or ""
        cells = {"name": str(row["name"])}
        for moment in ("before", "after"):
            cells[moment] = format_number(row.get(moment), unit)
            cells[f"{moment}_note"] = _ends(row.get(f"{moment}_ci95"), unit)
        rows.append(cells)
    for name, label, unit in EVALUATION_ROWS:
        first, last = _last_with_ends(records[::-1], name), _last_with_ends(records, name)
        if first is None or last is None:
            continue
        is_repeated = len(read_metric(records, name)) > 1
        rows.append(
            {
                "name": f"{label}, held out",
                "before": format_number(first[0], unit) if is_repeated else "",
                "before_note": _ends(first[1], unit) if is_repeated else "",
                "after": format_number(last[0], unit),
                "after_note": _ends(last[1], unit),
            }
        )
    return rows


def format_number(value: Any, unit: str = "") -> str:
    """Return a number as a person reads it: `share` in per cent, else three to four digits and the unit."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return "–" if value is None else str(value)
    if not math.isfinite(value):
        return str(value)
    if unit == "share":
        return f"{100 * value:.1f} %"
    if isinstance(value, int) or (value == int(value) and abs(value) >= 1000):
        text = f"{int(value):,}".replace(",", "\u202f")
    elif value != 0 and (abs(value) < 1e-3 or abs(value) >= 1e5):
        text = f"{value:.2e}"
    else:
        text = f"{value:.{3 if abs(value) < 1 else 2 if abs(value) < 10 else 1}f}"
    return f"{text} {unit}".strip().replace("-", "−", 1 if text.startswith("-") else 0)


def format_duration(seconds: float) -> str:
    """Return seconds as 42 s, 3 min 20 s or 2 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _last_with_ends(records: Records, name: str) -> tuple[float, tuple[float, float] | None] | None:
    for record in reversed(records):
        if record.get(name) is not None:
            low, high = record.get(f"{name}_low"), record.get(f"{name}_high")
            return record[name], None if low is None or high is None else (low, high)
    return None


def _ends(ends: Sequence[float] | None, unit: str, *, signed: bool = False) -> str:
    if ends is None:
        return ""
    texts = [format_number(end, unit).removesuffix(f" {unit}").removesuffix(" %") for end in ends]
    if signed:
        texts = [text if end < 0 else f"+{text}" for text, end in zip(texts, ends, strict=True)]
    return f"95 % interval {texts[0]} to {texts[1]}"
