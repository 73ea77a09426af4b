"""A step of small Llama-shaped models written out: the same weights, a third of the calls.

With few parameters a step's time is Python's and the dispatcher's. The model's own weights and adapters are used as
they are; the first step of each model is compared with the model's own, and where they differ it runs its own.
Axes: B rows, A heads, G key/value heads, D head size, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from accord.policy.policy import Policy
from accord.policy.products import FEWEST_PRODUCTS, FastLinear, product

if TYPE_CHECKING:
    from accord.policy.sampling.packed import Options, Step

_MODELS = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
_FIXED_ROTARY = ("default", "linear", "llama3", "yarn")  # whose angles do not depend on the length so far
Apply = Callable[[Tensor], Tensor]
MOST_ROWS = 64  # a weight too small for the other kernel at so many rows never asks for it
_TOLERANCE = 2e3  # rounding units of the largest logit
_CHECKED: WeakKeyDictionary[nn.Module, list[Options]] = WeakKeyDictionary()
_TABLE = 65_536  # positions; beyond them the model makes its angles itself


class FusedStep:
    """One token of every row through a Llama-shaped model."""

    def __init__(self, policy: Policy, longest: int) -> None:
        model = cast(Any, policy.causal_lm)
        body, head = model.model, model.get_output_embeddings()
        self.options: list[Options] = _CHECKED.get(model, [])  # of each layer, as the model's own step gives them
        self._model = model
        self.layers = [_Layer.of(layer) for layer in body.layers]
        self.embedding_VH, self.norm, self.head = body.embed_tokens.weight, _norm(body.norm), _linear(head)
        self.size = body.layers[0].self_attn.head_dim
        places = torch.arange(longest, device=head.weight.device)[None]
        cos, sin = body.rotary_emb(head.weight[:1, None], places)
        half = self.size // 2
        self.cos, self.sin = cos[0], sin[0, :, :half].contiguous()

    def __call__(self, ids_B: Tensor, positions_B: Tensor, step: Step) -> Tensor:
        """Return logits (B, V)."""
        hidden_BH = F.embedding(ids_B, self.embedding_VH)
        cos_B1D, sin_B1D = (x.index_select(0, positions_B)[:, None] for x in (self.cos, self.sin))
        for number, layer in enumerate(self.layers):
            normed = layer.norm_before(hidden_BH)
            q, k, v = (part(normed).view(len(ids_B), -1, self.size) for part in (layer.q, layer.k, layer.v))
            if layer.q_norm is not None and layer.k_norm is not None:
                q, k = layer.q_norm(q), layer.k_norm(k)
            q, k = self._rotated(q, k, cos_B1D, sin_B1D)
            seen = step.attend_rows(number, q, k, v, self.options[number]).flatten(1)
            hidden_BH = layer.out(seen).add_(hidden_BH)
            normed = layer.norm_after(hidden_BH)
            gated = F.silu(layer.gate(normed), inplace=True).mul_(layer.up(normed))
            hidden_BH = layer.down(gated).add_(hidden_BH)
        return self.head(self.norm(hidden_BH))

    def _rotated(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        both = torch.cat([q, k], dim=1)
        out = both * cos
        (first, second), (turned, other) = both.chunk(2, -1), out.chunk(2, -1)
        turned.addcmul_(second, sin, value=-1)
        other.addcmul_(first, sin)
        return out[:, : q.shape[1]], out[:, q.shape[1] :]

    @property
    def is_checked(self) -> bool:
        """Whether a step of this model was compared with its own, and equal."""
        return bool(self.options)

    def check(self, ours: Callable[[], Tensor], own_BV: Tensor, options: list[Options]) -> Tensor | None:
        """Return this step's logits where they are the model's own up to rounding, else None; asked once of each model.

        They are what counts from the first step on: a run taken up again by a new process must draw the same.
        """
        self.options = options
        tolerance = _TOLERANCE * torch.finfo(own_BV.dtype).eps * float(own_BV.abs().max().clamp(min=1.0))
        found_BV = ours()
        if not ((found_BV - own_BV).abs() <= tolerance).all():
            return None
        _CHECKED[self._model] = options
        return found_BV


def fused_step(policy: Policy, longest: int) -> FusedStep | None:
    """Return the written-out step, or None for a model that is not known to be of this shape or runs hooks."""
    model = cast(Any, policy.causal_lm)
    weights = list(model.parameters())
    if (
        type(model).__name__ not in _MODELS
        or type(model).__module__.split(".")[0] != "transformers"
        or not policy.has_linear_head
        or policy.autocast is not None
        or any(w.dtype not in (torch.float32, torch.float64) or type(w) is not nn.Parameter for w in weights)
        or any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
        or model.config.hidden_act != "silu"
        or model.model.rotary_emb.rope_type not in _FIXED_ROTARY
        or longest > _TABLE
    ):
        return None
    return FusedStep(policy, longest)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    """One layer's parts, looked up once: finding a module's attribute costs as much as a small sum."""

    norm_before: Apply
    norm_after: Apply
    q: Apply
    k: Apply
    v: Apply
    out: Apply
    gate: Apply
    up: Apply
    down: Apply
    q_norm: Apply | None
    k_norm: Apply | None

    @staticmethod
    def of(layer: Any) -> _Layer:
        attention, mlp = layer.self_attn, layer.mlp
        return _Layer(
            norm_before=_norm(layer.input_layernorm), norm_after=_norm(layer.post_attention_layernorm),
            q=_linear(attention.q_proj), k=_linear(attention.k_proj), v=_linear(attention.v_proj),
            out=_linear(attention.o_proj), gate=_linear(mlp.gate_proj), up=_linear(mlp.up_proj),
            down=_linear(mlp.down_proj),
            q_norm=_norm(attention.q_norm) if hasattr(attention, "q_norm") else None,
            k_norm=_norm(attention.k_norm) if hasattr(attention, "k_norm") else None,
        )  # fmt: skip


def _norm(module: Any) -> Apply:
    weight, shape, eps = module.weight, module.weight.shape, module.variance_epsilon
    return lambda x: F.rms_norm(x, shape, weight, eps)


def _linear(module: Any) -> Apply:
    if type(module) not in (nn.Linear, FastLinear):
        return module  # adapters
    weight, bias = module.weight, module.bias
    if type(module) is nn.Linear or MOST_ROWS * weight.numel() < FEWEST_PRODUCTS:
        return lambda x: F.linear(x, weight, bias)
    return lambda x: product(x, weight, bias)
