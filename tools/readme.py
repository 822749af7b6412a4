"""Write or check the generated tables of README.md and docs/measurements.md: ``python -m tools.readme [--check]``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.families_report import speed_summary, summary
from benchmarks.report import PAGES, load
from export.catalog import as_markdown, catalog
from runtime.host.files import write_atomically

REPOSITORY = Path(__file__).resolve().parents[1]
README = REPOSITORY / "README.md"
MEASUREMENTS = REPOSITORY / "docs" / "measurements.md"


def _families(part: str, render: Callable[[dict[str, Any]], str]) -> str:
    return f"{render(load(REPOSITORY / 'docs', PAGES['families'])[part])}\n"


#: By page: functions that return the table below each mark.
TABLES: dict[Path, dict[str, Callable[[], str]]] = {
    README: {"<!-- models: python -m tools.readme -->": lambda: as_markdown(catalog())},
    MEASUREMENTS: {
        "<!-- speed: python -m tools.readme -->": lambda: _families("families", speed_summary),
        "<!-- accuracy: python -m tools.readme -->": lambda: _families("checkpoints", summary),
    },
}
END = "<!-- end of table -->"


def renewed(text: str, page: Path = README) -> str:
    """Return the text of a page with the table between each pair of marks written again.

    Raises:
        ValueError: a mark is missing.
    """
    for begin, table in TABLES[page].items():
        before, mark, rest = text.partition(begin)
        _, end, after = rest.partition(END)
        if not mark or not end:
            raise ValueError(f"{page}: lacks the mark {begin} or the mark {END} after it")
        text = f"{before}{begin}\n{table()}{end}{after}"
    return text


def violations(text: str, page: Path = README) -> list[str]:
    """Return one line for each table of a page that is out of date, and for each missing mark."""
    lines = []
    for begin, table in TABLES[page].items():
        _, mark, rest = text.partition(begin)
        present, end, _ = rest.partition(END)
        if not mark or not end:
            lines.append(f"{page}: lacks the mark {begin} or the mark {END} after it")
        elif present != f"\n{table()}":
            lines.append(f"{page}: the table below {begin} is out of date; run: python -m tools.readme")
    return lines


def main(
    check: Annotated[
        bool,
        typer.Option("--check", help="Write nothing; exit with 1 and one line for each table that is out of date."),
    ] = False,
) -> None:
    """Write the tables of README.md and docs/measurements.md: models, speed and accuracy."""
    lines = []
    for page in TABLES:
        text = page.read_text(encoding="utf-8")
        if check:
            lines += violations(text, page)
        else:
            write_atomically(page, renewed(text, page).encode())
    for line in lines:
        typer.echo(line, err=True)
    raise typer.Exit(1 if lines else 0)


if __name__ == "__main__":
    typer.run(main)
