"""Metrics are sums and counts: how a batch is split, padded or ordered does not change them."""

from __future__ import annotations

import math

import pytest
import torch
from models import build_policy, ragged_groups

from accord.data.tokens import TokenGroup, TokenResponse
from accord.groups import ScoredGroups
from accord.objectives import OBJECTIVES
from accord.policy.judgements import to_scored_groups
from accord.policy.policy import Scores
from accord.records import Comparison, Judgement, Label, Ranking
from accord.run.metrics import add_up, example_rows, means, measure


def judged() -> list[TokenGroup]:
    """Ragged groups with pairs, a ranking, labels, and one without any judgement."""
    judgements: list[tuple[Judgement, ...]] = [
        (Comparison(better=0, worse=1),),
        (Ranking(order=((2,), (0,), (1,))),),
        (Label(response=0, is_desirable=True),),
        (Comparison(better=1, worse=0),),
        (),
    ]
    return [
        TokenGroup(prompt_ids=group.prompt_ids, responses=group.responses, judgements=judgement, index=group.index)
        for group, judgement in zip(ragged_groups((2, 3, 1, 2, 4)), judgements, strict=True)
    ]


def measured(parts: list[list[TokenGroup]], name: str = "dpo") -> dict[str, float]:
    policy, reference = build_policy("llama"), build_policy("llama", seed=1)
    sums = []
    for part in parts:
        with torch.no_grad():
            scores = policy.score(part, statistics=("entropy", "top1"))
            scored = to_scored_groups(part, scores, reference.score(part).logps_PK, torch.zeros(()).double())
        sums.append(measure(scored, OBJECTIVES[name].fn(scored), scores))
    return means(add_up(sums))


@pytest.mark.parametrize("name", ["dpo", "kto", "sft"])
def test_splitting_and_order_change_nothing(name: str) -> None:
    groups = judged()
    whole = measured([groups], name)
    for parts in ([[g] for g in groups], [groups[3:], groups[:3]], [groups[::-1]], [groups[:1], groups[1:]]):
        found = measured(parts, name)
        assert found.keys() == whole.keys()
        assert found == pytest.approx(whole, rel=1e-6)


def test_metrics_by_hand() -> None:
    """Two pairs and a label: log-ratios u = (1, −1), (0, 0.5 preferred), β = 0.1."""
    scored = ScoredGroups(
        policy_logps_PK=torch.tensor([[-4.0, -6.0], [-5.0, -2.5]]),
        reference_logps_PK=torch.tensor([[-5.0, -5.0], [-5.0, -3.0]]),
        num_tokens_PK=torch.tensor([[2, 3], [4, 1]]),
        is_valid_PK=torch.ones(2, 2, dtype=torch.bool),
        preferred_PKK=torch.tensor([[[False, True], [False, False]], [[False, False], [True, False]]]),
        desirable_PK=torch.tensor([[True, False], [False, False]]),
        is_labelled_PK=torch.tensor([[True, False], [False, True]]),
    )
    scores = Scores(
        logps_PK=scored.policy_logps_PK,
        num_tokens_PK=scored.num_tokens_PK,
        is_valid_PK=scored.is_valid_PK,
        token_logps_N=torch.zeros(3),
        sequence_N=torch.zeros(3).long(),
        is_trained_N=torch.tensor([True, False, True]),
        statistics={"entropy": torch.tensor([1.0, 100.0, 2.0])},
    )
    found = means(measure(scored, OBJECTIVES["dpo"].fn(scored, beta=0.1), scores))
    expected = {
        "loss": (math.log1p(math.exp(-0.2)) + math.log1p(math.exp(-0.05))) / 2,
        "rewards/chosen": (0.1 + 0.05) / 2,
        "rewards/rejected": (-0.1 + 0.0) / 2,
        "rewards/margins": (0.2 + 0.05) / 2,
        "rewards/accuracies": 1.0,
        "ranking_accuracy": 1.0,
        "logps/chosen": (-4.0 - 2.5) / 2,
        "logps/rejected": (-6.0 - 5.0) / 2,
        "length/chosen": (2 + 1) / 2,
        "length/rejected": (3 + 4) / 2,
        "length/response": 10 / 4,
        "logps/per_token": -17.5 / 10,
        "log_ratio/response": (1 - 1 + 0 + 0.5) / 4,
        "rewards/desirable": 0.1,
        "rewards/undesirable": 0.05,
        "length/desirable": 2.0,
        "length/undesirable": 1.0,
        "statistics/entropy": 1.5,  # untrained tokens do not count
    }
    assert found == pytest.approx(expected, rel=1e-6)


def test_a_tie_is_half_right() -> None:
    scored = ScoredGroups(
        policy_logps_PK=torch.tensor([[-4.0, -4.0]]),
        reference_logps_PK=torch.tensor([[-4.0, -4.0]]),
        num_tokens_PK=torch.tensor([[2, 2]]),
        is_valid_PK=torch.ones(1, 2, dtype=torch.bool),
        preferred_PKK=torch.tensor([[[False, True], [False, False]]]),
    )
    scores = build_policy("llama").score([TokenGroup(prompt_ids=(2,), responses=(TokenResponse(ids=(3,)),))])
    found = means(measure(scored, OBJECTIVES["dpo"].fn(scored), scores))
    assert found["rewards/accuracies"] == found["ranking_accuracy"] == 0.5
    assert found["loss"] == pytest.approx(math.log(2))


def test_example_rows_hold_no_padding() -> None:
    groups, policy = judged(), build_policy("llama")
    with torch.no_grad():
        scores = policy.score(groups)
    scored = to_scored_groups(groups, scores, scores.logps_PK - 0.5)
    rows = example_rows(groups, scored, OBJECTIVES["dpo"].fn(scored, beta=0.2), step=7)
    assert [len(row["policy_logps"]) for row in rows] == [2, 3, 1, 2, 4]
    assert [len(row["margins"]) for row in rows] == [1, 3, 0, 1, 0]
    assert [row["is_counted"] for row in rows] == [True, True, False, True, False]
    assert rows[0]["loss"] == pytest.approx(math.log(2))  # equal log-ratios
    assert rows[4]["loss"] == 0.0
    assert rows[1]["implicit_rewards"] == pytest.approx([0.1] * 3)
    assert rows[1]["is_flipped"] == [margin < 0 for margin in rows[1]["margins"]]
    assert {row["step"] for row in rows} == {7}
