"""References that move, soups and other models, through whole runs: what training sees, what evaluation is held to."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from toy_runs import (
    BASE,
    assert_same_bits,
    checkpoint_of,
    evaluations_of,
    final_weights,
    largest_gap,
    losses_of,
    metrics_of,
    run,
    write_pairs,
)

from accord.errors import ConfigError, PolicyError
from accord.policy.load import load_policy
from accord.policy.weights.averaging import load_soup
from accord.store import RunFolder

SIX_STEPS: dict[str, Any] = {"train.epochs": 2, "train.lr": 1e-3, "train.checkpoint_every": 1, "train.keep_last": 9}
HARD: dict[str, Any] = SIX_STEPS | {"reference.update": "hard", "reference.update_every": 2}
SOFT: dict[str, Any] = SIX_STEPS | {"reference.update": "soft", "reference.update_every": 2, "reference.mix": 0.25}


def log_ratios(out: Path, split: str = "train") -> dict[int, float]:
    """The largest |log π − log π_ref| among a step's responses, by step."""
    found: dict[int, float] = {}
    for row in RunFolder.open(out).read_rows(split).to_pylist():
        gaps = [abs(ours - theirs) for ours, theirs in zip(row["policy_logps"], row["reference_logps"], strict=True)]
        found[row["step"]] = max(found.get(row["step"], 0.0), *gaps)
    return found


def moved(out: Path, step: int) -> dict[str, torch.Tensor]:
    """What a checkpoint holds of the reference."""
    return torch.load(out / "checkpoints" / f"step-{step:06d}" / "moving.pt", weights_only=True)


def test_after_a_hard_copy_policy_and_reference_are_one(tmp_path: Path):
    run(write_pairs(tmp_path), tmp_path / "out", **HARD)
    gaps, losses = log_ratios(tmp_path / "out"), losses_of(tmp_path / "out")
    for step in (1, 3, 5):  # the first steps after the start and after the copies
        assert gaps[step] == 0.0
        assert losses[step - 1] == pytest.approx(math.log(2), abs=1e-6)
    for step in (2, 4, 6):
        assert gaps[step] > 1e-3
        assert losses[step - 1] != pytest.approx(math.log(2), abs=1e-6)


def test_a_hard_copy_at_every_step_pins_the_loss(tmp_path: Path):
    """All the while the policy moves: its gradient is β/2 (∇log π(rejected) − ∇log π(chosen)), never smaller."""
    run(write_pairs(tmp_path), tmp_path / "out", **HARD | {"reference.update_every": 1})
    assert losses_of(tmp_path / "out") == pytest.approx([math.log(2)] * 6, abs=1e-6)
    held_out = evaluations_of(tmp_path / "out")
    assert held_out[-1]["eval/loss"] != pytest.approx(held_out[0]["eval/loss"], abs=1e-3)


@pytest.mark.parametrize("rank", [0, 2])
def test_a_soft_reference_is_the_recursion_of_the_policys_weights(rank: int, tmp_path: Path):
    out = tmp_path / "out"
    run(write_pairs(tmp_path), out, **SOFT, model__lora_rank=rank)
    start = moved(out, 1)  # before the first update
    expected = {name.removeprefix("reference/"): tensor.double() for name, tensor in start.items()}
    for step in range(1, 7):
        policy = load_file(out / "checkpoints" / f"step-{step:06d}" / "trained.safetensors")
        assert policy.keys() == expected.keys()
        if step % 2 == 0:
            expected = {name: 0.25 * policy[name].double() + 0.75 * old for name, old in expected.items()}
        for name, tensor in moved(out, step).items():
            wanted = expected[name.removeprefix("reference/")]
            torch.testing.assert_close(tensor.double(), wanted, rtol=1e-6, atol=1e-9)
    assert max(float((moved(out, 6)[name] - tensor).abs().max()) for name, tensor in start.items()) > 1e-4


def stop_at(step: int) -> Callable[[int, int, dict[str, float]], None]:
    def progress(now: int, total: int, metrics: dict[str, float]) -> None:
        if now == step:
            signal.raise_signal(signal.SIGTERM)

    return progress


@pytest.mark.parametrize(
    ("objective", "more"),
    [
        ("dpo", HARD),
        ("dpo", SOFT),
        ("dpo", SOFT | {"model.lora_rank": 2}),
        ("kto", SOFT),
        ("tdpo2", HARD),  # also asks the reference for its whole distribution at each token
        ("ipo", SOFT | {"train.max_batch_tokens": 50}),
    ],
)
def test_a_stopped_run_goes_on_bit_for_bit(objective: str, more: dict[str, Any], tmp_path: Path):
    """Stopped at step 3, between the updates after steps 2 and 4."""
    pairs = write_pairs(tmp_path)
    settings: dict[str, Any] = more | {"objective": objective, "evaluate.every": 2}
    settings |= {"evaluate.num_samples": 2, "evaluate.sample_tokens": 6}
    whole = run(pairs, tmp_path / "whole", **settings)
    assert run(pairs, tmp_path / "parts", progress=stop_at(3), **settings).was_stopped
    parts = run(pairs, tmp_path / "parts", resume=True, **settings)
    assert_same_bits(checkpoint_of(tmp_path / "whole", 6), checkpoint_of(tmp_path / "parts", 6))
    assert_same_bits(moved(tmp_path / "whole", 6), moved(tmp_path / "parts", 6))
    assert_same_bits(metrics_of(whole), metrics_of(parts))
    frozen = run(pairs, tmp_path / "frozen", **{k: v for k, v in settings.items() if not k.startswith("reference.")})
    assert frozen.summary["eval_after"] != whole.summary["eval_after"]


def test_held_out_groups_are_compared_with_where_the_reference_began(tmp_path: Path):
    pairs, said = write_pairs(tmp_path), []
    more: dict[str, Any] = {"evaluate.every": 2, "evaluate.num_samples": 2, "evaluate.sample_tokens": 6}
    run(pairs, tmp_path / "out", announce=said.append, **HARD | more)
    rows = RunFolder.open(tmp_path / "out").read_rows("eval").to_pylist()
    by_group: dict[int, set[tuple[float, ...]]] = {}
    for row in rows:
        by_group.setdefault(row["index"], set()).add(tuple(row["reference_logps"]))
    assert len(rows) == 4 * len(by_group)  # evaluated four times,
    assert all(len(values) == 1 for values in by_group.values())  # against one reference
    kl = [line["eval/kl"] for line in evaluations_of(tmp_path / "out")]
    assert kl[0] == pytest.approx(0.0, abs=1e-5)
    assert abs(kl[-1]) > 1e-3  # though the last copy was two steps before
    assert any("copied from the policy every 2 steps" in text and "where it began" in text for text in said)


def test_log_probabilities_of_a_moving_reference_are_not_kept_on_disk(tmp_path: Path):
    pairs, said = write_pairs(tmp_path), []
    result = run(pairs, tmp_path / "out", announce=said.append, **HARD)
    assert any("4 groups scored" in text for text in said)  # the held-out ones
    plan, num_tokens = result.plan, result.plan["tokens_to_train"]
    assert plan["tokens_to_reference"] > num_tokens  # every batch, and those
    assert plan["bytes_reference"] == plan["bytes_weights"]  # the copy; sampled KL, which asks the start, is off
    adapters = run(pairs, tmp_path / "lora", **HARD | {"model.lora_rank": 2}).plan
    assert adapters["bytes_reference"] == 4 * adapters["trained_parameters"] < plan["bytes_reference"] / 2


def test_it_may_begin_as_another_model(tmp_path: Path):
    pairs = write_pairs(tmp_path)
    run(pairs, tmp_path / "other", train__lr=0.01)
    out, other = tmp_path / "out", tmp_path / "other" / "model"
    run(pairs, out, **HARD, reference__path=str(other))
    gaps = log_ratios(out)
    assert min(gaps[1], gaps[2]) > 0.5
    assert gaps[3] == gaps[5] == 0.0
    theirs = final_weights(tmp_path / "other")
    for name, tensor in moved(out, 1).items():
        assert torch.equal(tensor, theirs[name.removeprefix("reference/")])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (HARD | {"reference.update_every": 6}, "every 6 steps, but the run has 6: .* below 6"),
        (SIX_STEPS | {"reference.update": "soft"}, "every 512 steps, but the run has 6"),
        (HARD | {"model.lora_rank": 2, "reference.path": str(BASE)}, "with adapters and reference.path=.*merge"),
        (SIX_STEPS | {"reference.mix": 0.3}, "reference.mix is set but reference.update is none"),
        (HARD | {"reference.mix": 0.3}, "reference.mix is set but reference.update=hard"),
        (HARD | {"reference.mix": 1.0}, "reference.mix=1.0"),
        (HARD | {"objective": "simpo"}, "simpo has no reference that could move"),
        ({"reference.soup": ["a"]}, "one model: expected two"),
        ({"reference.soup": ["a", "b"], "reference.path": "c"}, "both set"),
        ({"reference.soup": ["a", "b"], "reference.soup_shares": [1.0]}, "1 numbers for 2 models"),
        ({"reference.soup": ["a", "b"], "reference.soup_shares": [0.5, 0.6]}, "add up to 1.1"),
        ({"reference.soup": ["a", "b"], "reference.soup_shares": [1.5, -0.5]}, "greater than or equal to 0"),
        ({"reference.soup": ["a", "b"], "objective": "simpo"}, "nothing would ask it"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], says: str, tmp_path: Path):
    with pytest.raises(ConfigError, match=says):
        run(write_pairs(tmp_path), tmp_path / "out", **settings)
    assert not (tmp_path / "out" / "config.yaml").exists()


def test_a_policy_that_starts_from_trained_adapters_has_no_reference_that_moves(tmp_path: Path):
    pairs = write_pairs(tmp_path)
    run(pairs, tmp_path / "lora", model__lora_rank=2)
    with pytest.raises(ConfigError, match="with adapters and trained adapters to start from"):
        run(pairs, tmp_path / "out", **HARD, model=str(tmp_path / "lora" / "model"))


# -- soups -------------------------------------------------------------------------------------------------------------


def test_a_soup_is_a_frozen_reference_with_a_name_of_its_own(tmp_path: Path):
    pairs, said = write_pairs(tmp_path), []
    run(pairs, tmp_path / "other", train__lr=0.01)
    folders = [str(BASE), str(tmp_path / "other" / "model")]
    soup: dict[str, Any] = {"reference.soup": folders, "reference.soup_shares": [0.25, 0.75]}
    result = run(pairs, tmp_path / "out", announce=said.append, **SIX_STEPS, **soup)
    assert any("16 groups scored, 0 reused" in text for text in said)
    assert log_ratios(tmp_path / "out")[1] > 0.1
    assert result.plan["bytes_reference"] == result.plan["bytes_weights"]
    model = load_soup(folders, [0.25, 0.75])
    mean = {k: 0.25 * load_policy(BASE).causal_lm.state_dict()[k] + 0.75 * v for k, v in _weights(folders[1]).items()}
    assert largest_gap(mean, {k: v for k, v in model.causal_lm.state_dict().items() if k in mean}) < 1e-6
    again: list[str] = []
    run(pairs, tmp_path / "again", announce=again.append, **SIX_STEPS, **soup)
    assert any("0 groups scored, 16 reused" in text for text in again)
    assert_same_bits(final_weights(tmp_path / "again"), final_weights(tmp_path / "out"))
    equal: list[str] = []
    run(pairs, tmp_path / "equal", announce=equal.append, **SIX_STEPS, reference__soup=folders)
    assert any("16 groups scored, 0 reused" in text for text in equal)  # other shares, another reference


def _weights(folder: str) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "model.safetensors")


def test_a_soup_of_the_policys_own_start_is_the_usual_reference(tmp_path: Path):
    pairs, said = write_pairs(tmp_path), []
    run(pairs, tmp_path / "usual", **SIX_STEPS)
    run(pairs, tmp_path / "soup", announce=said.append, **SIX_STEPS, reference__soup=[str(BASE)] * 3)
    assert any("0 groups scored, 16 reused" in text for text in said)  # the same weights: the same name
    assert_same_bits(final_weights(tmp_path / "soup"), final_weights(tmp_path / "usual"))


def test_a_soup_of_what_is_not_a_model_is_refused(tmp_path: Path):
    with pytest.raises(PolicyError, match="nowhere"):
        run(write_pairs(tmp_path), tmp_path / "out", reference__soup=[str(BASE), "./nowhere"])
