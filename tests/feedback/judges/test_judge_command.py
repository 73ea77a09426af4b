"""`accord judge` over a real server and a real model folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from model_server import ModelServer

from accord.cli import main
from accord.data import load_groups, write_groups
from accord.records import Comparison, Group, Response

GROUPS = [
    Group(prompt="w4 w5", responses=(Response(content="w6 w7"), Response(content="w8"), Response(content="w9 w9"))),
    Group(prompt="w10", responses=(Response(content="w11"), Response(content="w12 w13"))),
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_groups(tmp_path / "groups.jsonl", GROUPS)
    return tmp_path / "groups.jsonl"


def asked(data: Path, server: ModelServer, *more: str) -> list[str]:
    out = str(data.with_name("judged.jsonl"))
    return ["judge", "--data", str(data), "--out", out, "--endpoint", server.url, "--model-name", "tiny", *more]


def test_judging_goes_on_where_it_stopped(data: Path, judge_server: ModelServer, capsys: pytest.CaptureFixture[str]):
    prices = ("--prompt-price", "2", "--completion-price", "10")
    assert main(asked(data, judge_server, "--mode", "logprobs", "--json", *prices)) == 0
    first = json.loads(capsys.readouterr().out)
    assert (first["judgements"], first["unknown"], first["groups"]) == (4, 0, 2)
    usage = first["usage"]
    assert (usage["num_requests"], usage["completion_tokens"]) == (8, 8)  # four pairs, both orders, one token each
    assert usage["cost"] == pytest.approx((usage["prompt_tokens"] * 2 + 8 * 10) / 1e6)
    judged = load_groups(first["out"]).groups
    assert [len(group.judgements) for group in judged] == [3, 1]
    assert {c.judge for group in judged for c in group.judgements} == {first["judge"]}
    before = len(judge_server.requests)
    assert main(asked(data, judge_server, "--mode", "logprobs", "--json", *prices)) == 0
    again = json.loads(capsys.readouterr().out)
    assert len(judge_server.requests) == before
    assert (again["usage"]["num_cached"], again["usage"]["cost"]) == (8, 0)
    assert load_groups(again["out"]).groups == judged


def test_a_local_model_judges_as_the_endpoint_that_has_it(
    data: Path, judge_server: ModelServer, judge_folder: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(asked(data, judge_server, "--mode", "logprobs")) == 0
    assert "4 judgements of 2 groups, 0 unknown" in capsys.readouterr().out
    out = data.with_name("local.jsonl")
    command = ["judge", "--data", str(data), "--out", str(out), "--model", str(judge_folder), "--mode", "logprobs"]
    assert main(command) == 0
    remote, local = (load_groups(path).groups for path in (data.with_name("judged.jsonl"), out))
    for ours, theirs in zip(local, remote, strict=True):
        for a, b in zip(ours.judgements, theirs.judgements, strict=True):
            assert isinstance(a, Comparison)
            assert isinstance(b, Comparison)
            assert (a.better, a.strength) == (b.better, pytest.approx(b.strength, abs=1e-4))


def test_what_stays_unknown_is_counted_with_a_reason(
    data: Path, judge_server: ModelServer, capsys: pytest.CaptureFixture[str]
):
    assert main(asked(data, judge_server, "--kind", "pointwise", "--max-tokens", "3")) == 0
    out = capsys.readouterr().out
    assert "0 judgements of 2 groups, 5 unknown" in out
    assert "no verdict in the reply (cut at the token limit)" in out
    assert "cost unknown" in out
    assert load_groups(data.with_name("judged.jsonl")).groups == load_groups(data).groups


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--model", "x"], "both or neither"),
        (["--kind", "pointwise", "--one-order"], "belong to pairwise"),
        (["--prompt", "nothing.v1"], "nothing.v1"),
        (["--model-name", "other"], "does not exist"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    more: list[str], words: str, data: Path, judge_server: ModelServer, capsys: pytest.CaptureFixture[str]
):
    assert main(asked(data, judge_server, *more)) == 1
    assert words in capsys.readouterr().err
    assert not data.with_name("judged.jsonl").exists()
