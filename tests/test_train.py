"""The loop: nothing but the data and the settings moves the weights, and what goes wrong is said."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from models import save_model
from rich_data import data_for, one_of_each_kind, settings_for
from toy_runs import (
    BASE,
    evaluations_of,
    final_weights,
    judged_groups,
    labelled_groups,
    largest_gap,
    losses_of,
    metrics_of,
    run,
    write_pairs,
)

from accord.config import TrainConfig
from accord.errors import TrainingError
from accord.objectives import OBJECTIVES
from accord.policy.load import load_policy
from accord.records import Comparison, Group, Response
from accord.store import RunFolder
from accord.train import schedule_factor

# -- what must not matter ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in one_of_each_kind() if OBJECTIVES[name].family != "reward_model"])
def test_neither_the_token_budget_nor_the_layout_matters(name: str, tmp_path: Path):
    """One pass per batch, one pass per group, one padded row per response: the same losses, metrics and weights."""
    pairs = data_for(name)
    settings: dict[str, Any] = {"objective": name, "reference.cache": None, "train.lr": 1e-3, "train.epochs": 2}
    settings |= settings_for(name)
    run(pairs, tmp_path / "large", **settings)
    run(pairs, tmp_path / "small", **settings, **{"train.max_batch_tokens": 60})
    plain = load_policy(BASE)
    plain.fall_back_to_plain("a test asks for it")
    run(pairs, tmp_path / "plain", policy=plain, **settings)
    for other in ("small", "plain"):
        assert losses_of(tmp_path / other) == pytest.approx(losses_of(tmp_path / "large"), rel=2e-5)
        # Adam's first steps are signs: where a gradient is rounding noise its sign may turn
        assert largest_gap(final_weights(tmp_path / "large"), final_weights(tmp_path / other)) < 5e-4
        for one, two in zip(evaluations_of(tmp_path / "large"), evaluations_of(tmp_path / other), strict=True):
            # one pair of a few may be a near tie, which such a sign decides
            steps = {key for key in one if "accurac" in key}
            assert {key: two[key] for key in two.keys() - steps} == pytest.approx(
                {key: one[key] for key in one.keys() - steps}, rel=1e-4, abs=1e-4
            )
            assert all(abs(two[key] - one[key]) < 0.3 for key in steps)


def test_evaluation_at_the_start_calls_equals_ties(tmp_path: Path):
    """Policy = reference: accuracy 1/2 and margin 0, however the reference's values were batched."""
    pairs = write_pairs(tmp_path, 40)
    for budget in (50, 200, 10_000):
        run(pairs, tmp_path / f"{budget}", **{"train.max_batch_tokens": budget, "train.max_steps": 1})
    for budget in (50, 200, 10_000):
        first = evaluations_of(tmp_path / f"{budget}")[0]
        assert first["eval/rewards/accuracies"] == 0.5
        assert first["eval/rewards/margins"] == pytest.approx(0, abs=1e-5)
        assert first["eval/loss"] == pytest.approx(math.log(2), abs=1e-5)


def test_label_smoothing_changes_the_loss_by_its_formula(tmp_path: Path):
    """At log-ratio 0 both losses are ln 2; after some steps they part."""
    pairs = write_pairs(tmp_path)
    run(pairs, tmp_path / "sharp", **{"train.epochs": 2})
    run(pairs, tmp_path / "smooth", **{"train.epochs": 2, "objective.label_smoothing": 0.4})
    sharp, smooth = (losses_of(tmp_path / name) for name in ("sharp", "smooth"))
    assert sharp[0] == pytest.approx(smooth[0], abs=1e-6)
    assert smooth[-1] > sharp[-1] + 1e-2
    rows = RunFolder.open(tmp_path / "smooth").read_rows("eval").to_pylist()
    for row in rows:  # the loss is −0.6 log σ(m) − 0.4 log σ(−m) of the row's own margin
        (m,) = row["margins"]
        assert row["loss"] == pytest.approx(0.6 * math.log1p(math.exp(-m)) + 0.4 * math.log1p(math.exp(m)), rel=1e-5)


def test_metrics_are_sums_of_the_rows(tmp_path: Path):
    """Reports, rows and summary say the same: every number of a report follows from the rows of its step."""
    result = run(write_pairs(tmp_path), tmp_path / "out", **{"train.epochs": 2})
    assert result.run is not None
    rows = result.run.read_rows("train").to_pylist()
    for line in (line for line in metrics_of(result) if "loss" in line):
        mine = [row for row in rows if row["step"] == line["step"]]
        assert len(mine) == 4
        assert line["loss"] == pytest.approx(sum(row["loss"] for row in mine) / len(mine), rel=1e-6)
        margins = [margin for row in mine for margin in row["margins"]]
        assert line["rewards/margins"] == pytest.approx(sum(margins) / len(margins), rel=1e-5, abs=1e-7)
    assert sorted(row["index"] for row in rows if row["step"] <= 3) == sorted(
        row["index"] for row in rows if row["step"] > 3
    )  # an epoch sees every group once
    last = evaluations_of(tmp_path / "out")[-1]
    assert {f"eval/{name}": value for name, value in result.summary["eval_after"].items()} == last
    assert result.summary["tokens"] == sum(row["num_prompt_tokens"] + sum(row["num_tokens"]) for row in rows)


def test_the_rate_rises_then_falls_to_zero():
    settings = TrainConfig(warmup=0.2, schedule="cosine")
    factors = [schedule_factor(step, 10, settings) for step in range(10)]
    assert factors[:3] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert factors[6] == pytest.approx(0.5)
    assert sorted(factors[2:], reverse=True) == factors[2:]
    assert 0 < factors[-1] < 0.05
    constant = TrainConfig(warmup=0, schedule="constant")
    assert {schedule_factor(step, 7, constant) for step in range(7)} == {1.0}


# -- what goes wrong ---------------------------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_stops_the_run_and_shows_its_batch(tmp_path: Path):
    with pytest.raises(TrainingError, match="non-finite") as caught:
        run(
            write_pairs(tmp_path), tmp_path / "out",
            **{"train.lr": 1e30, "train.warmup": 0, "evaluate.at_start": False, "train.checkpoint_every": 1},
        )  # fmt: skip
    (written,) = (tmp_path / "out" / "bad_batch").iterdir()
    assert str(written) in str(caught.value)
    batch = json.loads(written.read_text())
    assert len(batch["groups"]) == 4
    assert all("facts about" in group["prompt"] for group in batch["groups"])
    out = RunFolder.open(tmp_path / "out")
    assert out.read_json("manifest")["status"] == "stopped"
    assert not (out.path / "model").exists()


def test_weights_that_are_no_numbers_are_never_checkpointed(tmp_path: Path):
    """A rate of 1e39 is infinite in float32: the step itself destroys the weights, the next one finds out."""
    with pytest.raises(TrainingError, match="non-finite"):
        run(
            write_pairs(tmp_path), tmp_path / "out",
            **{"train.lr": 1e39, "train.warmup": 0, "evaluate.at_start": False},
        )  # fmt: skip
    assert RunFolder.open(tmp_path / "out").checkpoint_steps() == ()


def test_a_ruined_last_step_gives_no_model(tmp_path: Path):
    with pytest.raises(TrainingError, match="held-out loss"):
        run(write_pairs(tmp_path), tmp_path / "out", **{"train.lr": 1e39, "train.warmup": 0, "train.max_steps": 1})
    assert not (tmp_path / "out" / "model").exists()


def test_when_memory_runs_out_the_token_budget_is_halved(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """A model that runs out of memory above 70 tokens trains as with a budget that never gets there."""
    pairs = write_pairs(tmp_path)
    settings = {"train.epochs": 2}

    def refuse(module: torch.nn.Module, arguments: Any, named: dict[str, Any]) -> None:
        if torch.is_grad_enabled() and named["input_ids"].numel() > 70:
            raise torch.OutOfMemoryError("the test's device holds 70 tokens")

    small = load_policy(BASE)

    def shrink(text: str) -> None:
        if text.startswith("reference"):  # the checks and the timed pass before the run have what they need
            small.causal_lm.base_model.register_forward_pre_hook(refuse, with_kwargs=True)

    with caplog.at_level("WARNING"):
        run(pairs, tmp_path / "out", policy=small, announce=shrink, **settings)
    assert "out of memory: the token budget is now" in caplog.text
    run(pairs, tmp_path / "budget", **settings, **{"train.max_batch_tokens": 70})
    assert losses_of(tmp_path / "out") == pytest.approx(losses_of(tmp_path / "budget"), rel=1e-5)
    assert largest_gap(final_weights(tmp_path / "out"), final_weights(tmp_path / "budget")) < 2e-4


def test_memory_that_does_not_hold_one_group_stops_the_run(tmp_path: Path):
    tiny = load_policy(BASE)

    def refuse(module: torch.nn.Module, arguments: Any) -> None:
        raise torch.OutOfMemoryError("nothing fits")

    def arm(text: str) -> None:
        if text.startswith("reference"):
            tiny.register_forward_pre_hook(refuse)

    with pytest.raises(TrainingError, match=r"out of memory with \d+ tokens.*train\.max_batch_tokens"):
        run(write_pairs(tmp_path), tmp_path / "out", policy=tiny, announce=arm)


def test_a_batch_without_a_usable_judgement_moves_nothing(tmp_path: Path):
    """Labels on some groups, comparisons on others: DPO steps over the batches it cannot use, and says how many."""
    groups = [*judged_groups(4), *labelled_groups(8, seed=40)]
    result = run(groups, tmp_path / "out", **{"train.batch_size": 2, "data.eval_fraction": 0.0})
    lines = metrics_of(result)
    assert sum(line["groups/skipped"] * 2 for line in lines) == 8
    assert any("loss" not in line and line["grad_norm"] == 0 for line in lines)


def test_a_policy_of_random_weights_in_memory_trains(tmp_path: Path):
    """Nothing depends on the shipped model: a random Llama of 61 words learns from random token groups."""
    folder = save_model(tmp_path / "random", "llama")
    groups = [
        Group(
            prompt=f"w{row + 2} w9",
            responses=(Response(content=f"w{row + 3} w5"), Response(content="w7 w8 w6")),
            judgements=(Comparison(better=0, worse=1),),
        )
        for row in range(8)
    ]
    result = run(groups, tmp_path / "out", model=str(folder), **{"train.epochs": 8})
    train = [line for line in metrics_of(result) if "loss" in line]
    assert train[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert train[-1]["loss"] < 0.6
    assert train[-1]["rewards/accuracies"] == 1.0
