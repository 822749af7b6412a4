"""The tables of README.md that are made from what the repository knows: ``python -m tools.readme`` writes them anew."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from benchmarks.families_report import speed_summary, summary
from benchmarks.report import FAMILIES_RESULTS
from export.catalog import as_markdown, catalog
from runtime.host.files import write_atomically
from tests.conftest import REPOSITORY

README = REPOSITORY / "README.md"


def _families(part: str, table: Callable[[dict[str, Any]], str]) -> str:
    results = json.loads((REPOSITORY / "docs" / FAMILIES_RESULTS).read_text(encoding="utf-8"))
    return f"{table(results[part])}\n"


#: What writes the table below each mark.
TABLES: dict[str, Callable[[], str]] = {
    "<!-- models: python -m tools.readme -->": lambda: as_markdown(catalog()),
    "<!-- speed: python -m tools.readme -->": lambda: _families("families", speed_summary),
    "<!-- accuracy: python -m tools.readme -->": lambda: _families("checkpoints", summary),
}
END = "<!-- end of table -->"


def renewed(text: str) -> str:
    """The page with each table between its two marks as it is now.

    Raises:
        ValueError: a mark is missing.
    """
    for begin, table in TABLES.items():
        before, mark, rest = text.partition(begin)
        _, end, after = rest.partition(END)
        if not mark or not end:
            raise ValueError(f"{README}: has not both marks, {begin} and {END}")
        text = f"{before}{begin}\n{table()}{end}{after}"
    return text


if __name__ == "__main__":
    write_atomically(README, renewed(README.read_text(encoding="utf-8")).encode())
