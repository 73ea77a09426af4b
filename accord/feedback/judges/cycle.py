"""CycleAlign: where a black box and the policy agree on an order, that order is a label (arXiv:2310.16271)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from accord.errors import FeedbackError
from accord.feedback.judges.chat import Chat, answer_until_read
from accord.feedback.judges.judging import Judged, with_judgements
from accord.feedback.judges.prompts import answer_text, load_prompt, read_order, text_of
from accord.records import Group, Ranking

Order = tuple[int, ...]  # indices of responses, best first


@dataclass(frozen=True, slots=True, kw_only=True)
class Demonstration:
    """A request, its answers and their order, shown to the black box before its next question."""

    request: str
    answers: tuple[str, ...]
    order: Order


class DemonstrationPool:
    """Demonstrations that stay and, first in first out, the last `max_size` that were agreed on."""

    def __init__(self, max_size: int, fixed: Iterable[Demonstration] = ()) -> None:
        if max_size < 0:
            raise FeedbackError(f"got a pool of {max_size} demonstrations — expected 0 or more")
        self.fixed = tuple(fixed)
        self._agreed: deque[Demonstration] = deque(maxlen=max_size)

    def __len__(self) -> int:
        return len(self.fixed) + len(self._agreed)

    def add(self, demonstration: Demonstration) -> None:
        """Take one in; the oldest agreed one leaves a full pool."""
        self._agreed.append(demonstration)

    def shown(self) -> list[Demonstration]:
        """Return all, those that stay first."""
        return [*self.fixed, *self._agreed]


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """What came of one group: both orders, the agreed part, and its share of the responses."""

    teacher: Order | None  # None = unreadable, for the reason given
    policy: Order
    agreed: Order = ()
    reason: str = ""

    @property
    def share(self) -> float | None:
        """|longest common subsequence| / K; None where the teacher's order is unknown."""
        return None if self.teacher is None else len(self.agreed) / len(self.policy)


def longest_common_subsequence(first: Sequence[int], second: Sequence[int]) -> Order:
    """Return a longest sequence that both contain in this order; of several, the one that begins first in `first`."""
    lengths = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for i in reversed(range(len(first))):
        for j in reversed(range(len(second))):
            lengths[i][j] = (
                lengths[i + 1][j + 1] + 1 if first[i] == second[j] else max(lengths[i + 1][j], lengths[i][j + 1])
            )
    found, j = [], 0
    for i, item in enumerate(first):
        if item in second[j:]:
            at = second.index(item, j)
            if 1 + lengths[i + 1][at + 1] == lengths[i][j]:
                found.append(item)
                j = at + 1
    return tuple(found)


def order_by(values: Sequence[float]) -> Order:
    """Return indices by descending value (of the policy: mean log-probability per token); ties keep their order."""
    return tuple(sorted(range(len(values)), key=lambda index: -values[index]))


def find_agreements(
    groups: Sequence[Group],
    chat: Chat,
    mean_logps: Sequence[Sequence[float]],
    pool: DemonstrationPool,
    *,
    prompt: str | Path = "rank.v1",
    num_attempts: int = 3,
) -> list[Agreement]:
    """Have the black box order each group's responses in context, and compare with the policy's own order.

    `mean_logps` holds the policy's mean log-probability, nats per token, of each response. All groups see the pool as
    it is now; what is agreed on (two responses or more) joins it afterwards.
    """
    written = load_prompt(prompt)
    shown = [
        {"request": example.request, "answers": example.answers, "order": [index + 1 for index in example.order]}
        for example in pool.shown()
    ]
    texts = [tuple(answer_text(group, index) for index in range(len(group.responses))) for group in groups]
    conversations = [
        written.render(request=text_of(group.prompt), answers=answers, examples=shown)
        for group, answers in zip(groups, texts, strict=True)
    ]
    numbers = [tuple(range(len(group.responses))) for group in groups]
    found = []
    for conversation, indices, values in zip(conversations, numbers, mean_logps, strict=True):
        if len(values) != len(indices):
            raise FeedbackError(f"got {len(values)} mean log-probabilities for {len(indices)} responses")
        found.append((conversation, indices, order_by(values)))
    orders = _ask(chat, [(conversation, len(indices)) for conversation, indices, _ in found], num_attempts)
    agreements = []
    for group, answers, (teacher, reason), (_, _, own) in zip(groups, texts, orders, found, strict=True):
        agreed = () if teacher is None else longest_common_subsequence(teacher, own)
        agreements.append(Agreement(teacher=teacher, policy=own, agreed=agreed, reason="" if teacher else reason))
        if len(agreed) >= 2:
            pool.add(_demonstration(text_of(group.prompt), answers, agreed))
    return agreements


def _ask(chat: Chat, asked: list[tuple[tuple, int]], num_attempts: int) -> list[tuple[Order | None, str]]:
    found: list[tuple[Order | None, str]] = [(None, "not asked")] * len(asked)
    for size in sorted({size for _, size in asked}):  # an order is read knowing how many answers there were
        rows = [row for row, (_, count) in enumerate(asked) if count == size]
        read = answer_until_read(
            chat, [asked[row][0] for row in rows], lambda text, size=size: read_order(text, size),
            num_attempts=num_attempts,
        )  # fmt: skip
        for row, value in zip(rows, read, strict=True):
            found[row] = value
    return found


def _demonstration(request: str, answers: Sequence[str], agreed: Order) -> Demonstration:
    """The agreed responses alone, shown in the order of the group."""
    shown = sorted(agreed)
    order = tuple(shown.index(index) for index in agreed)
    return Demonstration(request=request, answers=tuple(answers[index] for index in shown), order=order)


def with_pseudo_labels(groups: Sequence[Group], agreements: Sequence[Agreement], judge: str) -> list[Group]:
    """Return groups with the agreed order as a `Ranking`; of fewer than two agreed responses nothing is added.

    With `objective=rrhf` this is CycleAlign's loss: Σ max(0, p_worse − p_better) + λ · NLL of the best.
    """
    judged = [
        Judged(
            judgements=(Ranking(order=tuple((index,) for index in found.agreed), judge=judge),)
            if len(found.agreed) >= 2
            else ()
        )
        for found in agreements
    ]
    return with_judgements(groups, judged)
