"""What a checkpoint holds and how it is taken up again, bit for bit: weights, moments, state, random numbers."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from accord.errors import StoreError
from accord.policy.policy import Policy
from accord.store import RunFolder


def write_checkpoint(
    run: RunFolder, step: int, policy: Policy, optimizer: Any, state: dict[str, Any], moving: dict[str, Tensor],
    source: dict[str, Any],
) -> None:  # fmt: skip
    """Write a checkpoint into a run folder: whole or not at all.

    `moving`: further tensors that move with the steps; `source`: what moves where the groups come from.
    """
    weights = {name: p.detach().contiguous() for name, p in policy.trained().items()}
    size, more = (sum(t.numel() * t.element_size() for t in part.values()) for part in (weights, moving))
    with run.new_checkpoint(step, needed_bytes=3 * size + more) as folder:  # AdamW's two moments are as large
        save_file(weights, folder / "trained.safetensors")
        torch.save(optimizer.state_dict(), folder / "optimizer.pt")
        torch.save(_random_state(), folder / "random.pt")
        torch.save(moving, folder / "moving.pt")
        torch.save(source, folder / "source.pt")
        (folder / "state.json").write_text(json.dumps(state))


def load_checkpoint(
    folder: Path, policy: Policy, optimizer: Any
) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]]:
    """Put a checkpoint's weights, moments and random state in place; return the loop's state and what else moved.

    Raises StoreError when the checkpoint is of another model.
    """
    load_weights(folder, policy)
    optimizer.load_state_dict(torch.load(folder / "optimizer.pt", map_location=policy.device, weights_only=True))
    _restore_random_state(torch.load(folder / "random.pt", map_location="cpu", weights_only=True))
    moving = torch.load(folder / "moving.pt", map_location="cpu", weights_only=True)
    source = torch.load(folder / "source.pt", map_location="cpu", weights_only=True)
    return json.loads((folder / "state.json").read_text()), moving, source


def load_weights(folder: Path, policy: Policy) -> None:
    """Put a checkpoint's weights in place, and nothing else. Raises StoreError when it is of another model."""
    weights = load_file(folder / "trained.safetensors", device=str(policy.device))
    trained = policy.trained()
    if weights.keys() != trained.keys() or any(weights[name].shape != p.shape for name, p in trained.items()):
        raise StoreError(
            f"got the checkpoint {folder} of another model ({len(weights)} trained weights) — expected one of the "
            f"model being trained ({len(trained)}) — resume with the model and adapter settings it was made with"
        )
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(weights[name])


def _random_state() -> dict[str, Any]:
    kind, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002 — what other libraries draw from
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [str(kind), torch.from_numpy(np.asarray(keys, dtype=np.int64)), position, has_gauss, cached],
        "python": list(random.getstate()[1]),
    }


def _restore_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002 — see above
    random.setstate((3, tuple(state["python"]), None))
