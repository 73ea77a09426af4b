"""Adapters as what they add to the weights, Δ = s·B·A: how large that is, and one model made of several of them.

PAFT (Pentyala et al. 2024, arXiv:2406.17923) trains one adapter on demonstrations, with an L1 penalty on Δ, another on
preferences, both on the same base, and merges them. All methods work on Δ itself; merging A and B apart would mix the
adapters' factors with each other.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from accord.errors import PolicyError
from accord.policy.load import Precision, load_policy
from accord.policy.policy import Policy

MergeMethod = Literal["linear", "task_arithmetic", "ties", "dare_linear", "dare_ties", "slerp"]
SPARSE = ("ties", "dare_linear", "dare_ties")


def add_l1_gradient(policy: Policy, weight: float) -> float:
    """Add the gradient of weight·Σ|Δ| to that of the adapters' factors; return Σ|Δ| over all adapted matrices.

    With respect to Δ the gradient is weight·sign(Δ), and 0 where Δ is 0: adapters that start at 0 are left alone until
    the objective has moved them.
    """
    total = 0.0
    for layer in _layers(policy.model):
        for name in layer.active_adapters:
            factors = [layer.lora_A[name].weight, layer.lora_B[name].weight]
            size = layer.get_delta_weight(name).abs().sum()
            total += float(size.detach())
            for factor, gradient in zip(factors, torch.autograd.grad(weight * size, factors), strict=True):
                factor.grad = gradient if factor.grad is None else factor.grad.add_(gradient)
    return total


def merge_adapters(
    base: str | Path,
    adapters: Sequence[str | Path],
    *,
    method: MergeMethod = "ties",
    weights: Sequence[float] | None = None,
    density: float = 0.2,
    seed: int = 0,
    precision: Precision = "float32",
) -> Policy:
    """Return the base with what several LoRA adapters add to it merged into its weights; `.save(folder)` writes it.

    linear: Σ wᵢΔᵢ / Σ wᵢ. task_arithmetic: Σ wᵢΔᵢ. ties: of each Δᵢ the `density` largest entries are kept, a sign per
    entry is elected, and the wᵢΔᵢ that agree are averaged. dare_linear, dare_ties: of each Δᵢ a random share `density`
    is kept and divided by it, then added up or merged as by ties; `seed` fixes the draw. slerp: two Δ on the great
    circle between them, at w₂ / (w₁ + w₂) of the way. Weights are 1 each by default.
    Raises PolicyError for adapters of another base or kind, and for settings without effect or out of range.
    """
    weights = [1.0] * len(adapters) if weights is None else list(weights)
    _check_settings(method, len(adapters), weights, density)
    sources = [Path(adapter).expanduser() for adapter in adapters]
    for source in sources:
        _check_adapter(source, base)
    policy = load_policy(base, precision=precision)
    model = _with_adapters(policy, sources)
    names = list(model.peft_config)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for layer in _layers(model):
            given = [layer.get_delta_weight(name).float() if name in layer.lora_A else None for name in names]
            shape = next(delta for delta in given if delta is not None)
            deltas = [(torch.zeros_like(shape) if delta is None else delta).cpu() for delta in given]
            merged = _merge(deltas, torch.tensor(weights), method, density)
            weight = layer.get_base_layer().weight
            weight.copy_(weight.float() + merged.to(weight.device))
    return Policy(model.unload(), policy.tokenizer, path=str(base), autocast=policy.autocast)


def _check_settings(method: str, num_adapters: int, weights: Sequence[float], density: float) -> None:
    methods = get_args(MergeMethod)
    for is_wrong, why in (
        (method not in methods, f"got method={method!r} — expected one of {', '.join(methods)}"),
        (num_adapters < 2, f"got {num_adapters} adapters — expected two at least"),
        (
            len(weights) != num_adapters,
            f"got {len(weights)} weights for {num_adapters} adapters — expected one for each",
        ),
        (method == "slerp" and num_adapters != 2, f"got {num_adapters} adapters — slerp goes from one to another"),
        (
            method == "slerp" and not (min(weights) >= 0 < sum(weights)),
            f"got weights {list(weights)} — slerp expects none below 0, and not all 0",
        ),
        (
            method == "linear" and sum(weights) == 0,
            f"got weights {list(weights)} that add up to 0 — a mean needs another sum; or use task_arithmetic",
        ),
        (method in SPARSE and not 0 < density <= 1, f"got density={density} — expected a share above 0, at most 1"),
    ):
        if is_wrong:
            raise PolicyError(why)


def _check_adapter(source: Path, base: str | Path) -> None:
    """Refuse what is no LoRA adapter of this base, or changes more than its Δ."""
    try:
        settings = json.loads((source / "adapter_config.json").read_text())
    except (OSError, ValueError) as error:
        raise PolicyError(
            f"got {source} without a readable adapter_config.json ({error}) — expected an adapter folder, as a run "
            "with model.lora_rank leaves in model/"
        ) from error
    named = str(settings.get("base_model_name_or_path"))
    if named != str(base) and Path(named).expanduser().resolve() != Path(base).expanduser().resolve():
        raise PolicyError(
            f"the adapters in {source} were trained on {named} — expected {base}: what adapters add means nothing on "
            "another base; where it was only moved, correct base_model_name_or_path in adapter_config.json"
        )
    more = [key for key in ("use_dora", "modules_to_save", "lora_bias", "trainable_token_indices") if settings.get(key)]
    if settings.get("peft_type") != "LORA" or more or settings.get("bias", "none") != "none":
        raise PolicyError(
            f"got adapters in {source} of kind {settings.get('peft_type')} ({', '.join(more) or 'with biases'}) — "
            "expected plain LoRA, which changes weights by s·B·A and nothing else"
        )


def _with_adapters(policy: Policy, sources: Sequence[Path]) -> Any:
    from peft import PeftModel
    from safetensors import SafetensorError

    model: Any = None
    for place, source in enumerate(sources):
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("error", message="Found missing adapter keys")  # peft goes on with fresh ones
                warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
                if model is None:
                    model = PeftModel.from_pretrained(policy.causal_lm, str(source), adapter_name=f"adapter-{place}")
                else:
                    model.load_adapter(str(source), adapter_name=f"adapter-{place}")
        except (OSError, ValueError, KeyError, SafetensorError, RuntimeError, UserWarning) as error:
            first_line = str(error).partition("\n")[0]
            raise PolicyError(f"the adapters in {source} could not be loaded: {first_line}") from error
    return model


def _layers(model: Any) -> Iterator[Any]:
    """Yield the adapted layers of a model."""
    from peft.tuners.lora import LoraLayer

    return (module for module in model.modules() if isinstance(module, LoraLayer) and module.lora_A)


def _merge(deltas: list[Tensor], weights: Tensor, method: str, density: float) -> Tensor:
    from peft.utils import merge_utils

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The density")  # 1 keeps all, as asked for
        match method:
            case "linear":
                return merge_utils.task_arithmetic(deltas, weights / weights.sum())
            case "task_arithmetic":
                return merge_utils.task_arithmetic(deltas, weights)
            case "ties":
                return merge_utils.ties(deltas, weights, density)
            case "dare_linear":
                return merge_utils.dare_linear(deltas, weights, density)
            case "dare_ties":
                return merge_utils.dare_ties(deltas, weights, density)
    return slerp(*deltas, share=float(weights[1] / weights.sum()))


def slerp(first: Tensor, second: Tensor, *, share: float) -> Tensor:
    """Return the point `share` of the way from one tensor to another on the great circle through both.

    (sin((1 − t)Ω)·a + sin(tΩ)·b) / sin Ω, Ω the angle between a and b. Where there is no single such circle (parallel,
    opposite or zero tensors) the straight line stands for it.
    """
    cosine = float((first * second).sum() / (first.norm() * second.norm()).clamp(min=1e-30))
    angle = torch.arccos(torch.tensor(cosine, dtype=torch.float64).clamp(-1.0, 1.0))
    if 1.0 - abs(cosine) < 1e-6 or not first.any() or not second.any():
        return (1.0 - share) * first + share * second
    parts = torch.sin(torch.tensor([1.0 - share, share], dtype=torch.float64) * angle) / torch.sin(angle)
    return float(parts[0]) * first + float(parts[1]) * second
