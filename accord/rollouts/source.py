"""The file replaced by sampling and judging: where the loop gets the groups of a step when the policy writes them.

A rollout: prompts in the order of the seed, K responses each by the weights as they are, judged, worth something, then
trained on for `epochs` passes in mini-batches. What is drawn depends on the seed, the weights and the position alone.
"""

from __future__ import annotations

import logging
import math
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from accord.config import TrainConfig
from accord.config.online.sections import RolloutConfig
from accord.data.batching import epoch_batches
from accord.data.tokens import TokenGroup
from accord.errors import AccordError, TrainingError
from accord.feedback.findings import Layers, Reward, Scores, StatefulReward
from accord.groups import Advantages, RolloutBatch
from accord.objectives.advantages import AdvantageSpec, RolloutState, advance_kl_coef
from accord.objectives.advantages.rewards import token_kl
from accord.records import Group, Response
from accord.rollouts.estimation import Measured, measure_tokens, to_batch, with_advantages
from accord.rollouts.judging import judge, reward_sums, rewards_of, with_totals
from accord.rollouts.part_gradients import gradient_gram
from accord.rollouts.tokens import from_plain, to_plain, to_token_group
from accord.rollouts.watch import Watch
from accord.run.held_out.answers import gathered
from accord.run.metrics import Sums, add_up
from accord.run.scored import Scoring

log = logging.getLogger(__name__)
Draw = Callable[[Sequence[Sequence[int]], Sequence[int]], list[tuple[Response, ...]]]
"""(prompts, their streams of random numbers) → K responses to each, by the weights as they are."""


@dataclass(frozen=True, kw_only=True)
class Worth:
    """What rewards become: the advantage with its settings, and what it must be told of every token."""

    spec: AdvantageSpec | None = None
    settings: dict[str, Any]
    needs_old: bool  # the log-probabilities before the first update
    needs_reference: bool
    needs_values: bool


class RolloutSource:
    """Groups that the policy writes. `scoring` is the loop's, given once the loop is there."""

    scoring: Scoring

    def __init__(
        self,
        prompts: Sequence[TokenGroup],
        *,
        draw: Draw | None,
        reward: Reward | None,
        worth: Worth,
        settings: RolloutConfig,
        train: TrainConfig,
    ) -> None:
        """`draw` None: the prompts are recorded rollouts, taken in their order, judged again if `reward`."""
        self._prompts, self._draw, self._reward, self._worth = prompts, draw, reward, worth
        self._settings, self._train = settings, train
        self.keep: Callable[[int, Sequence[Group]], None] = lambda step, groups: None
        carried = _carried(worth)
        self._state: dict[str, Tensor] = carried.start(**worth.settings) if carried is not None else {}
        self._kl_coef: float | None = worth.settings.get("kl_coef")
        self._per_rollout = min(settings.prompts or train.batch_size, len(prompts))
        batches = math.ceil(self._per_rollout / train.batch_size)
        self.steps_per_rollout = batches * settings.epochs
        self._batches = batches
        num_rollouts = max(1, round(train.epochs * len(prompts) / self._per_rollout))
        planned = num_rollouts * self.steps_per_rollout
        self.num_steps = min(planned, train.max_steps or planned)
        self.steps_per_epoch = max(1, math.ceil(len(prompts) / self._per_rollout) * self.steps_per_rollout)
        self._cursor = 0  # prompts drawn so far, over all epochs
        self._block = -1  # the rollout trained on
        self._version = 0  # updates the policy has seen when it draws
        self._groups: list[TokenGroup] = []
        self._ahead: deque[list[TokenGroup]] = deque()  # drawn and judged, not yet trained on
        self._watch = Watch()
        self._sums: Sums = {}
        self._order: tuple[int, list[int]] = (-1, [])

    # -- what the loop asks ------------------------------------------------------------------------------------------

    def batch_at(self, step: int) -> list[TokenGroup]:
        """Return the groups of a step; the first step of a rollout draws it. Raises FeedbackError from the reward."""
        block, within = divmod(step, self.steps_per_rollout)
        if block != self._block:
            self._groups, self._block = self._next_rollout(block), block
        turn, place = divmod(within, self._batches)
        order = list(range(len(self._groups)))
        random.Random(f"{self._train.seed}/rollout/{block}/{turn}").shuffle(order)
        size = math.ceil(len(order) / self._batches)
        return [self._groups[index] for index in order[place * size : (place + 1) * size]]

    def take_sums(self) -> Sums:
        """Return what was measured of the rollouts since the last call."""
        sums, self._sums = self._sums, {}
        return sums

    def state(self) -> dict[str, Any]:
        """Return the rollout under way, those drawn ahead, and the position in the prompts."""
        return {
            "cursor": self._cursor,
            "block": self._block,
            "groups": [to_plain(group) for group in self._groups],
            "ahead": [[to_plain(group) for group in groups] for groups in self._ahead],
            "advantage": self._state,
            "kl_coef": self._kl_coef,
            "watch": self._watch.state(),
            "reward": self._reward.state() if isinstance(self._reward, StatefulReward) else {},
        }

    def take_up(self, state: dict[str, Any]) -> None:
        """Put what a checkpoint held in place."""
        self._cursor, self._block = state["cursor"], state["block"]
        self._groups = [from_plain(plain) for plain in state["groups"]]
        self._ahead = deque([from_plain(plain) for plain in groups] for groups in state["ahead"])
        self._state, self._kl_coef = state["advantage"], state["kl_coef"]
        self._watch.take_up(state["watch"])
        if isinstance(self._reward, StatefulReward) and state.get("reward"):
            self._reward.take_up(state["reward"])

    def check(self, sums: Sums) -> None:
        """Warn of a reward that is being gamed, and of a sampler that disagrees with the trainer about the same tokens.

        Raises TrainingError where these two are far apart.
        """
        self._watch.look(sums)
        total, count = sums.get("sampler/abs_diff", (0.0, 0.0))
        if not count or not self._is_comparable:
            return
        apart, settings = total / count, self._settings
        if apart > settings.mismatch_stop:
            raise TrainingError(
                f"sampler and trainer differ by {apart:.3g} nats per token, more than rollout.mismatch_stop="
                f"{settings.mismatch_stop:g} — the sampler has other weights, another precision or other settings"
            )
        if apart > settings.mismatch_alarm:
            log.warning(
                "sampler and trainer differ by %.3g nats per token, more than rollout.mismatch_alarm=%g",
                apart, settings.mismatch_alarm,
            )  # fmt: skip

    @property
    def _is_comparable(self) -> bool:
        # a cut tail is renormalised: then the sampler's numbers are meant to differ from the trainer's
        settings, worth = self._settings, self._worth
        is_exact = self._draw is not None and not settings.max_staleness
        is_known = worth.needs_old or self.steps_per_rollout == 1
        return is_exact and is_known and settings.top_p == 1 and settings.top_k == 0 and settings.min_p == 0

    # -- making a rollout --------------------------------------------------------------------------------------------

    def _next_rollout(self, block: int) -> list[TokenGroup]:
        self._version = block * self.steps_per_rollout
        while len(self._ahead) <= self._settings.max_staleness:
            before = self._cursor, self._sums
            try:
                self._ahead.append(self._draw_and_judge(block))
            except AccordError:  # nothing of a rollout that could not be judged is kept
                self._cursor, self._sums = before
                raise
        groups = self._ahead.popleft()
        if not groups:
            return []
        groups = self._weighed(groups)
        worth, measured = self._worth, Measured()
        if worth.needs_old or worth.needs_reference or worth.needs_values:
            measured = measure_tokens(
                groups, self.scoring, max_tokens=self._train.max_batch_tokens, with_reference=worth.needs_reference,
                with_values=worth.needs_values,
            )  # fmt: skip
        batch = replace(to_batch(groups, measured), state=self._state or None)
        groups = with_advantages(groups, measured, self._advantages(batch))
        self._advance(batch)
        self.keep(self._version, [group.source for group in groups if group.source is not None])
        return groups

    def _weighed(self, groups: list[TokenGroup]) -> list[TokenGroup]:
        """Return a rollout with the rewards of a reward whose weights move; every process moves them alike."""
        if not isinstance(self._reward, StatefulReward):
            return groups

        def gradients(parts: Mapping[str, Scores], *, layers: Layers) -> list[list[float]]:
            return gradient_gram(
                groups, parts, self.scoring, spec=self._worth.spec, settings=self._worth.settings,
                max_tokens=self._train.max_batch_tokens, layers=layers,
            )  # fmt: skip

        sources = [_source(group) for group in groups]
        found = self._reward.weigh(sources, gradients)
        self._sums = add_up(
            (self._sums, {f"rollout/{name}": (value, 1.0) for name, value in found.numbers.items()})
        )  # fmt: skip
        return [
            replace(group, judgements=source.judgements, source=source)
            for group, source in zip(groups, with_totals(sources, found.scores), strict=True)
        ]

    def _advantages(self, batch: RolloutBatch) -> Advantages | None:
        if self._worth.spec is None:
            return None
        return self._worth.spec.fn(batch, **self._settings_now())

    def _settings_now(self) -> dict[str, Any]:
        settings = dict(self._worth.settings)
        return settings if self._kl_coef is None else settings | {"kl_coef": self._kl_coef}

    def _advance(self, batch: RolloutBatch) -> None:
        """Move what an estimator carries on, and β of the KL in the reward where it is steered to a target."""
        worth, target = self._worth, self._settings.kl_target
        if (carried := _carried(worth)) is not None:
            self._state = carried.advance(batch, **self._settings_now())
        if batch.reference_logps_PKT is None:
            return
        kl = float(token_kl(batch).sum()) / max(1, int(batch.is_scored_PK.sum()))
        self._sums = add_up((self._sums, {"rollout/kl": (kl, 1.0)}))
        if self._kl_coef is not None and target is not None:
            self._sums = add_up((self._sums, {"rollout/kl_coef": (self._kl_coef, 1.0)}))
            self._kl_coef = advance_kl_coef(self._kl_coef, kl, target=target, gain=self._settings.kl_gain)

    def _draw_and_judge(self, block: int) -> list[TokenGroup]:
        """Draw and judge one rollout; with dynamic sampling, as many rounds as it takes, up to the limit."""
        settings, wanted = self._settings, self._per_rollout
        found: list[TokenGroup] = []
        for _ in range(settings.max_draws if settings.dynamic_sampling else 1):
            drawn = self._one_round(wanted - len(found))
            kept = [group for group in drawn if not settings.dynamic_sampling or _teaches(group)]
            self._sums = add_up((self._sums, {"rollout/kept": (float(len(kept)), float(len(drawn)))}))
            found += kept
            if len(found) >= wanted:
                break
        if found and all(value is None for group in found for value in rewards_of(_source(group))):
            log.warning("no reward of rollout %d is known: it trains nothing; the reasons are its verdicts", block)
        if len(found) < wanted:
            log.warning(
                "rollout %d has %d groups instead of %d: the rewards of the others were all equal", block, len(found),
                wanted,
            )  # fmt: skip
        return found

    def _one_round(self, num: int) -> list[TokenGroup]:
        places = range(self._cursor, self._cursor + num)
        self._cursor += num
        prompts = [self._prompt_at(place) for place in places]
        rank, world = self.scoring.share
        mine = list(zip(places, prompts, strict=True))[rank::world]
        joined = dict(gathered(self.scoring.gather, lambda: self._answered(mine)))
        answered = [joined[place] for place in places]
        self._sums = add_up((self._sums, reward_sums(answered)))
        mask = self._settings.truncated == "mask"
        return [
            to_token_group(group, prompt.prompt_ids, index=place, mask_truncated=mask)
            for place, prompt, group in zip(places, prompts, answered, strict=True)
        ]

    def _answered(self, prompts: Sequence[tuple[int, TokenGroup]]) -> list[tuple[int, Group]]:
        """Return the groups of some prompts with their responses, judged."""
        groups = [_source(prompt) for _, prompt in prompts]
        if self._draw is not None:
            drawn = self._draw([prompt.prompt_ids for _, prompt in prompts], [place for place, _ in prompts])
            groups = [
                replace(
                    group,
                    responses=responses,
                    judgements=(),
                    extra=dict(group.extra) | {"policy_version": self._version},
                )
                for group, responses in zip(groups, drawn, strict=True)
            ]
        elif self._reward is not None:
            groups = [replace(group, judgements=()) for group in groups]
        judged = judge(groups, self._reward) if self._reward is not None else groups
        return [(place, group) for (place, _), group in zip(prompts, judged, strict=True)]

    def _prompt_at(self, place: int) -> TokenGroup:
        epoch, within = divmod(place, len(self._prompts))
        if self._draw is None:  # recorded, in an order of its own
            return self._prompts[within]
        if self._order[0] != epoch:
            (order,) = epoch_batches(self._prompts, len(self._prompts), window=1, seed=self._train.seed, epoch=epoch)
            self._order = (epoch, order)
        return self._prompts[self._order[1][within]]


def _carried(worth: Worth) -> RolloutState | None:
    """Return what the estimator carries from one rollout to the next, if anything."""
    return worth.spec.state if worth.spec is not None else None


def _source(group: TokenGroup) -> Group:
    assert group.source is not None, "prompts keep the group they came from"
    return group.source


def _teaches(group: TokenGroup) -> bool:
    """Whether two responses of the group have different known rewards."""
    known = {value for value in rewards_of(_source(group)) if value is not None}
    return len(known) > 1
