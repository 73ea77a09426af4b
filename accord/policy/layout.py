"""How groups lie in memory: the tree layout (prompt once, ragged, packed) and the plain one (a padded row each).

Axes: N packed tokens, S sequences (responses of all groups, in order), L padded length, T response tokens.
Position t of a response is predicted at the position before it; for t = 0 that is the LAST prompt position.
The last token of a response is only ever a target, so it is not laid out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from accord.data.tokens import TokenGroup


@dataclass(frozen=True, slots=True)
class Tree:
    """Where one group lies in the packed row: its prompt, then its responses, each as (start, length)."""

    prompt: tuple[int, int]
    responses: tuple[tuple[int, int], ...]

    @property
    def length(self) -> int:
        """Laid-out tokens of the group."""
        return self.prompt[1] + sum(length for _, length in self.responses)


@dataclass(frozen=True, slots=True)
class TreeLayout:
    """What attention needs to know of a packed row; masks and indices are built once and serve every layer."""

    trees: tuple[Tree, ...]
    position_ids_N: Tensor
    cache: dict[object, Tensor] = field(default_factory=dict)
    calls: list[object] = field(default_factory=list)  # the attention modules that were served, for the check


@dataclass(frozen=True, slots=True)
class Batch:
    """Token ids ready for a model, and where in its hidden states each response token is predicted."""

    input_ids: Tensor  # (1, N) in the tree layout, (S, L) in the plain one
    tree: TreeLayout | None  # with its position ids; in the plain layout the model counts for itself
    predicted_at_N: Tensor  # index into the flattened hidden states, one per response token
    targets_N: Tensor  # the response tokens
    sequence_N: Tensor  # which response each belongs to
    is_trained_N: Tensor  # whether it counts in the sequence's log-probability
    num_sequences: int


def lay_out_tree(groups: Sequence[TokenGroup], device: torch.device) -> Batch:
    """Pack groups into one ragged row: each prompt once, its responses after it, positions restarting at its end."""
    ids: list[int] = []
    positions: list[int] = []
    predicted_at: list[int] = []
    trees: list[Tree] = []
    for group in groups:
        num_prompt = len(group.prompt_ids)
        prompt_start = len(ids)
        ids.extend(group.prompt_ids)
        positions.extend(range(num_prompt))
        segments = []
        for response in group.responses:
            start, length = len(ids), max(len(response.ids) - 1, 0)
            ids.extend(response.ids[:-1])
            positions.extend(range(num_prompt, num_prompt + length))
            if response.ids:
                predicted_at.append(prompt_start + num_prompt - 1)
                predicted_at.extend(range(start, start + length))
            segments.append((start, length))
        trees.append(Tree((prompt_start, num_prompt), tuple(segments)))
    return Batch(
        input_ids=torch.tensor([ids], device=device),
        tree=TreeLayout(tuple(trees), torch.tensor(positions, device=device)),
        predicted_at_N=torch.tensor(predicted_at, dtype=torch.long, device=device),
        **_targets(groups, device),
    )


def lay_out_plain(groups: Sequence[TokenGroup], device: torch.device, pad_id: int) -> Batch:
    """One row per response, prompt repeated, padded on the right: the definition the tree layout is checked against.

    No attention mask: in a causal model nothing looks at padding that comes after it.
    """
    rows = [
        (group.prompt_ids, response.ids[:-1], bool(response.ids)) for group in groups for response in group.responses
    ]
    width = max(len(prompt) + len(rest) for prompt, rest, _ in rows)
    input_ids = torch.full((len(rows), width), pad_id)
    predicted_at: list[int] = []
    for index, (prompt, rest, has_tokens) in enumerate(rows):
        length = len(prompt) + len(rest)
        input_ids[index, :length] = torch.tensor(prompt + rest)
        if has_tokens:
            first = index * width + len(prompt) - 1
            predicted_at.extend(range(first, first + len(rest) + 1))
    return Batch(
        input_ids=input_ids.to(device),
        tree=None,
        predicted_at_N=torch.tensor(predicted_at, dtype=torch.long, device=device),
        **_targets(groups, device),
    )


def _targets(groups: Sequence[TokenGroup], device: torch.device) -> dict:
    responses = [response for group in groups for response in group.responses]
    targets = [token for response in responses for token in response.ids]
    lengths = torch.tensor([len(response.ids) for response in responses])
    trained = [
        flag for response in responses for flag in (response.is_trained or (True,) * len(response.ids))
    ]  # fmt: skip
    return {
        "targets_N": torch.tensor(targets, dtype=torch.long, device=device),
        "sequence_N": torch.repeat_interleave(torch.arange(len(responses)), lengths).to(device),
        "is_trained_N": torch.tensor(trained, dtype=torch.bool, device=device),
        "num_sequences": len(responses),
    }
