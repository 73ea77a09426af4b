"""The decoder for models whose attention is their own affair: padded rows and transformers' cache.

Prompts are prefilled together, left-padded; rows that have ended leave. New prompts enter when the batch is empty.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache

from accord.policy.policy import Policy
from accord.policy.sampling.protocol import NoSampler
from accord.policy.sampling.rows import Ints, Prompt


class PlainDecoder:
    """Runs the model as transformers does, on its own attention and cache."""

    takes_new_rows = False

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._cache = self._new_cache()
        self._mask = torch.zeros(0, 0, dtype=torch.long, device=policy.device)
        self._places: dict[int, int] = {}

    def shares(self, prompt: Prompt, num_responses: int) -> bool:
        """A row has a cache of its own."""
        return False

    def prefill(self, prompts: list[Prompt]) -> Tensor:
        """Run prompts and return the logits (P, V) of their first tokens."""
        width = max(len(prompt.ids) for prompt in prompts)
        ids = torch.full((len(prompts), width), self.policy.pad_id)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):  # left padding: all prompts end in the same column
            ids[row, width - len(prompt.ids) :] = torch.tensor(prompt.ids)
            mask[row, width - len(prompt.ids) :] = 1
        self._cache, self._mask = self._new_cache(), mask.to(self.policy.device)
        self._places = {prompt.index: place for place, prompt in enumerate(prompts)}
        return self._forward(ids.to(self.policy.device))

    def place(self, prompts: list[Prompt], slots_B: Ints) -> None:
        """Begin rows of the prompts just prefilled."""
        assert slots_B.tolist() == list(range(len(prompts)))
        self._select(torch.tensor([self._places[prompt.index] for prompt in prompts]))

    def move(self, targets_B: Ints, sources_B: Ints, num_rows: int, length: int) -> None:
        """Keep the first rows only, after putting those behind into the holes among them."""
        order = np.arange(num_rows)
        order[targets_B] = sources_B
        self._select(torch.from_numpy(order))

    def step(self, ids_B: Ints, positions_B: Ints, index_B: Ints) -> Tensor:
        """Run one token of each row; → logits (B, V)."""
        self._mask = F.pad(self._mask, (0, 1), value=1)
        return self._forward(torch.from_numpy(ids_B)[:, None].to(self.policy.device))

    def _select(self, rows: Tensor) -> None:
        rows = rows.to(self.policy.device)
        self._mask = self._mask[rows]
        if len(rows):
            self._cache.batch_select_indices(rows)

    def _forward(self, ids: Tensor) -> Tensor:
        positions = (self._mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        with self.policy.attention("plain"):
            output = self.policy.causal_lm(
                input_ids=ids, attention_mask=self._mask, position_ids=positions, past_key_values=self._cache,
                use_cache=True, logits_to_keep=1,
            )  # fmt: skip
        if self._cache.get_seq_length() != self._mask.shape[1]:
            raise self._no_cache("no attention cache")
        return output.logits[:, -1]

    def _new_cache(self) -> DynamicCache:
        cache = DynamicCache(config=self.policy.causal_lm.config)
        try:
            cache.get_seq_length()
        except ValueError as error:  # what a cache without attention layers (state-space models) raises
            raise self._no_cache("no attention cache") from error
        # of a hybrid model: transformers can neither copy nor select the rows of such a state, and padding enters it
        if any(hasattr(layer, "update_recurrent_state") for layer in cache.layers):
            raise self._no_cache("a recurrent state besides its attention cache")
        return cache

    def _no_cache(self, found: str) -> NoSampler:
        return NoSampler(
            f"{type(self.policy.causal_lm).__name__} keeps {found}; the local sampler needs an attention cache alone — "
            "sample from it through an external engine"
        )
