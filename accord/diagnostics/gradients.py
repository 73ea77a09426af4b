"""Gradients of a pair: when raising the better response and lowering the worse one get in each other's way.

With d_w = −∂loss/∂log π(y_w), d_l = ∂loss/∂log π(y_l) and the gradients g_w, g_l of the log-probabilities, a small step
changes log π(y_w) by d_w |g_w|² − d_l ⟨g_w, g_l⟩ and log π(y_l) by d_w ⟨g_w, g_l⟩ − d_l |g_l|², times the rate. As
⟨g_w, g_l⟩ ≤ |g_w| |g_l|, at most one of the two goes the wrong way (Yuan et al. 2024, arXiv:2410.13828; conditions
derived here). Only the output matrix is looked at, whose gradients are outer products of the head's slopes and the
hidden states: no backward pass.

CHES is the same question asked of hidden states alone (Razin et al. 2024, arXiv:2410.08847, definition 2).
Axes: T tokens of a response, H hidden, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class PairGeometry:
    """Inner products of a pair's gradients (of the output matrix) and its CHES scores."""

    dot: float  # ⟨g_w, g_l⟩
    better_norm_sq: float  # |g_w|²
    worse_norm_sq: float  # |g_l|²
    ches: float  # ⟨Σ h_w, Σ h_l⟩ − |Σ h_w|²
    ches_normalised: float  # ⟨Σ h_w, Σ h_l⟩ / (|y_w| |y_l|) − |Σ h_w|² / |y_w|²

    @property
    def cosine(self) -> float:
        """cos(g_w, g_l); 0 where one of them vanishes."""
        size = (self.better_norm_sq * self.worse_norm_sq) ** 0.5
        return self.dot / size if size > 0 else 0.0

    def better_change(self, d_w: float, d_l: float) -> float:
        """First-order change of log π(y_w) per unit of rate."""
        return d_w * self.better_norm_sq - d_l * self.dot

    def worse_change(self, d_w: float, d_l: float) -> float:
        """First-order change of log π(y_l) per unit of rate."""
        return d_w * self.dot - d_l * self.worse_norm_sq


@torch.no_grad()
def pair_geometry(
    better_TH: Float[Tensor, "T H"],
    worse_TH: Float[Tensor, "T2 H"],
    better_ids_T: Int[Tensor, " T"],
    worse_ids_T: Int[Tensor, " T2"],
    weight_VH: Float[Tensor, "V H"],
    bias_V: Float[Tensor, " V"] | None = None,
) -> PairGeometry:
    """Return the geometry of one pair from the hidden states that predict its tokens.

    g = Σ_t (onehot_t − p_t) h_tᵀ, hence ⟨g_w, g_l⟩ = Σ_{t,t'} ⟨slope_t, slope_t'⟩ ⟨h_t, h_t'⟩.
    """
    better_TV = _slopes(better_TH, better_ids_T, weight_VH, bias_V)
    worse_TV = _slopes(worse_TH, worse_ids_T, weight_VH, bias_V)

    def inner(a_TV: Tensor, a_TH: Tensor, b_TV: Tensor, b_TH: Tensor) -> float:
        return float(((a_TV @ b_TV.T).double() * (a_TH @ b_TH.T).double()).sum())

    better_H, worse_H = better_TH.double().sum(0), worse_TH.double().sum(0)
    n_w, n_l = max(1, len(better_TH)), max(1, len(worse_TH))
    cross, own = float(better_H @ worse_H), float(better_H @ better_H)
    return PairGeometry(
        dot=inner(better_TV, better_TH, worse_TV, worse_TH),
        better_norm_sq=inner(better_TV, better_TH, better_TV, better_TH),
        worse_norm_sq=inner(worse_TV, worse_TH, worse_TV, worse_TH),
        ches=cross - own,
        ches_normalised=cross / (n_w * n_l) - own / n_w**2,
    )


def _slopes(
    hidden_TH: Float[Tensor, "T H"], ids_T: Int[Tensor, " T"], weight_VH: Tensor, bias_V: Tensor | None
) -> Float[Tensor, "T V"]:
    logits_TV = hidden_TH @ weight_VH.T
    if bias_V is not None:
        logits_TV = logits_TV + bias_V
    slopes_TV = -logits_TV.float().softmax(dim=-1)
    return slopes_TV.scatter_add(-1, ids_T[:, None], torch.ones_like(slopes_TV[:, :1]))
