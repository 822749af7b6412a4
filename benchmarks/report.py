"""Write stored results into the pages of ``docs``: tables between two marks, and a picture beside the page."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import (
    families_report,
    fidelity_report,
    quantization_report,
    serving_report,
    speed_report,
    streaming_report,
)
from benchmarks.stamp import stamp
from runtime.bench.page import Html
from runtime.bench.panels import svg_file
from runtime.host.files import write_atomically

BEGIN, END = "<!-- results: python -m benchmarks -->", "<!-- end of results -->"


@dataclass(frozen=True, slots=True)
class Page:
    """A page of ``docs`` by the stem of its files: ``NAME.md``, the results ``NAME.json``, the picture ``NAME.svg``.

    ``tables`` renders each part of the results as blocks of Markdown. ``chart`` draws the results of the part
    ``charted``; a page without it has no picture. The parts in ``own`` have commands of their own, which need real
    weights; a page may lack them.
    """

    name: str
    tables: Mapping[str, Callable[[dict[str, Any]], list[str]]]
    charted: str = ""
    chart: Callable[[dict[str, Any]], Html] | None = None
    own: frozenset[str] = frozenset()

    @property
    def results(self) -> str:
        """File name of the stored results."""
        return f"{self.name}.json"

    @property
    def text(self) -> str:
        """File name of the page."""
        return f"{self.name}.md"

    @property
    def picture(self) -> str:
        """File name of the picture."""
        return f"{self.name}.svg"


PAGES = {
    page.name: page
    for page in (
        Page("quantization", quantization_report.TABLES, "speed", quantization_report.chart),
        Page("speed", speed_report.TABLES, "speech", speed_report.chart),
        Page("streaming", streaming_report.TABLES, own=frozenset({"recordings"})),
        Page("serving", serving_report.TABLES),
        Page("families", families_report.TABLES, "families", families_report.chart),
        Page("fidelity", fidelity_report.TABLES, own=frozenset({"fidelity"})),
    )
}


def load(docs: Path, page: Page) -> dict[str, Any]:
    """Return the stored results of a page by part; empty if there are none."""
    path = docs / page.results
    stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return stored


def store(docs: Path, part: str, results: dict[str, Any]) -> None:
    """Store one part's results with machine, versions and date; other parts of the same page stay as they are."""
    page = next(page for page in PAGES.values() if part in page.tables)
    stored = load(docs, page)
    stored[part] = stamp() | {"results": results}
    write_atomically(docs / page.results, json.dumps(stored, indent=1).encode() + b"\n")


def render(page: Page, stored: Mapping[str, Any]) -> str:
    """Return the tables of a page; parts without results are left out."""
    return "\n\n".join(
        block for part, blocks in page.tables.items() if part in stored for block in blocks(stored[part])
    )


def draw(page: Page, stored: Mapping[str, Any]) -> str | None:
    """Return the picture of a page as SVG; None if it has none, or if its part has no results."""
    if page.chart is None or page.charted not in stored:
        return None
    return svg_file(page.chart(stored[page.charted]["results"]))


def insert(text: str, tables: str, path: Path) -> str:
    """Return the text of a page with ``tables`` between its two marks.

    Raises:
        ValueError: the page lacks a mark.
    """
    before, _, rest = text.partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise ValueError(f"{path}: lacks the marks {BEGIN} and {END} for the results")
    return f"{before}{BEGIN}\n\n{tables}\n\n{END}{after}"


def write(docs: Path) -> str:
    """Write tables and pictures of all pages that have results; return the tables.

    Raises:
        ValueError: a page lacks a mark; it is left as it was.
    """
    written = []
    for page in PAGES.values():
        stored = load(docs, page)
        if not stored:
            continue
        path = docs / page.text
        tables = render(page, stored)
        write_atomically(path, insert(path.read_text(encoding="utf-8"), tables, path).encode())
        written.append(tables)
        if picture := draw(page, stored):
            write_atomically(docs / page.picture, picture.encode())
    return "\n\n".join(written)
