"""What journeys are made of: answers sampled and judged, a reward model, a policy's worth before and after."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from accord.alignment import AlignResult, align
from accord.data import encode_groups
from accord.data.batching import chunked
from accord.evaluation.intervals import Interval, mean_interval, paired_difference
from accord.feedback.findings import Reward
from accord.feedback.reward_calibration import write_calibration
from accord.feedback.reward_models import calibrate_reward
from accord.lab.annotators import GOLD, SimulatedAnnotator, judge_groups
from accord.lab.base_model import base_model_folder
from accord.lab.measure import Answers, measure_aux, sample_answers
from accord.lab.text_world import MAX_RESPONSE_TOKENS, Request, render_request, split_requests, user_prompt
from accord.policy.load import load_policy
from accord.policy.policy import Policy
from accord.policy.reward import RewardModel
from accord.records import Group

BASE = str(base_model_folder())
ANSWERS_PER_REQUEST = 32
EVALUATION_SEED = 10**9
QUIET: dict[str, Any] = {
    "evaluate.num_samples": 0, "data.eval_fraction": 0.0, "reference.cache": None, "tracking.report": False,
}  # fmt: skip
ONLINE: dict[str, Any] = QUIET | {
    "rollout.max_tokens": 32, "train.schedule": "constant", "train.warmup": 0.0, "train.epochs": 1000,
}  # fmt: skip
"""A journey measures its policies itself, by many more answers than a run draws."""

Tell = Callable[[str], None]


@contextmanager
def one_thread() -> Iterator[None]:
    """Use one thread: matrices this small lose more to handing work around than they gain."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def sample_groups(
    policy: Policy, requests: Sequence[Request], *, num_responses: int, repeats: int, seed: int
) -> list[Group]:
    """Return `repeats` groups of fresh answers for each request."""
    prompts = [user_prompt(render_request(request)) for request in requests] * repeats
    return policy.sample(prompts, num_responses=num_responses, max_tokens=MAX_RESPONSE_TOKENS, seed=seed)


def judged_pairs(
    policy: Policy, requests: Sequence[Request], *, per_request: int, seed: int,
    annotators: Sequence[SimulatedAnnotator] = (GOLD,),
) -> list[Group]:  # fmt: skip
    """Return pairs of fresh answers, compared by simulated annotators."""
    groups = sample_groups(policy, requests, num_responses=2, repeats=per_request, seed=seed)
    return judge_groups(groups, annotators, seed=seed)


def train_reward_model(
    pairs: Sequence[Group], out: Path, *, seed: int, samples: Sequence[Group] = (), **settings: Any
) -> tuple[RewardModel, dict[str, Any]]:
    """Train a reward model on judged pairs, calibrate it on samples, and return it with its held-out metrics."""
    given: dict[str, Any] = {
        "objective": "bradley_terry", "model": BASE, "out": str(out), "data.eval_fraction": 0.1, "train.seed": seed,
        "train.batch_size": 64, "train.lr": 1e-3, "train.epochs": 2, "train.warmup": 0.1,
        "evaluate.num_samples": 0, "tracking.report": False,
    }  # fmt: skip
    done = align(groups=pairs, overwrite=True, **(given | settings))
    assert isinstance(done.policy, RewardModel)
    if samples:
        write_calibration(out / "model", calibrate_reward(done.policy, samples))
    return done.policy, done.summary["eval_after"]


def learn_online(
    out: Path, prompts: Sequence[Group], reward: Reward, *, seed: int, policy: Policy | None = None, **settings: Any
) -> AlignResult:
    """Run an online method on the base model (or on `policy`) with a reward in memory."""
    given: dict[str, Any] = ONLINE | {"out": str(out), "train.seed": seed} | settings
    return align(policy=policy or load_policy(BASE), groups=prompts, reward=reward, overwrite=True, **given)


def learn_from(
    groups: Sequence[Group], out: Path, *, seed: int, model: str | Path = BASE, **settings: Any
) -> AlignResult:  # fmt: skip
    """Align a model, the base unless said, on judged groups or demonstrations."""
    given: dict[str, Any] = QUIET | {"model": str(model), "out": str(out), "train.seed": seed} | settings
    return align(groups=groups, overwrite=True, **given)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a policy is worth on requests that no judgement was given for."""

    answers: Answers
    additions: float
    reversals: float


def measure(policy: Policy, *, seed: int) -> Measured:
    """Measure gold reward, length and auxiliary skills on the held-out requests."""
    _, held_out = split_requests()
    answers = sample_answers(
        policy, held_out, num_answers=ANSWERS_PER_REQUEST, seed=EVALUATION_SEED + 1000 * seed
    )  # fmt: skip
    additions, reversals = measure_aux(policy, num_problems=200)
    return Measured(answers=answers, additions=additions, reversals=reversals)


@torch.no_grad()
def measure_kl(policy: Policy, base: Policy, groups: Sequence[Group]) -> Interval:
    """Return KL(π ‖ π_base) in nats per response: the mean of log π − log π_base over the policy's own answers."""
    encoded = encode_groups(groups, policy.tokenizer, on_identical="keep", on_empty="keep").groups
    means: list[float] = []
    for part in chunked(encoded, 8192, layout=policy.layout):
        means.extend((policy.score(part).logps_PK - base.score(part).logps_PK).mean(dim=1).tolist())
    return mean_interval(means)


def compare(before: Measured, after: Measured, kl: Interval | None = None) -> dict[str, Any]:
    """Return the gain in gold reward, with its interval over held-out requests, and what it cost."""
    first, last = before.answers.gold_RA.mean(1), after.answers.gold_RA.mean(1)
    gain = paired_difference(last, first)
    return {
        "gold_before": float(first.mean()),
        "gold_after": float(last.mean()),
        "gold_gain": gain.value,
        "gold_gain_ci95": [gain.low, gain.high],
        "kl": None if kl is None else kl.value,
        "length_before": before.answers.num_tokens,
        "length_after": after.answers.num_tokens,
        "additions": [before.additions, after.additions],
        "reversals": [before.reversals, after.reversals],
    }


def compare_with_base(policy: Policy, base: Policy, before: Measured, *, seed: int) -> dict[str, Any]:
    """Measure a trained policy and return `compare` with the base."""
    after = measure(policy, seed=seed)
    return compare(before, after, measure_kl(policy, base, after.answers.groups))


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Return comparisons as a table for people, one line per stage."""
    lines = [f"{'stage':<22}{'gold':>14}{'gain [95 %]':>26}{'KL':>8}{'tokens':>14}{'add':>6}{'rev':>6}"]
    for name, row in rows.items():
        low, high = row["gold_gain_ci95"]
        kl = "" if row["kl"] is None else f"{row['kl']:.2f}"
        gain = f"{row['gold_gain']:+.2f} [{low:.2f}, {high:.2f}]"
        lines.append(
            f"{name:<22}{row['gold_before']:>6.2f} → {row['gold_after']:<5.2f}"
            f"{gain:>26}{kl:>8}"
            f"{row['length_before']:>6.1f} → {row['length_after']:<5.1f}"
            f"{row['additions'][1]:>6.2f}{row['reversals'][1]:>6.2f}"
        )
    return "\n".join(lines)


def cpu_seconds() -> float:
    """Return CPU seconds used by this process so far."""
    return time.process_time()


def mean_over(values: Sequence[float | None]) -> float | None:
    """Return the mean of what is known; None where nothing is."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
