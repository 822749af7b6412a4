"""Write the generated tables of README.md and docs/measurements.md: ``python -m tools.readme``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.families_report import speed_summary, summary
from benchmarks.report import FAMILIES_RESULTS
from export.catalog import as_markdown, catalog
from runtime.host.files import write_atomically
from tests.conftest import REPOSITORY

README = REPOSITORY / "README.md"
MEASUREMENTS = REPOSITORY / "docs" / "measurements.md"


def _families(part: str, table: Callable[[dict[str, Any]], str]) -> str:
    results = json.loads((REPOSITORY / "docs" / FAMILIES_RESULTS).read_text(encoding="utf-8"))
    return f"{table(results[part])}\n"


#: By page: what writes the table below each mark.
TABLES: dict[Path, dict[str, Callable[[], str]]] = {
    README: {"<!-- models: python -m tools.readme -->": lambda: as_markdown(catalog())},
    MEASUREMENTS: {
        "<!-- speed: python -m tools.readme -->": lambda: _families("families", speed_summary),
        "<!-- accuracy: python -m tools.readme -->": lambda: _families("checkpoints", summary),
    },
}
END = "<!-- end of table -->"


def renewed(text: str, page: Path = README) -> str:
    """Return the text of a page with its tables written anew.

    Raises:
        ValueError: a mark is missing.
    """
    for begin, table in TABLES[page].items():
        before, mark, rest = text.partition(begin)
        _, end, after = rest.partition(END)
        if not mark or not end:
            raise ValueError(f"{page}: has not both marks, {begin} and {END}")
        text = f"{before}{begin}\n{table()}{end}{after}"
    return text


if __name__ == "__main__":
    for page in TABLES:
        write_atomically(page, renewed(page.read_text(encoding="utf-8"), page).encode())
