"""Real runs of what is around an objective: judges who err, populations, goals in prompts, a share of the data."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_runs import assert_same_bits, checkpoint_of, judged_groups, metrics_of, run

from accord.config import build_config
from accord.data.transforms.relabel import ROW
from accord.errors import ConfigError, DataError
from accord.records import Comparison, Group, Rating
from accord.run.data import encode_run_data, load_run_data
from accord.store import RunFolder

STEPS = {"train.epochs": 2, "evaluate.at_start": False, "train.keep_last": 9}
"""12 groups in batches of 4, twice over."""


def stop_at(step: int) -> Callable[[int, int, dict[str, float]], None]:
    """Send this process the signal of a scheduler once a step has been reported."""

    def progress(now: int, total: int, metrics: dict[str, float]) -> None:
        if now == step:
            signal.raise_signal(signal.SIGTERM)

    return progress


def by_judges(n: int = 16) -> list[Group]:
    """Every pair judged by ann, who is right, by bob, who is wrong, and by somebody who is right."""
    return [replace(group, judgements=_votes(group)) for group in judged_groups(n)]


def _votes(group: Group) -> tuple[Comparison, ...]:
    (right,) = group.judgements
    assert isinstance(right, Comparison)
    wrong = Comparison(better=right.worse, worse=right.better, judge="bob")
    return (replace(right, judge="ann"), wrong, replace(right, judge=None))


def of_places(n: int = 16) -> list[Group]:
    """Groups of two places; in the south every preference is the reverse."""
    return [
        replace(group, judgements=_votes(group)[row % 4 == 0 : 1 + (row % 4 == 0)],
                extra={"place": "south" if row % 4 == 0 else "north"})
        for row, group in enumerate(judged_groups(n))
    ]  # fmt: skip


def rated(n: int = 16) -> list[Group]:
    """Groups whose better response is rated 9 or 8, the other 2."""
    found = []
    for row, group in enumerate(judged_groups(n)):
        (won,) = group.judgements
        assert isinstance(won, Comparison)
        scores = {won.better: 9.0 - row % 2, won.worse: 2.0}
        ratings = tuple(Rating(response=index, value=value) for index, value in scores.items())
        found.append(replace(group, judgements=(won, *ratings)))
    return found


def moving(out: Path, step: int) -> dict[str, torch.Tensor]:
    """What a checkpoint holds of the objective's state."""
    return torch.load(out / "checkpoints" / f"step-{step:06d}" / "moving.pt", weights_only=True)


@pytest.mark.parametrize(
    ("name", "groups", "settings", "key"),
    [
        ("re_dpo", by_judges, {}, "reliability"),
        ("re_simpo", by_judges, {"objective.reliability": 0.8}, "reliability"),
        ("dpo_group_robust", of_places, {"data.stratum": "place", "objective.weight_step": 0.5}, "weight"),
    ],
)
def test_the_state_is_taken_up_bit_for_bit(
    name: str, groups: Callable[[], list[Group]], settings: dict[str, Any], key: str, tmp_path: Path
):
    settings = STEPS | {"objective": name} | settings
    whole = run(groups(), tmp_path / "whole", **settings)
    first = run(groups(), tmp_path / "parts", progress=stop_at(3), **settings)
    assert first.was_stopped
    second = run(groups(), tmp_path / "parts", resume=True, **settings)
    assert_same_bits(metrics_of(whole), metrics_of(second))
    assert_same_bits(checkpoint_of(tmp_path / "whole", 6), checkpoint_of(tmp_path / "parts", 6))
    assert_same_bits(moving(tmp_path / "whole", 6), moving(tmp_path / "parts", 6))
    assert not torch.equal(moving(tmp_path / "parts", 3)[key], moving(tmp_path / "parts", 6)[key])


def test_the_judge_who_is_wrong_is_found_out_and_shown(tmp_path: Path):
    done = run(by_judges(), tmp_path / "out", objective="re_dpo", **{
        "objective.beta": 1.0, "objective.reliability": 0.7, "objective.reliability_rate": 0.5, "train.epochs": 8,
    })  # fmt: skip
    lines = [line for line in metrics_of(done) if "loss" in line]
    names = [name for name in lines[-1] if name.startswith("state/")]
    assert names == [f"state/reliability/{judge}" for judge in ("(anonymous)", "ann", "bob")]
    honest, liar = (lines[-1][f"state/reliability/{judge}"] for judge in ("ann", "bob"))
    assert honest > 0.9
    assert liar < 0.4


def test_how_votes_are_split_into_passes_changes_nothing(tmp_path: Path):
    settings = STEPS | {"objective": "re_dpo"}
    whole, split = (
        run(by_judges(), tmp_path / str(budget), **settings | {"train.max_batch_tokens": budget})
        for budget in (16384, 60)
    )
    for one, other in zip(metrics_of(whole)[:6], metrics_of(split)[:6], strict=True):
        for key in ("loss", "state/reliability/bob"):
            assert one[key] == pytest.approx(other[key], rel=1e-4), key


def test_weights_of_populations_follow_their_losses_and_are_shown(tmp_path: Path):
    """The reported weights are those of the recursion q ∝ q exp(η Σ ℓ / (f N)), from the losses of the rows."""
    settings = STEPS | {"objective": "dpo_group_robust", "data.stratum": "place", "objective.weight_step": 0.5}
    done = run(of_places(), tmp_path / "out", **settings | {"train.epochs": 3, "objective.beta": 1.0})
    assert done.run is not None
    place = {group.origin: group.extra["place"] for group in of_places()}
    rows = done.run.read_rows("train").to_pylist()
    trained = [place[origin] for origin in {row["origin"] for row in rows}]
    share = {name: trained.count(name) / len(trained) for name in ("north", "south")}
    assert 0 < share["south"] < share["north"]
    weight = {"north": 0.5, "south": 0.5}
    for line in (line for line in metrics_of(done) if "loss" in line):
        batch = [row for row in rows if row["step"] == line["step"]]
        loss = dict.fromkeys(weight, 0.0)
        for row in batch:
            name = place[row["origin"]]
            loss[name] += row["loss"] / (weight[name] / share[name]) / (share[name] * len(batch))
        grown = {name: q * math.exp(0.5 * loss[name]) for name, q in weight.items()}
        weight = {name: q / sum(grown.values()) for name, q in grown.items()}
        assert line["state/weight/south"] == pytest.approx(weight["south"], rel=1e-4)
        assert line["state/weight/north"] == pytest.approx(weight["north"], rel=1e-4)


def test_populations_must_be_named(tmp_path: Path):
    with pytest.raises(DataError, match=r"toy:0: has no column 'stratum'.*data\.stratum=COLUMN"):
        run(of_places(), tmp_path / "out", objective="dpo_group_robust")
    with pytest.raises(ConfigError, match=r"dpo weighs no populations.*dpo_group_robust"):
        run(of_places(), tmp_path / "out", **{"data.stratum": "place"})
    named = [replace(group, extra={"stratum": "all"}) for group in of_places()]
    assert run(named, tmp_path / "out", objective="ipo_group_robust", dry_run=True).plan["groups"] == 12


# -- goals and shares --------------------------------------------------------------------------------------------------


def encoded(groups: list[Group], **settings: Any):
    """What a run would train on and hold out, and its data report."""
    base = run(groups, Path("unused"), dry_run=True).policy
    config = build_config({"model": "m", "data": "(in memory)", "data.eval_fraction": 0.25} | settings)
    return encode_run_data(config, load_run_data(config, groups, None), base)


def test_a_relabelled_run_learns_both_goals_and_splits_no_row(tmp_path: Path):
    relabelled = {"data.relabel": "reward_conditioned"}
    train, held_out, report = encoded(rated(), **relabelled)
    assert len(train) + len(held_out) == 32
    rows = [{group.source.extra[ROW] for group in part} for part in (train, held_out)]
    assert not rows[0] & rows[1]
    assert len(rows[1]) == 4
    assert "relabelled: 16 rows → 32 groups, one per rating (0 without two ratings left out)" in report.text
    assert report.facts["changes"][0].startswith("relabelled: 16 rows")
    for group in (*train, *held_out):
        assert group.source.prompt[0].role == "system"
        assert "deserves a score of" in group.source.prompt[0].content
    done = run(rated(), tmp_path / "out", **STEPS | relabelled | {"objective.beta": 1.0, "train.epochs": 1})
    assert done.plan["groups"] == len(train)
    assert [line for line in metrics_of(done) if "loss" in line]
    with pytest.raises(ConfigError, match=r"data\.relabel"):
        run(rated(), tmp_path / "out", resume=True, **STEPS | {"objective.beta": 1.0, "train.epochs": 1})


def test_a_held_out_part_of_its_own_is_relabelled_too(tmp_path: Path):
    settings = {"data.relabel": "reward_conditioned", "data.goal": "Score: {score}", "dry_run": True}
    done = run(rated(8), tmp_path / "out", eval_groups=rated(12)[8:], **settings)
    assert (done.plan["groups"], done.plan["held_out_groups"]) == (16, 8)


@pytest.mark.parametrize("method", ["isa", "random", "top"])
def test_a_share_of_the_data_is_chosen_and_counted(method: str, tmp_path: Path):
    chosen = {"data.select": method, "data.select_fraction": 0.5}
    train, held_out, report = encoded(rated(), **chosen)
    everything, same, _ = encoded(rated())
    assert (len(train), len(everything), len(held_out)) == (6, 12, len(same))
    assert [group.index for group in held_out] == [group.index for group in same]  # what is measured stays
    assert {group.index for group in train} < {group.index for group in everything}
    assert f"selected: 6 of 12 groups to train on ({method})" in report.text
    done = run(rated(), tmp_path / "out", **STEPS | chosen | {"train.batch_size": 2})
    assert done.summary["steps"] == 6
    assert done.run is not None
    assert RunFolder.open(done.run.path).read_json("data_report")["changes"][-1].startswith("selected: 6 of 12")
    if method == "top":
        gaps = [9.0 - group.index % 2 - 2.0 for group in train]
        assert min(gaps) == 7.0  # pairs rated 9 to 2 come before those rated 8 to 2


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"data.select": "isa"}, "only work together"),
        ({"data.select_fraction": 0.5}, "only work together"),
        ({"data.select": "best", "data.select_fraction": 0.5}, "'all', 'isa', 'random' or 'top'"),
        ({"data.select": "top", "data.select_fraction": 1.0}, "less than 1"),
        ({"data.goal": "{score}"}, r"data\.relabel is none"),
        ({"data.relabel": "reward_conditioned", "data.goal": "be good"}, "expected words with"),
    ],
)
def test_settings_that_cannot_be_meant(settings: dict[str, Any], says: str, tmp_path: Path):
    with pytest.raises(ConfigError, match=says):
        run(rated(), tmp_path / "out", **settings)


def test_data_that_says_nothing_of_the_kind_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="none of the 16 rows has two different ratings"):
        run(judged_groups(), tmp_path / "out", **{"data.relabel": "reward_conditioned"})
    with pytest.raises(DataError, match="says nowhere how much better"):
        run(judged_groups(), tmp_path / "out", **{"data.select": "top", "data.select_fraction": 0.5})
