"""`accord reward`, `accord score` and `accord sample --best-of`, from files to files, as a user runs them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from toy_runs import BASE, SMALL, judged_groups

from accord.cli import main
from accord.data import load_groups, write_groups
from accord.feedback.reward_calibration import read_calibration
from accord.feedback.reward_models import reward_model_reward
from accord.records import Comparison, Group, Rating, Response


def settings(**changes) -> list[str]:
    options = {key: value for key, value in SMALL.items() if key != "evaluate.num_samples"}
    options |= {"model.device": "cpu"} | {key.replace("__", "."): value for key, value in changes.items()}
    return [f"{key}={value}" for key, value in options.items()]


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]):
    """Run a command in this process and return (exit code, standard output, standard error)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pairs, and a reward model trained on them by the command."""
    folder = tmp_path_factory.mktemp("trained")
    write_groups(folder / "pairs.jsonl", judged_groups(40, num_responses=2))
    line = ["reward", "--model", BASE, "--data", folder / "pairs.jsonl", "--out", folder / "run"]
    assert main([str(word) for word in line] + settings(train__epochs=2)) == 0
    return folder


def test_reward_trains_bradley_terry_and_calibrates_it(trained: Path):
    config = (trained / "run/config.yaml").read_text()
    assert "name: bradley_terry" in config
    found = read_calibration(trained / "run/model")
    assert found is not None
    assert found.num_samples == 2 * found.num_comparisons  # held-out pairs
    assert 5 <= found.num_comparisons <= 15  # a quarter of 40, by prompt
    assert found.std > 0
    assert found.temperature is not None
    assert math.isfinite(found.ece_refitted)
    reward = reward_model_reward(str(trained / "run/model"), centre="references", scale=True, device="cpu")
    scores = [f.score for row in reward(load_groups(trained / "pairs.jsonl").groups) for f in row]
    assert abs(sum(scores) / len(scores)) < 1.5  # of the order of one deviation, on other samples


def test_reward_takes_any_objective_of_reward_models_and_no_other(tmp_path: Path, said):
    write_groups(tmp_path / "pairs.jsonl", judged_groups(12, num_responses=2))
    line = ["reward", "--model", BASE, "--data", tmp_path / "pairs.jsonl"]
    code, out, _ = said(*line, "--out", tmp_path / "pair", *settings(), "objective=pairwise_preference", "--json")
    assert code == 0
    assert json.loads(out)["calibration"] is None  # a joint model has no scores to centre
    assert json.loads((tmp_path / "pair/model/accord_reward.json").read_text()) == {"scores": "pair"}
    code, _, err = said(*line, "--out", tmp_path / "dpo", "objective=dpo")
    assert code == 1
    assert "trains a policy" in err
    assert not (tmp_path / "dpo").exists()
    code, _, err = said(*line, "--out", tmp_path / "dry", *settings(), "--dry-run")
    assert code == 0
    assert not (tmp_path / "dry").exists()


def test_score_writes_ratings_by_the_models_path(trained: Path, said):
    model = trained / "run/model"
    code, out, err = said(
        "score", "--reward", model, "--data", trained / "pairs.jsonl", "--out", trained / "scored.jsonl", "--json"
    )
    assert code == 0
    result = json.loads(out)
    groups = load_groups(trained / "scored.jsonl").groups
    assert len(groups) == 40
    assert result["summary"]["responses"] == 80
    assert result["summary"]["unknown"] == 0
    assert result["summary"]["comparisons"] == 40
    ratings = [j for group in groups for j in group.judgements if isinstance(j, Rating) and j.attribute == "reward"]
    assert {rating.judge for rating in ratings} == {str(model)}
    assert [rating.value for rating in ratings] == [one["score"] for row in result["findings"] for one in row]
    assert any(isinstance(j, Comparison) for j in groups[0].judgements)  # what was there stays
    right = [
        row[j.better]["score"] > row[j.worse]["score"]
        for group, row in zip(groups, result["findings"], strict=True)
        for j in group.judgements
        if isinstance(j, Comparison)
    ]
    assert result["summary"]["accuracy"] == pytest.approx(sum(right) / 40)
    assert result["summary"]["accuracy"] > 0.6  # it was trained on three quarters of them
    code, out, err = said("score", "--reward", model, "--data", trained / "pairs.jsonl")
    assert len(out.splitlines()) == 40
    assert "accuracy" in err


def test_score_adds_up_rewards_as_it_is_told(tmp_path: Path, said):
    group = Group(
        prompt="2 + 2?", responses=(Response(content="so 4"), Response(content="so it is surely 5")),
        extra={"answer": "4"},
    )  # fmt: skip
    write_groups(tmp_path / "data.jsonl", [group])
    line = ["score", "--data", tmp_path / "data.jsonl", "--reward", "gsm8k", "--reward", "length_penalty", "--json"]
    more = ["reward.length_penalty.unit=words", "reward.length_penalty.weight=0.1", "reward.gsm8k.weight=2"]
    code, out, _ = said(*line, *more)
    assert code == 0
    (row,) = json.loads(out)["findings"]
    assert [one["score"] for one in row] == [pytest.approx(2 - 0.2), pytest.approx(-0.5)]
    assert row[0]["parts"] == {"gsm8k": 1.0, "length_penalty": -2.0}
    for words, message in (
        (["reward.gsm8k.wieght=2"], "did you mean reward.gsm8k.weight"),
        (["train.lr=2"], "expected reward.NAME"),
    ):
        code, _, err = said(*line, *words)
        assert (code, message in err) == (1, True), err


def test_score_calibrates_on_samples_of_ones_own(trained: Path, said):
    model = trained / "run/model"
    before = (model / "accord_calibration.json").read_text()
    try:
        code, out, err = said(
            "score", "--reward", model, "--data", trained / "pairs.jsonl", "--calibrate", "--json"
        )  # fmt: skip
        assert code == 0
        assert json.loads(out)["num_samples"] == read_calibration(model).num_samples == 80
        assert "80 samples" in err.replace("\n", " ")
    finally:
        (model / "accord_calibration.json").write_text(before)
    code, _, err = said("score", "--reward", "gsm8k", "--data", trained / "pairs.jsonl", "--calibrate")
    assert (code, "one reward model's folder" in err) == (1, True)


def test_a_file_of_prompts_has_nothing_to_score(trained: Path, tmp_path: Path, said):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "two facts about bees, formally"}\n')
    code, _, err = said("score", "--reward", trained / "run/model", "--data", tmp_path / "prompts.jsonl")
    assert (code, "no response to score" in err) == (1, True)


def test_best_of_n_from_the_command_line(trained: Path, tmp_path: Path, said):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "two facts about bees, formally"}\n' * 2)
    line = ["sample", "--model", BASE, "--prompts", tmp_path / "prompts.jsonl", "--max-tokens", 12]
    model = trained / "run/model"
    code, _, err = said(
        *line, "--best-of", 8, "--num-responses", 2, "--reward", model, "--out", tmp_path / "best.jsonl"
    )
    assert code == 0
    assert "best of 8" in err
    code, _, _ = said(*line, "--num-responses", 8, "--reward", model, "--out", tmp_path / "all.jsonl")
    assert code == 0
    for best, everyone in zip(
        load_groups(tmp_path / "best.jsonl").groups, load_groups(tmp_path / "all.jsonl").groups, strict=True
    ):
        values = sorted((j.value for j in everyone.judgements if j.attribute == "reward"), reverse=True)
        chosen = [j.value for j in best.judgements if j.attribute == "reward"]
        assert chosen == pytest.approx(values[:2], abs=1e-5)
        assert len(best.responses) == 2


def test_a_verifier_chooses_where_the_prompts_have_the_answer(tmp_path: Path, said):
    bare = Group(prompt="two facts about bees, formally", responses=(Response(token_ids=()),), extra={"answer": "4"})
    write_groups(tmp_path / "prompts.jsonl", [bare])
    line = ["sample", "--model", BASE, "--prompts", tmp_path / "prompts.jsonl", "--max-tokens", 6]
    code, out, _ = said(*line, "--best-of", 3, "--reward", "gsm8k", "--json")
    assert code == 0
    (row,) = json.loads(out)
    assert [j["value"] for j in row["judgements"] if j["attribute"] == "reward"] == [0.0]
    assert row["extra"] == {"answer": "4"}
    code, _, err = said(
        *line, "--num-responses", 3, "--rejection", 1, "--reward", "gsm8k", "--out", tmp_path / "o.jsonl"
    )
    assert code == 0
    assert "left without a response" in err.replace("\n", " ")
    write_groups(tmp_path / "prompts.jsonl", [replace(bare, extra={})])
    code, _, err = said(*line, "--best-of", 3, "--reward", "gsm8k")
    assert code == 1
    assert "answer" in err


def test_search_and_realignment_from_the_command_line(tmp_path: Path, said, monkeypatch: pytest.MonkeyPatch):
    for words in (["--beam", 3], ["--realign", 1.5, "--num-responses", 2]):
        monkeypatch.setattr("sys.stdin", iter(["two facts about bees, formally\n"]))
        code, out, _ = said("sample", "--model", BASE, "--reference", BASE, "--max-tokens", 6, *words)
        assert code == 0
        assert out.startswith("> two facts about bees, formally\n  ")
    for words, message in (
        (["--beam", 3], "--reference"),
        (["--best-of", 3], "--reward"),
        (["reward.gsm8k.weight=2"], "--reward"),
    ):
        monkeypatch.setattr("sys.stdin", iter(["two facts about bees, formally\n"]))
        code, _, err = said("sample", "--model", BASE, "--max-tokens", 6, *words)
        assert (code, message in err) == (1, True), err
