"""A policy that learns values beside its words: two Q heads with slow copies, and V. For implicit Q-learning.

Axes: N response tokens, H hidden, V vocabulary, B states.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from accord.data.tokens import TokenGroup
from accord.errors import PolicyError
from accord.policy.load import load_policy
from accord.policy.policy import Policy
from accord.policy.tokens.position_kl import Readout
from accord.policy.tokens.q_values import QValues, q_values_of

HEADS_FILE = "value_heads.safetensors"
_START_SIZE = 1e-2  # standard deviation of the values at hidden states of unit size: twins apart, and near 0


class ValueLearner(Policy):
    """A policy whose scores come with Q(s, a) of each token taken, twice, their targets, and V(s).

    All heads are linear and read the hidden states that the vocabulary head reads; gradient of Q and V reaches the
    policy's weights. The targets are copies of the Q heads that follow them by `polyak` after each step.
    Memory: four (V, H) matrices in float32, two of which have a gradient and AdamW's two moments: 40 V·H bytes, which
    is 1 GB for V = 50k and H = 512. Raises PolicyError for a model whose vocabulary head is not linear.
    Source: Snell et al. 2022, arXiv:2206.11871; there the heads have a hidden layer, and the words another model.
    """

    def __init__(self, policy: Policy, *, polyak: float = 0.005, seed: int = 0) -> None:
        super().__init__(policy.model, policy.tokenizer, path=policy.path, autocast=policy.autocast)
        self.why_plain, self.has_linear_head = policy.why_plain, policy.has_linear_head
        self.temperature, self.polyak = policy.temperature, polyak
        words = self.causal_lm.get_output_embeddings()
        if not isinstance(words, nn.Linear):
            raise self._no_states()
        vocabulary, width = words.weight.shape
        wide = torch.promote_types(words.weight.dtype, torch.float32)

        def head(size: int) -> nn.Linear:
            with torch.random.fork_rng(devices=[]):  # its own first numbers are not kept, and cost no one else's
                return nn.Linear(width, size, device=policy.device, dtype=wide)

        self.value_head = head(1)
        own, slow = ([head(vocabulary), head(vocabulary)] for _ in range(2))
        self.q_heads, self.target_heads = nn.ModuleList(own), nn.ModuleList(slow).requires_grad_(False)
        generator = torch.Generator().manual_seed(seed)  # on the CPU: the same numbers whatever the device
        with torch.no_grad():
            for part in (self.value_head, *own):
                part.weight.zero_()
                part.bias.zero_()
            for part in own:
                drawn_VH = torch.randn(vocabulary, width, generator=generator, dtype=torch.float32)
                part.weight.copy_(drawn_VH * (_START_SIZE / width**0.5))
            self._copy_share(1.0)

    # -- scoring -----------------------------------------------------------------------------------------------------

    def values(self, groups: Sequence[TokenGroup], readout: Readout) -> Tensor:
        """Return V before each response token (N,), in (group, response, token) order."""
        with torch.autocast(self.device.type, enabled=False):
            return self.value_head(self._states(readout)).squeeze(-1)

    def q_values(self, readout: Readout, taken_N: Tensor) -> QValues:
        """Return what the Q heads and their targets say of the tokens taken."""
        with torch.autocast(self.device.type, enabled=False):
            return q_values_of(self._states(readout), self._pair(self.q_heads), self._pair(self.target_heads), taken_N)

    def guided(self, hidden_BH: Tensor, logits_BV: Tensor, strength: float) -> Tensor:
        """Return log π(a|s) + β (min Q̄(s, a) − V(s)), normalised over the vocabulary (B, V), nats.

        β = `strength`; at 0 it is the policy itself. V(s) is one number per state, which normalising takes out.
        """
        logps_BV = logits_BV.to(torch.promote_types(logits_BV.dtype, torch.float32)).log_softmax(dim=-1)
        if strength == 0:
            return logps_BV
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            states_BH = hidden_BH.to(self.value_head.weight.dtype)
            first_BV, second_BV = (head(states_BH) for head in self._pair(self.target_heads))
        return (logps_BV + strength * torch.minimum(first_BV, second_BV)).log_softmax(dim=-1)

    def _states(self, readout: Readout) -> Tensor:
        if readout.hidden_NH is None:
            raise self._no_states()
        # the temperature is the vocabulary's affair: the heads read the states as they are
        return readout.hidden_NH.to(self.value_head.weight.dtype) * self.temperature

    def _pair(self, heads: nn.ModuleList) -> list[nn.Linear]:
        return [head for head in heads if isinstance(head, nn.Linear)]

    def _no_states(self) -> PolicyError:
        return PolicyError(
            f"{type(self.causal_lm).__name__} makes its logits itself, so heads of values cannot read its states — "
            "expected a model with a linear vocabulary head"
        )

    # -- learning ----------------------------------------------------------------------------------------------------

    def trained(self) -> dict[str, nn.Parameter]:
        """Return the weights that move: the policy's, the heads', and the targets', which follow without gradient."""
        return super().trained() | {f"critic/{name}": p for name, p in self._heads().items()}

    def follow(self) -> None:
        """Let the targets take up their share of the Q heads; after each optimiser step."""
        self._copy_share(self.polyak)

    @torch.no_grad()
    def _copy_share(self, share: float) -> None:
        for target, own in zip(self.target_heads.parameters(), self.q_heads.parameters(), strict=True):
            target.lerp_(own, share)  # at 1 a copy, bit for bit

    # -- on disk -----------------------------------------------------------------------------------------------------

    def save(self, folder: str | Path) -> None:
        """Write the policy as ever, and the heads beside it."""
        super().save(folder)
        save_file({name: p.detach().contiguous() for name, p in self._heads().items()}, Path(folder) / HEADS_FILE)

    @torch.no_grad()
    def take_heads(self, folder: str | Path) -> None:
        """Put saved heads in place. Raises PolicyError where the folder has none, or those of another model."""
        path, own = Path(folder) / HEADS_FILE, self._heads()
        if not path.is_file():
            raise PolicyError(
                f"got {folder} without {HEADS_FILE} — expected a model trained with objective=ilql, which has them"
            )
        saved = load_file(path, device=str(self.device))
        if saved.keys() != own.keys() or any(saved[name].shape != p.shape for name, p in own.items()):
            raise PolicyError(f"got {path} of another model — expected heads of a vocabulary and width as this one's")
        for name, parameter in own.items():
            parameter.copy_(saved[name])

    def _heads(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.named_parameters() if name.partition(".")[0].endswith(("_head", "_heads"))}


def load_value_learner(path: str | Path, **options: Any) -> ValueLearner:
    """Load a policy with the heads that were saved beside it; `options` are `load_policy`'s.

    Raises PolicyError where there are none.
    """
    learner = ValueLearner(load_policy(path, **options))
    learner.take_heads(learner.path)
    return learner
