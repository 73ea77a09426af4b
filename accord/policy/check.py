"""Does the tree layout give this model the plain path's values and gradients? Asked of numbers, never of names."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from accord.data.tokens import TokenGroup, TokenResponse
from accord.policy.attention import TreeUnsupported
from accord.policy.layout import lay_out_tree
from accord.policy.policy import Policy


@dataclass(frozen=True, kw_only=True)
class LayoutCheck:
    """Largest difference between the two layouts, per response token and over all gradients (relative)."""

    gap_logps: float  # nats, largest over tokens
    tolerance_logps: float
    gap_gradient: float | None  # ‖g_tree − g_plain‖ / ‖g_plain‖; None = not asked
    tolerance_gradient: float
    reason: str | None  # why the tree layout cannot be used; None = it can

    @property
    def passed(self) -> bool:
        """Whether the tree layout equals the plain one."""
        return self.reason is None


def check_layout(policy: Policy, groups: Sequence[TokenGroup], *, gradients: bool = False) -> LayoutCheck:
    """Score groups in both layouts and compare.

    The tolerance is a multiple of the rounding noise of the weights' precision, measured where that is low: the plain
    path scored again in batches of another shape.
    """
    plain, plain_grad = _score(policy, groups, "plain", gradients)
    tolerance = max(4e3 * torch.finfo(_dtype(policy)).eps, 1e-5)  # some models work in float32 inside float64
    if _dtype(policy) in (torch.bfloat16, torch.float16):
        alone = torch.cat([_score(policy, [group], "plain", False)[0] for group in groups])
        tolerance = max(8 * float((alone - plain).abs().max()), 64 * torch.finfo(_dtype(policy)).eps)
    grad_tolerance = 2 * tolerance
    try:
        _require_every_layer(policy, groups)
        tree, tree_grad = _score(policy, groups, "tree", gradients)
    except Exception as error:  # whatever a model's own code raises on an unusual input means: not this layout
        return _verdict(float("inf"), tolerance, None, grad_tolerance, _sentence(error))
    gap = float((tree - plain).abs().max()) if len(plain) else 0.0
    grad_gap = None
    if plain_grad is not None and tree_grad is not None:
        norm = float(torch.linalg.vector_norm(plain_grad))
        grad_gap = float(torch.linalg.vector_norm(tree_grad - plain_grad)) / max(norm, 1e-300)
    reason = None
    if not gap <= tolerance:
        reason = f"log-probabilities differ by {gap:.2g} nats per token between the layouts"
    elif grad_gap is not None and not grad_gap <= grad_tolerance:
        reason = f"gradients differ by {grad_gap:.2g} (relative) between the layouts"
    return _verdict(gap, tolerance, grad_gap, grad_tolerance, reason)


def _require_every_layer(policy: Policy, groups: Sequence[TokenGroup]) -> None:
    """Raise TreeUnsupported unless each layer asked for tree attention.

    A state-space or convolution layer mixes siblings without asking; its leak can be smaller than rounding noise.
    """
    num_layers = policy.causal_lm.config.get_text_config().num_hidden_layers
    batch = lay_out_tree(groups[:1], policy.device)
    with torch.no_grad(), policy.attention("tree"):
        policy.token_logps(batch)
    assert batch.tree is not None
    served = len({id(module) for module in batch.tree.calls})
    if served != num_layers:
        raise TreeUnsupported(f"{served} of the model's {num_layers} layers share a prompt through attention")


def _verdict(
    gap: float, tolerance: float, grad_gap: float | None, grad_tolerance: float, reason: str | None
) -> LayoutCheck:
    return LayoutCheck(
        gap_logps=gap,
        tolerance_logps=tolerance,
        gap_gradient=grad_gap,
        tolerance_gradient=grad_tolerance,
        reason=reason,
    )


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
