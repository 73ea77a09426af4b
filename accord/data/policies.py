"""The choices of encoding: a setting for every awkward row, the account of what it did, and dropping responses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args, get_type_hints

from accord.data.tokens import TokenGroup
from accord.errors import ConfigError
from accord.records import Comparison, Group, Judgement, Ranking, Response, judged_responses

COUNTS = (
    "groups_read",
    "groups",
    "responses",
    "responses_dropped",
    "prompt_only",
    "prompt_mismatches",
    "template_errors",
    "empty_responses",
    "identical",  # groups
    "too_long",  # groups
    "groups_truncated",
    "prompts_truncated",
    "responses_truncated",
    "eos_appended",
    "eos_from_template",
    "end_is_not_eos",
    "eos_in_text",
    "without_eos",
    "without_score",
    "sampled",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeOptions:
    """How groups become token ids. What each policy did is counted in `EncodedData.counts`.

    `on_too_long`, where prompt + longest response exceed `max_tokens`: "truncate" cuts the prompt from the left (its
    end and its start token stay) down to half of `max_tokens`, then the responses from the right; "truncate_prompt"
    and "truncate_response" cut one side only and drop the group where that is not enough. A cut response has no EOS.
    `on_identical` speaks of responses of a comparison or ranking whose token ids are equal (perhaps once cut).
    `on_prompt_mismatch`: "split" trains every assistant turn after the last turn a pair shares.
    `append_eos`: "auto" ends a response by EOS unless the template ended its turn, or it was cut. `add_bos`: "auto"
    does what the tokenizer does by itself for text, and leaves it to the template for the tokenizer's own template.
    """

    max_tokens: int | None = None
    on_too_long: Literal["truncate", "truncate_prompt", "truncate_response", "drop", "error"] = "truncate"
    on_empty: Literal["drop", "keep", "error"] = "drop"
    on_identical: Literal["drop", "keep", "error"] = "drop"
    on_prompt_mismatch: Literal["drop", "split", "error"] = "drop"
    on_template_error: Literal["error", "drop"] = "error"
    append_eos: Literal["auto", "never"] = "auto"
    add_bos: Literal["auto", "always", "never"] = "auto"
    chat_template: str = "auto"
    train_turns: Literal["all", "last"] = "all"

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            value, choices = getattr(self, name), get_args(kind)
            if choices and isinstance(choices[0], str) and value not in choices:
                raise ConfigError(f"got {name}={value!r} — expected one of {', '.join(choices)}")
        if self.max_tokens is not None and self.max_tokens < 2:
            raise ConfigError(f"got max_tokens={self.max_tokens} — expected at least 2: one of prompt, one of response")


@dataclass(frozen=True, slots=True)
class Dropped:
    """A group left out: its position in the data, where it came from and why."""

    index: int
    origin: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedData:
    """Token groups ready for training, and an account of everything that happened on the way."""

    groups: list[TokenGroup]
    counts: dict[str, int]
    dropped: list[Dropped]
    notes: list[str]
    options: EncodeOptions
    template: str  # the chat template used: own, transcript, custom; "" when no row had turns


def select_responses(group: Group, keep: Sequence[int]) -> Group | None:
    """Return the group with only these responses, its judgements renumbered; None where nothing is left to learn.

    A judgement of a dropped response goes with it, a ranking closes its ranks. Of a group that was compared or ranked
    nothing is left when no comparison and no ranking of two remain.
    """
    new = {old: position for position, old in enumerate(keep)}
    judgements = [changed for judgement in group.judgements if (changed := _renumber(judgement, new)) is not None]
    was_compared = any(isinstance(judgement, Comparison | Ranking) for judgement in group.judgements)
    is_compared = any(isinstance(judgement, Comparison | Ranking) for judgement in judgements)
    if not keep or (was_compared and not is_compared):
        return None
    return replace(group, responses=tuple(group.responses[i] for i in keep), judgements=tuple(judgements))


def _renumber(judgement: Judgement, new: dict[int, int]) -> Judgement | None:
    shown: dict[str, Any] = {}
    if judgement.shown_order is not None:
        shown["shown_order"] = tuple(new[index] for index in judgement.shown_order if index in new)
    if isinstance(judgement, Ranking):
        tiers = [tuple(new[index] for index in tier if index in new) for tier in judgement.order]
        order = tuple(tier for tier in tiers if tier)
        return replace(judgement, order=order, **shown) if sum(map(len, order)) >= 2 else None
    if any(index not in new for index in judged_responses(judgement)):
        return None
    if isinstance(judgement, Comparison):
        return replace(judgement, better=new[judgement.better], worse=new[judgement.worse], **shown)
    return replace(judgement, response=new[judged_responses(judgement)[0]], **shown)  # type: ignore[call-arg]  # all have one


def is_blank(response: Response) -> bool:
    """Say whether a response says nothing: no ids, no words, or a last turn without words that calls no tool."""
    if response.token_ids is not None:
        return not response.token_ids
    if isinstance(response.content, tuple):
        return not response.content or not (response.content[-1].content.strip() or response.content[-1].extra)
    return not (response.content or "").strip()


def is_prompt_only(group: Group) -> bool:
    """Say whether a group came from a row without a response, to be sampled from."""
    return bool(group.extra.get("is_prompt_only"))


def own_columns(group: Group) -> dict[str, object]:
    """Return what a group's row held beside its prompt, without our mark that it had no response."""
    return {key: value for key, value in group.extra.items() if key != "is_prompt_only"}
