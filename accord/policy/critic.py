"""A policy with a critic: one value before each response token, by a head on the policy or by a model of its own.

Axes: N response tokens of the batch, H hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from accord.data.tokens import TokenGroup
from accord.errors import PolicyError
from accord.policy.policy import Policy
from accord.policy.reward import RewardModel
from accord.policy.tokens.position_kl import Readout


class ActorCritic(Policy):
    """A policy whose scores come with values V(x, y_<t), carrying grad: what the reward will be, in its own units.

    Without `critic` a linear head reads the policy's hidden states (it needs a model with a linear vocabulary head) and
    its gradient reaches the policy's weights; with one, a reward model's backbone and head are asked token by token.
    Both start where they are: a new head is of zeros.
    """

    def __init__(self, policy: Policy, *, critic: RewardModel | None = None) -> None:
        super().__init__(policy.model, policy.tokenizer, path=policy.path, autocast=policy.autocast)
        self.why_plain, self.has_linear_head = policy.why_plain, policy.has_linear_head
        self.critic = critic
        self.value_head: nn.Linear | None = None
        if critic is None:
            width = self.causal_lm.config.get_text_config().hidden_size
            wide = torch.promote_types(next(policy.parameters()).dtype, torch.float32)
            self.value_head = nn.Linear(width, 1, device=policy.device, dtype=wide)
            nn.init.zeros_(self.value_head.weight)
            nn.init.zeros_(self.value_head.bias)

    def values(self, groups: Sequence[TokenGroup], readout: Readout) -> Tensor:
        """Return V before each response token (N,), in (group, response, token) order."""
        if self.critic is not None:
            return self.critic.token_scores(groups)
        assert self.value_head is not None
        if readout.hidden_NH is None:
            raise PolicyError(
                f"{type(self.causal_lm).__name__} makes its logits itself, so a value head cannot read its states — "
                "give the critic a model of its own: critic.path=policy"
            )
        with torch.autocast(self.device.type, enabled=False):
            # the temperature is the vocabulary's affair: the head reads the states as they are
            hidden_NH = readout.hidden_NH.to(self.value_head.weight.dtype)
            return self.value_head(hidden_NH * self.temperature).squeeze(-1)

    def trained(self) -> dict[str, nn.Parameter]:
        """Return the weights that learn: the policy's and the critic's."""
        beside = self.critic if self.critic is not None else self.value_head
        assert beside is not None
        return super().trained() | {f"critic/{name}": p for name, p in beside.named_parameters() if p.requires_grad}

    def save(self, folder: str | Path) -> None:
        """Write the policy as ever, and the critic beside it: a folder `critic`, or the head's weights."""
        super().save(folder)
        if self.critic is not None:
            self.critic.save(Path(folder) / "critic")
        else:
            assert self.value_head is not None
            weights = {name: p.detach().contiguous() for name, p in self.value_head.named_parameters()}
            save_file(weights, Path(folder) / "value_head.safetensors")
