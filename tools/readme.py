"""Write or check the generated tables of README.md: ``python -m tools.readme [--check]``."""

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


def _families(part: str, render: Callable[[dict[str, Any]], str]) -> str:
    return f"{render(load(REPOSITORY / 'docs', PAGES['families'])[part])}\n"


#: Functions that return the table below each mark.
TABLES: dict[str, Callable[[], str]] = {
    "<!-- models: python -m tools.readme -->": lambda: as_markdown(catalog()),
    "<!-- speed: python -m tools.readme -->": lambda: _families("families", speed_summary),
    "<!-- accuracy: python -m tools.readme -->": lambda: _families("checkpoints", summary),
}
END = "<!-- end of table -->"


def renewed(text: str) -> str:
    """Return the page with each table between its two marks made anew.

    Raises:
        ValueError: a mark is missing.
    """
    for begin, table in TABLES.items():
        before, mark, rest = text.partition(begin)
        _, end, after = rest.partition(END)
        if not mark or not end:
            raise ValueError(f"{README}: lacks the mark {begin} or the mark {END} after it")
        text = f"{before}{begin}\n{table()}{end}{after}"
    return text


def violations(text: str) -> list[str]:
    """Return one line for each table of the page that does not match its source, and for a missing mark."""
    lines = []
    for begin, table in TABLES.items():
        _, mark, rest = text.partition(begin)
        present, end, _ = rest.partition(END)
        if not mark or not end:
            lines.append(f"{README}: lacks the mark {begin} or the mark {END} after it")
        elif present != f"\n{table()}":
            lines.append(f"{README}: the table below {begin} is out of date; run: python -m tools.readme")
    return lines


def main(
    check: Annotated[
        bool,
        typer.Option("--check", help="Write nothing; exit with 1 and one line for each table that is out of date."),
    ] = False,
) -> None:
    """Write the tables of README.md: models from the catalog, speed and accuracy from docs/families.json."""
    text = README.read_text(encoding="utf-8")
    if not check:
        write_atomically(README, renewed(text).encode())
        return
    lines = violations(text)
    for line in lines:
        typer.echo(line, err=True)
    raise typer.Exit(1 if lines else 0)


if __name__ == "__main__":
    typer.run(main)
