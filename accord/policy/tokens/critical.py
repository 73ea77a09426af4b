"""Which tokens of a response are its mistakes, to two further models: the contrastive estimate of cDPO.

Axes: N response tokens, V vocabulary, C tokens of a chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from accord.data.batching import micro_batches
from accord.data.tokens import TokenGroup
from accord.policy.policy import Policy
from accord.policy.tokens.position_kl import Readout


@torch.no_grad()
def with_critical(
    groups: Sequence[TokenGroup], positive: Policy, negative: Policy, *, contrast: float, max_tokens: int
) -> list[TokenGroup]:
    """Return the groups, each response token with s = softmax((1 + b) logits₊ − b logits₋)[token], b = `contrast`.

    `positive` learnt right answers, `negative` wrong ones, on one vocabulary; s near 0 marks what only the second
    would write. Frozen models: computed once for a run.
    """
    layout = "plain" if "plain" in (positive.layout, negative.layout) else "tree"
    found: list[TokenGroup] = list(groups)
    for part in micro_batches(groups, max_tokens, layout=layout):
        chosen = [groups[index] for index in part]
        targets = [token for group in chosen for response in group.responses for token in response.ids]
        right, wrong = positive.readout_of(chosen), negative.readout_of(chosen)
        of_tokens = iter(contrastive_estimate(right, wrong, torch.tensor(targets), contrast=contrast).tolist())
        for index, group in zip(part, chosen, strict=True):
            found[index] = replace(
                group,
                responses=tuple(
                    replace(response, critical=tuple(next(of_tokens) for _ in response.ids))
                    for response in group.responses
                ),
            )
    return found


def contrastive_estimate(positive: Readout, negative: Readout, targets_N: Tensor, *, contrast: float) -> Tensor:
    """Return softmax((1 + b) logits₊ − b logits₋) at the targets, (N,) in [0, 1]; chunk by chunk, no gradient."""
    found = []
    for rows in positive.chunks():
        right_CV, wrong_CV = positive.logits(rows), negative.logits(rows)
        is_possible_CV = right_CV > -torch.inf  # a masked token stays so: (1 + b)(−∞) + b ∞
        scores_CV = torch.where(is_possible_CV, (1.0 + contrast) * right_CV - contrast * wrong_CV, -torch.inf)
        targets_C1 = targets_N[rows, None].to(scores_CV.device)
        found.append(scores_CV.log_softmax(dim=-1).gather(-1, targets_C1).squeeze(-1).exp())
    return torch.cat(found) if found else torch.zeros(0)
