"""How `mc_po` chooses negatives: one step of a walk over the candidates, as probabilities and as draws.

Axes: P prompts, M walks, S steps, B starting responses, K responses, *G any. A walk starts at the preferred response
and ends at the one that is contrasted with it; where it ends at its start there is no contrast. Everything here is
without gradient and in float64. Random numbers come from one seed per group and visit, so that they depend on neither
the micro-batch nor the number of processes, and a resumed run draws what the whole one drew.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Kernel = Literal["hard_negative", "cis", "random", "max_margin", "second_best", "all"]


def kernel_probs(
    kernel: Kernel,
    score_GK: Float[Tensor, "*G K"],
    quality_GK: Float[Tensor, "*G K"],
    is_open_GK: Bool[Tensor, "*G K"],
    is_current_GK: Bool[Tensor, "*G K"],
) -> Float[Tensor, "*G K"]:
    """Return the law of the next response of a walk: over the open ones, for `cis` also over the current one.

    `hard_negative` is the softmax of the scores over the open responses other than the current, `cis` the softmax with
    the current among them (conditional importance sampling: given one draw of p ∝ μ e^score and others of μ, it leaves
    p unchanged), `random` uniform, `max_margin` the lowest and `second_best` the highest quality (uniform among
    equals). All zeros where nothing is open. `all` is no law: nothing is drawn.
    """
    is_other_GK = is_open_GK & ~is_current_GK
    if kernel == "cis":
        return _softmax(score_GK, is_open_GK | is_current_GK)
    if kernel == "hard_negative":
        return _softmax(score_GK, is_other_GK)
    if kernel in ("max_margin", "second_best"):
        worth_GK = quality_GK if kernel == "second_best" else -quality_GK
        best_G1 = torch.where(is_other_GK, worth_GK, -torch.inf).amax(dim=-1, keepdim=True)
        is_other_GK = is_other_GK & (worth_GK == best_G1)
    else:
        assert kernel == "random", "the kernel `all` draws nothing"
    return _softmax(torch.zeros_like(score_GK), is_other_GK)


def pick(probs_GK: Float[Tensor, "*G K"], uniform_G: Float[Tensor, "*G"]) -> Float[Tensor, "*G K"]:
    """Return 1 at the response that a number in [0, 1) selects, by the inverse of the cumulative law, 0 elsewhere.

    All 0 where the law is; NaN where the law is, so that a NaN score reaches the loss.
    """
    cumulative_GK = probs_GK.cumsum(dim=-1)
    index_G1 = (uniform_G[..., None] * cumulative_GK[..., -1:] >= cumulative_GK).sum(dim=-1, keepdim=True)
    chosen_GK = (torch.arange(probs_GK.shape[-1], device=probs_GK.device) == index_G1).to(probs_GK.dtype)
    return torch.where(probs_GK.isnan().any(dim=-1, keepdim=True), torch.nan, chosen_GK)


def walk_ends(
    kernel: Kernel,
    score_PK: Float[Tensor, "P K"],
    quality_PK: Float[Tensor, "P K"],
    is_candidate_PBK: Bool[Tensor, "P B K"],
    uniform_PMS: Float[Tensor, "P M S"],
    key_PK: Float[Tensor, "P K"],
) -> Float[Tensor, "P B K"]:
    """Return [p, b, k]: how many of the M walks of S steps from response b end at k.

    `cis` deals the candidates at random into S parts (by `key_PK`, uniform numbers) and chooses in each step between
    where it is and one part: every step sees fresh draws of the proposal, so each leaves p unchanged, and so do all.
    `hard_negative` moves S times among its start and all candidates, never staying; `random`, `max_margin` and
    `second_best` are no chains and take one step. All starts of a group share their random numbers.
    """
    num_steps = uniform_PMS.shape[2]
    shape = (len(uniform_PMS), uniform_PMS.shape[1], *is_candidate_PBK.shape[1:])
    score, quality = (x[:, None, None, :].expand(shape) for x in (score_PK, quality_PK))
    start_BK = torch.eye(shape[3], dtype=torch.bool, device=score_PK.device)
    is_open_PBK = is_candidate_PBK if kernel == "cis" else is_candidate_PBK | start_BK
    part_PK = (key_PK * num_steps).floor()
    state_PMBK = start_BK.to(score_PK.dtype).expand(shape)
    for step in range(num_steps if kernel in ("cis", "hard_negative") else 1):
        is_now_PBK = is_open_PBK & (part_PK == step)[:, None, :] if kernel == "cis" else is_open_PBK
        probs_PMBK = kernel_probs(kernel, score, quality, is_now_PBK[:, None].expand(shape), state_PMBK > 0)
        state_PMBK = pick(probs_PMBK, uniform_PMS[:, :, step, None].expand(shape[:3]))
    return state_PMBK.sum(dim=1)


def visit_numbers(
    draw_seed_P: Int[Tensor, " P"], *, num_walks: int, num_steps: int, width: int
) -> tuple[Float[Tensor, "P M S"], Float[Tensor, "P K"]]:
    """Return uniform numbers for each walk and step, and one for each response; of a group's own seed.

    Those of the responses come last, and one by one, so that padding slots change none of the others.
    """
    uniforms, keys = [], []
    for seed in draw_seed_P.tolist():
        generator = torch.Generator().manual_seed(seed)
        uniforms.append(torch.rand(num_walks, num_steps, generator=generator, dtype=torch.float64))
        keys.append(torch.rand(width, generator=generator, dtype=torch.float64))
    device = draw_seed_P.device
    if not uniforms:
        return torch.zeros(0, num_walks, num_steps, dtype=torch.float64), torch.zeros(0, width, dtype=torch.float64)
    return torch.stack(uniforms).to(device), torch.stack(keys).to(device)


def _softmax(score_GK: Float[Tensor, "*G K"], is_used_GK: Bool[Tensor, "*G K"]) -> Float[Tensor, "*G K"]:
    lowest = torch.finfo(score_GK.dtype).min / 4  # the share of what is not used is exactly 0
    shares_GK = torch.where(is_used_GK, score_GK, lowest).softmax(dim=-1)
    return torch.where(is_used_GK, shares_GK, 0.0)
