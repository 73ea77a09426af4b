"""Does the tree layout give this model the plain path's values and gradients? Asked of numbers, never of names."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice

import torch
from torch import Tensor, nn

from accord.data.tokens import TokenGroup, TokenResponse
from accord.policy.attention import TreeUnsupported
from accord.policy.layout import lay_out_tree
from accord.policy.policy import Policy

LOW_PRECISION = (torch.bfloat16, torch.float16)
LEAST_LEAK = 1e-9  # of the gradient at a response's own tokens; masked attention gives exactly 0 in every precision


@dataclass(frozen=True, kw_only=True)
class LayoutCheck:
    """Difference between the two layouts, per response token and over all gradients (relative).

    `measure` is "largest" over tokens; "mean" in low precision, where single tokens are mostly rounding noise.
    """

    gap_logps: float  # nats
    tolerance_logps: float
    gap_gradient: float | None  # ‖g_tree − g_plain‖ / ‖g_plain‖; None = not asked
    tolerance_gradient: float
    reason: str | None  # why the tree layout cannot be used; None = it can
    measure: str = "largest"

    @property
    def passed(self) -> bool:
        """Whether the tree layout equals the plain one."""
        return self.reason is None


@torch.compiler.set_stance(
    "force_eager"
)  # compiled code neither sees hooks set later nor forgets those it was made with
def check_layout(policy: Policy, groups: Sequence[TokenGroup], *, gradients: bool = False) -> LayoutCheck:
    """Ask whether responses see their siblings, then score groups in both layouts and compare.

    The first is exact in every precision. The comparison's tolerance is a multiple of the rounding noise of the
    precision the model computes in, measured where that is low: the plain path scored again with its embeddings moved
    by one rounding unit.
    """
    plain, plain_grad = _score(policy, groups, "plain", gradients)
    precision = policy.autocast or _dtype(policy)
    size: Callable[[Tensor], Tensor] = torch.mean if precision in LOW_PRECISION else torch.max
    tolerance = max(4e3 * torch.finfo(precision).eps, 1e-5)  # some models work in float32 inside float64
    grad_tolerance = 2 * tolerance
    if precision in LOW_PRECISION:
        eps = torch.finfo(precision).eps
        with _nudged(policy.causal_lm.get_input_embeddings(), eps):
            nudged, nudged_grad = _score(policy, groups, "plain", gradients)
        tolerance = max(2 * _gap(nudged, plain, size), eps / 4)
        grad_tolerance = max(2 * (_relative_gap(nudged_grad, plain_grad) or 0.0), eps)
    gap, grad_gap, reason = float("inf"), None, None
    try:
        _require_every_layer_apart(policy, groups)
        tree, tree_grad = _score(policy, groups, "tree", gradients)
    except Exception as error:  # whatever a model's own code raises on an unusual input means: not this layout
        reason = _sentence(error)
    else:
        gap, grad_gap = _gap(tree, plain, size), _relative_gap(tree_grad, plain_grad)
        if not gap <= tolerance:
            reason = f"log-probabilities differ by {gap:.2g} nats per token between the layouts"
        elif grad_gap is not None and not grad_gap <= grad_tolerance:
            reason = f"gradients differ by {grad_gap:.2g} (relative) between the layouts"
    return LayoutCheck(
        gap_logps=gap,
        tolerance_logps=tolerance,
        gap_gradient=grad_gap,
        tolerance_gradient=grad_tolerance,
        reason=reason,
        measure="mean" if precision in LOW_PRECISION else "largest",
    )


def _require_every_layer_apart(policy: Policy, groups: Sequence[TokenGroup]) -> None:
    """Raise TreeUnsupported unless each layer asked for tree attention and no response depends on a sibling.

    A state-space or convolution layer mixes siblings without asking, in place of attention or beside it, and its leak
    can be smaller than rounding noise. The gradient of a response with respect to its sibling's embeddings is not
    rounded: it is exactly 0 where nothing leaks.
    """
    num_layers = policy.causal_lm.config.get_text_config().num_hidden_layers
    batch = lay_out_tree([_two_siblings(groups)], policy.device)
    assert batch.tree is not None
    with torch.enable_grad(), _embeddings_of(policy) as embeddings, policy.attention("tree"), policy.precision():
        logps_N, _ = policy.token_logps(batch)
        served = len({id(module) for module in batch.tree.calls})
        if served != num_layers:
            raise TreeUnsupported(f"{served} of the model's {num_layers} layers share a prompt through attention")
        (slope_1NH,) = torch.autograd.grad(logps_N[batch.sequence_N == 1].sum(), embeddings[-1])
    size_N = slope_1NH[0].abs().amax(-1)
    first, second = (
        float(size_N[start : start + length].max()) for start, length in batch.tree.trees[0].responses
    )  # fmt: skip
    if not first <= LEAST_LEAK * second:
        raise TreeUnsupported(
            f"its layers let a response see its sibling (by {first / max(second, 1e-300):.2g} of its own tokens)"
        )


def _two_siblings(groups: Sequence[TokenGroup], length: int = 8) -> TokenGroup:
    """A small group with two responses of the given groups' tokens; the second comes right after the first."""
    known = [
        token for group in groups for ids in (group.prompt_ids, *(r.ids for r in group.responses)) for token in ids
    ]
    ids = tuple(islice(cycle(known), 3 * length))
    first, second = ids[length : 2 * length], ids[2 * length :]
    return TokenGroup(
        prompt_ids=ids[:length], responses=(TokenResponse(ids=first), TokenResponse(ids=second))
    )  # fmt: skip


@contextmanager
def _embeddings_of(policy: Policy) -> Iterator[list[Tensor]]:
    """Collect the embeddings that forward passes start from, as leaves to take gradients at."""
    found: list[Tensor] = []

    def keep(module: nn.Module, arguments: object, output: Tensor) -> Tensor:
        found.append(output.detach().requires_grad_(True))
        return found[-1]

    handle = policy.causal_lm.get_input_embeddings().register_forward_hook(keep)
    try:
        yield found
    finally:
        handle.remove()


@contextmanager
def _nudged(embeddings: nn.Module, eps: float) -> Iterator[None]:
    """Multiply each embedded number by 1 ± eps, always with the same signs."""
    generator = torch.Generator().manual_seed(0)

    def nudge(module: nn.Module, arguments: object, output: Tensor) -> Tensor:
        signs = 2 * torch.randint(0, 2, output.shape, generator=generator) - 1
        return output * (1 + eps * signs.to(output))

    handle = embeddings.register_forward_hook(nudge)
    try:
        yield
    finally:
        handle.remove()


def _gap(found: Tensor, expected: Tensor, size: Callable[[Tensor], Tensor]) -> float:
    return float(size((found - expected).abs())) if len(expected) else 0.0


def _relative_gap(found: Tensor | None, expected: Tensor | None) -> float | None:
    if found is None or expected is None:
        return None
    return float(torch.linalg.vector_norm(found - expected)) / max(float(torch.linalg.vector_norm(expected)), 1e-300)


def _sentence(error: Exception) -> str:
    return str(error) if isinstance(error, TreeUnsupported) else f"{type(error).__name__}: {error}"


def _dtype(policy: Policy) -> torch.dtype:
    return next(p.dtype for p in policy.parameters() if p.is_floating_point())


def _score(policy: Policy, groups: Sequence[TokenGroup], layout: str, gradients: bool) -> tuple[Tensor, Tensor | None]:
    if not gradients:
        with torch.no_grad():
            return policy(groups, layout=layout).token_logps_N, None
    logps_N = policy(groups, layout=layout).token_logps_N
    slope_N = torch.cos(torch.arange(len(logps_N), device=logps_N.device, dtype=logps_N.dtype))
    parameters = [p for p in policy.parameters() if p.requires_grad]
    grads = torch.autograd.grad((logps_N * slope_N).sum(), parameters, allow_unused=True)
    flat = [
        (g if g is not None else torch.zeros_like(p)).flatten() for g, p in zip(grads, parameters, strict=True)
    ]  # fmt: skip
    return logps_N.detach(), torch.cat(flat)


def probe_groups(vocabulary: int, *, num_responses: Sequence[int] = (1, 2, 5), length: int = 24, seed: int = 0):
    """Return ragged random groups for checking a model without data; lengths vary between 1 and `length`."""
    rng = random.Random(seed)
    draw = lambda n: tuple(rng.randrange(vocabulary) for _ in range(n))  # noqa: E731  # a local shorthand
    return [
        TokenGroup(
            prompt_ids=draw(rng.randint(1, length)),
            responses=tuple(TokenResponse(ids=draw(rng.randint(1, length))) for _ in range(k)),
        )
        for k in num_responses
    ]
