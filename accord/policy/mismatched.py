"""Prompts joined with another prompt's response: samples for KTO's estimate of KL(policy ‖ reference)."""

from __future__ import annotations

from collections.abc import Sequence

from accord.data.tokens import TokenGroup


def mismatched_groups(batch: Sequence[TokenGroup]) -> list[TokenGroup]:
    """Pair each prompt of a batch with the first response of the next group that has another prompt.

    A function of the batch's order alone. Empty when all prompts are the same (then the estimate is 0).
    """
    found = []
    for place, group in enumerate(batch):
        others = (batch[(place + shift) % len(batch)] for shift in range(1, len(batch)))
        other = next((candidate for candidate in others if candidate.prompt_ids != group.prompt_ids), None)
        if other is not None:
            found.append(TokenGroup(prompt_ids=group.prompt_ids, responses=(other.responses[0],), index=group.index))
    return found
