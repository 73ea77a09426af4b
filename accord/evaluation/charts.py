"""The charts of the report: which metrics share a plot, and in words what to look for in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from accord.evaluation.plots import Series, histogram, line_plot
from accord.store import RunFolder

Records = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Chart:
    """One plot of the report: its metrics by legend, and in words what to look for."""

    title: str
    hint: str
    y_label: str
    metrics: Mapping[str, str]  # legend → metric name
    reference: float | None = None


CHARTS = (
    Chart("Loss", "Lower is better; held-out should fall too.", "loss", {"training": "loss", "held out": "eval/loss"}),
    Chart(
        "Accuracy",
        "Share of judged pairs that the policy orders as the judges did. Dashed: chance.",
        "share",
        {
            "training": "rewards/accuracies",
            "held out": "eval/rewards/accuracies",
            "ranking, held out": "eval/ranking_accuracy",
        },
        0.5,
    ),
    Chart(
        "Ranking accuracy",
        "Share of held-out pairs with π(chosen) > π(rejected): reached, of the reference, and of the optimum of DPO "
        "and RLHF (median of five β; band: all). A gap that stays says that the loss does not ask for the order.",
        "share",
        {
            "reached": "eval/ranking_accuracy",
            "reference": "eval/ranking_accuracy/reference",
            "idealised": "eval/ranking_accuracy/idealised",
        },
        0.5,
    ),
    Chart(
        "Margin",
        "How far the implicit reward sets chosen above rejected.",
        "implicit reward",
        {"training": "rewards/margins", "held out": "eval/rewards/margins"},
        0.0,
    ),
    Chart(
        "Implicit rewards",
        "Below zero: less likely than under the reference. Both falling means that probability leaves the data.",
        "implicit reward",
        {"chosen": "rewards/chosen", "rejected": "rewards/rejected"},
        0.0,
    ),
    Chart(
        "Implicit rewards, held out",
        "The same on pairs that are not trained on.",
        "implicit reward",
        {"chosen": "eval/rewards/chosen", "rejected": "eval/rewards/rejected"},
        0.0,
    ),
    Chart(
        "Log-probability",
        "Of whole responses; it also moves with the lengths in a batch.",
        "nats per response",
        {"chosen": "logps/chosen", "rejected": "logps/rejected"},
    ),
    Chart(
        "Divergence from the reference",
        "How far the policy has gone; gains bought at a large distance are less certain.",
        "KL in nats",
        {"training": "kl", "held out": "eval/kl"},
        0.0,
    ),
    Chart(
        "Length",
        "Of the responses in the data, and of those the policy wrote to held-out prompts.",
        "tokens",
        {"chosen": "length/chosen", "rejected": "length/rejected", "sampled, held out": "eval/length/sampled"},
    ),
    Chart(
        "Entropy",
        "Uncertainty per token. A fall to a fraction says that the policy is narrowing.",
        "nats per token",
        {
            "all": "statistics/entropy",
            "top-k": "statistics/topk_entropy",
            "all, held out": "eval/statistics/entropy",
            "top-k, held out": "eval/statistics/topk_entropy",
        },
    ),
    Chart(
        "Top-k indicators",
        "Probability of the k likeliest tokens together, and of the likeliest alone.",
        "probability",
        {
            "top-k mass": "statistics/topk_mass",
            "top-1": "statistics/top1",
            "top-k mass, held out": "eval/statistics/topk_mass",
            "top-1, held out": "eval/statistics/top1",
        },
    ),
    Chart(
        "Pairs that push the wrong way",
        "Share of held-out pairs whose own step would lower the chosen or raise the rejected response: their gradients "
        "are too alike. Many: add likelihood of the chosen, use per-token means, or drop the pairs with high CHES.",
        "share of pairs",
        {"chosen falls": "eval/gradients/chosen_falls", "rejected rises": "eval/gradients/rejected_rises"},
    ),
    Chart(
        "Likeness of gradients",
        "Mean cosine of the two responses' gradients: near 1, what raises one raises the other.",
        "cosine",
        {"chosen with rejected": "eval/gradients/cosine"},
        0.0,
    ),
    Chart("Gradient norm", "Before clipping; spikes point to single batches.", "norm", {"gradient norm": "grad_norm"}),
    Chart("Learning rate", "As scheduled.", "learning rate", {"learning rate": "lr"}),
    Chart("Speed", "Tokens scored and trained per second.", "tokens/s", {"tokens per second": "tokens_per_second"}),
)


ONLINE_CHARTS = (
    Chart(
        "Reward",
        "Of sampled responses, as they were judged. Held out: answers to prompts that are not trained on.",
        "reward",
        {"rollouts": "rollout/reward", "held out": "eval/reward"},
    ),
    Chart(
        "Score by another judge",
        "Of held-out answers, by evaluate.reward. Falling while the reward rises: the reward is being hacked.",
        "score",
        {"held out": "eval/score"},
    ),
    Chart(
        "Divergence from the reference",
        "How far the policy has gone; rewards bought at a large distance are less certain.",
        "KL in nats per response",
        {"samples": "log_ratio/response", "rollouts, before the update": "rollout/kl", "held out": "eval/kl"},
        0.0,
    ),
    Chart(
        "Length",
        "Of sampled responses. Growing with the reward: see whether length is what is paid for.",
        "tokens",
        {"rollouts": "rollout/length", "held out": "eval/length/sampled"},
    ),
    Chart(
        "Responses and prompts that teach little",
        "Cut by rollout.max_tokens; groups whose rewards are all equal; rewards that the judge did not know.",
        "share",
        {"cut": "rollout/truncated", "all equal": "rollout/all_equal", "unknown": "rollout/reward_unknown"},
        0.0,
    ),
    Chart(
        "Spread of rewards within a prompt",
        "Standard deviation over the responses of one prompt: at 0 there is nothing to tell them apart by.",
        "reward",
        {"rollouts": "rollout/reward_std_within"},
        0.0,
    ),
    Chart(
        "Sampler and trainer",
        "Mean |log π_sampler − log π_trainer| of the same tokens under the same weights; it should be rounding.",
        "nats per token",
        {"mean difference": "sampler/abs_diff"},
    ),
    Chart(
        "Loss",
        "Of the objective on fresh samples: it need not fall while rewards rise.",
        "loss",
        {"training": "loss", "held out": "eval/loss"},
    ),
    Chart("Weight of the KL", "Steered to rollout.kl_target.", "β", {"β": "rollout/kl_coef"}),
    Chart(
        "Demonstrations beside the rewards",
        "Their mean negative log-likelihood.",
        "nats per token",
        {"training": "pretraining/loss"},
    ),
)
"""What a run that samples shows first, in place of charts of the same title."""
MAX_SERIES = 4  # that one plot can tell apart
_OF_PAIRS = {
    "Accuracy", "Ranking accuracy", "Margin", "Implicit rewards", "Implicit rewards, held out", "Log-probability",
}  # fmt: skip
_PART = "rollout/reward/"  # before the name of each part of a reward


def charts_of(records: Records, *, reads_pairs: bool = True) -> list[Chart]:
    """Return the charts a run may have: those of rewards first where it sampled, its reward's parts among them.

    `reads_pairs` False: the objective reads advantages, so charts of judged pairs would say nothing.
    """
    if not any(name.startswith("rollout/") for record in records for name in record):
        return list(CHARTS)
    parts = sorted({name for record in records for name in record if name.startswith(_PART)})
    found = [ONLINE_CHARTS[0]]
    for start in range(0, len(parts), MAX_SERIES):
        names = {name.removeprefix(_PART): name for name in parts[start : start + MAX_SERIES]}
        title = "Parts of the reward" if len(names) > 1 else f"Part of the reward: {next(iter(names))}"
        found.append(Chart(title, "As it was recorded, before its weight.", "reward", names))
    left_out = {chart.title for chart in ONLINE_CHARTS} | (set() if reads_pairs else _OF_PAIRS)
    return [*found, *ONLINE_CHARTS[1:], *(chart for chart in CHARTS if chart.title not in left_out)]


def draw_charts(records: Records, *, reads_pairs: bool = True) -> list[tuple[str, str, str]]:
    """Return (title, hint, SVG) of every chart for which at least one metric was reported twice."""
    drawn = []
    for chart in charts_of(records, reads_pairs=reads_pairs):
        series = [_read_series(records, legend, name) for legend, name in chart.metrics.items()]
        series = [line for line in series if line is not None]
        if any(len(line.steps) >= 2 for line in series):
            label = f"{chart.title} over steps"
            svg = line_plot(series, label=label, y_label=chart.y_label, reference=chart.reference)
            drawn.append((chart.title, chart.hint, svg))
    return drawn


def draw_overoptimisation(records: Records) -> list[tuple[str, str, str]]:
    """Return a plot of the held-out answers' score against √KL with the fitted curve, and what it says of its peak.

    Nothing without at least three evaluations away from the start.
    """
    from accord.diagnostics.overoptimisation import fit_overoptimisation

    points = [
        (max(0.0, record["eval/kl"]) ** 0.5, record["eval/score"])
        for record in records
        if record.get("eval/kl") is not None and record.get("eval/score") is not None
    ]
    moved = sorted(point for point in points if point[0] > 0)
    if len({distance for distance, _ in moved}) < 3:
        return []
    start = points[0][1]
    fit = fit_overoptimisation([distance for distance, _ in moved], [score for _, score in moved], start=start)
    far = moved[-1][0]
    along = [far * place / 40 for place in range(41)]
    if fit.peak is None or fit.peak > far:
        says = "The fitted curve still rises where training ended."
    else:
        says = (
            f"The fitted curve peaks at √KL = {fit.peak:.2f}: beyond it the score falls, and an earlier step is better."
        )
    svg = line_plot(
        [
            Series(
                name="measured", steps=[0.0, *(d for d, _ in moved)], values=[start, *(score for _, score in moved)]
            ),
            Series(name="d (a − b log d)", steps=along, values=[fit.score(distance) for distance in along]),
        ],
        label="Score against distance",
        y_label="score",
        x_label="√KL from the reference",
    )
    return [("Score against distance", says, svg)]


def draw_margins(run: RunFolder) -> list[tuple[str, str, str]]:
    """Return a histogram of the held-out rows' `margins` (one list per row), first evaluation against last.

    At the start every margin may be exactly 0; a sample without spread is left out.
    """
    rows = run.read_rows("eval")
    if not {"step", "margins"} <= set(rows.column_names) or not len(rows):
        return []
    by_step: dict[int, list[float]] = {}
    for step, margins in zip(rows["step"].to_pylist(), rows["margins"].to_pylist(), strict=True):
        by_step.setdefault(step, []).extend(margin for margin in margins or [] if margin is not None)
    samples = {f"step {step}": by_step[step] for step in sorted({min(by_step), max(by_step)})}
    samples = {name: margins for name, margins in samples.items() if len(set(margins)) > 1}
    if not samples:
        return []
    svg = histogram(samples, label="Margins of single pairs", x_label="implicit-reward margin", reference=0.0)
    return [("Margins of single pairs", "Held-out pairs at the first and the last evaluation.", svg)]


def _read_series(records: Records, legend: str, name: str) -> Series | None:
    pairs = [(record["step"], record) for record in records if record.get(name) is not None]
    if not pairs:
        return None
    low = [record[f"{name}_low"] for _, record in pairs if record.get(f"{name}_low") is not None]
    high = [record[f"{name}_high"] for _, record in pairs if record.get(f"{name}_high") is not None]
    has_band = len(low) == len(high) == len(pairs)
    return Series(
        name=legend,
        steps=[step for step, _ in pairs],
        values=[record[name] for _, record in pairs],
        low=low if has_band else None,
        high=high if has_band else None,
    )
