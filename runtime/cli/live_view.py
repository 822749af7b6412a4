"""A stream on a terminal: finished segments as lines, and below them, in place, what is being said.

What is in place is drawn anew with every change, in one write and over what stood there, without clearing it first:
nothing flickers. Escape codes are those of ECMA-48, which every terminal of today understands.
"""

from __future__ import annotations

import os
import shutil
import unicodedata
from collections.abc import Callable, Sequence
from typing import TextIO

import typer
from rich.cells import get_character_cell_size

from runtime.cli.live_output import spoken
from runtime.pipeline.events import Event, Final, Partial, Speech
from runtime.writers import on_one_line

_ERASE_LINE, _ERASE_BELOW = "\x1b[K", "\x1b[J"
_DIM, _NORMAL = "\x1b[2m", "\x1b[22m"
# Somebody speaks, and nothing is understood yet.
_LISTENING = "…"
# Columns at the right: in the last one terminals do not agree on where the cursor is after it was written to, and the
# two before take the ^C that a terminal shows of an interrupt; broken into the next line, it would leave remains.
_FREE = 3
# A line does not begin with these.
_CLOSING = frozenset("、。，．・：；？！）］｝〉》」』】〕”’…ー")


class TerminalView:
    """Draws events on a terminal.

    What is stable of an open segment is drawn as it is, the rest of it dim, or in brackets on a terminal without
    styles.
    """

    def __init__(
        self, out: TextIO, *, styled: bool = True, size: Callable[[], os.terminal_size] = shutil.get_terminal_size
    ) -> None:
        """Draw on ``out``; ``size`` is asked for its columns and lines every time, for windows change."""
        self._out, self._styled, self._size = out, styled, size
        self._open: dict[int, tuple[str, str]] = {}
        self._drawn: list[int] = []  # cells of each line that is in place

    def show(self, events: Sequence[Event]) -> None:
        """Draw what became known; without news the terminal is left alone."""
        if not events:
            return
        for event in events:
            match event:
                case Speech(segment=number):
                    self._open.setdefault(number, ("", _LISTENING))
                case Partial(segment=number, stable=stable, unstable=unstable):
                    text = (_printable(stable), _printable(unstable))
                    self._open[number] = text if stable or unstable else ("", _LISTENING)
                case Final(segment=number):
                    self._open.pop(number, None)
        self._draw([_printable(on_one_line(segment.text)) for segment in spoken(events)])

    def note(self, text: str) -> None:
        """Say something on standard error, which may be the same terminal."""
        self._out.write(self._rise() + _ERASE_BELOW)
        self._out.flush()
        self._drawn = []
        typer.echo(text, err=True)
        self._draw([])

    def close(self) -> None:
        """Leave what is in place where it is, and the cursor below it."""
        if self._drawn:
            self._out.write("\n")
            self._out.flush()
            self._drawn = []

    def _draw(self, finished: list[str]) -> None:
        columns, lines = self._size()
        text = self._rise()
        if finished:
            text += _ERASE_BELOW + "".join(f"{line}\n" for line in finished)
        width = max(1, columns - _FREE)
        rows = [row for stable, unstable in self._open.values() for row in self._rows(stable, unstable, width)]
        rows = rows[-max(1, lines - 1) :]  # what is above the window cannot be drawn over
        text += "\n".join(row + _ERASE_LINE for row, _ in rows) + _ERASE_BELOW
        self._drawn = [cells for _, cells in rows]
        self._out.write(text)
        self._out.flush()

    def _rise(self) -> str:
        """To the beginning of what is in place; a window that was made narrower has broken its lines."""
        columns = max(1, self._size().columns)
        above = sum(max(1, -(-cells // columns)) for cells in self._drawn) - 1
        return "\r" + (f"\x1b[{above}A" if above > 0 else "")

    def _rows(self, stable: str, unstable: str, columns: int) -> list[tuple[str, int]]:
        """Lines with their styles, and the cells that each takes."""
        if not self._styled and stable and unstable:
            bare = unstable.lstrip(" ")
            unstable = f"{unstable[: len(unstable) - len(bare)]}[{bare}]"
        text, border = stable + unstable, len(stable)
        rows = []
        for start, end in wrap(text, columns):
            first, second = text[start : max(start, min(end, border))], text[max(start, min(end, border)) : end]
            styled = f"{_DIM}{second}{_NORMAL}" if second and self._styled else second
            rows.append((first + styled, cells_of(text[start:end])))
        return rows


def wrap(text: str, columns: int) -> list[tuple[int, int]]:
    """Break ``text`` into lines of at most ``columns`` cells.

    Lines end at spaces, or beside a character that takes two cells (Chinese and Japanese have no spaces), or where
    nothing else helps inside of a word.

    Returns:
        Where each line begins and ends in ``text``; the spaces between lines belong to none.
    """
    spans: list[tuple[int, int]] = []
    start, chance = _after_spaces(text, 0), 0
    index, used = start, 0
    while index < len(text):
        if index > start and _may_break(text[index - 1], text[index]):
            chance = index
        used += get_character_cell_size(text[index])
        if used > columns and text[index] != " " and index > start:
            cut = chance if chance > start else index
            spans.append((start, _before_spaces(text, cut)))
            start = index = _after_spaces(text, cut)
            used = 0
        else:
            index += 1
    if start < len(text):
        spans.append((start, _before_spaces(text, len(text))))
    return spans


def cells_of(text: str) -> int:
    """Cells of a terminal that ``text`` takes: two for a Chinese character, none for an accent that combines."""
    return sum(map(get_character_cell_size, text))


def _may_break(before: str, after: str) -> bool:
    if after == " " or get_character_cell_size(after) == 0:
        return False
    wide = get_character_cell_size(before) == 2 or get_character_cell_size(after) == 2
    return before == " " or (wide and after not in _CLOSING)


def _after_spaces(text: str, index: int) -> int:
    while index < len(text) and text[index] == " ":
        index += 1
    return index


def _before_spaces(text: str, index: int) -> int:
    while index > 0 and text[index - 1] == " ":
        index -= 1
    return index


def _printable(text: str) -> str:
    """Text that cannot move the cursor."""
    return "".join(" " if unicodedata.category(each) in ("Cc", "Zl", "Zp") else each for each in text)
