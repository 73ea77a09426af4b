"""Small plots as SVG text for the report: one style, readable in light and dark, safe for colour-blind eyes.

Colours are left to the page: the SVG refers to the CSS variables `--ink`, `--grid` and `--series-1` … `--series-4`.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.axes import Axes

MAX_POINTS = 240  # more than a plot of this width can show: longer series are summarised in bins

# matplotlib knows no CSS variables, so it draws in colours that occur nowhere else, and these are replaced in the SVG
_INK, _GRID = "#010203", "#040506"
_SERIES = ("#070801", "#070802", "#070803", "#070804")
_VARIABLES = {_INK: "var(--ink)", _GRID: "var(--grid)"} | {
    colour: f"var(--series-{number})" for number, colour in enumerate(_SERIES, start=1)
}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: selectable, small, in the page's font
    "svg.hashsalt": "accord",  # the same numbers give the same bytes
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "font.size": 9.5,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.xmargin": 0.02,
    "axes.formatter.useoffset": False,
    "axes.formatter.limits": (-4, 5),
    "grid.color": _GRID,
    "grid.linewidth": 0.7,
    "xtick.color": _GRID,
    "ytick.color": _GRID,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "lines.linewidth": 1.7,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line of a plot; `low` and `high` draw a band around it. nan leaves a gap."""

    name: str
    steps: Sequence[float]
    values: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


def line_plot(
    series: Sequence[Series], *, label: str, y_label: str, x_label: str = "step", reference: float | None = None
) -> str:
    """Return an SVG of up to four lines over steps.

    `label` is what a screen reader says; `reference` draws a horizontal line (chance, zero). Lines of more than
    `MAX_POINTS` points are drawn as the means of bins, with a band from the bins' 10th to their 90th percentile.
    """
    from matplotlib.ticker import MaxNLocator

    assert 0 < len(series) <= len(_SERIES), f"a plot shows one to {len(_SERIES)} series, not {len(series)}"
    with _canvas(label) as (axes, result):
        if reference is not None:
            axes.axhline(reference, color=_INK, linewidth=0.8, linestyle=(0, (4, 3)), alpha=0.6)
        for line, colour, dashes in zip(series, _SERIES, ("-", "-", "--", ":"), strict=False):
            _draw_line(axes, line, colour, dashes)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        _draw_legend(axes, len(series))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    return result[0]


def histogram(samples: Mapping[str, ArrayLike], *, label: str, x_label: str, reference: float | None = None) -> str:
    """Return an SVG of up to four distributions over the same bins, as shares of each sample."""
    arrays = {name: _finite(values) for name, values in samples.items()}
    arrays = {name: values for name, values in arrays.items() if len(values)}
    assert 0 < len(arrays) <= len(_SERIES), f"a plot shows one to {len(_SERIES)} samples, not {len(arrays)}"
    everything = np.concatenate(list(arrays.values()))
    edges = np.histogram_bin_edges(everything, bins=min(40, max(8, int(np.sqrt(len(everything))))))
    with _canvas(label) as (axes, result):
        if reference is not None:
            axes.axvline(reference, color=_INK, linewidth=0.8, linestyle=(0, (4, 3)), alpha=0.6)
        for (name, values), colour in zip(arrays.items(), _SERIES, strict=False):
            shares = np.histogram(values, edges)[0] / len(values)
            axes.stairs(shares, edges, color=colour, linewidth=1.5, label=name)
            axes.stairs(shares, edges, color=colour, alpha=0.15, fill=True)
        axes.set_xlabel(x_label)
        axes.set_ylabel("share")
        _draw_legend(axes, len(arrays))
    return result[0]


@contextmanager
def _canvas(label: str) -> Iterator[tuple[Axes, list[str]]]:
    """Give axes to draw on and, after the block, the SVG in the list. No pyplot: nothing global is left behind."""
    import matplotlib
    from matplotlib.figure import Figure

    result: list[str] = []
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(5.2, 2.9), layout="constrained")
        yield figure.add_subplot(), result
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    result.append(_embed(buffer.getvalue(), label))


def _draw_line(axes: Axes, line: Series, colour: str, dashes: str) -> None:
    steps = np.asarray(line.steps, dtype=np.float64)
    values = np.asarray(line.values, dtype=np.float64)
    low = None if line.low is None else np.asarray(line.low, dtype=np.float64)
    high = None if line.high is None else np.asarray(line.high, dtype=np.float64)
    if len(steps) > MAX_POINTS and low is None:
        steps, values, low, high = _summarise(steps, values)
    few = {"marker": "o", "markersize": 3.5} if len(steps) <= 25 else {}
    axes.plot(steps, values, color=colour, linestyle=dashes, label=line.name, **few)
    if low is not None and high is not None:
        axes.fill_between(steps, low, high, color=colour, alpha=0.16, linewidth=0)


def _summarise(steps: NDArray[np.float64], values: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    """Return (steps, mean, 10th, 90th percentile) of consecutive bins; nan is left out, a bin of only nan dropped."""
    is_number = np.isfinite(values)
    bins = np.array_split(np.flatnonzero(is_number), MAX_POINTS // 4)
    bins = [members for members in bins if len(members)]
    rows = [(steps[m].mean(), values[m].mean(), *np.quantile(values[m], [0.1, 0.9])) for m in bins]
    return tuple(np.array(rows, dtype=np.float64).reshape(-1, 4).T)


def _draw_legend(axes: Axes, num_series: int) -> None:
    if num_series > 1:
        num_columns = num_series if num_series < 4 else 2  # four names do not fit beside each other
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=num_columns, borderaxespad=0.2, columnspacing=1.4)


def _finite(values: Any) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64).reshape(-1)
    return array[np.isfinite(array)]


def _embed(svg: str, label: str) -> str:
    """Cut what only a file of its own needs, hand the colours to the page and say what the picture shows."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<(metadata|style)\b.*?</\1>", "", svg, flags=re.DOTALL)
    # counted names (axes_1): a page with two plots would have each twice
    svg = re.sub(r' id="[a-zA-Z0-9.]+_[a-zA-Z0-9_.]+"', "", svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"', r"\1", svg, count=1)
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    return svg
