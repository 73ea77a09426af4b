"""Answers to prompts by any of the ways of decoding: draw (from a mixture of models, too), then choose by a reward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from accord.data.policies import own_columns
from accord.decoding.beam import search_answers
from accord.decoding.estimates import kl_bound
from accord.decoding.guided import guided_answers
from accord.decoding.realigned import answer_realigned
from accord.decoding.selection import Selection, above_threshold, best_of_n, statistical_rejection
from accord.decoding.value_guided import answer_value_guided
from accord.errors import ConfigError, FeedbackError
from accord.feedback.findings import Reward
from accord.feedback.rating import with_ratings
from accord.policy.policy import Policy
from accord.policy.sampling import SamplingSettings, answer_prompts
from accord.records import Group


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How answers are found; everything off is plain sampling.

    best_of: draw so many, keep the best `num_responses`. threshold: keep what scores at least this. rso_beta: keep with
    probability e^{(r − r_max)/β}. guided: tokens of a block, chosen among `best_of` (4). strength: λ of the mixture
    π_ref^{1−λ} π^λ that is drawn from. beam: width of a search by log π/π_ref. value_guided: β of π e^{β(Q̄ − V)}, which
    is drawn from instead.
    """

    best_of: int | None = None
    threshold: float | None = None
    rso_beta: float | None = None
    guided: int | None = None
    strength: float | None = None
    beam: int | None = None
    value_guided: float | None = None

    def __post_init__(self) -> None:
        choices = {
            "best_of": self.best_of if self.guided is None else None, "threshold": self.threshold,
            "rso_beta": self.rso_beta, "guided": self.guided, "beam": self.beam,
        }  # fmt: skip
        chosen = [name for name, value in choices.items() if value is not None]
        if self.strength is not None:
            chosen += ["strength"] if self.beam is not None or self.guided is not None else []
        if self.value_guided is not None:
            others = {"strength": self.strength, "beam": self.beam, "guided": self.guided}
            mixed = [name for name, value in others.items() if value is not None]
            chosen = [*mixed, "value_guided"] if mixed else chosen
        if len(chosen) > 1:
            raise ConfigError(f"got {' and '.join(chosen)} — expected one of them: each says how an answer is chosen")
        if self.best_of is not None and self.best_of < 1:
            raise ConfigError(f"got best_of={self.best_of} — expected at least 1")

    @property
    def needs_reward(self) -> bool:
        """Whether a reward is asked."""
        return any(value is not None for value in (self.best_of, self.threshold, self.rso_beta, self.guided))

    @property
    def needs_reference(self) -> bool:
        """Whether a second model is asked."""
        return self.strength is not None or self.beam is not None


def answer(
    policy: Policy,
    groups: Sequence[Group],
    settings: SamplingSettings,
    way: Way,
    *,
    reward: Reward | None = None,
    reference: Policy | None = None,
    judge: str | None = None,
    chat_template: str = "auto",
) -> tuple[list[Group], list[str]]:
    """Answer prompts; return the groups with their responses (rated, where there is a reward) and notes for a person.

    `judge` is who gives the ratings. A reward without a way of choosing only rates. Columns beside the prompt, which
    verifiers read, stay. Raises ConfigError where a reward or a reference is missing or not used, FeedbackError where
    no response of any prompt could be scored.
    """
    for what, given, is_needed in (
        ("a reward", reward, way.needs_reward), ("a reference", reference, way.needs_reference),
    ):  # fmt: skip
        if is_needed and given is None:
            raise ConfigError(f"got {way} without {what} — give one")
    if reference is not None and not way.needs_reference:
        raise ConfigError("got a reference that nothing asks — expected a strength or a beam beside it")
    if way.beam is not None:
        assert reference is not None
        found = search_answers(
            policy, reference, groups, num_responses=settings.num_responses, width=way.beam,
            max_tokens=settings.max_tokens, chat_template=chat_template,
        )  # fmt: skip
        return _rated(found, reward, judge), []
    if way.guided is not None:
        assert reward is not None
        found = guided_answers(
            policy, groups, reward, settings, num_candidates=way.best_of or 4, block_tokens=way.guided,
            chat_template=chat_template,
        )  # fmt: skip
        return _rated(found, reward, judge), []
    drawn = _draw(policy, reference, groups, settings, way, chat_template)
    if reward is None or not way.needs_reward:
        return _rated(drawn, reward, judge), []
    return _chosen(drawn, reward, settings, way, judge)


def _draw(
    policy: Policy, reference: Policy | None, groups: Sequence[Group], settings: SamplingSettings, way: Way,
    chat_template: str,
) -> list[Group]:  # fmt: skip
    if way.best_of is not None:
        if way.best_of < settings.num_responses:
            raise ConfigError(
                f"got best_of={way.best_of} and num_responses={settings.num_responses} — expected to keep at most as "
                "many as are drawn"
            )
        settings = replace(settings, num_responses=way.best_of)
    if way.strength is not None:
        assert reference is not None
        return answer_realigned(
            policy, reference, groups, settings, strength=way.strength, chat_template=chat_template
        )  # fmt: skip
    if way.value_guided is not None:
        return answer_value_guided(
            policy, groups, settings, strength=way.value_guided, chat_template=chat_template
        )  # fmt: skip
    answered = answer_prompts(policy, groups, settings, chat_template=chat_template)
    return [replace(fresh, extra=own_columns(group)) for fresh, group in zip(answered, groups, strict=True)]


def _chosen(
    drawn: Sequence[Group], reward: Reward, settings: SamplingSettings, way: Way, judge: str | None
) -> tuple[list[Group], list[str]]:
    if way.best_of is not None:
        found = best_of_n(drawn, reward, keep=settings.num_responses, judge=judge)
        says = f"best of {way.best_of}: KL from the model ≤ {kl_bound(way.best_of):.3f} nats per response"
    elif way.threshold is not None:
        found = above_threshold(drawn, reward, threshold=way.threshold, judge=judge)
        says = f"kept {found.num_kept} of {found.num_candidates} responses, {found.kept_share:.1%}"
    else:
        assert way.rso_beta is not None
        found = statistical_rejection(drawn, reward, beta=way.rso_beta, seed=settings.seed, judge=judge)
        says = f"accepted {found.num_kept} of {found.num_candidates} responses, {found.kept_share:.1%}"
    return found.groups, [says, *_troubles(found)]


def _troubles(found: Selection) -> list[str]:
    if not found.groups and found.num_unknown == found.num_candidates:
        raise FeedbackError(f"no response could be scored: {found.left_out[0][1]} — mend the reward and ask again")
    notes = []
    if found.num_unknown:
        notes.append(f"{found.num_unknown} of {found.num_candidates} scores are unknown; those responses were not kept")
    if found.left_out:
        shown = "; ".join(f"prompt {index}: {reason}" for index, reason in found.left_out[:3])
        notes.append(f"{len(found.left_out)} prompts are left without a response ({shown})")
    return notes


def _rated(groups: Sequence[Group], reward: Reward | None, judge: str | None) -> list[Group]:
    if reward is None:
        return list(groups)
    return with_ratings(groups, reward(groups), attribute=reward.name, judge=judge)
