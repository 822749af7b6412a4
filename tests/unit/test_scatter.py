"""Scatter charts and intervals of panels."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from runtime.bench.charts import Series
from runtime.bench.panels import Group, panel_chart, svg_file
from runtime.bench.scatter import Cluster, Point, scatter_chart

SVG = "{http://www.w3.org/2000/svg}"


def draw(*clusters: Cluster) -> ElementTree.Element:
    return ElementTree.fromstring(svg_file(scatter_chart("Errors", clusters, x_unit="time, s", y_unit="errors, %")))


def texts(root: ElementTree.Element) -> list[str]:
    return [element.text or "" for element in root.iter(f"{SVG}text")]


def test_points_stand_in_proportion_to_both_axes() -> None:
    root = draw(Cluster("ours", [Point("low", 1, 0), Point("high", 2, 4), Point("middle", 1.5, 2)]))
    low, high, middle = (
        (float(circle.get("cx", "")), float(circle.get("cy", ""))) for circle in root.iter(f"{SVG}circle")
    )
    assert low[0] < high[0]
    assert low[1] > high[1]  # y grows downwards
    assert middle == pytest.approx(((low[0] + high[0]) / 2, (low[1] + high[1]) / 2), abs=0.11)
    assert {"low", "high", "middle", "time, s"} <= set(texts(root))


def test_clusters_differ_by_shape_and_have_a_legend() -> None:
    root = draw(Cluster("ours", [Point("a", 1, 1)]), Cluster("theirs", [Point("b", 2, 2)]))
    assert {"ours", "theirs", "a", "b"} <= set(texts(root))
    assert len(list(root.iter(f"{SVG}circle"))) == 2  # in the legend and in the chart
    tips = [element.text or "" for element in root.iter(f"{SVG}title")]
    assert "theirs, b: 2.00 time, s, 2.00 errors, %" in tips


def test_names_never_overlap() -> None:
    points = [Point(f"point {index}", 1.0, 1.0) for index in range(20)]
    root = draw(Cluster("ours", points))
    positions = [
        (text.get("x"), text.get("y")) for text in root.iter(f"{SVG}text") if (text.text or "").startswith("point")
    ]
    assert 2 <= len(positions) == len(set(positions)) < 20
    assert "point 19: 1.00, 1.00" in (next(root.iter(f"{SVG}desc")).text or "")  # left out of the drawing alone


@pytest.mark.parametrize("y", [-1.0, float("nan"), float("inf")])
def test_values_that_cannot_be_drawn_are_refused(y: float) -> None:
    with pytest.raises(ValueError, match="negative or not finite"):
        draw(Cluster("ours", [Point("a", 1, y)]))
    with pytest.raises(ValueError, match="no points"):
        draw(Cluster("ours", []))


def panel(series: Series) -> str:
    rows = [f"row {index}" for index in range(len(series.values))]
    return panel_chart("Errors", [Group("", rows)], [series], unit="%", columns=1)


def test_intervals_are_lines_in_the_scale_of_the_bars() -> None:
    chart = panel(Series("errors", [10.0, 20.0], [(5.0, 40.0), None]))
    widths = [float(width) for width in re.findall(r'<rect [^>]*width="([\d.]+)"', chart)]
    left = float(re.findall(r'<rect x="([\d.]+)"', chart)[0])
    ((start, end),) = re.findall(r'd="M([\d.]+) [\d.]+H([\d.]+)M', chart)
    assert widths[1] == pytest.approx(2 * widths[0], abs=0.2)
    assert float(start) - left == pytest.approx(0.5 * widths[0], abs=0.2)
    assert float(end) - left == pytest.approx(4 * widths[0], abs=0.3)


def test_wrong_intervals_are_refused() -> None:
    with pytest.raises(ValueError, match="1 intervals, not 2"):
        panel(Series("errors", [1.0, 2.0], [(0.5, 1.5)]))
    with pytest.raises(ValueError, match="negative"):
        panel(Series("errors", [1.0], [(-0.5, 1.5)]))
