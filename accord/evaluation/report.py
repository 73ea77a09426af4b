"""A run folder as one page: `write_report` reads what the run wrote and makes a self-contained `report.html`.

It shows whatever is there: metrics and held-out evaluation of `accord align`, gold rewards and samples of
`accord demo`, plan, data report, settings. From `summary.json` it knows, all optional:

    gold_before, gold_after, gold_gain_ci95, win_rate, win_rate_ci95, kl, length_before, length_after, seconds
    table      rows of {name, before, after, unit, before_ci95, after_ci95}; the unit "share" is shown in per cent
    samples    rows of {prompt, before, after}; other numbers in a row are shown beside the two texts
    warnings   sentences, as in `data_report.json`
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accord.durable import atomic_write_text
from accord.evaluation.charts import draw_charts, draw_margins, draw_overoptimisation
from accord.evaluation.headline import format_number, make_table, make_tiles
from accord.evaluation.indicators import find_warnings
from accord.store import RunFolder

Records = Sequence[Mapping[str, Any]]


def write_report(run: RunFolder) -> Path:
    """Write `report.html` from what the run folder holds and return its path.

    The page is one file: no script, no link, no font or image from elsewhere; every text of the run is escaped.
    Raises StoreError when a file of the run cannot be read or the report cannot be written.
    """
    path = run.path / "report.html"
    atomic_write_text(path, render_report(run))
    return path


def render_report(run: RunFolder) -> str:
    """Return the page as text."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("accord", "evaluation"),
        autoescape=True,  # responses are whatever a model wrote, HTML included
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = format_number
    environment.tests["tabular"] = is_tabular
    return environment.get_template("report.html.jinja").render(**collect_report(run))


def collect_report(run: RunFolder) -> dict[str, Any]:
    """Return everything the page shows, as plain values and (for plots) SVG text."""
    from markupsafe import Markup

    summary, manifest = run.read_json("summary"), run.read_json("manifest")
    plan, data_report = run.read_json("plan"), run.read_json("data_report")
    records = run.read_metrics()
    config = run.read_config()
    plots = [
        *draw_charts(records, reads_pairs=not _reads_advantages(config)),
        *draw_overoptimisation(records),
        *draw_margins(run),
    ]
    return {
        "name": run.path.name,
        "manifest": manifest,
        "facts": _collect_facts(config, manifest, summary, records),
        "tiles": make_tiles(summary, records),
        "table": make_table(summary, records),
        "samples": [_plain_sample(sample) for sample in _with_rewards(run, summary.get("samples") or [])],
        "warnings": _collect_warnings(run, manifest, summary, plan, data_report, records),
        "plots": [(title, hint, Markup(svg)) for title, hint, svg in plots],
        "plan": plan,
        "data_report": {key: value for key, value in data_report.items() if key != "warnings"},
        "config": config,
    }


def is_tabular(value: Any) -> bool:
    """Return whether a value is a list of mappings with the same keys: shown as a table."""
    if not isinstance(value, list) or not value or not all(isinstance(row, Mapping) for row in value):
        return False
    return all(list(row) == list(value[0]) for row in value)


def _reads_advantages(config: Mapping[str, Any]) -> bool:
    advantage = config.get("advantage")
    return isinstance(advantage, Mapping) and advantage.get("name") is not None


def _with_rewards(run: RunFolder, samples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return samples with the reward, score and tokens that the run's rows hold of the same answers."""
    rows = run.read_rows("samples")
    if not {"prompt", "response"} <= set(rows.column_names):
        return [dict(sample) for sample in samples]
    known = {(row["prompt"], row["response"]): row for row in rows.to_pylist()}
    found = []
    for sample in samples:
        more = {}
        for moment in ("before", "after"):
            row = known.get((sample.get("prompt"), sample.get(moment)), {})
            values = {"reward": row.get("reward"), "score": row.get("score"), "tokens": row.get("num_tokens")}
            more |= {f"{name}_{moment}": value for name, value in values.items() if value is not None}
        found.append({**more, **sample})
    return found


def _plain_sample(sample: Mapping[str, Any]) -> dict[str, Any]:
    texts = {key: _as_text(sample.get(key, "")) for key in ("prompt", "before", "after")}
    numbers = {key: value for key, value in sample.items() if key not in texts}
    notes = {moment: [] for moment in ("before", "after", "prompt")}
    for key, value in numbers.items():
        moment = next((m for m in ("before", "after") if key.endswith(f"_{m}")), "prompt")
        notes[moment].append((key.removesuffix(f"_{moment}").replace("_", " "), format_number(value)))
    return {**texts, "notes": notes}


def _as_text(value: Any) -> str:
    """Return a prompt as text; turns of a conversation become "role: content" lines."""
    if isinstance(value, list):
        turns = [(turn.get("role", ""), turn.get("content", "")) for turn in value if isinstance(turn, Mapping)]
        return "\n".join(f"{role}: {content}" for role, content in turns)
    return str(value)


def _collect_facts(
    config: Mapping[str, Any], manifest: Mapping[str, Any], summary: Mapping[str, Any], records: Records
) -> list[tuple[str, str]]:
    objective = config.get("objective")
    facts = {
        "status": manifest.get("status"),
        "method": config.get("method"),
        "objective": objective.get("name") if isinstance(objective, Mapping) else objective,
        "model": summary.get("model") or _first_text(config.get("model")),
        "data": summary.get("data") or _first_text(config.get("data")),
        "seed": manifest.get("seed"),
        "steps": max((record["step"] for record in records), default=None),
        "started": str(manifest.get("started_at", ""))[:16].replace("T", " ") or None,
    }
    return [(name, str(value)) for name, value in facts.items() if value is not None]


def _first_text(value: Any) -> str | None:
    if isinstance(value, Mapping):
        return next((str(value[key]) for key in ("path", "name", "model", "file", "train") if value.get(key)), None)
    return None if value is None else str(value)


def _collect_warnings(
    run: RunFolder,
    manifest: Mapping[str, Any],
    summary: Mapping[str, Any],
    plan: Mapping[str, Any],
    data_report: Mapping[str, Any],
    records: Records,
) -> list[str]:
    warnings = []
    if manifest.get("status") != "finished":
        warnings.append(f"The run is {manifest.get('status', 'not finished')}: these numbers are not final.")
    warnings.extend(
        f"A batch with a non-finite loss was kept in bad_batch/{path.name}."
        for path in sorted((run.path / "bad_batch").glob("*.json"))
    )
    warnings.extend(find_warnings(records, summary))
    for source in (summary, plan, data_report):
        warnings.extend(str(sentence) for sentence in source.get("warnings") or [])
    return list(dict.fromkeys(warnings))
