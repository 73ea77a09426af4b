"""Reinforcement learning with verifiable rewards: sums asked in words that the base model half understands."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from accord.data import load_groups
from accord.evaluation.intervals import paired_difference
from accord.feedback.composition import build_reward
from accord.lab.journeys.parts import BASE, Tell, learn_online, measure, measure_kl
from accord.lab.text_world import AuxProblem, user_prompt
from accord.policy.load import load_policy
from accord.policy.policy import Policy
from accord.records import Group

PHRASINGS = ("{a} and {b} add", "{a} and {b}")
"""The base was taught "add 3 and 9" only."""
SAMPLES_PER_PROBLEM = 8
GRPO: dict[str, Any] = {
    "method": "grpo", "objective.kl_coef": 0.0, "rollout.num_responses": 8, "rollout.max_tokens": 8,
    "train.batch_size": 24, "train.lr": 5e-4, "train.max_steps": 150,
}  # fmt: skip


def problems(*, seed: int = 0) -> tuple[list[AuxProblem], list[AuxProblem]]:
    """Return (150 problems to learn on, 50 held out): sums of two digits in two phrasings, no sum in both lists."""
    order = np.random.default_rng(seed).permutation(100)
    lists = [
        [
            AuxProblem(words.format(a=number // 10, b=number % 10), " ".join(str(number // 10 + number % 10)))
            for number in map(int, numbers)
            for words in PHRASINGS
        ]
        for numbers in (order[:75], order[75:])
    ]
    return lists[0], lists[1]


def write_problems(path: Path, given: Sequence[AuxProblem]) -> Path:
    """Write problems as rows of `prompt` (one user turn) and `answer`, as `recipes/rlvr_arithmetic.yaml` reads them."""
    rows = [{"prompt": [{"role": "user", "content": one.prompt}], "answer": one.answer} for one in given]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def rlvr(out: Path, *, seed: int, tell: Tell) -> dict[str, Any]:
    """Learn by GRPO from a verifier that compares strings, and measure on sums that were never asked."""
    base = load_policy(BASE)
    train, held_out = problems(seed=seed)
    prompts = load_groups(write_problems(out / "problems.jsonl", train)).groups
    asked = load_groups(write_problems(out / "held_out.jsonl", held_out)).groups
    first, _ = share_right(base, asked, seed=seed)
    reward = build_reward({"string_match": {}}, policy_tokenizer=base.tokenizer)
    done = learn_online(out / "grpo", prompts, reward, seed=seed, **GRPO)
    tell("GRPO is done")
    last, answers = share_right(done.policy, asked, seed=seed)
    gain = paired_difference(last, first)
    gold = [measure(policy, seed=seed).answers.gold_RA.mean() for policy in (base, done.policy)]
    return {
        "right_before": float(first.mean()),
        "right_after": float(last.mean()),
        "right_gain": gain.value,
        "right_gain_ci95": [gain.low, gain.high],
        "kl": measure_kl(done.policy, base, answers).value,
        "gold_before": float(gold[0]),
        "gold_after": float(gold[1]),
    }


def share_right(policy: Policy, asked: Sequence[Group], *, seed: int) -> tuple[np.ndarray, list[Group]]:
    """Return, per problem, the share of sampled answers that are right, and the answers."""
    prompts = [user_prompt(group.prompt if isinstance(group.prompt, str) else group.prompt[-1].content)
               for group in asked]  # fmt: skip
    drawn = policy.sample(prompts, num_responses=SAMPLES_PER_PROBLEM, max_tokens=8, seed=seed)
    verify = build_reward({"string_match": {}})
    answered = [
        Group(prompt=group.prompt, responses=found.responses, extra=group.extra)
        for group, found in zip(asked, drawn, strict=True)
    ]
    return np.array([[one.score or 0.0 for one in row] for row in verify(answered)]).mean(axis=1), drawn
