"""Imitation: maximum likelihood of responses. Axes: P prompts, K responses per prompt; nats."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Bool
from torch import Tensor

from accord.groups import ObjectiveResult, ScoredGroups
from accord.objectives._ops import judged_pairs, mean_logps, sum_over_responses
from accord.objectives.spec import Need, ObjectiveSpec


def sft(groups: ScoredGroups, *, reduction: Literal["token", "sequence"] = "token") -> ObjectiveResult:
    """Maximise the likelihood of every response that no judgement speaks against (supervised fine-tuning).

    Formula: Σ −log π(y|x) / Σ |y| over all responses of the batch ("token", each token counts the same), or the mean
    over responses of −log π(y|x)/|y| ("sequence").
    Which responses: all valid ones, less those judged worse than another and those labelled undesirable. A file of
    demonstrations is imitated whole, of pairs the chosen, of a ranking the best, of labels the desirable.
    Optimum: "token" reaches the data distribution q; "sequence" reaches one proportional to q(y)/|y|, that is it
    over-weights short responses.
    Use: before preferences, so that the policy writes answers of the kind that were judged; or on demonstrations alone.
    Limits: an empty response has no token to learn and is not counted.
    Source: Ouyang et al. 2022, arXiv:2203.02155, section 3.5.

    >>> import torch
    >>> from accord.groups import ScoredGroups
    >>> two = ScoredGroups(
    ...     policy_logps_PK=torch.tensor([[-12.0, -3.0]]), num_tokens_PK=torch.tensor([[10, 5]]),
    ...     is_valid_PK=torch.tensor([[True, True]]),
    ... )
    >>> result = sft(two)
    >>> (result.loss_P / result.denominators()).item()  # (12 + 3) / (10 + 5)
    1.0
    """
    mean_logp_PK = mean_logps(groups)
    num_tokens_PK = groups.num_tokens_PK.to(mean_logp_PK.dtype)
    is_by_token = reduction == "token"
    return sum_over_responses(
        groups,
        is_used_PK=_is_imitated(groups),
        loss_PK=-groups.policy_logps_PK if is_by_token else -mean_logp_PK,
        weight_PK=num_tokens_PK if is_by_token else (num_tokens_PK > 0).to(mean_logp_PK.dtype),
        implicit_reward_PK=mean_logp_PK,
    )


def _is_imitated(groups: ScoredGroups) -> Bool[Tensor, "P K"]:
    """Return True for the valid responses that were neither judged worse than another nor labelled undesirable."""
    is_imitated_PK = groups.is_valid_PK
    if groups.preferred_PKK is not None:
        is_imitated_PK = is_imitated_PK & ~judged_pairs(groups).any(dim=1)
    if groups.desirable_PK is not None and groups.is_labelled_PK is not None:
        is_imitated_PK = is_imitated_PK & ~(groups.is_labelled_PK & ~groups.desirable_PK)
    return is_imitated_PK


ROWS: dict[str, ObjectiveSpec] = {
    "sft": ObjectiveSpec(
        fn=sft,
        family="likelihood",
        needs=frozenset(),
        reads=frozenset({Need.PREFERENCES, Need.LABELS}),
        reference=False,
        proof="optimum",
        implicit_reward="log π(y|x)/|y|",
        paper="Ouyang et al. 2022, arXiv:2203.02155, section 3.5",
    ),
}
