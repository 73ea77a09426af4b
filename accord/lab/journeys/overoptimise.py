"""Over-optimisation on show: a reward model as the goal and nothing that holds the policy back, under the monitor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from accord.diagnostics.hacking import reward_hacking_warnings
from accord.diagnostics.overoptimisation import fit_overoptimisation
from accord.feedback.findings import Finding, Reward
from accord.feedback.reward_models import reward_model_reward
from accord.lab.gold import GoldReward, request_prompts
from accord.lab.journeys.parts import BASE, Tell, judged_pairs, learn_online, sample_groups, train_reward_model
from accord.lab.text_world import split_requests
from accord.policy.load import load_policy
from accord.records import Group

PAIRS_PER_REQUEST = 84
WINDOW = 5
FALL = 0.2
RLOO: dict[str, Any] = {
    # a weight of 1e-9 holds nothing back and has the KL measured
    "method": "rloo", "advantage.kl_coef": 1e-9, "rollout.num_responses": 4, "rollout.max_tokens": 48,
    "train.batch_size": 36, "train.lr": 2e-4, "train.max_steps": 90,
}  # fmt: skip
GOLD_PART = "rollout/reward/gold"


class Watched:
    """A proxy as the reward, with the gold reward recorded beside it: seen by who reports, not by policy or monitor."""

    name = "proxy"

    def __init__(self, proxy: Reward) -> None:
        """`proxy` is what the policy is paid by."""
        self._proxy, self._gold = proxy, GoldReward()

    def __call__(self, groups: Sequence[Group]) -> list[list[Finding]]:
        """Score every response by the proxy."""
        return [
            [
                Finding(score=paid.score, reason=paid.reason, parts={"gold": true.score})
                for paid, true in zip(of_proxy, of_gold, strict=True)
            ]
            for of_proxy, of_gold in zip(self._proxy(groups), self._gold(groups), strict=True)
        ]


def overoptimise(out: Path, *, seed: int, tell: Tell) -> dict[str, Any]:
    """Raise a reward model's score with β = 0 and say where gold peaked, fell by 20 %, and when the monitor spoke."""
    base = load_policy(BASE)
    requests, _ = split_requests()
    pairs = judged_pairs(base, requests, per_request=PAIRS_PER_REQUEST, seed=seed)
    samples = sample_groups(base, requests, num_responses=16, repeats=1, seed=seed + 2**16)
    _, accuracy = train_reward_model(pairs, out / "reward", seed=seed, samples=samples)
    tell(f"reward model of {len(pairs)} pairs: held-out accuracy {accuracy['rewards/accuracies']:.3f}")
    proxy = reward_model_reward(
        str(out / "reward" / "model"), centre="references", scale=True, policy_tokenizer=base.tokenizer
    )
    prompts = request_prompts(requests)
    found: dict[str, Any] = {"reward_model": accuracy, "history": {}}
    for name, reward, settings in (
        ("proxy, no KL", Watched(proxy), {}),
        ("proxy, KL 0.1", Watched(proxy), {"advantage.kl_coef": 0.1}),
        ("gold, no KL", Watched(GoldReward()), {}),
    ):
        history: list[dict[str, float]] = []
        learn_online(
            out / name.replace(", ", "-").replace(" ", "-"), prompts, reward, seed=seed, policy=load_policy(BASE),
            progress=lambda step, total, metrics, lines=history: lines.append({"step": step, **metrics}),
            **(RLOO | settings),
        )  # fmt: skip
        found[name] = account(history)
        found["history"][name] = [
            {key: line[key] for key in line if key == "step" or key.startswith("rollout/")} for line in history
        ]
        tell(f"{name}: {found[name]}")
    return found


def account(history: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Return where gold peaked, where it had fallen by 20 % of its peak, and where the monitor first spoke."""
    steps = [int(line["step"]) for line in history]
    gold, kl, proxy = (
        _smoothed([line[key] for line in history]) for key in (GOLD_PART, "rollout/kl", "rollout/reward")
    )
    peak = int(np.argmax(gold))
    fallen = next((i for i in range(peak, len(gold)) if gold[i] < (1 - FALL) * gold[peak]), None)
    seen = [{key: value for key, value in line.items() if key != GOLD_PART} for line in history]
    warned, sentences = next(
        ((i, said) for i in range(len(seen)) if (said := reward_hacking_warnings(seen[: i + 1]))), (None, [])
    )
    moved = [i for i in range(len(kl)) if 0 < kl[i] <= 10]
    fit = fit_overoptimisation(
        np.sqrt([kl[i] for i in moved]), [gold[i] for i in moved], start=float(history[0][GOLD_PART])
    ) if len(moved) > 3 else None  # fmt: skip

    def at(place: int | None) -> dict[str, float] | None:
        if place is None:
            return None
        return {"step": steps[place], "kl": float(kl[place]), "gold": float(gold[place]), "proxy": float(proxy[place])}

    return {
        "start": at(0),
        "peak": at(peak),
        "warning": at(warned),
        "fallen": at(fallen),
        "end": at(len(gold) - 1),
        "said": sentences,
        "fitted_peak_kl": None if fit is None or fit.peak is None else fit.peak**2,
    }


def _smoothed(values: Sequence[float]) -> np.ndarray:
    """Return running means over the last five values."""
    return np.array([np.mean(values[max(0, i + 1 - WINDOW) : i + 1]) for i in range(len(values))])
