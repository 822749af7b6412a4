"""Draw bar and line charts as inline SVG with direct labels, for light and dark pages.

Colors are variables of the page's style, taken from the palette of Okabe and Ito, which color-blind readers can tell
apart. Lines differ by their markers too.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence

import msgspec

from runtime.bench.page import Html, escape, number

_WIDTH = 640.0
_COLORS = 7
_FONT = 13.0


class Series(msgspec.Struct, frozen=True):
    """Bars of one color: a value for each category, None for no bar.

    ``intervals`` has a lower and an upper bound for each value, None for no interval; empty: there are none. Panels
    draw them.
    """

    name: str
    values: list[float | None]
    intervals: list[tuple[float, float] | None] = []


class Line(msgspec.Struct, frozen=True):
    """Points (x, y) in ascending order of x."""

    name: str
    points: list[tuple[float, float]]


def round_ticks(highest: float, about: int = 5) -> list[float]:
    """Return ticks from 0 in steps of 1, 2 or 5 times a power of ten.

    Args:
        highest: largest value; the last tick is at or above it.
        about: approximate number of steps.
    """
    if not math.isfinite(highest) or highest <= 0:
        return [0.0, 1.0]
    raw = highest / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    count = math.ceil(highest / step - 1e-9)
    return [float(f"{step * index:.6g}") for index in range(count + 1)]


def bar_chart(
    title: str,
    categories: Sequence[str],
    series: Sequence[Series],
    *,
    unit: str,
    stacked: bool = False,
    highest: float = 0.0,
    note: str = "",
) -> Html:
    """Draw horizontal bars, a group for each category.

    Args:
        title: title of the chart.
        categories: names of the groups, top to bottom.
        series: bars, each with as many values as there are categories, none negative.
        unit: unit of the values.
        stacked: stack the bars of a group, with their sum at the end, instead of drawing them side by side.
        highest: least end of the axis, so that several charts can have the same axis.
        note: sentence for the caption.

    Raises:
        ValueError: the number of values differs from that of the categories, or a value is negative.
    """
    if any(len(one.values) != len(categories) for one in series):
        raise ValueError(f"the series of {title!r} do not have {len(categories)} values each")
    bars = [Series(one.name, [_finite(value) for value in one.values]) for one in series]
    if any(value is not None and value < 0 for one in bars for value in one.values):
        raise ValueError(f"{title!r} has a negative value")
    columns = list(zip(*(one.values for one in bars), strict=True)) if bars else []
    sums = [sum(value or 0.0 for value in column) for column in columns]
    drawn = sums if stacked else [value or 0.0 for column in columns for value in column]
    ticks = round_ticks(max([highest, *drawn]))
    left = min(220.0, max([40.0, *(_text_width(name) for name in categories)]) + 10)
    right = _WIDTH - 64
    scale = (right - left) / ticks[-1]
    height = 24.0 if stacked else 18.0
    group = height * (1 if stacked else max(1, len(bars))) + 14
    legend, top = _legend(dict(enumerate(one.name for one in bars)), markers=False)
    bottom = top + group * len(categories)
    parts = [legend, _ticks_below(ticks, left, scale, top, bottom, unit)]
    for row, name in enumerate(categories):
        y = top + group * row + 7
        middle = y + (group - 14) / 2
        parts.append(_text(left - 10, middle, _fit(name, left - 9), "end"))
        if stacked:
            parts.append(_stack(bars, row, left, y, scale, height, unit))
            total = number(sums[row]) if any(one.values[row] is not None for one in bars) else "–"
            parts.append(_text(left + sums[row] * scale + 6, middle, total, css="halo"))
        else:
            parts.append(_bars(bars, row, left, y, scale, height, unit))
    description = "; ".join(
        f"{name}: " + ", ".join(f"{one.name} {number(one.values[row])}" for one in bars)
        for row, name in enumerate(categories)
    )
    return _figure(title, unit, note, description, bottom + 42, parts)


def line_chart(
    title: str,
    lines: Sequence[Line],
    *,
    x_unit: str,
    y_unit: str,
    log_x: bool = False,
    reference: tuple[str, float] | None = None,
    note: str = "",
) -> Html:
    """Draw lines over a common x axis with a tick at each measured x; the y axis begins at 0.

    Args:
        title: title of the chart.
        lines: lines with at least one point in all. A line without points reserves its color, so that the charts of a
            page have the same colors.
        x_unit: name and unit of x.
        y_unit: name and unit of y.
        log_x: use a logarithmic x axis, for lengths from seconds to hours; x must be positive.
        reference: name and y of a horizontal line to compare with.
        note: sentence for the caption.

    Raises:
        ValueError: there is no point, a y is negative, or an x is not positive on a logarithmic axis.
    """
    finite = [Line(line.name, [p for p in line.points if all(map(math.isfinite, p))]) for line in lines]
    positions = sorted({x for line in finite for x, _ in line.points})
    if not positions or (log_x and positions[0] <= 0):
        raise ValueError(f"{title!r} has no points that can be drawn")
    if any(y < 0 for line in finite for _, y in line.points):
        raise ValueError(f"{title!r} has a negative value")
    ticks = round_ticks(max([y for line in finite for _, y in line.points] + ([reference[1]] if reference else [])))
    legend, top = _legend({index: line.name for index, line in enumerate(finite) if line.points}, markers=True)
    top += 20  # room for the labels of the highest points
    left, right, bottom = 16 + max(_text_width(f"{tick:,g}") for tick in ticks), _WIDTH - 24, top + 240
    project = math.log if log_x else float
    low, span = project(positions[0]), project(positions[-1]) - project(positions[0])

    def to_column(x: float) -> float:
        return left + 24 + (right - left - 48) * ((project(x) - low) / span if span else 0.5)

    def to_row(y: float) -> float:
        return bottom - (bottom - top) * y / ticks[-1]

    parts = [legend]
    for tick in ticks:
        parts.append(
            f'<line class="grid" x1="{left:.1f}" x2="{right:.1f}" y1="{to_row(tick):.1f}" y2="{to_row(tick):.1f}"/>'
        )
        parts.append(_text(left - 6, to_row(tick), f"{tick:,g}", "end", "axis"))
    free = -math.inf
    for x in positions:
        half = _text_width(f"{x:,g}", 12) / 2
        if to_column(x) - half > free:  # leave out a label that would overlap the previous one
            parts.append(_text(to_column(x), bottom + 16, f"{x:,g}", "middle", "axis"))
            free = to_column(x) + half + 4
    parts.append(_text((left + right) / 2, bottom + 36, x_unit, "middle", "axis"))
    if reference:
        y = to_row(reference[1])
        parts.append(
            f'<line x1="{left:.1f}" x2="{right:.1f}" y1="{y:.1f}" y2="{y:.1f}" stroke="var(--quiet)" '
            'stroke-dasharray="5 4"/>'
        )
        parts.append(_text(right, y - 9, f"{reference[0]} {number(reference[1])}", "end", "axis halo"))
    taken: list[_Box] = []
    for index, line in enumerate(finite):
        points = [(to_column(x), to_row(y)) for x, y in line.points]
        if len(points) > 1:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            parts.append(f'<polyline class="line" points="{path}" stroke="{_color(index)}"/>')
        taken += [_Box(x - 5, y - 5, x + 5, y + 5) for x, y in points]
        parts += [
            _marker(index, x, y, f"{line.name}, {value_x:,g}: {number(value_y)} {y_unit}")
            for (x, y), (value_x, value_y) in zip(points, line.points, strict=True)
        ]
    area = _Box(left, top - 22, right + 20, bottom)
    for line in finite:
        parts += [label for x, y in line.points if (label := _label(number(y), to_column(x), to_row(y), taken, area))]
    description = "; ".join(
        f"{line.name}: " + ", ".join(f"{number(y)} at {x:,g}" for x, y in line.points) for line in finite
    )
    return _figure(title, y_unit, note, description, bottom + 46, parts)


class _Box(msgspec.Struct, frozen=True):
    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: _Box) -> bool:
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )

    def contains(self, other: _Box) -> bool:
        return (
            self.left <= other.left
            and other.right <= self.right
            and self.top <= other.top
            and other.bottom <= self.bottom
        )


def _label(text: str, x: float, y: float, taken: list[_Box], area: _Box) -> str:
    """Draw a point's value above or below it, in ``area``, and add its box to ``taken``.

    Returns:
        The label; empty if both positions overlap a box of ``taken`` (the page's tables have every value).
    """
    half = _text_width(text, 12) / 2
    for middle in (y - 14, y + 15):
        box = _Box(x - half, middle - 7, x + half, middle + 7)
        if area.contains(box) and not any(box.overlaps(other) for other in taken):
            taken.append(box)
            return _text(x, middle, text, "middle", "halo", 12)
    return ""


def _figure(
    title: str, unit: str, note: str, description: str, height: float, parts: Sequence[str], width: float = _WIDTH
) -> Html:
    caption = f"<strong>{escape(title)}</strong>, {escape(unit)}{f'. {escape(note)}' if note else ''}"
    return Html(
        f'<figure><figcaption>{caption}</figcaption><div class="wide" tabindex="0" role="group" '
        f'aria-label="{escape(title)}">\n<svg role="img" viewBox="0 0 {width:.0f} {height:.0f}">'
        f"<title>{escape(title)}, {escape(unit)}</title><desc>{escape(description)}</desc>\n"
        + "\n".join(filter(None, parts))
        + "\n</svg></div></figure>"
    )


def _stack(series: Sequence[Series], row: int, left: float, y: float, scale: float, height: float, unit: str) -> str:
    parts, x = [], left
    for index, one in enumerate(series):
        value = one.values[row]
        if not value:
            continue
        width = value * scale
        parts.append(_rect(index, x, y, width, height, f"{one.name}: {number(value)} {unit}"))
        if _text_width(number(value), 12) + 8 <= width:
            parts.append(
                _text(x + width / 2, y + height / 2, number(value), "middle", size=12, fill=_text_color(index))
            )
        x += width
    return "\n".join(parts)


def _bars(series: Sequence[Series], row: int, left: float, y: float, scale: float, height: float, unit: str) -> str:
    parts = []
    for index, one in enumerate(series):
        value, top = one.values[row], y + index * height
        if value is not None:
            parts.append(_rect(index, left, top + 1, value * scale, height - 2, f"{one.name}: {number(value)} {unit}"))
        parts.append(_text(left + (value or 0.0) * scale + 6, top + height / 2, number(value), size=12, css="halo"))
    return "\n".join(parts)


def _ticks_below(ticks: Sequence[float], left: float, scale: float, top: float, bottom: float, unit: str) -> str:
    parts = []
    for tick in ticks:
        x = left + tick * scale
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top:.1f}" y2="{bottom:.1f}"/>')
        parts.append(_text(x, bottom + 14, f"{tick:,g}", "middle", "axis"))
    parts.append(_text(left + ticks[-1] * scale / 2, bottom + 32, unit, "middle", "axis"))
    return "\n".join(parts)


def _legend(names: Mapping[int, str], *, markers: bool) -> tuple[str, float]:
    """Draw the legend, in as many lines as it needs; none for a single name.

    Args:
        names: names by the index of their color.
        markers: draw the markers of lines instead of squares.

    Returns:
        The legend, and y of its lower edge.
    """
    if len(names) < 2:
        return "", 10.0
    parts, x, y = [], 4.0, 14.0
    for index, name in names.items():
        label = _fit(name, 240)
        width = _text_width(label) + 38
        if x + width > _WIDTH and x > 4:
            x, y = 4.0, y + 22
        parts.append(_marker(index, x + 6, y, name) if markers else _rect(index, x, y - 6, 12, 12, name))
        parts.append(_text(x + 19, y, label))
        x += width
    return "\n".join(parts), y + 18


def _marker(index: int, x: float, y: float, title: str) -> str:
    """Draw a circle, square, diamond or triangle, by ``index``."""
    color = f'fill="{_color(index)}"'
    tooltip = f"<title>{escape(title)}</title>"
    match index % 4:
        case 0:
            return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" {color}>{tooltip}</circle>'
        case 1:
            return f'<rect x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8" {color}>{tooltip}</rect>'
        case 2:
            points = f"{x:.1f},{y - 6:.1f} {x + 6:.1f},{y:.1f} {x:.1f},{y + 6:.1f} {x - 6:.1f},{y:.1f}"
        case _:
            points = f"{x:.1f},{y - 5.5:.1f} {x + 5.5:.1f},{y + 4.5:.1f} {x - 5.5:.1f},{y + 4.5:.1f}"
    return f'<polygon points="{points}" {color}>{tooltip}</polygon>'


def _rect(index: int, x: float, y: float, width: float, height: float, title: str) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0.5):.1f}" height="{height:.1f}" fill="{_color(index)}">'
        f"<title>{escape(title)}</title></rect>"
    )


def _text(
    x: float, y: float, text: str, anchor: str = "start", css: str = "", size: float = _FONT, fill: str = ""
) -> str:
    """Draw text whose vertical center is at ``y``, about a third of its size above the base line."""
    attributes = f' class="{css}"' if css else ""
    attributes += f' font-size="{size:g}"' if size != _FONT else ""
    attributes += f' style="fill:{fill}"' if fill else ""
    return f'<text x="{x:.1f}" y="{y + size * 0.35:.1f}" text-anchor="{anchor}"{attributes}>{escape(text)}</text>'


def _color(index: int) -> str:
    return f"var(--s{index % _COLORS + 1})"


def _text_color(index: int) -> str:
    return f"var(--t{index % _COLORS + 1})"


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _text_width(text: str, size: float = _FONT) -> float:
    """Estimate the width of ``text`` in a sans-serif font, at or above the true one.

    A wide character counts 1 em, any other 0.64 em.
    """
    return size * sum(1.0 if unicodedata.east_asian_width(char) in "WF" else 0.64 for char in text)


def _fit(text: str, width: float) -> str:
    """Return ``text``, cut with an ellipsis if it is wider than ``width``."""
    if _text_width(text) <= width:
        return text
    while text and _text_width(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"
