"""Markdown tables of the pages in ``docs``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

LANGUAGES = ("English", "Russian", "Chinese")


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, caption: str = "") -> str:
    """Return a Markdown table, below its caption if it has one."""
    lines = [f"| {' | '.join(header)} |".replace("|  |", "| |"), "|---" * len(header) + "|"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    text = "\n".join(lines)
    return f"{caption}\n\n{text}" if caption else text


def percent(share: float | None, decimals: int = 2) -> str:
    """Return a share from 0 to 1 as a percentage; empty for None."""
    return "" if share is None else f"{100 * share:.{decimals}f} %"


def language_rates(rates: dict[str, float | None]) -> list[str]:
    """Return the error rate of each of :data:`LANGUAGES` as a cell, empty where there is none."""
    return [percent(rates.get(language)) for language in LANGUAGES]
