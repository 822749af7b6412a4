"""Write stored results into the pages of ``docs``: tables between two marks, and a picture beside the page."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
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
from benchmarks.real import report as real_report
from benchmarks.stamp import stamp
from runtime.bench.page import Html
from runtime.bench.panels import svg_file
from runtime.host.files import write_atomically

BEGIN, END = "<!-- results: python -m benchmarks -->", "<!-- end of results -->"


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture beside a page: ``chart`` draws the results of the part ``part``."""

    part: str
    chart: Callable[[dict[str, Any]], Html]


@dataclass(frozen=True, slots=True)
class Page:
    """A page of ``docs`` by the stem of its files: ``NAME.md`` and the results ``NAME.json``.

    ``tables`` renders each part of the results as blocks of Markdown. ``pictures`` are by file name. The parts in
    ``own`` have commands of their own, which need real weights; a page may lack them.
    """

    name: str
    tables: Mapping[str, Callable[[dict[str, Any]], list[str]]]
    pictures: Mapping[str, Picture] = field(default_factory=dict)
    own: frozenset[str] = frozenset()

    @property
    def results(self) -> str:
        """File name of the stored results."""
        return f"{self.name}.json"

    @property
    def text(self) -> str:
        """File name of the page."""
        return f"{self.name}.md"


PAGES = {
    page.name: page
    for page in (
        Page(
            "quantization",
            quantization_report.TABLES,
            {"quantization.svg": Picture("speed", quantization_report.chart)},
        ),
        Page("speed", speed_report.TABLES, {"speed.svg": Picture("speech", speed_report.chart)}),
        Page("streaming", streaming_report.TABLES, own=frozenset({"recordings"})),
        Page("serving", serving_report.TABLES),
        Page("families", families_report.TABLES, {"families.svg": Picture("families", families_report.chart)}),
        Page(
            "accuracy",
            real_report.TABLES,
            {
                "accuracy.svg": Picture("real", real_report.errors_chart),
                "accuracy-time.svg": Picture("real", real_report.time_chart),
            },
        ),
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


def draw(page: Page, stored: Mapping[str, Any]) -> dict[str, str]:
    """Return the pictures of a page as SVG by file name; those of parts without results are left out."""
    return {
        name: svg_file(picture.chart(stored[picture.part]["results"]))
        for name, picture in page.pictures.items()
        if picture.part in stored
    }


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
    return "\n\n".join(filter(None, (write_page(docs, page) for page in PAGES.values())))


def write_page(docs: Path, page: Page) -> str:
    """Write tables and pictures of one page, and return the tables; do nothing if it has no results.

    Raises:
        ValueError: the page lacks a mark; it is left as it was.
    """
    stored = load(docs, page)
    if not stored:
        return ""
    path = docs / page.text
    tables = render(page, stored)
    write_atomically(path, insert(path.read_text(encoding="utf-8"), tables, path).encode())
    for name, picture in draw(page, stored).items():
        write_atomically(docs / name, picture.encode())
    return tables
