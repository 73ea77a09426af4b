"""What a policy does on groups it was not trained on: the objective's own measures with intervals, samples, and KL."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from accord.config import EvaluateConfig
from accord.data.batching import micro_batches
from accord.data.tokens import TokenGroup, TokenResponse
from accord.diagnostics.ranking import ranking_sums, summarise_ranking, whole_rankings
from accord.errors import PolicyError
from accord.evaluation.intervals import clustered_mean_interval, mean_interval, wilson
from accord.policy.head import Statistic
from accord.policy.policy import Policy
from accord.policy.reference import Reference
from accord.policy.reward import RewardModel
from accord.policy.sampling import SamplingSettings, sample_responses, trained_ends
from accord.run.held_out.answers import gathered
from accord.run.held_out.pair_gradients import measure_gradients, summarise_gradients, with_gradients
from accord.run.held_out.predictions import predict, prediction_sums, summarise_predictions, with_predictions
from accord.run.metrics import Sums, add_up, example_rows, means, measure
from accord.run.scored import Scoring

log = logging.getLogger(__name__)

INDICATORS: tuple[Statistic, ...] = ("entropy", "topk_entropy", "topk_mass", "top1")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Held-out metrics (names without a prefix), one row per group, and answers to held-out prompts."""

    metrics: dict[str, float]
    rows: list[dict[str, Any]]
    samples: list[dict[str, Any]] = field(default_factory=list)  # {"prompt", "response", "log_ratio"}


@torch.no_grad()
def evaluate(
    scoring: Scoring, groups: Sequence[TokenGroup], *, settings: EvaluateConfig, max_batch_tokens: int, step: int
) -> Evaluation:
    """Score held-out groups and answer held-out prompts.

    A reward model is measured on the judgements its objective reads, and neither samples nor has a KL.
    Reward and ranking accuracy come with Wilson intervals, margins with a t-interval; `kl` is the mean over sampled
    responses of log π(y|x) − log π_ref(y|x), y ~ π: an unbiased estimate of KL(π ‖ π_ref) in nats per response.
    Every process must call.
    """
    (rank, world), gather, policy = scoring.share, scoring.gather, scoring.policy
    parts: list[Sums] = []
    rows: list[dict[str, Any]] = []
    judged = [group for group in groups if group.responses]  # prompts alone have nothing to be scored
    for batch in scoring.held_out_batches(judged) if judged else ():
        facts = scoring.held_out_facts(batch, max_batch_tokens)
        for places in micro_batches(batch, max_batch_tokens, layout=policy.layout)[rank::world]:
            part = [batch[place] for place in places]
            scores, scored = scoring.score(part, facts, places=places, statistics=INDICATORS)
            result = scoring.result(scored)
            predicted = predict(scoring.spec.needs, scored)  # by a reward model, which has no log-probabilities
            ranking = ranking_sums(scored) if predicted is None else prediction_sums(scoring.spec.needs, predicted)
            parts.append(measure(scored, result, scores) | ranking)
            rows.extend(with_predictions(example_rows(part, scored, result, step=step), predicted))
    sums, rows = add_up(gather(parts)), sorted(gather(rows), key=lambda row: row["index"])
    metrics = means(sums) | _intervals(sums, rows) | summarise_predictions(scoring.spec.needs, rows)
    if settings.gradient_pairs:
        measured = gather(measure_gradients(scoring, groups[: settings.gradient_pairs][rank::world]))
        metrics |= summarise_gradients(measured)
        rows = with_gradients(rows, measured)
    samples: list[dict[str, Any]] = []
    if settings.num_samples:
        chosen = groups[: settings.num_samples]
        places = range(len(chosen))[rank::world]
        mine = [chosen[place] for place in places]
        ends = trained_ends(groups)
        samples = gathered(gather, lambda: _answer(scoring, mine, places, settings, max_batch_tokens, ends))
        samples.sort(key=lambda sample: sample["index"])
        log_ratios = [sample["log_ratio"] for sample in samples if sample["log_ratio"] is not None]
        if 1 < len(log_ratios) == len(samples):  # one number has no interval
            metrics |= mean_interval(log_ratios).as_dict("kl")
        for name in ("score", "reward"):
            known = [sample[name] for sample in samples if sample[name] is not None]
            if len(known) > 1:
                metrics |= mean_interval(known).as_dict(name)
        if samples:
            metrics["length/sampled"] = sum(sample["num_tokens"] for sample in samples) / len(samples)
    return Evaluation(metrics=metrics, rows=rows, samples=samples)


def _intervals(sums: Sums, rows: list[dict[str, Any]]) -> dict[str, float]:
    """Intervals for what is measured on pairs. Pairs of one prompt are no independent draws: the prompts are."""
    found: dict[str, float] = {}
    margins = [margin for row in rows for margin in row["margins"]]
    prompts = [place for place, row in enumerate(rows) for _ in row["margins"]]
    num_prompts = len(set(prompts))
    for name in ("rewards/accuracies", "ranking_accuracy"):
        if name in sums:
            successes, total = sums[name]
            found |= wilson(successes * num_prompts / total, num_prompts).as_dict(name)
    right, num_rankings = whole_rankings([row for row in rows if row["policy_logps"] is not None])
    if num_rankings:
        found |= wilson(right, num_rankings).as_dict("ranking_accuracy/whole")
    found |= summarise_ranking(means(sums))
    if num_prompts > 1:
        found |= clustered_mean_interval(margins, prompts).as_dict("rewards/margins")
    return found


def _answer(
    scoring: Scoring, groups: Sequence[TokenGroup], places: Sequence[int], settings: EvaluateConfig,
    max_batch_tokens: int, ends: frozenset[int],
) -> list[dict[str, Any]]:  # fmt: skip
    if not groups:
        return []
    policy, reference, seed = scoring.policy, scoring.reference, scoring.seed
    prompts = [group.prompt_ids for group in groups]
    answers = scoring.answers
    try:
        sampling = answers.sampling or SamplingSettings(max_tokens=settings.sample_tokens, seed=seed)
        drawn = sample_responses(policy, prompts, sampling, streams=places, more_stop_ids=ends)
    except PolicyError as error:  # training goes on: what was learnt is worth more than a number about it
        log.warning("held-out prompts are not answered, and KL is not measured: %s", error)
        return []
    answered = [
        TokenGroup(prompt_ids=group.prompt_ids, responses=(TokenResponse(ids=response.token_ids or ()),))
        for group, (response,) in zip(groups, drawn, strict=True)
    ]
    log_ratios: list[float | None] = [None] * len(answered)
    if reference is not None:
        try:
            log_ratios = _log_ratios(policy, reference, answered, max_batch_tokens)
        except PolicyError as error:
            log.warning("KL is not measured: %s", error)
    scores = _scores(scoring.judge, answered, max_batch_tokens)
    rewards = answers.rewards(groups, drawn)
    return [
        {
            "index": group.index,
            "prompt": policy.tokenizer.decode(list(group.prompt_ids), skip_special_tokens=True),
            "response": response.content,
            "num_tokens": len(response.token_ids or ()),
            "log_ratio": log_ratio,
            "score": score,
            "reward": reward,
        }
        for group, (response,), log_ratio, score, reward in zip(groups, drawn, log_ratios, scores, rewards, strict=True)
    ]


def _scores(judge: RewardModel | None, answered: Sequence[TokenGroup], max_batch_tokens: int) -> list[float | None]:
    """Return the judge's score of each group's one response; None without a judge."""
    found: list[float | None] = [None] * len(answered)
    if judge is None:
        return found
    for part in micro_batches(answered, max_batch_tokens, layout=judge.layout):
        score_PK = judge.score([answered[place] for place in part]).score_PK
        assert score_PK is not None
        for place, value in zip(part, score_PK[:, 0].tolist(), strict=True):
            found[place] = value
    return found


def _log_ratios(
    policy: Policy, reference: Reference, answered: Sequence[TokenGroup], max_batch_tokens: int
) -> list[float | None]:
    """Return log π(y|x) − log π_ref(y|x) of each group's one response, nats."""
    found: list[float | None] = [None] * len(answered)
    for part in micro_batches(answered, max_batch_tokens, layout=policy.layout):
        groups = [answered[place] for place in part]
        logps_PK = policy.score(groups).logps_PK
        log_ratio_PK = logps_PK - reference.logps(groups, logps_PK, keep=False)
        for place, value in zip(part, log_ratio_PK[:, 0].tolist(), strict=True):
            found[place] = value
    return found
