"""Draw labeled points over two axes as inline SVG, for light and dark pages."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from runtime.bench.charts import (
    _WIDTH,
    _Box,
    _figure,
    _legend,
    _marker,
    _text,
    _text_width,
    round_ticks,
)
from runtime.bench.page import Html, number

_LABEL = 12.0  # size of the labels of points
_HEIGHT = 320.0
_BELOW = 18.0  # room for names below points whose y is 0


class Point(msgspec.Struct, frozen=True):
    """A point with a name that stands beside it."""

    name: str
    x: float
    y: float


class Cluster(msgspec.Struct, frozen=True):
    """Points of one color and one shape."""

    name: str
    points: list[Point]


def scatter_chart(title: str, clusters: Sequence[Cluster], *, x_unit: str, y_unit: str, note: str = "") -> Html:
    """Draw points with their names; both axes begin at 0.

    A name without room beside its point is left out. A tooltip and the description have all names and values.

    Args:
        title: title of the chart.
        clusters: points, at least one in all.
        x_unit: name and unit of x.
        y_unit: name and unit of y.
        note: sentence for the caption.

    Raises:
        ValueError: there is no point, or a value is negative or not finite.
    """
    points = [point for cluster in clusters for point in cluster.points]
    if not points:
        raise ValueError(f"{title!r} has no points")
    if any(not math.isfinite(value) or value < 0 for point in points for value in (point.x, point.y)):
        raise ValueError(f"{title!r} has a value that is negative or not finite")
    x_ticks, y_ticks = (round_ticks(max(getattr(point, axis) for point in points)) for axis in "xy")
    legend, top = _legend({index: cluster.name for index, cluster in enumerate(clusters)}, markers=True)
    top += 12
    left, right, bottom = 20 + max(_text_width(f"{tick:,g}") for tick in y_ticks), _WIDTH - 30, top + _HEIGHT

    def to_column(x: float) -> float:
        return left + (right - left) * x / x_ticks[-1]

    def to_row(y: float) -> float:
        return bottom - (bottom - top) * y / y_ticks[-1]

    parts = [legend]
    for tick in y_ticks:
        y = to_row(tick)
        parts.append(f'<line class="grid" x1="{left:.1f}" x2="{right:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(left - 6, y, f"{tick:,g}", "end", "axis"))
    for tick in x_ticks:
        x = to_column(tick)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top:.1f}" y2="{bottom:.1f}"/>')
        parts.append(_text(x, bottom + 14 + _BELOW, f"{tick:,g}", "middle", "axis"))
    parts.append(_text((left + right) / 2, bottom + 34 + _BELOW, x_unit, "middle", "axis"))
    taken = [_Box(x - 6, y - 6, x + 6, y + 6) for x, y in ((to_column(p.x), to_row(p.y)) for p in points)]
    area = _Box(left, top - 12, _WIDTH, bottom + 4 + _BELOW)
    labels = []
    for index, cluster in enumerate(clusters):
        for point in cluster.points:
            x, y = to_column(point.x), to_row(point.y)
            tip = f"{cluster.name}, {point.name}: {number(point.x)} {x_unit}, {number(point.y)} {y_unit}"
            parts.append(_marker(index, x, y, tip))
            labels.append(_label(point.name, x, y, taken, area))
    description = "; ".join(
        f"{cluster.name}, {point.name}: {number(point.x)}, {number(point.y)}"
        for cluster in clusters
        for point in cluster.points
    )
    return _figure(title, y_unit, note, description, bottom + 44 + _BELOW, [*parts, *labels])


def _label(text: str, x: float, y: float, taken: list[_Box], area: _Box) -> str:
    """Draw a point's name right, left, above or below of it, in ``area``, and add its box to ``taken``.

    Returns:
        The label; empty if all positions overlap a box of ``taken``.
    """
    width = _text_width(text, _LABEL)
    for dx, dy, anchor in (
        (9, 0, "start"),
        (-9, 0, "end"),
        (0, -14, "middle"),
        (0, 15, "middle"),
        (8, -12, "start"),
        (8, 12, "start"),
        (-8, -12, "end"),
        (-8, 12, "end"),
    ):
        start = x + dx - {"start": 0.0, "middle": width / 2, "end": width}[anchor]
        box = _Box(start, y + dy - 6, start + width, y + dy + 6)
        if area.contains(box) and not any(box.overlaps(other) for other in taken):
            taken.append(box)
            return _text(x + dx, y + dy, text, anchor, "halo", _LABEL)
    return ""
