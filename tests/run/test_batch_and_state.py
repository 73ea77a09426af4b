"""What belongs to a whole batch or moves with the steps, in real runs: the split does not matter, a stop neither."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_runs import (
    assert_same_bits,
    final_weights,
    labelled_groups,
    largest_gap,
    losses_of,
    metrics_of,
    run,
    write_pairs,
)

SUM_WITH_STATE = {
    "objective.name": "sum", "objective.parts.bco.weight": 1.0, "objective.parts.npo.weight": 0.1,
    "objective.parts.bco.density_weights": True,
}  # fmt: skip


def moving(out: Path, step: int) -> dict[str, torch.Tensor]:
    return torch.load(out / "checkpoints" / f"step-{step:06d}" / "moving.pt", weights_only=True)


@pytest.mark.parametrize(
    "settings",
    [{"objective": "bco"}, {"objective": "bco", "objective.density_weights": True}, SUM_WITH_STATE],
    ids=["mean", "density", "sum"],
)
def test_a_state_is_taken_up_bit_for_bit(settings: dict[str, Any], tmp_path: Path):
    groups = labelled_groups()
    settings = settings | {"train.epochs": 2}

    def stop(now: int, total: int, metrics: dict[str, float]) -> None:
        if now == 3:
            signal.raise_signal(signal.SIGTERM)

    whole = run(groups, tmp_path / "whole", **settings)
    assert run(groups, tmp_path / "parts", progress=stop, **settings).was_stopped
    parts = run(groups, tmp_path / "parts", resume=True, **settings)
    assert_same_bits(metrics_of(whole), metrics_of(parts))
    assert_same_bits(final_weights(tmp_path / "whole"), final_weights(tmp_path / "parts"))
    ends = [moving(tmp_path / name, 6) for name in ("whole", "parts")]
    assert_same_bits(*ends)
    (counts,) = (value for name, value in ends[0].items() if name.endswith("num_rewards"))
    assert counts.item() == 24  # 12 labelled responses, twice
    (classifier,) = (value for name, value in ends[0].items() if name.endswith("classifier"))
    assert (len(classifier) > 0) == ("density" in str(settings))


@pytest.mark.parametrize(
    "settings",
    [
        {"objective": "aot_unpaired"},
        {"objective": "rpo_relative", "objective.weighting": "embedding"},
        {"objective": "bco", "objective.density_weights": True},
        {"objective.name": "sum", "objective.parts.aot.weight": 1.0, "objective.parts.sft.weight": 0.1},
    ],
    ids=lambda settings: "+".join(str(value) for value in settings.values()),
)
def test_the_split_into_micro_batches_does_not_matter(settings: dict[str, Any], tmp_path: Path):
    pairs = write_pairs(tmp_path, num_responses=3)
    settings = settings | {"train.lr": 1e-3, "train.max_steps": 3, "reference.cache": None}
    run(pairs, tmp_path / "large", **settings)
    run(pairs, tmp_path / "small", **settings, **{"train.max_batch_tokens": 60})
    assert losses_of(tmp_path / "small") == pytest.approx(losses_of(tmp_path / "large"), rel=2e-5)
    assert largest_gap(final_weights(tmp_path / "large"), final_weights(tmp_path / "small")) < 2e-4
