"""What a policy is worth in the text world: gold reward, length and auxiliary skills, by sampling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from accord.lab.annotators import response_text
from accord.lab.text_world import (
    MAX_RESPONSE_TOKENS,
    Request,
    aux_problems,
    evaluate_responses,
    is_right_answer,
    render_request,
    user_prompt,
)
from accord.records import FinishReason, Group

if TYPE_CHECKING:
    from accord.policy.policy import Policy

Show = Callable[[str, int, int, str], None]
"""Move a progress bar: stage, done, total, note."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """R requests answered A times each at temperature 1."""

    requests: tuple[Request, ...]
    groups: tuple[Group, ...]
    gold_RA: NDArray[np.float64]
    num_items_RA: NDArray[np.int64]

    def text(self, place: int, answer: int = 0) -> str:
        """Return one answer's words."""
        return response_text(self.groups[place].responses[answer])

    @property
    def num_tokens(self) -> float:
        """Mean length of an answer in tokens."""
        return float(np.mean([len(r.token_ids or ()) for group in self.groups for r in group.responses]))

    @property
    def ended_share(self) -> float:
        """Share of answers that ended by themselves."""
        return float(np.mean([_has_ended(group) for group in self.groups]))


def sample_answers(
    policy: Policy,
    requests: Sequence[Request],
    *,
    num_answers: int,
    seed: int,
    show: Callable[[int, int], None] = lambda done, total: None,
) -> Answers:
    """Answer requests at temperature 1 and score every answer by the gold reward."""
    groups: list[Group] = []
    for place, request in enumerate(requests):
        prompt = user_prompt(render_request(request))
        groups += policy.sample([prompt], num_responses=num_answers, max_tokens=MAX_RESPONSE_TOKENS, seed=seed + place)
        show(place + 1, len(requests))
    scores = evaluate_responses(
        [request for request in requests for _ in range(num_answers)],
        [response_text(response) for group in groups for response in group.responses],
        [ended for group in groups for ended in _has_ended(group)],
    )
    shape = (len(requests), num_answers)
    return Answers(
        requests=tuple(requests),
        groups=tuple(groups),
        gold_RA=scores.gold_N.reshape(shape),
        num_items_RA=scores.num_items_N.reshape(shape),
    )


def measure_aux(policy: Policy, *, num_problems: int = 400, seed: int = 1) -> tuple[float, float]:
    """Return the shares of additions and of reversals answered exactly, greedily."""
    problems = aux_problems(np.random.default_rng(seed), num_problems)
    groups = policy.sample([user_prompt(problem.prompt) for problem in problems], max_tokens=8, temperature=0.0)
    right = [
        is_right_answer(problem, response_text(group.responses[0]))
        for problem, group in zip(problems, groups, strict=True)
    ]
    return float(np.mean(right[0::2])), float(np.mean(right[1::2]))


def _has_ended(group: Group) -> list[bool]:
    return [response.finish_reason is FinishReason.STOP for response in group.responses]
