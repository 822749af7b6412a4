"""Build a self-contained HTML page of sections, tables and tiles. :mod:`runtime.bench.charts` draws the charts.

Every function takes plain text and escapes it. Only values of :data:`Html`, which these functions return, are inserted
unchanged. The page loads no script, font or image, and a content security policy in its head forbids it.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import NewType

import msgspec

from runtime.bench.machine import Machine

Html = NewType("Html", str)

#: Colors of pages and charts as CSS variables, light and dark.
COLORS = """\
:root { color-scheme: light dark; --paper: #fff; --ink: #1c2024; --quiet: #5a636d; --rule: #d9dee3; --band: #f5f7f9;
  --s1: #0072b2; --s2: #e69f00; --s3: #009e73; --s4: #cc79a7; --s5: #d55e00; --s6: #56b4e9; --s7: #8a8f98;
  --t1: #fff; --t2: #1c2024; --t3: #1c2024; --t4: #1c2024; --t5: #1c2024; --t6: #1c2024; --t7: #1c2024; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171a; --ink: #e6e9ec; --quiet: #a0a9b2; --rule: #353c43;
  --band: #1c2126; --s1: #4ba3dc; --s3: #2fb58c; --s5: #e5793a; --t1: #14171a; --t2: #14171a; --t3: #14171a;
  --t4: #14171a; --t5: #14171a; --t6: #14171a; --t7: #14171a; } }
"""
#: Style of what charts draw.
CHART_STYLE = """\
svg .grid { stroke: var(--rule); stroke-width: 1; }
svg .axis { fill: var(--quiet); font-size: 12px; }
svg .bold { font-weight: 600; }
svg .halo { paint-order: stroke; stroke: var(--paper); stroke-width: 3px; stroke-linejoin: round; }
svg .line { fill: none; stroke-width: 2.25; stroke-linejoin: round; }
"""
_STYLE = (
    COLORS
    + """\
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif; }
main { max-width: 1000px; margin: 0 auto; padding: 40px 20px 64px; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 8px; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; line-height: 1.3; margin: 48px 0 8px; padding-top: 16px; border-top: 1px solid var(--rule); }
p { margin: 8px 0; max-width: 68ch; overflow-wrap: anywhere; }
.lead, .note, caption, figcaption, footer, dt { color: var(--quiet); }
.note, footer { font-size: .875rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(210px, 1fr)); gap: 12px; margin: 24px 0;
  padding: 0; list-style: none; }
.tiles li { padding: 14px 16px; background: var(--band); border-radius: 8px; }
.tiles span { display: block; font-size: .8125rem; color: var(--quiet); line-height: 1.35; }
.tiles strong { display: block; font-size: 1.5rem; line-height: 1.3; font-weight: 600; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 20px; margin: 12px 0; font-size: .9375rem; }
dd { margin: 0; overflow-wrap: anywhere; }
.wide { overflow-x: auto; margin: 16px 0; }
.wide:focus-visible { outline: 2px solid var(--s1); outline-offset: 2px; }
table { border-collapse: collapse; width: 100%; font-size: .875rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: 6px; }
th, td { padding: 5px 10px; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--rule); }
th:first-child, td:first-child { padding-left: 0; }
th:last-child, td:last-child { padding-right: 0; }
th { font-weight: 600; }
thead th { vertical-align: bottom; border-bottom: 2px solid var(--rule); white-space: normal; line-height: 1.3; }
th.text, td.text { text-align: left; }
th.prose { text-align: left; }
td.prose { text-align: left; white-space: normal; min-width: 16em; }
td small { display: block; color: var(--quiet); font-size: .75rem; }
figure { margin: 20px 0; max-width: 760px; }
figcaption { font-size: .9375rem; margin-bottom: 4px; }
figcaption strong { color: var(--ink); }
svg { display: block; width: 100%; min-width: 520px; height: auto; font-size: 13px; fill: var(--ink); }
"""
    + CHART_STYLE
    + """\
@media (max-width: 480px) { main { padding: 24px 14px 48px; }
  dl { grid-template-columns: 1fr; } dt { margin-top: 6px; }
  .tiles { grid-template-columns: repeat(auto-fit, minmax(140px, 1fr)); } }
@media print { .wide { overflow: visible; } svg { min-width: 0; } }
"""
)


class Cell(msgspec.Struct, frozen=True):
    """Cell of a table with a second line in smaller type, such as a value's range."""

    value: str
    note: str = ""


def escape(text: object) -> str:
    """Escape ``text`` for an element or a quoted attribute."""
    return html.escape(str(text), quote=True)


def join(*parts: Html) -> Html:
    """Join parts of a page, one after the other."""
    return Html("\n".join(parts))


def page(title: str, lead: str, *parts: Html, footer: str = "") -> Html:
    """Return the whole document.

    Args:
        title: title and heading.
        lead: paragraph below the heading.
        parts: content.
        footer: paragraph at the end; empty for none.
    """
    return Html(
        "<!doctype html>\n"
        '<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        f'<h1>{escape(title)}</h1>\n<p class="lead">{escape(lead)}</p>\n'
        + "\n".join(parts)
        + (f"\n<footer><p>{escape(footer)}</p></footer>" if footer else "")
        + "\n</main>\n</body>\n</html>\n"
    )


def section(heading: str, *parts: Html, lead: str = "") -> Html:
    """Return a section: heading, optional introduction ``lead``, content."""
    introduction = f"<p>{escape(lead)}</p>\n" if lead else ""
    return Html(f"<section>\n<h2>{escape(heading)}</h2>\n{introduction}" + "\n".join(parts) + "\n</section>")


def paragraph(text: str, *, note: bool = False) -> Html:
    """Return a paragraph, in smaller type if ``note``."""
    css = ' class="note"' if note else ""
    return Html(f"<p{css}>{escape(text)}</p>")


def tiles(values: Sequence[tuple[str, str, str]]) -> Html:
    """Return a grid of key figures in large type, each a tuple (label, value, note)."""
    items = (
        f"<li><span>{escape(label)}</span><strong>{escape(value)}</strong><span>{escape(note)}</span></li>"
        for label, value, note in values
    )
    return Html(f'<ul class="tiles">{"".join(items)}</ul>')


def definitions(entries: Mapping[str, str]) -> Html:
    """Return a list of names and their descriptions."""
    return Html("<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in entries.items()) + "</dl>")


def table(
    caption: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str | Cell]],
    *,
    text_columns: Sequence[int] = (0,),
    prose_columns: Sequence[int] = (),
) -> Html:
    """Return a table. The first cell of each row is its heading.

    Args:
        caption: content of the table.
        header: headings of the columns, with units.
        rows: cells of each row, as many as there are columns.
        text_columns: indices of columns with words, aligned left.
        prose_columns: indices of columns with sentences, whose lines may wrap.

    Raises:
        ValueError: a row has another number of cells than the header.
    """
    if any(len(row) != len(header) for row in rows):
        raise ValueError(f"a row of the table {caption!r} does not have {len(header)} cells")

    def css(column: int) -> str:
        if column in prose_columns:
            return ' class="prose"'
        return ' class="text"' if column in text_columns else ""

    head = "".join(f'<th scope="col"{css(column)}>{escape(text)}</th>' for column, text in enumerate(header))
    body = []
    for row in rows:
        first = f'<th scope="row"{css(0)}>{_cell(row[0])}</th>'
        body.append(first + "".join(f"<td{css(column)}>{_cell(row[column])}</td>" for column in range(1, len(row))))
    lines = "\n".join(f"<tr>{cells}</tr>" for cells in body)
    return Html(
        f'<div class="wide" tabindex="0" role="group" aria-label="{escape(caption)}"><table>'
        f"<caption>{escape(caption)}</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{lines}\n</tbody></table></div>"
    )


def _cell(cell: str | Cell) -> str:
    if isinstance(cell, str):
        return escape(cell)
    return escape(cell.value) + (f"<small>{escape(cell.note)}</small>" if cell.note else "")


def machine_box(machine: Machine) -> Html:
    """Return the section that describes the machine of the measurements."""
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    return section(
        "Machine",
        definitions(
            {
                "processor": f"{machine.processor} ({machine.architecture})",
                "cores used": str(machine.cores),
                "instructions": ", ".join(machine.instructions) or "unknown",
                "memory": size(machine.memory_bytes),
                "system": machine.system,
                "versions": versions,
                "measured": machine.date,
            }
        ),
    )


def number(value: float | None) -> str:
    """Format a number with three significant digits and no exponent; a dash for None and for values not finite."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    decimals = max(0, 2 - math.floor(math.log10(abs(float(f"{value:.3g}")))))
    return f"{value:,.{decimals}f}"


def seconds(value: float | None) -> str:
    """Format a duration in seconds, or in milliseconds below one second."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{number(value)} s" if value >= 0.9995 or value == 0 else f"{number(value * 1e3)} ms"


def size(value: float | None) -> str:
    """Format bytes in MB or GB (powers of ten)."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{number(value / 1e9)} GB" if value >= 0.9995e9 else f"{number(value / 1e6)} MB"
