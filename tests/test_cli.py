"""The command line: what is printed where, which exit code, and that an error is one clear line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from models import save_model
from toy_runs import BASE, ENVIRONMENT, command, labelled_groups, settings_line, write_pairs

from accord.cli import build_parser, main
from accord.data import load_groups, write_groups
from accord.objectives import OBJECTIVES
from accord.policy.policy import Policy


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]):
    """Run a command in this process and return (exit code, standard output, standard error)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def the_error(err: str) -> str:
    """The one line that begins with the program's name; nothing like a traceback beside it."""
    assert "Traceback" not in err
    (line,) = [line for line in err.splitlines() if line.startswith("accord: ")]
    return line


# -- a fresh interpreter -----------------------------------------------------------------------------------------------


def test_help_comes_at_once_and_loads_nothing_heavy():
    code = (
        "import resource, sys\n"
        "from accord.cli import build_parser\n"
        "text = build_parser().format_help()\n"
        "assert 'align' in text and 'verify' in text\n"
        "heavy = {'torch', 'transformers', 'numpy', 'pydantic', 'matplotlib', 'pyarrow', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "used = resource.getrusage(resource.RUSAGE_SELF)\n"
        "print(used.ru_utime + used.ru_stime)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 0.5  # CPU seconds


def test_a_process_ends_with_one_line_and_a_code(tmp_path: Path):
    done = command("align", "--model", BASE, "--data", tmp_path / "absent.jsonl", "--out", tmp_path / "out")
    assert done.returncode == 1
    assert "absent.jsonl" in the_error(done.stderr)
    assert done.stdout == ""
    assert not (tmp_path / "out").exists()


# -- align -------------------------------------------------------------------------------------------------------------


def test_a_dry_run_prints_the_plan_and_writes_nothing(tmp_path: Path, said):
    pairs = write_pairs(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    code, out, err = said(*settings_line(tmp_path / "out", pairs), "--dry-run", "--json")
    assert code == 0
    plan = json.loads(out)["plan"]
    assert (plan["groups"], plan["held_out_groups"], plan["optimiser_steps"]) == (12, 4, 3)
    assert plan["parameters"] == plan["trained_parameters"] > 300_000
    assert "Data report" in err
    assert "12 to train on, 4 held out" in err
    assert sorted(tmp_path.rglob("*")) == before


def test_align_prints_its_outcome_and_json(tmp_path: Path, said):
    pairs = write_pairs(tmp_path)
    code, out, err = said(*settings_line(tmp_path / "out", pairs), "--json")
    assert code == 0
    summary = json.loads(out)["summary"]
    assert summary == json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["steps"] == 3
    code, out, err = said(*settings_line(tmp_path / "two", pairs))
    assert (code, out) == (0, "")
    assert "held-out reward accuracy" in err
    assert f"{tmp_path / 'two'}/report.html" in err.replace("\n", "")


def test_sft_is_align_with_the_objective_set(tmp_path: Path, said):
    pairs = write_pairs(tmp_path)
    _, *rest = settings_line(tmp_path / "out", pairs)
    code, out, _ = said("sft", *rest, "--json")
    assert code == 0
    assert json.loads(out)["summary"]["objective"] == "sft"


def test_later_settings_win_and_another_objective_drops_the_settings_of_the_one_before(tmp_path: Path):
    from accord.cli.align import read_settings

    recipe, other = tmp_path / "recipe.yaml", tmp_path / "other.yaml"
    recipe.write_text("objective: {beta: 0.3, name: dpo}\ntrain: {lr: 1.0e-3, epochs: 2}\nmodel: {path: recipe}\n")
    other.write_text("objective: {tau: 0.2, name: ipo}\n")

    def joined(*arguments: str) -> dict[str, object]:
        return read_settings(build_parser().parse_args(["align", *arguments]))

    assert joined(str(recipe), "train.lr=1", "--model", "flag") == {
        "objective.beta": 0.3, "objective.name": "dpo", "train.lr": 1, "train.epochs": 2, "model.path": "flag",
    }  # fmt: skip
    assert joined("objective.beta=0.5", str(recipe))["objective.beta"] == 0.5  # wherever it stands
    assert joined("objective.beta=0.5", "objective=dpo")["objective.beta"] == 0.5
    switched = joined(str(recipe), str(other))
    assert (switched["objective.name"], switched["objective.tau"]) == ("ipo", 0.2)
    assert "objective.beta" not in switched


def half_written(folder: Path) -> Path:
    """A copy that was broken off."""
    shutil.copytree(BASE, folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    return folder


def test_bad_input_of_every_kind_is_one_line(tmp_path: Path, said):
    pairs = write_pairs(tmp_path, 8)
    file = tmp_path / "file"
    file.write_text("here")
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "thesis.tex").write_text("years of work")
    line = settings_line(tmp_path / "out", pairs)
    for arguments, says in (
        ([*line, "train.lrr=1"], "did you mean train.lr"),
        ([*line, "train.lr"], "train.lr"),
        ([*line, "objective=dppo"], "did you mean dpo"),
        ([*line, "--model", tmp_path / "none"], "does not exist"),
        ([*line, "--model", file], "expected a model folder"),
        ([*line, "--model", half_written(tmp_path / "half")], "could not be loaded"),
        ([*line, "--data", file], "file"),
        ([*line, "--out", file / "deeper"], "file/deeper"),
        ([*line, "--out", taken], "not a run of Accord"),
        (["align", "--model", BASE, "--out", tmp_path / "out"], "data.path is missing"),
        (["methods", "dop"], "did you mean dpo"),
        (["report", tmp_path], "expected a run folder"),
        (["sample", "--model", BASE, "--prompts", tmp_path / "none.jsonl"], "none.jsonl"),
        (["sample", "--model", BASE, "--prompts", pairs, "--top-p", 2], "top_p"),
        (["verify", "--model", tmp_path / "none"], "does not exist"),
    ):
        code, _, err = said(*arguments)
        assert code == 1, arguments
        assert says in the_error(err)
    assert [path.name for path in taken.iterdir()] == ["thesis.tex"]
    assert not (tmp_path / "out").exists()


def test_labels_for_dpo_name_what_fits(tmp_path: Path, said):
    path = tmp_path / "labels.jsonl"
    write_groups(path, labelled_groups())
    code, _, err = said(*settings_line(tmp_path / "out", path))
    assert code == 1
    assert "kto" in the_error(err)


def test_wrong_usage_is_code_two(capsys: pytest.CaptureFixture[str]):
    for arguments in ([], ["alig"], ["sample"], ["align", "--no-such-flag"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
    assert "usage: accord" in capsys.readouterr().err


# -- the other verbs ---------------------------------------------------------------------------------------------------


def test_sample_answers_prompts(tmp_path: Path, said, monkeypatch: pytest.MonkeyPatch):
    pairs = write_pairs(tmp_path, 3)
    flags = ("--num-responses", 2, "--max-tokens", 12, "--seed", 5)
    code, out, _ = said("sample", "--model", BASE, "--prompts", pairs, *flags, "--json")
    assert code == 0
    rows = json.loads(out)
    assert [len(row["responses"]) for row in rows] == [2, 2, 2]
    code, _, _ = said("sample", "--model", BASE, "--prompts", pairs, *flags, "--out", tmp_path / "answers.jsonl")
    written = load_groups(tmp_path / "answers.jsonl").groups
    assert [response.content for group in written for response in group.responses] == [
        response["content"] for row in rows for response in row["responses"]
    ]
    prompts = (tmp_path / "prompts.txt").open("w+")
    prompts.write("two facts about bees, formally\n\nthree facts about bread, casually\n")
    prompts.seek(0)
    monkeypatch.setattr(sys, "stdin", prompts)
    code, out, _ = said("sample", "--model", BASE, "--max-tokens", 4)
    prompts.close()
    assert [line for line in out.splitlines() if line.startswith("> ")] == [
        "> two facts about bees, formally", "> three facts about bread, casually",
    ]  # fmt: skip


def test_methods_lists_every_objective(said):
    _, out, _ = said("methods", "--json")
    rows = json.loads(out)
    assert [row["name"] for row in rows] == list(OBJECTIVES)
    assert all(
        row.keys() >= {"name", "family", "level", "needs", "reference", "paper", "defaults"} for row in rows
    )  # fmt: skip
    _, out, _ = said("methods")
    assert all(name in out for name in OBJECTIVES)
    _, out, _ = said("methods", "dpo")
    assert "Rafailov" in out


def test_report_is_written_again(tmp_path: Path, said):
    said(*settings_line(tmp_path / "out", write_pairs(tmp_path)))
    assert not (tmp_path / "out" / "report.html").exists()
    code, out, _ = said("report", tmp_path / "out", "--json")
    assert code == 0
    assert "<svg" in Path(json.loads(out)["report"]).read_text()


def test_verify_certifies_a_model_and_fails_for_a_wrong_one(tmp_path: Path, said, monkeypatch: pytest.MonkeyPatch):
    code, out, _ = said("verify", "--model", save_model(tmp_path / "bloom", "bloom"), "--json")
    claims = json.loads(out)
    assert code == 0
    assert all(claim.keys() >= {"name", "expected", "reached", "gap", "passed"} for claim in claims)
    assert any("plain path" in claim["name"] and claim["note"] for claim in claims)
    honest = Policy.token_logps

    def generous(self: Policy, *arguments, **named):
        logps_N, found = honest(self, *arguments, **named)
        return logps_N + 0.01, found

    monkeypatch.setattr(Policy, "token_logps", generous)  # the engine made wrong, to see that the certificate says so
    code, out, _ = said("verify", "--model", BASE, "--only-model")
    assert code == 1
    assert "FAILS" in out


def test_settings_may_stand_after_options():
    from accord.cli import parse

    line = ["align", "recipe.yaml", "--model", "m", "--data", "d", "train.lr=1e-6", "objective=dpo"]
    assert parse(line).settings == ["recipe.yaml", "train.lr=1e-6", "objective=dpo"]
    with pytest.raises(SystemExit):
        parse([*line, "--no-such-flag=1"])
    with pytest.raises(SystemExit):
        parse(["methods", "dpo", "key=value"])
