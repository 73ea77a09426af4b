"""Groups of responses cut into items: questions that are stored once, and how sure a model is of their answers."""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from random import Random
from typing import Any

import sqlalchemy as sa

from accord.data import group_to_row, read_group
from accord.errors import ConfigError, DataError, FeedbackError
from accord.feedback.people.answers import can_be_known
from accord.feedback.people.store import GROUPS, ITEMS, Desk
from accord.feedback.people.values import PAIRWISE, Item, ItemRole, ProjectSettings, QuestionKind, Selection
from accord.records import Group, Judgement, Message, Text, judged_responses

Score = float | Sequence[float] | None
"""What a model says of a response: a number, one per member of an ensemble, or None where it is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Some responses of a group that are asked about together."""

    members: tuple[int, ...]
    margin: float | None


def questions_of(
    group: Group,
    kind: QuestionKind,
    scores: Sequence[Score] | None,
    *,
    num_pairs: int | None,
    seed: int,
    known_only: bool = False,
) -> list[Question]:
    """Return the questions of a kind that a group gives.

    Pairwise: a pair each, `num_pairs` of them drawn (None: all); ranking: one of all responses; else one per response.
    `known_only`: only those that the group's own judgements answer.
    """
    indices = range(len(group.responses))
    if kind in PAIRWISE or kind is QuestionKind.RANKING:
        if len(indices) < 2:
            raise DataError(f"{_place(group)}: got one response — expected two or more for a {kind} question")
        sets = list(combinations(indices, 2)) if kind in PAIRWISE else [tuple(indices)]
    else:
        sets = [(index,) for index in indices]
    if known_only:
        sets = [members for members in sets if can_be_known(kind, known_answers(group, members))]
        if not sets:
            raise DataError(
                f"{_place(group)}: got no judgement that answers a {kind} question — expected gold and qualification "
                "groups to carry the known answers as their judgements"
            )
    if kind in PAIRWISE and num_pairs is not None and num_pairs < len(sets):
        sets = sorted(Random(f"{seed}/{digest_of(group)}").sample(sets, num_pairs))
    return [Question(members=members, margin=None if scores is None else margin(scores, members)) for members in sets]


def known_answers(group: Group, members: Sequence[int]) -> list[Judgement]:
    """Return the judgements of a group that speak of these responses and of no others."""
    return [judgement for judgement in group.judgements if set(judged_responses(judgement)) == set(members)]


def margin(scores: Sequence[Score], members: Sequence[int]) -> float | None:
    """Return how sure a model is of the answer, the smaller the less; None where a score is not known.

    One model: the smallest gap between neighbours in its order, min |s_i − s_j| (of a single response, |s|: scores are
    taken for logits). An ensemble of M: the smallest |mean| / standard deviation over its members of the difference
    s_i − s_j (of s itself for a single response); unanimous members are infinitely sure, unless all say 0.
    """
    rows = [_members_of(scores[index]) for index in members]
    if any(row is None for row in rows):
        return None
    known = [row for row in rows if row is not None]
    if len({len(row) for row in known}) > 1:
        raise DataError("got scores of ensembles of different sizes — expected as many for every response")
    if len(known) == 1:
        return _sureness(known[0])
    return min(
        _sureness([a - b for a, b in zip(first, second, strict=True)]) for first, second in combinations(known, 2)
    )


def _members_of(score: Score) -> list[float] | None:
    if score is None:
        return None
    values = [float(score)] if isinstance(score, int | float) else [float(value) for value in score]
    if not values or any(math.isnan(value) for value in values):
        return None
    return values


def _sureness(values: Sequence[float]) -> float:
    centre = abs(statistics.fmean(values))
    if len(values) == 1 or centre == 0.0:
        return centre
    spread = statistics.stdev(values)
    return centre / spread if spread > 0 else math.inf


def group_rows(
    groups: Sequence[Group],
    kind: QuestionKind,
    role: ItemRole,
    settings: ProjectSettings,
    *,
    scores: Sequence[Sequence[Score]] | None,
    num_pairs: int | None,
) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Return what is stored for groups: each one's row with the rows of its items, the database's ids left out.

    Work begins unjudged: judgements that a group came with are left out. Raises DataError for a group that cannot be
    shown, ConfigError for a kind the project does not ask or scores that do not fit.
    """
    _check_request(groups, kind, role, settings, scores)
    found = []
    for place, group in enumerate(groups):
        _check_texts(group)
        is_work = role is ItemRole.WORK
        stored = replace(group, judgements=()) if is_work else group
        own = None if scores is None else scores[place]
        if own is not None and len(own) != len(group.responses):
            raise ConfigError(
                f"{_place(group)}: got {len(own)} scores for {len(group.responses)} responses — expected as many"
            )
        digest = digest_of(stored)
        items = []
        for question in questions_of(
            stored, kind, own, num_pairs=num_pairs, seed=settings.seed, known_only=not is_work
        ):
            draw = Random(f"{settings.seed}/{digest}/{kind}/{question.members}").random()
            is_by_margin = settings.selection is Selection.UNCERTAIN and is_work
            sure = 1e300 if question.margin is None else min(question.margin, 1e299)  # what is not known comes last
            items.append(
                {
                    "kind": str(kind),
                    "role": str(role),
                    "members": json.dumps(question.members),
                    "margin": None if question.margin is None else sure,
                    "rank": sure if is_by_margin else draw,
                    "draw": draw,
                    "is_aside": False,
                }
            )
        found.append(({"digest": digest, "row": json.dumps(group_to_row(stored), ensure_ascii=False)}, items))
    return found


def add_rows(desk: Desk, found: Sequence[tuple[dict[str, Any], list[dict[str, Any]]]]) -> int:
    """Store groups and items that are not there yet, and return how many items are new."""
    num_new = 0
    for group, items in found:
        group_id = _find_or_add_group(desk, group)
        query = sa.select(ITEMS.c.kind, ITEMS.c.role, ITEMS.c.members).where(ITEMS.c.group_id == group_id)
        known = {(item.kind, item.role, item.members) for item in desk.connection.execute(query)}
        fresh = [item for item in items if (item["kind"], item["role"], item["members"]) not in known]
        if fresh:
            rows = [{**item, "project_id": desk.project_id, "group_id": group_id} for item in fresh]
            desk.connection.execute(ITEMS.insert(), rows)
        num_new += len(fresh)
    return num_new


def _find_or_add_group(desk: Desk, group: Mapping[str, Any]) -> int:
    known = desk.connection.execute(
        sa.select(GROUPS.c.id).where(GROUPS.c.project_id == desk.project_id, GROUPS.c.digest == group["digest"])
    ).scalar_one_or_none()
    if known is not None:
        return known
    done = desk.connection.execute(GROUPS.insert().values(project_id=desk.project_id, **group))
    assert done.inserted_primary_key is not None
    return done.inserted_primary_key[0]


def load_item(desk: Desk, item_id: int) -> tuple[Item, Group]:
    """Return an item and the group it was made of. Raises FeedbackError when the project has none of that id."""
    query = sa.select(ITEMS, GROUPS.c.row).join(GROUPS, GROUPS.c.id == ITEMS.c.group_id)
    found = desk.connection.execute(query.where(ITEMS.c.id == item_id, ITEMS.c.project_id == desk.project_id))
    row = found.mappings().one_or_none()
    if row is None:
        raise FeedbackError(f"got item {item_id} — expected one of this project's")
    group, members = stored_group(row["row"]), tuple(json.loads(row["members"]))
    item = Item(
        id=row["id"],
        kind=QuestionKind(row["kind"]),
        role=ItemRole(row["role"]),
        prompt=prompt_turns(group.prompt),
        responses=tuple(response_text(group.responses[index].content) for index in members),
        group_id=row["group_id"],
        members=members,
        margin=row["margin"],
        num_judgements=row["num_judgements"],
        is_finished=row["is_finished"],
        is_aside=row["is_aside"],
    )
    return item, group


def digest_of(group: Group) -> str:
    """Return a hash of what a group says, wherever it was read from."""
    text = json.dumps(group_to_row(replace(group, origin="")), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def stored_group(row: str) -> Group:
    """Return the group of a stored row."""
    return read_group(json.loads(row))


def prompt_turns(prompt: Text) -> tuple[Message, ...]:
    """Return a prompt as turns; plain text is one user turn, an empty prompt none."""
    if isinstance(prompt, str):
        return (Message(role="user", content=prompt),) if prompt else ()
    return prompt


def response_text(content: Text | None) -> str:
    """Return a response as the one text to show: further turns follow after a blank line, each with its role."""
    if content is None:
        raise DataError("got a response of token ids — expected words to read — decode it first")
    if isinstance(content, str):
        return content
    if len(content) == 1:
        return content[0].content
    return "\n\n".join(f"{turn.role}: {turn.content}" for turn in content)


def _check_request(
    groups: Sequence[Group],
    kind: QuestionKind,
    role: ItemRole,
    settings: ProjectSettings,
    scores: Sequence[Sequence[Score]] | None,
) -> None:
    if kind not in settings.kinds:
        raise ConfigError(f"got a {kind} question — expected one of the project's: {', '.join(settings.kinds)}")
    if scores is not None and len(scores) != len(groups):
        raise ConfigError(f"got scores of {len(scores)} groups for {len(groups)} — expected as many")
    if settings.selection is Selection.UNCERTAIN and role is ItemRole.WORK and scores is None:
        raise ConfigError(
            "got work without scores in a project that asks the uncertain first — expected a model's scores of the "
            "responses — pass scores=…, or create the project with selection=random"
        )


def _check_texts(group: Group) -> None:
    if group.extra.get("is_prompt_only"):
        raise DataError(f"{_place(group)}: got a prompt without responses — expected some to judge — sample them first")
    texts = [response_text(response.content) for response in group.responses]
    texts += [turn.content for turn in prompt_turns(group.prompt)]
    if any("\ud800" <= character <= "\udfff" for text in texts for character in text):
        raise DataError(f"{_place(group)}: got half a surrogate pair — expected text that can be shown")


def _place(group: Group) -> str:
    return group.origin or "a group"
