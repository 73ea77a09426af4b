"""At another temperature sampler, trainer and reference all speak of the distribution that was sampled from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rollouts.test_methods import ONLINE, PROMPTS
from toy_runs import metrics_of, run

from accord.data import load_groups
from accord.lab.gold import GoldReward
from accord.store import RunFolder

ROUNDING = 1e-4  # nats per token


@pytest.mark.parametrize("temperature", [0.6, 1.5])
@pytest.mark.parametrize("epochs", [1, 2])
def test_the_first_ratio_is_one_and_the_start_is_the_reference(temperature: float, epochs: int, tmp_path: Path):
    settings: dict[str, Any] = ONLINE | {
        "method": "grpo", "train.batch_size": 4, "train.max_steps": 2, "rollout.max_tokens": 12, "train.epochs": 1,
        "rollout.num_responses": 3, "rollout.epochs": epochs, "rollout.temperature": temperature,
        "data.eval_fraction": 0.3, "evaluate.num_samples": 4,
    }  # fmt: skip
    done = run(PROMPTS[:12], tmp_path / "out", reward=GoldReward(), **settings)
    assert done.run is not None
    lines = [line for line in metrics_of(done) if "loss" in line]
    assert all(line["sampler/abs_diff"] < ROUNDING for line in lines)
    assert abs(lines[0]["log_ratio/response"]) < ROUNDING
    drawn = {
        group.prompt[-1].content: [sum(r.behaviour_logps or ()) for r in group.responses]  # type: ignore[union-attr]
        for group in load_groups(done.run.path / "rollouts" / "step-000000.parquet").groups
    }
    rows = [row for row in RunFolder.open(done.run.path).read_rows("train").to_pylist() if row["step"] == 1]
    behaviour = sorted(drawn.values())
    assert len(rows) == len(behaviour) == 4
    for row, sampled in zip(sorted(rows, key=lambda row: row["policy_logps"]), behaviour, strict=True):
        assert row["policy_logps"] == pytest.approx(sampled, abs=12 * ROUNDING)
        assert row["reference_logps"] == pytest.approx(row["policy_logps"], abs=12 * ROUNDING)
    (at_start,) = (line for line in metrics_of(done) if line["step"] == 0)
    assert at_start["eval/kl"] == pytest.approx(0.0, abs=12 * ROUNDING)
