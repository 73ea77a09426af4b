"""The log-prob head: hidden states of response positions meet the vocabulary in chunks, never as one full matrix.

Axes: N response tokens, H hidden, V vocabulary, C tokens of a chunk. Log-probabilities are nats in float32 or wider.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Statistic = Literal["entropy", "topk_entropy", "topk_mass", "top1", "log_sum_sq"]

CHUNK_BYTES = 64 * 2**20  # of float32 logits alive at once when they are recomputed in the backward pass
KEEP_BYTES = 256 * 2**20  # softmax rows kept for the backward pass instead of being recomputed: one product fewer
TOP_K = 10


def compute_statistics(logps_NV: Tensor, wanted: Sequence[Statistic]) -> dict[str, Tensor]:
    """Return per-token by-products of normalised log-probabilities (N, V), detached.

    entropy        −Σ p log p, nats
    topk_entropy   −Σ over the k = 10 largest of p log p, nats (not renormalised)
    topk_mass      Σ of the 10 largest p
    top1           largest p
    log_sum_sq     log Σ p², nats (the alignment term of WPO)
    """
    found: dict[str, Tensor] = {}
    logps_NV = logps_NV.detach()
    if "entropy" in wanted:
        found["entropy"] = torch.special.entr(logps_NV.exp()).sum(-1)  # 0 log 0 = 0, as for a masked token
    if {"topk_entropy", "topk_mass", "top1"} & set(wanted):
        top_NK = logps_NV.topk(min(TOP_K, logps_NV.shape[-1]), dim=-1).values
        p_NK = top_NK.exp()
        for name, value in (
            ("topk_entropy", torch.special.entr(p_NK).sum(-1)),
            ("topk_mass", p_NK.sum(-1)),
            ("top1", p_NK[:, 0]),
        ):
            if name in wanted:
                found[name] = value
    if "log_sum_sq" in wanted:
        found["log_sum_sq"] = torch.logsumexp(2 * logps_NV, dim=-1)
    return found


def logps_of_logits(
    logits_NV: Tensor, targets_N: Tensor, statistics: Sequence[Statistic] = ()
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return log-probabilities of the targets and by-products from ready logits, through ordinary autograd.

    The way for models that post-process their logits (soft-capping, scaling); only response positions get here.
    """
    wide_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
    logps_NV = F.log_softmax(wide_NV, dim=-1)
    logps_N = logps_NV.gather(-1, targets_N[:, None]).squeeze(-1)
    return logps_N, compute_statistics(logps_NV, statistics)


class _LinearLogps(torch.autograd.Function):
    """log softmax(h Wᵀ + b)[target], chunk by chunk, with the backward pass written out.

    With slope = p − onehot and upstream g:  ∂h = −g ⊙ (slope W),  ∂W = −slopeᵀ (g ⊙ h): two products, and nothing
    else over the vocabulary. Slopes are kept while they fit in `keep_bytes`, otherwise recomputed.
    """

    @staticmethod
    def forward(  # type: ignore[override]  # torch types the context and arguments as *args
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        targets_N: Tensor,
        statistics: tuple[Statistic, ...],
        num_chunk_tokens: int,
        keep: bool,
    ) -> tuple[Tensor, ...]:
        wide = torch.promote_types(hidden_NH.dtype, torch.float32)
        num_tokens, vocabulary = hidden_NH.shape[0], weight_VH.shape[0]
        logps_N = hidden_NH.new_empty(num_tokens, dtype=wide)
        found: dict[str, list[Tensor]] = {name: [] for name in statistics}
        kept_NV = hidden_NH.new_empty((num_tokens if keep else 0, vocabulary))
        work_CV = _work(hidden_NH, vocabulary, wide, 0 if keep and wide == hidden_NH.dtype else num_chunk_tokens)
        for start in range(0, num_tokens, num_chunk_tokens):
            rows = slice(start, min(start + num_chunk_tokens, num_tokens))
            out_CV = kept_NV[rows] if len(work_CV) == 0 else work_CV[: rows.stop - start]
            _logits_into(out_CV, hidden_NH[rows], weight_VH, bias_V)
            for name, value in (_statistics_of_logits(out_CV, statistics) if statistics else {}).items():
                found[name].append(value)
            logps_N[rows] = _slopes_in_place(out_CV, targets_N[rows])
            if keep and len(work_CV):
                kept_NV[rows] = out_CV
        ctx.save_for_backward(hidden_NH, weight_VH, bias_V, targets_N, kept_NV)
        ctx.num_chunk_tokens, ctx.wide, ctx.keep = num_chunk_tokens, wide, keep
        extras = tuple(torch.cat(found[name]) if found[name] else logps_N.new_empty(0) for name in statistics)
        ctx.mark_non_differentiable(*extras)
        return (logps_N, *extras)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden_NH, weight_VH, bias_V, targets_N, kept_NV = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        num_tokens, vocabulary = hidden_NH.shape[0], weight_VH.shape[0]
        minus_N1 = -grads[0][:, None]
        grad_hidden_NH = torch.empty_like(hidden_NH) if needs_hidden else None
        grad_weight_VH: Tensor | None = None
        grad_bias_V = torch.zeros_like(bias_V, dtype=ctx.wide) if needs_bias and bias_V is not None else None
        chunk = num_tokens if ctx.keep else ctx.num_chunk_tokens
        work_CV = _work(hidden_NH, vocabulary, ctx.wide, 0 if ctx.keep else chunk)
        for start in range(0, num_tokens, max(1, chunk)):
            rows = slice(start, min(start + chunk, num_tokens))
            if ctx.keep:
                slope_CV = kept_NV[rows]
            else:
                wide_CV = work_CV[: rows.stop - start]
                _logits_into(wide_CV, hidden_NH[rows], weight_VH, bias_V)
                _slopes_in_place(wide_CV, targets_N[rows])
                slope_CV = wide_CV.to(hidden_NH.dtype)
            if grad_hidden_NH is not None:
                torch.mm(slope_CV, weight_VH, out=grad_hidden_NH[rows])
                grad_hidden_NH[rows] *= minus_N1[rows]
            if needs_weight:
                scaled_CH = (hidden_NH[rows] * minus_N1[rows]).to(slope_CV.dtype)
                if grad_weight_VH is None:
                    grad_weight_VH = (slope_CV.T @ scaled_CH).to(ctx.wide)
                elif grad_weight_VH.dtype == slope_CV.dtype:
                    grad_weight_VH.addmm_(slope_CV.T, scaled_CH)
                else:
                    grad_weight_VH += slope_CV.T @ scaled_CH
            if grad_bias_V is not None:
                grad_bias_V += (slope_CV * minus_N1[rows]).sum(0)
        if grad_weight_VH is not None:
            grad_weight_VH = grad_weight_VH.to(weight_VH.dtype)
        elif needs_weight:
            grad_weight_VH = torch.zeros_like(weight_VH)  # no response token in the batch
        if grad_bias_V is not None and bias_V is not None:
            grad_bias_V = grad_bias_V.to(bias_V.dtype)
        return grad_hidden_NH, grad_weight_VH, grad_bias_V, None, None, None, None


def _work(hidden_NH: Tensor, vocabulary: int, wide: torch.dtype, num_tokens: int) -> Tensor:
    """One buffer for all chunks: fresh memory for each would cost as much as the softmax."""
    return hidden_NH.new_empty((min(num_tokens, hidden_NH.shape[0]), vocabulary), dtype=wide)


def _logits_into(out_CV: Tensor, hidden_CH: Tensor, weight_VH: Tensor, bias_V: Tensor | None) -> None:
    if out_CV.dtype == hidden_CH.dtype:
        torch.mm(hidden_CH, weight_VH.T, out=out_CV)
    else:
        out_CV.copy_(hidden_CH @ weight_VH.T)
    if bias_V is not None:
        out_CV += bias_V


def _statistics_of_logits(logits_CV: Tensor, wanted: Sequence[Statistic]) -> dict[str, Tensor]:
    return compute_statistics(logits_CV - torch.logsumexp(logits_CV, dim=-1, keepdim=True), wanted)


def _slopes_in_place(logits_CV: Tensor, targets_C: Tensor) -> Tensor:
    """Turn logits into slopes, softmax − onehot, in place; return the targets' log-probabilities, nats (C,)."""
    targets_C1 = targets_C[:, None]
    target_C1 = logits_CV.gather(-1, targets_C1)
    largest_C1 = logits_CV.amax(-1, keepdim=True)
    torch.softmax(logits_CV, dim=-1, out=logits_CV)
    # log Σ exp = max − log p(max), and p(max) ≥ 1/V is far from any underflow
    logps_C1 = target_C1 - largest_C1 + logits_CV.amax(-1, keepdim=True).log()
    logits_CV.scatter_add_(-1, targets_C1, torch.full_like(target_C1, -1.0))
    return logps_C1.squeeze(-1)


def linear_logps(
    hidden_NH: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor | None,
    targets_N: Tensor,
    statistics: Sequence[Statistic] = (),
    *,
    num_chunk_tokens: int | None = None,
    keep_bytes: int = KEEP_BYTES,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return log softmax(h Wᵀ + b) at the targets, nats (N,), and the requested by-products (N,), detached.

    Peak extra memory is one chunk of logits, plus softmax rows up to `keep_bytes` while a backward pass may come.
    Equal to `logps_of_logits(h Wᵀ + b)` in values and gradients (tested in float64).
    """
    row_bytes = weight_VH.shape[0] * max(4, hidden_NH.element_size())
    chunk = num_chunk_tokens or max(1, CHUNK_BYTES // row_bytes)
    keep = torch.is_grad_enabled() and hidden_NH.shape[0] * row_bytes <= keep_bytes
    wanted = tuple(statistics)
    logps_N, *extras = _LinearLogps.apply(hidden_NH, weight_VH, bias_V, targets_N, wanted, chunk, keep)  # type: ignore[misc]  # Function.apply is untyped
    return logps_N, dict(zip(wanted, extras, strict=True))
