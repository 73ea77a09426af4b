"""A reference that follows the policy: TR-DPO's soft and hard updates (Gorbatovski et al. 2024, arXiv:2404.09656).

It is not a second model but a second set of values for the weights that are trained, put in their place for a pass.
With adapters these are the adapters' alone. Its log-probabilities are computed beside the policy's and never kept:
soon they would be those of another model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from accord.data.tokens import TokenGroup
from accord.policy.policy import Policy
from accord.policy.reference import Level, Reference
from accord.policy.weights.averaging import Weights, check_alike, mix_weights


@dataclass(frozen=True, kw_only=True)
class UpdateRule:
    """When a reference moves, and how much of the policy it then takes up: `share` 1 is a copy (hard)."""

    every: int  # optimiser steps
    share: float

    def share_at(self, step: int) -> float:
        """Return what it takes up after a step, counted from 1; 0 = it stays."""
        return self.share if step % self.every == 0 else 0.0

    def __str__(self) -> str:
        if self.share == 1.0:
            return f"copied from the policy every {self.every} steps"
        return f"{self.share:g} of the policy mixed in every {self.every} steps"


class MovingReference(Reference):
    """Values of the trained weights that follow the policy's by a rule; `start` None = the policy's own, now."""

    def __init__(
        self,
        policy: Policy,
        rule: UpdateRule,
        *,
        max_tokens: int,
        start: Weights | None = None,
        level: Level = "sequence",
    ) -> None:
        super().__init__(self._in_place, key="moving", cache_folder=None, max_tokens=max_tokens, level=level)
        self.rule = rule
        self._policy = policy
        taken = self._trained() if start is None else start
        check_alike(self._trained(), taken, "the reference")
        self.weights = {name: tensor.detach().clone() for name, tensor in taken.items()}

    @property
    def num_bytes(self) -> int:
        """What it takes beside the policy."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.weights.values())

    def logps(self, groups: Sequence[TokenGroup], like_PK: Tensor, *, keep: bool = False) -> Tensor:
        """Return log π_ref(y|x) in nats as `Reference.logps` does, of where the reference now is; nothing is kept."""
        return super().logps(groups, like_PK, keep=False)

    def token_logps(self, groups: Sequence[TokenGroup], like_N: Tensor, *, keep: bool = False) -> Tensor:
        """Return log π_ref of every response token as `Reference.token_logps` does; nothing is kept."""
        return super().token_logps(groups, like_N, keep=False)

    @torch.no_grad()
    def follow(self, step: int) -> bool:
        """Take up the policy's share after a step, where the rule says so; return whether it did."""
        share = self.rule.share_at(step)
        if share:
            self.weights = mix_weights(self.weights, self._trained(), share)
        return share > 0

    def restore(self, weights: Mapping[str, Tensor]) -> None:
        """Put values from a checkpoint in place. Raises PolicyError where they are of other weights."""
        check_alike(self._trained(), weights, "the reference in the checkpoint")
        self.weights = {name: tensor.to(self._policy.device) for name, tensor in weights.items()}

    def _trained(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self._policy.model.named_parameters() if p.requires_grad}

    @contextmanager
    def _in_place(self) -> Iterator[Policy]:
        """Score with these values: the parameters point to them for the block.

        What autograd has saved of a pass still under way stays valid: nothing is written into the policy's own memory.
        """
        trained = self._trained()
        own = {name: parameter.data for name, parameter in trained.items()}
        try:
            for name, parameter in trained.items():
                parameter.data = self.weights[name]
            yield self._policy
        finally:
            for name, parameter in trained.items():
                parameter.data = own[name]
