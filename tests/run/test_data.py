"""Where a run's data comes from: both files are counted, hashed and compared, and what could not be read is kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from toy_runs import BASE, judged_groups, run, write_pairs

from accord.cli import main
from accord.errors import DataError


def with_a_bad_row(path: Path) -> Path:
    path.write_text(path.read_text() + '{"prompt": \n')
    return path


def test_bad_rows_of_both_files_are_counted_and_kept_aside(tmp_path: Path):
    train, held_out = with_a_bad_row(write_pairs(tmp_path, 8)), with_a_bad_row(write_pairs(tmp_path, 6, seed=20))
    line = ["align", f"model={BASE}", f"data={train}", f"data.eval_path={held_out}", f"out={tmp_path / 'out'}"]
    line += ["evaluate.num_samples=0", "reference.cache=null", "tracking.report=false"]
    assert main(line) == 1
    assert main([*line, "--skip-bad-rows"]) == 0
    kept = [json.loads(row) for row in (tmp_path / "out" / "bad_rows.jsonl").read_text().splitlines()]
    assert [(row["file"], row["line"]) for row in kept] == [(str(train), 9), (str(held_out), 7)]
    assert all("JSON" in row["reason"] for row in kept)
    report = json.loads((tmp_path / "out" / "data_report.json").read_text())
    assert (report["bad_rows"], report["held_out"]["bad_rows"], report["held_out"]["groups"]) == (1, 1, 6)


def test_prompts_trained_on_and_held_out_are_counted(tmp_path: Path):
    pairs, other = write_pairs(tmp_path, 8), write_pairs(tmp_path, 6, seed=6)
    settings = {"data.eval_path": str(other), "data.eval_fraction": 0.05, "dry_run": True}
    done = run(pairs, tmp_path / "out", **settings)
    assert "warning: 2 of 6 held-out groups have a prompt that is trained on" in done.data_report
    done = run(pairs, tmp_path / "out", **settings | {"data.eval_path": str(write_pairs(tmp_path, 6, seed=8))})
    assert "6 groups to evaluate on" in done.data_report
    assert "warning" not in done.data_report
    assert done.plan["held_out_groups"] == 6
    assert run(pairs, tmp_path / "out", **settings | {"data.limit": 4}).plan["held_out_groups"] == 4


def test_another_held_out_file_or_other_groups_in_memory_are_other_data(tmp_path: Path):
    pairs, other = write_pairs(tmp_path, 8), write_pairs(tmp_path, 6, seed=20)
    settings = {"data.eval_path": str(other), "data.eval_fraction": 0.05}
    run(pairs, tmp_path / "files", **settings)
    other.write_text("".join(other.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(DataError, match="data of the run"):
        run(pairs, tmp_path / "files", resume=True, **settings)
    run(judged_groups(8), tmp_path / "memory")
    run(judged_groups(8), tmp_path / "memory", resume=True)
    with pytest.raises(DataError, match="data of the run"):
        run(judged_groups(8, seed=1), tmp_path / "memory", resume=True)


def test_an_objective_of_triples_says_that_pairs_hold_none(tmp_path: Path):
    with pytest.raises(DataError, match=r"tpo needs gold; .*objectives that fit this data: .*\bdpo\b"):
        run(write_pairs(tmp_path), tmp_path / "out", objective="tpo")
    rankings = write_pairs(tmp_path, num_responses=3)
    assert run(rankings, tmp_path / "out", objective="tpo", **{"train.max_steps": 2}).summary["steps"] == 2
