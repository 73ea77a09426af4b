"""Plots are read back from their SVG: the right lines, in the page's colours, with nothing foreign in it."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from accord.evaluation.plots import MAX_POINTS, Series, histogram, line_plot


def read_lines(svg: str) -> list[tuple[str, list[tuple[float, float]]]]:
    """Return (colour, points in pixels, y upwards) of every drawn series line."""
    lines = []
    for data, style in re.findall(r'<path d="([^"]*)" clip-path="[^"]*" style="([^"]*)"', svg):
        colour = re.search(r"stroke: var\((--series-\d)\)", style)
        if colour and "fill: none" in style and "L" in data and "z" not in data:
            points = re.findall(r"[ML] ([-\d.]+) ([-\d.]+)", data)
            lines.append((colour[1], [(float(x), -float(y)) for x, y in points]))
    return lines  # the legend's strokes are not clipped to the axes, so they are not among them


def test_the_drawn_lines_are_the_given_numbers_up_to_the_axes() -> None:
    steps, falling, rising = [0, 1, 3, 7], [4.0, 2.0, 1.0, 0.5], [1.0, 2.0, 2.0, 5.0]
    series = [Series(name="a", steps=steps, values=falling), Series(name="b", steps=steps, values=rising)]
    lines = read_lines(line_plot(series, label="x", y_label="y"))
    assert [colour for colour, _ in lines] == ["--series-1", "--series-2"]
    pixels = np.array([point for _, points in lines for point in points])
    numbers = np.array([*zip(steps, falling, strict=True), *zip(steps, rising, strict=True)])
    for axis in (0, 1):  # one straight line maps numbers to pixels, the same for both series
        slope, offset = np.polyfit(numbers[:, axis], pixels[:, axis], 1)
        assert slope > 0
        np.testing.assert_allclose(slope * numbers[:, axis] + offset, pixels[:, axis], atol=0.01)


def test_the_svg_stands_alone_and_follows_the_pages_colours() -> None:
    svg = line_plot(
        [Series(name="<b>", steps=[0, 1, 2], values=[1, 2, 3], low=[0, 1, 2], high=[2, 3, 4])],
        label='loss "of" <script>',
        y_label="costs $ and $",
        reference=1.5,
    )
    root = ElementTree.fromstring(svg)
    assert root.get("role") == "img"
    assert root.get("aria-label") == 'loss "of" <script>'
    assert root.get("viewBox") is not None
    assert root.get("width") is None
    assert "costs $ and $" in svg
    assert not re.findall(r"#[0-9a-fA-F]{6}\b", svg)
    assert {"--ink", "--grid", "--series-1"} <= set(re.findall(r"var\((--[a-z0-9-]+)\)", svg))
    assert "http" not in re.sub(r'xmlns(:xlink)?="[^"]*"', "", svg)
    assert "<style" not in svg


def test_two_plots_share_no_counted_ids_and_the_same_numbers_give_the_same_bytes() -> None:
    first, second = (
        line_plot([Series(name="a", steps=[0, 1, 2], values=values)], label="x", y_label="y")
        for values in ([1.0, 2.0, 3.0], [3.0, 1.0, 2.0])
    )
    assert not {name for name in re.findall(r' id="([^"]*)"', first) if "_" in name}
    assert first != second
    assert first == line_plot([Series(name="a", steps=[0, 1, 2], values=[1.0, 2.0, 3.0])], label="x", y_label="y")


def test_a_long_series_is_drawn_as_means_of_bins() -> None:
    steps = np.arange(10_000)
    values = np.where(steps % 2 == 0, 1.0, 3.0)
    values[17] = np.nan
    svg = line_plot([Series(name="a", steps=steps, values=values)], label="x", y_label="y")
    ((_, points),) = read_lines(svg)
    assert len(points) == MAX_POINTS // 4
    heights = np.array([y for _, y in points])
    assert np.ptp(heights) < 0.02 * 150  # every bin's mean is 2 to within 0.02 of the axis
    assert len(svg) < 40_000


def test_a_gap_in_a_short_series_stays_a_gap() -> None:
    series = Series(name="a", steps=[0, 1, 2, 3, 4, 5, 6], values=[1, 2, 3, float("nan"), 1, 2, 3])
    svg = line_plot([series], label="x", y_label="y")
    ((_, points),) = read_lines(svg)
    assert len(points) == 6
    assert any(len(re.findall("M ", data)) == 2 for data in re.findall(r'<path d="([^"]*)"', svg))


def test_histogram_shares_are_of_each_sample_and_ignore_what_is_not_a_number() -> None:
    few, many = [0.0, 1.0, 1.0, float("nan")], [0.0, 1.0, 1.0] * 50
    svg = histogram({"few": few, "many": many, "none": []}, label="x", x_label="tokens")
    outlines = read_lines(svg)
    assert [colour for colour, _ in outlines] == ["--series-1", "--series-2"]
    np.testing.assert_allclose(outlines[0][1], outlines[1][1], atol=0.01)  # the same shares: 1/3 and 2/3
    assert ">few<" in svg
    assert ">none<" not in svg


@pytest.mark.parametrize("num_series", [0, 5])
def test_a_plot_has_one_to_four_series(num_series: int) -> None:
    with pytest.raises(AssertionError, match="one to 4"):
        line_plot([Series(name="a", steps=[0], values=[1])] * num_series, label="x", y_label="y")
