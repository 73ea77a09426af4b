"""The verb: what a run starts from, what it is compared with, which data it takes, what it holds out."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import save_model
from toy_runs import (
    BASE,
    assert_same_bits,
    evaluations_of,
    final_weights,
    judged_groups,
    labelled_groups,
    losses_of,
    metrics_of,
    run,
    write_pairs,
)
from transformers import AutoModelForCausalLM, AutoTokenizer

from accord.data import encode_groups
from accord.errors import ConfigError, DataError, PolicyError, StoreError, TrainingError
from accord.policy.load import load_policy
from accord.records import Response

# -- the reference -----------------------------------------------------------------------------------------------------


def listen() -> tuple[list[str], Callable[[str], None]]:
    """Collect what a run says of its reference."""
    said: list[str] = []
    return said, lambda text: said.append(text) if text.startswith("reference") else None


def test_the_reference_is_scored_once_for_all_runs_from_the_same_weights(tmp_path: Path):
    pairs = write_pairs(tmp_path)
    said, announce = listen()
    run(pairs, tmp_path / "1", announce=announce)
    run(pairs, tmp_path / "2", announce=announce)
    run(pairs, tmp_path / "3", announce=announce, objective="ipo", train__lr=1e-5, train__seed=3)
    counts = [text.partition(": ")[2] for text in said]
    assert counts == [
        "16 groups scored, 0 reused", "0 groups scored, 16 reused", "0 groups scored, 16 reused"
    ]  # fmt: skip
    assert_same_bits(final_weights(tmp_path / "1"), final_weights(tmp_path / "2"))


@pytest.mark.parametrize("objective", ["simpo", "orpo", "sft"])
def test_objectives_without_a_reference_make_no_pass_for_one(objective: str, tmp_path: Path):
    said, announce = listen()
    result = run(
        write_pairs(tmp_path), tmp_path / "out", announce=announce, objective=objective,
        evaluate__num_samples=2, evaluate__sample_tokens=6,
    )  # fmt: skip
    assert said == []
    assert result.plan["tokens_to_reference"] == 0
    assert not (tmp_path / "cache").exists()
    assert result.summary["eval_before"]["kl"] == pytest.approx(0, abs=1e-5)  # of samples, from the start
    assert result.run is not None
    assert set(result.run.read_rows("train")["reference_logps"].to_pylist()) == {None}


def test_damaged_reference_values_stop_the_run_before_its_first_step(tmp_path: Path):
    pairs = write_pairs(tmp_path)
    run(pairs, tmp_path / "first")
    (cache,) = (tmp_path / "cache").iterdir()
    with np.load(cache) as stored:
        digests, logps = stored["digests"], stored["logps"]
    np.savez(cache, digests=digests, logps=logps + 1.0)
    with pytest.raises(TrainingError, match=r"must equal its reference.*reference\.cache=null"):
        run(pairs, tmp_path / "second")
    assert not (tmp_path / "second" / "model").exists()
    run(pairs, tmp_path / "third", **{"reference.cache": None})
    assert_same_bits(final_weights(tmp_path / "first"), final_weights(tmp_path / "third"))


def test_another_model_as_reference(tmp_path: Path):
    """The policy then starts away from its reference: log-ratios are not 0, and the loss is not ln 2."""
    pairs = write_pairs(tmp_path)
    run(pairs, tmp_path / "other", train__lr=0.01)
    out = run(pairs, tmp_path / "out", **{"reference.path": str(tmp_path / "other" / "model")})
    assert abs(evaluations_of(tmp_path / "out")[0]["eval/log_ratio/response"]) > 0.5
    assert losses_of(tmp_path / "out")[0] != pytest.approx(math.log(2), abs=1e-3)
    assert out.run is not None
    rows = out.run.read_rows("train").to_pylist()
    texts = {row["origin"]: row for row in rows}
    group = next(group for group in judged_groups() if group.origin in texts)
    other = load_policy(tmp_path / "other" / "model")
    (tokens,) = encode_groups([group], other.tokenizer).groups
    expected = other.score([tokens]).logps_PK[0].tolist()  # the reference's own values, scored again here
    assert texts[group.origin]["reference_logps"] == pytest.approx(expected, abs=1e-3)


def test_the_reference_of_a_policy_in_memory_is_the_policy_not_its_path(tmp_path: Path):
    """The weights differ from those in the folder it came from: log-ratios still start at 0."""
    changed = load_policy(BASE)
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.mul_(1.1)
    before = {name: tensor.clone() for name, tensor in changed.model.state_dict().items()}
    result = run(write_pairs(tmp_path), tmp_path / "out", policy=changed, evaluate__num_samples=2)
    assert losses_of(tmp_path / "out")[0] == pytest.approx(math.log(2), abs=1e-5)
    first, last = evaluations_of(tmp_path / "out")
    assert first["eval/log_ratio/response"] == pytest.approx(0, abs=1e-4)
    assert first["eval/kl"] == pytest.approx(0, abs=1e-4)
    assert abs(last["eval/log_ratio/response"]) > 1e-2
    assert result.policy is changed
    assert not torch.equal(before["model.norm.weight"], changed.model.state_dict()["model.norm.weight"])


def test_adapters_train_alone_and_are_taken_further(tmp_path: Path):
    pairs = write_pairs(tmp_path)
    result = run(pairs, tmp_path / "first", **{"model.lora_rank": 2})
    assert result.plan["trained_parameters"] < 0.2 * result.plan["parameters"]
    assert losses_of(tmp_path / "first")[0] == pytest.approx(math.log(2), abs=1e-5)
    run(pairs, tmp_path / "second", model=str(tmp_path / "first" / "model"))
    first = evaluations_of(tmp_path / "second")[0]  # the reference is the base, which the adapters have left
    assert first["eval/loss"] == pytest.approx(evaluations_of(tmp_path / "first")[-1]["eval/loss"], abs=1e-4)


# -- the data ----------------------------------------------------------------------------------------------------------


def test_labels_fit_kto_and_are_refused_by_dpo_which_says_so(tmp_path: Path):
    with pytest.raises(DataError, match=r"dpo needs preferences.*found: label.*fit this data: .*kto"):
        run(labelled_groups(), tmp_path / "dpo", objective="dpo")
    assert not (tmp_path / "dpo").exists()
    for name, groups in (("labels", labelled_groups()), ("pairs", judged_groups())):
        run(groups, tmp_path / name, objective="kto")
        assert losses_of(tmp_path / name)[0] == pytest.approx(0.5, abs=1e-4)


ROWS = {
    "text": {"text": "bees live in hives."},
    "messages": {
        "messages": [
            {"role": "user", "content": "one fact about bees, formally"},
            {"role": "assistant", "content": "bees live in hives."},
        ]
    },
    "completion": {"prompt": "one fact about bees, formally", "completion": " bees live in hives."},
}


@pytest.mark.parametrize("kind", ROWS)
def test_demonstrations_of_every_form(kind: str, tmp_path: Path):
    """Twelve times the same row, each apart by its number: the model learns them by heart, and loss is per token."""
    path = tmp_path / "rows.jsonl"
    words = ["bees", "bread", "rivers", "tides"]
    lines = [json.dumps(ROWS[kind]).replace("bees", words[row % 4]) for row in range(12)]
    path.write_text("\n".join(lines) + "\n")
    result = run(path, tmp_path / "out", objective="sft", train__epochs=4, data__eval_fraction=0.0)
    reported = losses_of(tmp_path / "out")
    assert reported[-1] < 0.7 * reported[0]
    assert result.run is not None
    rows = [row for row in result.run.read_rows("train").to_pylist() if row["step"] == 1]
    tokens = sum(count for row in rows for count in row["num_tokens"])
    assert reported[0] == pytest.approx(-sum(lp for row in rows for lp in row["policy_logps"]) / tokens, rel=1e-5)


def test_held_out_groups_without_a_usable_judgement_are_not_an_error(tmp_path: Path):
    groups = judged_groups()
    with pytest.raises(DataError, match="dpo needs preferences"):
        run(groups, tmp_path / "refused", eval_groups=labelled_groups(4))
    mixed = [judged_groups(1, seed=9)[0], *labelled_groups(3)]
    result = run(groups, tmp_path / "out", eval_groups=mixed, **{"evaluate.every": 1})
    assert result.summary["eval_after"]["loss"] > 0


def test_a_file_of_doubled_rows_leaks_nothing(tmp_path: Path):
    result = run([*judged_groups(), *judged_groups()], tmp_path / "out")
    assert result.run is not None
    sides = [
        {(row["num_prompt_tokens"], row["origin"]) for row in result.run.read_rows(split).to_pylist()}
        for split in ("train", "eval")
    ]
    assert sides[1]
    assert not sides[0] & sides[1]


def test_a_model_of_the_plain_path_trains(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """A state-space model: no shared prompts and no sampler, which is said; everything else is measured."""
    groups = [replace(g, prompt=f"w{row} w2", responses=(Response(content="w5 w6"), Response(content="w7")))
              for row, g in enumerate(judged_groups(8), start=3)]  # fmt: skip
    model = str(save_model(tmp_path / "mamba", "mamba"))
    result = run(groups, tmp_path / "out", model=model, evaluate__num_samples=2)
    assert result.summary["layout"] == "plain"
    assert "not answered" in caplog.text
    assert result.summary["samples"] == []
    assert result.summary["eval_before"]["loss"] == pytest.approx(math.log(2), abs=1e-5)


# -- the outcome -------------------------------------------------------------------------------------------------------


def test_the_model_is_one_that_transformers_loads_and_that_answers_as_scored(tmp_path: Path):
    result = run(write_pairs(tmp_path), tmp_path / "out", **{"tracking.report": True})
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model")
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, result.policy.causal_lm.state_dict()[name].cpu()), name
    assert AutoTokenizer.from_pretrained(tmp_path / "out" / "model").chat_template
    page = (tmp_path / "out" / "report.html").read_text()
    assert f"{result.summary['eval_after']['loss']:.3f}"[:4] in page
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["status"] == "finished"
    assert [line["step"] for line in metrics_of(result)] == [0, 1, 2, 3, 3]


def test_progress_is_told_at_every_step(tmp_path: Path):
    told: list[tuple[int, int, bool]] = []
    run(
        write_pairs(tmp_path), tmp_path / "out",
        progress=lambda step, total, metrics: told.append((step, total, "loss" in metrics)),
    )  # fmt: skip
    assert told == [(1, 3, True), (2, 3, True), (3, 3, True)]


@pytest.mark.parametrize(
    ("settings", "error", "says"),
    [
        ({"evaluate.every": 1, "data.eval_fraction": 0.0}, ConfigError, "no group is held out"),
        ({"model": "no/such/model/there"}, PolicyError, "does not exist"),
        ({"reference.path": "no/such/model/there"}, PolicyError, "does not exist"),
        ({"data": "./no-such-file.jsonl"}, DataError, "no-such-file.jsonl"),
        ({"data.eval_fraction": 1.0}, DataError, "no group is left to train on"),
    ],
)
def test_what_cannot_work_is_said_and_leaves_nothing(
    settings: dict[str, Any], error: type[Exception], says: str, tmp_path: Path
):
    pairs = Path(settings.pop("data")) if "data" in settings else write_pairs(tmp_path)
    with pytest.raises(error, match=says):
        run(pairs, tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_an_earlier_run_is_never_touched(tmp_path: Path):
    run(write_pairs(tmp_path), tmp_path / "out")
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    with pytest.raises(StoreError, match="already holds a run"):
        run(write_pairs(tmp_path), tmp_path / "out", train__lr=1.0)
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before
