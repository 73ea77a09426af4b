"""The run folder: what is refused, what survives, what is said."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from accord.errors import StoreError
from accord.store import RunFolder, hash_file

# -- opening ------------------------------------------------------------------------------------------------------


def test_a_new_run_knows_its_versions_and_that_it_is_running(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "deep" / "run")
    manifest = run.read_json("manifest")
    assert manifest["status"] == "running"
    assert manifest["versions"]["python"] == sys.version.split()[0]
    assert manifest["versions"]["torch"].startswith("2.")
    run.update_manifest(seed=3)
    run.finish("finished")
    manifest = RunFolder.open(run.path).read_json("manifest")
    assert (manifest["seed"], manifest["status"]) == (3, "finished")


def test_an_existing_run_is_refused_and_left_alone(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path)
    run.append_metrics(1, {"loss": 0.5})
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(StoreError, match=r"already holds a run.*metrics\.jsonl.*--resume.*nothing was changed"):
        RunFolder.create(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert RunFolder.create(tmp_path, resume=True).is_resumed
    assert run.read_metrics() == [{"step": 1, "loss": 0.5}]


@pytest.mark.parametrize("how", [{}, {"resume": True}, {"overwrite": True}])
def test_a_folder_of_something_else_is_never_taken(tmp_path: Path, how: dict[str, bool]) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(StoreError, match=r"not a run of Accord.*thesis\.tex"):
        RunFolder.create(tmp_path, **how)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_overwrite_removes_a_runs_own_files_only(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path)
    with run.new_checkpoint(1) as folder:
        (folder / "weights.bin").write_bytes(b"1")
    run.append_metrics(1, {"loss": 0.5})
    (tmp_path / "notes.txt").write_text("mine")
    again = RunFolder.create(tmp_path, overwrite=True)
    assert again.latest_checkpoint() is None
    assert again.read_metrics() == []
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_resume_without_a_run_starts_a_new_one(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", resume=True)
    assert not run.is_resumed
    assert run.latest_checkpoint() is None


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")  # permissions do not stop root; a file in the way stops everybody
    with pytest.raises(StoreError, match="choose another output folder"):
        RunFolder.create(tmp_path / "file" / "run")
    with pytest.raises(StoreError, match="choose another output folder"):
        RunFolder.create(tmp_path / "file")


def test_too_little_free_space_is_refused_before_the_run(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"free.*at least 909\.5 TiB"):
        RunFolder.create(tmp_path / "run", needed_bytes=10**15)


def test_a_second_process_is_locked_out(tmp_path: Path) -> None:
    RunFolder.create(tmp_path)
    RunFolder.create(tmp_path, resume=True)  # the same process may come back
    code = "import sys; from accord.store import RunFolder; RunFolder.create(sys.argv[1], resume=True)"
    other = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert other.returncode == 1
    assert "another process is running" in other.stderr


def test_opening_what_is_not_a_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"no such folder.*manifest\.json"):
        RunFolder.open(tmp_path / "absent")


# -- documents, metrics, rows -------------------------------------------------------------------------------------


def test_changed_settings_of_a_resumed_run_are_named_and_the_old_ones_kept(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path)
    assert run.write_config({"train": {"lr": 1e-6, "epochs": 1}, "objective": {"type": "dpo"}}) == ()
    changed = run.write_config(
        {"train": {"lr": 1e-6, "epochs": 2}, "objective": {"type": "dpo", "beta": np.float64(0.1)}}
    )
    assert changed == ("objective.beta", "train.epochs")
    assert run.read_config()["objective"]["beta"] == 0.1
    assert "epochs: 1" in (tmp_path / "config-1.yaml").read_text()


def test_metrics_come_back_and_a_cut_last_line_is_forgotten(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path)
    run.append_metrics(1, {"loss": np.float32(0.5), "grad_norm": float("nan")})
    run.append_metrics(2, {"loss": 0.25})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "lo')  # a kill in the middle of a line
    assert run.read_metrics() == [{"step": 1, "loss": 0.5, "grad_norm": None}, {"step": 2, "loss": 0.25}]
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write("\n")
    with pytest.raises(StoreError, match="line 3"):
        run.read_metrics()


def test_rewind_leaves_the_story_as_it_was_at_the_checkpoint(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path)
    for step in range(1, 7):
        run.append_metrics(step, {"loss": 1 / step})
    run.write_rows("train", 2, [{"step": step, "group": step, "margin": None} for step in (1, 2)])
    run.write_rows("train", 5, [{"step": step, "group": step, "margin": 0.5} for step in (3, 4, 5)])
    run.write_rows("eval", 6, [{"group": 0, "margin": 1.0}])
    assert run.rewind(4) == 2 + 1 + 1  # metric lines 5 and 6, training row 5, evaluation row 6
    assert [record["step"] for record in run.read_metrics()] == [1, 2, 3, 4]
    assert run.read_rows().to_pydict() == {
        "step": [1, 2, 3, 4],
        "group": [1, 2, 3, 4],
        "margin": [None, None, 0.5, 0.5],
    }
    run.write_rows("train", 5, [{"step": 5, "group": 5, "margin": 0.75}])  # the part of step 5 is written anew
    assert run.read_rows("train")["margin"].to_pylist() == [None, None, 0.5, 0.5, 0.75]
    assert len(run.read_rows("eval")) == 0
    run.rewind(-1)
    assert run.read_metrics() == []
    assert len(run.read_rows()) == 0


def test_a_bad_batch_keeps_its_nans_and_never_replaces_an_earlier_one(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path)
    first = run.write_bad_batch(7, {"logps": np.array([1.0, np.nan, -np.inf])})
    second = run.write_bad_batch(7, {"logps": [2.0]})
    assert json.loads(first.read_text()) == {"logps": [1.0, "nan", "-inf"]}
    assert json.loads(second.read_text()) == {"logps": [2.0]}


def test_log_lines_carry_a_time(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path)
    run.append_log("one\ntwo")
    stamped = (tmp_path / "log.txt").read_text().splitlines()
    assert [line.split(" ", 1)[1] for line in stamped] == ["one", "two"]
    assert stamped[0].startswith("20")


def test_the_store_needs_no_torch() -> None:
    code = "import sys, accord.store; assert 'torch' not in sys.modules and 'pyarrow' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_hash_file_is_what_sha256sum_prints(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    assert hash_file(tmp_path / "a") == "6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b"
