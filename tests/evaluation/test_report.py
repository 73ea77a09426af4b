"""The report shows what the run wrote, whatever is missing, and nothing a response wrote can act in it."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from accord.errors import StoreError
from accord.evaluation.headline import format_duration, format_number, make_table, make_tiles
from accord.evaluation.report import write_report
from accord.store import RunFolder

HOSTILE = "</p><script>alert('x')</script><img src=x onerror=alert(1)>{{ 7 * 7 }}"


class Page(HTMLParser):
    """The elements, attributes and text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes.extend(attrs)

    def handle_data(self, data: str) -> None:
        self.text += data


def write_align_run(path: Path, *, num_steps: int = 6) -> RunFolder:
    run = RunFolder.create(path)
    run.write_config({"objective": {"name": "dpo", "beta": 0.1}, "model": {"path": "models/tiny"}})
    for step in range(num_steps):
        run.append_metrics(step, {"loss": 0.69 - 0.02 * step, "lr": 1e-6, "time_seconds": 10.0 * step})
    for step, rate in ((0, 0.5), (num_steps, 0.625)):
        ends = {"eval/ranking_accuracy_low": rate - 0.04, "eval/ranking_accuracy_high": rate + 0.04}
        run.append_metrics(step, {"eval/ranking_accuracy": rate, "eval/loss": 0.6} | ends)
        rows = [{"margins": [0.1 * index * step, -0.1 * step], "index": index} for index in range(20)]
        run.write_rows("eval", step, rows)
    return run


def write_and_read(run: RunFolder) -> tuple[str, Page]:
    path = write_report(run)
    assert path == run.path / "report.html"
    html = path.read_text("utf-8")
    return html, Page(html)


def test_an_align_run_shows_its_evaluation_curves_and_settings(tmp_path: Path) -> None:
    run = write_align_run(tmp_path / "my-run")
    run.write_json(
        "data_report", {"rows": 1234, "lengths": [{"part": "prompt", "max": 7}], "warnings": ["3 are empty."]}
    )
    run.finish("finished")
    html, page = write_and_read(run)
    assert "62.5 %" in page.text
    assert "95 % interval 58.5 to 66.5" in page.text
    assert page.tags.count("h1") == 1
    assert page.tags.count("svg") == 5  # loss, accuracy, ranking accuracy, learning rate, margins of single pairs
    for words in ("my-run", "models/tiny", "dpo", "beta", "1\u202f234", "3 are empty.", "50 s"):
        assert words in page.text, words
    assert html.count("<li>") == 1  # one warning, and the status is none: the run is finished


def test_the_page_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    html, page = write_and_read(write_align_run(tmp_path / "run"))
    assert not {"script", "link", "iframe", "img", "object"} & set(page.tags)
    assert {name for name, _ in page.attributes if name in {"src", "href", "srcset"}} == set()
    assert re.findall(r"url\((?!#)", html) == []
    assert "@import" not in html


def test_a_demo_shows_gold_samples_and_table(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "demo")
    run.write_summary(
        {
            "gold_before": 0.412,
            "gold_after": 0.731,
            "gold_gain_ci95": [0.28, 0.36],
            "win_rate": 0.784,
            "kl": 11.8,
            "seconds": 83.4,
            "table": [{"name": "Adding digits", "before": 0.91, "after": 0.9, "unit": "share"}],
            "samples": [{"prompt": "three facts", "before": "um bees", "after": "Bees fly.", "gold_after": 0.9}],
        }
    )
    _, page = write_and_read(run)
    for words in ("0.412 → 0.731", "gain +0.319 (95 % interval +0.280 to +0.360)", "78.4 %", "11.8 nats", "1 min 23 s"):
        assert words in page.text, words
    for words in ("Adding digits", "91.0 %", "90.0 %", "three facts", "um bees", "Bees fly.", "gold 0.900"):
        assert words in page.text, words
    assert "nothing to draw" in page.text
    assert "The run is running: these numbers are not final." in page.text


def test_hostile_text_is_shown_and_never_acts(tmp_path: Path) -> None:
    run = write_align_run(tmp_path / "a<b>&'")
    nested: dict[str, Any] = {
        HOSTILE: {"inner": [HOSTILE, HOSTILE]},
        "rows": [{HOSTILE: HOSTILE}],
        "text": HOSTILE + "\n",
    }
    run.write_json("plan", nested)
    run.write_json("data_report", nested | {"warnings": [HOSTILE]})
    chat = [{"role": HOSTILE, "content": HOSTILE}]
    run.write_summary(
        {
            "samples": [{"prompt": chat, "before": HOSTILE, "after": "", "note_before": HOSTILE}],
            "table": [{"name": HOSTILE, "before": HOSTILE, "after": 1, "unit": HOSTILE}],
            "model": HOSTILE,
        }
    )
    run.update_manifest(command=[HOSTILE])
    html, page = write_and_read(run)
    assert not {"script", "img"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert html.count("&lt;script&gt;") >= 12
    assert page.text.count(HOSTILE) >= 12
    assert "{{ 7 * 7 }}" in page.text  # the text is no template either
    assert "an empty response" in page.text


@pytest.mark.parametrize("records", [[], [{"step": 1, "loss": None}], [{"step": 1, "loss": 0.5}]])
def test_a_run_with_hardly_anything_still_has_a_report(tmp_path: Path, records: list[dict[str, Any]]) -> None:
    run = RunFolder.create(tmp_path / "run")
    for record in records:
        run.append_metrics(record.pop("step"), record)
    _, page = write_and_read(run)
    assert "svg" not in page.tags
    assert "Versions and hashes" in page.text


def test_a_bad_batch_is_pointed_to(tmp_path: Path) -> None:
    run = write_align_run(tmp_path / "run")
    run.write_bad_batch(4, {"loss": float("nan")})
    assert "kept in bad_batch/step-000004.json" in write_and_read(run)[1].text


def test_a_damaged_file_of_the_run_is_named(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run")
    (run.path / "summary.json").write_text("{")
    with pytest.raises(StoreError, match=r"cannot be read.*summary\.json"):
        write_report(run)


def test_tiles_and_table_of_an_evaluation_without_a_before() -> None:
    records = [{"step": 9, "eval/ranking_accuracy": 0.6}]
    assert make_tiles({}, records)[0] == {
        "label": "Ranking accuracy",
        "value": "60.0 %",
        "note": "held out, last evaluation",
    }
    (row,) = make_table({}, records)
    assert (row["before"], row["after"]) == ("", "60.0 %")


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.12345, "", "0.123"),
        (1.2345, "nats", "1.23 nats"),
        (12.345, "", "12.3"),
        (-0.5, "", "−0.500"),
        (1e-6, "", "1.00e-06"),
        (1234567, "", "1\u202f234\u202f567"),
        (0.5, "share", "50.0 %"),
        (0.0, "", "0.000"),
        (True, "", "True"),
        (None, "", "–"),
        (float("nan"), "", "nan"),
    ],
)
def test_numbers_are_readable(value: Any, unit: str, text: str) -> None:
    assert format_number(value, unit) == text


def test_durations_are_readable() -> None:
    assert [format_duration(seconds) for seconds in (59.4, 200, 7500)] == ["59 s", "3 min 20 s", "2 h 05 min"]
