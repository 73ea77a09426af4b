"""float32 products on CPUs where torch's BLAS leaves the wide vector units idle.

On x86, torch hands float32 products to MKL, which on processors of other makers than Intel takes its AVX2 kernels even
where AVX-512 is there: half of what the machine can do (AMD EPYC of family 26, one thread: 95–100 GFLOP/s of 200 and
more). oneDNN, which comes with torch, chooses its kernels by what the processor says it can do. The operation used
here is the one torch's own compiler emits for such products; it is private, so it is compared with F.linear once
before it is used. docs/decisions/012-products-on-cpu.md has the figures.

Axes: N rows, H inner, O outer.
"""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

log = logging.getLogger(__name__)

# Below these oneDNN's 12 µs for a call, and its rearranging of the weight, cost more than its kernels save: measured
# over N = 1 … 4096 and O × H = 8 × 512 … 50257 × 512, forward and both gradients. Two rows gain already, one does not.
FEWEST_ROWS = 2
FEWEST_PRODUCTS = 2**21  # N · H · O


@cache
def onednn_is_faster() -> bool:
    """Whether this machine's float32 products go through oneDNN: the same answer in every process on it.

    Not measured, because a clock may say one thing today and another when a run is resumed, whose numbers must be the
    same to the last bit. `torch.backends.mkldnn.set_flags(False)` before the first call turns it off.
    """
    return (
        has_onednn()
        and torch.backends.mkldnn.enabled  # type: ignore[attr-defined]  # a property that torch puts on the module
        and torch.backends.mkl.is_available()
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and _vendor() not in ("", "GenuineIntel")  # on Intel's own, MKL uses AVX-512 itself
        and _agrees_with_linear()
    )


@cache
def has_onednn() -> bool:
    """Whether this torch has the operation."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _vendor() -> str:
    """Return the processor's maker as /proc/cpuinfo has it, "" where there is no such file."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("vendor_id")), "")


def _agrees_with_linear() -> bool:
    x = torch.linspace(-1, 1, 48 * 64).sin().view(48, 64)
    weight, bias = torch.linspace(-1, 1, 80 * 64).cos().view(80, 64), torch.linspace(-1, 1, 80)
    g = x @ weight.t()
    layouts = ((x, weight, bias), (g, weight.t(), None), (g.t(), x.t(), None))  # forward and both gradients
    try:
        found = [_onednn(*given) for given in layouts]
    except (RuntimeError, TypeError, ValueError) as error:  # what a changed signature or a missing kernel raises
        reason = str(error).splitlines()[0]
    else:
        expected = [F.linear(*given) for given in layouts]
        if all(torch.allclose(*both, rtol=1e-5, atol=1e-4) for both in zip(found, expected, strict=True)):
            return True
        reason = "its numbers are not those of F.linear"
    log.warning("products stay with torch's BLAS, oneDNN's operation cannot be used: %s", reason)
    return False


def product(x_NH: Tensor, weight_OH: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """Return x Wᵀ + b (N, O) in new memory, outside autograd, by whichever kernel is faster; both may be transposed."""
    if goes_to_onednn(x_NH, weight_OH, x_NH.shape[0]):
        return _onednn(x_NH, weight_OH, bias_O)
    return F.linear(x_NH, weight_OH, bias_O)


def goes_to_onednn(x: Tensor, weight_OH: Tensor, num_rows: int) -> bool:
    """Whether `product` of these takes oneDNN."""
    return (
        num_rows >= FEWEST_ROWS
        and num_rows * weight_OH.numel() >= FEWEST_PRODUCTS
        and x.dtype == weight_OH.dtype == torch.float32
        and x.device.type == weight_OH.device.type == "cpu"
        and onednn_is_faster()
    )


def _onednn(x_NH: Tensor, weight_OH: Tensor, bias_O: Tensor | None) -> Tensor:
    # it reads memory by its strides as oneDNN knows them: plain or transposed, nothing expanded or cut out
    x, weight = (t if t.is_contiguous() or t.t().is_contiguous() else t.contiguous() for t in (x_NH, weight_OH))
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias_O, "none", [], "")


class _Linear(torch.autograd.Function):
    """x Wᵀ + b with its gradients ∂x = g W, ∂W = gᵀ x, ∂b = Σ g, each of them one `product`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_OH: Tensor, bias_O: Tensor | None) -> Tensor:  # type: ignore[override]  # torch types the arguments as *args
        needs_x, needs_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if needs_weight else None, weight_OH if needs_x else None)
        return product(x.reshape(-1, x.shape[-1]), weight_OH, bias_O).view(*x.shape[:-1], len(weight_OH))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]  # torch types them as *args
        x, weight_OH = ctx.saved_tensors
        grad_NO = grad.reshape(-1, grad.shape[-1])
        grad_x = grad_weight_OH = grad_bias_O = None
        if weight_OH is not None:
            grad_x = product(grad_NO, weight_OH.t()).view(*grad.shape[:-1], weight_OH.shape[1])
        if x is not None:
            grad_weight_OH = product(grad_NO.t(), x.reshape(-1, x.shape[-1]).t())
        if ctx.needs_input_grad[2]:
            grad_bias_O = grad_NO.sum(0)
        return grad_x, grad_weight_OH, grad_bias_O


class FastLinear(nn.Linear):
    """nn.Linear in everything but its kernel, and in that too where the products are not float32, or are small."""

    def forward(self, input: Tensor) -> Tensor:
        """Return x Wᵀ + b for x with any leading axes."""
        num_rows = input.numel() // max(1, input.shape[-1])
        is_plain = type(input) is Tensor and type(self.weight) in (Tensor, nn.Parameter)  # sharded ones are not
        if is_plain and goes_to_onednn(input, self.weight, num_rows) and not torch.is_autocast_enabled("cpu"):
            return _Linear.apply(input, self.weight, self.bias)  # type: ignore[no-any-return]  # Function.apply is untyped
        return super().forward(input)


def use_fast_products(model: nn.Module) -> None:
    """Make every plain nn.Linear of a model a `FastLinear`: names, weights and isinstance checks stay as they are.

    Does nothing where torch's own kernels are as good.
    """
    if not onednn_is_faster():
        return
    for module in model.modules():
        if type(module) is nn.Linear:  # subclasses may compute something else
            module.__class__ = FastLinear
