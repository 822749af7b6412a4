"""Show a stream on a terminal: final segments as lines, and below them the open segments, updated in place.

The open segments are redrawn with each change, in one write over the previous text and without clearing it first, which
avoids flicker. The escape codes are those of ECMA-48, which all current terminals support.
"""

from __future__ import annotations

import os
import shutil
import unicodedata
from collections.abc import Callable, Sequence
from typing import TextIO

import typer
from rich.cells import get_character_cell_size

from runtime.cli.live_output import segments_with_text
from runtime.pipeline.events import Event, Final, Partial, Speech
from runtime.writers import on_one_line

_ERASE_LINE, _ERASE_BELOW = "\x1b[K", "\x1b[J"
_DIM, _NORMAL = "\x1b[2m", "\x1b[22m"
# Shown for speech without any text yet.
_LISTENING = "…"
# Free columns at the right. Terminals differ in where the cursor is after writing to the last column. The two before
# it take the ^C that a terminal shows for an interrupt, which would otherwise wrap and leave characters behind.
_FREE = 3
# Characters with which a line must not begin.
_CLOSING = frozenset("、。，．・：；？！）］｝〉》」』】〕”’…ー")


class TerminalView:
    """Draws events on a terminal.

    The stable text of an open segment is drawn as it is; the rest is dim, or in brackets on a terminal without styles.
    """

    def __init__(
        self, out: TextIO, *, styled: bool = True, size: Callable[[], os.terminal_size] = shutil.get_terminal_size
    ) -> None:
        """Draw on ``out``.

        Args:
            out: the terminal.
            styled: whether it can show dim text.
            size: returns the window's columns and lines; called for each redraw, since the window can be resized.
        """
        self._out, self._styled, self._size = out, styled, size
        self._open: dict[int, tuple[str, str]] = {}
        self._drawn: list[int] = []  # width in cells of each line of the open segments on the terminal

    def show(self, events: Sequence[Event]) -> None:
        """Draw new events; write nothing if there are none."""
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
        self._draw([_printable(on_one_line(segment.text)) for segment in segments_with_text(events)])

    def note(self, text: str) -> None:
        """Write a message to standard error, which may be the same terminal, and redraw the open segments."""
        self._out.write(self._rise() + _ERASE_BELOW)
        self._out.flush()
        self._drawn = []
        typer.echo(text, err=True)
        self._draw([])

    def close(self) -> None:
        """Move the cursor below the open segments."""
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
        rows = rows[-max(1, lines - 1) :]  # lines above the window could not be redrawn
        text += "\n".join(row + _ERASE_LINE for row, _ in rows) + _ERASE_BELOW
        self._drawn = [cells for _, cells in rows]
        self._out.write(text)
        self._out.flush()

    def _rise(self) -> str:
        """Return the code that moves the cursor to the first line of the open segments.

        Counts the lines that a narrower window has wrapped.
        """
        columns = max(1, self._size().columns)
        above = sum(max(1, -(-cells // columns)) for cells in self._drawn) - 1
        return "\r" + (f"\x1b[{above}A" if above > 0 else "")

    def _rows(self, stable: str, unstable: str, columns: int) -> list[tuple[str, int]]:
        """Wrap the text of a segment into styled lines, each with its width in cells."""
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
    """Wrap ``text`` into lines of at most ``columns`` cells.

    Lines end at spaces, before or after a character of two cells (Chinese and Japanese have no spaces), or inside a
    word that is longer than a line.

    Returns:
        Start and end index of each line in ``text``; spaces between lines are left out.
    """
    spans: list[tuple[int, int]] = []
    start, last_break = _after_spaces(text, 0), 0
    index, used = start, 0
    while index < len(text):
        if index > start and _may_break(text[index - 1], text[index]):
            last_break = index
        used += get_character_cell_size(text[index])
        if used > columns and text[index] != " " and index > start:
            cut = last_break if last_break > start else index
            spans.append((start, _before_spaces(text, cut)))
            start = index = _after_spaces(text, cut)
            used = 0
        else:
            index += 1
    if start < len(text):
        spans.append((start, _before_spaces(text, len(text))))
    return spans


def cells_of(text: str) -> int:
    """Return the width of ``text`` in terminal cells: 2 for a Chinese character, 0 for a combining accent."""
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
    """Replace control characters, which could move the cursor, by spaces."""
    return "".join(" " if unicodedata.category(char) in ("Cc", "Zl", "Zp") else char for char in text)
