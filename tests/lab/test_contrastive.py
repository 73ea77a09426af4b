"""The experiment on negatives: what is read off its runs by hand, and one run of each kind on a small scale."""

import json
import math
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from accord.lab.annotators import GOLD
from accord.lab.contrastive import (
    ARMS,
    BASELINE,
    Checkpoint,
    Scale,
    at_kl,
    markdown_table,
    prepare,
    rank_groups,
    run_arm,
    summarise,
)
from accord.lab.text_world import all_requests, render_request
from accord.objectives import OBJECTIVES
from accord.records import Group, Response

SMALL = Scale(groups_per_request=1, num_candidates=3, num_steps=2, batch_size=4, measure_every=2, answers_per_request=2)


def checkpoint(step: int, gold: float, kl: float) -> Checkpoint:
    return Checkpoint(step=step, gold=gold, kl=kl, chosen_nll=1.0, length=10.0)


PATH = [checkpoint(0, 1.0, 0.0), checkpoint(1, 2.0, 1.0), checkpoint(2, 2.5, 3.0)]


def test_a_kl_is_met_between_two_checkpoints():
    assert at_kl(PATH, 0.5) == pytest.approx(1.5)
    assert at_kl(PATH, 1.0) == pytest.approx(2.0)
    assert at_kl(PATH, 2.0) == pytest.approx(2.25)
    assert at_kl(PATH, 3.5) is None
    there_and_back = [*PATH, checkpoint(3, 0.0, 0.5)]
    assert at_kl(there_and_back, 0.5) == pytest.approx(1.5)  # the first time


def test_gains_are_paired_by_seed_and_a_kl_that_some_seed_misses_is_left_out():
    shift = {0: 0.0, 1: 0.4, 2: 0.2}
    runs = {
        BASELINE: {seed: [replace(one, gold=one.gold + up) for one in PATH] for seed, up in shift.items()},
        "other": {seed: [replace(one, gold=one.gold + up + 0.1) for one in PATH] for seed, up in shift.items()},
    }
    runs["other"][2] = runs["other"][2][:2]  # stops at KL 1
    _, row = summarise(runs, [1.0, 2.0])
    assert row["gain at KL 1"].value == pytest.approx(0.1)
    assert row["gain at KL 1"].high - row["gain at KL 1"].low == pytest.approx(0.0, abs=1e-9)  # pairs agree exactly
    assert row["gold at KL 1"].value == pytest.approx(2.0 + 0.2 + 0.1)
    # Student's t with 2 degrees of freedom: 4.303 × sd / √3, sd of (0, 0.4, 0.2) is 0.2
    assert row["gold at KL 1"].high - row["gold at KL 1"].value == pytest.approx(4.3027 * 0.2 / math.sqrt(3), abs=1e-3)
    assert row["gold at KL 2"] is row["gain at KL 2"] is None
    table = markdown_table([row], ["gold at KL 1", "gold at KL 2"])
    assert table.splitlines()[2] == "| other | 2.300 ± 0.497 | — |"


def test_rankings_follow_the_annotators_utility():
    """With next to no noise the better answer comes first; all responses are ranked once."""
    request = all_requests()[0]
    texts = ("bees make honey. indeed", "lol", "bees make honey. bees see ultraviolet. indeed bees have five eyes.")
    group = Group(prompt=render_request(request), responses=tuple(Response(content=text) for text in texts))
    decided = replace(GOLD, temperature=1e-6)
    (ranked,) = rank_groups([group], decided, seed=0)
    utilities = [GOLD.utility(request, response) for response in group.responses]
    (ranking,) = ranked.judgements
    assert [index for (index,) in ranking.order] == sorted(range(3), key=lambda index: -utilities[index])
    seen = {rank_groups([group], replace(GOLD, temperature=5.0), seed=seed)[0].judgements for seed in range(20)}
    assert len(seen) > 1


def test_every_arm_is_a_setting_that_mc_po_accepts():
    spec = OBJECTIVES["mc_po"]
    for name, settings in ARMS.items():
        assert set(settings) <= set(spec.settings()), name
        spec.check(**spec.defaults() | settings)
    assert BASELINE in ARMS


@pytest.fixture(scope="module")
def material():
    return prepare(3, SMALL)


def test_a_run_starts_at_the_base_moves_and_can_be_repeated(material):
    found = run_arm(material, ARMS["hard_negative"], SMALL)
    assert [one.step for one in found] == [0, 2]
    assert found[0].kl == pytest.approx(0.0, abs=1e-5)
    assert found[1].kl != found[0].kl
    assert found[1].chosen_nll != found[0].chosen_nll
    assert run_arm(material, ARMS["hard_negative"], SMALL) == found
    other = run_arm(material, ARMS["max_margin"], SMALL)  # the same start; other negatives, other weights
    assert other[0] == found[0]
    assert other[1].chosen_nll != found[1].chosen_nll
    assert (len(material.train), len(material.held_out)) == (36, 12)


def test_the_study_keeps_what_is_done_and_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import mc_po_study

    kept = tmp_path / "study.json"
    scale = asdict(replace(Scale(), num_steps=2))
    runs = {arm: {seed: [asdict(one) for one in PATH] for seed in (0, 1)} for arm in ("random", "cis")}
    kept.write_text(json.dumps({"scale": scale, "runs": runs}))
    command = ["study", "--seeds", "2", "--steps", "2", "--arms", "random", "cis", "--json", str(kept)]
    monkeypatch.setattr(sys, "argv", command)
    mc_po_study.main()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| cis")]
    assert lines[0].startswith("| cis | 2.500 ± 0.000 | 0.000 ± 0.000 |")
    monkeypatch.setattr(sys, "argv", [*command[:4], "3", *command[5:]])
    with pytest.raises(SystemExit, match="another scale"):
        mc_po_study.main()
