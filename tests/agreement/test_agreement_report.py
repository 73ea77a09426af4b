"""The report as a whole: planted judges are recognised, the way a file is written is not, words are supported."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from accord.agreement import AgreementReport, measure_agreement
from accord.cli import main
from accord.data import load_groups, write_groups
from accord.errors import DataError
from accord.records import Comparison, Group, Judgement, Label, Ranking, Rating, Response


def collect(
    reliability: dict[str, float],
    *,
    num_items: int = 120,
    share: float = 1.0,
    seed: int = 0,
    longer: float = 0.5,
    seconds: dict[str, float] | None = None,
    shown_first: dict[str, float] | None = None,
) -> list[Group]:
    """Return groups of two responses judged by judges who are right so often; the right one is longer so often."""
    generator = np.random.default_rng(seed)
    groups = []
    for number in range(num_items):
        right = int(generator.integers(2))
        is_longer = generator.random() < longer
        texts = ["", ""]
        texts[right], texts[1 - right] = ("a" * 30, "b" * 20) if is_longer else ("a" * 20, "b" * 30)
        judgements, times = [], []
        for judge, chance in reliability.items():
            if generator.random() >= share:
                continue
            better = right if generator.random() < chance else 1 - right
            first = (shown_first or {}).get(judge, 0.5)
            order = (better, 1 - better) if generator.random() < first else (1 - better, better)
            judgements.append(
                Comparison(
                    better=better, worse=1 - better, judge=judge, shown_order=order, strength=float(number % 4 + 1)
                )
            )
            times.append(float((seconds or {}).get(judge, 10.0) * generator.lognormal(0, 0.2)))
        responses = tuple(Response(content=f"{number} {text}") for text in texts)
        extra = {"seconds": times, "gold": right}
        groups.append(Group(prompt=f"prompt {number}", responses=responses, judgements=tuple(judgements), extra=extra))
    return groups


def as_ranking(judgement: Judgement) -> Ranking:
    """Return a comparison as the ranking that says the same."""
    assert isinstance(judgement, Comparison)
    return Ranking(order=((judgement.better,), (judgement.worse,)), judge=judgement.judge)


GOOD = {"ann": 0.9, "bob": 0.85, "cem": 0.9, "dia": 0.8}


def values(report: AgreementReport) -> dict[str, float]:
    """Return the coefficients of the first kind."""
    row = report.coefficients[0]
    names = ("raw", "cohen_kappa", "weighted_kappa", "fleiss_kappa", "alpha_nominal", "alpha_ordinal", "alpha_interval")
    return {name: getattr(row, name).value for name in names}


def test_planted_judges_are_recognised() -> None:
    groups = collect({**GOOD, "coin": 0.5, "contrary": 0.1, "1": 0.9}, num_items=400)
    report = measure_agreement(groups, num_resamples=100)
    found = {judge.judge: judge for judge in report.judges}
    for name, planted in {**GOOD, "coin": 0.5, "contrary": 0.1}.items():
        for estimate in (found[name].gold_accuracy, found[name].repo, found[name].dawid_skene):
            assert estimate is not None
            assert estimate.value == pytest.approx(planted, abs=0.08)
            assert estimate.low <= estimate.value <= estimate.high
    words = "\n".join(report.warnings)
    assert "coin agrees with nobody: kappa" in words
    assert "contrary says the opposite of the others" in words
    assert "contrary is right on" in words
    assert not any(name in words for name in GOOD)


def test_good_judges_are_not_warned_of() -> None:
    groups = collect({"ann": 0.99, "bob": 0.97, "cem": 0.98}, num_items=200, seed=1)
    assert measure_agreement(groups, num_resamples=100).warnings == ()
    assert "nothing to warn of" in measure_agreement(groups, num_resamples=20).to_text()


def test_small_samples_support_no_warning() -> None:
    assert measure_agreement(collect({**GOOD, "contrary": 0.0}, num_items=6), num_resamples=50).warnings == ()


def test_a_judge_without_a_name_that_is_a_number_is_called_annotator() -> None:
    report = measure_agreement(collect({**GOOD, "7": 0.5}, num_items=300), num_resamples=100)
    assert any(warning.startswith("annotator 7 agrees with nobody") for warning in report.warnings)


def test_it_does_not_matter_how_the_file_is_written() -> None:
    """Responses in the other order, a row per judge, judgements as rankings: the same numbers."""
    groups = [replace(group, extra={}) for group in collect(GOOD, num_items=60, share=0.7)]
    swapped = [
        replace(
            group,
            responses=group.responses[::-1],
            judgements=tuple(replace(j, better=1 - j.better, worse=1 - j.worse) for j in group.judgements),  # type: ignore[attr-defined]  # comparisons
        )
        for group in groups
    ]  # fmt: skip
    apart = [replace(group, judgements=(judgement,)) for group in groups for judgement in group.judgements]
    expected = values(measure_agreement(groups, num_resamples=20))
    assert values(measure_agreement(swapped, num_resamples=20)) == pytest.approx(expected)
    assert values(measure_agreement(apart, num_resamples=20)) == pytest.approx(expected)
    ranked = [
        replace(group, judgements=tuple(as_ranking(judgement) for judgement in group.judgements)) for group in groups
    ]
    plain = values(measure_agreement(ranked, num_resamples=20))
    assert plain["raw"] == pytest.approx(expected["raw"])
    assert plain["alpha_nominal"] == pytest.approx(expected["alpha_nominal"])


def test_two_judges_by_hand() -> None:
    """Ten items, eight agreed. Seen from both sides chance is ½: κ = 2·0.8 − 1; α = 1 − (n − 1)/n · 0.2/0.5, n = 40."""
    groups = [
        Group(
            prompt=f"{n}", responses=(Response(content="x"), Response(content="yy")),
            judgements=(
                Comparison(better=0, worse=1, judge="ann"),
                Comparison(better=int(n < 2), worse=int(n >= 2), judge="bob"),
            ),
        )
        for n in range(10)
    ]  # fmt: skip
    found = values(measure_agreement(groups, num_resamples=20))
    assert found["raw"] == pytest.approx(0.8)
    assert [found["cohen_kappa"], found["fleiss_kappa"]] == pytest.approx([2 * 0.8 - 1] * 2)
    assert [found["alpha_nominal"], found["alpha_interval"]] == pytest.approx([1 - 39 / 40 * 0.2 / 0.5] * 2)


def test_intervals_are_those_of_a_share() -> None:
    """Standard error of a share of n = 400: √(p (1 − p)/n), within sampling error of the bootstrap."""
    groups = [
        Group(
            prompt=f"{n}", responses=(Response(content="x"), Response(content="yy")),
            judgements=(Comparison(better=int(n % 4 == 0), worse=int(n % 4 != 0), judge="ann"),),
        )
        for n in range(400)
    ]  # fmt: skip
    longer = measure_agreement(groups, num_resamples=1000).overall.chose_longer
    assert longer is not None
    assert longer.value == 0.25
    error = math.sqrt(0.25 * 0.75 / 400)
    assert longer.spread == pytest.approx(error, rel=0.15)
    assert longer.high - longer.low == pytest.approx(2 * 1.96 * error, rel=0.15)


def test_habits_are_said_in_words() -> None:
    groups = collect(
        {"ann": 0.95, "bob": 0.95, "cem": 0.95}, num_items=300, longer=0.7, seconds={"cem": 2.0},
        shown_first={"bob": 0.8},
    )  # fmt: skip
    report = measure_agreement(groups, num_resamples=200)
    words = "\n".join(report.warnings)
    longer = report.overall.chose_longer
    assert longer is not None
    assert f"chosen is the longer one in {100 * longer.value:.0f} %" in words
    assert "bob chose the one shown first in" in words
    assert "cem takes 2." in words
    assert "ann" not in words
    cem = next(judge for judge in report.judges if judge.judge == "cem")
    assert cem.median_seconds is not None
    assert cem.median_seconds.value == pytest.approx(2.0, rel=0.1)


def test_time_outliers() -> None:
    groups = collect({"ann": 0.9}, num_items=60)
    groups[3] = replace(groups[3], extra={"seconds": {"ann": 0.1}})
    groups[4] = replace(groups[4], extra={"collected": {"judgements": [{"seconds": 4000.0, "is_right": True}]}})
    (ann,) = measure_agreement(groups, num_resamples=20).judges
    assert (ann.num_quick, ann.num_slow) == (1, 1)
    assert ann.gold_accuracy is not None
    assert ann.gold_accuracy.num_items == 59, "58 by extra.gold, one as the collection recorded"


def test_one_judge_gave_most_votes() -> None:
    groups = collect({"ann": 0.9, "bob": 0.9}, num_items=40)
    alone = collect({"ann": 0.9}, num_items=200, seed=5)
    alone = [replace(group, prompt=f"other {n}") for n, group in enumerate(alone)]
    report = measure_agreement(groups + alone, num_resamples=100)
    assert f"ann gave {100 * 240 / 280:.0f} % of all votes" in report.warnings


def test_repeated_questions_measure_consistency_and_do_not_count_twice() -> None:
    pair = (Response(content="x"), Response(content="yy"))

    def vote(better: int, judge: str = "ann") -> Comparison:
        return Comparison(better=better, worse=1 - better, judge=judge)

    groups = [
        Group(prompt=f"{n}", responses=pair, judgements=(vote(0), vote(0, "bob"), vote(int(n < 3)))) for n in range(12)
    ]
    report = measure_agreement(groups, num_resamples=50)
    assert report.overall.self_consistency is not None
    assert (report.overall.self_consistency.value, report.overall.self_consistency.num_items) == (9 / 12, 12)
    assert report.coefficients[0].raw is not None
    assert report.coefficients[0].raw.value == 1.0, "only first answers are compared"


def test_gold_file_is_matched_by_texts() -> None:
    groups = [replace(group, extra={}) for group in collect({"ann": 0.75, "bob": 1.0}, num_items=80)]
    gold = [
        replace(group, responses=group.responses[::-1], judgements=(
            Comparison(better=1 - group.judgements[-1].better, worse=group.judgements[-1].better),))  # type: ignore[attr-defined]  # bob's, who is always right
        for group in groups[:50]
    ]  # fmt: skip
    report = measure_agreement(groups, gold=gold, num_resamples=50)
    ann, bob = report.judges
    assert bob.gold_accuracy is not None
    assert ann.gold_accuracy is not None
    assert (bob.gold_accuracy.value, bob.gold_accuracy.num_items) == (1.0, 50)
    right = sum(group.judgements[0].better == group.judgements[1].better for group in groups[:50])  # type: ignore[attr-defined]  # comparisons
    assert ann.gold_accuracy.value == pytest.approx(right / 50)


def test_labels_and_ratings_have_coefficients_of_their_own() -> None:
    generator = np.random.default_rng(0)
    groups = []
    for number in range(30):
        quality = float(generator.integers(1, 6))
        judgements = [Rating(response=0, value=quality, attribute="help", judge=name) for name in ("ann", "bob")]
        labels = [Label(response=0, is_desirable=quality > 2, judge=name) for name in ("ann", "bob")]
        groups.append(Group(prompt=f"{number}", responses=(Response(content="x"),), judgements=(*judgements, *labels)))
    report = measure_agreement(groups, num_resamples=20)
    assert [row.kind for row in report.coefficients] == ["rating:help", "label"]
    for row in report.coefficients:
        for name in ("raw", "cohen_kappa", "weighted_kappa", "fleiss_kappa", "alpha_nominal", "alpha_interval"):
            assert getattr(row, name).value == pytest.approx(1.0), (row.kind, name)
    assert report.coefficients[0].alpha_ratio is not None
    assert report.coefficients[1].alpha_ratio is None


def test_scales_with_many_values_keep_the_interval_alpha() -> None:
    generator = np.random.default_rng(0)
    quality = generator.normal(size=200)
    groups = [
        Group(
            prompt=f"{n}", responses=(Response(content="x"),),
            judgements=tuple(
                Rating(response=0, value=float(quality[n] + generator.normal()), judge=name) for name in ("ann", "bob")
            ),
        )
        for n in range(200)
    ]  # fmt: skip
    (row,) = measure_agreement(groups, num_resamples=50).coefficients
    assert row.alpha_nominal is None
    assert row.alpha_interval is not None
    assert row.alpha_interval.value == pytest.approx(0.5, abs=0.15), "half of the variance is shared: 1/(1 + 1)"


def test_principles_beside_annotators() -> None:
    groups = []
    for group in collect({"ann": 0.9, "bob": 0.6}, num_items=100):
        right = group.extra["gold"]
        principles = (
            Comparison(better=right, worse=1 - right, judge="principle:honest"),
            Comparison(better=0, worse=1, judge="principle:first"),
        )
        groups.append(replace(group, judgements=(*group.judgements, *principles)))
    report = measure_agreement(groups, num_resamples=50)
    assert [judge.judge for judge in report.judges] == ["ann", "bob"]
    assert report.discretion is not None
    assert report.discretion.annotators == ("ann", "bob")
    assert report.discretion.consensus.value + report.discretion.conflict.value == pytest.approx(1)
    assert report.discretion.supremacy["ann"]["honest"]["first"] > report.discretion.supremacy["bob"]["honest"]["first"]
    assert "against a consensus" in report.to_text()


def test_nothing_judged_and_nobody_named() -> None:
    with pytest.raises(DataError, match="without a comparison, ranking, label or rating"):
        measure_agreement([Group(prompt="x", responses=(Response(content="y"),))])
    unnamed = Group(
        prompt="x", responses=(Response(content="y"), Response(content="zz")),
        judgements=(Comparison(better=0, worse=1), Comparison(better=1, worse=0)),
    )  # fmt: skip
    report = measure_agreement([unnamed], num_resamples=10)
    assert report.coefficients[0].raw is None
    assert report.warnings == ("no judgement says who gave it: nothing can be said of agreement",)


def test_same_seed_same_report_and_json() -> None:
    groups = collect(GOOD, num_items=30)
    first, second = (measure_agreement(groups, num_resamples=30, seed=4) for _ in range(2))
    assert first == second
    as_json = json.loads(json.dumps(first.to_dict(), allow_nan=False))
    assert as_json["judges"][0]["judge"] == "ann"
    assert as_json["coefficients"][0]["raw"]["value"] == first.to_dict()["coefficients"][0]["raw"]["value"]


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    groups = collect({**GOOD, "coin": 0.5}, num_items=100)
    write_groups(tmp_path / "judged.jsonl", groups)
    read = load_groups(tmp_path / "judged.jsonl").groups
    assert [group.judgements for group in read] == [group.judgements for group in groups]
    assert main(["agreement", str(tmp_path / "judged.jsonl"), "--resamples", "50"]) == 0
    assert "coin agrees with nobody" in capsys.readouterr().out
    gold = [replace(g, judgements=(Comparison(better=g.extra["gold"], worse=1 - g.extra["gold"]),)) for g in groups]
    write_groups(tmp_path / "gold.jsonl", gold)
    arguments = ["agreement", str(tmp_path / "judged.jsonl"), "--gold", str(tmp_path / "gold.jsonl"), "--json"]
    assert main([*arguments, "--resamples", "20"]) == 0
    assert json.loads(capsys.readouterr().out)["judges"][0]["gold_accuracy"]["num_items"] == 100
    assert main(["agreement", str(tmp_path / "no.jsonl")]) == 1
