"""Prompts as vectors: the mean of the policy's last hidden states over a prompt's tokens.

Axes: P groups, L tokens of a padded prompt, E hidden size. One extra pass over the prompts, without gradient.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from accord.data.tokens import TokenGroup
from accord.policy.policy import Policy


@torch.no_grad()
def prompt_embeddings(policy: Policy, groups: Sequence[TokenGroup]) -> Float[Tensor, "P E"]:
    """Return the mean last hidden state of each group's prompt under the policy as it is, float32 or wider.

    Groups with the same prompt have the same embedding, whatever their responses.
    """
    width = max(len(group.prompt_ids) for group in groups)
    ids_PL = torch.full((len(groups), width), policy.pad_id, dtype=torch.long)
    is_prompt_PL = torch.zeros((len(groups), width), dtype=torch.bool)
    for row, group in enumerate(groups):
        ids_PL[row, : len(group.prompt_ids)] = torch.tensor(group.prompt_ids)
        is_prompt_PL[row, : len(group.prompt_ids)] = True
    ids_PL, is_prompt_PL = ids_PL.to(policy.device), is_prompt_PL.to(policy.device)
    with policy.attention("plain"), policy.precision():
        # all ones, as where responses are scored: padding comes after everything that counts
        hidden_PLE = policy.causal_lm.base_model(
            input_ids=ids_PL, attention_mask=torch.ones_like(ids_PL), use_cache=False
        ).last_hidden_state
    hidden_PLE = hidden_PLE.to(torch.promote_types(hidden_PLE.dtype, torch.float32))
    summed_PE = torch.where(is_prompt_PL[:, :, None], hidden_PLE, 0.0).sum(dim=1)
    return summed_PE / is_prompt_PL.sum(dim=1, keepdim=True)
