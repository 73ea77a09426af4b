"""THE tensor record: P prompts with K responses each, scored and judged.

Axes: P prompts, K responses per prompt (padded), T tokens of a response (padded), C comparisons of a group (padded),
S steps of a response (padded), E embedding.
Suffixes name the axes: `policy_logps_PK` is (P, K). Log-probabilities are in nats.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ScoredTokens:
    """The same responses token by token; what is not a trained token is False in `is_trained_PKT` and holds 0."""

    policy_logps_PKT: Float[Tensor, "P K T"]  # nats; carries grad; sums to policy_logps_PK
    reference_logps_PKT: Float[Tensor, "P K T"] | None = None  # no grad
    is_trained_PKT: Bool[Tensor, "P K T"]

    weight_PKT: Float[Tensor, "P K T"] | None = None  # given with the data; 1 where it says nothing
    is_kept_PKT: Bool[Tensor, "P K T"] | None = None  # shared with the other version of the response (alignment)
    critical_PKT: Float[Tensor, "P K T"] | None = None  # in [0, 1], no grad: contrastive estimate of two models
    log_sum_sq_PKT: Float[Tensor, "P K T"] | None = None  # log Σ_v π(v)², nats, no grad
    position_kl_PKT: Float[Tensor, "P K T"] | None = None  # KL(π_ref ‖ π) over the vocabulary, nats; carries grad

    # of heads that learn what tokens are worth, beside `value_PKT`
    q_PKT2: Float[Tensor, "P K T 2"] | None = None  # Q(s, a) of the token taken, by two heads; carries grad
    q_logps_PKT2: Float[Tensor, "P K T 2"] | None = None  # log softmax Q(s, ·) at that token, nats; carries grad
    target_q_PKT: Float[Tensor, "P K T"] | None = None  # the smaller of the slow copies' values of it, no grad

    # of responses that a policy sampled, all but the last two without grad
    sampler_logps_PKT: Float[Tensor, "P K T"] | None = None  # nats, of the distribution actually sampled from
    old_logps_PKT: Float[Tensor, "P K T"] | None = None  # nats, as the trained model scored them before any update
    advantage_PKT: Float[Tensor, "P K T"] | None = None
    return_PKT: Float[Tensor, "P K T"] | None = None  # what a critic should say before each token
    old_value_PKT: Float[Tensor, "P K T"] | None = None  # what it said before any update
    value_PKT: Float[Tensor, "P K T"] | None = None  # what it says now
    entropy_PKT: Float[Tensor, "P K T"] | None = None  # of the policy's next-token distribution, nats


@dataclass(frozen=True, kw_only=True)
class ScoredSteps:
    """Scores and labels of the steps of each response, as a process reward model sees them."""

    score_PKS: Float[Tensor, "P K S"]  # logit that the step is right; carries grad
    is_right_PKS: Bool[Tensor, "P K S"]
    is_labelled_PKS: Bool[Tensor, "P K S"]


@dataclass(frozen=True, kw_only=True)
class Votes:
    """Single comparisons with their judges, before any vote is counted."""

    better_PC: Int[Tensor, "P C"]  # response judged better …
    worse_PC: Int[Tensor, "P C"]  # … than this one
    judge_PC: Int[Tensor, "P C"]  # who: 0 … number of judges − 1
    is_valid_PC: Bool[Tensor, "P C"]


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
    win_frac_PKK: Float[Tensor, "P K K"] | None = None  # [p, i, j]: fraction of judges who prefer i to j, a tie is ½ …
    is_compared_PKK: Bool[Tensor, "P K K"] | None = None  # … where the two were compared; symmetric
    votes: Votes | None = None
    stratum_P: Int[Tensor, " P"] | None = None  # population of the group: 0 … number of strata − 1 …
    stratum_frac_P: Float[Tensor, " P"] | None = None  # … and which share of all groups belongs to it

    tokens: ScoredTokens | None = None
    behaviour_logps_PK: Float[Tensor, "P K"] | None = None  # nats, no grad: of the sampler that wrote the responses
    prompt_embedding_PE: Float[Tensor, "P E"] | None = None  # no grad

    score_PK: Float[Tensor, "P K"] | None = None  # a reward model's; carries grad
    is_truncated_PK: Bool[Tensor, "P K"] | None = None  # sampled, and stopped by the length limit
    is_own_PK: Bool[Tensor, "P K"] | None = None  # the policy's; False = of the opponent it is set against
    pair_score_PKK: Float[Tensor, "P K K"] | None = None  # a joint model's logit of "i before j", shown in that order
    steps: ScoredSteps | None = None

    # what belongs to the whole optimisation batch, over micro-batches and ranks
    mismatched_kl: Float[Tensor, ""] | None = None  # nats ≥ 0, no grad: estimate of KL(policy ‖ reference) from prompts
    # paired with another prompt's response (KTO's z0)
    batch: ScoredGroups | None = None  # all groups of the batch, no grad …
    place_P: Int[Tensor, " P"] | None = None  # … and where these groups are in it
    draw_seed_P: Int[Tensor, " P"] | None = None  # one seed per group and visit
    state: Mapping[str, Tensor] | None = None  # of `ObjectiveSpec.state`, before this batch

    @property
    def log_ratio_PK(self) -> Float[Tensor, "P K"]:
        """log π(y|x) − log π_ref(y|x) in nats, summed over tokens: the implicit reward without its β."""
        assert self.reference_logps_PK is not None, "the objective's spec must declare that it needs a reference"
        return self.policy_logps_PK - self.reference_logps_PK


@dataclass(frozen=True, kw_only=True)
class RolloutBatch:
    """All responses of one rollout, judged: what advantages are computed from. No grad.

    A response whose reward is unknown (`is_scored_PK` False) holds reward 0 and enters no baseline.
    """

    reward_PK: Float[Tensor, "P K"]
    is_scored_PK: Bool[Tensor, "P K"]  # valid, and its reward is known
    is_token_PKT: Bool[Tensor, "P K T"]  # response tokens up to and including the end; none in padding slots
    old_logps_PKT: Float[Tensor, "P K T"]  # nats
    reference_logps_PKT: Float[Tensor, "P K T"] | None = None  # nats
    value_PKT: Float[Tensor, "P K T"] | None = None  # of a critic, before each token
    step_reward_PKT: Float[Tensor, "P K T"] | None = None  # beside `reward_PK`: of the steps of a response …
    is_step_end_PKT: Bool[Tensor, "P K T"] | None = None  # … at the last token of each
    state: Mapping[str, Tensor] | None = None  # of `AdvantageSpec.state`, before this rollout


@dataclass(frozen=True, kw_only=True)
class Advantages:
    """What a rollout's responses are worth, token by token; 0 where the reward is unknown or there is no token."""

    advantage_PKT: Float[Tensor, "P K T"]
    return_PKT: Float[Tensor, "P K T"] | None = None  # the critic's target, where there is a critic
    is_counted_PK: Bool[Tensor, "P K"]  # False = carries no gradient: its reward is unknown


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
    state_sums: Mapping[str, Tensor] = field(default_factory=dict)  # detached; summed over the batch for the next state

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


Record = TypeVar("Record", ScoredGroups, ScoredTokens, ScoredSteps, Votes)


def concatenate_groups(parts: Sequence[Record]) -> Record:
    """Join groups along P; narrower ones are padded with zeros (False, so that padding is not valid).

    All parts carry the same fields. What belongs to the whole batch (`mismatched_kl`, `batch`, `state`) is the first's.
    """
    joined: dict[str, Any] = {}
    for key in (item.name for item in fields(parts[0])):
        values = [getattr(part, key) for part in parts]
        if key == "batch" or not isinstance(values[0], torch.Tensor) or values[0].ndim == 0:
            is_record = is_dataclass(values[0]) and key != "batch"
            joined[key] = concatenate_groups(values) if is_record else values[0]
        else:
            widest = [max(value.shape[axis] for value in values) for axis in range(1, values[0].ndim)]
            joined[key] = torch.cat([_pad_to(value, widest) for value in values])
    return type(parts[0])(**joined)


def _pad_to(value: Tensor, widths: Sequence[int]) -> Tensor:
    padding: list[int] = []
    for axis in range(value.ndim - 1, 0, -1):  # the last axis comes first
        padding += [0, widths[axis - 1] - value.shape[axis]]
    return F.pad(value, padding)
