"""The log-prob head against log_softmax and autograd, and what it may keep in memory."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from models import build_policy, own_token_logps, ragged_groups
from torch.utils._python_dispatch import TorchDispatchMode

from accord.policy.head import TOP_K, compute_statistics, linear_logps, logps_of_logits

N, H, V = 23, 7, 31
ALL = ("entropy", "topk_entropy", "topk_mass", "top1", "log_sum_sq")
KEPT, PARTLY, RECOMPUTED = 2**30, 10 * V * 8, 0  # all rows; ten of them in float64; none


def inputs(dtype: torch.dtype = torch.float64, *, bias: bool = True, seed: int = 0) -> list[torch.Tensor | None]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(N, H), (V, H), (V,)]
    found = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]
    hidden, weight, bias_V = (x.requires_grad_() for x in found)
    return [hidden, weight, bias_V if bias else None, torch.randint(V, (N,), generator=generator)]


def gradients(logps_N: torch.Tensor, leaves: list[torch.Tensor | None]) -> list[torch.Tensor]:
    slope_N = torch.linspace(-1, 1, N, dtype=logps_N.dtype)
    return list(torch.autograd.grad((slope_N * logps_N).sum(), [x for x in leaves if x is not None]))


@pytest.mark.parametrize("keep_bytes", [KEPT, PARTLY, RECOMPUTED], ids=["kept", "partly", "recomputed"])
@pytest.mark.parametrize("chunk", [1, 5, N, 1000])
@pytest.mark.parametrize(("bias", "tile"), [(True, None), (False, None), (False, 1), (False, 8), (False, V - 1)])
def test_values_and_gradients_equal_log_softmax(bias: bool, tile: int | None, chunk: int, keep_bytes: int) -> None:
    *leaves, targets_N = inputs(bias=bias)
    hidden, weight, bias_V = leaves
    assert hidden is not None
    assert weight is not None
    assert targets_N is not None
    expected_N = F.log_softmax(F.linear(hidden, weight, bias_V), dim=-1)[torch.arange(N), targets_N]
    found_N, _ = linear_logps(
        hidden, weight, bias_V, targets_N, num_chunk_tokens=chunk, num_tile_words=tile, keep_bytes=keep_bytes
    )
    torch.testing.assert_close(found_N, expected_N, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(gradients(found_N, leaves), gradients(expected_N, leaves), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("keep_bytes", [KEPT, PARTLY, RECOMPUTED], ids=["kept", "partly", "recomputed"])
def test_tiles_far_apart_neither_overflow_nor_vanish(keep_bytes: int) -> None:
    """A row whose tiles' largest logits are 2 000 nats apart: exp of either difference is 0 or ∞ in any precision."""
    *leaves, targets_N = inputs(torch.float32, bias=False)
    hidden, weight, _ = leaves
    assert hidden is not None
    assert weight is not None
    assert targets_N is not None
    with torch.no_grad():
        hidden[:, 0], weight[:, 0] = 1.0, torch.linspace(-1000, 1000, V)
    wide = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    expected_N = F.log_softmax(F.linear(*wide), dim=-1)[torch.arange(N), targets_N]
    found_N, _ = linear_logps(hidden, weight, None, targets_N, num_tile_words=8, keep_bytes=keep_bytes)
    torch.testing.assert_close(found_N.double(), expected_N, rtol=1e-6, atol=1e-3)
    for ours, theirs in zip(gradients(found_N, leaves), gradients(expected_N, wide), strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("keep_bytes", [KEPT, PARTLY, RECOMPUTED], ids=["kept", "partly", "recomputed"])
def test_gradient_equals_finite_differences(keep_bytes: int) -> None:
    hidden, weight, bias_V, targets_N = inputs()

    def f(*leaves: torch.Tensor) -> torch.Tensor:
        return linear_logps(
            leaves[0][:4], leaves[1], leaves[2], targets_N[:4], num_chunk_tokens=3, keep_bytes=keep_bytes
        )[0]

    assert torch.autograd.gradcheck(f, (hidden, weight, bias_V), fast_mode=True)


@pytest.mark.parametrize("keep_bytes", [KEPT, PARTLY, RECOMPUTED], ids=["kept", "partly", "recomputed"])
@pytest.mark.parametrize("frozen", ["head", "body"])
def test_frozen_parts_get_no_gradient(frozen: str, keep_bytes: int) -> None:
    """With adapters the head is frozen; with a frozen body only the head moves."""
    hidden, weight, bias_V, targets_N = inputs()
    (expected_hidden, expected_weight, _) = gradients(
        linear_logps(hidden, weight, bias_V, targets_N)[0], [hidden, weight, bias_V]
    )
    moving = [hidden] if frozen == "head" else [weight]
    for part in (weight, bias_V) if frozen == "head" else (hidden, bias_V):
        part.requires_grad_(False)
    logps_N, _ = linear_logps(hidden, weight, bias_V, targets_N, keep_bytes=keep_bytes)
    (found,) = gradients(logps_N, moving)
    torch.testing.assert_close(found, expected_hidden if frozen == "head" else expected_weight)


@pytest.mark.parametrize("tile", [None, 8])
def test_backward_can_run_twice_over_a_retained_graph(tile: int | None) -> None:
    hidden, weight, _, targets_N = inputs(bias=False)
    logps_N, _ = linear_logps(hidden, weight, None, targets_N, num_tile_words=tile, keep_bytes=KEPT)
    first = torch.autograd.grad(logps_N.sum(), [hidden, weight], retain_graph=True)
    second = torch.autograd.grad(logps_N.sum(), [hidden, weight])
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_statistics_equal_their_formulas() -> None:
    hidden, weight, bias_V, targets_N = inputs()
    p_NV = F.linear(hidden, weight, bias_V).softmax(-1).detach()
    _, found = linear_logps(hidden, weight, bias_V, targets_N, ALL, num_chunk_tokens=5)
    top_NK = p_NV.sort(dim=-1, descending=True).values[:, :TOP_K]
    expected = {
        "entropy": -(p_NV * p_NV.log()).sum(-1),
        "topk_entropy": -(top_NK * top_NK.log()).sum(-1),
        "topk_mass": top_NK.sum(-1),
        "top1": p_NV.max(-1).values,
        "log_sum_sq": (p_NV**2).sum(-1).log(),
    }
    assert set(found) == set(ALL)
    for name, value in expected.items():
        assert not found[name].requires_grad
        torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-12)
    _, other = logps_of_logits(F.linear(hidden, weight, bias_V), targets_N, ALL)
    for name in ALL:
        torch.testing.assert_close(other[name], found[name], rtol=1e-10, atol=1e-12)


def test_statistics_of_a_uniform_distribution() -> None:
    """V equal logits: entropy log V, Σp² = 1/V, the ten largest hold 10/V; only what was asked comes back."""
    found = compute_statistics(torch.full((3, V), -math.log(V), dtype=torch.float64), ALL)
    assert found["entropy"][0].item() == pytest.approx(math.log(V))
    assert found["log_sum_sq"][0].item() == pytest.approx(-math.log(V))
    assert found["topk_mass"][0].item() == pytest.approx(10 / V)
    assert found["topk_entropy"][0].item() == pytest.approx(10 / V * math.log(V))
    assert found["top1"][0].item() == pytest.approx(1 / V)
    assert set(compute_statistics(torch.zeros(2, 1), ("top1",))) == {"top1"}


def test_entropy_where_a_token_is_impossible() -> None:
    """0 · log 0 = 0: a masked token must not turn the entropy into NaN."""
    logps_NV = torch.tensor([[math.log(0.5), math.log(0.5), float("-inf")]], dtype=torch.float64)
    found = compute_statistics(logps_NV, ALL)
    assert found["entropy"].item() == pytest.approx(math.log(2))
    assert found["topk_entropy"].item() == pytest.approx(math.log(2))
    assert found["log_sum_sq"].item() == pytest.approx(math.log(0.5))


@pytest.mark.parametrize("keep_bytes", [KEPT, PARTLY, RECOMPUTED], ids=["kept", "partly", "recomputed"])
def test_bfloat16_inputs_are_normalised_in_float32(keep_bytes: int) -> None:
    """bf16 has 8 bits: products round at 2⁻⁸ relative, the normalisation must not add to that."""
    *wide, targets_N = inputs()
    *leaves, _ = inputs(torch.bfloat16)
    expected_N, _ = linear_logps(*wide, targets_N)
    found_N, _ = linear_logps(*leaves, targets_N, keep_bytes=keep_bytes)
    assert found_N.dtype == torch.float32
    torch.testing.assert_close(found_N.double(), expected_N, rtol=0, atol=0.1)
    for ours, theirs in zip(gradients(found_N, leaves), gradients(expected_N, wide), strict=True):
        assert ours.dtype == torch.bfloat16
        assert float((ours.double() - theirs).norm() / theirs.norm()) < 0.02


def test_tied_embeddings_get_both_contributions() -> None:
    """The weight serves as embedding and as head; its gradient is the sum of both uses."""
    policy, groups = build_policy("llama_tied"), ragged_groups((2, 1))
    weight = policy.causal_lm.get_output_embeddings().weight
    assert weight is policy.causal_lm.get_input_embeddings().weight
    (ours,) = torch.autograd.grad(policy.score(groups).logps_PK.sum(), weight)
    (theirs,) = torch.autograd.grad(own_token_logps(policy.causal_lm, groups).sum(), weight)
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-6


class _Largest(TorchDispatchMode):
    """Watch the largest tensor that any operation makes; with `width`, among those whose last axis has that length."""

    def __init__(self, width: int | None = None) -> None:
        super().__init__()
        self.width = width
        self.num_elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, torch.Tensor) and self.width in (None, *tensor.shape[-1:]):
                self.num_elements = max(self.num_elements, tensor.numel())
        return made


def test_no_full_logits_are_made_when_recomputing() -> None:
    """N = 400 tokens × V = 300: no tensor larger than a chunk of 16 rows or the weights, forward and backward."""
    hidden = torch.randn(400, 8, requires_grad=True)
    weight = torch.randn(300, 8, requires_grad=True)
    with _Largest() as watch:
        logps_N, _ = linear_logps(hidden, weight, None, torch.zeros(400).long(), ALL, num_chunk_tokens=16, keep_bytes=0)
        logps_N.sum().backward()
    assert watch.num_elements == 16 * 300  # a full matrix would be 120 000


def test_no_full_row_is_made_without_gradient() -> None:
    """A reference pass over N = 50 tokens × V = 300 words in tiles of 32: 50 × 32 logits at once, of 15 000."""
    hidden, weight = torch.randn(50, 4), torch.randn(300, 4)
    with torch.no_grad(), _Largest() as watch:
        linear_logps(hidden, weight, None, torch.zeros(50).long(), num_tile_words=32)
    assert watch.num_elements == 50 * 32


def test_only_response_positions_meet_the_vocabulary() -> None:
    """Models whose logits are not a plain linear map make them themselves, at the needed positions only."""
    for name, layout in (("llama", "tree"), ("llama", "plain"), ("granite", "tree"), ("granite", "plain")):
        policy = build_policy(name, dtype=torch.float32)
        groups = ragged_groups((2,), longest=3, seed=1)
        long = [replace(groups[0], prompt_ids=tuple(range(2, 60)))]
        policy.score(groups)  # compares the head once
        with torch.no_grad(), _Largest(width=61) as watch:
            num_targets = len(policy(long, layout=layout).token_logps_N)
        assert policy.has_linear_head is (name == "llama")
        # two rows of the plain layout at up to three columns each; the prompt's 58 rows of logits are never made
        assert num_targets * 61 <= watch.num_elements <= 16 * 61
