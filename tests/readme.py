"""The tables of models in README.md: ``python -m tests.readme`` writes them anew."""

from __future__ import annotations

from export.catalog import as_markdown, catalog
from runtime.artifact import write_atomically
from tests.conftest import REPOSITORY

README = REPOSITORY / "README.md"
BEGIN, END = "<!-- models: python -m tests.readme -->", "<!-- end of models -->"


def renewed(text: str) -> str:
    """The page with the tables that the catalog gives now between its two marks."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{README}: has not both marks, {BEGIN} and {END}")
    return f"{before}{begin}\n{as_markdown(catalog())}{end}{after}"


if __name__ == "__main__":
    write_atomically(README, renewed(README.read_text(encoding="utf-8")).encode())
