"""Which negatives to contrast with: MC-PO's kernels against the usual heuristics, in the text world.

Candidates are sampled from the base, several to a request; an annotator of known taste ranks them; each arm trains the
same base on the same groups in the same order with its own choice of negatives, and is measured along the way on
requests nobody judged: gold reward, KL from the base, and the negative log-likelihood of held-out chosen responses.

Axes: R requests, A answers.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from accord.alignment import align
from accord.config import build_config
from accord.data import encode_groups
from accord.data.batching import chunked
from accord.data.tokens import TokenGroup
from accord.evaluation.intervals import Interval, mean_interval, paired_difference
from accord.lab.annotators import GOLD, SimulatedAnnotator
from accord.lab.base_model import base_model_folder
from accord.lab.measure import sample_answers
from accord.lab.text_world import (
    MAX_RESPONSE_TOKENS,
    Request,
    parse_request,
    render_request,
    split_requests,
    user_prompt,
)
from accord.policy.load import load_policy
from accord.policy.policy import Policy
from accord.records import Group, Ranking

HARD, FILTER = {"kernel": "hard_negative"}, {"false_negative_margin": 0.5}
ARMS: dict[str, dict[str, Any]] = {
    "random": {"kernel": "random"},
    "max_margin": {"kernel": "max_margin"},
    "hard_negative": HARD,
    "hard_negative, filter": HARD | FILTER,
    "cis": {"kernel": "cis"},
    "cis, filter": {"kernel": "cis"} | FILTER,
    "hard_negative, τ = 1/4": HARD | {"sampler_temperature": 0.25},
    "hard_negative, τ = 1/4, filter": HARD | FILTER | {"sampler_temperature": 0.25},
    "cis, divergence": {"kernel": "cis", "loss": "divergence"},
    "all (rnce)": {"kernel": "all"},
}
"""Name → settings of `mc_po`. random and max_margin with one negative are DPO on such pairs."""
BASELINE = "random"


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How large an experiment is."""

    groups_per_request: int = 8
    num_candidates: int = 8  # responses per group, the preferred one among them
    num_steps: int = 144
    batch_size: int = 16
    measure_every: int = 24
    answers_per_request: int = 32
    beta: float = 0.1
    lr: float = 1e-4


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a policy is worth after some steps."""

    step: int
    gold: float
    kl: float  # nats per answer: mean of log π − log π_base over the policy's own answers
    chosen_nll: float  # nats per token, of held-out chosen responses
    length: float  # tokens per answer


@dataclass(frozen=True, kw_only=True)
class Material:
    """What all arms of one seed share."""

    seed: int
    train: tuple[Group, ...]
    held_out: tuple[Group, ...]
    requests: tuple[Request, ...]  # held-out ones, to answer
    base: Policy = field(repr=False)


def prepare(seed: int, scale: Scale) -> Material:
    """Sample candidates for training and held-out requests from the base, and have them ranked."""
    base = load_policy(base_model_folder())
    train_requests, held_out = split_requests()
    parts = [
        rank_groups(sample_candidates(base, requests, scale, seed=seed * 1000 + offset), GOLD, seed=seed + offset)
        for requests, offset in ((train_requests, 0), (held_out, 500))
    ]
    return Material(seed=seed, train=tuple(parts[0]), held_out=tuple(parts[1]), requests=held_out, base=base)


def sample_candidates(policy: Policy, requests: Sequence[Request], scale: Scale, *, seed: int) -> list[Group]:
    """Sample the candidates of every request, as many groups of them as the scale says."""
    prompts = [user_prompt(render_request(request)) for request in requests]
    groups: list[Group] = []
    for repeat in range(scale.groups_per_request):
        groups += policy.sample(
            prompts, num_responses=scale.num_candidates, max_tokens=MAX_RESPONSE_TOKENS, seed=seed + repeat
        )
    return groups


def rank_groups(groups: Sequence[Group], annotator: SimulatedAnnotator, *, seed: int) -> list[Group]:
    """Have one annotator rank each group: Plackett–Luce on utility/temperature, whose pairs are Bradley–Terry."""
    rng = np.random.default_rng(seed)
    ranked = []
    for group in groups:
        request = parse_request(group.prompt)
        utility = np.array([annotator.utility(request, response) for response in group.responses])
        perturbed = utility / annotator.temperature + rng.gumbel(size=len(utility))
        order = tuple((int(index),) for index in np.argsort(-perturbed))
        ranked.append(replace(group, judgements=(*group.judgements, Ranking(order=order, judge=annotator.name))))
    return ranked


def run_arm(
    material: Material,
    settings: Mapping[str, Any],
    scale: Scale,
    *,
    show: Callable[[Checkpoint], None] = lambda checkpoint: None,
) -> list[Checkpoint]:
    """Train the base by `mc_po` with these settings, and measure it before, along the way and at the end."""
    policy = load_policy(base_model_folder())
    chosen = _chosen(material)
    found = [measure(policy, material, chosen, scale, step=0)]

    def progress(step: int, total: int, metrics: dict[str, float]) -> None:
        if step % scale.measure_every == 0 or step == total:
            found.append(measure(policy, material, chosen, scale, step=step))
            show(found[-1])

    with tempfile.TemporaryDirectory() as folder:
        config = build_config(
            {
                "model": str(base_model_folder()),
                "data": "in memory",
                "out": str(Path(folder) / "run"),
                "objective": "mc_po",
                "objective.beta": scale.beta,
                "data.eval_fraction": 0.0,
                "train.epochs": 1e6,
                "train.max_steps": scale.num_steps,
                "train.batch_size": scale.batch_size,
                "train.lr": scale.lr,
                "train.warmup": 0.1,
                "train.seed": material.seed,
                "train.write_rows": False,
                "train.checkpoint_every": scale.num_steps + 1,
                "evaluate.num_samples": 0,
                "reference.cache": None,
            }
            | {f"objective.{name}": value for name, value in settings.items()}
        )
        align(config, policy=policy, groups=material.train, progress=progress)
    return found


@torch.no_grad()
def measure(policy: Policy, material: Material, chosen: Sequence[TokenGroup], scale: Scale, *, step: int) -> Checkpoint:
    """Answer the held-out requests and score answers and held-out chosen responses; the same seed at every step."""
    was_training = policy.training
    answers = sample_answers(
        policy, material.requests, num_answers=scale.answers_per_request, seed=10**9 + 10**4 * material.seed
    )
    encoded = encode_groups(answers.groups, policy.tokenizer, on_identical="keep", on_empty="keep").groups
    log_ratios, nlls = [], []
    for part in chunked(encoded, 8192, layout=policy.layout):
        log_ratios += (policy.score(part).logps_PK - material.base.score(part).logps_PK).flatten().tolist()
    for part in chunked(chosen, 8192, layout=policy.layout):
        scores = policy.score(part)
        nlls += (-scores.logps_PK / scores.num_tokens_PK).flatten().tolist()
    policy.train(was_training)
    return Checkpoint(
        step=step,
        gold=float(answers.gold_RA.mean()),
        kl=float(np.mean(log_ratios)),
        chosen_nll=float(np.mean(nlls)),
        length=answers.num_tokens,
    )


def _chosen(material: Material) -> list[TokenGroup]:
    """Return each held-out group's first-ranked response alone, as tokens."""
    alone = []
    for group in material.held_out:
        ((best,), *_) = next(judgement.order for judgement in group.judgements if isinstance(judgement, Ranking))
        alone.append(replace(group, responses=(group.responses[best],), judgements=()))
    return list(encode_groups(alone, material.base.tokenizer, on_empty="keep").groups)


# What is read off ---------------------------------------------------------------------------------------------------


def at_kl(checkpoints: Sequence[Checkpoint], kl: float, name: str = "gold") -> float | None:
    """Return a measure where the run first reaches this KL, by linear interpolation; None where it never does."""
    for before, after in pairwise(checkpoints):
        if before.kl <= kl <= after.kl and before.kl < after.kl:
            share = (kl - before.kl) / (after.kl - before.kl)
            return (1 - share) * getattr(before, name) + share * getattr(after, name)
    return None


Runs = Mapping[str, Mapping[int, Sequence[Checkpoint]]]
"""Arm → seed → its checkpoints."""


def summarise(runs: Runs, kls: Sequence[float], *, baseline: str = BASELINE) -> list[dict[str, Any]]:
    """Return a row per arm: means over seeds with 95 % intervals at the last step, and at each KL.

    `gain` and `gain at KL` are differences from the baseline, paired by seed. A KL that not all seeds of an arm reach
    is None: a mean over some of them would compare different seeds.
    """
    rows = []
    for arm, by_seed in runs.items():
        ends = {seed: checkpoints[-1] for seed, checkpoints in by_seed.items()}
        row: dict[str, Any] = {"arm": arm, "seeds": len(ends)}
        for name in ("gold", "kl", "chosen_nll", "length"):
            row[name] = _interval([getattr(end, name) for end in ends.values()])
        row["best gold"] = _interval([max(c.gold for c in checkpoints) for checkpoints in by_seed.values()])
        row["gain"] = _difference({s: c.gold for s, c in ends.items()}, _ends(runs, baseline))
        for kl in kls:
            for name in ("gold", "chosen_nll"):
                here = {seed: at_kl(checkpoints, kl, name) for seed, checkpoints in by_seed.items()}
                row[f"{name} at KL {kl:g}"] = _interval(list(here.values()))
                if name == "gold":
                    there = {seed: at_kl(checkpoints, kl) for seed, checkpoints in runs.get(baseline, {}).items()}
                    row[f"gain at KL {kl:g}"] = _difference(here, there)
        rows.append(row)
    return rows


def _ends(runs: Runs, baseline: str) -> dict[int, float]:
    return {seed: checkpoints[-1].gold for seed, checkpoints in runs.get(baseline, {}).items()}


def _interval(values: Sequence[float | None]) -> Interval | None:
    known = [value for value in values if value is not None]
    return mean_interval(known) if len(known) == len(values) > 1 else None


def _difference(ours: Mapping[int, float | None], theirs: Mapping[int, float | None]) -> Interval | None:
    pairs = [(ours[seed], theirs.get(seed)) for seed in ours]
    known = [(a, b) for a, b in pairs if a is not None and b is not None]
    if len(known) < len(pairs) or len(known) < 2:
        return None
    return paired_difference([a for a, _ in known], [b for _, b in known])


def markdown_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Return the rows as a Markdown table; an interval is shown as mean ± half its width, None as a dash."""
    lines = [f"| {' | '.join(['negatives', *columns])} |", f"|{'---|' * (len(columns) + 1)}"]
    for row in rows:
        lines.append(f"| {' | '.join([row['arm'], *(_cell(row[column]) for column in columns)])} |")
    return "\n".join(lines)


def _cell(value: Interval | float | None) -> str:
    if value is None:
        return "—"
    if isinstance(value, Interval):
        return f"{value.value:.3f} ± {(value.high - value.low) / 2:.3f}"
    return f"{value:g}"
