"""Holding out: whole prompts, about the share asked for, and stable when data is added."""

from __future__ import annotations

import pytest

from accord.data.split import split_held_out
from accord.data.tokens import TokenGroup, TokenResponse


def group(prompt: tuple[int, ...], *answers: tuple[int, ...]) -> TokenGroup:
    return TokenGroup(prompt_ids=prompt, responses=tuple(TokenResponse(ids=answer) for answer in answers))


def test_what_is_held_out_is_not_trained_on():
    """A hundred prompts, some of them up to five times: a prompt's groups stay on one side, order and size hold."""
    groups = [group((1, row), (row % 7, again)) for row in range(100) for again in range(1 + row % 5)]
    for fraction in (0.02, 0.1, 0.5):
        train, held_out = split_held_out(groups, fraction, seed=0)
        assert {g.prompt_ids for g in train}.isdisjoint(g.prompt_ids for g in held_out)
        assert sorted(map(id, [*train, *held_out])) == sorted(map(id, groups))
        assert len(held_out) == pytest.approx(fraction * len(groups), abs=5)
        assert train == [g for g in groups if g in train]
    assert split_held_out(groups, 0.1, seed=1)[1] != split_held_out(groups, 0.1, seed=0)[1]
    more = [*groups, group((2, 2), (3,))]
    moved = {g.prompt_ids for g in split_held_out(more, 0.1, seed=0)[1]}
    assert len(moved ^ {g.prompt_ids for g in split_held_out(groups, 0.1, seed=0)[1]}) <= 2


def test_texts_without_a_prompt_are_split_by_what_they_say():
    groups = [group((0,), (row // 2,)) for row in range(40)]  # every text twice
    train, held_out = split_held_out(groups, 0.2, seed=0)
    assert len(held_out) == 8
    assert {g.responses for g in train}.isdisjoint(g.responses for g in held_out)


def test_turns_of_one_conversation_stay_together():
    """Each conversation was judged at its first, second and third turn: a longer prompt begins with a shorter one."""
    groups = [group((1, *range(10, 10 + talk), 99, *([5] * turn)), (3,)) for talk in range(40) for turn in range(3)]
    train, held_out = split_held_out(groups, 0.1, seed=0)
    assert len(held_out) == 12
    assert {g.prompt_ids[: g.prompt_ids.index(99)] for g in train}.isdisjoint(
        g.prompt_ids[: g.prompt_ids.index(99)] for g in held_out
    )
