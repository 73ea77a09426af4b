"""Which groups go together: the global order of a run, and micro-batches under a token budget.

The order depends on the seed and the batch size alone, never on the number of processes or the budget.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from accord.data.tokens import TokenGroup


def epoch_batches(
    groups: Sequence[TokenGroup], batch_size: int, *, window: int, seed: int, epoch: int
) -> list[list[int]]:
    """Return the optimisation batches of an epoch as lists of positions.

    Shuffled; then, inside windows of `window` batches, sorted by length and cut, and the batches of a window shuffled
    again. `window` = 1 leaves batches purely random. The last batch may be smaller; none is dropped.
    """
    rng = random.Random(f"{seed}/{epoch}")
    order = list(range(len(groups)))
    rng.shuffle(order)
    batches: list[list[int]] = []
    for start in range(0, len(order), window * batch_size):
        part = order[start : start + window * batch_size]
        if window > 1:
            part.sort(key=lambda index: (groups[index].num_tokens, index))
        cut = [part[i : i + batch_size] for i in range(0, len(part), batch_size)]
        if window > 1:
            rng.shuffle(cut)
        batches.extend(cut)
    return batches


def micro_batches(groups: Sequence[TokenGroup], max_tokens: int, *, layout: str) -> list[list[int]]:
    """Split groups into micro-batches of at most `max_tokens` laid-out tokens (a longer group goes alone).

    In the tree layout a group costs its tokens; in the plain one rows are padded to the longest. Neighbours in length
    go together: attention may pad short trees too.
    """
    is_tree = layout == "tree"
    length = _tree_tokens if is_tree else _row_tokens
    order = sorted(range(len(groups)), key=lambda index: (length(groups[index]), index))
    parts: list[list[int]] = []
    size = 0  # of the last part: tokens in the tree layout, rows in the plain one
    for index in order:
        group = groups[index]
        own, width = (_tree_tokens(group), 1) if is_tree else (len(group.responses), _row_tokens(group))
        if parts and (size + own) * width <= max_tokens:  # rows come by length: the newest is the longest
            parts[-1].append(index)
            size += own
        else:
            parts.append([index])
            size = own
    return parts


def _tree_tokens(group: TokenGroup) -> int:
    return group.num_tokens


def _row_tokens(group: TokenGroup) -> int:
    return len(group.prompt_ids) + max(len(response.ids) for response in group.responses)


def chunked(groups: Sequence[TokenGroup], max_tokens: int, *, layout: str) -> Iterator[list[TokenGroup]]:
    """Yield groups in micro-batches: for passes without a gradient, whose order matters to nobody."""
    for part in micro_batches(groups, max_tokens, layout=layout):
        yield [groups[index] for index in part]
