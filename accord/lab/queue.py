"""Simulated annotators at the queue where people judge: the same items, the same calls, known tastes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from accord.errors import DataError
from accord.feedback.people import AnnotatorKind, Idle, Project, QuestionKind
from accord.lab.annotators import SimulatedAnnotator
from accord.lab.text_world import Request, parse_request
from accord.records import Message, Response


def work_queue(
    project: Project, annotators: Sequence[SimulatedAnnotator], *, seed: int, limit: int | None = None
) -> int:
    """Have annotators take turns at a project of text-world items until nothing is left for any; return the answers.

    Each becomes an annotator of kind SIMULATED under its own name, qualifies where there is a qualification, and
    stops after `limit` answers. Raises DataError when two share a name or a prompt is no request of the text world.
    """
    if len({annotator.name for annotator in annotators}) < len(annotators):
        raise DataError("got two annotators of one name — expected a name each — use dataclasses.replace(…, name=…)")
    at_work = {
        project.add_annotator(annotator.name, kind=AnnotatorKind.SIMULATED).id: annotator for annotator in annotators
    }
    rngs = {number: np.random.default_rng((seed, place)) for place, number in enumerate(at_work)}
    answers = dict.fromkeys(at_work, 0)
    while at_work:
        for number, annotator in list(at_work.items()):
            found = None if answers[number] == limit else project.next_assignment(number)
            if found is None or isinstance(found, Idle):
                del at_work[number]  # what others hold is theirs
                continue
            payload = simulated_answer(annotator, found.question, found.prompt, found.responses, rngs[number])
            project.submit(number, found.id, payload, f"{found.id}/simulated")
            answers[number] += 1
    return sum(answers.values())


def simulated_answer(
    annotator: SimulatedAnnotator,
    kind: QuestionKind,
    prompt: tuple[Message, ...] | str,
    responses: Sequence[str],
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Return what a simulated annotator answers to responses as shown: the payload that `Project.submit` takes.

    A pair: B with probability P(B ≻ A), the level's size ⌈|logit P|⌉ in 1 … 4, a tie (where there is one) at P = 1/2
    exactly. A thumb up: a response is preferred to one of utility 0. A ranking: by a Plackett–Luce draw from the
    utilities (Gumbel noise of the annotator's temperature). Ratings, critiques and edits it has none.
    """
    request = parse_request(prompt)
    shown = [Response(content=text) for text in responses]
    match kind:
        case QuestionKind.PAIRWISE8 | QuestionKind.PAIRWISE_TIES:
            return {"level": _level(annotator.preference_probability(request, shown[1], shown[0]), kind, rng)}
        case QuestionKind.THUMBS:
            margin = annotator.utility(request, shown[0]) / annotator.temperature
            probability = 0.5 * (1.0 + math.tanh(0.5 * margin))
            is_flipped = bool(rng.random() < annotator.flip_rate)
            return {"is_desirable": bool(rng.random() < probability) != is_flipped}
        case QuestionKind.RANKING:
            return {"order": [[place] for place in _ranking(annotator, request, shown, rng)]}
    raise DataError(f"got a {kind} question — expected one that simulated annotators answer: pairs, thumbs, rankings")


def _level(prefers_second: float, kind: QuestionKind, rng: np.random.Generator) -> int:
    if kind is QuestionKind.PAIRWISE_TIES and prefers_second == 0.5:
        return 0
    clipped = min(max(prefers_second, 1e-12), 1 - 1e-12)
    size = min(4, max(1, math.ceil(abs(math.log(clipped / (1 - clipped))))))
    return size if rng.random() < prefers_second else -size


def _ranking(
    annotator: SimulatedAnnotator, request: Request, shown: Sequence[Response], rng: np.random.Generator
) -> list[int]:
    noisy = [annotator.utility(request, response) / annotator.temperature + float(rng.gumbel()) for response in shown]
    return sorted(range(len(shown)), key=lambda place: -noisy[place])
