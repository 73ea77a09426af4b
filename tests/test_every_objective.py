"""`accord align objective=NAME` for every row of the menu, on one file that holds every kind of judgement."""

from pathlib import Path

import pytest
import torch
import toy_runs
from rich_data import SAMPLED, data_for, settings_for

from accord.objectives import OBJECTIVES
from accord.policy.load import load_policy


@pytest.mark.parametrize("name", [name for name, spec in OBJECTIVES.items() if not spec.needs & SAMPLED])
def test_it_trains_on_a_file_that_holds_what_it_needs(name: str, tmp_path: Path) -> None:
    done = toy_runs.run(
        data_for(name), tmp_path / "run", objective=name, train__max_steps=2,
        **{"train.write_rows": False, "train.lr": 1e-3, **settings_for(name)},
    )  # fmt: skip
    losses = toy_runs.losses_of(tmp_path / "run")
    assert len(losses) == 2
    assert all(loss == loss and abs(loss) < 1e6 for loss in losses)
    assert done.summary["eval_after"]["loss"] != done.summary["eval_before"]["loss"], "the weights moved"
    start = load_policy(toy_runs.BASE)
    moved = [
        not torch.equal(p, q)
        for (n, p), (m, q) in zip(
            start.causal_lm.base_model.named_parameters(), done.policy.causal_lm.base_model.named_parameters(),
            strict=True,
        )
    ]  # fmt: skip
    assert any(moved)
