"""From judged groups to a report on their judges."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from accord.agreement.coefficients import Level, Weights, alpha_from_moments, alphas, beyond_chance, kappas
from accord.agreement.discretion import discretion_report
from accord.agreement.reading import PRINCIPLE, Answers, read_answers, tabulate
from accord.agreement.reliability import dawid_skene, repo_reliability
from accord.agreement.resampling import Resamples
from accord.agreement.values import AgreementReport, Coefficients, DiscretionReport, Estimate, JudgeReport
from accord.agreement.words import find_warnings
from accord.errors import ConfigError, DataError
from accord.records import Group

Floats = NDArray[np.float64]
MAX_VALUES = 60  # of a scale; beyond, only what needs no table of values is given
MAX_PAIRS = 2000  # of judges, for Cohen's κ
EM_RESAMPLES = 100
QUICK = 3.5  # robust standard deviations of log seconds


def measure_agreement(
    groups: Sequence[Group],
    *,
    gold: Sequence[Group] = (),
    num_resamples: int = 500,
    confidence: float = 0.95,
    seed: int = 0,
) -> AgreementReport:
    """Return what the judgements of groups say of their judges; intervals are bootstraps over prompts.

    Reads judge names and every Comparison, Ranking (as its pairs), Label and Rating; groups with the same prompt and
    responses are one item, in whatever order the responses stand; a judge's second answer to an item is a repetition.
    Known answers: the judgements of `gold` groups (matched by texts), `extra["gold"]` of a group (index of the better
    response), or what a collection recorded. Seconds: `extra["seconds"]`, a list beside the group's judgements (None
    where unknown) or judge → seconds, or what a collection recorded. Judges named "principle:NAME" are principles, not
    annotators. Raises DataError where nothing was judged.
    """
    if not 0 < confidence < 1 or num_resamples < 1:
        raise ConfigError(
            f"got confidence={confidence}, num_resamples={num_resamples} — expected (0, 1) and at least 1"
        )
    found = read_answers(groups, gold)
    if not found:
        raise DataError(
            f"got {len(groups)} groups without a comparison, ranking, label or rating — expected judged ones"
        )
    clusters: dict[Hashable, int] = {}
    for answer in found:
        clusters.setdefault(answer.cluster, len(clusters))
    names = sorted({answer.judge for answer in found if answer.judge})
    judges = {name: number for number, name in enumerate(names)}
    people = [name for name in names if not name.startswith(PRINCIPLE)]
    draws = Resamples(len(clusters), num_resamples=num_resamples, confidence=confidence, seed=seed)
    kinds = tabulate(found, judges, clusters)
    discretion = _discretion(kinds.get("preference"), judges, draws)
    is_person = np.array([not name.startswith(PRINCIPLE) for name in names] + [True])  # the last: nobody named
    kinds = {kind: answers.where(is_person[answers.judge]) for kind, answers in kinds.items()}
    kinds = {kind: answers for kind, answers in kinds.items() if len(answers)}
    if not kinds:
        raise DataError("got judgements of principles only — expected annotators beside them")
    reports = _judge_reports(kinds, {name: judges[name] for name in people}, draws)
    overall = _judge_report("all", list(kinds.values()), draws)
    report = AgreementReport(
        num_groups=len(groups),
        num_judges=len(people),
        num_judgements=sum(len(answers) for answers in kinds.values()),
        num_unnamed=sum(int((answers.judge < 0).sum()) for answers in kinds.values()),
        confidence=confidence,
        coefficients=tuple(_coefficients(answers, draws) for answers in kinds.values()),
        overall=overall,
        judges=reports,
        discretion=discretion,
    )
    return replace(report, warnings=find_warnings(report))


# Coefficients -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pairs:
    """Every two first answers of different judges to an item, in both orders, and how many judged the item."""

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    num_others: Floats  # judgements of the item beside one's own
    answers: Answers

    @property
    def cluster(self) -> NDArray[np.int64]:
        return self.answers.cluster[self.first]

    @property
    def is_same(self) -> Floats:
        return (self.answers.value[self.first] == self.answers.value[self.second]).astype(np.float64)


def _overlapping(answers: Answers) -> _Pairs:
    kept = answers.where(~answers.is_repeat & (answers.judge >= 0))
    order = np.argsort(kept.item, kind="stable")
    kept = kept.where(order)  # pyright: ignore[reportArgumentType]  # an order of rows is as good as a mask
    bounds = np.flatnonzero(np.diff(kept.item, prepend=-1, append=-1))
    first, second, others = [], [], []
    for start, end in pairwise(bounds):
        rows = np.arange(start, end)
        one, two = np.meshgrid(rows, rows, indexing="ij")
        apart = one != two
        first.append(one[apart])
        second.append(two[apart])
        others.append(np.full(int(apart.sum()), end - start - 1.0))
    empty = np.zeros(0, dtype=np.int64)
    return _Pairs(
        first=np.concatenate(first) if first else empty,
        second=np.concatenate(second) if second else empty,
        num_others=np.concatenate(others) if others else np.zeros(0),
        answers=kept,
    )


def _coefficients(answers: Answers, draws: Resamples) -> Coefficients:
    pairs = _overlapping(answers)
    kept, num_items = pairs.answers, len(np.unique(pairs.answers.item[pairs.first]))
    plain = Coefficients(
        kind=answers.kind,
        num_items=num_items,
        num_judges=len(np.unique(answers.judge[answers.judge >= 0])),
        num_judgements=len(answers),
    )
    if num_items == 0:
        return plain
    is_mirrored = answers.kind == "preference"
    estimate = partial(draws.estimate, num_items=num_items)
    values_V = _scale(kept.value, is_mirrored)
    levels_V = _scale(kept.level, is_mirrored)
    report = replace(
        plain,
        raw=draws.share(pairs.cluster, pairs.is_same),
        alpha_interval=estimate(_interval_alpha(pairs, draws, is_mirrored)),
    )
    if len(values_V) <= MAX_VALUES:
        alpha = partial(_alpha, pairs, draws=draws, is_mirrored=is_mirrored)
        report = replace(
            report,
            alpha_nominal=estimate(alpha(kept.value, values_V, level="nominal")),
            fleiss_kappa=estimate(_fleiss(pairs, values_V, draws, is_mirrored)),
            cohen_kappa=estimate(_cohen(pairs, kept.value, values_V, draws, is_mirrored, "none")),
        )
        if len(levels_V) <= MAX_VALUES:
            is_ratio = answers.kind.startswith("rating:") and bool((kept.value >= 0).all())
            report = replace(
                report,
                alpha_ordinal=estimate(alpha(kept.level, levels_V, level="ordinal")),
                alpha_ratio=estimate(alpha(kept.value, values_V, level="ratio")) if is_ratio else None,
                weighted_kappa=estimate(_cohen(pairs, kept.level, levels_V, draws, is_mirrored, "quadratic")),
            )
    return report


def _scale(values: Floats, is_mirrored: bool) -> Floats:
    return np.unique(np.concatenate([values, -values]) if is_mirrored else values) + 0.0


def _both_ways(places: Floats, scale_V: Floats, is_mirrored: bool) -> list[NDArray[np.int64]]:
    """Return places on a scale, for preferences also as seen from the other response."""
    own = [np.searchsorted(scale_V, places)]
    return [*own, np.searchsorted(scale_V, -places + 0.0)] if is_mirrored else own


def _alpha(
    pairs: _Pairs, column: Floats, scale_V: Floats, *, draws: Resamples, is_mirrored: bool, level: Level
) -> Floats:
    size = len(scale_V)
    ways = _both_ways(column, scale_V, is_mirrored)
    return draws.evaluate(
        np.concatenate([pairs.cluster] * len(ways)),
        np.concatenate([place[pairs.first] * size + place[pairs.second] for place in ways]),
        np.concatenate([1.0 / pairs.num_others] * len(ways)),
        num_features=size * size,
        statistic=lambda sums: alphas(sums.reshape(-1, size, size), scale_V, level=level),
    )


def _interval_alpha(pairs: _Pairs, draws: Resamples, is_mirrored: bool) -> Floats:
    """Return interval α of every draw. A mirrored scale has mean 0: Σx vanishes, everything else doubles."""
    level, share = pairs.answers.level, 1.0 / pairs.num_others
    own, other = level[pairs.first], level[pairs.second]
    amounts = [share, np.zeros_like(share) if is_mirrored else own * share, own**2 * share, (own - other) ** 2 * share]
    factor = 2.0 if is_mirrored else 1.0
    return draws.evaluate(
        np.concatenate([pairs.cluster] * 4),
        np.repeat(np.arange(4), len(share)),
        factor * np.concatenate(amounts),
        num_features=4,
        statistic=alpha_from_moments,
    )


def _fleiss(pairs: _Pairs, scale_V: Floats, draws: Resamples, is_mirrored: bool) -> Floats:
    """Return Fleiss' κ: its P̄ weighs items alike, its P_e pools all judgements of items with several."""
    size, share = len(scale_V), 1.0 / pairs.num_others
    ways = _both_ways(pairs.answers.value, scale_V, is_mirrored)
    per_item = share / (pairs.num_others + 1.0)  # 1 per item when summed over its pairs
    cluster = pairs.cluster

    def statistic(sums: Floats) -> Floats:
        return beyond_chance(sums[:, 0] / sums[:, 1], sums[:, 2:])

    return draws.evaluate(
        np.concatenate([cluster, cluster, *[cluster] * len(ways)]),
        np.concatenate([np.zeros_like(cluster), np.ones_like(cluster), *(place[pairs.first] + 2 for place in ways)]),
        np.concatenate([pairs.is_same * per_item, per_item, *[share] * len(ways)]),
        num_features=2 + size,
        statistic=statistic,
    )


def _cohen(
    pairs: _Pairs, column: Floats, scale_V: Floats, draws: Resamples, is_mirrored: bool, weights: Weights
) -> Floats:
    """Return the mean of Cohen's κ over pairs of judges, weighted by the items they share; NaN with too many pairs."""
    judge, size = pairs.answers.judge, len(scale_V)
    once = judge[pairs.first] < judge[pairs.second]
    first, second = pairs.first[once], pairs.second[once]
    _, number = np.unique(np.stack([judge[first], judge[second]]), axis=1, return_inverse=True)
    num_pairs = int(number.max()) + 1
    if num_pairs > MAX_PAIRS:
        return np.full(len(draws.counts_BC), math.nan)
    ways = _both_ways(column, scale_V, is_mirrored)

    def statistic(sums: Floats) -> Floats:
        table = sums.reshape(-1, num_pairs, size, size)
        shared, kappa = table.sum(axis=(-1, -2)), kappas(table, scale_V, weights=weights)
        known = np.isfinite(kappa)
        return (np.where(known, kappa, 0.0) * shared).sum(axis=1) / (shared * known).sum(axis=1)

    return draws.evaluate(
        np.concatenate([pairs.answers.cluster[first]] * len(ways)),
        np.concatenate([(number * size + place[first]) * size + place[second] for place in ways]),
        np.ones(len(first) * len(ways)),
        num_features=num_pairs * size * size,
        statistic=statistic,
    )


# Judges -------------------------------------------------------------------------------------------------------------


def _judge_reports(kinds: dict[str, Answers], judges: dict[str, int], draws: Resamples) -> tuple[JudgeReport, ...]:
    main = kinds.get("preference") or kinds.get("label")
    pairs = _overlapping(main) if main is not None else None
    skene, repo = _reliabilities(pairs, draws) if pairs is not None else ({}, {})
    limits = _usual_seconds(list(kinds.values()))
    reports = []
    for name, number in judges.items():
        own = [answers.where(answers.judge == number) for answers in kinds.values()]
        report = _judge_report(name, own, draws, limits)
        clusters = np.concatenate([answers.cluster for answers in kinds.values()])
        is_own = np.concatenate([(answers.judge == number).astype(np.float64) for answers in kinds.values()])
        agreement, kappa = _with_others(pairs, number, draws) if pairs is not None else (None, None)
        reports.append(
            replace(
                report, share=draws.share(clusters, is_own), agreement=agreement, kappa=kappa,
                dawid_skene=skene.get(number), repo=repo.get(number),
            )
        )  # fmt: skip
    return tuple(reports)


def _judge_report(
    name: str, kinds: Sequence[Answers], draws: Resamples, limits: tuple[float, float] | None = None
) -> JudgeReport:
    def joined(column: str) -> Any:
        return np.concatenate([getattr(answers, column) for answers in kinds])

    cluster, seconds = joined("cluster"), joined("seconds")
    low, high = limits or _usual_seconds(kinds)
    known = np.isfinite(seconds)
    repeats = [_repeated(answers) for answers in kinds]
    return JudgeReport(
        judge=name,
        num_judgements=len(cluster),
        gold_accuracy=draws.share(cluster, joined("is_right")),
        self_consistency=draws.share(
            np.concatenate([where for where, _ in repeats]), np.concatenate([same for _, same in repeats])
        ),
        chose_first=draws.share(cluster, joined("chose_first")),
        chose_longer=draws.share(cluster, joined("chose_longer")),
        median_seconds=draws.median(cluster, seconds),
        num_quick=int((seconds[known] < low).sum()) if known.any() else None,
        num_slow=int((seconds[known] > high).sum()) if known.any() else None,
    )


def _repeated(answers: Answers) -> tuple[NDArray[np.int64], Floats]:
    """Return of every repeated answer its prompt and whether it is what the judge said first."""
    first: dict[tuple[int, int], float] = {}
    clusters, same = [], []
    for row in range(len(answers)):
        key = (int(answers.item[row]), int(answers.judge[row]))
        if key[1] < 0:
            continue
        if key in first:
            clusters.append(int(answers.cluster[row]))
            same.append(float(first[key] == answers.value[row]))
        else:
            first[key] = float(answers.value[row])
    return np.array(clusters, dtype=np.int64), np.array(same, dtype=np.float64)


def _usual_seconds(kinds: Sequence[Answers]) -> tuple[float, float]:
    """Return the seconds below and above which a judgement is an outlier: median ± 3.5 robust deviations of the log."""
    seconds = np.concatenate([answers.seconds for answers in kinds])
    logs = np.log(seconds[np.isfinite(seconds)])
    if not len(logs):
        return 0.0, math.inf
    middle = float(np.median(logs))
    spread = 1.4826 * float(np.median(np.abs(logs - middle)))
    return math.exp(middle - QUICK * spread), math.exp(middle + QUICK * spread)


def _with_others(pairs: _Pairs, number: int, draws: Resamples) -> tuple[Estimate | None, Estimate | None]:
    """Return how often a judge and another say the same, and that beyond chance."""
    own = pairs.answers.judge[pairs.first] == number
    if not own.any():
        return None, None
    is_mirrored = pairs.answers.kind == "preference"
    scale_V = _scale(pairs.answers.value, is_mirrored)
    ways = _both_ways(pairs.answers.value, scale_V, is_mirrored)
    size, cluster = len(scale_V), pairs.cluster[own]
    same, num_items = pairs.is_same[own], len(np.unique(pairs.answers.item[pairs.first[own]]))

    def beyond(sums: Floats) -> Floats:
        mine, others = sums[:, 2 : 2 + size], sums[:, 2 + size :]
        chance = (mine * others).sum(axis=1) / (mine.sum(axis=1) * others.sum(axis=1))
        return np.stack([sums[:, 0] / sums[:, 1], (sums[:, 0] / sums[:, 1] - chance) / (1 - chance)], axis=1)

    sides = [place[rows[own]] + shift for place in ways for rows, shift in ((pairs.first, 2), (pairs.second, 2 + size))]
    both = draws.evaluate(
        np.concatenate([cluster, cluster, *[cluster] * len(sides)]),
        np.concatenate([np.zeros_like(cluster), np.ones_like(cluster), *sides]),
        np.concatenate([same, np.ones_like(same), *[np.ones_like(same)] * len(sides)]),
        num_features=2 + 2 * size,
        statistic=beyond,
    )
    return draws.estimate(both[:, 0], num_items=num_items), draws.estimate(both[:, 1], num_items=num_items)


def _reliabilities(pairs: _Pairs, draws: Resamples) -> tuple[dict[int, Estimate | None], dict[int, Estimate | None]]:
    """Return every judge's reliability by both EMs; nothing for two judges, whom votes cannot tell apart."""
    rows = np.unique(pairs.first)
    judges, judge_N = np.unique(pairs.answers.judge[rows], return_inverse=True)
    if len(judges) < 3:
        return {}, {}
    items, item_N = np.unique(pairs.answers.item[rows], return_inverse=True)
    is_mirrored = pairs.answers.kind == "preference"
    value_N = pairs.answers.value[rows]
    scale_V = _scale(value_N, is_mirrored)
    ways = _both_ways(value_N, scale_V, is_mirrored)
    item = np.concatenate([item_N + way * len(items) for way in range(len(ways))])
    judge, place = np.concatenate([judge_N] * len(ways)), np.concatenate(ways)
    cluster_I = np.zeros(len(items), dtype=np.int64)
    cluster_I[item_N] = pairs.answers.cluster[rows]
    vote_N = value_N if is_mirrored else 2 * value_N - 1
    decided = vote_N != 0
    fit, eta_J = None, None
    skene, repo = [], []
    for counts_C in draws.counts_BC[: EM_RESAMPLES + 1]:
        weight_I = counts_C[cluster_I].astype(np.float64)
        found = dawid_skene(
            item, judge, place, num_values=len(scale_V), weight_I=np.tile(weight_I, len(ways)), start=fit,
            max_steps=1000 if fit is None else 50, tolerance=1e-9 if fit is None else 1e-5,
        )  # fmt: skip
        moved_J = repo_reliability(
            item_N[decided], judge_N[decided], vote_N[decided], weight_I=weight_I, start_J=eta_J,
            max_steps=1000 if eta_J is None else 50,
        ) if decided.any() else np.full(len(judges), math.nan)  # fmt: skip
        fit, eta_J = fit or found, moved_J if eta_J is None else eta_J
        skene.append(found.reliability_J)
        repo.append(np.pad(moved_J, (0, len(judges) - len(moved_J)), constant_values=math.nan))
    per_judge = np.bincount(judge_N)
    return tuple(
        {
            int(name): draws.estimate(np.array([row[k] for row in found]), num_items=int(per_judge[k]))
            for k, name in enumerate(judges)
        }
        for found in (skene, repo)
    )  # pyright: ignore[reportReturnType]  # two of them


# Principles ---------------------------------------------------------------------------------------------------------


def _discretion(preferences: Answers | None, judges: dict[str, int], draws: Resamples) -> DiscretionReport | None:
    """Return the measures of discretion where principles judged beside annotators."""
    if preferences is None or not any(name.startswith(PRINCIPLE) for name in judges):
        return None
    first = preferences.where(~preferences.is_repeat & (preferences.judge >= 0))
    items, item_N = np.unique(first.item, return_inverse=True)
    cluster_I = np.zeros(len(items), dtype=np.int64)
    cluster_I[item_N] = first.cluster
    rows: dict[str, Floats] = {}
    for name, number in judges.items():
        mask = first.judge == number
        if mask.any():
            rows[name] = np.full(len(items), math.nan)
            rows[name][item_N[mask]] = first.value[mask]
    principles = {name.removeprefix(PRINCIPLE): row for name, row in rows.items() if name.startswith(PRINCIPLE)}
    annotators = {name: row for name, row in rows.items() if not name.startswith(PRINCIPLE)}
    return discretion_report(principles, annotators, resamples=draws, cluster=cluster_I) if principles else None
