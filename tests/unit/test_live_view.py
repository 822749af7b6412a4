"""The terminal view of a stream, checked with a small terminal emulator."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from runtime.cli.live_view import TerminalView, cells_of, wrap
from runtime.pipeline.events import Event, Final, Partial, Speech
from runtime.results import Segment


def speech(number: int) -> Speech:
    return Speech(number, float(number))


def partial(number: int, stable: str, unstable: str = "") -> Partial:
    return Partial(number, float(number), number + 1.0, stable, unstable, "English")


def final(number: int, text: str) -> Final:
    fields = {"start": float(number), "end": number + 1.0, "text": text, "language": "English"}
    result = msgspec.convert({**fields, "confidence": 1.0, "finish_reason": "stop", "tokens": []}, Segment)
    return Final(number, result, as_offline=True)


class Screen(io.StringIO):
    """A terminal emulator with the escape codes that the view uses; dim text is shown in braces."""

    def __init__(self, columns: int = 40, lines: int = 10) -> None:
        super().__init__()
        self.columns, self.lines = columns, lines
        self.rows: list[list[str]] = [[]]
        self.row = self.column = 0
        self.dim = False

    def size(self) -> os.terminal_size:
        return os.terminal_size((self.columns, self.lines))

    def write(self, text: str) -> int:
        for token in re.findall(r"\x1b\[\d*[A-Za-z]|[^\x1b]", text):
            self._act(token)
        return super().write(text)

    def _act(self, token: str) -> None:
        match token:
            case "\r":
                self.column = 0
            case "\n":
                self._line_feed()
            case "\x1b[K":
                del self.rows[self.row][self.column :]
            case "\x1b[J":
                del self.rows[self.row][self.column :]
                del self.rows[self.row + 1 :]
            case "\x1b[2m":
                self.dim = True
            case "\x1b[22m":
                self.dim = False
            case _ if token.startswith("\x1b"):
                up = re.fullmatch(r"\x1b\[(\d+)A", token)
                assert up, f"the view uses {token!r}, which this emulator does not support"
                assert int(up[1]) <= self.row - self.top, "the cursor cannot leave the window"
                self.row -= int(up[1])
            case _:
                self._put(token)

    @property
    def top(self) -> int:
        return max(0, len(self.rows) - self.lines)

    def _line_feed(self) -> None:
        self.row, self.column = self.row + 1, 0
        if self.row == len(self.rows):
            self.rows.append([])

    def _put(self, character: str) -> None:
        if self.column + cell_len(character) > self.columns:
            self._line_feed()
        shown = f"{{{character}}}" if self.dim and character != " " else character
        cells = [shown] + [""] * (cell_len(character) - 1)
        self.rows[self.row][self.column : self.column + len(cells)] = cells
        self.column += len(cells)

    def resize(self, columns: int) -> None:
        """Resize as terminals do: long lines are wrapped, and the cursor stays at its character."""
        broken: list[list[str]] = []
        for number, row in enumerate(self.rows):
            pieces = [row[index : index + columns] for index in range(0, max(1, len(row)), columns)]
            if number == self.row:
                row_of_cursor = len(broken) + min(self.column // columns, len(pieces) - 1)
            broken += pieces
        self.columns, self.rows, self.row = columns, broken, row_of_cursor
        self.column %= columns

    @property
    def shown(self) -> list[str]:
        return ["".join(row).replace("}{", "").rstrip() for row in self.rows]


@pytest.fixture
def screen() -> Screen:
    return Screen()


@pytest.fixture
def view(screen: Screen) -> TerminalView:
    return TerminalView(screen, size=screen.size)


def test_an_open_segment_is_updated_in_place_and_becomes_a_line(screen: Screen, view: TerminalView) -> None:
    view.show([speech(0)])
    assert screen.shown == ["{…}"]
    view.show([partial(0, "", "It wash")])
    assert screen.shown == ["{It} {wash}"]
    view.show([partial(0, "It was", " very")])
    assert screen.shown == ["It was {very}"]
    view.show([final(0, "It was very quiet.")])
    assert screen.shown == ["It was very quiet.", ""]
    view.show([speech(1), partial(1, "And", "")])
    assert screen.shown == ["It was very quiet.", "And"]
    view.show([final(1, "And dark.")])
    view.close()
    assert screen.shown == ["It was very quiet.", "And dark.", ""]


def test_without_events_nothing_is_drawn(screen: Screen, view: TerminalView) -> None:
    view.show([])
    view.show([partial(0, "It was")])
    drawn = screen.getvalue()
    view.show([])
    assert screen.getvalue() == drawn
    assert drawn.count("\r") == 1


def test_a_segment_without_a_text_leaves_nothing(screen: Screen, view: TerminalView) -> None:
    view.show([speech(0), partial(0, "", "")])
    assert screen.shown == ["{…}"]
    view.show([final(0, " ")])
    assert screen.shown == [""]


def test_the_next_segment_may_open_before_the_last_is_final(screen: Screen, view: TerminalView) -> None:
    view.show([partial(0, "One", " two"), speech(1)])
    assert screen.shown == ["One {two}", "{…}"]
    view.show([final(0, "One two."), partial(1, "", "Three")])
    assert screen.shown == ["One two.", "{Three}"]


def test_long_text_is_wrapped_at_spaces_and_its_lines_are_removed(view: TerminalView, screen: Screen) -> None:
    screen.columns = 23
    view.show([partial(0, "Please invite Carl to", " the dentist appointment")])
    assert screen.shown == ["Please invite Carl", "to {the} {dentist}", "{appointment}"]
    view.show([partial(0, "Please", " invite")])
    assert screen.shown == ["Please {invite}"]
    view.show([final(0, "Please invite Carl to the dentist appointment."), speech(1)])
    assert screen.shown == ["Please invite Carl to t", "he dentist appointment.", "{…}"]  # wrapped by the terminal


def test_chinese_is_two_cells_a_character(screen: Screen, view: TerminalView) -> None:
    screen.columns = 13  # five characters and the free columns
    view.show([partial(0, "请在八点五十分", "给老师打电话")])
    assert screen.shown == ["请在八点五", "十分{给老师}", "{打电话}"]
    view.show([partial(0, "", "好")])
    assert screen.shown == ["{好}"]


def test_a_text_that_is_longer_than_the_window_shows_its_end(screen: Screen, view: TerminalView) -> None:
    screen.lines = 4
    words = [f"word{number:02}" for number in range(40)]
    for count in range(1, 41):
        view.show([partial(0, " ".join(words[:count]))])
    assert len(screen.shown) == 3
    assert screen.shown[-1].endswith("word39")
    view.show([final(0, "Over.")])
    assert screen.shown == ["Over.", ""]


def test_the_echo_of_an_interrupt_is_overwritten(screen: Screen, view: TerminalView) -> None:
    screen.columns = 23
    view.show([partial(0, "Please invite Carl to 12345678901234567")])
    assert screen.shown == ["Please invite Carl", "to 12345678901234567"]  # the second line has the maximum length
    screen.write("^C")  # as the terminal echoes it
    view.show([final(0, "Call Mark.")])
    assert screen.shown == ["Call Mark.", ""]


def test_a_narrower_window_is_redrawn_completely(screen: Screen, view: TerminalView) -> None:
    view.show([partial(0, "Please invite Carl to the dentist", " appointment on Monday")])
    screen.resize(13)
    view.show([partial(0, "Call", " Mark")])
    assert screen.shown == ["Call {Mark}"]


def test_without_styles_unstable_text_is_in_brackets(screen: Screen) -> None:
    view = TerminalView(screen, styled=False, size=screen.size)
    view.show([partial(0, "It was", " very quiet")])
    assert screen.shown == ["It was [very quiet]"]
    view.show([partial(0, "那辆", "红色")])
    assert screen.shown == ["那辆[红色]"]
    view.show([partial(0, "", "It")])
    assert screen.shown == ["It"]
    assert "\x1b[2m" not in screen.getvalue()


def test_a_note_goes_to_standard_error_above_the_text(
    screen: Screen, view: TerminalView, capsys: pytest.CaptureFixture[str]
) -> None:
    view.show([partial(0, "It was", " very")])
    view.note("warning: something")
    assert screen.shown == ["It was {very}"]
    assert capsys.readouterr().err == "warning: something\n"
    view.close()
    assert screen.shown == ["It was {very}", ""]


def test_a_text_cannot_move_the_cursor(screen: Screen, view: TerminalView) -> None:
    view.show([partial(0, "a\x1b[2Jb\r", "c\nd\u2028e")])
    assert screen.shown == ["a [2Jb {c} {d} {e}"]
    view.show([final(0, "a\x1b[2J\nb\x07")])
    assert screen.shown == ["a [2J b", ""]


@pytest.mark.parametrize(
    ("text", "columns", "lines"),
    [
        ("", 10, []),
        ("   ", 10, []),
        ("one two three", 7, ["one two", "three"]),
        ("one two  three", 7, ["one two", "three"]),
        (" one", 7, ["one"]),
        ("incomprehensible it is", 6, ["incomp", "rehens", "ible", "it is"]),
        ("请在八点，给老师", 8, ["请在八", "点，给老", "师"]),  # no line begins with a comma
        ("ok 请在八", 6, ["ok 请", "在八"]),
        ("e\u0301e\u0301e\u0301", 2, ["e\u0301e\u0301", "e\u0301"]),
        ("好好", 1, ["好", "好"]),  # wider than the window: one character in each line
    ],
)
def test_line_breaks(text: str, columns: int, lines: list[str]) -> None:
    assert [text[start:end] for start, end in wrap(text, columns)] == lines


@given(st.text("ab 好，\u0301…", max_size=40), st.integers(2, 12))
def test_lines_fit_and_nothing_is_lost(text: str, columns: int) -> None:
    lines = [text[start:end] for start, end in wrap(text, columns)]
    assert all(line and cells_of(line) <= columns for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")


WORDS = st.text("ab 好é", max_size=60)


def _events() -> Iterator[st.SearchStrategy[Event]]:
    numbers = st.integers(0, 2)
    yield st.builds(speech, numbers)
    yield st.builds(partial, numbers, WORDS, WORDS)
    yield st.builds(final, numbers, WORDS)


@given(st.lists(st.one_of(*_events()), max_size=12))
def test_final_texts_are_complete_and_in_order_after_any_events(events: list[Event]) -> None:
    screen = Screen(columns=30, lines=6)
    view = TerminalView(screen, size=screen.size)
    for event in events:
        view.show([event])
    texts = [" ".join(event.result.text.split()) for event in events if isinstance(event, Final)]
    expected = "".join(text.replace(" ", "") for text in texts)
    assert "".join(screen.shown).replace(" ", "").startswith(expected)
