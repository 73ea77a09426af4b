"""Learning from fresh samples without a critic: the best of N, and preferences between what was just written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from accord.decoding.answering import Way, answer
from accord.evaluation.intervals import paired_difference
from accord.feedback.findings import Finding
from accord.feedback.reward_models import reward_model_reward
from accord.lab.annotators import GOLD, SimulatedAnnotator, response_text
from accord.lab.gold import request_prompts
from accord.lab.journeys.parts import (
    BASE,
    EVALUATION_SEED,
    Tell,
    compare_with_base,
    judged_pairs,
    learn_online,
    measure,
    sample_groups,
    train_reward_model,
)
from accord.lab.text_world import MAX_RESPONSE_TOKENS, gold_reward, parse_request, split_requests
from accord.policy.load import load_policy
from accord.policy.sampling import SamplingSettings
from accord.records import FinishReason, Group

N = 8
REPEATS = 16  # answers chosen per held-out request
RAFT: dict[str, Any] = {
    "method": "raft", "rollout.num_responses": N, "train.batch_size": 12, "train.lr": 1e-4, "train.max_steps": 15,
}  # fmt: skip
FRESH: dict[str, Any] = {
    "train.batch_size": 24, "train.lr": 3e-4, "train.max_steps": 60, "objective.beta": 0.1,
}  # fmt: skip


class AnnotatorReward:
    """A simulated annotator who looks at every answer once, with the noise of a Bradley–Terry rater.

    Score: u/T + Gumbel noise, so that i scores above j with probability σ((u_i − u_j)/T).
    """

    def __init__(self, annotator: SimulatedAnnotator = GOLD, *, seed: int = 0) -> None:
        """`seed` is that of the noise."""
        self.name = annotator.name
        self._annotator, self._rng = annotator, np.random.default_rng(seed)

    def __call__(self, groups: Sequence[Group]) -> list[list[Finding]]:
        """Score every response; asked again, it scores anew."""
        return [
            [
                Finding(
                    score=self._annotator.utility(request, response) / self._annotator.temperature
                    + float(self._rng.gumbel())
                )
                for response in group.responses
            ]
            for group in groups
            for request in [parse_request(group.prompt)]
        ]


def best_of_n(out: Path, *, seed: int, tell: Tell) -> dict[str, Any]:
    """Choose the best of 8 by a reward model, without training; then imitate the best of 8 (RAFT)."""
    base = load_policy(BASE)
    requests, held_out = split_requests()
    before = measure(base, seed=seed)
    pairs = judged_pairs(base, requests, per_request=48, seed=seed)
    samples = sample_groups(base, requests, num_responses=16, repeats=1, seed=seed + 2**16)
    _, accuracy = train_reward_model(pairs, out / "reward", seed=seed, samples=samples)
    tell(f"reward model of {len(pairs)} pairs: held-out accuracy {accuracy['rewards/accuracies']:.3f}")
    reward = reward_model_reward(str(out / "reward" / "model"), policy_tokenizer=base.tokenizer)
    settings = SamplingSettings(num_responses=1, max_tokens=MAX_RESPONSE_TOKENS, seed=EVALUATION_SEED + seed)
    found = [
        answer(base, request_prompts(held_out), replace(settings, seed=settings.seed + repeat), Way(best_of=N),
               reward=reward)[0]
        for repeat in range(REPEATS)
    ]  # fmt: skip
    chosen = np.mean([_gold_of(groups) for groups in found], axis=0)
    gain = paired_difference(chosen, before.answers.gold_RA.mean(1))
    tell(f"best of {N}: gold {chosen.mean():.2f}")
    done = learn_online(out / "raft", request_prompts(requests), reward, seed=seed, **RAFT)
    return {
        "stages": {"raft": compare_with_base(done.policy, base, before, seed=seed)},
        "best_of_n": {
            "n": N, "gold": float(chosen.mean()), "gold_gain": gain.value, "gold_gain_ci95": [gain.low, gain.high],
        },
        "reward_model": accuracy,
    }  # fmt: skip


def online_dpo(out: Path, *, seed: int, tell: Tell) -> dict[str, Any]:
    """Two fresh answers per prompt, compared at once by a simulated annotator; then four, by OnMC-PO."""
    base = load_policy(BASE)
    requests, _ = split_requests()
    before = measure(base, seed=seed)
    stages = {}
    for method in ("online_dpo", "onmc_po"):
        reward = AnnotatorReward(seed=seed)
        done = learn_online(out / method, request_prompts(requests), reward, seed=seed, method=method, **FRESH)
        stages[method] = compare_with_base(done.policy, base, before, seed=seed)
        tell(f"{method} is done")
    return {"stages": stages}


def _gold_of(groups: Sequence[Group]) -> list[float]:
    """The gold reward of each group's first response."""
    return [
        gold_reward(
            parse_request(group.prompt), response_text(group.responses[0]),
            has_eos=group.responses[0].finish_reason is FinishReason.STOP,
        )
        for group in groups
    ]  # fmt: skip
