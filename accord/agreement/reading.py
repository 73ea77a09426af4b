"""What judges answered, read from groups: a row per answer, the same question recognised wherever it stands."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from accord.records import Comparison, Group, Judgement, Label, Message, Ranking, Rating, Response, Text

Floats = NDArray[np.float64]
PRINCIPLE = "principle:"
"""Judges whose name begins so are principles, not annotators."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer to one question. A preference is −1, 0 or 1, seen from the first of the two texts in sorted order."""

    kind: str
    cluster: Hashable  # the prompt
    item: Hashable
    judge: str | None
    value: float
    level: float  # with its strength
    chose_first: float = math.nan
    chose_longer: float = math.nan
    seconds: float = math.nan
    is_right: float = math.nan


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """All answers to one kind of question as columns; `judge` −1 is nobody named. First answers come first per item."""

    kind: str
    cluster: NDArray[np.int64]
    item: NDArray[np.int64]
    judge: NDArray[np.int64]
    value: Floats
    level: Floats
    chose_first: Floats
    chose_longer: Floats
    seconds: Floats
    is_right: Floats
    is_repeat: NDArray[np.bool_]  # the judge has answered it before

    def __len__(self) -> int:
        return len(self.item)

    def where(self, mask: NDArray[np.bool_]) -> Answers:
        """Return the answers of a mask."""
        columns = {name: getattr(self, name)[mask] for name in self.__slots__ if name != "kind"}
        return Answers(kind=self.kind, **columns)


def read_answers(groups: Sequence[Group], gold: Sequence[Group]) -> list[Answer]:
    """Return every answer in the groups, with what is known of its rightness."""
    known = _gold_values([answer for group in gold for answer in _answers_of(group)])
    answers = []
    for group in groups:
        for answer in _answers_of(group):
            truth = known.get((answer.kind, answer.item))
            if truth is not None and answer.value != 0:
                answer = _with_truth(answer, truth)
            answers.append(answer)
    return answers


def tabulate(
    answers: Sequence[Answer], judges: Mapping[str, int], clusters: Mapping[Hashable, int]
) -> dict[str, Answers]:
    """Return the answers of each kind as columns, kinds in order of their first answer."""
    found: dict[str, list[Answer]] = {}
    for answer in answers:
        found.setdefault(answer.kind, []).append(answer)
    return {kind: _columns(kind, rows, judges, clusters) for kind, rows in found.items()}


def _columns(kind: str, rows: Sequence[Answer], judges: Mapping[str, int], clusters: Mapping[Hashable, int]) -> Answers:
    items: dict[Hashable, int] = {}
    seen: set[tuple[int, int]] = set()
    repeats = []
    for row in rows:
        key = (items.setdefault(row.item, len(items)), judges.get(row.judge or "", -1))
        repeats.append(key in seen and key[1] >= 0)
        seen.add(key)
    numbers = {
        name: np.array([getattr(row, name) for row in rows], dtype=np.float64)
        for name in ("value", "level", "chose_first", "chose_longer", "seconds", "is_right")
    }
    return Answers(
        kind=kind,
        cluster=np.array([clusters[row.cluster] for row in rows], dtype=np.int64),
        item=np.array([items[row.item] for row in rows], dtype=np.int64),
        judge=np.array([judges.get(row.judge or "", -1) for row in rows], dtype=np.int64),
        is_repeat=np.array(repeats, dtype=np.bool_),
        **numbers,
    )


def _answers_of(group: Group) -> Iterator[Answer]:
    prompt = _text_key(group.prompt)
    keys = [_response_key(response) for response in group.responses]
    lengths = [_length(response) for response in group.responses]
    for number, judgement in enumerate(group.judgements):
        seconds, is_right = _about(group, number, judgement)
        for answer in _read(group, judgement, prompt, keys, lengths):
            own = _own_truth(group, keys, answer, judgement) if math.isnan(is_right) else is_right
            yield _with(answer, seconds=seconds, is_right=own)
            seconds = math.nan  # a ranking took its time once


def _read(
    group: Group, judgement: Judgement, prompt: Hashable, keys: Sequence[Hashable], lengths: Sequence[float]
) -> Iterator[Answer]:
    match judgement:
        case Comparison(better=better, worse=worse, is_tie=is_tie, strength=strength):
            step = 0.0 if is_tie else 1.0
            yield from _preference(judgement, prompt, keys, lengths, better, worse, step, strength)
        case Ranking(order=order):
            tier_of = {index: tier for tier, members in enumerate(order) for index in members}
            for first, second in combinations(sorted(tier_of), 2):
                better, worse = (first, second) if tier_of[first] <= tier_of[second] else (second, first)
                step = 0.0 if tier_of[first] == tier_of[second] else 1.0
                yield from _preference(judgement, prompt, keys, lengths, better, worse, step, None)
        case Label(response=index, is_desirable=is_desirable, step=step):
            value = float(is_desirable)
            item = (prompt, keys[index], step)
            yield Answer(kind="label", cluster=prompt, item=item, judge=judgement.judge, value=value, level=value)
        case Rating(response=index, value=value, attribute=attribute) if math.isfinite(value):
            item, kind = (prompt, keys[index], attribute), f"rating:{attribute}"
            yield Answer(kind=kind, cluster=prompt, item=item, judge=judgement.judge, value=value, level=value)
        case _:
            return


def _preference(
    judgement: Judgement, prompt: Hashable, keys: Sequence[Hashable], lengths: Sequence[float],
    better: int, worse: int, step: float, strength: float | None,
) -> Iterator[Answer]:  # fmt: skip
    if keys[better] == keys[worse]:
        return  # two equal responses: whichever was chosen says nothing
    low, high = sorted((keys[better], keys[worse]), key=repr)
    value = step if keys[better] == low else -step
    places = {index: place for place, index in enumerate(judgement.shown_order or ())}
    is_shown = step > 0 and better in places and worse in places
    difference = lengths[better] - lengths[worse]
    yield Answer(
        kind="preference", cluster=prompt, item=(prompt, low, high), judge=judgement.judge, value=value,
        level=value * (1.0 if strength is None else abs(strength)),
        chose_first=float(places[better] < places[worse]) if is_shown else math.nan,
        chose_longer=float(difference > 0) if step > 0 and difference != 0 else math.nan,
    )  # fmt: skip


def _about(group: Group, number: int, judgement: Judgement) -> tuple[float, float]:
    """Return what the group says beside a judgement: seconds, and whether it was right."""
    collected = group.extra.get("collected")
    rows = collected.get("judgements") if isinstance(collected, Mapping) else None
    about: Any = rows[number] if isinstance(rows, Sequence) and number < len(rows) else {}
    seconds = about.get("seconds") if isinstance(about, Mapping) else None
    is_right = about.get("is_right") if isinstance(about, Mapping) else None
    if seconds is None:
        given = group.extra.get("seconds")
        if isinstance(given, Mapping):
            seconds = given.get(judgement.judge)
        elif isinstance(given, Sequence) and not isinstance(given, str) and number < len(given):
            seconds = given[number]
    is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool) and seconds > 0
    return (
        float(seconds) if is_number else math.nan,  # pyright: ignore[reportArgumentType]  # a number, as just asked
        math.nan if is_right is None else float(bool(is_right)),
    )


def _own_truth(group: Group, keys: Sequence[Hashable], answer: Answer, judgement: Judgement) -> float:
    """Return whether a comparison names the response that the group's `extra["gold"]` calls better."""
    gold = group.extra.get("gold")
    if not isinstance(gold, int) or isinstance(gold, bool) or not isinstance(judgement, Comparison) or not answer.value:
        return math.nan
    if gold not in (judgement.better, judgement.worse):
        return math.nan
    return float(judgement.better == gold)


def _gold_values(answers: Sequence[Answer]) -> dict[tuple[str, Hashable], float]:
    """Return the known answers: the majority where several are given, none where they balance."""
    total: dict[tuple[str, Hashable], float] = {}
    for answer in answers:
        if answer.kind in ("preference", "label"):
            vote = answer.value if answer.kind == "preference" else 2 * answer.value - 1
            total[answer.kind, answer.item] = total.get((answer.kind, answer.item), 0.0) + vote
    return {key: math.copysign(1.0, value) for key, value in total.items() if value}


def _with_truth(answer: Answer, truth: float) -> Answer:
    vote = answer.value if answer.kind == "preference" else 2 * answer.value - 1
    return _with(answer, seconds=answer.seconds, is_right=float(vote == truth))


def _with(answer: Answer, *, seconds: float, is_right: float) -> Answer:
    return replace(answer, seconds=seconds, is_right=is_right)


def _text_key(text: Text) -> Hashable:
    return text if isinstance(text, str) else tuple(_turn_key(turn) for turn in text)


def _turn_key(turn: Message) -> Hashable:
    return (turn.role, turn.content)


def _response_key(response: Response) -> Hashable:
    return ("ids", response.token_ids) if response.content is None else _text_key(response.content)


def _length(response: Response) -> float:
    """Return characters of a text, tokens where there are only ids."""
    if response.content is None:
        return float(len(response.token_ids or ()))
    if isinstance(response.content, str):
        return float(len(response.content))
    return float(sum(len(turn.content) for turn in response.content))
