"""The log-prob head: hidden states of response positions meet the vocabulary in blocks, never as one full matrix.

Axes: N response tokens, H hidden, V vocabulary; C tokens by W words of a block, T tiles of words.
Log-probabilities are nats in float32 or wider.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from accord.policy.products import goes_to_onednn, product

Statistic = Literal["entropy", "topk_entropy", "topk_mass", "top1", "log_sum_sq"]

CHUNK_BYTES = 64 * 2**20  # of float32 logits alive at once when they are recomputed in the backward pass
TILE_BYTES = 32 * 2**20  # the same for tiles, which are there to stay in the cache
TILE_WORDS = 2048  # columns of a tile: 1024 to 4096 are equally fast, full rows a third slower
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
    """log softmax(h Wᵀ + b)[target], block by block, with the backward pass written out.

    A block is a chunk of rows (tokens) by a tile of columns (words). With slope = p − onehot and upstream g:
    ∂h = −g ⊙ (slope W),  ∂W = −slopeᵀ (g ⊙ h): two products, and nothing else over the vocabulary. Slopes of the
    first `num_kept` rows are kept, the others recomputed from each row's log Σ exp.
    """

    @staticmethod
    def forward(  # type: ignore[override]  # torch types the context and arguments as *args
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        targets_N: Tensor,
        statistics: tuple[Statistic, ...],
        block: tuple[int, int],
        num_kept: int,
    ) -> tuple[Tensor, ...]:
        wide = torch.promote_types(hidden_NH.dtype, torch.float32)
        num_tokens, vocabulary = hidden_NH.shape[0], weight_VH.shape[0]
        logps_N = hidden_NH.new_empty(num_tokens, dtype=wide)
        norms_N = torch.empty_like(logps_N)  # log Σ exp
        found: dict[str, list[Tensor]] = {name: [] for name in statistics}
        is_tiled = block[1] < vocabulary
        kept = [hidden_NH.new_empty((num_tokens, vocabulary))] if num_kept and not is_tiled else []
        is_whole = num_kept == num_tokens and (is_tiled or wide == hidden_NH.dtype)
        work = None if is_whole else _work(hidden_NH, block, wide)
        for rows in _row_spans(num_tokens, block[0], num_kept if is_tiled else 0):
            keep = rows.stop <= num_kept
            targets_C1 = targets_N[rows, None]
            target_C1, norms, tiles = logps_N.new_zeros(targets_C1.shape), [], []
            for words in _spans(vocabulary, block[1]):
                into = work
                if keep and (is_tiled or work is None):
                    into = None if is_tiled else kept[0][rows]
                logits_CW = _logits(into, hidden_NH[rows], weight_VH[words], bias_V)
                for name, value in (_statistics_of_logits(logits_CW, statistics) if statistics else {}).items():
                    found[name].append(value)
                at_C1, is_here_C1 = _within(targets_C1, words)
                target_C1 = torch.where(is_here_C1, logits_CW.gather(-1, at_C1), target_C1)
                norms.append(_softmax_in_place(logits_CW))
                tiles += [logits_CW] if keep else []
            norms_CT = torch.cat(norms, dim=-1)
            norm_C1 = norms_CT.logsumexp(-1, keepdim=True)
            norms_N[rows], logps_N[rows] = norm_C1.squeeze(-1), (target_C1 - norm_C1).squeeze(-1)
            for number, (p_CW, words) in enumerate(
                zip(tiles, _spans(vocabulary, block[1]), strict=True) if keep else ()
            ):
                if is_tiled:  # the softmax was the tile's own
                    p_CW *= (norms_CT[:, number, None] - norm_C1).exp()
                _subtract_onehot(p_CW, targets_C1, words)
                if is_tiled:
                    kept.append(p_CW)
                elif p_CW.data_ptr() != kept[0][rows].data_ptr():
                    kept[0][rows] = p_CW
        ctx.save_for_backward(hidden_NH, weight_VH, bias_V, targets_N, norms_N, *kept)
        ctx.block, ctx.wide, ctx.num_kept = block, wide, num_kept
        extras = tuple(torch.cat(found[name]) if found[name] else logps_N.new_empty(0) for name in statistics)
        ctx.mark_non_differentiable(*extras)
        return (logps_N, *extras)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden_NH, weight_VH, bias_V, targets_N, norms_N, *kept = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        minus_N1 = -grads[0][:, None]
        # zeros where no response token is in the batch
        make = torch.empty_like if len(hidden_NH) else torch.zeros_like
        grad_hidden_NH = make(hidden_NH) if needs_hidden else None
        grad_weight_VH = make(weight_VH, dtype=ctx.wide) if needs_weight else None
        grad_bias_V = torch.zeros_like(bias_V, dtype=ctx.wide) if needs_bias and bias_V is not None else None
        work = None if ctx.num_kept == len(hidden_NH) else _work(hidden_NH, ctx.block, ctx.wide)
        for rows in _row_spans(len(hidden_NH), ctx.block[0], ctx.num_kept):
            scaled_CH = (hidden_NH[rows] * minus_N1[rows]).to(hidden_NH.dtype)
            for number, words in enumerate(_spans(len(weight_VH), ctx.block[1])):
                if rows.stop <= ctx.num_kept:
                    slope_CW = kept[number]
                else:
                    p_CW = _logits(work, hidden_NH[rows], weight_VH[words], bias_V)
                    p_CW.sub_(norms_N[rows, None]).exp_()
                    _subtract_onehot(p_CW, targets_N[rows, None], words)
                    slope_CW = p_CW.to(hidden_NH.dtype)
                if grad_hidden_NH is not None:
                    _put(grad_hidden_NH[rows], product(slope_CW, weight_VH[words].T), is_first=number == 0)
                if grad_weight_VH is not None:
                    _put(grad_weight_VH[words], product(slope_CW.T, scaled_CH.T), is_first=rows.start == 0)
                if grad_bias_V is not None:
                    grad_bias_V[words] += (slope_CW * minus_N1[rows]).sum(0)
        if grad_hidden_NH is not None:
            grad_hidden_NH *= minus_N1
        if grad_weight_VH is not None:
            grad_weight_VH = grad_weight_VH.to(weight_VH.dtype)
        if grad_bias_V is not None and bias_V is not None:
            grad_bias_V = grad_bias_V.to(bias_V.dtype)
        return grad_hidden_NH, grad_weight_VH, grad_bias_V, None, None, None, None


def _spans(length: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def _row_spans(length: int, size: int, num_kept: int) -> list[slice]:
    """Return the rows that are kept as one span, and the others in spans of `size`."""
    first = [slice(0, num_kept)] if num_kept else []
    return first + [slice(num_kept + span.start, num_kept + span.stop) for span in _spans(length - num_kept, size)]


def _put(into: Tensor, part: Tensor, *, is_first: bool) -> None:
    _ = into.copy_(part) if is_first else into.add_(part)


def _work(hidden_NH: Tensor, block: tuple[int, int], wide: torch.dtype) -> Tensor:
    """One buffer for all blocks: fresh memory for each would cost as much as the softmax."""
    return hidden_NH.new_empty((min(block[0], hidden_NH.shape[0]), block[1]), dtype=wide)


def _logits(into: Tensor | None, hidden_CH: Tensor, weight_WH: Tensor, bias_W: Tensor | None) -> Tensor:
    """Return h Wᵀ + b, in the first elements of `into` where the kernel can write there."""
    shape = (len(hidden_CH), len(weight_WH))
    if into is None or goes_to_onednn(hidden_CH, weight_WH, len(hidden_CH)):
        return product(hidden_CH, weight_WH, bias_W)
    out_CW = into.flatten()[: shape[0] * shape[1]].view(shape)
    if out_CW.dtype == hidden_CH.dtype:
        torch.mm(hidden_CH, weight_WH.T, out=out_CW)
    else:
        out_CW.copy_(hidden_CH @ weight_WH.T)
    return out_CW if bias_W is None else out_CW.add_(bias_W)


def _statistics_of_logits(logits_CV: Tensor, wanted: Sequence[Statistic]) -> dict[str, Tensor]:
    return compute_statistics(logits_CV - torch.logsumexp(logits_CV, dim=-1, keepdim=True), wanted)


def _softmax_in_place(logits_CW: Tensor) -> Tensor:
    """Turn logits into their softmax; return their log Σ exp (C, 1)."""
    largest_C1 = logits_CW.amax(-1, keepdim=True)
    torch.softmax(logits_CW, dim=-1, out=logits_CW)
    # log Σ exp = max − log p(max), and p(max) ≥ 1/W is far from any underflow
    return largest_C1 - logits_CW.amax(-1, keepdim=True).log()


def _within(targets_C1: Tensor, words: slice) -> tuple[Tensor, Tensor]:
    """Return the targets' columns in a tile, 0 or the last where they are not in it, and whether they are."""
    width = words.stop - words.start
    at_C1 = targets_C1 - words.start
    return at_C1.clamp(0, width - 1), (at_C1 >= 0) & (at_C1 < width)


def _subtract_onehot(p_CW: Tensor, targets_C1: Tensor, words: slice) -> None:
    at_C1, is_here_C1 = _within(targets_C1, words)
    p_CW.scatter_add_(-1, at_C1, -is_here_C1.to(p_CW.dtype))


def linear_logps(
    hidden_NH: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor | None,
    targets_N: Tensor,
    statistics: Sequence[Statistic] = (),
    *,
    num_chunk_tokens: int | None = None,
    num_tile_words: int | None = None,
    keep_bytes: int = KEEP_BYTES,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return log softmax(h Wᵀ + b) at the targets, nats (N,), and the requested by-products (N,), detached.

    Peak extra memory is one block of logits, plus softmax rows up to `keep_bytes` while a backward pass may come.
    Equal to `logps_of_logits(h Wᵀ + b)` in values and gradients (tested in float64).
    """
    num_tokens, vocabulary = hidden_NH.shape[0], weight_VH.shape[0]
    word_bytes = max(4, hidden_NH.element_size())
    most_kept = keep_bytes // max(1, vocabulary * word_bytes) if torch.is_grad_enabled() else 0
    wanted = tuple(statistics)
    # Full rows are for statistics, which need them; for lower precisions, whose slopes are rounded only once they are
    # complete; for a GPU, where a tile is too little work; and for a bias, where a tile may hold nothing but −inf.
    can_tile = hidden_NH.device.type == "cpu" and hidden_NH.element_size() >= 4 and not wanted and bias_V is None
    tile = min(vocabulary, (num_tile_words or TILE_WORDS) if can_tile else vocabulary)
    is_tiled = tile < vocabulary
    chunk = num_chunk_tokens or max(1, (TILE_BYTES if is_tiled else CHUNK_BYTES) // (tile * word_bytes))
    num_kept = min(num_tokens, most_kept) if is_tiled or num_tokens <= most_kept else 0  # full rows: all or none
    logps_N, *extras = _LinearLogps.apply(hidden_NH, weight_VH, bias_V, targets_N, wanted, (chunk, tile), num_kept)  # type: ignore[misc]  # Function.apply is untyped
    return logps_N, dict(zip(wanted, extras, strict=True))
