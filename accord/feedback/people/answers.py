"""What an answer to each kind of question looks like: checked strictly, then turned into Accord's own judgements.

Everything in an answer is in terms of the places SHOWN: place 0 is A, the one shown first. In a judgement it is in
terms of the group, whatever the order shown was.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from accord.errors import FeedbackError
from accord.feedback.people.values import ProjectSettings, QuestionKind
from accord.records import Comparison, Critique, Judgement, Label, Ranking, Rating


class Answer(BaseModel):
    """What every answer may carry: a free comment."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    comment: str = ""


def _not_zero(level: int) -> int:
    if level == 0:
        raise ValueError("one of the two must be said to be better, if only slightly")
    return level


class Pairwise8(Answer):
    """−4 = A much better … −1 = A slightly better, 1 = B slightly better … 4 = B much better."""

    level: Annotated[int, Field(ge=-4, le=4), AfterValidator(_not_zero)]


class PairwiseTies(Answer):
    """As `Pairwise8`, with 0 = equally good."""

    level: Annotated[int, Field(ge=-4, le=4)]


class ThumbsAnswer(Answer):
    """Whether the response is good enough."""

    is_desirable: bool


class RankingAnswer(Answer):
    """Places shown, from best to worst; those of one inner list are tied. Each place exactly once."""

    order: list[list[int]]


class RatingAnswer(Answer):
    """A number in the project's range for every attribute of the project."""

    ratings: dict[str, float]


class CritiqueAnswer(Answer):
    """What is good and bad about the response; `edited` is the response written better, if one wishes."""

    text: Annotated[str, Field(min_length=1)]
    edited: str | None = None


class EditAnswer(Answer):
    """The response written better; `text` says why, if one wishes."""

    edited: Annotated[str, Field(min_length=1)]
    text: str = ""


ANSWERS: dict[QuestionKind, type[Answer]] = {
    QuestionKind.PAIRWISE8: Pairwise8,
    QuestionKind.PAIRWISE_TIES: PairwiseTies,
    QuestionKind.THUMBS: ThumbsAnswer,
    QuestionKind.RANKING: RankingAnswer,
    QuestionKind.RATING: RatingAnswer,
    QuestionKind.CRITIQUE: CritiqueAnswer,
    QuestionKind.EDIT: EditAnswer,
}


def read_answer(
    kind: QuestionKind, payload: Mapping[str, Any], settings: ProjectSettings, *, num_responses: int
) -> Answer:
    """Check an answer as it came from outside. Raises FeedbackError saying which field is wrong and what it may be."""
    try:
        answer = ANSWERS[kind].model_validate(dict(payload))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the answer"
        raise FeedbackError(
            f"got an answer to a {kind} question that cannot be taken: {place}: {first['msg']} — expected the fields "
            f"{', '.join(ANSWERS[kind].model_fields)}"
        ) from error
    _check_texts(answer, settings.max_text_characters)
    if isinstance(answer, RankingAnswer):
        _check_order(answer.order, num_responses)
    if isinstance(answer, RatingAnswer):
        _check_ratings(answer.ratings, settings)
    return answer


def check_text(name: str, text: str, limit: int) -> None:
    """Refuse a text that is longer than the project allows, or that a database cannot hold. Raises FeedbackError."""
    if len(text) > limit:
        raise FeedbackError(f"got {name} of {len(text)} characters — expected at most {limit}")
    # PostgreSQL stores no NUL, and neither database a lone surrogate
    if "\x00" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise FeedbackError(f"got {name} with a character that is not text (NUL or half a pair) — remove it")


def _check_texts(answer: Answer, limit: int) -> None:
    for name in type(answer).model_fields:
        value = getattr(answer, name)
        if isinstance(value, str):
            check_text(name, value, limit)
            if name in ("text", "edited") and value and not value.strip():
                raise FeedbackError(f"got {name} of nothing but blanks — expected words")


def _check_order(order: Sequence[Sequence[int]], num_responses: int) -> None:
    places = [place for tier in order for place in tier]
    if sorted(places) != list(range(num_responses)) or not all(order):
        raise FeedbackError(f"got the ranking {order} — expected each of the places 0 … {num_responses - 1} once")


def _check_ratings(ratings: Mapping[str, float], settings: ProjectSettings) -> None:
    if set(ratings) != set(settings.attributes):
        raise FeedbackError(
            f"got ratings on {', '.join(sorted(ratings)) or 'nothing'} — expected one on each of "
            f"{', '.join(settings.attributes)}"
        )
    for name, value in ratings.items():
        if not (math.isfinite(value) and settings.rating_min <= value <= settings.rating_max):
            raise FeedbackError(
                f"got {name} = {value} — expected a number from {settings.rating_min:g} to {settings.rating_max:g}"
            )


def judgements_of(answer: Answer, shown: Sequence[int], judge: str | None) -> tuple[Judgement, ...]:
    """Turn an answer into judgements; `shown[place]` is the response shown there, by its index in the group.

    A level ±s becomes a Comparison of strength s, level 0 a tie; ratings one Rating per attribute.
    """
    order = tuple(shown)
    who: dict[str, Any] = {"judge": judge, "shown_order": order}
    match answer:
        case Pairwise8(level=level) | PairwiseTies(level=level):
            better, worse = (order[0], order[1]) if level <= 0 else (order[1], order[0])
            strength = float(abs(level)) if level else None
            return (Comparison(better=better, worse=worse, strength=strength, is_tie=level == 0, **who),)
        case ThumbsAnswer(is_desirable=is_desirable):
            return (Label(response=order[0], is_desirable=is_desirable, **who),)
        case RankingAnswer(order=tiers):
            return (Ranking(order=tuple(tuple(order[place] for place in tier) for tier in tiers), **who),)
        case RatingAnswer(ratings=ratings):
            return tuple(
                Rating(response=order[0], value=value, attribute=name, **who) for name, value in ratings.items()
            )
        case CritiqueAnswer(text=text, edited=edited) | EditAnswer(text=text, edited=edited):
            return (Critique(response=order[0], text=text, edited=edited or None, **who),)
    raise TypeError(f"unknown kind of answer: {type(answer).__name__}")


def is_right(given: Sequence[Judgement], known: Sequence[Judgement], settings: ProjectSettings) -> bool:
    """Whether judgements agree with the known ones of the same responses.

    A comparison: the same side, or both ties. A label: the same. A rating: within an eighth of the range of the known
    number, on every attribute known. A ranking: it reverses or ties none of the known order's pairs.
    """
    for fact in known:
        answers = [answer for answer in given if _is_about(answer, fact)]
        if not answers or not all(_agrees(answer, fact, settings) for answer in answers):
            return False
    return bool(known)


def can_be_known(kind: QuestionKind, known: Sequence[Judgement]) -> bool:
    """Whether judgements answer a question of this kind, so that an item can be gold."""
    wanted = {
        QuestionKind.PAIRWISE8: Comparison,
        QuestionKind.PAIRWISE_TIES: Comparison,
        QuestionKind.THUMBS: Label,
        QuestionKind.RANKING: Ranking,
        QuestionKind.RATING: Rating,
    }.get(kind)
    if wanted is None or not known or not all(isinstance(fact, wanted) for fact in known):
        return False
    return kind is not QuestionKind.PAIRWISE8 or not any(isinstance(f, Comparison) and f.is_tie for f in known)


def _is_about(answer: Judgement, fact: Judgement) -> bool:
    match answer, fact:
        case Comparison(), Comparison():
            return {answer.better, answer.worse} == {fact.better, fact.worse}
        case Rating(), Rating():
            return (answer.response, answer.attribute) == (fact.response, fact.attribute)
        case Label(), Label():
            return answer.response == fact.response
    return isinstance(answer, Ranking) and isinstance(fact, Ranking)


def _agrees(answer: Judgement, fact: Judgement, settings: ProjectSettings) -> bool:
    match answer, fact:
        case Comparison(), Comparison():
            return answer.is_tie == fact.is_tie and (fact.is_tie or answer.better == fact.better)
        case Rating(), Rating():
            return abs(answer.value - fact.value) <= (settings.rating_max - settings.rating_min) / 8
        case Label(), Label():
            return answer.is_desirable == fact.is_desirable
        case Ranking(), Ranking():
            tier = {index: place for place, members in enumerate(answer.order) for index in members}
            return all(
                tier[before] < tier[after]
                for place, members in enumerate(fact.order)
                for before in members
                for later in fact.order[place + 1 :]
                for after in later
            )
    return False
