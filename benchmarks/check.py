"""Verify that the pages of ``docs`` match their stored results, and that the results keep their bounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.bounds import BOUNDS
from benchmarks.report import BEGIN, END, PAGES, Page, draw, insert, load, render

Bounds = Callable[[dict[str, Any]], Iterator[str]]


def violations(docs: Path) -> list[str]:
    """Return one line for each difference between a page and its results, and for each violated bound."""
    return [line for page in PAGES.values() for line in page_violations(docs, page, BOUNDS[page.name])]


def page_violations(docs: Path, page: Page, bounds: Bounds) -> Iterator[str]:
    """Yield the violations of one page: missing results, text or picture out of date, violated bounds."""
    path = docs / page.text
    text = path.read_text(encoding="utf-8")
    stored = load(docs, page)
    if not stored:
        if text.partition(BEGIN)[2].partition(END)[0].strip():
            yield f"{path}: has figures, but there is no {page.results}"
        return
    missing = [part for part in page.tables if part not in stored and part not in page.own]
    if missing:
        yield f"{docs / page.results}: lacks the results of {', '.join(missing)}"
        return
    renew = "run: python -m benchmarks --only report"
    try:
        if insert(text, render(page, stored), path) != text:
            yield f"{path}: does not match {page.results}; {renew}"
        for name, drawn in draw(page, stored).items():
            picture = docs / name
            if not picture.exists() or picture.read_text(encoding="utf-8") != drawn:
                yield f"{picture}: does not match {page.results}; {renew}"
        for line in bounds({part: stored[part]["results"] for part in page.tables if part in stored}):
            yield f"{docs / page.results}: {line}"
    except KeyError as error:
        yield f"{docs / page.results}: lacks the key {error.args[0]!r}"
    except ValueError as error:  # a page without marks
        yield str(error)
