"""Over-optimisation on show: a reward model as the goal and nothing that holds the policy back, under the monitor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from accord.diagnostics.hacking import RULES, History, reward_hacking_warnings
from accord.diagnostics.overoptimisation import fit_overoptimisation
from accord.feedback.findings import Finding, Reward
from accord.feedback.reward_models import reward_model_reward
from accord.lab.gold import GoldReward, request_prompts
from accord.lab.journeys.parts import BASE, Tell, judged_pairs, learn_online, sample_groups, train_reward_model
from accord.lab.text_world import split_requests
from accord.policy.load import load_policy
from accord.records import Group

PAIRS_PER_REQUEST = 84
SAMPLES_PER_REQUEST = 32
WINDOW = 5  # lines whose mean is reported
FALL = 0.2
RLOO: dict[str, Any] = {
    # a weight of 1e-9 holds nothing back and has the KL measured
    "method": "rloo", "advantage.kl_coef": 1e-9, "rollout.num_responses": 4, "rollout.max_tokens": 48,
    "train.batch_size": 36, "train.lr": 2e-4, "train.max_steps": 90,
}  # fmt: skip
GOLD_PART = "rollout/reward/gold"


class Watched:
    """A proxy as the reward, and beside it what is recorded: the gold reward, and who is above the reference's best.

    The policy is paid by the proxy alone, and the monitor is not shown the gold reward.
    """

    name = "proxy"

    def __init__(self, proxy: Reward, samples: Sequence[Group]) -> None:
        """`samples` are the reference's answers to every prompt."""
        self._proxy, self._gold = proxy, GoldReward()
        self._best = {
            _question(group): max(one.score for one in row if one.score is not None)
            for group, row in zip(samples, proxy(samples), strict=True)
        }

    def __call__(self, groups: Sequence[Group]) -> list[list[Finding]]:
        """Score every response by the proxy."""
        return [
            [
                Finding(
                    score=paid.score,
                    reason=paid.reason,
                    parts={"gold": true.score, "above_reference": self._is_above(group, paid.score)},
                )
                for paid, true in zip(of_proxy, of_gold, strict=True)
            ]
            for group, of_proxy, of_gold in zip(groups, self._proxy(groups), self._gold(groups), strict=True)
        ]

    def _is_above(self, group: Group, score: float | None) -> float | None:
        return None if score is None else float(score > self._best[_question(group)])


def _question(group: Group) -> str:
    return group.prompt if isinstance(group.prompt, str) else group.prompt[-1].content


def overoptimise(out: Path, *, seed: int, tell: Tell) -> dict[str, Any]:
    """Raise a reward model's score with β = 0 and say where gold peaked, fell by 20 %, and when the monitor spoke.

    The control is the same run paid by the gold reward, where whatever the monitor says is a false alarm.
    """
    base = load_policy(BASE)
    requests, _ = split_requests()
    pairs = judged_pairs(base, requests, per_request=PAIRS_PER_REQUEST, seed=seed)
    samples = sample_groups(base, requests, num_responses=SAMPLES_PER_REQUEST, repeats=1, seed=seed + 2**16)
    _, accuracy = train_reward_model(pairs, out / "reward", seed=seed, samples=samples)
    tell(f"reward model of {len(pairs)} pairs: held-out accuracy {accuracy['rewards/accuracies']:.3f}")
    proxy = reward_model_reward(
        str(out / "reward" / "model"), centre="references", scale=True, policy_tokenizer=base.tokenizer
    )
    prompts = request_prompts(requests)
    found: dict[str, Any] = {"reward_model": accuracy, "history": {}}
    for name, reward, settings in (
        ("proxy, no KL", Watched(proxy, samples), {}),
        ("gold, no KL", Watched(GoldReward(), samples), {}),
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
    warned = {rule.__name__: _first_spoken(rule, seen) for rule in RULES}
    places = [place for place in warned.values() if place is not None]
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
        "warning": at(min(places, default=None)),
        "fallen": at(fallen),
        "end": at(len(gold) - 1),
        "by_rule": {name.removeprefix("warn_of_"): at(place) for name, place in warned.items() if place is not None},
        "said": reward_hacking_warnings(seen),
        "fitted_peak_kl": None if fit is None or fit.peak is None else fit.peak**2,
    }


def _first_spoken(rule: Callable[[History], str | None], history: History) -> int | None:
    """Return the place of the line after which a rule first fires, told only what was known by then."""
    return next((i for i in range(len(history)) if rule(history[: i + 1]) is not None), None)


def _smoothed(values: Sequence[float]) -> np.ndarray:
    """Return running means over the last five values."""
    return np.array([np.mean(values[max(0, i + 1 - WINDOW) : i + 1]) for i in range(len(values))])
