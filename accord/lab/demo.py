"""The demo: sample pairs from the base, have them judged, align by DPO, and measure the gain in a known gold reward."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from accord.align import align
from accord.config import build_config
from accord.data import encode_groups, write_groups
from accord.data.batching import chunked
from accord.evaluation.intervals import Interval, mean_interval, paired_difference
from accord.evaluation.report import write_report
from accord.lab.annotators import GOLD, judge_groups, response_text
from accord.lab.base_model import base_model_folder
from accord.lab.text_world import (
    MAX_RESPONSE_TOKENS,
    Request,
    aux_problems,
    gold_reward,
    is_right_answer,
    parse_response,
    render_request,
    split_requests,
    user_prompt,
)
from accord.policy.load import load_policy
from accord.policy.policy import Policy
from accord.records import FinishReason, Group

PAIRS_PER_REQUEST = 48
ANSWERS_PER_REQUEST = 64  # held-out evaluation, before and after
AUX_PROBLEMS = 200
SHOWN = 3
SETTINGS: dict[str, Any] = {
    "objective": "dpo",
    "objective.beta": 0.1,
    "train.epochs": 2,
    "train.batch_size": 64,
    "train.lr": 5e-4,
    "train.warmup": 0.1,
    "evaluate.every": 9,
    "evaluate.num_samples": 0,  # the demo draws its own, many more
    "reference.cache": None,
}

Show = Callable[[str, int, int, str], None]


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
    started = time.perf_counter()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # matrices this small lose more to handing work around than they gain
    try:
        base = load_policy(base_model_folder())
        train_requests, held_out = split_requests()
        pairs = judge_groups(_answers(base, train_requests, "sampling pairs", show, seed), (GOLD,), seed=seed)
        before = _measure(base, held_out, "evaluating the base", show, seed)
        policy = load_policy(base_model_folder())
        done = align(
            build_config({**SETTINGS, "model": str(base_model_folder()), "data": "pairs.jsonl", "out": str(out)}
                         | {"train.seed": seed}),
            policy=policy, groups=pairs, overwrite=overwrite,
            progress=lambda step, total, metrics: show("aligning", step, total, _note(metrics)),
        )  # fmt: skip
        after = _measure(policy, held_out, "evaluating the result", show, seed)
        kl = _kl(policy, base, after.groups)
    finally:
        torch.set_num_threads(threads)
    assert done.run is not None
    write_groups(Path(out) / "pairs.jsonl", pairs)
    summary = done.summary | _summarise(before, after, kl) | {"seconds": round(time.perf_counter() - started, 1)}
    done.run.write_summary(summary)
    write_report(done.run)
    return summary


class _Answers:
    """What a policy answered to held-out requests, and what it still knows of its auxiliary skills."""

    def __init__(self, requests: Sequence[Request], groups: Sequence[Group], aux: tuple[float, float]) -> None:
        self.requests, self.groups, self.aux = requests, groups, aux
        texts = [[response_text(response) for response in group.responses] for group in groups]
        ended = [[response.finish_reason is FinishReason.STOP for response in group.responses] for group in groups]
        self.texts = texts
        self.gold = np.array(
            [
                [gold_reward(request, text, has_eos) for text, has_eos in zip(row, ends, strict=True)]
                for request, row, ends in zip(requests, texts, ended, strict=True)
            ]
        )
        self.mean_tokens = float(np.mean([len(r.token_ids or ()) for group in groups for r in group.responses]))
        self.num_items = np.array([[parse_response(text).num_items for text in row] for row in texts])


def _answers(policy: Policy, requests: Sequence[Request], stage: str, show: Show, seed: int) -> list[Group]:
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


def _measure(policy: Policy, requests: Sequence[Request], stage: str, show: Show, seed: int) -> _Answers:
    prompts = [user_prompt(render_request(request)) for request in requests]
    groups: list[Group] = []
    for place, prompt in enumerate(prompts):
        show(stage, place, len(prompts) + 1, "")
        groups.extend(
            policy.sample(
                [prompt], num_responses=ANSWERS_PER_REQUEST, max_tokens=MAX_RESPONSE_TOKENS, seed=10**9 + seed
            )
        )
    show(stage, len(prompts), len(prompts) + 1, "")
    problems = aux_problems(np.random.default_rng(seed), AUX_PROBLEMS)
    solved = policy.sample([user_prompt(problem.prompt) for problem in problems], max_tokens=8, temperature=0.0)
    right = [
        is_right_answer(problem, response_text(group.responses[0]))
        for problem, group in zip(problems, solved, strict=True)
    ]
    show(stage, len(prompts) + 1, len(prompts) + 1, "")
    return _Answers(requests, groups, (float(np.mean(right[0::2])), float(np.mean(right[1::2]))))


@torch.no_grad()
def _kl(policy: Policy, base: Policy, groups: Sequence[Group]) -> Interval:
    """Mean over the policy's own answers of log π − log π_base: KL(π ‖ π_base), nats per response."""
    encoded = encode_groups(groups, policy.tokenizer, on_identical="keep", on_empty="keep").groups
    means = []
    for part in chunked(encoded, 8192, layout=policy.layout):
        log_ratio_PK = policy.score(part).logps_PK - base.score(part).logps_PK
        means.extend(log_ratio_PK.mean(dim=1).tolist())
    return mean_interval(means)


def _summarise(before: _Answers, after: _Answers, kl: Interval) -> dict[str, Any]:
    gain = paired_difference(after.gold.mean(1), before.gold.mean(1))
    wins = (after.gold > before.gold) + 0.5 * (after.gold == before.gold)  # one answer against another, drawn alike
    win_rate = mean_interval(wins.mean(1))
    rows = [
        _row("Gold reward (at most 2.5)", before.gold, after.gold),
        _row("Length, items", before.num_items, after.num_items),
        {"name": "Adding digits, exact", "before": before.aux[0], "after": after.aux[0], "unit": "share"},
        {"name": "Reversing a list, exact", "before": before.aux[1], "after": after.aux[1], "unit": "share"},
    ]
    shown = [
        {
            "prompt": render_request(request),
            "before": before.texts[place][0],
            "after": after.texts[place][0],
            "gold_before": round(float(before.gold[place, 0]), 2),
            "gold_after": round(float(after.gold[place, 0]), 2),
        }
        for place, request in list(enumerate(before.requests))[:: max(1, len(before.requests) // SHOWN)][:SHOWN]
    ]
    return {
        "gold_before": float(before.gold.mean()),
        "gold_after": float(after.gold.mean()),
        "gold_gain": gain.value,
        "gold_gain_ci95": [gain.low, gain.high],
        "win_rate": win_rate.value,
        "win_rate_ci95": [win_rate.low, win_rate.high],
        "kl": kl.value,
        "kl_ci95": [kl.low, kl.high],
        "length_before": before.mean_tokens,
        "length_after": after.mean_tokens,
        "table": rows,
        "samples": shown,
    }


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
