"""The distribution that is drawn from, and the drawing. Axes: B rows, V vocabulary.

A token is drawn by the inverse of its row's distribution function at a random number that depends on the seed, the
prompt's stream, the response and the token's place in it, and on nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from accord.policy.sampling.protocol import SamplingSettings

CHUNK = 64  # random numbers made at a time
_BLOCK = 256  # of the vocabulary: its distribution function is first summed by blocks
_LARGE_VOCABULARY = 2048
_BELOW_1 = 1 - 2.0**-40


def uniforms(seed: int, stream: int, response: int, chunk: int) -> NDArray[np.float64]:
    """Return the numbers in [0, 1) for tokens CHUNK·chunk … CHUNK·(chunk + 1) − 1 of one response.

    Philox is a function of its key and counter (Salmon et al., 2011): no state is carried from token to token.
    """
    return np.random.Generator(np.random.Philox(key=[seed, stream], counter=[0, response, chunk, 0])).random(CHUNK)


@dataclass(frozen=True, slots=True)
class Barred:
    """What the settings need to know of each row beside its logits."""

    seen_BV: Tensor | None = None  # tokens of prompt and response, where there is a repetition penalty
    may_not_end_B: Tensor | None = None  # rows shorter than min_tokens
    ends: Tensor | None = None  # the ids barred from them


def adjusted_logits(logits_BV: Tensor, settings: SamplingSettings, barred: Barred) -> Tensor:
    """Apply the repetition penalty, and bar the ends of rows that are too short, in float32 or wider."""
    logits_BV = logits_BV.to(torch.promote_types(logits_BV.dtype, torch.float32))
    if barred.seen_BV is not None:
        penalty = settings.repetition_penalty
        penalised_BV = torch.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty)
        logits_BV = torch.where(barred.seen_BV, penalised_BV, logits_BV)
    if barred.may_not_end_B is not None and barred.ends is not None:
        is_end_V = torch.zeros(logits_BV.shape[-1], dtype=torch.bool, device=logits_BV.device)
        is_end_V[barred.ends] = True
        logits_BV = logits_BV.masked_fill(barred.may_not_end_B[:, None] & is_end_V, float("-inf"))
    return logits_BV


def tempered_logps(logits_BV: Tensor, settings: SamplingSettings) -> Tensor:
    """Return the log-probabilities actually sampled from: temperature, top-k, top-p, min-p, renormalised."""
    logits_BV = logits_BV.to(torch.promote_types(logits_BV.dtype, torch.float32))
    if settings.is_greedy:
        best = torch.full_like(logits_BV, float("-inf"))
        return best.scatter(-1, logits_BV.argmax(-1, keepdim=True), 0.0)
    tempered = logits_BV if settings.temperature == 1 else logits_BV / settings.temperature
    logps_BV = F.log_softmax(tempered, dim=-1)
    if settings.top_k and settings.top_k < logps_BV.shape[-1]:
        least = logps_BV.topk(settings.top_k, dim=-1).values[:, -1:]
        logps_BV = F.log_softmax(logps_BV.masked_fill(logps_BV < least, float("-inf")), dim=-1)
    if settings.top_p < 1:
        ordered, index = logps_BV.sort(dim=-1, descending=True, stable=True)
        mass_before = ordered.exp().cumsum(-1) - ordered.exp()
        is_cut = torch.empty_like(index, dtype=torch.bool).scatter_(-1, index, mass_before >= settings.top_p)
        logps_BV = F.log_softmax(logps_BV.masked_fill(is_cut, float("-inf")), dim=-1)
    if settings.min_p > 0:
        least = logps_BV.amax(-1, keepdim=True) + float(np.log(settings.min_p))
        logps_BV = F.log_softmax(logps_BV.masked_fill(logps_BV < least, float("-inf")), dim=-1)
    return logps_BV


def draw(logits_BV: Tensor, uniform_B: NDArray[np.float64], settings: SamplingSettings) -> tuple[Tensor, Tensor]:
    """Return a token id per row and its log-probability, nats; logits are adjusted already.

    Sums of probabilities are in float64 over float32 terms: a token's chance is off by some 1e-7 of itself.
    """
    if settings.is_greedy:
        best_BV = logits_BV.max(-1)
        return best_BV.indices, torch.where(best_BV.values.isfinite(), 0.0, float("nan"))
    logps_BV = tempered_logps(logits_BV, settings)
    on_cpu = logps_BV.device.type == "mps"  # no float64 there
    probs_BV = (logps_BV.cpu() if on_cpu else logps_BV).exp()
    u_B1 = torch.from_numpy(uniform_B)[:, None].to(probs_BV.device)
    pick = _by_blocks if probs_BV.shape[-1] > _LARGE_VOCABULARY else _directly
    ids_B = pick(probs_BV, u_B1).to(logps_BV.device)
    return ids_B, logps_BV.gather(-1, ids_B[:, None]).squeeze(-1)


def _directly(probs_BV: Tensor, u_B1: Tensor) -> Tensor:
    cdf_BV = probs_BV.cumsum(-1, dtype=torch.float64)
    ids_B1 = torch.searchsorted(cdf_BV, u_B1.clamp(max=_BELOW_1) * cdf_BV[:, -1:], right=True)
    return ids_B1.squeeze(-1).clamp_(max=probs_BV.shape[-1] - 1)


def _by_blocks(probs_BV: Tensor, u_B1: Tensor) -> Tensor:
    """Find the block that holds the number, then the token within it: float64 sums of a few hundred terms a row."""
    vocabulary = probs_BV.shape[-1]
    whole = vocabulary // _BLOCK
    sums = probs_BV[:, : whole * _BLOCK].unflatten(-1, (whole, _BLOCK)).sum(-1)
    if whole * _BLOCK < vocabulary:
        sums = torch.cat([sums, probs_BV[:, whole * _BLOCK :].sum(-1, keepdim=True)], dim=-1)
    sums = sums.double()
    cdf = sums.cumsum(-1)
    at_B1 = u_B1.clamp(max=_BELOW_1) * cdf[:, -1:]
    block_B1 = torch.searchsorted(cdf, at_B1, right=True).clamp_(max=sums.shape[-1] - 1)
    mass_B1 = sums.gather(-1, block_B1)
    share_B1 = ((at_B1 - (cdf.gather(-1, block_B1) - mass_B1)) / mass_B1).clamp(0, _BELOW_1)
    index_BC = block_B1 * _BLOCK + torch.arange(_BLOCK, device=probs_BV.device)
    inside_BC = probs_BV.gather(-1, index_BC.clamp(max=vocabulary - 1)).double()
    inner_BC = torch.where(index_BC < vocabulary, inside_BC, 0.0).cumsum(-1)
    # the block's mass is summed again, so that a share below 1 is always a token with a chance
    place_B1 = torch.searchsorted(inner_BC, share_B1 * inner_BC[:, -1:], right=True)
    return (block_B1 * _BLOCK + place_B1).squeeze(-1).clamp_(max=vocabulary - 1)
