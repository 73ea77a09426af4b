"""Rewards whose weights move with the rollouts: their numbers, their gradients, and that a stop changes nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from models import build_policy

from accord.errors import ConfigError
from accord.feedback.composition import Composition, Part, build_reward
from accord.feedback.composition.dynamic import HypervolumeGuide
from accord.feedback.composition.moving import DynamicReward, make_dynamic
from accord.feedback.findings import Finding, Layers, Scores, StatefulReward, Weighed
from accord.objectives import OBJECTIVES
from accord.objectives.advantages import ADVANTAGES
from accord.records import FinishReason, Group, Rating, Response
from accord.rollouts.judging import judge, rewards_of, with_totals
from accord.rollouts.part_gradients import gradient_gram
from accord.rollouts.tokens import to_token_group
from accord.run.scored import Scoring

RULES: dict[str, dict[str, Any]] = {
    "hypervolume": {"method": "rloo", "reward.dynamic": "hypervolume"},
    "gradients": {"method": "grpo", "reward.dynamic": "gradients", "reward.dynamic_step": 100.0},
    "maxmin": {"method": "online_dpo", "reward.dynamic": "maxmin"},
}


class Reads:
    """Scores that the rows hold in a column."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, groups: Sequence[Group]) -> list[list[Finding]]:
        return [[Finding(score=score) for score in group.extra[self.name]] for group in groups]


def rollout(**columns: Scores) -> list[Group]:
    """Groups whose parts have these scores."""
    return [
        Group(
            prompt="p", responses=tuple(Response(content=f"{k}") for k in range(len(row))),
            extra={name: scores[place] for name, scores in columns.items()},
        )
        for place, row in enumerate(next(iter(columns.values())))
    ]  # fmt: skip


def moving(dynamic: Any, *, step: float = 0.1, combine: Any = "sum", **weights: float) -> DynamicReward:
    parts = tuple(Part(name=name, source=Reads(name), weight=weight) for name, weight in weights.items())
    return make_dynamic(Composition(parts=parts, combine=combine), dynamic, step=step, layers="middle")


def weighed(reward: StatefulReward, groups: list[Group], gram: list[list[float]] | None = None) -> Weighed:
    """Judge and weigh a rollout, as a run does."""

    def gradients(parts: Any, *, layers: Layers) -> list[list[float]]:
        assert gram is not None
        return gram

    return reward.weigh(judge(groups, reward), gradients)


# -- rules -------------------------------------------------------------------------------------------------------------


def test_hypervolume_multiplies_the_rollout_after_the_one_that_gained():
    """Objectives are weighted means. The first rollout is the reference point; from it to (1, 2) is a volume of 2."""
    reward = moving("hypervolume", a=1.0, b=0.5)
    first, second, third = (
        rollout(a=[[0.0, 2.0 * x]], b=[[0.0, 8.0 * x]]) for x in (0.0, 1.0, 0.5)
    )  # means (x, 4x), times (1, ½): (x, 2x)
    assert weighed(reward, first).numbers == {"reward_factor": 1.0}
    assert weighed(reward, second).scores == [[0.0, 6.0]]  # 2 + 8/2: the initial model gained nothing
    found = weighed(reward, third)
    factor = 0.5 + 1.5 * math.tanh(1 * 2)
    assert found.numbers == {"reward_factor": factor}
    assert found.scores == [[0.0, factor * 3.0]]
    assert weighed(reward, third).numbers == {"reward_factor": 0.5}  # (½, 1) is dominated


def test_a_front_keeps_no_point_that_another_dominates():
    guide = HypervolumeGuide()
    for point in ((0.0, 0.0), (1.0, 1.0), (3.0, 0.5), (2.0, 2.0)):
        guide.observe(point)
    assert guide.points == [(0.0, 0.0), (3.0, 0.5), (2.0, 2.0)]
    assert guide.observe((3.0, 3.0)) == 0.5 + 1.5 * math.tanh(9.0 - (4.0 + 0.5))


def test_maxmin_gives_weight_to_the_part_that_falls_behind():
    """Scores of ±1 and ±10 have one scale. In the second rollout a means +1, b −1: λ ∝ (e^−½, e^½) in the third."""
    reward = moving("maxmin", step=0.5, a=1.0, b=1.0)
    first = weighed(reward, rollout(a=[[-1.0, 1.0]], b=[[10.0, -10.0]]))
    assert first.numbers == {"weight/a": 0.5, "weight/b": 0.5}
    assert first.scores == [[0.0, 0.0]]  # 2 (½ z_a + ½ z_b), z = (∓1, ±1)
    second = weighed(reward, rollout(a=[[1.0, 1.0]], b=[[-10.0, -10.0]]))
    assert second.numbers == first.numbers  # the first rollout is where both start
    third = weighed(reward, rollout(a=[[1.0, 0.0]], b=[[0.0, 10.0]]))
    share = 1 / (1 + math.exp(1.0))
    assert third.numbers == pytest.approx({"weight/a": share, "weight/b": 1 - share})
    assert third.scores == [pytest.approx([2 * share, 2 * (1 - share)])]


@pytest.mark.parametrize("dynamic", ["maxmin", "gradients"])
def test_identical_parts_are_worth_the_same_under_any_weights(dynamic: str):
    one, other = moving(dynamic, a=3.0, b=1.0), moving(dynamic, a=1.0, b=3.0)
    for scale in (1.0, 2.0, 0.3):
        same: Scores = [[-scale, scale], [scale, scale / 2]]
        mine, theirs = (weighed(r, rollout(a=same, b=same), gram=[[4.0, 4.0], [4.0, 4.0]]) for r in (one, other))
        assert mine.numbers == pytest.approx({"weight/a": 0.75, "weight/b": 0.25})
        assert theirs.numbers == pytest.approx({"weight/a": 0.25, "weight/b": 0.75})
        for row, others in zip(mine.scores, theirs.scores, strict=True):
            assert row == pytest.approx(others)


@pytest.mark.parametrize(
    ("gram", "influence"),
    [
        ([[5.0, -5.0], [-5.0, 5.0]], (0.0, 0.0)),  # opposite gradients
        ([[1.0, 0.0], [0.0, 1.0]], (1.0, 1.0)),  # orthonormal ones
        ([[4.0, 0.0], [0.0, 1.0]], (4.0, 1.0)),  # the first is twice as long
    ],
)
def test_gradients_weigh_the_rollout_they_were_taken_in(gram: list[list[float]], influence: tuple[float, float]):
    reward = moving("gradients", step=0.2, a=1.0, b=1.0)
    found = weighed(reward, rollout(a=[[1.0, 0.0]], b=[[0.0, 1.0]]), gram=gram)
    raised = [math.exp(0.2 * value) for value in influence]
    a, b = (value / sum(raised) for value in raised)
    assert found.numbers == pytest.approx({"weight/a": a, "weight/b": b})
    assert found.scores == [pytest.approx([2 * a, 2 * b])]


def test_a_part_is_shown_to_the_gradients_alone_and_a_closed_gate_closes_each():
    parts = (
        *(Part(name=name, source=Reads(name), weight=2.0) for name in ("a", "b")),
        Part(name="gate", source=Reads("gate"), weight=0.0, is_gate=True),
    )
    reward = make_dynamic(Composition(parts=parts, closed=-1.0), "gradients", step=0.1, layers="all")
    groups = judge(rollout(a=[[3.0, 4.0, None]], b=[[5.0, 6.0, 7.0]], gate=[[1.0, 0.0, 1.0]]), reward)
    shown: dict[str, Scores] = {}

    def gradients(parts: Any, *, layers: Layers) -> list[list[float]]:
        assert layers == "all"
        shown.update(parts)
        return [[0.0, 0.0], [0.0, 0.0]]

    found = reward.weigh(groups, gradients)
    assert shown == {"a": [[3.0, -1.0, None]], "b": [[5.0, -1.0, 7.0]]}
    assert found.scores == [[16.0, -1.0, None]]  # 4 (½ 3 + ½ 5); an unknown part makes the whole unknown
    again = with_totals(groups, [[1.5, 2.5, None]])
    assert rewards_of(again[0]) == [1.5, 2.5, None]


@pytest.mark.parametrize("dynamic", RULES)
def test_a_rollout_without_a_known_part_moves_nothing(dynamic: str, caplog: pytest.LogCaptureFixture):
    reward = moving(dynamic, a=1.0, b=2.0)
    before = reward.state()
    found = weighed(reward, rollout(a=[[None, None]], b=[[1.0, 2.0]]), gram=[[0.0, 0.0], [0.0, 0.0]])
    assert found.scores == [[None, None]]
    if dynamic == "maxmin":  # the scale of the part that is known is kept
        assert reward.state().pop("scales") == {"b": [1.5, 0.5]}
        before = before | {"scales": reward.state()["scales"]}
    assert reward.state() == before
    assert ("no response has a known a" in caplog.text) == (dynamic != "gradients")


@pytest.mark.parametrize("dynamic", RULES)
def test_a_reward_comes_back_as_it_was(dynamic: str):
    groups = [rollout(a=[[0.0, x]], b=[[x * x, 1.0]]) for x in (1.0, 2.0, 3.0)]
    one, other = (moving(dynamic, a=1.0, b=2.0) for _ in range(2))
    gram = [[1.0, 0.5], [0.5, 3.0]]
    for part in groups[:2]:
        weighed(one, part, gram)
    other.take_up(one.state())
    assert weighed(other, groups[2], gram) == weighed(one, groups[2], gram)
    assert other.state() == one.state()


def test_judging_does_not_follow_the_weights():
    """Evaluations of one run must compare: a call weighs by what was given."""
    reward, groups = moving("maxmin", step=3.0, a=1.0, b=2.0), rollout(a=[[1.0, 2.0]], b=[[3.0, 5.0]])
    before = reward(groups)
    for scale in (1.0, 2.0, 3.0):
        weighed(reward, rollout(a=[[scale, 2 * scale]], b=[[-scale, 0.0]]))
    assert reward.state()["weights"] != [1 / 3, 2 / 3]
    assert reward(groups) == before
    assert [finding.score for finding in before[0]] == [7.0, 12.0]


# -- gradients ---------------------------------------------------------------------------------------------------------


def token_groups() -> list[Any]:
    """Sampled responses of different lengths, one of them cut and masked."""
    rows = [((3, 4), ((5, 6, 7), (8,), (9, 10))), ((4, 5, 6), ((7, 8), (9, 3, 4, 5), (6,)))]
    found = []
    for index, (prompt, answers) in enumerate(rows):
        responses = [Response(token_ids=ids, finish_reason=FinishReason.STOP) for ids in answers]
        responses[1] = Response(token_ids=answers[1], finish_reason=FinishReason.LENGTH)
        ratings = tuple(Rating(response=k, value=0.0) for k in range(3))
        group = Group(prompt="p", responses=tuple(responses), judgements=ratings)
        found.append(to_token_group(group, prompt, index=index, mask_truncated=True))
    return found


SCORES: Scores = [[1.0, 0.0, 4.0], [2.0, None, -1.0]]


def gram_of(parts: dict[str, Scores], *, layers: Layers = "middle", name: str = "rloo", **more: Any) -> torch.Tensor:
    scoring = Scoring(policy=build_policy(), spec=OBJECTIVES["reinforce"], settings={}, reference=None)
    options = {"settings": {"kl_coef": 0.5}, "max_tokens": 10_000} | more
    return torch.tensor(
        gradient_gram(token_groups(), parts, scoring, spec=ADVANTAGES[name], layers=layers, **options),
        dtype=torch.float64,
    )


def times(scores: Scores, factor: float) -> Scores:
    return [[None if score is None else factor * score for score in row] for row in scores]


def test_the_gradient_of_a_part_is_that_of_its_own_advantages():
    """RLOO of (1, 0, 4): 3/2 (R − 5/3) = (−1, −5/2, 7/2); of (2, ?, −1): (3, 0, −3). The second of each is masked."""
    policy, groups = build_policy(), token_groups()
    scores = policy.score(groups)
    advantages = [-1.0] * 3 + [0.0] + [3.5] * 2 + [3.0] * 2 + [0.0] * 4 + [-3.0]
    num_trained = 3 + 2 + 2 + 1
    total = (torch.tensor(advantages, dtype=torch.float64) * scores.token_logps_N).sum() / num_trained
    total.backward()
    norms = [float(p.grad.square().sum()) if p.grad is not None else 0.0 for p in policy.trained().values()]
    third = len(norms) // 3
    assert float(gram_of({"a": SCORES}, layers="all")) == pytest.approx(sum(norms), rel=1e-9)
    assert float(gram_of({"a": SCORES})) == pytest.approx(sum(norms[third : len(norms) - third]), rel=1e-9)
    assert sum(norms[third : len(norms) - third]) < sum(norms)


def test_recomputed_layers_give_the_same_gradients():
    parts = {"a": SCORES, "b": [[0.0, 1.0, 0.5], [1.0, 1.0, 3.0]]}
    policy = build_policy().train()
    policy.enable_gradient_checkpointing()
    scoring = Scoring(policy=policy, spec=OBJECTIVES["reinforce"], settings={}, reference=None)
    found = gradient_gram(
        token_groups(), parts, scoring, spec=ADVANTAGES["rloo"], settings={}, max_tokens=10_000, layers="middle"
    )
    torch.testing.assert_close(torch.tensor(found, dtype=torch.float64), gram_of(parts), rtol=1e-9, atol=0.0)


def test_scaled_opposite_and_split_gradients():
    parts = {"a": SCORES, "twice": times(SCORES, 2.0), "against": times(SCORES, -1.0)}
    found = gram_of(parts)
    v = torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64)
    torch.testing.assert_close(found, float(found[0, 0]) * torch.outer(v, v), rtol=1e-9, atol=0.0)
    split = gram_of(parts, max_tokens=1)  # a micro-batch per group
    torch.testing.assert_close(split, found, rtol=1e-9, atol=0.0)


def test_two_processes_add_up_to_one():
    parts = {"a": SCORES, "b": [[0.0, 1.0, 0.5], [1.0, 1.0, 3.0]]}
    whole = gram_of(parts, max_tokens=1)
    sent: dict[int, list[Any]] = {}

    def one_process(rank: int, answers: list[list[Any]]) -> list[list[float]]:
        sent[rank], calls = [], iter(answers)

        def gather(part: list[Any]) -> list[Any]:
            sent[rank] += [part]
            return next(calls, part)

        scoring = Scoring(
            policy=build_policy(), spec=OBJECTIVES["reinforce"], settings={}, reference=None, share=(rank, 2),
            gather=gather,
        )  # fmt: skip
        return gradient_gram(
            token_groups(), parts, scoring, spec=ADVANTAGES["rloo"], settings={}, max_tokens=1, layers="middle"
        )

    for rank in (0, 1):
        one_process(rank, [])
    joined = [first + second for first, second in zip(sent[0], sent[1], strict=True)]
    for rank in (0, 1):
        torch.testing.assert_close(
            torch.tensor(one_process(rank, joined), dtype=torch.float64), whole, rtol=1e-9, atol=0.0
        )


def test_gradients_leave_the_policy_alone_and_refuse_a_critic():
    policy = build_policy()
    scoring = Scoring(policy=policy, spec=OBJECTIVES["reinforce"], settings={}, reference=None)
    options: dict[str, Any] = {"settings": {}, "max_tokens": 100, "layers": "all"}
    gradient_gram(token_groups(), {"a": SCORES}, scoring, spec=ADVANTAGES["grpo"], **options)
    assert all(weight.grad is None for weight in policy.parameters())
    for spec in (None, ADVANTAGES["gae"]):
        with pytest.raises(ConfigError, match="without a critic"):
            gradient_gram(token_groups(), {"a": SCORES}, scoring, spec=spec, **options)


# -- settings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"dynamic": "maxmin", "length_penalty": {}}, "expected two parts or more"),
        ({"dynamic": "maxmin", "combine": "normalised_sum"}, "expected sum"),
        ({"dynamic": "gradients", "combine": "product"}, "expected sum, normalised_sum, log_sigmoid"),
        ({"dynamic": "gradients", "length_penalty": {"weight": -1.0}}, "expected weights above 0"),
        ({"dynamic": "maxmin", "think_format": {"gate": True, "weight": 1.0}}, "expected gates without one"),
        ({"dynamic": "best"}, "reward.dynamic"),
        ({"dynamic_step": 0.1}, "reward.dynamic_step, which reward.dynamic=None"),
        ({"dynamic": "maxmin", "dynamic_layers": "all"}, "reward.dynamic_layers, which reward.dynamic=maxmin"),
        ({"dynamic": "maxmin", "dynamic_step": 0.0}, "reward.dynamic_step"),
    ],
)
def test_what_cannot_move_is_refused(settings: dict[str, Any], said: str):
    parts = {} if "two parts" in said else {"length_penalty": {}, "repetition_penalty": {}}
    with pytest.raises(ConfigError, match=said):
        build_reward(parts | settings)
