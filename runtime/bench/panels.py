"""Panels of horizontal bars over the same rows, and charts as SVG files."""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from runtime.bench.charts import Series, _figure, _finite, _fit, _rect, _text, _text_width
from runtime.bench.page import CHART_STYLE, COLORS, Html, number

_ROW, _BAR, _HEADING, _GAP = 20.0, 14.0, 26.0, 18.0
_VALUE_WIDTH = 56.0  # room for a value behind its bar
_TITLE_HEIGHT = 40.0
_SVG = re.compile(r'<svg role="img" viewBox="0 0 (\d+) (\d+)">\s*<title>(.*?)</title>(.*)</svg>', re.DOTALL)


class Group(msgspec.Struct, frozen=True):
    """Rows of all panels under a common heading; an empty heading takes no room."""

    heading: str
    rows: list[str]


def panel_chart(
    title: str,
    groups: Sequence[Group],
    panels: Sequence[Series],
    *,
    unit: str,
    columns: int,
    colors: Sequence[int] = (),
    width: float = 960.0,
    missing: str = "–",
) -> Html:
    """Draw one panel of horizontal bars for each quantity, all with the same rows, each with its own scale.

    Args:
        title: what is compared.
        groups: the rows' names, top to bottom.
        panels: the quantities: name with unit, one value for each row, None where there is none, and intervals, which
            are drawn as lines with a cap at each end.
        unit: what the whole picture is about, for its caption.
        columns: panels side by side; further panels go below.
        colors: index of each row's color in the palette of the page; the first color by default.
        width: in pixels.
        missing: text in place of a missing bar.

    Raises:
        ValueError: a panel does not have one value for each row, or has intervals, but not one for each row.
        ValueError: a value or the lower bound of an interval is negative.
    """
    rows = [row for group in groups for row in group.rows]
    shown = [
        Series(panel.name, [_finite(value) for value in panel.values], panel.intervals or [None] * len(panel.values))
        for panel in panels
    ]
    for panel in shown:
        if len(panel.values) != len(rows):
            raise ValueError(f"the panel {panel.name!r} of {title!r} has {len(panel.values)} values, not {len(rows)}")
        if len(panel.intervals) != len(rows):
            raise ValueError(
                f"the panel {panel.name!r} of {title!r} has {len(panel.intervals)} intervals, not {len(rows)}"
            )
        lows = [interval[0] for interval in panel.intervals if interval]
        if any(value is not None and value < 0 for value in (*panel.values, *lows)):
            raise ValueError(f"the panel {panel.name!r} of {title!r} has a negative value")
    left = max([60.0, *(_text_width(row) for row in rows), *(_text_width(group.heading) for group in groups)]) + 12
    left = min(left, width / 3)
    step = (width - left) / columns
    height = 22.0 + sum(_ROW * len(group.rows) + (_HEADING if group.heading else 0.0) for group in groups)
    parts: list[str] = []
    for index, panel in enumerate(shown):
        block, column = divmod(index, columns)
        top, x = block * (height + _GAP), left + column * step
        parts.append(_text(x, top + 10, panel.name, css="bold"))
        ends = [
            max(value or 0.0, interval[1] if interval else 0.0)
            for value, interval in zip(panel.values, panel.intervals, strict=True)
        ]
        scale = (step - _GAP - _VALUE_WIDTH) / (max(ends, default=0.0) or 1.0)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top + 22:.1f}" y2="{top + height:.1f}"/>')
        y, row = top + 22, 0
        for group in groups:
            if group.heading:
                if not column:
                    parts.append(_text(0, y + _HEADING / 2 + 2, _fit(group.heading, left + step / 2), css="bold"))
                y += _HEADING
            for name in group.rows:
                value = panel.values[row]
                middle = y + _ROW / 2
                if not column:
                    parts.append(_text(left - 8, middle, _fit(name, left - 8), "end"))
                if value is not None:
                    tip = f"{name}, {panel.name}: {number(value)}"
                    color = colors[row] if colors else 0
                    parts.append(_rect(color, x, middle - _BAR / 2, value * scale, _BAR, tip))
                if interval := panel.intervals[row]:
                    parts.append(_whisker(x + interval[0] * scale, x + interval[1] * scale, middle))
                label = missing if value is None else number(value)
                parts.append(_text(x + ends[row] * scale + 6, middle, label, size=12, css="halo"))
                y, row = y + _ROW, row + 1
    description = "; ".join(
        f"{name}: " + ", ".join(f"{panel.name} {number(panel.values[row])}" for panel in shown)
        for row, name in enumerate(rows)
    )
    blocks = -(-len(shown) // columns)
    return _figure(title, unit, "", description, blocks * (height + _GAP), parts, width)


def _whisker(left: float, right: float, y: float) -> str:
    """Draw an interval as a line with a cap at each end."""
    path = f"M{left:.1f} {y:.1f}H{right:.1f}" + "".join(f"M{x:.1f} {y - 3:.1f}v6" for x in (left, right))
    return f'<path d="{path}" fill="none" style="stroke:var(--ink)" stroke-width="1.2"/>'


def svg_file(chart: Html) -> str:
    """Return the drawing of a chart as an SVG file with a title, its own colors and a background, light and dark.

    Raises:
        ValueError: ``chart`` has no drawing.
    """
    match = _SVG.search(chart)
    if not match:
        raise ValueError("the chart has no drawing")
    width, height, title, drawing = int(match[1]), int(match[2]), match[3], match[4]
    margin = 16
    box = (-margin, -_TITLE_HEIGHT, width + 2 * margin, height + _TITLE_HEIGHT + margin)
    size = f'width="{box[2]:.0f}" height="{box[3]:.0f}"'
    background = f'x="{box[0]:.0f}" y="{box[1]:.0f}" {size}'
    style = (
        f"{COLORS}{CHART_STYLE}"
        'svg { font: 13px system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif; '
        "fill: var(--ink); }\n"
        "svg .title { font-weight: 600; font-size: 16px; }\n"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" viewBox="{" ".join(f"{each:.0f}" for each in box)}" '
        f"{size}>\n<title>{title}</title>\n<style>\n{style}</style>\n"
        f'<rect {background} style="fill: var(--paper)"/>\n'
        f'<text class="title" x="0" y="-16">{title}</text>\n{drawing.strip()}\n</svg>\n'
    )
