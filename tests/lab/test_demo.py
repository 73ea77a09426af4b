"""The demo, whole: what it promises to users and to those who read its files."""

from __future__ import annotations

import json

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from accord.cli import main


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "out"
    assert main(["demo", "--out", str(folder)]) == 0
    return folder


def test_the_gain_is_real(demo):
    """Held-out gold reward is higher after, with its 95 % interval above the base's; the skills are not lost."""
    summary = json.loads((demo / "summary.json").read_text())
    assert summary["gold_after"] > summary["gold_before"]
    assert summary["gold_gain_ci95"][0] > 0.2
    assert summary["win_rate_ci95"][0] > 0.6
    assert 0.1 < summary["kl"] < 8
    assert summary["gold_gain_ci95"][0] < summary["gold_gain"] < summary["gold_gain_ci95"][1]
    rows = {row["name"]: row for row in summary["table"]}
    gold = rows["Gold reward (at most 2.5)"]
    assert gold["after_ci95"][0] > gold["before_ci95"][1]
    assert rows["Reversing a list, exact"]["after"] > 0.8
    assert rows["Adding digits, exact"]["after"] > 0.6
    assert len(summary["samples"]) == 3
    assert summary["seconds"] > 0


def test_what_it_leaves_behind(demo):
    model = AutoModelForCausalLM.from_pretrained(demo / "model")
    tokenizer = AutoTokenizer.from_pretrained(demo / "model")
    assert model.num_parameters() < 1_000_000
    assert tokenizer.chat_template
    page = (demo / "report.html").read_text()
    assert "Gold reward" in page
    assert "http" not in page.replace("http://www.w3.org", "")  # self-contained: SVG's name space is no link
    assert len((demo / "pairs.jsonl").read_text().splitlines()) == 36 * 64


def test_a_second_demo_replaces_the_first_only_when_told(demo, capsys):
    before = (demo / "summary.json").read_text()
    assert main(["demo", "--out", str(demo)]) == 1
    assert "already holds a run" in capsys.readouterr().err
    assert (demo / "summary.json").read_text() == before
