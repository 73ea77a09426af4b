"""Rounds: each from where the last one led, compared with its own start; what an extrapolated start is made of."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_runs import BASE, SMALL, assert_same_bits, final_weights, judged_groups, losses_of, run, write_pairs

from accord.errors import ConfigError, DataError
from accord.policy.load import load_policy
from accord.rounds import RoundsResult, accelerated_rounds

ROUND: dict[str, Any] = SMALL | {"train.lr": 1e-3, "reference.cache": None}


def rounds(given: list[Any], out: Path, **more: Any) -> RoundsResult:
    return accelerated_rounds(given, model=BASE, out=out, **ROUND, **more)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor.double() for name, tensor in load_policy(folder).causal_lm.state_dict().items()}


def test_each_round_starts_beyond_the_last_and_is_compared_with_its_start(tmp_path: Path):
    data = [{"data": str(write_pairs(tmp_path, seed=seed))} for seed in (0, 16, 32)]
    done = rounds(data, tmp_path / "out", alpha=0.5)
    first, second, third = (weights(tmp_path / "out" / f"round-{number}" / "model") for number in (1, 2, 3))
    base = weights(BASE)
    for start, now, before in (("start-2", first, base), ("start-3", second, first), ("start-4", third, second)):
        for name, tensor in weights(tmp_path / "out" / start).items():
            torch.testing.assert_close(tensor, 1.5 * now[name] - 0.5 * before[name], rtol=1e-5, atol=1e-7)
    assert done.model == tmp_path / "out" / "round-3" / "model"
    assert done.extrapolated == tmp_path / "out" / "start-4"
    assert [summary["steps"] for summary in done.summaries] == [3, 3, 3]
    for number in (1, 2, 3):  # policy = reference before each round's first step
        assert losses_of(tmp_path / "out" / f"round-{number}")[0] == pytest.approx(math.log(2), abs=1e-5)
    alone = run(Path(data[1]["data"]), tmp_path / "alone", model=str(tmp_path / "out" / "start-2"), train__lr=1e-3)
    assert alone.run is not None
    assert_same_bits(final_weights(tmp_path / "alone"), final_weights(tmp_path / "out" / "round-2"))


def test_alpha_0_is_iterative_training(tmp_path: Path):
    pairs = write_pairs(tmp_path)
    done = rounds([{}, {"objective.beta": 0.5}], tmp_path / "out", alpha=0.0, data=str(pairs))
    assert done.extrapolated is None
    assert not list((tmp_path / "out").glob("start-*"))
    run(pairs, tmp_path / "one", train__lr=1e-3)
    run(pairs, tmp_path / "two", model=str(tmp_path / "one" / "model"), train__lr=1e-3, objective__beta=0.5)
    assert_same_bits(final_weights(tmp_path / "out" / "round-2"), final_weights(tmp_path / "two"))


def test_a_round_may_be_made_from_the_model_it_starts_from(tmp_path: Path):
    asked: list[Path] = []

    def judged(start: Path) -> dict[str, Any]:
        asked.append(start)
        assert load_policy(start).sample(["Name two colours."], max_tokens=2)
        return {"groups": judged_groups(seed=len(asked))}

    rounds([judged, judged], tmp_path / "out")
    assert asked == [BASE, tmp_path / "out" / "start-2"]


def test_stopped_rounds_go_on(tmp_path: Path):
    pairs = str(write_pairs(tmp_path))

    def stop_in(number: int) -> Callable[[int, int, dict[str, float]], None]:
        return lambda step, total, metrics: signal.raise_signal(signal.SIGTERM) if step == number else None

    whole = rounds([{}, {}], tmp_path / "whole", data=pairs)
    first = rounds([{}, {"progress": stop_in(2)}], tmp_path / "parts", data=pairs)
    assert first.was_stopped
    assert first.extrapolated is None
    assert first.model == tmp_path / "parts" / "round-1" / "model"
    second = rounds([{}, {}], tmp_path / "parts", data=pairs, resume=True)
    assert not second.was_stopped
    assert whole.extrapolated is not None
    assert second.extrapolated is not None
    assert_same_bits(weights(second.extrapolated), weights(whole.extrapolated))
    with pytest.raises(DataError, match=r"the weights of the run in .*round-2 changed"):
        rounds([{}, {}], tmp_path / "parts", data=pairs, resume=True, alpha=0.7)


@pytest.mark.parametrize(
    ("given", "more", "says"),
    [
        ([], {}, "0 rounds"),
        ([{}], {"alpha": -0.1}, "alpha=-0.1"),
        ([{}], {"alpha": math.nan}, "alpha=nan"),
        ([{"model": "other"}], {}, "model for round 1"),
        ([{"reference.path": "other"}], {}, "reference.path=other for round 1"),
        ([{"reference.update": "hard", "reference.update_every": 1}], {}, "reference.update=hard for round 1"),
        ([{"model.lora_rank": 2}], {}, "adapters in round 1"),
        ([{"objective.bta": 2}], {}, "did you mean objective.beta"),
    ],
)
def test_rounds_that_are_none_are_refused(given: list[Any], more: dict[str, Any], says: str, tmp_path: Path):
    with pytest.raises(ConfigError, match=says):
        rounds(given, tmp_path / "out", data=str(write_pairs(tmp_path)), **more)
    assert not (tmp_path / "out").exists()
