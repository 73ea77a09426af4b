"""Next-token log-probabilities of one model for continuations of a prompt that grow token by token, branch and end.

Axes: B rows, V vocabulary. All models of one search see the same rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache

from accord.errors import PolicyError
from accord.policy.policy import Policy


class CachedRows:
    """Continuations of a prompt, all of one length; `logps_BV` are of the next token, nats, float32 or wider."""

    def __init__(self, policy: Policy, prompt: Sequence[int]) -> None:
        """Read the prompt, the one row to begin with. Raises PolicyError for a model without an attention cache."""
        if not prompt:
            raise PolicyError("got a prompt without tokens — give at least a start token")
        self.policy = policy
        ids_BL = torch.tensor([list(prompt)], device=policy.device)
        self._cache = DynamicCache(config=policy.causal_lm.config)
        if any(hasattr(layer, "update_recurrent_state") for layer in self._cache.layers):
            raise self._no_cache()
        self._length = 0
        self.logps_BV = self._forward(ids_BL)

    def step(self, rows_B: Tensor, tokens_B: Tensor) -> Tensor:
        """Go on from these rows (an index may come twice, or not at all), each with one more token."""
        device = self.policy.device
        rows_B = rows_B.to(device)
        self._cache.batch_select_indices(rows_B)
        self.logps_BV = self._forward(tokens_B.to(device)[:, None])
        return self.logps_BV

    def _forward(self, ids_BL: Tensor) -> Tensor:
        self._length += ids_BL.shape[1]
        mask_BL = torch.ones(
            (len(ids_BL), self._length), dtype=torch.long, device=ids_BL.device
        )  # rows are of one length
        logps_BV = self._next_logps(
            input_ids=ids_BL, attention_mask=mask_BL, past_key_values=self._cache, use_cache=True
        )
        try:
            is_kept = self._cache.get_seq_length() == self._length
        except ValueError:  # what a cache without attention layers raises
            is_kept = False
        if not is_kept:
            raise self._no_cache()
        if not torch.isfinite(logps_BV.max(-1).values).all():
            raise PolicyError(f"{type(self.policy.causal_lm).__name__} gave logits that are not numbers")
        return logps_BV

    def _next_logps(self, **inputs: Any) -> Tensor:
        logits_BV = self.policy.causal_lm(**inputs, logits_to_keep=1).logits[:, -1]
        return F.log_softmax(logits_BV.to(torch.promote_types(logits_BV.dtype, torch.float32)), dim=-1)

    def _no_cache(self) -> PolicyError:
        return PolicyError(
            f"{type(self.policy.causal_lm).__name__} does not keep an attention cache alone, which searching and "
            "mixing models while decoding need — use best-of-N"
        )


@contextmanager
def decoding(*policies: Policy) -> Iterator[None]:
    """Run a block with models ready to decode: no gradient, evaluation mode, their own attention and precision."""
    was_training = [policy.training for policy in policies]
    for policy in policies:
        policy.eval()
    try:
        if not policies:
            yield
            return
        with torch.no_grad(), policies[0].attention("plain"), policies[0].precision(), decoding(*policies[1:]):
            yield
    finally:
        for policy, before in zip(policies, was_training, strict=True):
            policy.train(before)


def check_same_vocabulary(policy: Policy, reference: Policy) -> None:
    """Raise PolicyError for two models that do not speak of the same tokens."""
    if policy is reference:
        return
    ours, theirs = (model.causal_lm.config.get_text_config().vocab_size for model in (policy, reference))
    if ours != theirs or policy.tokenizer.get_vocab() != reference.tokenizer.get_vocab():
        raise PolicyError(
            f"got a policy and a reference with vocabularies of {ours} and {theirs} tokens, which are not the same — "
            "expected two models with one tokenizer"
        )


def room_for(policy: Policy, prompt: Sequence[int], max_tokens: int) -> int:
    """Return how many tokens may follow a prompt. Raises PolicyError for one that fills the model's window."""
    limit = getattr(policy.causal_lm.config.get_text_config(), "max_position_embeddings", None)
    window = limit if isinstance(limit, int) and limit > 0 else len(prompt) + max_tokens
    if len(prompt) >= window:
        raise PolicyError(f"got a prompt of {len(prompt)} tokens — expected fewer than the model's {window} positions")
    return min(max_tokens, window - len(prompt))
