"""One tree's attention in few large products: all responses meet the prompt at once, and each itself apart.

The two softmaxes of a response token, over the prompt and over its own response, are joined by their log Σ exp:
o = (e^{a₁} o₁ + e^{a₂} o₂)/(e^{a₁} + e^{a₂}), a = e^{a₁} + e^{a₂} in logs. With o and a of the whole, each part's
backward pass is that of an ordinary softmax (as in ring attention, Liu et al., 2023): scores are made again, none is
kept. For processors whose products are far faster than torch's attention (`policy/products.py`).
Axes: A heads, N tokens of the tree (prompt, then responses), P prompt tokens, R rows of a block, D head size.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from accord.policy.products import goes_to_onednn, product

ROWS = 256  # queries of a block: with 64 or less the calls cost more than the products, with 512 the cache does

log = logging.getLogger(__name__)


def can_share_products(q_AND: Tensor, k_AND: Tensor, v_AND: Tensor) -> bool:
    """Whether `shared_prompt_attention` takes these, and its products the faster kernel of this processor."""
    return (
        q_AND.shape == k_AND.shape == v_AND.shape
        and q_AND.dtype == v_AND.dtype
        and not torch.is_autocast_enabled(q_AND.device.type)
        and goes_to_onednn(q_AND[0], k_AND[0], q_AND.shape[1])
        and agrees_with_attention()
    )


def shared_prompt_attention(
    q_AND: Tensor, k_AND: Tensor, v_AND: Tensor, *, num_prompt: int, lengths: list[int], scale: float
) -> Tensor:
    """Return (A, N, D): prompt tokens attend causally, response tokens to the prompt and, causally, to their own.

    N = num_prompt + Σ lengths, num_prompt ≥ 1. On the CPU, in float32 or float64; differentiable once.
    """
    # the flash kernel takes the last axis to be contiguous, and does not ask
    given = (x_AND if x_AND.stride(-1) == 1 else x_AND.contiguous() for x_AND in (q_AND, k_AND, v_AND))
    return _SharedPrompt.apply(*given, num_prompt, [length for length in lengths if length], scale)


@cache
def agrees_with_attention() -> bool:
    """Whether torch's CPU attention gives its log Σ exp as is expected here: it is private, so it is compared once."""
    draw = torch.Generator().manual_seed(0)
    q, k, v, weight = (torch.randn(2, 9, 8, generator=draw) for _ in range(4))
    found: list[list[Tensor]] = []
    try:
        for attend in (  # a prompt and one response are plain causal attention
            lambda *x: shared_prompt_attention(*x, num_prompt=5, lengths=[4], scale=0.5),
            lambda *x: F.scaled_dot_product_attention(*x, is_causal=True, scale=0.5),
        ):
            leaves = [x.clone().requires_grad_() for x in (q, k, v)]
            with torch.enable_grad():
                out = attend(*leaves)
            found.append([out.detach(), *torch.autograd.grad((out * weight).sum(), leaves)])
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
    else:
        if all(torch.allclose(*both, rtol=1e-4, atol=1e-5) for both in zip(*found, strict=True)):
            return True
        reason = "its numbers are not those of F.scaled_dot_product_attention"
    log.warning("long prompts attend by torch's own kernel, the one for shared prompts cannot be used: %s", reason)
    return False


def _flash(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Causal attention (1, A, R, D) with log Σ exp of its scores (1, A, R)."""
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, True, scale=scale)


def _flash_backward(given: Sequence[Tensor], scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients from (grad, q, k, v, output, log Σ exp)."""
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(*given, 0.0, True, scale=scale)


class _SharedPrompt(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, num_prompt: int, lengths: list[int], scale: float) -> Tensor:  # type: ignore[override]  # torch types the arguments as *args
        out_AND, mass_AN = torch.empty_like(q), q.new_empty(q.shape[:2])
        for head, rows, keys in _blocks(q, num_prompt):
            scores_RP = _scores(q, k, head, rows, keys, scale)
            largest_R1 = scores_RP.amax(-1, keepdim=True)
            torch.softmax(scores_RP, dim=-1, out=scores_RP)
            # log Σ exp = max − log p(max)
            mass_AN[head, rows] = (largest_R1 - scores_RP.amax(-1, keepdim=True).log()).squeeze(-1)
            out_AND[head, rows] = product(scores_RP, v[head, keys].t())
        for own in _own(num_prompt, lengths):
            out, mass = _flash(q[None, :, own], k[None, :, own], v[None, :, own], scale)
            share = torch.sigmoid(mass[0] - mass_AN[:, own])
            out_AND[:, own] = out_AND[:, own].lerp(out[0], share[..., None])
            mass_AN[:, own] = torch.logaddexp(mass_AN[:, own], mass[0])
        ctx.save_for_backward(q, k, v, out_AND, mass_AN)
        ctx.num_prompt, ctx.lengths, ctx.scale = num_prompt, lengths, scale
        return out_AND

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_AND: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]  # torch types them as *args
        q, k, v, out_AND, mass_AN = ctx.saved_tensors
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        inner_AN1 = (grad_AND * out_AND).sum(-1, keepdim=True)
        for head, rows, keys in _blocks(q, ctx.num_prompt):
            p_RP = _scores(q, k, head, rows, keys, ctx.scale).sub_(mass_AN[head, rows, None]).exp_()
            grad_RD = grad_AND[head, rows]
            grad_v[head, keys] += product(grad_RD.t(), p_RP.t()).t()
            slope_RP = product(grad_RD, v[head, keys]).sub_(inner_AN1[head, rows]).mul_(p_RP).mul_(ctx.scale)
            grad_q[head, rows] = product(slope_RP, k[head, keys].t())
            grad_k[head, keys] += product(q[head, rows].t(), slope_RP.t()).t()
        for own in _own(ctx.num_prompt, ctx.lengths):
            parts = _flash_backward([x[None, :, own] for x in (grad_AND, q, k, v, out_AND, mass_AN)], ctx.scale)
            for whole, part in zip((grad_q, grad_k, grad_v), parts, strict=True):
                whole[:, own] += part[0]
        return grad_q, grad_k, grad_v, None, None, None


def _blocks(q: Tensor, num_prompt: int) -> list[tuple[int, slice, slice]]:
    """Return (head, rows, keys) of products: a prompt's rows with the keys up to their own, responses' with all."""
    num_tokens = q.shape[1]
    spans = [(start, min(start + ROWS, num_prompt)) for start in range(0, num_prompt, ROWS)]
    own = [(slice(start, end), slice(0, end)) for start, end in spans]
    others = [
        (slice(start, min(start + ROWS, num_tokens)), slice(0, num_prompt))
        for start in range(num_prompt, num_tokens, ROWS)
    ]
    return [(head, *block) for head in range(len(q)) for block in (*own, *others)]


def _own(num_prompt: int, lengths: list[int]) -> list[slice]:
    ends = torch.tensor([num_prompt, *lengths]).cumsum(0).tolist()
    return [slice(start, end) for start, end in pairwise(ends)]


def _scores(q: Tensor, k: Tensor, head: int, rows: slice, keys: slice, scale: float) -> Tensor:
    scores_RP = product(q[head, rows], k[head, keys]).mul_(scale)
    if rows.stop == keys.stop:  # a prompt's rows do not see what comes after them
        after = scores_RP[:, rows.start :]
        after.masked_fill_(torch.ones_like(after, dtype=torch.bool).triu_(1), float("-inf"))
    return scores_RP
