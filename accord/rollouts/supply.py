"""Where a run's groups come from, as `align` asks it: from a file that is judged already, or from the policy itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from accord.config import AlignConfig, flatten
from accord.data.tokens import TokenGroup
from accord.feedback.composition import check_reward
from accord.feedback.findings import Reward
from accord.objectives import ObjectiveSpec
from accord.policy.policy import Policy
from accord.rollouts.judging import check_prompts
from accord.rollouts.prompts import encode_run_prompts
from accord.rollouts.setup import (
    IN_MEMORY,
    answers_of,
    longest_group,
    make_reward,
    make_rollouts,
    make_worth,
    online_spec,
    prepare_policy,
    with_value_heads,
)
from accord.rollouts.source import RolloutSource
from accord.run.data import DataFacts, RunData, check_needs, encode_run_data, with_token_facts
from accord.run.plan import memory_for
from accord.run.reference import References
from accord.run.scored import Scoring

Encoded = tuple[list[TokenGroup], list[TokenGroup], DataFacts]
Opened = Callable[[], AbstractContextManager[Policy]]


class FromFile:
    """Judged groups, all there before the first step."""

    source: RolloutSource | None = None

    def __init__(self, config: AlignConfig) -> None:
        self.config = config
        self.spec: ObjectiveSpec = config.objective.spec

    def check(self, data: RunData) -> None:
        """Raise DataError where the file does not hold what the objective needs."""
        check_needs(self.config.objective.name, self.spec, data)

    def prepare(self, policy: Policy) -> Policy:
        """Return the policy as it will be trained: with heads of values where they are asked for."""
        return with_value_heads(self.config, self.spec, policy)

    def encode(self, config: AlignConfig, data: RunData, policy: Policy) -> Encoded:
        """Return the groups to train on, those held out, and the data report."""
        return encode_run_data(config, data, policy)

    def shapes(self, train: list[TokenGroup]) -> list[TokenGroup]:
        """Return groups as long as any that will be scored."""
        return train

    def complete(
        self, policy: Policy, train: list[TokenGroup], held_out: list[TokenGroup], reward: Reward | None, opened: Opened
    ) -> tuple[list[TokenGroup], list[TokenGroup]]:
        """Return the groups with what further models say of their tokens. A reward in memory has no use here."""
        with memory_for("asking further models about tokens"):
            train, held_out = with_token_facts(self.config, self.spec, policy, train, held_out)
        return train, held_out

    def describe(self) -> str:
        """Say what the run is made of, where its settings name it in one word."""
        return ""

    def connect(self, scoring: Scoring) -> None:
        """Take up the loop's way of scoring."""

    def for_plan(
        self, references: References, train: list[TokenGroup], held_out: list[TokenGroup],
        batch_at: Callable[[int], Sequence[TokenGroup]], num_steps: int,
    ) -> dict[str, Any]:  # fmt: skip
        """Return what the plan must know of the groups."""
        to_reference = references.to_score(train, held_out, map(batch_at, range(num_steps)))
        return {"batch_at": batch_at, "to_reference": to_reference}


class FromSamples(FromFile):
    """Groups that the policy writes while it learns (or wrote, and are replayed)."""

    def __init__(self, config: AlignConfig) -> None:
        super().__init__(config)
        if config.reward.sections and IN_MEMORY not in config.reward.sections:
            check_reward(config.reward.sections)  # before a model is loaded for nothing
        self._worth = make_worth(config)
        self.spec = online_spec(config.objective.spec, self._worth)
        self._reward: Reward | None = None

    def check(self, data: RunData) -> None:
        """Accept any prompts: judgements are made on the way."""

    def prepare(self, policy: Policy) -> Policy:
        """Return the policy at its temperature, with a critic where values are asked for."""
        return prepare_policy(self.config, self.spec, policy)

    def encode(self, config: AlignConfig, data: RunData, policy: Policy) -> Encoded:
        """Return the prompts to sample on, those held out, and the data report."""
        return encode_run_prompts(config, data, policy)

    def shapes(self, train: list[TokenGroup]) -> list[TokenGroup]:
        """Return the longest prompt with responses as long as they may be."""
        return [longest_group(self.config, train)]

    def complete(
        self, policy: Policy, train: list[TokenGroup], held_out: list[TokenGroup], reward: Reward | None, opened: Opened
    ) -> tuple[list[TokenGroup], list[TokenGroup]]:
        """Make ready who draws and who judges."""
        self._reward = make_reward(self.config, policy, reward)
        if self._reward is not None:
            sources = [group.source for group in (*train, *held_out) if group.source is not None]
            check_prompts(sources, self._reward)
        self.source = make_rollouts(self.config, policy, train, self._reward, self._worth, origin=opened)
        return train, held_out

    def describe(self) -> str:
        """Return objective, advantage, reward and rollout in full, as they could be given one by one."""
        config = self.config
        advantage = {"name": config.advantage.name, **config.advantage.settings} if config.advantage.name else {}
        parts = {
            "objective": {"name": config.objective.name, **config.objective.settings},
            "advantage": advantage,
            "reward": config.reward.sections,
            "rollout": config.rollout.model_dump(),
        }
        lines = [f"method={config.method}" if config.method else f"source={config.source}"]
        for name, part in parts.items():
            lines += [f"  {name}.{key}={value}" for key, value in flatten(part) if value is not None and value != []]
        return "\n".join(lines)

    def connect(self, scoring: Scoring) -> None:
        """Score rollouts as the loop does, and answer held-out prompts as rollouts are drawn and judged."""
        assert self.source is not None
        self.source.scoring = scoring
        scoring.answers = answers_of(self.config, self._reward)

    def for_plan(
        self, references: References, train: list[TokenGroup], held_out: list[TokenGroup],
        batch_at: Callable[[int], Sequence[TokenGroup]], num_steps: int,
    ) -> dict[str, Any]:  # fmt: skip
        """Return upper bounds: what is not drawn yet has no length."""
        longest = self.shapes(train)
        batch = longest * self.config.train.batch_size
        return {"batch_at": lambda step: batch, "to_reference": [], "longest": longest}


def supply_of(config: AlignConfig) -> FromFile:
    """Return where a run's groups come from."""
    return FromFile(config) if config.source == "file" else FromSamples(config)
