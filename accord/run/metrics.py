"""What a scored batch says: sums and counts, never means of means, and one row per example. Once, for all objectives.

Axes: P groups, K responses. A metric is a (sum, count) pair until it is reported, so batch size, accumulation and the
number of processes do not change it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from accord.data.tokens import TokenGroup
from accord.diagnostics.ranking import share_above_zero
from accord.groups import ObjectiveResult, ScoredGroups
from accord.policy.policy import Scores

Sums = dict[str, tuple[float, float]]


def add_up(parts: Iterable[Mapping[str, tuple[float, float]]]) -> Sums:
    """Join sums and counts of micro-batches or processes."""
    total: Sums = {}
    for part in parts:
        for name, (value, count) in part.items():
            before = total.get(name, (0.0, 0.0))
            total[name] = (before[0] + value, before[1] + count)
    return total


def means(sums: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """Return sum / count of every metric that counted anything."""
    return {name: value / count for name, (value, count) in sums.items() if count}


@torch.no_grad()
def measure(scored: ScoredGroups, result: ObjectiveResult, scores: Scores) -> Sums:
    """Return the metrics of a scored batch as sums and counts.

    Over judged pairs: rewards (implicit, of the objective), margins, accuracy (a tie counts one half), summed
    log-probabilities, lengths, and ranking accuracy: the share of pairs with π(chosen) > π(rejected).
    Over labelled responses the same by label; over all responses the log-probability per token.
    """
    sums: Sums = {"loss": (float(result.loss_P.sum()), float(result.denominators().sum()))}
    lengths_PK = scored.num_tokens_PK
    _add(sums, "logps/per_token", scored.policy_logps_PK, scored.is_valid_PK, weights=lengths_PK)
    _add(sums, "length/response", lengths_PK, scored.is_valid_PK)
    if scored.preferred_PKK is not None and bool(scored.preferred_PKK.any()):
        sums |= _pair_metrics(scored, result, lengths_PK)
    if scored.desirable_PK is not None and scored.is_labelled_PK is not None:
        for name, chosen_PK in (("desirable", scored.desirable_PK), ("undesirable", ~scored.desirable_PK)):
            here_PK = chosen_PK & scored.is_labelled_PK & scored.is_valid_PK
            _add(sums, f"rewards/{name}", result.implicit_reward_PK, here_PK)
            _add(sums, f"length/{name}", lengths_PK, here_PK)
    if scored.reference_logps_PK is not None:
        is_own_PK = scored.is_valid_PK if scored.is_own_PK is None else scored.is_valid_PK & scored.is_own_PK
        _add(sums, "log_ratio/response", scored.log_ratio_PK, is_own_PK)
    if (tokens := scored.tokens) is not None and tokens.sampler_logps_PKT is not None:
        ours_PKT = tokens.old_logps_PKT if tokens.old_logps_PKT is not None else tokens.policy_logps_PKT
        apart_PKT = (ours_PKT - tokens.sampler_logps_PKT).detach()  # both of the weights that sampled
        of_policy_PKT = tokens.is_trained_PKT
        if scored.is_own_PK is not None:  # an opponent is another model
            of_policy_PKT = of_policy_PKT & scored.is_own_PK[:, :, None]
        _add(sums, "sampler/abs_diff", apart_PKT.abs(), of_policy_PKT)
        _add(sums, "sampler/k3", apart_PKT.exp() - 1 - apart_PKT, of_policy_PKT)
    for name, values_N in scores.statistics.items():
        _add(sums, f"statistics/{name}", values_N, scores.is_trained_N)
    if scored.score_PK is not None or scored.pair_score_PKK is not None:  # a reward model has no log-probabilities
        sums = {name: pair for name, pair in sums.items() if not name.startswith(("logps/", "ranking_accuracy"))}
    return {name: pair for name, pair in sums.items() if pair[1]}


def _pair_metrics(scored: ScoredGroups, result: ObjectiveResult, lengths_PK: Tensor) -> Sums:
    assert scored.preferred_PKK is not None
    p, better, worse = scored.preferred_PKK.nonzero(as_tuple=True)
    reward_PK, logps_PK = result.implicit_reward_PK, scored.policy_logps_PK
    margins = reward_PK[p, better] - reward_PK[p, worse]
    gap = logps_PK[p, better] - logps_PK[p, worse]
    columns = {
        "rewards/chosen": reward_PK[p, better],
        "rewards/rejected": reward_PK[p, worse],
        "rewards/margins": margins,
        "rewards/accuracies": share_above_zero(torch.where(_is_noise(scored, p, better, worse), 0.0, margins)),
        "logps/chosen": logps_PK[p, better],
        "logps/rejected": logps_PK[p, worse],
        "length/chosen": lengths_PK[p, better],
        "length/rejected": lengths_PK[p, worse],
        "ranking_accuracy": share_above_zero(gap),
    }
    return {name: (float(values.cpu().double().sum()), float(len(values))) for name, values in columns.items()}


def _is_noise(scored: ScoredGroups, p: Tensor, better: Tensor, worse: Tensor) -> Tensor:
    """Whether two responses' log-ratios differ by no more than the rounding of their log-probabilities.

    A policy equal to its reference has accuracy 1/2, though the two were scored in batches of other shapes.
    """
    if scored.reference_logps_PK is None:
        return torch.zeros_like(p, dtype=torch.bool)
    logps_PK, log_ratio_PK = scored.policy_logps_PK, scored.log_ratio_PK
    size = 1.0 + logps_PK[p, better].abs() + logps_PK[p, worse].abs()
    return (log_ratio_PK[p, better] - log_ratio_PK[p, worse]).abs() <= 32 * torch.finfo(logps_PK.dtype).eps * size


def _add(sums: Sums, name: str, values: Tensor, where: Tensor, weights: Tensor | None = None) -> None:
    count = float(where.sum()) if weights is None else float((weights * where).sum())
    sums[name] = (float(torch.where(where, values, 0).cpu().double().sum()), count)


@torch.no_grad()
def example_rows(
    groups: Sequence[TokenGroup], scored: ScoredGroups, result: ObjectiveResult, *, step: int
) -> list[dict[str, Any]]:
    """Return one plain row per group: everything needed to look back at what an example did to the run."""
    # one copy from the device per tensor, not per group
    policy, rewards_PK = scored.policy_logps_PK.tolist(), result.implicit_reward_PK.tolist()
    reference = scored.reference_logps_PK.tolist() if scored.reference_logps_PK is not None else None
    given = ratings_of(scored)
    losses, is_counted, num_tokens = result.loss_P.tolist(), result.is_counted_P.tolist(), scored.num_tokens_PK.tolist()
    pairs: list[list[tuple[int, int]]] = [[] for _ in groups]
    for row, better, worse in scored.preferred_PKK.nonzero().tolist() if scored.preferred_PKK is not None else ():
        pairs[row].append((better, worse))
    rows = []
    for row, group in enumerate(groups):
        k = len(group.responses)
        rewards = rewards_PK[row][:k]
        rows.append(
            {
                "step": step,
                "index": group.index,
                "origin": group.source.origin if group.source else "",
                "loss": losses[row],
                "is_counted": is_counted[row],
                "policy_logps": policy[row][:k],
                "reference_logps": reference[row][:k] if reference is not None else None,
                "implicit_rewards": rewards,
                "ratings": None if given is None else given[row][:k],
                "num_tokens": num_tokens[row][:k],
                "num_prompt_tokens": len(group.prompt_ids),
                "pairs": pairs[row],
                "margins": [rewards[i] - rewards[j] for i, j in pairs[row]],
                "is_flipped": [rewards[i] < rewards[j] for i, j in pairs[row]],
                "was_truncated": [response.was_truncated for response in group.responses],
                "has_eos": [response.has_eos for response in group.responses],
            }
        )
    return rows


def ratings_of(scored: ScoredGroups) -> list[list[float | None]] | None:
    """Return the rating of every response, None where none was given; None where nobody rated."""
    if scored.reward_PK is None or scored.is_rated_PK is None or not bool(scored.is_rated_PK.any()):
        return None
    return [
        [value if is_rated else None for value, is_rated in zip(values, flags, strict=True)]
        for values, flags in zip(scored.reward_PK.tolist(), scored.is_rated_PK.tolist(), strict=True)
    ]
