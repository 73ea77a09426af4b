"""What the work would cost at least: floating-point operations, and how many a second one thread can do.

A multiply-add counts 2. Notation: H hidden, I intermediate, V vocabulary; P prompt tokens; R response tokens with the
end-of-sequence token, of which n = R − 1 are laid out (the last one is only ever a target). With each prompt once:

    tokens      N = P + Σ n_k
    linear      2 · layers · (2·H² [q, o] + 2·H·H_kv [k, v] + 3·H·I) · N
    attention   4 · H · layers · (P(P+1)/2 + Σ (n_k·P + n_k(n_k+1)/2))    QKᵀ and the weighted sum, visible pairs only
    head        2 · H · V · Σ R_k                                         response tokens only
    forward     linear + attention + head;  backward = 2 · forward;  reference pass = 1 · forward

Not counted, on either side: norms, rotations, softmax, the embedding look-up, the optimizer (none is a matrix
product), and anything computed twice. The last layer's work at prompt positions is counted although only its keys
and values are strictly needed, as is usual.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama-shaped model that matter for its cost."""

    hidden: int
    layers: int
    intermediate: int
    vocabulary: int
    key_value: int  # width of the keys: = hidden without grouped queries

    @property
    def linear_parameters(self) -> int:
        """Weights each laid-out token meets in the layers."""
        attention = 2 * self.hidden**2 + 2 * self.hidden * self.key_value
        return self.layers * (attention + 3 * self.hidden * self.intermediate)


def forward_flops(shape: Shape, num_prompt: int, responses: Sequence[int]) -> int:
    """FLOPs of scoring one group's responses in the tree layout; see the module's text for the formula."""
    laid_out = [length - 1 for length in responses]
    visible = num_prompt * (num_prompt + 1) // 2 + sum(n * num_prompt + n * (n + 1) // 2 for n in laid_out)
    linear = 2 * shape.linear_parameters * (num_prompt + sum(laid_out))
    attention = 4 * shape.hidden * shape.layers * visible
    head = 2 * shape.hidden * shape.vocabulary * sum(responses)
    return linear + attention + head


def plain_forward_flops(shape: Shape, num_prompt: int, responses: Sequence[int]) -> int:
    """The same with the prompt repeated for every response and no padding: the plain path's own least work."""
    return sum(forward_flops(shape, num_prompt, [length]) for length in responses)


def epoch_flops(shape: Shape, lengths: Sequence[tuple[int, int, int]], *, with_reference: bool) -> int:
    """FLOPs of one DPO epoch over (prompt, chosen, rejected) lengths: forward, backward and, if asked, reference."""
    forward = sum(forward_flops(shape, prompt, responses) for prompt, *responses in lengths)
    return forward * (4 if with_reference else 3)


SHAPES = {
    "1024×512·512": (1024, 512, 512),
    "1024×512·1408": (1024, 512, 1408),
    "1024×1408·512": (1024, 1408, 512),
    "256×512·50257": (256, 512, 50257),
    "2048×2048·2048": (2048, 2048, 2048),
}


def measure_peaks(seconds: float = 9.0) -> dict[str, dict[str, float]]:
    """Best fp32 GFLOP/s of one thread per kernel and shape: this workload's products, and a large square one.

    Kernels: `torch.mm`, which every library on torch uses unless it does something about it, and, where Accord takes
    it on this machine, oneDNN's, in turn.
    """
    import torch

    from accord.policy.products import onednn_is_faster, product

    torch.set_num_threads(1)
    best: dict[str, dict[str, float]] = {"torch.mm": {}}
    if onednn_is_faster():
        best["oneDNN"] = {}
    for name, (rows, inner, columns) in SHAPES.items():
        left, right, out = torch.randn(rows, inner), torch.randn(inner, columns), torch.empty(rows, columns)
        transposed = right.T.contiguous()
        kernels = {"torch.mm": partial(torch.mm, left, right, out=out), "oneDNN": partial(product, left, transposed)}
        rates: dict[str, list[float]] = {kernel: [] for kernel in best}
        until = time.perf_counter() + seconds / len(SHAPES)
        while time.perf_counter() < until or len(rates["torch.mm"]) < 6:
            for kernel, found in rates.items():
                started = time.process_time_ns()
                kernels[kernel]()
                found.append(2 * rows * inner * columns / (time.process_time_ns() - started))
        for kernel, found in rates.items():  # the first is the warm-up; the 90th percentile: a lucky tick is no peak
            best[kernel][name] = sorted(found[1:])[-max(1, len(found) // 10)]
    return best


def main() -> None:
    """Measure in this process and write the result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--result", type=Path, required=True)
    args = parser.parse_args()
    best = measure_peaks()
    peaks = {kernel: max(rates.values()) for kernel, rates in best.items()}
    found = {"gflops": best, "peak_gflops": peaks["torch.mm"], "fastest_gflops": max(peaks.values())}
    args.result.write_text(json.dumps({**found, "fastest": max(peaks, key=lambda kernel: peaks[kernel])}))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
