"""What a collection of judgements is made of: settings, items, assignments, annotators, events. Values, no database."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from typing import Any

from accord.errors import ConfigError
from accord.records import Message


class QuestionKind(StrEnum):
    """What an item asks of the annotator; `answers.py` says what an answer to each looks like."""

    PAIRWISE8 = "pairwise8"  # which of two, on eight steps without a tie
    PAIRWISE_TIES = "pairwise_ties"  # the same with "equally good"
    THUMBS = "thumbs"  # one response, up or down
    RANKING = "ranking"  # K responses from best to worst
    RATING = "rating"  # one response, a number on each of the project's attributes
    CRITIQUE = "critique"  # one response, free text, and an edit of it if one wishes
    EDIT = "edit"  # one response, written better


PAIRWISE = frozenset({QuestionKind.PAIRWISE8, QuestionKind.PAIRWISE_TIES})


class ItemRole(StrEnum):
    """What an item is for."""

    WORK = "work"
    GOLD = "gold"  # the answer is known; mixed in among the work
    QUALIFICATION = "qualification"  # the answer is known; comes before any work


class AssignmentKind(StrEnum):
    """Why an item was given to an annotator. Never to be shown to them."""

    WORK = "work"
    GOLD = "gold"
    REPEAT = "repeat"  # the annotator has judged it before
    QUALIFICATION = "qualification"


class AssignmentState(StrEnum):
    """What became of an assignment. OPEN with its lease over: anybody may be given the item."""

    OPEN = "open"
    ANSWERED = "answered"
    SKIPPED = "skipped"
    FLAGGED = "flagged"


class Role(StrEnum):
    """What a member of a project may do; what a manager may see is the page's affair."""

    ANNOTATOR = "annotator"
    MANAGER = "manager"


class AnnotatorState(StrEnum):
    """Where an annotator stands."""

    INVITED = "invited"  # the link was not used yet
    QUALIFYING = "qualifying"
    ACTIVE = "active"
    PAUSED = "paused"  # by a manager, or by a qualification that was not passed; `note` says which
    REVOKED = "revoked"  # for good: sessions and invitations are void


class AnnotatorKind(StrEnum):
    """Who judges."""

    PERSON = "person"
    MODEL = "model"
    SIMULATED = "simulated"


class Selection(StrEnum):
    """Which item comes first."""

    RANDOM = "random"
    UNCERTAIN = "uncertain"  # smallest margin first; see `margins.py`


class EventKind(StrEnum):
    """What happened. Nothing that happened is ever changed or removed."""

    ANSWER = "answer"
    SKIP = "skip"
    FLAG = "flag"
    UNDO = "undo"  # takes back the event named in `corrects`; the assignment is open again
    STATE = "state"  # of an annotator: qualified, paused, …


class IdleReason(StrEnum):
    """Why there is nothing to do just now."""

    FINISHED = "finished"  # nothing left for this annotator
    LEASED = "leased"  # others are working on what is left; ask again later
    PAUSED = "paused"  # this annotator may not work (paused, revoked, not arrived yet); `Annotator.note` says why


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectSettings:
    """How a project collects judgements; fixed once the project exists.

    Raises ConfigError for a value out of its range.
    """

    kinds: tuple[QuestionKind, ...] = (QuestionKind.PAIRWISE8,)  # which questions may be asked
    guidelines: str = ""  # Markdown, shown before the first item
    judgements_per_item: int = 1  # by different annotators
    lease_seconds: float = 900.0  # how long an item is kept for whoever has it
    gold_share: float = 0.0  # of what an annotator is given, in [0, 1)
    repeat_share: float = 0.0  # of what an annotator is given, in [0, 1)
    repeat_gap: int = 5  # how many other items lie between an item and its repetition, at least
    selection: Selection = Selection.RANDOM
    control_share: float = 0.0  # of work picked at random although the selection is UNCERTAIN, to compare with
    qualification_pass: float = 0.75  # share of the qualification items to be answered rightly
    attributes: tuple[str, ...] = ("helpful", "honest", "harmless")  # of RATING
    rating_min: float = 1.0
    rating_max: float = 5.0
    max_text_characters: int = 20_000  # of a critique, an edit, a comment
    seed: int = 0

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "kinds", tuple(QuestionKind(kind) for kind in self.kinds))
            object.__setattr__(self, "selection", Selection(self.selection))
        except ValueError as error:
            raise ConfigError(
                f"{error} — expected kinds of {', '.join(QuestionKind)} and a selection of {', '.join(Selection)}"
            ) from error
        shares = {
            name: getattr(self, name) for name in ("gold_share", "repeat_share", "control_share", "qualification_pass")
        }
        for name, share in shares.items():
            if not 0.0 <= share <= 1.0:
                raise ConfigError(f"got {name} = {share} — expected a share in [0, 1]")
        if self.gold_share + self.repeat_share >= 1.0:
            raise ConfigError(
                f"got gold_share {self.gold_share} and repeat_share {self.repeat_share} — expected a sum below 1: "
                "something must be left for work"
            )
        if self.judgements_per_item < 1 or self.repeat_gap < 0 or self.max_text_characters < 1:
            raise ConfigError(
                f"got judgements_per_item {self.judgements_per_item}, repeat_gap {self.repeat_gap}, "
                f"max_text_characters {self.max_text_characters} — expected ≥ 1, ≥ 0 and ≥ 1"
            )
        if not (math.isfinite(self.lease_seconds) and self.lease_seconds > 0):
            raise ConfigError(f"got lease_seconds = {self.lease_seconds} — expected a number of seconds > 0")
        if not (math.isfinite(self.rating_min) and math.isfinite(self.rating_max)):
            raise ConfigError(f"got ratings {self.rating_min} … {self.rating_max} — expected finite numbers")
        if self.rating_min >= self.rating_max:
            raise ConfigError(f"got ratings {self.rating_min} … {self.rating_max} — expected the smaller number first")
        if not self.kinds or len(set(self.kinds)) < len(self.kinds):
            raise ConfigError(f"got kinds {[str(kind) for kind in self.kinds]} — expected at least one, each once")
        if QuestionKind.RATING in self.kinds and not (self.attributes and all(self.attributes)):
            raise ConfigError(f"got attributes {self.attributes} — expected names for the ratings to be given on")

    def to_json(self) -> dict[str, Any]:
        """Return the settings as plain JSON values; `settings_from_json` is the inverse."""
        return asdict(self)


def settings_from_json(values: Mapping[str, Any]) -> ProjectSettings:
    """Build settings from plain values. Raises ConfigError for an unknown name or value."""
    known = {item.name for item in fields(ProjectSettings)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ConfigError(f"got the setting {unknown[0]!r} of a project — expected one of {', '.join(sorted(known))}")
    given = dict(values)
    try:
        if "attributes" in given:
            given["attributes"] = tuple(str(name) for name in given["attributes"])
        return ProjectSettings(**given)
    except (TypeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"got settings of a project that cannot be read: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A question about some responses to a prompt, as stored: the order here is the data's, not the one shown."""

    id: int
    kind: QuestionKind
    role: ItemRole
    prompt: tuple[Message, ...]  # turns; a prompt given as plain text is one user turn; may be empty
    responses: tuple[str, ...]  # texts; turns of a response are joined by blank lines with their roles
    group_id: int  # the group of responses it was made from …
    members: tuple[int, ...]  # … and which of that group's responses these are
    margin: float | None  # how sure a model is; the smaller the sooner it is asked
    num_judgements: int  # by how many annotators it was judged (work only)
    is_finished: bool
    is_aside: bool  # flagged as unsafe and not released since


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """An item in somebody's hands: `responses` are in the order to show, without a word of who wrote them.

    `kind` tells gold and repeated items from work: keep it from the annotator.
    """

    id: str  # random, tells nothing
    item_id: int
    annotator_id: int
    kind: AssignmentKind
    question: QuestionKind
    prompt: tuple[Message, ...]
    responses: tuple[str, ...]  # in the order to show
    shown_order: tuple[int, ...]  # place shown → index in the item
    state: AssignmentState
    assigned_at: float  # seconds since 1970, UTC; of the first time
    lease_until: float  # seconds since 1970, UTC
    selected_by: Selection


@dataclass(frozen=True, slots=True, kw_only=True)
class Idle:
    """Nothing to do: why, and how many items are left that others hold."""

    reason: IdleReason
    num_leased: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotator:
    """Somebody who judges: a person, a model, a simulated annotator; or who manages."""

    id: int
    name: str  # "" until the invitation is redeemed
    pseudonym: str  # what exported judgements carry
    role: Role
    state: AnnotatorState
    kind: AnnotatorKind
    note: str  # why paused, if so; else ""
    prompt: str  # a model's: what it was asked with; else ""
    version: str  # a model's; else ""
    created_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened, as it was recorded; `payload` of an ANSWER is in terms of the places shown."""

    id: int
    kind: EventKind
    annotator_id: int
    assignment_id: str | None
    item_id: int | None
    payload: Mapping[str, Any] = field(default_factory=dict)
    shown_order: tuple[int, ...] | None
    seconds: float | None  # time on task
    corrects: int | None  # the event taken back (UNDO) or given anew (ANSWER after an UNDO)
    idempotency_key: str | None
    created_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnotatorProgress:
    """What one annotator has done; corrections counted once."""

    annotator: Annotator
    num_judgements: int  # work and repeats
    num_skips: int
    num_flags: int
    num_gold: int  # gold items answered …
    num_gold_right: int  # … and rightly
    median_seconds: float | None  # per answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a project is."""

    num_items: int  # of work
    num_finished: int
    num_aside: int
    num_judgements: int  # of work, corrections counted once
    num_wanted: int  # items that are not set aside × judgements per item
    num_leased: int  # in somebody's hands just now
    num_skips: int
    num_flags: int
    annotators: tuple[AnnotatorProgress, ...]
