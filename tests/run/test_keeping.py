"""What a run keeps when something goes wrong or ends early: its training, its best weights, its second model."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from models import save_model
from toy_runs import (
    BASE,
    assert_same_bits,
    checkpoint_of,
    evaluations_of,
    final_weights,
    judged_groups,
    metrics_of,
    run,
    write_pairs,
)

from accord.config import build_config
from accord.errors import ConfigError, TrainingError
from accord.policy.load import load_policy
from accord.policy.policy import Policy
from accord.run.reference import Origin
from accord.store import RunFolder
from accord.train import Loop

KL = {"evaluate.num_samples": 3, "evaluate.sample_tokens": 4}


def test_a_reference_that_vanished_costs_its_kl_and_nothing_else(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    shutil.copytree(BASE, tmp_path / "start")
    pairs, settings = write_pairs(tmp_path), KL | {"model": str(tmp_path / "start")}
    whole = run(pairs, tmp_path / "whole", **settings)
    with caplog.at_level("WARNING"):
        lost = run(
            pairs, tmp_path / "lost", **settings,
            progress=lambda step, total, _: shutil.rmtree(tmp_path / "start") if step == total else None,
        )  # fmt: skip
    assert "KL is not measured" in caplog.text
    assert_same_bits(final_weights(tmp_path / "whole"), final_weights(tmp_path / "lost"))
    assert "kl" in whole.summary["eval_after"]
    gone = whole.summary["eval_after"].keys() - lost.summary["eval_after"].keys()
    assert gone == {"kl", "kl_low", "kl_high"}


def test_the_last_checkpoint_is_there_before_the_last_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pairs = write_pairs(tmp_path)
    whole = run(pairs, tmp_path / "whole")
    plain, calls = Loop._evaluate_now, []

    def breaks_at_the_end(loop: Loop) -> Any:
        calls.append(loop.state.step)
        if len(calls) == 2:
            raise TrainingError("the last evaluation fails")
        return plain(loop)

    monkeypatch.setattr(Loop, "_evaluate_now", breaks_at_the_end)
    with pytest.raises(TrainingError, match="the last evaluation fails"):
        run(pairs, tmp_path / "parts")
    assert RunFolder.open(tmp_path / "parts").checkpoint_steps()[-1] == 3
    again = run(pairs, tmp_path / "parts", resume=True)
    assert calls == [0, 3, 3]  # nothing was trained again
    assert_same_bits(metrics_of(again), metrics_of(whole))
    assert_same_bits(checkpoint_of(tmp_path / "whole", 3), checkpoint_of(tmp_path / "parts", 3))
    assert_same_bits(again.summary["eval_after"], whole.summary["eval_after"])


def test_a_tenth_of_the_run_is_the_most_a_kill_can_cost(tmp_path: Path):
    pairs = write_pairs(tmp_path)
    done = run(pairs, tmp_path / "often", **{"train.epochs": 7, "train.keep_last": 99})
    assert done.run is not None
    assert done.run.checkpoint_steps() == (*range(2, 21, 2), 21)
    done = run(pairs, tmp_path / "once", **{"train.checkpoint_every": 10**9})
    assert done.run is not None
    assert done.run.checkpoint_steps() == (3,)
    assert done.plan["tokens_to_train"] == done.summary["tokens"]


def test_the_plan_counts_a_short_last_batch_for_what_it_holds(tmp_path: Path):
    done = run(write_pairs(tmp_path, 15), tmp_path / "out", **{"train.epochs": 1.7})
    assert done.plan["tokens_to_train"] == done.summary["tokens"]


def test_after_an_early_stop_the_model_is_the_best_one(tmp_path: Path):
    settings = {"train.epochs": 4, "train.lr": 0.3, "evaluate.every": 1, "evaluate.patience": 2, "train.warmup": 0}
    said: list[str] = []
    done = run(write_pairs(tmp_path), tmp_path / "out", announce=said.append, **settings)
    best = done.summary["best_step"]
    assert done.summary["weights_of_step"] == best < done.summary["steps"]
    assert any(f"the model has the weights of step {best}" in text for text in said)
    weights, kept = final_weights(tmp_path / "out"), checkpoint_of(tmp_path / "out", best)["weights"]
    assert all(torch.equal(tensor, weights[name]) for name, tensor in kept.items() if name in weights)
    losses = [line["eval/loss"] for line in evaluations_of(tmp_path / "out")]
    assert done.summary["eval_after"]["loss"] == pytest.approx(min(losses), rel=1e-6)
    with pytest.raises(ConfigError, match=r"evaluate\.patience"):
        run(write_pairs(tmp_path), tmp_path / "out", resume=True, **settings | {"evaluate.patience": 9})


def test_a_stop_in_the_last_step_between_two_reports_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pairs, settings = write_pairs(tmp_path), {"train.log_every": 2}
    whole = run(pairs, tmp_path / "whole", **settings)
    plain = Loop._step

    def step_and_stop(loop: Loop) -> Any:
        sums = plain(loop)
        loop._stop_signal = 15 if loop.state.step == 3 else None
        return sums

    monkeypatch.setattr(Loop, "_step", step_and_stop)
    assert run(pairs, tmp_path / "parts", **settings).was_stopped
    again = run(pairs, tmp_path / "parts", resume=True, **settings)
    assert_same_bits(metrics_of(again), metrics_of(whole))


def test_the_start_is_loaded_again_only_once_and_kept_only_when_asked_later(tmp_path: Path):
    policy = load_policy(BASE)
    config = build_config({"model": str(BASE), "data": "d"})
    from accord.policy.load import hash_weights

    origin = Origin(policy, config, hash_weights(policy), keep=False)
    origin.is_untouched = lambda: False
    with origin() as first, origin() as second:
        assert first is second
        assert first is not policy
    pairs = write_pairs(tmp_path)
    weights = 4 * sum(parameter.numel() for parameter in policy.parameters())
    for settings, expected in (({}, 0), (KL, weights), ({"objective": "kto"}, weights)):
        assert run(pairs, tmp_path / "out", dry_run=True, **settings).plan["bytes_reference"] == expected


@pytest.mark.parametrize("where", ["checking the layout", "timing a pass"])
def test_memory_that_runs_out_before_training_is_said(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    small = load_policy(BASE)
    plain = Policy.settle_layout

    def refuse(*_: Any) -> None:
        raise torch.OutOfMemoryError("nothing fits")

    def settle(policy: Policy, groups: Any) -> None:
        plain(policy, groups)
        small.causal_lm.base_model.register_forward_pre_hook(refuse)

    if where == "timing a pass":
        monkeypatch.setattr(Policy, "settle_layout", settle)
    else:
        small.causal_lm.base_model.register_forward_pre_hook(refuse)
    with pytest.raises(TrainingError, match=rf"out of memory while {where}.*model\.lora_rank"):
        run(judged_groups(), tmp_path / "out", policy=small)


# -- adapters and precision --------------------------------------------------------------------------------------------


def test_adapters_on_a_bfloat16_base_are_float32_and_full_fine_tuning_in_it_is_refused(tmp_path: Path):
    lora = {"model.precision": "bfloat16", "model.lora_rank": 2}
    done = run(write_pairs(tmp_path), tmp_path / "out", **lora)
    assert {p.dtype for p in done.policy.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in done.policy.parameters() if not p.requires_grad} == {torch.bfloat16}
    with pytest.raises(ConfigError, match=r"rounded away.*model\.precision=mixed.*model\.lora_rank"):
        run(write_pairs(tmp_path), tmp_path / "full", **{"model.precision": "bfloat16"})
    with pytest.raises(ConfigError, match=r"torch\.bfloat16.*mixed"):
        run(judged_groups(), tmp_path / "full", policy=load_policy(BASE, precision="bfloat16"))
    said: list[str] = []
    run(write_pairs(tmp_path), tmp_path / "on", model=str(tmp_path / "out" / "model"), announce=said.append)
    assert any("compared with the base model under them" in text for text in said)


@pytest.mark.parametrize(
    ("objective", "rank", "lr"), [("dpo", 0, 1e-6), ("sft", 0, 2e-5), ("kto", 2, 1e-5), ("sft", 2, 1e-4)]
)
def test_the_rate_that_is_chosen_is_written_down(objective: str, rank: int, lr: float, tmp_path: Path):
    settings = {"objective": objective, "model.lora_rank": rank, "train.lr": None, "train.max_steps": 1}
    done = run(write_pairs(tmp_path), tmp_path / "out", **settings)
    assert done.run is not None
    assert done.plan["learning_rate"] == done.run.read_config()["train"]["lr"] == lr


def test_settings_without_effect_on_what_is_in_memory_are_refused(tmp_path: Path):
    policy = load_policy(save_model(tmp_path / "tiny", "llama"))
    for settings, says in (
        ({"policy": policy, "model.lora_rank": 4}, r"model\.lora_rank.*load_policy"),
        ({"policy": policy, "model.precision": "mixed"}, r"model\.precision"),
        ({"data.limit": 3}, r"data\.limit"),
        ({"data.eval_path": "e", "data.eval_fraction": 0.05}, r"data\.eval_path"),
    ):
        with pytest.raises(ConfigError, match=says):
            run(judged_groups(4), tmp_path / "out", **settings)
    with pytest.raises(ConfigError, match="eval_groups without groups"):
        run(write_pairs(tmp_path), tmp_path / "out", eval_groups=judged_groups(2))
