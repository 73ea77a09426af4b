"""Reward models trained for real: what a run reports, saves, refuses and resumes."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from test_resume import assert_same_run, stop_at
from toy_runs import (
    BASE,
    assert_same_bits,
    evaluations_of,
    final_weights,
    judged_groups,
    labelled_groups,
    largest_gap,
    losses_of,
    metrics_of,
    run,
)

from accord.data import encode_groups, write_groups
from accord.errors import ConfigError, DataError, PolicyError
from accord.lab.base_model import base_model_folder
from accord.policy.load import load_policy
from accord.policy.reward import load_reward
from accord.records import Comparison, Group, Label, Ranking, Rating, Response
from accord.run.held_out.predictions import expected_calibration_error
from accord.store import RunFolder

LONGER: dict[str, Any] = {"train.epochs": 4, "train.batch_size": 8, "train.lr": 1e-3}


def stepped_groups(n: int = 12) -> list[Group]:
    """Rows in the stepwise format's own shape: the second step of every other solution is wrong."""
    groups = []
    for row in range(n):
        steps = [f"one and {row} is {row + 1}", "so it is even" if row % 2 else "so it is odd", "done"]
        labels = tuple(
            Label(response=0, step=number, is_desirable=number != 1 or row % 2 == 0) for number in range(len(steps))
        )
        groups.append(
            Group(
                prompt=f"count {row}", responses=(Response(content="\n".join(steps)),), judgements=labels,
                origin=f"steps:{row}", extra={"steps": steps, "step_separator": "\n"},
            )
        )  # fmt: skip
    return groups


def ranked_groups(n: int = 12) -> list[Group]:
    """Three responses each, in an order without ties."""
    return [
        replace(group, judgements=(Ranking(order=((0,), (1,), (2,))),)) for group in judged_groups(n, num_responses=3)
    ]


def strong_groups(n: int = 12) -> list[Group]:
    """Pairs with how much better."""
    return [
        replace(group, judgements=(Comparison(better=row % 2, worse=1 - row % 2, strength=float(row % 3)),))
        for row, group in enumerate(judged_groups(n))
    ]


DATA = {
    "bradley_terry": judged_groups,
    "k_wise": ranked_groups,
    "rm_plackett_luce": ranked_groups,
    "margin": strong_groups,
    "centred": judged_groups,
    "pairwise_preference": judged_groups,
    "orm": labelled_groups,
    "prm": stepped_groups,
}


@pytest.mark.parametrize("name", DATA)
def test_every_row_trains_evaluates_and_comes_back(name: str, tmp_path: Path):
    done = run(DATA[name](12), tmp_path / "run", objective=name)
    before, after = done.summary["eval_before"], done.summary["eval_after"]
    first = losses_of(tmp_path / "run")[0]
    if name not in ("margin", "rm_plackett_luce"):
        assert before["loss"] == pytest.approx(math.log(2), abs=1e-6)
        assert first == pytest.approx(math.log(2), abs=1e-6)
    if name == "rm_plackett_luce":
        assert first == pytest.approx(math.log(6), abs=1e-6)
    assert done.summary["samples"] == []
    assert not [
        key for key in after if key.startswith(("logps/", "kl", "ranking_accuracy", "statistics/", "log_ratio"))
    ]
    accuracy = {
        "orm": "labels/accuracies", "prm": "steps/accuracies", "pairwise_preference": "pairs/accuracies"
    }.get(name, "rewards/accuracies")  # fmt: skip
    assert before[accuracy] == 0.5
    assert 0 <= after[f"{accuracy}_low"] <= after[accuracy] <= after[f"{accuracy}_high"] <= 1
    assert before["calibration/brier"] == pytest.approx(0.25)
    assert before["calibration/ece"] == pytest.approx(0.0, abs=1e-12)
    assert after["calibration/brier"] != before["calibration/brier"]
    assert done.run is not None
    again = load_reward(done.run.path / "model", device="cpu")
    groups = encode_groups(DATA[name](3), again.tokenizer).groups
    with torch.no_grad():
        ours, theirs = done.policy.score(groups), again.score(groups)
    assert torch.equal(ours.graded_PK, theirs.graded_PK)
    assert ours.graded_PK.any()


def test_a_reward_model_learns_what_annotators_prefer(tmp_path: Path):
    groups = judged_groups(60, num_responses=4)
    run(groups, tmp_path / "run", objective="bradley_terry", **LONGER)
    first, last = evaluations_of(tmp_path / "run")[0], evaluations_of(tmp_path / "run")[-1]
    assert last["eval/rewards/accuracies"] > 0.6
    assert last["eval/loss"] < first["eval/loss"] - 0.05
    assert last["eval/rewards/margins_low"] > 0


def test_transformers_loads_the_model_and_gives_the_same_scores(tmp_path: Path):
    done = run(judged_groups(8), tmp_path / "run", objective="bradley_terry")
    assert done.run is not None
    folder = done.run.path / "model"
    groups = encode_groups(judged_groups(4, seed=9), done.policy.tokenizer).groups
    with torch.no_grad():
        scores = load_reward(folder, device="cpu").score(groups)
    model = hf.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1).eval()
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    rows = [group.prompt_ids + response.ids for group in groups for response in group.responses]
    batch = tokenizer.pad({"input_ids": [list(row) for row in rows]}, return_tensors="pt") if _pads(model) else None
    with torch.no_grad():
        theirs = (
            model(**batch).logits.flatten()
            if batch is not None
            else torch.cat([model(torch.tensor([row])).logits.flatten() for row in rows])
        )
    torch.testing.assert_close(scores.score_PK[scores.is_valid_PK], theirs, rtol=0, atol=1e-5)
    assert theirs.std() > 1e-3


def _pads(model: hf.PreTrainedModel) -> bool:
    return model.config.pad_token_id is not None


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_a_stopped_run_goes_on_as_if_nothing_had_been(lora_rank: int, tmp_path: Path):
    settings: dict[str, Any] = {"train.epochs": 2, "evaluate.every": 2, "objective": "bradley_terry"}
    settings |= {"model.lora_rank": lora_rank}
    data = tmp_path / "pairs.jsonl"
    write_groups(data, judged_groups(16))
    whole = run(data, tmp_path / "whole", **settings)
    first = run(data, tmp_path / "parts", progress=stop_at(3), **settings)
    assert first.was_stopped
    second = run(data, tmp_path / "parts", resume=True, **settings)
    assert_same_run(tmp_path / "whole", tmp_path / "parts", 6)
    assert_same_bits(metrics_of(whole), metrics_of(second))


def test_adapters_are_trained_and_come_back(tmp_path: Path):
    done = run(judged_groups(16), tmp_path / "run", objective="bradley_terry", **{"model.lora_rank": 2})
    assert done.run is not None
    again = load_reward(done.run.path / "model", device="cpu")
    groups = encode_groups(judged_groups(3), again.tokenizer).groups
    with torch.no_grad():
        assert torch.equal(done.policy.score(groups).score_PK, again.score(groups).score_PK)
        assert again.score(groups).score_PK.any()


@pytest.mark.parametrize("name", ["bradley_terry", "rm_plackett_luce", "pairwise_preference", "prm"])
def test_neither_the_token_budget_nor_the_layout_matters(name: str, tmp_path: Path):
    """One pass per batch, one pass per group, one padded row per sequence: the same losses, metrics and weights."""
    settings: dict[str, Any] = {"objective": name, "train.lr": 1e-3}
    data = DATA[name](12)
    run(data, tmp_path / "large", **settings)
    run(data, tmp_path / "small", **settings, **{"train.max_batch_tokens": 60})
    plain = load_reward(BASE, kind="pair" if name == "pairwise_preference" else "response", device="cpu")
    plain.fall_back_to_plain("a test asks for it")
    run(data, tmp_path / "plain", policy=plain, **settings)
    for other in ("small", "plain"):
        assert losses_of(tmp_path / other) == pytest.approx(losses_of(tmp_path / "large"), rel=2e-5)
        assert largest_gap(final_weights(tmp_path / "large"), final_weights(tmp_path / other)) < 2e-4
        for one, two in zip(evaluations_of(tmp_path / "large"), evaluations_of(tmp_path / other), strict=True):
            assert two == pytest.approx(one, rel=1e-4, abs=1e-4)


def test_a_reward_model_is_no_language_model(tmp_path: Path):
    """Also where the embeddings are tied, so that nothing is missing from the folder."""
    load_reward(BASE, device="cpu").save(tmp_path)
    with pytest.raises(PolicyError, match="holds a reward model"):
        load_policy(tmp_path, device="cpu")


def test_training_goes_on_from_a_trained_head(tmp_path: Path):
    done = run(judged_groups(8), tmp_path / "one", objective="bradley_terry")
    assert done.run is not None
    more = run(judged_groups(8), tmp_path / "two", objective="orm", **{"model": str(done.run.path / "model")})
    assert losses_of(tmp_path / "two")[0] != pytest.approx(math.log(2), abs=1e-6)
    assert more.summary["steps"] == 2


def test_rows_say_what_was_predicted(tmp_path: Path):
    done = run(judged_groups(16), tmp_path / "run", objective="bradley_terry")
    assert done.run is not None
    row = RunFolder.open(done.run.path).read_rows("eval").to_pylist()[-1]
    assert row["policy_logps"] is None
    assert row["predicted_logits"] == pytest.approx(row["margins"], abs=1e-6)
    assert row["was_judged_so"] == [True] * len(row["margins"])


@pytest.mark.parametrize(
    "setting", [{"evaluate.num_samples": 4}, {"train.statistics": True}, {"evaluate.gradient_pairs": 2},
                {"reference": str(BASE)}, {"evaluate.num_samples": 4, "evaluate.sample_tokens": 8}],
)  # fmt: skip
def test_settings_that_ask_a_language_model_are_refused(setting: dict[str, Any], tmp_path: Path):
    with pytest.raises(ConfigError, match=r"trains a reward model, which writes no text and has no reference"):
        run(judged_groups(4), tmp_path / "run", objective="bradley_terry", **setting)


def test_without_a_word_about_samples_none_are_drawn(tmp_path: Path):
    from accord.alignment import align

    done = align(model=str(base_model_folder()), groups=judged_groups(8), out=str(tmp_path / "run"),
                 objective="bradley_terry", **{"model.device": "cpu", "tracking.report": False})  # fmt: skip
    assert done.summary["samples"] == []
    assert RunFolder.open(tmp_path / "run").read_config()["evaluate"]["num_samples"] == 0
    assert RunFolder.open(tmp_path / "run").read_config()["train"]["lr"] == 1e-5


def test_a_policy_in_memory_must_be_of_the_right_kind(tmp_path: Path):
    policy, reward = load_policy(BASE, device="cpu"), load_reward(BASE, device="cpu")
    with pytest.raises(PolicyError, match="got a language model to train with orm — expected a reward model"):
        run(labelled_groups(4), tmp_path / "a", objective="orm", policy=policy)
    with pytest.raises(PolicyError, match="scores each response to train with dpo — expected a language model"):
        run(judged_groups(4), tmp_path / "b", objective="dpo", policy=reward)
    with pytest.raises(PolicyError, match="expected a reward model that scores each pair"):
        run(judged_groups(4), tmp_path / "c", objective="pairwise_preference", policy=reward)


def test_missing_judgements_are_named(tmp_path: Path):
    with pytest.raises(DataError, match=r"prm needs step_labels; none of the 4 groups gives them .*accord methods"):
        run(judged_groups(4), tmp_path / "run", objective="prm")
    with pytest.raises(DataError, match="margin needs strengths"):
        run(judged_groups(4), tmp_path / "run", objective="margin")
    rated = [replace(group, judgements=(Rating(response=0, value=3.0), Rating(response=1, value=1.0)))
             for group in judged_groups(8)]  # fmt: skip
    assert run(rated, tmp_path / "rated", objective="margin").summary["steps"] == 2


def test_two_responses_that_do_not_fit_together_are_named(tmp_path: Path):
    window = json.loads((BASE / "config.json").read_text())["max_position_embeddings"]
    reward = load_reward(BASE, kind="pair", device="cpu")
    group = encode_groups(judged_groups(1), reward.tokenizer).groups[0]
    long = replace(group.responses[0], ids=group.responses[0].ids * (window // len(group.responses[0].ids)))
    with pytest.raises(DataError, match="a joint model reads both"):
        reward.sized(replace(group, responses=(group.responses[1], long)))
    fitted = reward.sized(group)
    first, second = (len(response.ids) for response in group.responses)
    between = len(reward.separator_ids)
    assert fitted.num_tokens == len(group.prompt_ids) + 2 * (first + second + between)


def test_calibration_error_by_hand():
    """Three of four right at confidence 0.8 and one of one at 0.6: 4/5 × |0.75 − 0.8| + 1/5 × |1 − 0.6|."""
    sure, unsure = math.log(0.8 / 0.2), math.log(0.6 / 0.4)
    made = [(sure, True), (-sure, False), (sure, True), (sure, False), (unsure, True)]
    assert expected_calibration_error(made) == pytest.approx(0.8 * 0.05 + 0.2 * 0.4, abs=1e-12)
