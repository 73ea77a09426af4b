"""A report on agreement in words: warnings, each supported by its interval, and a page of text."""

from __future__ import annotations

from accord.agreement.values import AgreementReport, Coefficients, DiscretionReport, Estimate, JudgeReport

MIN_ITEMS = 10  # below, nobody is warned of
SLIGHT = 0.2  # of κ: "slight agreement" ends here (Landis and Koch 1977)
DOUBTFUL = 0.667  # of α: below, Krippendorff advises against even tentative conclusions
MIN_LEAN = 0.05  # of a share of choices, from one half
MAX_SHARE = 0.5  # of all votes by one judge
LOW_ACCURACY = 0.6  # on known answers; a coin has one half
LOW_CONSISTENCY = 0.7  # on repeated questions
HASTE = 1 / 3  # of the usual seconds


def find_warnings(report: AgreementReport) -> tuple[str, ...]:
    """Return what ought to be looked at, as sentences; nothing whose interval does not exclude the opposite.

    What is said of one judge among J must hold at the level 1 − (1 − confidence)/J, since J are looked at.
    """
    found = [*_of_all(report)]
    for judge in report.judges:
        found += _of_judge(judge, report)
    return tuple(found)


def _of_all(report: AgreementReport) -> list[str]:
    found = []
    for row in report.coefficients:
        alpha = row.alpha_interval if row.kind.startswith("rating:") else row.alpha_nominal
        if alpha is not None and _is_enough(alpha) and alpha.high < DOUBTFUL:
            verdict = "no better than chance" if alpha.high < SLIGHT else "too little to rest conclusions on"
            found.append(f"on {row.kind} judges agree {verdict}: Krippendorff's alpha is {_number(alpha)}")
    overall = report.overall
    longer, first = overall.chose_longer, overall.chose_first
    if longer is not None and _leans(longer):
        word = "longer" if longer.value > 0.5 else "shorter"
        share = _percent(longer.value if longer.value > 0.5 else 1 - longer.value)
        found.append(f"chosen is the {word} one in {share} {_interval(longer, mirrored=longer.value < 0.5)}")
    if first is not None and _leans(first):
        word = "first" if first.value > 0.5 else "last"
        share = _percent(first.value if first.value > 0.5 else 1 - first.value)
        found.append(f"chosen is the one shown {word} in {share} {_interval(first, mirrored=first.value < 0.5)}")
    if report.num_unnamed == report.num_judgements:
        found.append("no judgement says who gave it: nothing can be said of agreement")
    return found


def _of_judge(judge: JudgeReport, report: AgreementReport) -> list[str]:
    name, z, found = _named(judge.judge), _z(report), []
    kappa = judge.kappa
    if kappa is not None and _is_enough(kappa):
        if kappa.value + z * kappa.spread < 0:
            found.append(f"{name} says the opposite of the others: kappa is {_number(kappa)}")
        elif kappa.value + z * kappa.spread < SLIGHT and len(report.judges) > 2:
            found.append(f"{name} agrees with nobody: kappa with the others is {_number(kappa)}")
    if judge.share is not None and len(report.judges) > 1 and judge.share.low > MAX_SHARE:
        found.append(f"{name} gave {_percent(judge.share.value)} of all votes")
    right = judge.gold_accuracy
    if right is not None and _is_enough(right) and right.value + z * right.spread < LOW_ACCURACY:
        found.append(f"{name} is right on {_percent(right.value)} of the known answers {_interval(right)}")
    same = judge.self_consistency
    if same is not None and _is_enough(same) and same.value + z * same.spread < LOW_CONSISTENCY:
        found.append(f"{name} repeats the own answer in {_percent(same.value)} only {_interval(same)}")
    overall = report.overall
    if _leans_more(judge.chose_first, overall.chose_first, z):
        found.append(f"{name} chose the one shown {_side(judge.chose_first, 'first', 'last')}")
    if _leans_more(judge.chose_longer, overall.chose_longer, z):
        found.append(f"{name} chose the {_side(judge.chose_longer, 'longer one', 'shorter one')}")
    usual, own = report.overall.median_seconds, judge.median_seconds
    if usual is not None and own is not None and _is_enough(own) and own.value + z * own.spread < HASTE * usual.value:
        found.append(f"{name} takes {own.value:.1f} s where all take {usual.value:.1f} s")
    return found


def _is_enough(estimate: Estimate) -> bool:
    return estimate.num_items >= MIN_ITEMS


def _leans(share: Estimate) -> bool:
    is_away = share.low > 0.5 or share.high < 0.5
    return _is_enough(share) and is_away and abs(share.value - 0.5) >= MIN_LEAN


def _leans_more(share: Estimate | None, usual: Estimate | None, z: float) -> bool:
    """Return whether a judge leans further to one side than all together, by more than `MIN_LEAN`."""
    if share is None or usual is None or not _is_enough(share):
        return False
    apart = abs(share.value - usual.value) - z * share.spread
    return apart > MIN_LEAN and abs(share.value - 0.5) > abs(usual.value - 0.5)


def _side(share: Estimate | None, more: str, less: str) -> str:
    assert share is not None, "who leans has a share"
    return f"{more if share.value > 0.5 else less} in {_percent(max(share.value, 1 - share.value))}"


def _z(report: AgreementReport) -> float:
    from scipy.special import ndtri

    return float(ndtri(1 - (1 - report.confidence) / 2 / max(len(report.judges), 1)))


def _named(judge: str) -> str:
    return f"annotator {judge}" if judge.isdecimal() else judge


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _number(estimate: Estimate) -> str:
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


def _interval(share: Estimate, *, mirrored: bool = False) -> str:
    low, high = (1 - share.high, 1 - share.low) if mirrored else (share.low, share.high)
    return f"[{100 * low:.0f}, {100 * high:.0f}]"


# The page -----------------------------------------------------------------------------------------------------------

_COEFFICIENTS = {
    "raw": "raw agreement", "cohen_kappa": "Cohen's kappa", "weighted_kappa": "  weighted (quadratic)",
    "fleiss_kappa": "Fleiss' kappa", "alpha_nominal": "Krippendorff's alpha, nominal", "alpha_ordinal": "  ordinal",
    "alpha_interval": "  interval", "alpha_ratio": "  ratio",
}  # fmt: skip
_JUDGE_COLUMNS = {
    "share": "votes", "agreement": "agrees", "kappa": "kappa", "gold_accuracy": "gold", "self_consistency": "repeats",
    "chose_first": "first", "chose_longer": "longer", "median_seconds": "seconds", "dawid_skene": "D-S",
    "repo": "RE-PO",
}  # fmt: skip


def report_text(report: AgreementReport) -> str:
    """Return the report as plain text: warnings first, then agreement, judges and discretion."""
    lines = [
        f"{report.num_judgements} judgements by {report.num_judges} judges in {report.num_groups} groups"
        + (f" ({report.num_unnamed} without a name)" if report.num_unnamed else ""),
        "",
        *(f"! {warning}" for warning in report.warnings or ("nothing to warn of",)),
    ]
    for row in report.coefficients:
        lines += ["", *_coefficient_lines(row, report.confidence)]
    lines += ["", *_judge_lines(report)]
    if report.discretion is not None:
        lines += ["", *_discretion_lines(report.discretion)]
    return "\n".join(lines) + "\n"


def _coefficient_lines(row: Coefficients, confidence: float) -> list[str]:
    head = f"{row.kind}: {row.num_judgements} judgements, {row.num_items} items judged by several"
    if row.num_items == 0:
        return [head, "  agreement is unknown: no item was judged by two named judges"]
    head += f" (intervals: {100 * confidence:g} %)"
    shown = {name: getattr(row, key) for key, name in _COEFFICIENTS.items()}
    return [head, *(f"  {name:<32}{_number(value)}" for name, value in shown.items() if value is not None)]


def _judge_lines(report: AgreementReport) -> list[str]:
    rows = [report.overall, *report.judges]
    columns = [key for key in _JUDGE_COLUMNS if any(getattr(row, key) is not None for row in rows)]
    width = max(5, *(len(row.judge) for row in rows))
    head = f"{'judge':<{width}}  {'given':>6}" + "".join(f"  {_JUDGE_COLUMNS[key]:>18}" for key in columns)
    lines = [head]
    for row in rows:
        cells = (getattr(row, key) for key in columns)
        shown = "".join(f"  {'–' if cell is None else _number(cell):>18}" for cell in cells)
        lines.append(f"{row.judge:<{width}}  {row.num_judgements:>6}{shown}")
    outliers = [(row.judge, row.num_quick, row.num_slow) for row in report.judges if row.num_quick or row.num_slow]
    lines += [f"  {name}: {quick or 0} unusually quick, {slow or 0} unusually slow" for name, quick, slow in outliers]
    return lines


def _discretion_lines(found: DiscretionReport) -> list[str]:
    lines = [
        f"principles: {', '.join(found.principles)}",
        f"  they agree in {_percent(found.consensus.value)}, contradict in {_percent(found.conflict.value)}, none "
        f"applies in {_percent(found.indifference.value)}",
    ]
    for name in found.annotators:
        against = found.arbitrariness[name]
        shown = "unknown" if against is None else _number(against)
        ranked = sorted(
            (item for item in found.priority[name].items() if item[1] == item[1]), key=lambda item: -item[1]
        )  # NaN, which no contest decided, is unequal to itself
        order = " > ".join(f"{principle} ({weight:.2f})" for principle, weight in ranked) or "unknown"
        lines.append(f"  {name}: against a consensus {shown}; priorities {order}")
    for one, others in found.discrepancy.items():
        for other, value in others.items():
            if one < other and value is not None:
                lines.append(f"  {one} and {other}: discrepancy of priorities {_number(value)}")
    return lines
