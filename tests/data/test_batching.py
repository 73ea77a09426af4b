"""Which groups go together: a function of seed and batch size alone; every group once; budgets kept."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accord.data.batching import chunked, epoch_batches, micro_batches
from accord.data.tokens import TokenGroup, TokenResponse


def make(prompt: int, *responses: int, index: int = 0) -> TokenGroup:
    ids = tuple(TokenResponse(ids=tuple(range(n))) for n in responses)
    return TokenGroup(prompt_ids=tuple(range(prompt)), responses=ids, index=index)


def many(count: int, seed: int = 0) -> list[TokenGroup]:
    rng = random.Random(seed)
    return [
        make(rng.randint(1, 60), *(rng.randint(0, 40) for _ in range(rng.randint(1, 4))), index=i) for i in range(count)
    ]


GROUPS = st.integers(0, 60).map(many)


@given(GROUPS, st.integers(1, 9), st.integers(1, 5), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_every_group_once_per_epoch(groups: list[TokenGroup], batch_size: int, window: int, epoch: int) -> None:
    batches = epoch_batches(groups, batch_size, window=window, seed=3, epoch=epoch)
    assert sorted(index for batch in batches for index in batch) == list(range(len(groups)))
    assert len(batches) == -(-len(groups) // batch_size)
    assert sum(len(batch) < batch_size for batch in batches) <= 1


def test_order_follows_from_seed_and_epoch() -> None:
    groups = many(40)
    first = epoch_batches(groups, 4, window=3, seed=1, epoch=0)
    assert first == epoch_batches(groups, 4, window=3, seed=1, epoch=0)
    assert first != epoch_batches(groups, 4, window=3, seed=1, epoch=1)
    assert first != epoch_batches(groups, 4, window=3, seed=2, epoch=0)
    state = random.getstate()
    epoch_batches(groups, 4, window=3, seed=1, epoch=0)
    assert random.getstate() == state  # the process's own generator is not touched


def test_windows_put_neighbours_in_length_together() -> None:
    """Within a window of 10 batches, batches are runs of the sorted lengths: they do not overlap."""
    groups = many(40)
    lengths = [[groups[i].num_tokens for i in batch] for batch in epoch_batches(groups, 4, window=10, seed=0, epoch=0)]
    ordered = sorted(lengths)
    assert lengths != ordered  # but short ones do not come first
    for shorter, longer in pairwise(ordered):
        assert max(shorter) <= min(longer)
    spread = sum(max(batch) - min(batch) for batch in lengths)
    loose = epoch_batches(groups, 4, window=1, seed=0, epoch=0)
    assert spread < 0.4 * sum(
        max(groups[i].num_tokens for i in b) - min(groups[i].num_tokens for i in b) for b in loose
    )


@pytest.mark.parametrize("layout", ["tree", "plain"])
@given(GROUPS, st.integers(1, 400))
@settings(max_examples=60, deadline=None)
def test_budgets_are_kept(layout: str, groups: list[TokenGroup], budget: int) -> None:
    parts = micro_batches(groups, budget, layout=layout)
    assert sorted(index for part in parts for index in part) == list(range(len(groups)))
    for part in parts:
        chosen = [groups[index] for index in part]
        if layout == "tree":
            cost = sum(len(g.prompt_ids) + sum(len(r.ids) for r in g.responses) for g in chosen)
        else:
            rows = [len(g.prompt_ids) + len(r.ids) for g in chosen for r in g.responses]
            cost = len(rows) * max(rows)
        assert cost <= budget or len(part) == 1
    assert [g.index for part in chunked(groups, budget, layout=layout) for g in part] == [i for p in parts for i in p]


def test_costs_by_hand() -> None:
    """Prompt 10, responses 5 and 3: 18 tokens as a tree, 2 × 15 padded; two groups fit twice that, three do not."""
    groups = [make(10, 5, 3)] * 3
    assert micro_batches(groups, 36, layout="tree") == [[0, 1], [2]]
    assert micro_batches(groups, 35, layout="tree") == [[0], [1], [2]]
    assert micro_batches(groups, 60, layout="plain") == [[0, 1], [2]]
    assert micro_batches(groups, 59, layout="plain") == [[0], [1], [2]]
    # rows of 10, 2 and 3 tokens: neighbours in length go together
    assert micro_batches([make(9, 1), make(1, 1), make(1, 2)], 20, layout="plain") == [[1, 2], [0]]
