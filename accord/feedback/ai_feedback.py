"""Models at the same queue as people: a judge or a reward answers items and signs with its prompt and version."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from accord.errors import FeedbackError
from accord.feedback.findings import Finding, Reward
from accord.feedback.judges.judging import Judge
from accord.feedback.people.project import Project
from accord.feedback.people.values import PAIRWISE, AnnotatorKind, Assignment, ProjectSettings, QuestionKind
from accord.records import Comparison, Critique, Group, Judgement, Label, Ranking, Rating, Response

_PLAIN_LEVEL = 2  # of a comparison without a strength: "better", neither slightly nor much
_MAX_LEVEL = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueJudged:
    """What a model did at the queue."""

    annotator_id: int
    num_answers: int
    num_skips: int  # what stayed unknown, and what the question had no answer for


def judge_queue(
    project: Project,
    judge: Judge | Reward,
    *,
    prompt: str = "",
    version: str = "",
    level_step: float = 1.0,
    threshold: float = 0.0,
    batch_size: int = 16,
    limit: int | None = None,
) -> QueueJudged:
    """Have a judge or a reward answer items until none is left for it (or `limit` of them were), and count.

    It becomes an annotator of kind MODEL under its own name; `prompt` and `version` are recorded with it, and another
    of either is another annotator. A difference of scores or a strength s becomes the level min(4, ⌈s / level_step⌉),
    a comparison without a strength level 2; a score ≥ threshold is a thumb up. What is unknown is skipped with the
    reason, never guessed; so is a tie where the question has none. Answers are those of the places shown: a judge that
    minds the order sees the drawn one.
    Raises FeedbackError when the judge is down for good; what was answered stays, and the next call goes on from there.
    """
    if not level_step > 0 or batch_size < 1:
        raise FeedbackError(f"got level_step {level_step}, batch_size {batch_size} — expected > 0 and ≥ 1")
    annotator = project.add_annotator(judge.name, kind=AnnotatorKind.MODEL, prompt=prompt, version=version)
    num_answers = num_skips = 0
    while limit is None or num_answers + num_skips < limit:
        left = batch_size if limit is None else min(batch_size, limit - num_answers - num_skips)
        held = project.next_assignments(annotator.id, left)
        if not held:
            break
        groups = [_shown_group(project, assignment) for assignment in held]
        for assignment, (given, reason) in zip(held, _ask(judge, groups), strict=True):
            payload = _payload(assignment, given, project.settings, level_step=level_step, threshold=threshold)
            if payload is None:
                why = _cut(reason or "the judge gives no answer to this question", project.settings)
                project.skip(annotator.id, assignment.id, why, f"{assignment.id}/judged")
                num_skips += 1
                continue
            if reason:
                payload["comment"] = _cut(reason, project.settings)
            project.submit(annotator.id, assignment.id, payload, f"{assignment.id}/judged")
            num_answers += 1
    return QueueJudged(annotator_id=annotator.id, num_answers=num_answers, num_skips=num_skips)


def _shown_group(project: Project, assignment: Assignment) -> Group:
    """The assignment as a group whose response i is the one shown at place i, with the columns verifiers read."""
    return Group(
        prompt=assignment.prompt,
        responses=tuple(Response(content=text) for text in assignment.responses),
        origin=f"{project.name}:item {assignment.item_id}",
        extra=project.item_extra(assignment.item_id),
    )


def _ask(judge: Judge | Reward, groups: Sequence[Group]) -> list[tuple[tuple[Judgement, ...], str]]:
    """What is said of each group as judgements, and in words."""
    if callable(judge):
        return [(_ratings(findings), _reasons(findings)) for findings in judge(groups)]
    return [(found.judgements, "; ".join(found.unknown)) for found in judge.judge(groups)]


def _ratings(findings: Sequence[Finding]) -> tuple[Judgement, ...]:
    """Ratings of every response, or none: one that is not known leaves the question open."""
    if any(finding.score is None or not math.isfinite(finding.score) for finding in findings):
        return ()
    scores = [Rating(response=place, value=f.score) for place, f in enumerate(findings) if f.score is not None]
    parts = [
        Rating(response=place, value=value, attribute=name)
        for place, finding in enumerate(findings)
        for name, value in finding.parts.items()
        if value is not None and name != "overall"
    ]
    return (*scores, *parts)


def _reasons(findings: Sequence[Finding]) -> str:
    return "; ".join(finding.reason for finding in findings if finding.reason)


def _payload(
    assignment: Assignment,
    given: Sequence[Judgement],
    settings: ProjectSettings,
    *,
    level_step: float,
    threshold: float,
) -> dict[str, Any] | None:
    """The answer in the words of the question; None where the judgements hold none."""
    kind, places = assignment.question, range(len(assignment.responses))
    scores = {r.response: r.value for r in given if isinstance(r, Rating) and r.attribute == "overall"}
    if kind in PAIRWISE:
        return _level(kind, given, scores, level_step)
    if kind is QuestionKind.THUMBS:
        labels = [label.is_desirable for label in given if isinstance(label, Label) and label.step is None]
        if labels or 0 in scores:
            return {"is_desirable": labels[0] if labels else scores[0] >= threshold}
    elif kind is QuestionKind.RANKING:
        rankings = [ranking.order for ranking in given if isinstance(ranking, Ranking)]
        if rankings:
            return {"order": [list(tier) for tier in rankings[0]]}
        if all(place in scores for place in places):
            best_first = sorted(places, key=lambda place: -scores[place])
            return {"order": [list(tier) for _, tier in groupby(best_first, key=lambda place: scores[place])]}
    elif kind is QuestionKind.RATING:
        return _rated(given, settings)
    else:
        critiques = [critique for critique in given if isinstance(critique, Critique)]
        if critiques and isinstance(critiques[0].edited, str | None):
            return _criticised(kind, critiques[0].text, critiques[0].edited)
    return None


def _level(
    kind: QuestionKind, given: Sequence[Judgement], scores: Mapping[int, float], level_step: float
) -> dict[str, Any] | None:
    comparisons = [comparison for comparison in given if isinstance(comparison, Comparison)]
    if comparisons:
        first = comparisons[0]
        strength = None if first.strength is None else abs(first.strength)
        is_equal, is_first_better = first.is_tie or strength == 0, first.better == 0
    elif {0, 1} <= set(scores):
        strength = abs(scores[0] - scores[1])
        is_equal, is_first_better = strength == 0, scores[0] > scores[1]
    else:
        return None
    if is_equal:
        return {"level": 0} if kind is QuestionKind.PAIRWISE_TIES else None
    size = _PLAIN_LEVEL if strength is None else min(_MAX_LEVEL, math.ceil(min(strength / level_step, _MAX_LEVEL)))
    return {"level": -size if is_first_better else size}


def _rated(given: Sequence[Judgement], settings: ProjectSettings) -> dict[str, Any] | None:
    """Ratings on each of the project's attributes; one that is missing or off the scale leaves the question open."""
    values = {rating.attribute: float(rating.value) for rating in given if isinstance(rating, Rating)}
    if len(settings.attributes) == 1 and "overall" in values:
        values.setdefault(settings.attributes[0], values["overall"])
    chosen = {name: values[name] for name in settings.attributes if name in values}
    is_whole = len(chosen) == len(settings.attributes)
    is_on_scale = all(settings.rating_min <= value <= settings.rating_max for value in chosen.values())
    return {"ratings": chosen} if is_whole and is_on_scale else None


def _criticised(kind: QuestionKind, text: str, edited: str | None) -> dict[str, Any] | None:
    if kind is QuestionKind.CRITIQUE:
        return {"text": text, "edited": edited} if text.strip() else None
    return {"edited": edited, "text": text} if edited and edited.strip() else None


def _cut(text: str, settings: ProjectSettings) -> str:
    clean = text.replace("\x00", "").encode("utf-8", "replace").decode()
    return clean[: settings.max_text_characters]
