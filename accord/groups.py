"""THE tensor record: P prompts with K responses each, scored and judged.

Axes: P prompts, K responses per prompt (padded), T tokens of a response, V vocabulary.
Suffixes name the axes: `policy_logps_PK` is (P, K). Log-probabilities are in nats.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ScoredGroups:
    """What an objective sees: sequence log-probabilities, lengths and judgements of P × K responses.

    Padding slots are marked in `is_valid_PK` and hold finite values everywhere; nothing is inferred from values.
    """

    policy_logps_PK: Float[Tensor, "P K"]  # nats, SUM over trained response tokens incl. EOS; carries grad
    reference_logps_PK: Float[Tensor, "P K"] | None = None  # same tokens, no grad; None = not computed
    num_tokens_PK: Int[Tensor, "P K"]  # trained response tokens; the only source of length
    is_valid_PK: Bool[Tensor, "P K"]  # False = padding slot

    preferred_PKK: Bool[Tensor, "P K K"] | None = None  # [p, i, j]: i was judged better than j; a tie is False twice
    strength_PKK: Float[Tensor, "P K K"] | None = None  # how much better, where preferred_PKK; 0 where not said
    desirable_PK: Bool[Tensor, "P K"] | None = None  # thumbs up (True) or down (False) …
    is_labelled_PK: Bool[Tensor, "P K"] | None = None  # … where a label was given
    reward_PK: Float[Tensor, "P K"] | None = None  # scalar feedback …
    is_rated_PK: Bool[Tensor, "P K"] | None = None  # … where it was given

    mismatched_kl: Float[Tensor, ""] | None = None  # nats ≥ 0, no grad: batch estimate of KL(policy ‖ reference)
    # from prompts paired with another prompt's response; global over micro-batches and ranks (KTO's z0)

    @property
    def log_ratio_PK(self) -> Float[Tensor, "P K"]:
        """log π(y|x) − log π_ref(y|x) in nats, summed over tokens: the implicit reward without its β."""
        assert self.reference_logps_PK is not None, "the objective's spec must declare that it needs a reference"
        return self.policy_logps_PK - self.reference_logps_PK


@dataclass(frozen=True, kw_only=True)
class ObjectiveResult:
    """What an objective returns, unreduced.

    The loop computes Σ_P loss / Σ_P denominator over the whole optimisation batch (all micro-batches, all ranks).
    A group without a usable judgement has `is_counted_P` False, loss 0 and denominator 0.
    """

    loss_P: Float[Tensor, " P"]
    is_counted_P: Bool[Tensor, " P"]
    implicit_reward_PK: Float[Tensor, "P K"]  # detached; what the objective implicitly learns, for metrics only
    denominator_P: Float[Tensor, " P"] | None = None  # None = 1 per counted group; `sft` counts tokens

    def denominators(self) -> Float[Tensor, " P"]:
        """Return the weight of each group in the global mean."""
        if self.denominator_P is not None:
            return self.denominator_P
        return self.is_counted_P.to(torch.promote_types(self.loss_P.dtype, torch.float32))


def groups_from_pairs(
    policy_logps_P2: Float[Tensor, "P 2"],
    *,
    reference_logps_P2: Float[Tensor, "P 2"] | None = None,
    num_tokens_P2: Int[Tensor, "P 2"] | None = None,
) -> ScoredGroups:
    """Return (chosen, rejected) pairs as groups of K = 2: column 0 was judged better than column 1.

    Log-probabilities are sums in nats. Lengths default to one token, which only objectives that never read a length
    (`dpo`, `ipo` with sums) may rely on.
    """
    preferred_P22 = torch.zeros((len(policy_logps_P2), 2, 2), dtype=torch.bool, device=policy_logps_P2.device)
    preferred_P22[:, 0, 1] = True
    is_valid_P2 = torch.ones_like(policy_logps_P2, dtype=torch.bool)
    return ScoredGroups(
        policy_logps_PK=policy_logps_P2,
        reference_logps_PK=reference_logps_P2,
        num_tokens_PK=is_valid_P2.long() if num_tokens_P2 is None else num_tokens_P2,
        is_valid_PK=is_valid_P2,
        preferred_PKK=preferred_P22,
    )


def concatenate_groups(parts: list[ScoredGroups]) -> ScoredGroups:
    """Join groups along P (used by tests and metrics); all parts must share K and carry the same fields."""
    fields = {}
    for name in ScoredGroups.__dataclass_fields__:
        values = [getattr(part, name) for part in parts]
        if values[0] is None:
            fields[name] = None
        elif values[0].ndim == 0:
            fields[name] = values[0]
        else:
            fields[name] = torch.cat(values)
    return ScoredGroups(**fields)
