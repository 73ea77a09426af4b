"""How far a policy's next-token distributions are from a reference's: KL over the vocabulary, position by position.

Axes: N response tokens, H hidden, V vocabulary, C tokens of a chunk. Where a model's head is linear its (N, V) matrix
never exists: it is made chunk by chunk, and again in the backward pass. Nats, in float32 or wider.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK_BYTES = 16 * 2**20  # of float32 logits of one model; some eight such matrices are alive at once


@dataclass(frozen=True, kw_only=True)
class Readout:
    """What a model says at N positions: hidden states before a linear head, or logits where it makes them itself."""

    hidden_NH: Tensor | None = None
    weight_VH: Tensor | None = None
    bias_V: Tensor | None = None
    logits_NV: Tensor | None = None

    @property
    def num_tokens(self) -> int:
        """N."""
        found = self.hidden_NH if self.hidden_NH is not None else self.logits_NV
        assert found is not None
        return len(found)

    @property
    def vocabulary(self) -> int:
        """V."""
        if self.logits_NV is not None:
            return self.logits_NV.shape[1]
        assert self.weight_VH is not None
        return self.weight_VH.shape[0]

    def at(self, temperature: float) -> Readout:
        """Return what the model says with its logits divided by a temperature."""
        if temperature == 1.0:
            return self
        if self.logits_NV is not None:
            return replace(self, logits_NV=self.logits_NV / temperature)
        assert self.hidden_NH is not None
        bias_V = None if self.bias_V is None else self.bias_V / temperature
        return replace(self, hidden_NH=self.hidden_NH / temperature, bias_V=bias_V)

    def detached(self) -> Readout:
        """Return the same numbers apart from any graph, and from parameters that will be given other values."""
        return Readout(**{name: None if value is None else value.detach() for name, value in vars(self).items()})

    def logits(self, rows: slice) -> Tensor:
        """Return the logits (C, V) of some positions, in float32 or wider."""
        if self.logits_NV is not None:
            return _wide(self.logits_NV[rows])
        assert self.hidden_NH is not None
        assert self.weight_VH is not None
        return _linear_logits(self.hidden_NH[rows], self.weight_VH, self.bias_V)

    def chunks(self, num_chunk_tokens: int | None = None) -> list[slice]:
        """Cut the positions so that one chunk of logits fits in `CHUNK_BYTES`."""
        size = num_chunk_tokens or max(1, CHUNK_BYTES // (4 * self.vocabulary))
        return [slice(start, min(start + size, self.num_tokens)) for start in range(0, self.num_tokens, size)]


def position_kl(policy: Readout, reference: Readout, *, num_chunk_tokens: int | None = None) -> Tensor:
    """Return KL(π_ref ‖ π) at every position, nats (N,), with gradient through the policy.

    ∂KL/∂logits = π − π_ref. Infinite where the policy gives 0 to a token that the reference does not.
    """
    assert policy.num_tokens == reference.num_tokens, "both models are read at the same tokens"
    reference, chunks = reference.detached(), policy.chunks(num_chunk_tokens)
    if policy.logits_NV is None:
        return _LinearPositionKL.apply(policy.hidden_NH, policy.weight_VH, policy.bias_V, reference, chunks)  # type: ignore[return-value]  # Function.apply is untyped
    whole_NV = policy.logits_NV
    parts = [
        checkpoint(
            lambda rows: _kl(_wide(whole_NV[rows]), reference.logits(rows)), rows,
            use_reentrant=False, preserve_rng_state=False,
        )
        for rows in chunks
    ]  # fmt: skip
    return torch.cat(parts) if parts else _wide(whole_NV).sum(dim=1)


class _LinearPositionKL(torch.autograd.Function):
    """KL(π_ref ‖ softmax(h Wᵀ + b)) chunk by chunk, with the backward pass written out.

    With slope = π − π_ref and upstream g:  ∂h = g ⊙ (slope W),  ∂W = (g ⊙ slope)ᵀ h,  ∂b = Σ g ⊙ slope.
    """

    @staticmethod
    def forward(  # type: ignore[override]  # torch types the context and arguments as *args
        ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, reference: Readout, chunks: list[slice]
    ) -> Tensor:
        kl_N = hidden_NH.new_zeros(len(hidden_NH), dtype=_wide_dtype(hidden_NH))
        for rows in chunks:
            kl_N[rows] = _kl(_linear_logits(hidden_NH[rows], weight_VH, bias_V), reference.logits(rows))
        ctx.save_for_backward(hidden_NH, weight_VH, bias_V)
        ctx.reference, ctx.chunks = reference, chunks
        return kl_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden_NH, weight_VH, bias_V = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        wide = _wide_dtype(hidden_NH)
        grad_hidden_NH = torch.zeros_like(hidden_NH) if needs_hidden else None
        grad_weight_VH = torch.zeros_like(weight_VH, dtype=wide) if needs_weight else None
        grad_bias_V = torch.zeros_like(bias_V, dtype=wide) if needs_bias else None
        for rows in ctx.chunks:
            slope_CV = _linear_logits(hidden_NH[rows], weight_VH, bias_V).softmax(dim=-1)
            slope_CV -= ctx.reference.logits(rows).softmax(dim=-1)
            slope_CV *= grads[0][rows, None]
            if grad_bias_V is not None:
                grad_bias_V += slope_CV.sum(dim=0)
            slope_CV = slope_CV.to(hidden_NH.dtype)
            if grad_hidden_NH is not None:
                grad_hidden_NH[rows] = slope_CV @ weight_VH
            if grad_weight_VH is not None:
                grad_weight_VH += slope_CV.T @ hidden_NH[rows]
        return (
            grad_hidden_NH,
            None if grad_weight_VH is None else grad_weight_VH.to(weight_VH.dtype),
            None if grad_bias_V is None else grad_bias_V.to(bias_V.dtype),
            None,
            None,
        )


def _linear_logits(hidden_CH: Tensor, weight_VH: Tensor, bias_V: Tensor | None) -> Tensor:
    logits_CV = _wide(hidden_CH @ weight_VH.T)
    return logits_CV if bias_V is None else logits_CV + bias_V


def _kl(logits_CV: Tensor, reference_logits_CV: Tensor) -> Tensor:
    logps_CV, reference_logps_CV = logits_CV.log_softmax(dim=-1), reference_logits_CV.log_softmax(dim=-1)
    reference_CV = reference_logps_CV.exp()
    is_possible_CV = reference_CV > 0  # a token masked in both: 0 · (−∞ + ∞)
    gap_CV = torch.where(is_possible_CV, reference_logps_CV, 0.0) - torch.where(is_possible_CV, logps_CV, 0.0)
    return (reference_CV * gap_CV).sum(dim=-1)


def _wide_dtype(like: Tensor) -> torch.dtype:
    return torch.promote_types(like.dtype, torch.float32)


def _wide(values: Tensor) -> Tensor:
    return values.to(_wide_dtype(values))
