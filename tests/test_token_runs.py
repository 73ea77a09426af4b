"""Real runs of the objectives that read single tokens: what they start from, resuming, adapters, both layouts."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from models import save_model
from test_resume import assert_same_run, stop_at
from toy_runs import BASE, judged_groups, losses_of, metrics_of, run

from accord.data import encode_groups, write_groups
from accord.errors import ConfigError, DataError, PolicyError
from accord.policy.load import load_policy
from accord.records import Group, Response

LN_2 = math.log(2)
CRITICAL = {"critical.positive": str(BASE), "critical.negative": str(BASE)}
ROWS: dict[str, dict[str, Any]] = {
    "wpo": {},
    "ld_dpo": {},
    "tdpo1": {},
    "tdpo2": {},
    "dpo_critical": CRITICAL,
    "salt": {},
    "token_weighted_dpo": {},
}
TWO_STEPS = {"train.max_steps": 2, "data.eval_fraction": 0.0}


def weighted_groups(n: int = 8) -> list[Group]:
    """Judged groups as token ids, each token with a weight: 2 at even places, 1/2 at odd ones."""
    tokenizer = load_policy(BASE).tokenizer
    groups = []
    for encoded in encode_groups(judged_groups(n), tokenizer).groups:
        responses = tuple(
            Response(token_ids=r.ids, token_weights=tuple(0.5 if t % 2 else 2.0 for t in range(len(r.ids))))
            for r in encoded.responses
        )
        assert encoded.source is not None
        groups.append(replace(encoded.source, responses=responses))
    return groups


def data_for(name: str, folder: Path) -> Path:
    path = folder / f"{name}.jsonl"
    write_groups(path, weighted_groups() if name == "token_weighted_dpo" else judged_groups(8))
    return path


@pytest.mark.parametrize("name", ROWS)
def test_every_row_trains_from_the_loss_it_promises_on_both_layouts(name: str, tmp_path: Path):
    losses = {}
    for layout in ("tree", "plain"):
        policy = load_policy(BASE)
        if layout == "plain":
            policy.fall_back_to_plain("this test asks for it")
        result = run(
            data_for(name, tmp_path), tmp_path / layout, policy=policy, objective=name, reference__cache=None,
            **TWO_STEPS, **ROWS[name],
        )  # fmt: skip
        assert result.summary["layout"] == layout
        losses[layout] = losses_of(tmp_path / layout)
    assert losses["plain"] == pytest.approx(losses["tree"], rel=1e-4)
    first, second = losses["tree"]
    assert second != pytest.approx(first, rel=1e-4)
    if name not in ("wpo", "salt"):
        assert first == pytest.approx(LN_2, abs=1e-5)
    elif name == "wpo":
        assert 0 < first < LN_2  # weights are held at 1


@pytest.mark.parametrize("name", ["tdpo2", "ld_dpo"])
def test_with_adapters_the_base_under_them_is_the_reference(name: str, tmp_path: Path):
    run(data_for(name, tmp_path), tmp_path / "out", objective=name, model__lora_rank=2, **TWO_STEPS)
    first, second = losses_of(tmp_path / "out")
    assert first == pytest.approx(LN_2, abs=1e-5)
    assert second < first - 1e-4


@pytest.mark.parametrize("name", ["tdpo2", "token_weighted_dpo", "dpo_critical"])
def test_a_stopped_run_goes_on_as_if_nothing_had_been(name: str, tmp_path: Path):
    """The KL is measured from the start that a resumed run no longer has in its policy."""
    data = data_for(name, tmp_path)
    settings: dict[str, Any] = {"objective": name, "train.epochs": 2, "evaluate.every": 2} | ROWS[name]
    run(data, tmp_path / "whole", **settings)
    first = run(data, tmp_path / "parts", progress=stop_at(2), **settings)
    assert first.was_stopped
    run(data, tmp_path / "parts", resume=True, **settings)
    assert_same_run(tmp_path / "whole", tmp_path / "parts", 4)


def test_numbers_per_token_are_kept_beside_the_sums_of_other_objectives(tmp_path: Path):
    data = data_for("ld_dpo", tmp_path)
    for objective in ("dpo", "ld_dpo"):
        run(data, tmp_path / objective, objective=objective, **TWO_STEPS)
    files = sorted(path.name for path in (tmp_path / "cache").iterdir())
    assert [name.partition(".")[2] for name in files] == ["npz", "tokens.npz"]
    assert len({name.partition(".")[0] for name in files}) == 1
    said: list[str] = []
    run(data, tmp_path / "again", objective="ld_dpo", announce=said.append, **TWO_STEPS)
    assert any("0 groups scored, 8 reused" in text for text in said)


def test_alpha_one_and_unit_weights_are_dpo(tmp_path: Path):
    groups = weighted_groups()
    plain = [replace(g, responses=tuple(replace(r, token_weights=None) for r in g.responses)) for g in groups]
    ones = [
        replace(g, responses=tuple(replace(r, token_weights=(1.0,) * len(r.token_ids or ())) for r in g.responses))
        for g in groups
    ]
    run(plain, tmp_path / "dpo", **TWO_STEPS)
    run(plain, tmp_path / "ld_dpo", objective="ld_dpo", objective__alpha=1.0, **TWO_STEPS)
    run(ones, tmp_path / "weighted", objective="token_weighted_dpo", **TWO_STEPS)
    for name in ("ld_dpo", "weighted"):
        assert losses_of(tmp_path / name) == pytest.approx(losses_of(tmp_path / "dpo"), rel=1e-5)


def test_a_reference_that_follows_the_policy_is_read_where_it_is(tmp_path: Path):
    """Copied after every step, the policy always starts its step at its reference: the loss stays ln 2."""
    for name in ("tdpo1", "ld_dpo"):
        run(
            data_for(name, tmp_path), tmp_path / name, objective=name, reference__update="hard",
            reference__update_every=1, **TWO_STEPS,
        )  # fmt: skip
        assert losses_of(tmp_path / name) == pytest.approx([LN_2, LN_2], abs=1e-4)


def test_the_weights_of_wpo_are_reported(tmp_path: Path):
    result = run(data_for("wpo", tmp_path), tmp_path / "out", objective="wpo", **TWO_STEPS)
    assert all(line["statistics/log_sum_sq"] < 0 for line in metrics_of(result) if "loss" in line)


@pytest.mark.parametrize(
    ("settings", "error", "says"),
    [
        ({"objective": "dpo_critical"}, ConfigError, r"critical\.positive and critical\.negative are missing"),
        ({"objective": "dpo_critical", "critical.positive": "x"}, ConfigError, r"critical\.negative is missing"),
        ({"objective": "dpo", "critical.contrast": 0.5}, ConfigError, r"critical\.contrast, but dpo"),
        ({"objective": "token_weighted_dpo"}, DataError, "needs token_weights"),
        ({"objective": "dpo_critical", **CRITICAL, "critical.negative": "no/such/model"}, PolicyError, "not exist"),
    ],
)
def test_what_is_missing_or_idle_is_said(
    settings: dict[str, Any], error: type[Exception], says: str, tmp_path: Path
):  # fmt: skip
    with pytest.raises(error, match=says):
        run(data_for("dpo", tmp_path), tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_a_further_model_of_another_vocabulary_is_refused(tmp_path: Path):
    other = str(save_model(tmp_path / "other"))
    with pytest.raises(PolicyError, match=r"critical\.positive=.* with a vocabulary of 61"):
        run(
            data_for("dpo", tmp_path), tmp_path / "out", objective="dpo_critical",
            **(CRITICAL | {"critical.positive": other}),
        )  # fmt: skip


@pytest.mark.parametrize(
    ("response", "says"),
    [
        ('{"token_ids": [1, 2], "token_weights": [1.0]}', "1 token_weights for 2 token_ids"),
        ('{"content": "a b", "token_weights": [1.0, 1.0]}', "2 token_weights and no token_ids"),
        ('{"token_ids": [1], "token_weights": [-1.0]}', r"token weight -1\.0"),
        ('{"token_ids": [1], "token_weights": [NaN]}', "token weight nan"),
    ],
)
def test_weights_that_fit_no_token_are_refused_with_their_row(response: str, says: str, tmp_path: Path):
    path = tmp_path / "bad.jsonl"
    path.write_text(f'{{"accord": 1, "prompt": "x", "responses": [{response}]}}\n')
    with pytest.raises(DataError, match=rf"bad\.jsonl:1.*{says}"):
        run(path, tmp_path / "out", objective="token_weighted_dpo")


def test_weights_are_cut_with_their_response():
    tokenizer = load_policy(BASE).tokenizer
    response = Response(token_ids=(5, 6, 7, 8), token_weights=(0.1, 0.2, 0.3, 0.4))
    group = Group(prompt="", responses=(response,))
    (whole,) = encode_groups([group], tokenizer).groups
    (cut,) = encode_groups([group], tokenizer, max_tokens=len(whole.prompt_ids) + 3).groups
    assert whole.responses[0].weights == (0.1, 0.2, 0.3, 0.4)
    assert (cut.responses[0].ids, cut.responses[0].weights) == ((5, 6, 7), (0.1, 0.2, 0.3))
