"""The parts of every objective of a rollout: ratios, the clipped link, weights, KL, and how tokens are added up.

Axes: P prompts, K responses, T tokens. Notation: ℓ_t, ℓ_t^old and ℓ_t^ref are log π, log π_old and log π_ref of token
t, π_old the policy that the rollout began with and π_μ what its sampler drew from; A_t the advantage, |y| the trained
tokens of a response, Δ_t = ℓ_t − ℓ_t^old, ρ_t = e^Δ_t, sg[·] held constant in the gradient, nats throughout.

A response with no trained token is not counted, in no mean: its reward is unknown, or it was cut and masked.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal, get_type_hints

import torch
from annotated_types import Ge, Gt
from jaxtyping import Bool, Float
from torch import Tensor

from accord.groups import ObjectiveResult, ScoredGroups, ScoredTokens
from accord.objectives._ops import tangent_expm1, token_log_ratios, trained_tokens
from accord.objectives.spec import Need

Aggregation = Literal["seq_mean_token_mean", "token_mean", "constant", "seq_mean_token_sum"]


@dataclass(frozen=True, kw_only=True)
class Shared:
    """Settings that every objective of a rollout offers beside its own; see `shared_terms` and `aggregate`."""

    aggregation: Aggregation = "seq_mean_token_mean"
    max_length: Annotated[int, Ge(1)] = 512  # tokens; read by "constant" alone
    kl_coef: Annotated[float, Ge(0)] = 0.0
    kl_estimator: Literal["k2", "k3"] = "k2"
    kl_weight: Literal["held_ratio", "ratio", "none"] = "held_ratio"
    entropy_coef: Annotated[float, Ge(0)] = 0.0
    sampler_correction: Literal["none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"] = "none"
    sampler_cap: Annotated[float, Gt(0)] = 3.0
    sampler_floor: Annotated[float, Ge(0)] = 0.0
    off_policy_mask: Annotated[float, Gt(0)] | None = None  # nats per token

    def changed(self, given: Mapping[str, Any]) -> Shared:
        """Return these settings with some changed. Raises ValueError for a choice of `REFUSED`, with the reason."""
        for key, reason in REFUSED.items():
            name, _, choice = key.partition("=")
            if given.get(name) == choice:
                raise ValueError(f"got {key}: {reason}")
        return replace(self, **given)


REFUSED = {
    "kl_estimator=k1": "differentiated with the samples fixed its expected gradient is 0, so it would hold nothing — "
    "put k1 into the reward (advantage.kl_coef), or take kl_estimator=k2, which has the gradient k1 is meant to have",
    "aggregation=local_token_mean": "a mean over the tokens of each micro-batch changes with how the batch is cut up — "
    "take aggregation=token_mean, whose one division is by all tokens of the optimisation batch",
}
"""What is not offered, and why."""

SHARED_SETTINGS = frozenset(item.name for item in fields(Shared))
COMBINATIONS = (
    {"aggregation": "token_mean", "kl_coef": 0.2, "kl_estimator": "k3", "kl_weight": "ratio", "entropy_coef": 0.1},
    {"aggregation": "constant", "max_length": 7, "kl_coef": 0.2, "sampler_correction": "sequence_mask"},
    {"sampler_correction": "token_truncate", "sampler_cap": 1.1, "kl_coef": 0.2, "kl_weight": "none"},
    {"sampler_correction": "token_mask", "sampler_cap": 1.2, "sampler_floor": 0.8, "off_policy_mask": 0.05},
    {"aggregation": "seq_mean_token_mean", "sampler_correction": "sequence_truncate", "sampler_cap": 1.5},
)

NEEDS = frozenset({Need.TOKENS, Need.ADVANTAGES})
READS = frozenset({Need.SAMPLER_LOGPS, Need.ENTROPY})
NEEDS_WHEN = {
    "entropy_coef": Need.ENTROPY,
    "off_policy_mask": Need.SAMPLER_LOGPS,
    **{
        f"sampler_correction={choice}": Need.SAMPLER_LOGPS
        for choice in ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")
    },
}


def offers(defaults: Shared) -> Callable[[Callable[..., ObjectiveResult]], Callable[..., ObjectiveResult]]:
    """Give a function `fn(groups, *, own=…, **shared)` the shared settings, with these defaults, in its signature."""

    def add(fn: Callable[..., ObjectiveResult]) -> Callable[..., ObjectiveResult]:
        own = inspect.signature(fn, eval_str=True)
        kept = [item for item in own.parameters.values() if item.kind is not inspect.Parameter.VAR_KEYWORD]
        hints = get_type_hints(Shared, include_extras=True)
        shared = [
            inspect.Parameter(
                item.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=getattr(defaults, item.name),
                annotation=hints[item.name],
            )
            for item in fields(Shared)
        ]
        fn.__signature__ = own.replace(parameters=[*kept, *shared])  # type: ignore[attr-defined]  # functions take any
        return fn

    return add


# What a rollout gives ------------------------------------------------------------------------------------------------


def rollout_tokens(groups: ScoredGroups) -> ScoredTokens:
    """Return the tokens of a rollout."""
    assert groups.tokens is not None, "the objective's spec must declare that it needs tokens"
    assert groups.tokens.advantage_PKT is not None, "the objective's spec must declare that it needs advantages"
    assert groups.tokens.old_logps_PKT is not None, "advantages come with the log-probabilities they were made with"
    return groups.tokens


def at_trained(groups: ScoredGroups, value_PKT: Float[Tensor, "P K T"] | None) -> Float[Tensor, "P K T"]:
    """Return a value per token, 0 where no token counts."""
    assert value_PKT is not None, "the objective's spec must declare what it needs per token"
    return torch.where(trained_tokens(groups), value_PKT, 0.0)


def logps(groups: ScoredGroups) -> Float[Tensor, "P K T"]:
    """Return ℓ_t."""
    return at_trained(groups, rollout_tokens(groups).policy_logps_PKT)


def advantages(groups: ScoredGroups) -> Float[Tensor, "P K T"]:
    """Return A_t."""
    return at_trained(groups, rollout_tokens(groups).advantage_PKT)


def log_old_ratios(groups: ScoredGroups) -> Float[Tensor, "P K T"]:
    """Return Δ_t = ℓ_t − ℓ_t^old."""
    tokens = rollout_tokens(groups)
    assert tokens.old_logps_PKT is not None, "the objective's spec must declare that it needs advantages"
    return at_trained(groups, tokens.policy_logps_PKT - tokens.old_logps_PKT)


def mean_over_tokens(groups: ScoredGroups, value_PKT: Float[Tensor, "P K T"]) -> Float[Tensor, "P K"]:
    """Return the mean of a value over a response's trained tokens, 0 without any."""
    is_used_PKT = trained_tokens(groups)
    return torch.where(is_used_PKT, value_PKT, 0.0).sum(dim=2) / is_used_PKT.sum(dim=2).clamp(min=1)


# Links and weights ---------------------------------------------------------------------------------------------------


def ratio_of(log_ratio: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return e^Δ, continued along its tangent beyond Δ = 30, so that value and gradient stay finite."""
    return 1.0 + tangent_expm1(log_ratio)


def clipped_link(
    log_ratio_PKT: Float[Tensor, "P K T"],
    advantage_PKT: Float[Tensor, "P K T"],
    *,
    clip_low: float,
    clip_high: float,
    delta: float | None = None,
    dual_clip: float | None = None,
) -> Float[Tensor, "P K T"]:
    """Return −min(ρA, clip(ρ, 1 − `clip_low`, 1 + `clip_high`)A).

    `delta` bounds the ρ of the first term from above; `dual_clip` c bounds the loss by −cA where A < 0. Derivative by
    Δ: −ρA, and 0 where the clip decides: ρ > 1 + high with A > 0, ρ < 1 − low with A < 0.
    """
    ratio_PKT = ratio_of(log_ratio_PKT)
    held_PKT = ratio_PKT.clamp(1.0 - clip_low, 1.0 + clip_high)
    first_PKT = ratio_PKT if delta is None else ratio_PKT.clamp(max=delta)
    loss_PKT = torch.maximum(-first_PKT * advantage_PKT, -held_PKT * advantage_PKT)
    if dual_clip is None:
        return loss_PKT
    return torch.where(advantage_PKT < 0, torch.minimum(loss_PKT, -dual_clip * advantage_PKT), loss_PKT)


def sampler_weights(groups: ScoredGroups, shared: Shared) -> Float[Tensor, "P K T"]:
    """Return how much each token's policy loss weighs for having been drawn from π_μ instead of π_old; no grad.

    w = π_old/π_μ of the token, or of the whole response; truncate: min(w, cap); mask: w inside [floor, cap], else 0.
    1 everywhere when the sampler is the trained model itself.
    """
    mode = shared.sampler_correction
    tokens = rollout_tokens(groups)
    assert tokens.old_logps_PKT is not None, "the objective's spec must declare that it needs advantages"
    if mode == "none":
        return torch.ones_like(tokens.old_logps_PKT)
    assert tokens.sampler_logps_PKT is not None, "the objective's spec must declare that it needs the sampler's"
    log_weight_PKT = at_trained(groups, tokens.old_logps_PKT - tokens.sampler_logps_PKT)
    if mode.startswith("sequence"):
        log_weight_PKT = log_weight_PKT.sum(dim=2, keepdim=True).expand_as(log_weight_PKT)
    log_cap = math.log(shared.sampler_cap)
    weight_PKT = log_weight_PKT.clamp(max=log_cap).exp()  # bounded first: e^89 overflows
    if mode.endswith("truncate"):
        return weight_PKT
    is_inside_PKT = (log_weight_PKT <= log_cap) & (weight_PKT >= shared.sampler_floor)
    return torch.where(is_inside_PKT, weight_PKT, 0.0)


def off_policy_weights(groups: ScoredGroups, limit: float) -> Float[Tensor, "P K T"]:
    """Return 0 for responses with A < 0 that the policy has left by more than `limit` nats per token, else 1; no grad.

    Kept are A ≥ 0 or mean_t(ℓ_t^μ − ℓ_t) ≤ limit.
    """
    tokens = rollout_tokens(groups)
    assert tokens.sampler_logps_PKT is not None, "the objective's spec must declare that it needs the sampler's"
    gap_PK = mean_over_tokens(groups, tokens.sampler_logps_PKT - tokens.policy_logps_PKT.detach())
    is_left_PKT = (gap_PK > limit)[:, :, None] & (advantages(groups) < 0)
    return torch.where(is_left_PKT, 0.0, 1.0).to(gap_PK.dtype)


# KL and entropy ------------------------------------------------------------------------------------------------------


def kl_in_loss(groups: ScoredGroups, shared: Shared) -> Float[Tensor, "P K T"]:
    """Return the estimate of KL(π ‖ π_ref) at every token whose gradient `kl_estimator` and `kl_weight` name.

    u = ℓ_t − ℓ_t^ref: k2 = u²/2, gradient u ∇ℓ: of KL(π‖π_ref), on-policy. k3 = e^−u − 1 + u, gradient (1 − e^−u) ∇ℓ:
    of KL(π_ref‖π), the other one. Off-policy they are weighed by sg[ρ_t] ("held_ratio"), or by ρ_t with its gradient
    ("ratio": the gradient of ρ k3 is again that of KL(π‖π_ref)), or not at all. Each is the KL of the next token after
    the prefixes drawn: what a token does to later KL only k1 in the reward knows.
    """
    log_ratio_PKT = token_log_ratios(groups)
    if shared.kl_estimator == "k2":
        estimate_PKT = log_ratio_PKT.square() / 2
    else:
        estimate_PKT = tangent_expm1(-log_ratio_PKT) + log_ratio_PKT
    if shared.kl_weight == "none":
        return estimate_PKT
    ratio_PKT = ratio_of(log_old_ratios(groups))
    return estimate_PKT * (ratio_PKT if shared.kl_weight == "ratio" else ratio_PKT.detach())


def shared_terms(
    groups: ScoredGroups, policy_loss_PKT: Float[Tensor, "P K T"], shared: Shared
) -> Float[Tensor, "P K T"]:
    """Return w_t · the policy loss + `kl_coef` · KL_t − `entropy_coef` · H_t, token by token."""
    loss_PKT = policy_loss_PKT
    if shared.sampler_correction != "none":
        loss_PKT = loss_PKT * sampler_weights(groups, shared)
    if shared.off_policy_mask is not None:
        loss_PKT = loss_PKT * off_policy_weights(groups, shared.off_policy_mask)
    if shared.kl_coef:
        loss_PKT = loss_PKT + shared.kl_coef * kl_in_loss(groups, shared)
    if shared.entropy_coef:
        loss_PKT = loss_PKT - shared.entropy_coef * at_trained(groups, rollout_tokens(groups).entropy_PKT)
    return loss_PKT


# From tokens to one loss per group -----------------------------------------------------------------------------------


def aggregate(groups: ScoredGroups, loss_PKT: Float[Tensor, "P K T"], shared: Shared) -> ObjectiveResult:
    """Add up tokens so that the loop's one division, Σ loss / Σ denominator over the whole batch, is the named mean.

    seq_mean_token_mean: (1/N) Σ_i (1/|y_i|) Σ_t; token_mean: Σ_i Σ_t / Σ_i |y_i|; constant: Σ_i Σ_t / (N · max_length);
    seq_mean_token_sum: (1/N) Σ_i Σ_t. N counts the responses with a trained token. At equal lengths all four agree but
    for a constant.
    """
    is_used_PKT: Bool[Tensor, "P K T"] = trained_tokens(groups)
    loss_PK = torch.where(is_used_PKT, loss_PKT, 0.0).sum(dim=2)
    length_PK = is_used_PKT.sum(dim=2)
    if shared.aggregation == "seq_mean_token_mean":
        loss_PK = loss_PK / length_PK.clamp(min=1)
    per_response = {"token_mean": length_PK, "constant": shared.max_length * (length_PK > 0)}
    weight_PK = per_response.get(shared.aggregation, length_PK > 0)
    return ObjectiveResult(
        loss_P=loss_PK.sum(dim=1),
        is_counted_P=(length_PK > 0).any(dim=1),
        implicit_reward_PK=log_old_ratios(groups).detach().sum(dim=2),
        denominator_P=weight_PK.sum(dim=1).to(torch.promote_types(loss_PK.dtype, torch.float32)),
    )


def rollout_loss(groups: ScoredGroups, policy_loss_PKT: Float[Tensor, "P K T"], shared: Shared) -> ObjectiveResult:
    """Return a policy loss per token with the shared terms, added up."""
    return aggregate(groups, shared_terms(groups, policy_loss_PKT, shared), shared)
