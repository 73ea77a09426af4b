"""Two versions of a response, aligned: which tokens an edit kept."""

from __future__ import annotations

from collections.abc import Sequence


def kept_tokens(one: Sequence[int], other: Sequence[int]) -> tuple[list[bool], list[bool]]:
    """Return for each token of two versions whether a global alignment pairs it with an equal one.

    Needleman–Wunsch with +1 for equal tokens, −1 for unequal ones and for gaps; of equally good alignments always the
    same one. What is not kept was deleted, inserted or substituted. Time and memory grow with the product of the
    lengths, but for a common beginning and end.
    """
    start, end = _common_ends(one, other)
    rows, columns = one[start : len(one) - end], other[start : len(other) - end]
    width = len(columns) + 1
    scores = [[-column for column in range(width)]]
    for row, token in enumerate(rows, start=1):
        above, current = scores[-1], [-row]
        for column, candidate in enumerate(columns, start=1):
            paired = above[column - 1] + (1 if token == candidate else -1)
            current.append(max(paired, above[column] - 1, current[-1] - 1))
        scores.append(current)
    kept_rows, kept_columns = [False] * len(rows), [False] * len(columns)
    row, column = len(rows), len(columns)
    while row and column:
        is_equal = rows[row - 1] == columns[column - 1]
        if scores[row][column] == scores[row - 1][column - 1] + (1 if is_equal else -1):
            row, column = row - 1, column - 1
            kept_rows[row] = kept_columns[column] = is_equal
        elif scores[row][column] == scores[row - 1][column] - 1:
            row -= 1
        else:
            column -= 1
    before, after = [True] * start, [True] * end
    return before + kept_rows + after, before + kept_columns + after


def _common_ends(one: Sequence[int], other: Sequence[int]) -> tuple[int, int]:
    """Return how many tokens two versions share at their beginning and at their end, none counted twice.

    An optimal alignment pairs them: edits are few, and the table over the rest is then small.
    """
    shorter = min(len(one), len(other))
    start = 0
    while start < shorter and one[start] == other[start]:
        start += 1
    end = 0
    while end < shorter - start and one[-1 - end] == other[-1 - end]:
        end += 1
    return start, end
