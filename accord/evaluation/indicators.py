"""Early warnings in words: what a person should look at first in a run, read from its metrics.

Each rule is a function of the metric records and returns one sentence or None; a rule whose metrics are missing is
silent. The thresholds are rules of thumb: they point, they do not judge.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeGuard

from accord.diagnostics.hacking import reward_hacking_warnings

Records = Sequence[Mapping[str, Any]]

OVERFIT_GAP = 0.15  # training accuracy minus held-out accuracy
LOSS_RISE = 0.05  # of the lowest held-out loss
ENTROPY_FALL = 0.5  # of the first entropy
LENGTH_GROWTH = 0.2  # of the length before
UNKNOWN_SHARE = 0.1  # of rewards
FLAT_SHARE = 0.5  # of prompts whose rewards are all equal
CUT_SHARE = 0.3  # of responses
TURN = 0.05  # of the highest value, below which it has turned
ENTANGLED = 0.25  # share of pairs


def find_warnings(records: Records, summary: Mapping[str, Any]) -> list[str]:
    """Return the sentences of every rule that fires, the gravest kinds first."""
    found = [rule(records) for rule in METRIC_RULES] + [rule(summary) for rule in SUMMARY_RULES]
    return [sentence for sentence in (*found, *reward_hacking_warnings(records)) if sentence]


def read_metric(records: Records, name: str) -> list[tuple[int, float]]:
    """Return (step, value) of a metric wherever it was reported as a finite number."""
    pairs = [(int(record["step"]), record.get(name)) for record in records]
    return [(step, float(value)) for step, value in pairs if _is_number(value)]


def warn_of_lost_loss(records: Records) -> str | None:
    """A loss that is not a number."""
    steps = [record["step"] for record in records if "loss" in record and not _is_number(record["loss"])]
    return f"The loss was not a finite number at step {steps[0]}." if steps else None


def warn_of_chance_accuracy(records: Records) -> str | None:
    """Held-out accuracy whose interval contains one half."""
    for name, words in (("eval/ranking_accuracy", "ranking"), ("eval/rewards/accuracies", "implicit-reward")):
        last = read_metric(records, name)[-1:]
        low, high = read_metric(records, f"{name}_low")[-1:], read_metric(records, f"{name}_high")[-1:]
        if last and low and high and last[0][0] > 0 and low[0][1] <= 0.5 <= high[0][1]:
            return (
                f"Held-out {words} accuracy is {last[0][1]:.3f} [{low[0][1]:.3f}, {high[0][1]:.3f}]: "
                "on this many held-out groups it cannot be told from chance."
            )
    return None


def warn_of_overfitting(records: Records) -> str | None:
    """Held-out loss that rose again, or training accuracy far above the held-out one."""
    losses = read_metric(records, "eval/loss")
    if len(losses) >= 3:
        best_step, best = min(losses, key=lambda pair: pair[1])
        last_step, last = losses[-1]
        if last - best > LOSS_RISE * abs(best) and last_step > best_step:
            return (
                f"Held-out loss was lowest at step {best_step} ({best:.4g}) and is {last:.4g} at step {last_step}: "
                "the checkpoint of the best step, fewer epochs or a larger β may serve better."
            )
    training, held_out = _late_mean(records, "rewards/accuracies"), _late_mean(records, "eval/rewards/accuracies")
    if training is not None and held_out is not None and training - held_out > OVERFIT_GAP:
        return (
            f"Accuracy is {training:.2f} in training and {held_out:.2f} held out: the policy learns its pairs by heart."
        )
    return None


def warn_of_displacement(records: Records) -> str | None:
    """Chosen responses losing probability while the margin grows (likelihood displacement)."""
    for prefix in ("eval/", ""):
        chosen, margin = _late_mean(records, f"{prefix}rewards/chosen"), _late_mean(records, f"{prefix}rewards/margins")
        if chosen is None or margin is None:
            continue
        if chosen < 0 < margin and -chosen > 0.5 * margin:
            return (
                f"Chosen responses became less likely than under the reference (implicit reward {chosen:.2f}) while "
                f"the margin grew to {margin:.2f}: rejected ones fell faster. Probability is moving to responses that "
                "are in neither column; read samples before trusting the accuracy."
            )
        return None
    return None


def warn_of_narrowing(records: Records) -> str | None:
    """Entropy that fell to less than half."""
    for name in ("eval/statistics/entropy", "statistics/entropy"):
        values = [value for _, value in read_metric(records, name)]
        if len(values) >= 4:
            first, last = _mean(values[: max(1, len(values) // 10)]), _mean(values[-max(1, len(values) // 10) :])
            if first > 0 and last < (1 - ENTROPY_FALL) * first:
                return f"Entropy fell from {first:.2f} to {last:.2f} nats per token: the policy is narrowing."
            return None
    return None


def warn_of_turning_point(records: Records) -> str | None:
    """Top-k entropy that rose and fell again, or top-k mass that shrinks, while the chosen log-probability moves on."""
    for name, words in (
        ("topk_entropy", "Top-k entropy peaked at step {step} ({best:.3g}) and has fallen to {last:.3g}"),
        ("topk_mass", "Top-k mass peaked at step {step} ({best:.3g}) and has shrunk to {last:.3g}"),
    ):
        values = read_metric(records, f"eval/statistics/{name}")
        chosen = read_metric(records, "eval/logps/chosen")
        if len(values) < 4 or len(chosen) < 2:
            continue
        step, best = max(values, key=lambda pair: pair[1])
        last_step, last = values[-1]
        is_inside = values[0][0] < step < last_step
        since = [value for at, value in chosen if at >= step]
        has_moved = len(since) > 1 and abs(since[-1] - since[0]) > TURN * abs(since[0])
        if is_inside and last < (1 - TURN) * best and has_moved:
            return (
                f"{words.format(step=step, best=best, last=last)} while likelihoods go on moving: quality often turns "
                "there, too. Compare samples of that checkpoint with the last one."
            )
    return None


def warn_of_entangled_gradients(records: Records) -> str | None:
    """A large share of pairs whose own step lowers their chosen response."""
    low = read_metric(records, "eval/gradients/chosen_falls_low")[-1:]
    share = read_metric(records, "eval/gradients/chosen_falls")[-1:]
    if low and share and low[0][1] > ENTANGLED:
        return (
            f"{share[0][1]:.0%} of the held-out pairs measured push their own chosen response down, because the "
            "gradients of the two are too alike: add likelihood of the chosen (rpo_irpo), use per-token means (ln_dpo, "
            "simpo), or leave out the pairs with the highest CHES."
        )
    return None


def warn_of_sampled_length(records: Records) -> str | None:
    """Sampled answers that grew or shrank by a fifth over the run."""
    lengths = read_metric(records, "eval/length/sampled")
    if len(lengths) >= 2 and lengths[0][1] > 0 and abs(lengths[-1][1] / lengths[0][1] - 1) > LENGTH_GROWTH:
        samples = any("rollout/length" in record for record in records)
        cure = (
            "put length into the reward (reward.overlong, reward.length_penalty)"
            if samples
            else "use an objective with length in it (dpo_length_reg, ln_dpo, simpo)"
        )
        return (
            f"Sampled answers went from {lengths[0][1]:.1f} to {lengths[-1][1]:.1f} tokens: compare quality at equal "
            f"length, or {cure}."
        )
    return None


def warn_of_unknown_rewards(records: Records) -> str | None:
    """Many responses that the judge could not judge."""
    share = _late_mean(records, "rollout/reward_unknown")
    if share is not None and share > UNKNOWN_SHARE:
        return (
            f"The reward of {share:.0%} of the responses is unknown: they train nothing. The reasons are in rollouts/, "
            "as verdicts."
        )
    return None


def warn_of_flat_rewards(records: Records) -> str | None:
    """Most prompts have responses that are all worth the same."""
    share = _late_mean(records, "rollout/all_equal")
    if share is not None and share > FLAT_SHARE:
        return (
            f"All responses of a prompt have the same reward for {share:.0%} of the prompts, which teach nothing: "
            "choose prompts of middling difficulty, draw more responses, or set rollout.dynamic_sampling=true."
        )
    return None


def warn_of_cut_responses(records: Records) -> str | None:
    """Many responses that the length limit cut."""
    share = _late_mean(records, "rollout/truncated")
    if share is not None and share > CUT_SHARE:
        return (
            f"{share:.0%} of the responses were cut by rollout.max_tokens and judged unfinished: raise it, or leave "
            "them out with rollout.truncated=mask."
        )
    return None


def warn_of_no_gain(summary: Mapping[str, Any]) -> str | None:
    """A gain in gold reward whose interval contains zero."""
    ends = summary.get("gold_gain_ci95")
    if not (isinstance(ends, Sequence) and len(ends) == 2 and all(_is_number(end) for end in ends)):
        return None
    if ends[0] <= 0:
        return f"The gain in gold reward is not certain: its 95 % interval is [{ends[0]:.3f}, {ends[1]:.3f}]."
    return None


def warn_of_length(summary: Mapping[str, Any]) -> str | None:
    """Responses that grew by a fifth: a judge may have paid for length."""
    before, after = summary.get("length_before"), summary.get("length_after")
    if _is_number(before) and _is_number(after) and after > (1 + LENGTH_GROWTH) * before:
        return f"Responses grew from {before:.1f} to {after:.1f} tokens: compare quality at equal length."
    return None


METRIC_RULES: tuple[Callable[[Records], str | None], ...] = (
    warn_of_lost_loss,
    warn_of_chance_accuracy,
    warn_of_overfitting,
    warn_of_displacement,
    warn_of_narrowing,
    warn_of_turning_point,
    warn_of_entangled_gradients,
    warn_of_sampled_length,
    warn_of_unknown_rewards,
    warn_of_flat_rewards,
    warn_of_cut_responses,
)
SUMMARY_RULES: tuple[Callable[[Mapping[str, Any]], str | None], ...] = (warn_of_no_gain, warn_of_length)


def _late_mean(records: Records, name: str) -> float | None:
    """Return the mean over the last tenth of the reports: single batches are too noisy to warn about."""
    values = [value for _, value in read_metric(records, name)]
    return _mean(values[-max(1, len(values) // 10) :]) if values else None


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
