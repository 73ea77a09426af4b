"""Arithmetic on whole sets of weights: soups, mixtures, extrapolations, and the models made of them.

Everything is a base plus multiples of differences from it, summed in float64 and stored in each weight's own type, so
that what is equal in all models stays as it is, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from accord.errors import PolicyError
from accord.policy.load import load_policy
from accord.policy.policy import Policy

Weights = Mapping[str, Tensor]
"""Tensors by name."""


def mix_weights(reference: Weights, policy: Weights, share: float) -> dict[str, Tensor]:
    """Return share·θ + (1 − share)·θ_ref: TR-DPO's update of its reference (Gorbatovski et al. 2024, arXiv:2404.09656).

    `share` 1 is a copy of the policy and 0 one of the reference.

    >>> mix_weights({"w": torch.tensor([1.0])}, {"w": torch.tensor([3.0])}, 0.25)["w"]
    tensor([1.5000])
    """
    if share == 1.0:
        check_alike(reference, policy, "the policy")
        return {name: tensor.detach().clone() for name, tensor in policy.items()}
    return _add_differences(reference, [(share, policy)])


def average_weights(models: Iterable[Weights], shares: Sequence[float]) -> dict[str, Tensor]:
    """Return Σ shareᵢ·θᵢ with Σ shareᵢ = 1: a soup. Models are taken one after the other, as they are loaded.

    >>> average_weights([{"w": torch.tensor([1.0])}, {"w": torch.tensor([3.0])}], [0.5, 0.5])["w"]
    tensor([2.])
    """
    assert abs(sum(shares) - 1.0) < 1e-6, "shares of a soup add up to 1"
    taken = iter(models)
    first = next(taken)
    return _add_differences(first, zip(shares[1:], taken, strict=True))


def extrapolate_weights(now: Weights, before: Weights, alpha: float) -> dict[str, Tensor]:
    """Return θ + α·(θ − θ'): a step on in the direction from θ' (`before`) to θ (`now`).

    Accelerated preference optimisation (He et al. 2024, arXiv:2410.06293) does so after each round. Where log π is
    linear in θ up to its normaliser this is log π + α·(log π − log π'), normalised.

    >>> extrapolate_weights({"w": torch.tensor([3.0])}, {"w": torch.tensor([1.0])}, 0.5)["w"]
    tensor([4.])
    """
    return _add_differences(now, [(-alpha, before)])


def _add_differences(base: Weights, others: Iterable[tuple[float, Weights]]) -> dict[str, Tensor]:
    """Return base + Σ factor·(other − base)."""
    total: dict[str, Tensor] = {}
    for factor, other in others:
        check_alike(base, other, "the next model")
        for name, tensor in base.items():
            if not tensor.is_floating_point():
                continue
            difference = factor * (_wide(other[name]) - _wide(tensor))
            total[name] = total[name] + difference if name in total else difference
    return {
        name: (_wide(tensor) + total[name]).to(tensor.dtype) if name in total else tensor.detach().clone()
        for name, tensor in base.items()
    }


def _wide(tensor: Tensor) -> Tensor:
    # not every device has float64
    return tensor.detach().to(torch.float32 if tensor.device.type == "mps" else torch.float64)


def check_alike(one: Weights, other: Weights, what: str) -> None:
    """Raise PolicyError unless `other` has the names, shapes and types of `one`, and its whole numbers."""
    if only := sorted(one.keys() ^ other.keys()):
        whose = "lacks" if only[0] in one else "has, alone,"
        raise PolicyError(
            f"{what} {whose} the weight {only[0]} ({len(only)} names differ) — expected models of one architecture"
        )
    for name, tensor in one.items():
        mine, theirs = ((tuple(t.shape), str(t.dtype).removeprefix("torch.")) for t in (tensor, other[name]))
        if mine != theirs:
            raise PolicyError(
                f"{what} has the weight {name} as {theirs[1]} {theirs[0]}, where {mine[1]} {mine[0]} was expected — "
                "only models of one architecture and size can be averaged"
            )
        if not tensor.is_floating_point() and not torch.equal(tensor, other[name].to(tensor.device)):
            raise PolicyError(f"{what} has another {name}, which holds whole numbers and cannot be averaged")


# Models in folders ----------------------------------------------------------------------------------------------------


def load_soup(paths: Sequence[str | Path], shares: Sequence[float] = (), **options: Any) -> Policy:
    """Load models one after the other and return their weighted average; `shares` () = equal ones.

    `options` are those of `load_policy`. Raises PolicyError where a folder holds adapters, or models differ in
    anything but the values of their weights.
    """
    policy = _load_whole(paths[0], options)

    def models() -> Iterable[Weights]:
        yield policy.causal_lm.state_dict()
        for path in paths[1:]:
            other = _load_whole(path, options)
            _check_same_kind(policy, other)
            yield other.causal_lm.state_dict()

    policy.causal_lm.load_state_dict(average_weights(models(), shares or [1 / len(paths)] * len(paths)))
    return policy


def load_extrapolated(now: str | Path, before: str | Path, alpha: float, **options: Any) -> Policy:
    """Load two models and return θ_now + α·(θ_now − θ_before), ready to be saved or trained.

    One round of training and one such step is ExPO. Raises PolicyError as `load_soup` does.
    """
    policy, earlier = (_load_whole(path, options) for path in (now, before))
    _check_same_kind(policy, earlier)
    weights = extrapolate_weights(policy.causal_lm.state_dict(), earlier.causal_lm.state_dict(), alpha)
    policy.causal_lm.load_state_dict(weights)
    return policy


def _load_whole(path: str | Path, options: Mapping[str, Any]) -> Policy:
    policy = load_policy(path, **options)
    if policy.has_adapters:
        raise PolicyError(
            f"got {path}, which holds adapters: what they add is a product of two matrices, and the average of the "
            "factors is not the average of the products — merge them into their base first (docs/how_to/lora.md)"
        )
    return policy


def _check_same_kind(one: Policy, other: Policy) -> None:
    mine, theirs = one.causal_lm.config, other.causal_lm.config
    if mine.model_type != theirs.model_type:
        raise PolicyError(
            f"got {one.path} ({mine.model_type}) and {other.path} ({theirs.model_type}) — expected models of one "
            "architecture"
        )
    check_alike(one.causal_lm.state_dict(), other.causal_lm.state_dict(), other.path)
