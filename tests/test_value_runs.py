"""Real runs that learn values from ratings: what decoding by them gains, what a run keeps, and where it is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich_data import rich_groups
from toy_runs import BASE, judged_groups, run, write_pairs

from accord.cli import main
from accord.data import write_groups
from accord.decoding.value_guided import answer_value_guided
from accord.errors import DataError
from accord.feedback.rating import with_ratings
from accord.lab.gold import GoldReward, request_prompts
from accord.lab.text_world import split_requests
from accord.policy.load import load_policy
from accord.policy.sampling import SamplingSettings
from accord.policy.value_heads import ValueLearner, load_value_learner
from accord.records import FinishReason, Group


def rated_groups(n: int) -> list[Group]:
    """Requests with four answers of any quality, and what each is really worth."""
    groups = [replace(group, judgements=()) for group in judged_groups(n, num_responses=4)]
    whole = [
        replace(g, responses=tuple(replace(r, finish_reason=FinishReason.STOP) for r in g.responses)) for g in groups
    ]
    return with_ratings(whole, GoldReward()(whole), attribute="reward")


def mean_gold(policy: ValueLearner, strength: float) -> float:
    asked = request_prompts(split_requests()[1][:32])
    settings = SamplingSettings(num_responses=4, max_tokens=32, seed=3)
    scores = [
        f.score for row in GoldReward()(answer_value_guided(policy, asked, settings, strength=strength)) for f in row
    ]
    assert None not in scores
    return sum(score for score in scores if score is not None) / len(scores)


def test_answers_drawn_by_value_are_worth_more_than_the_imitators(tmp_path: Path):
    """β = 0 writes as the data does, whose answers are of any quality; the same weights at β = 4 write better."""
    run(
        rated_groups(96), tmp_path / "run", objective="ilql", train__max_steps=80, train__epochs=10,
        **{"objective.polyak": 0.1, "objective.tau": 0.8, "train.batch_size": 8, "data.eval_fraction": 0.0,
           "evaluate.at_start": False, "train.write_rows": False},
    )  # fmt: skip
    policy = load_value_learner(tmp_path / "run" / "model")
    imitated, guided = mean_gold(policy, 0.0), mean_gold(policy, 4.0)
    assert guided > imitated + 0.2


def test_a_run_saves_its_heads_goes_on_from_them_and_the_command_draws_by_them(tmp_path: Path, capsys):
    done = run(rich_groups(8), tmp_path / "one", objective="ilql", train__max_steps=2, **{"objective.polyak": 0.5})
    assert isinstance(done.policy, ValueLearner)
    assert done.policy.polyak == 0.5
    saved = load_value_learner(tmp_path / "one" / "model")
    for name, parameter in done.policy.trained().items():
        if name.startswith("critic/"):
            assert torch.equal(parameter, saved.trained()[name]), name
    target, own = saved.target_heads[0].weight, saved.q_heads[0].weight
    assert not torch.equal(target, own)  # on its way
    # a run from that folder starts where the heads are; without a step it would end there
    again = run(
        rich_groups(8), tmp_path / "two", objective="ilql", train__max_steps=1,
        **{"model": str(tmp_path / "one" / "model"), "train.lr": 1e-12, "objective.polyak": 1e-6},
    )  # fmt: skip
    assert isinstance(again.policy, ValueLearner)
    torch.testing.assert_close(again.policy.target_heads[0].weight, target, rtol=0, atol=1e-5)
    asked = tmp_path / "asked.jsonl"
    write_groups(asked, request_prompts(split_requests()[1][:2]))
    line = ["sample", "--prompts", str(asked), "--max-tokens", "8", "--json", "--value-guided", "2"]
    capsys.readouterr()
    assert main([*line, "--model", str(tmp_path / "one" / "model")]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 2
    assert main([*line, "--model", str(BASE)]) != 0
    assert "objective=ilql" in capsys.readouterr().err


def test_a_file_without_ratings_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="needs ratings"):
        run(write_pairs(tmp_path), tmp_path / "run", objective="ilql")


def test_adapters_are_trained_beside_the_heads(tmp_path: Path):
    done = run(
        rich_groups(8), tmp_path / "run", objective="ilql", train__max_steps=1, **{"model.lora_rank": 2}
    )  # fmt: skip
    assert done.policy.has_adapters
    again = load_value_learner(tmp_path / "run" / "model")
    assert torch.equal(again.value_head.weight, done.policy.value_head.weight)
    assert load_policy(tmp_path / "run" / "model").has_adapters
