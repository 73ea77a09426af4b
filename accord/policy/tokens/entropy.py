"""Entropy of next-token distributions with gradient, chunk by chunk: for entropy bonuses.

Axes: N response tokens, V vocabulary. Nats, in float32 or wider.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from accord.policy.tokens.position_kl import Readout


def position_entropy(policy: Readout) -> Tensor:
    """Return H(π) = −Σ_v π(v) log π(v) at every position (N,), with gradient; logits are made again for it."""
    parts = [
        checkpoint(lambda rows: _entropy(policy.logits(rows)), rows, use_reentrant=False, preserve_rng_state=False)
        for rows in policy.chunks()
    ]
    return torch.cat(parts) if parts else torch.zeros(0)


def _entropy(logits_CV: Tensor) -> Tensor:
    logps_CV = logits_CV.log_softmax(-1)
    return -(logps_CV.exp() * logps_CV).sum(-1)
