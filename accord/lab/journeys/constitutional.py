"""Constitutional AI in the text world: a detector of violations criticises, a rewrite operator revises, both choose."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from accord.data import write_groups
from accord.feedback.judges import judge_groups as judge_by
from accord.feedback.judges.chat import Conversation, Reply
from accord.feedback.judges.constitution import ConstitutionJudge, critique_and_revise, demonstrations
from accord.feedback.judges.prompts import Principle
from accord.lab.annotators import response_text
from accord.lab.journeys.parts import (
    BASE,
    Tell,
    compare_with_base,
    learn_from,
    measure,
    sample_groups,
)
from accord.lab.text_world import (
    FACTS,
    FILLERS,
    MARKERS,
    Request,
    gold_reward,
    parse_request,
    parse_response,
    split_requests,
)
from accord.policy.load import load_policy
from accord.records import Group

ANSWERS_PER_REQUEST = 24
NUM_REVISIONS = 4
PAIRS_PER_REQUEST = 32
SFT: dict[str, Any] = {"objective": "sft", "train.batch_size": 64, "train.lr": 3e-4, "train.epochs": 2}
DPO: dict[str, Any] = {
    "objective": "dpo", "objective.beta": 0.1, "train.batch_size": 32, "train.lr": 1e-4, "train.warmup": 0.1,
}  # fmt: skip


def _principle(name: str, asked: str, change: str) -> Principle:
    return Principle(
        name=name,
        critique=f"Say which words of the answer {asked}.",
        revision=f"Rewrite the answer: {change}.",
        choice=f"Which of the two answers has fewer words that {asked}?",
    )


IN_FULL = Principle(
    name="in full",
    critique="Say how many of the facts that were asked for are missing.",
    revision="Rewrite the answer: add the facts that are missing.",
    choice="Which of the two answers leaves out fewer of the facts that were asked for?",
)
PRINCIPLES = (
    IN_FULL,
    _principle("on the topic", "say what was not asked about", "say only what was asked about"),
    _principle("not twice", "say a thing twice", "say each thing once"),
    _principle("in the tone", "are not in the tone asked for", "use only words of the tone asked for"),
)
_BETWEEN = r"<{0}>\n(.*?)\n</{0}>"


class LabChat:
    """Answers a constitution's questions about the text world by rule: it sees violations, never the gold reward.

    It criticises, revises and chooses by the four `PRINCIPLES`; the log-odds of a choice are the difference in
    violations of the principle that is asked about. It understands `revise.v1` and `choice.v1` alone.
    """

    name = "lab-rules"

    def answer(self, conversations: Sequence[Conversation], *, attempt: int = 0) -> list[Reply]:
        """Criticise (after the first question) or revise (after the second)."""
        return [Reply(text=self._reply(turns)) for turns in conversations]

    def option_logps(
        self, conversations: Sequence[Conversation], options: Sequence[str]
    ) -> list[tuple[float, ...] | None]:
        """Return log σ(± difference in violations) of A and B."""
        found: list[tuple[float, ...] | None] = []
        for turns in conversations:
            question = turns[0].content
            request, principle = parse_request(_part(question, "request")), _principle_in(question, "choice")
            ours, theirs = (
                num_violations(request, _part(question, name), principle) for name in ("answer_a", "answer_b")
            )
            found.append((-float(np.logaddexp(0, ours - theirs)), -float(np.logaddexp(0, theirs - ours))))
        return found

    def _reply(self, turns: Conversation) -> str:
        question = turns[0].content
        request, text = parse_request(_part(question, "request")), _part(question, "answer")
        if len(turns) == 1:
            count = num_violations(request, text, _principle_in(question, "critique"))
            return f"{count} of them." if count else "None."
        return rewritten(request, text, _principle_in(turns[-1].content, "revision"))


def num_violations(request: Request, text: str, principle: str) -> int:
    """Return how many items of an answer violate a principle (given by its name), or are missing from it."""
    if principle == IN_FULL.name:
        return len(_missing(request, text))
    return sum(is_violation for _, is_violation in _checked(request, text, principle))


def rewritten(request: Request, text: str, principle: str) -> str:
    """Return the answer without the items that violate a principle, or with those that it lacks.

    One that would be left with nothing stays as it is.
    """
    if principle == IN_FULL.name:
        return " ".join([text, *_missing(request, text)]).strip()
    kept = [item for item, is_violation in _checked(request, text, principle) if not is_violation]
    return " ".join(kept) or text


def _missing(request: Request, text: str) -> list[str]:
    """Return true sentences about the topic that would bring the answer to the number asked for."""
    said = {fact for fact in parse_response(text).facts if fact[0] == request.topic}
    unsaid = [
        f"{request.topic} {rest}." for i, rest in enumerate(FACTS[request.topic]) if (request.topic, i) not in said
    ]
    return unsaid[: max(0, request.k - len(said))]


def _checked(request: Request, text: str, principle: str) -> list[tuple[str, bool]]:
    """Cut an answer into its items, in order, and say of each whether it violates the principle."""
    violates: Callable[[str, set[str]], bool] = {
        "on the topic": lambda item, said: _is_clause(item) and not _is_about(request, item),
        "not twice": lambda item, said: _is_clause(item) and item in said,
        "in the tone": lambda item, said: item in _wrong_markers(request),
    }[principle]
    found: list[tuple[str, bool]] = []
    said: set[str] = set()
    for item in _items(text):
        found.append((item, violates(item, said)))
        said.add(item)
    return found


def _items(text: str) -> list[str]:
    loose = {word for words in MARKERS.values() for word in words} | set(FILLERS)
    found: list[str] = []
    clause: list[str] = []
    for word in re.findall(r"\w+|\.", text.lower()):
        if word in loose or word == ".":
            if clause:
                found.append(" ".join(clause) + ("." if word == "." else ""))
            clause = []
            if word != ".":
                found.append(word)
        else:
            clause.append(word)
    return [*found, " ".join(clause)] if clause else found


def _is_clause(item: str) -> bool:
    parsed = parse_response(item)
    return bool(parsed.facts or parsed.invented)


def _is_about(request: Request, clause: str) -> bool:
    facts = parse_response(clause).facts
    return bool(facts) and all(topic == request.topic for topic, _ in facts)


def _wrong_markers(request: Request) -> tuple[str, ...]:
    return next(words for tone, words in MARKERS.items() if tone != request.tone)


def _part(question: str, name: str) -> str:
    found = re.search(_BETWEEN.format(name), question, re.DOTALL)
    assert found is not None, f"the prompt has no <{name}>"
    return found[1]


def _principle_in(question: str, field: str) -> str:
    return next(one.name for one in PRINCIPLES if getattr(one, field) in question)


def constitutional(out: Path, *, seed: int, tell: Tell) -> dict[str, Any]:
    """Own answers, criticised and revised → SFT on the revisions → pairs judged by the principles → DPO on them."""
    base, chat = load_policy(BASE), LabChat()
    requests, _ = split_requests()
    before = measure(base, seed=seed)
    drafts = sample_groups(base, requests, num_responses=1, repeats=ANSWERS_PER_REQUEST, seed=seed)
    chains = critique_and_revise(drafts, chat, principles=PRINCIPLES, num_revisions=NUM_REVISIONS, seed=seed)
    by_step = [float(np.mean([_gold(chain, step) for chain in chains])) for step in range(NUM_REVISIONS + 1)]
    tell(f"gold by revision: {', '.join(f'{value:.2f}' for value in by_step)}")
    last = [Group(prompt=chain.prompt, responses=chain.responses[-1:]) for chain in demonstrations(chains)]
    write_groups(out / "revisions.jsonl", last)
    sft = learn_from(last, out / "sft", seed=seed, **SFT)
    pairs = sample_groups(sft.policy, requests, num_responses=2, repeats=PAIRS_PER_REQUEST, seed=seed + 2**16)
    judged = judge_by(pairs, ConstitutionJudge(chat=chat, principles=PRINCIPLES))
    write_groups(out / "ai_judged.jsonl", judged)
    revised = compare_with_base(sft.policy, base, before, seed=seed)
    dpo = learn_from(judged, out / "dpo", seed=seed, model=out / "sft" / "model", **DPO)
    return {
        "stages": {
            "sft on revisions": revised,
            "dpo on AI labels": compare_with_base(dpo.policy, base, before, seed=seed),
        },
        "gold_by_revision": by_step,
    }


def _gold(group: Group, step: int) -> float:
    """The gold reward after so many revisions; an empty answer has none."""
    response = group.responses[min(step, len(group.responses) - 1)]
    return gold_reward(parse_request(group.prompt), response_text(response), True)
