"""Demonstrations beside the rewards: their gradient is that of pure SFT, and at weight 0 they are not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rollouts.test_methods import ONLINE, PROMPTS, Constant
from toy_runs import BASE, final_weights, labelled_groups, largest_gap, metrics_of, run, write_pairs

from accord.config import build_config
from accord.data import load_groups, write_groups
from accord.errors import DataError
from accord.lab.gold import GoldReward
from accord.policy.load import load_policy
from accord.records import Group
from accord.run.beside import load_beside

STEPS: dict[str, Any] = ONLINE | {
    "train.batch_size": 4, "train.max_steps": 3, "rollout.max_tokens": 10, "rollout.num_responses": 2,
    "train.statistics": False,
}  # fmt: skip


def config_of(path: Path, **settings: Any) -> Any:
    given = {"model": str(BASE), "data": "d", "method": "ppo", "reward.length_penalty.weight": 1.0}
    return build_config(given | {"pretraining.path": str(path)} | settings)


def demonstrations(folder: Path, n: int = 8) -> Path:
    path = folder / "demonstrations.jsonl"
    write_groups(path, [Group(prompt=g.prompt, responses=g.responses, origin=g.origin) for g in labelled_groups(n)])
    return path


@pytest.mark.parametrize("method", ["ppo", "grpo"])
def test_a_weight_of_zero_changes_no_bit(method: str, tmp_path: Path):
    settings = STEPS | {"method": method}
    path = str(demonstrations(tmp_path))
    run(PROMPTS, tmp_path / "without", reward=GoldReward(), **settings)
    mixed = settings | {"pretraining.path": path, "pretraining.weight": 0.0}
    done = run(PROMPTS, tmp_path / "with", reward=GoldReward(), **mixed)
    assert largest_gap(final_weights(tmp_path / "without"), final_weights(tmp_path / "with")) == 0.0
    assert all(line["pretraining/loss"] > 0 for line in metrics_of(done) if "loss" in line)


def test_under_a_reward_that_says_nothing_it_is_sft(tmp_path: Path):
    """The policy gradient is 0, so the step is γ times that of the demonstrations' mean negative log-likelihood.

    AdamW does not see the factor (but for its ε): the weights are those of `sft` on the same batches.
    """
    path, rate = demonstrations(tmp_path, 4), {"train.lr": 1e-3, "train.adam_eps": 1e-12, "train.max_grad_norm": None}
    settings = STEPS | rate | {"method": "grpo", "objective.kl_coef": 0.0, "rollout.temperature": 1.3}
    mixed = settings | {"pretraining.path": str(path), "pretraining.weight": 3.0, "pretraining.batch_size": 4}
    done = run(PROMPTS, tmp_path / "mixed", reward=Constant(), **mixed)
    plain = {key: value for key, value in STEPS.items() if not key.startswith("rollout.")} | rate
    pure = run(path, tmp_path / "sft", objective="sft", **plain | {"train.epochs": 3})
    mixed_losses = [line["pretraining/loss"] for line in metrics_of(done) if "loss" in line]
    assert mixed_losses == pytest.approx([line["loss"] for line in metrics_of(pure) if "loss" in line], rel=1e-5)
    gap = largest_gap(final_weights(tmp_path / "mixed"), final_weights(tmp_path / "sft"))
    start = load_policy(BASE).trained()
    moved = max(float((w - start[name].detach()).abs().max()) for name, w in final_weights(tmp_path / "sft").items())
    assert moved > 1e-3
    assert gap < 0.05 * moved, (gap, moved)


def test_the_scale_makes_a_mean_per_token_of_the_sum():
    """Summed loss × γ · count / tokens, divided by `count` with all gradients: γ · the mean over 3 + 2 tokens."""
    from models import ragged_groups

    from accord.run.beside import Beside

    groups = ragged_groups((2,), longest=4)
    tokens = sum(len(response.ids) for response in groups[0].responses)
    beside = Beside(scoring=None, batches=[groups], weight=0.5)  # type: ignore[arg-type]  # not asked
    assert beside.scale(groups, 7.0) == pytest.approx(0.5 * 7.0 / tokens)
    assert beside.batch_at(5) is groups  # taken in turn, over and over


def test_only_what_nobody_spoke_against_is_imitated(tmp_path: Path):
    policy = load_policy(BASE)
    pairs = write_pairs(tmp_path, 6)
    found = load_beside(config_of(pairs), policy)
    assert found is not None
    assert [len(group.responses) for batch in found.batches for group in batch] == [1] * 6
    write_groups(tmp_path / "labels.jsonl", labelled_groups(6))
    labelled = load_beside(config_of(tmp_path / "labels.jsonl"), policy)
    assert labelled is not None
    assert sum(len(batch) for batch in labelled.batches) == 3  # every other one has a thumb up


def test_a_file_without_a_demonstration_is_refused(tmp_path: Path):
    disliked = [g for g in labelled_groups(4) if not g.judgements[0].is_desirable]  # type: ignore[attr-defined]
    write_groups(tmp_path / "none.jsonl", disliked)
    assert len(load_groups(tmp_path / "none.jsonl").groups) == 2
    with pytest.raises(DataError, match="none of 2 rows can be trained on"):
        load_beside(config_of(tmp_path / "none.jsonl"), load_policy(BASE))


def test_nothing_is_mixed_in_unless_asked():
    given = {"model": str(BASE), "data": "d", "method": "ppo", "reward.length_penalty.weight": 1.0}
    assert load_beside(build_config(given), load_policy(BASE)) is None
