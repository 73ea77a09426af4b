"""The demo: sample pairs from the base, have them judged, align by DPO, and measure the gain in a known gold reward."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from accord.alignment import align
from accord.config import build_config
from accord.data import encode_groups, write_groups
from accord.data.batching import chunked
from accord.evaluation.intervals import Interval, mean_interval, paired_difference
from accord.evaluation.report import write_report
from accord.lab.annotators import GOLD, judge_groups
from accord.lab.base_model import base_model_folder
from accord.lab.measure import Answers, Show, measure_aux, sample_answers
from accord.lab.text_world import MAX_RESPONSE_TOKENS, Request, render_request, split_requests, user_prompt
from accord.policy.load import load_policy
from accord.policy.policy import Policy
from accord.records import Group
from accord.store import check_vacant

PAIRS_PER_REQUEST = 64
ANSWERS_PER_REQUEST = 64  # held-out evaluation, before and after
SHOWN = 3
SETTINGS: dict[str, Any] = {
    "objective": "dpo",
    "objective.beta": 0.1,
    "train.epochs": 2,
    "train.batch_size": 32,
    "train.lr": 1e-4,
    "train.warmup": 0.1,
    "evaluate.every": 24,
    "evaluate.num_samples": 0,  # the demo draws its own, many more
    "reference.cache": None,
}


def run_demo(
    out: str | Path,
    *,
    seed: int = 0,
    overwrite: bool = False,
    show: Show = lambda stage, done, total, note: None,
) -> dict[str, Any]:
    """Align the shipped base model in the text world and return the summary, also written to `out`/summary.json.

    Gold reward, win rate, KL, length and auxiliary skills are measured on requests no judgement was given for. The
    interval of the gain is over held-out requests, each the mean of many answers before and after.
    """
    check_vacant(out, run_is_fine=overwrite)
    started = time.perf_counter()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # matrices this small lose more to handing work around than they gain
    try:
        base = load_policy(base_model_folder())
        train_requests, held_out = split_requests()
        pairs = judge_groups(_sample_pairs(base, train_requests, "sampling pairs", show, seed), (GOLD,), seed=seed)
        before = _measure(base, held_out, "evaluating the base", show, seed)
        policy = load_policy(base_model_folder())
        done = align(
            build_config({**SETTINGS, "model": str(base_model_folder()), "data": "pairs.jsonl", "out": str(out)}
                         | {"train.seed": seed}),
            policy=policy, groups=pairs, overwrite=overwrite,
            progress=lambda step, total, metrics: show("aligning", step, total, _note(metrics)),
        )  # fmt: skip
        after = _measure(policy, held_out, "evaluating the result", show, seed)
        kl = _kl(policy, base, after.answers.groups)
    finally:
        torch.set_num_threads(threads)
    assert done.run is not None
    write_groups(Path(out) / "pairs.jsonl", pairs)
    summary = done.summary | _summarise(before, after, kl) | {"seconds": round(time.perf_counter() - started, 1)}
    done.run.write_summary(summary)
    write_report(done.run)
    return summary


@dataclass(frozen=True)
class _Measured:
    answers: Answers
    aux: tuple[float, float]  # shares of additions and reversals that are right


def _measure(policy: Policy, requests: Sequence[Request], stage: str, show: Show, seed: int) -> _Measured:
    answers = sample_answers(
        policy, requests, num_answers=ANSWERS_PER_REQUEST, seed=10**9 + seed,
        show=lambda done, total: show(stage, done, total + 1, ""),
    )  # fmt: skip
    aux = measure_aux(policy)
    show(stage, len(requests) + 1, len(requests) + 1, "")
    return _Measured(answers, aux)


def _sample_pairs(policy: Policy, requests: Sequence[Request], stage: str, show: Show, seed: int) -> list[Group]:
    """Sample two answers to each request, many times over."""
    groups: list[Group] = []
    prompts = [user_prompt(render_request(request)) for request in requests]
    for repeat in range(PAIRS_PER_REQUEST):
        show(stage, repeat, PAIRS_PER_REQUEST, "")
        groups.extend(
            policy.sample(prompts, num_responses=2, max_tokens=MAX_RESPONSE_TOKENS, seed=seed * 10_000 + repeat)
        )
    show(stage, PAIRS_PER_REQUEST, PAIRS_PER_REQUEST, f"{len(groups)} pairs")
    return groups


@torch.no_grad()
def _kl(policy: Policy, base: Policy, groups: Sequence[Group]) -> Interval:
    """Mean over the policy's own answers of log π − log π_base: KL(π ‖ π_base), nats per response."""
    encoded = encode_groups(groups, policy.tokenizer, on_identical="keep", on_empty="keep").groups
    means = []
    for part in chunked(encoded, 8192, layout=policy.layout):
        log_ratio_PK = policy.score(part).logps_PK - base.score(part).logps_PK
        means.extend(log_ratio_PK.mean(dim=1).tolist())
    return mean_interval(means)


def _summarise(before: _Measured, after: _Measured, kl: Interval) -> dict[str, Any]:
    gold_before, gold_after = before.answers.gold_RA, after.answers.gold_RA
    gain = paired_difference(gold_after.mean(1), gold_before.mean(1))
    win_rate = mean_interval(_win_rates(gold_after, gold_before))
    rows = [
        _row("Gold reward (at most 2.5)", gold_before, gold_after),
        _row("Length, items", before.answers.num_items_RA, after.answers.num_items_RA),
        {"name": "Adding digits, exact", "before": before.aux[0], "after": after.aux[0], "unit": "share"},
        {"name": "Reversing a list, exact", "before": before.aux[1], "after": after.aux[1], "unit": "share"},
    ]
    requests = before.answers.requests
    shown = [
        {
            "prompt": render_request(requests[place]),
            "before": before.answers.text(place),
            "after": after.answers.text(place),
            "gold_before": round(float(gold_before[place, 0]), 2),
            "gold_after": round(float(gold_after[place, 0]), 2),
        }
        for place in range(0, len(requests), len(requests) // SHOWN)
    ]
    return {
        "gold_before": float(gold_before.mean()),
        "gold_after": float(gold_after.mean()),
        "gold_gain": gain.value,
        "gold_gain_ci95": [gain.low, gain.high],
        "win_rate": win_rate.value,
        "win_rate_ci95": [win_rate.low, win_rate.high],
        "kl": kl.value,
        "kl_ci95": [kl.low, kl.high],
        "length_before": before.answers.num_tokens,
        "length_after": after.answers.num_tokens,
        "table": rows,
        "samples": shown,
    }


def _win_rates(gold_RA: np.ndarray, other_RA: np.ndarray) -> np.ndarray:
    """Per request, the share of all pairs of answers in which the first is worth more; a tie counts one half."""
    ours_RA1, theirs_R1A = gold_RA[:, :, None], other_RA[:, None, :]
    return ((ours_RA1 > theirs_R1A) + 0.5 * (ours_RA1 == theirs_R1A)).mean(axis=(1, 2))


def _row(name: str, before: np.ndarray, after: np.ndarray) -> dict[str, Any]:
    a, b = mean_interval(before.mean(1)), mean_interval(after.mean(1))
    return {
        "name": name,
        "before": a.value,
        "after": b.value,
        "before_ci95": [a.low, a.high],
        "after_ci95": [b.low, b.high],
        "unit": "",
    }


def _note(metrics: dict[str, float]) -> str:
    return f"loss {metrics['loss']:.3f}  accuracy {metrics.get('rewards/accuracies', float('nan')):.2f}"
