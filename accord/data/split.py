"""Which groups are held out: a share of the data of which nothing is also trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence

from accord.data.tokens import TokenGroup


def split_held_out(
    groups: Sequence[TokenGroup],
    fraction: float,
    *,
    seed: int,
    prompts: Sequence[tuple[int, ...]] | None = None,
) -> tuple[list[TokenGroup], list[TokenGroup]]:
    """Return (to train on, held out), each in the order of the data; groups of one conversation stay together.

    One conversation: the same prompt, or one prompt the beginning of the other, as when each turn of it was judged.
    About `fraction` of the groups is held out: prompts in the order of a hash of their ids and the seed, so that more
    data moves few of them. A prompt shared by more groups than that is trained on; where none but such is there (the
    empty prompt of language modelling), groups with the same responses stay together instead. `prompts` stand for the
    groups' own where those were changed since.
    """
    wanted = round(fraction * len(groups))
    if wanted == 0:
        return list(groups), []
    chosen = _choose(_conversations(prompts or [group.prompt_ids for group in groups]), wanted, seed)
    if not chosen:
        chosen = _choose([tuple(response.ids for response in group.responses) for group in groups], wanted, seed)
    train = [group for place, group in enumerate(groups) if place not in chosen]
    return train, [group for place, group in enumerate(groups) if place in chosen]


def _conversations(prompts: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Name each prompt by the shortest of them it begins with (a lone start token begins none)."""
    first: dict[tuple[int, ...], tuple[int, ...]] = {}
    last: tuple[int, ...] = ()
    for prompt in sorted(set(prompts)):  # a prompt stands right before those it begins
        if len(last) < 2 or prompt[: len(last)] != last:
            last = prompt
        first[prompt] = last
    return [first[prompt] for prompt in prompts]


def _choose(names: Sequence[Hashable], wanted: int, seed: int) -> set[int]:
    """Return the places of whole clusters of equal names, about `wanted` in all."""
    clusters: dict[Hashable, list[int]] = {}
    for place, name in enumerate(names):
        clusters.setdefault(name, []).append(place)
    chosen: set[int] = set()
    for name in sorted(clusters, key=lambda name: hashlib.blake2b(f"{seed}/{name}".encode()).digest()):
        if len(chosen) >= wanted:
            break
        if len(chosen) + len(clusters[name]) <= 1.5 * wanted:
            chosen.update(clusters[name])
    return chosen
