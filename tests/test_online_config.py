"""Settings of learning from one's own samples: what a method stands for, and every combination that is refused."""

from __future__ import annotations

import ast
import inspect
from typing import Any

import pytest

from accord.config import AlignConfig, build_config
from accord.config.online import checks
from accord.errors import ConfigError
from accord.objectives.methods import METHODS

HERE: dict[str, Any] = {"model": "m", "data": "d"}
JUDGED: dict[str, Any] = HERE | {"reward.gsm8k.weight": 1.0}


def of(**settings: Any) -> AlignConfig:
    return build_config(JUDGED | {key.replace("__", "."): value for key, value in settings.items()})


# -- methods -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_the_settings_it_stands_for(name: str):
    """Given one by one they make the same run, but for the name."""
    method, by_name = METHODS[name], of(method=name)
    advantage = {} if method.advantage is None else {"advantage.name": method.advantage}
    spelt_out = build_config(
        JUDGED
        | {"source": "rollouts", "objective.name": method.objective, "rollout.num_responses": method.num_responses}
        | advantage
        | dict(method.settings)
    )
    assert by_name.model_copy(update={"method": None}) == spelt_out
    assert (by_name.source, by_name.method) == ("rollouts", name)


def test_what_is_set_wins_over_the_method():
    changed = of(method="grpo", rollout__num_responses=3, objective__kl_coef=0.5, advantage__epsilon=0.1)
    assert changed.rollout.num_responses == 3
    assert changed.objective.settings["kl_coef"] == 0.5
    assert changed.advantage.settings["epsilon"] == 0.1
    assert changed.objective.settings["kl_estimator"] == "k3"  # the method's, untouched


def test_another_objective_drops_the_settings_of_the_methods_own():
    other = of(method="grpo", objective="reinforce")
    assert other.objective == of(source="rollouts", objective="reinforce", advantage="grpo").objective
    assert other.advantage == of(method="grpo").advantage
    again = of(method="grpo", objective="ppo_clip")  # the same one keeps them
    assert again.objective == of(method="grpo").objective


def test_another_advantage_drops_the_settings_of_the_methods_own():
    other = of(method="rloo", advantage="grpo")
    assert other.advantage == of(source="rollouts", objective="reinforce", advantage="grpo").advantage


@pytest.mark.parametrize(
    ("name", "says"), [("grop", "did you mean grpo"), ("pp", "did you mean ppo"), ("zzz", "there are reinforce, rloo")]
)
def test_an_unknown_method_names_the_nearest(name: str, says: str):
    with pytest.raises(ConfigError, match=f"got method={name} — {says}"):
        of(method=name)


# -- what is refused ---------------------------------------------------------------------------------------------------

REFUSED: list[tuple[dict[str, Any], str]] = [
    (HERE | {"pretraining.weight": 2.0}, "got pretraining.weight without pretraining.path: there are no demonstr"),
    (HERE | {"objective": "reinforce"}, "reinforce needs .*advantages.*which no file gives — sample .*method=grpo"),
    (HERE | {"rollout.epochs": 2}, "got rollout.epochs, but source=file samples nothing"),
    (HERE | {"rollout.temperature": 0.7, "critic.lr": 1e-3}, "got rollout.temperature, critic.lr, but source=file"),
    (JUDGED, "got reward.gsm8k, but source=file samples nothing"),
    (HERE | {"advantage": "grpo"}, "got advantage, but source=file samples nothing"),
    (JUDGED | {"source": "rollouts", "objective": "bradley_terry"}, "trains a reward model, which samples nothing"),
    (JUDGED | {"source": "rollouts", "objective": "salt"}, "salt needs edits, which sampling does not give"),
    (JUDGED | {"source": "rollouts", "objective": "ppo_clip"}, "ppo_clip needs advantages — set advantage.name"),
    (JUDGED | {"method": "online_dpo", "advantage": "grpo"}, "advantage.name=grpo is set, but dpo reads rewards as"),
    (JUDGED | {"method": "ppo", "advantage": "grpo"}, "trains a critic with .*advantage.name=grpo asks none"),
    (JUDGED | {"method": "grpo", "advantage": "gae"}, "advantage.name=gae asks a critic that ppo_clip does not train"),
    (JUDGED | {"method": "grpo", "advantage": "grpo_process"}, "grpo_process needs a reward for each step"),
    (JUDGED | {"method": "online_dpo", "rollout.num_responses": 1}, "dpo compares responses of one prompt"),
    (JUDGED | {"method": "dapo", "rollout.num_responses": 1}, "compares responses of one prompt — set rollout.num"),
    (
        JUDGED | {"source": "rollouts", "objective": "tpo", "rollout.num_responses": 2},
        "sets the best response against several others",
    ),
    (JUDGED | {"method": "xpo", "rollout.from_reference": 2}, "rollout.from_reference=2 leaves the policy nothing"),
    (JUDGED | {"method": "grpo", "rollout.opponent_mix": 0.5}, "rollout.from_reference is 0: nobody else draws"),
    (HERE | {"method": "grpo"}, "source=rollouts needs a reward — set one, such as reward.gsm8k.weight=1"),
    (JUDGED | {"method": "grpo", "rollout.kl_target": 1.0}, "rollout.kl_target is set but advantage.kl_coef is 0"),
    (
        JUDGED | {"method": "grpo", "data.select": "isa", "data.select_fraction": 0.5},
        "data.relabel, data.goal and data.select are for judged files",
    ),
    (JUDGED | {"method": "grpo", "reward.dynamic": "hypervolume"}, "nothing comes of that: it looks at rewards relat"),
    (JUDGED | {"method": "ppo", "reward.dynamic": "gradients"}, "needs the advantages of each part by itself"),
    (JUDGED | {"method": "grpo", "reference.update": "soft"}, "reference.update is for files"),
]


@pytest.mark.parametrize(("settings", "says"), REFUSED, ids=[says[:40] for _, says in REFUSED])
def test_what_makes_no_sense_together_is_refused(settings: dict[str, Any], says: str):
    with pytest.raises(ConfigError, match=says):
        build_config(settings)


def test_every_reason_for_a_refusal_has_its_case():
    """The literal text of every message in the checks is met by one of the cases above."""
    said = []
    for settings, _ in REFUSED:
        with pytest.raises(ConfigError) as caught:
            build_config(settings)
        said.append(str(caught.value))
    loops = [
        loop
        for function in ast.walk(ast.parse(inspect.getsource(checks)))
        if isinstance(function, ast.FunctionDef) and function.name in ("_check_objective", "_check_rollouts")
        for loop in function.body
        if isinstance(loop, ast.For)
    ]
    assert len(loops) == 2
    for reason in (reason for loop in loops for reason in loop.iter.elts):  # type: ignore[attr-defined]
        assert isinstance(reason, ast.Tuple)
        pieces = [node.value for node in ast.walk(reason.elts[1]) if isinstance(node, ast.Constant)]
        longest = max((piece for piece in pieces if isinstance(piece, str)), key=len)
        assert any(longest in message for message in said), longest


def test_an_estimator_of_no_gradient_is_refused_with_its_reason():
    with pytest.raises(ConfigError, match=r"objective.kl_estimator=k1 — .*expected gradient is 0.*advantage.kl_coef"):
        of(method="grpo", objective__kl_estimator="k1")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rollout.temperature", 0), ("rollout.num_responses", 0), ("rollout.top_p", 0), ("rollout.truncated", "drop"),
        ("rollout.max_staleness", -1), ("rollout.kl_target", 0), ("critic.lr", 0), ("pretraining.weight", -1),
        ("source", "somewhere"),
    ],
)  # fmt: skip
def test_numbers_out_of_bounds_are_named(key: str, value: object):
    with pytest.raises(ConfigError, match=key):
        build_config(JUDGED | {"method": "grpo", key: value})


def test_replay_needs_no_reward():
    assert build_config(HERE | {"method": "grpo", "source": "replay"}).source == "replay"
