"""Pages and charts: escaped, self-contained, well-formed, and drawn to scale."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from runtime.bench import page as pages
from runtime.bench.charts import Line, Series, bar_chart, line_chart, round_ticks
from runtime.bench.machine import describe
from runtime.bench.page import Cell, Html, number, seconds, size
from runtime.bench.panels import Group, panel_chart, svg_file

VOID = {"meta", "line", "br"}
HOSTILE = "</title><script>alert('x')</script> \"quoted\" & http://example.org/x.png"


class Reader(HTMLParser):
    """Checks that elements nest, and records attributes, counts and text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.counts: dict[str, int] = {}
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(document: str) -> Reader:
    """Parse a page and check that its elements nest and that it refers to nothing outside."""
    reader = Reader()
    reader.feed(document)
    reader.close()
    assert not reader.open
    assert "script" not in reader.counts
    assert not [entry for entry in reader.attributes if entry[1] in ("src", "href", "xlink:href", "srcset", "action")]
    assert not [entry for entry in reader.attributes if entry[1].startswith("on")]
    assert "@import" not in document
    assert "url(" not in document
    return reader


def hostile_page() -> Html:
    return pages.page(
        HOSTILE,
        HOSTILE,
        pages.tiles([(HOSTILE, HOSTILE, HOSTILE)]),
        pages.section(
            HOSTILE,
            pages.paragraph(HOSTILE, note=True),
            pages.definitions({HOSTILE: HOSTILE}),
            pages.table(HOSTILE, [HOSTILE, "b"], [[HOSTILE, Cell(HOSTILE, HOSTILE)]], prose_columns=(1,)),
            bar_chart(HOSTILE, [HOSTILE, "b"], [Series(HOSTILE, [1.0, None]), Series("b", [2.0, 3.0])], unit=HOSTILE),
            bar_chart(HOSTILE, [HOSTILE], [Series(HOSTILE, [1.0]), Series("b", [2.0])], unit=HOSTILE, stacked=True),
            line_chart(
                HOSTILE,
                [Line(HOSTILE, [(1, 2)]), Line("b", [(2, 3)])],
                x_unit=HOSTILE,
                y_unit=HOSTILE,
                reference=(HOSTILE, 1.0),
                note=HOSTILE,
            ),
            lead=HOSTILE,
        ),
        pages.machine_box(describe()),
        footer=HOSTILE,
    )


def test_hostile_text_is_escaped() -> None:
    document = hostile_page()
    reader = read(document)
    assert "<script" not in document
    assert HOSTILE in "".join(reader.text)
    assert reader.counts["main"] == reader.counts["h1"] == 1
    assert ("meta", "content", "default-src 'none'; style-src 'unsafe-inline'") in reader.attributes


def test_tables_and_charts_have_accessible_descriptions() -> None:
    reader = read(hostile_page())
    assert reader.counts["caption"] == reader.counts["table"]
    scopes = [value for tag, name, value in reader.attributes if tag == "th" and name == "scope"]
    assert scopes == ["col", "col", "row"]
    assert len(scopes) == reader.counts["th"]
    assert reader.counts["svg"] == 3
    assert [value for tag, name, value in reader.attributes if tag == "svg" and name == "role"] == ["img"] * 3
    assert reader.counts["desc"] == 3


def test_a_row_with_a_wrong_number_of_cells_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'x' .*2 cells"):
        pages.table("x", ["a", "b"], [["a"]])


@pytest.mark.parametrize(
    ("highest", "ticks"),
    [
        (0.0, [0, 1]),
        (math.nan, [0, 1]),
        (4.8, [0, 1, 2, 3, 4, 5]),
        (0.083, [0, 0.02, 0.04, 0.06, 0.08, 0.1]),
        (1.0, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (600.0, [0, 200, 400, 600]),
        (1.3e9, [0, 5e8, 1e9, 1.5e9]),
    ],
)
def test_ticks_are_round(highest: float, ticks: list[float]) -> None:
    assert round_ticks(highest) == ticks


def widths(chart: str) -> dict[str, float]:
    """Return the widths of the bars by their titles."""
    bars = re.findall(r'<rect [^>]*?width="([\d.]+)"[^>]*><title>([^<]*)</title>', chart)
    return {title: float(width) for width, title in bars}


def test_bars_are_as_long_as_their_values() -> None:
    chart = bar_chart("t", ["x"], [Series("a", [1.0]), Series("b", [2.5]), Series("c", [math.nan])], unit="s")
    bar_widths = widths(chart)
    assert bar_widths["b: 2.50 s"] == pytest.approx(2.5 * bar_widths["a: 1.00 s"], rel=0.01)
    assert not [title for title in bar_widths if title.startswith("c:")]
    wider = widths(bar_chart("t", ["x"], [Series("a", [1.0])], unit="s", highest=50))
    assert wider["a: 1.00 s"] < bar_widths["a: 1.00 s"] / 10


def test_stacked_bars_are_adjacent() -> None:
    chart = bar_chart("t", ["x"], [Series("a", [1.0]), Series("b", [2.0])], unit="s", stacked=True)
    indices = re.findall(r'<rect x="([\d.]+)"[^>]*width="([\d.]+)"[^>]*><title>[ab]:', chart)
    (first, width), (second, _) = [(float(x), float(w)) for x, w in indices]
    assert second == pytest.approx(first + width, abs=0.2)
    assert ">3.00<" in chart  # the sum at the end


def test_short_names_are_not_cut() -> None:
    for name in ("x", "batch 8", "600 s", "провайдер", "速度"):
        assert f">{name}</text>" in bar_chart("t", [name], [Series("a", [1.0])], unit="s")


def test_lines_are_drawn_at_the_positions_of_their_points() -> None:
    chart = line_chart("t", [Line("a", [(1, 0.0), (10, 5.0), (100, 10.0)])], x_unit="x", y_unit="y", log_x=True)
    path = re.search(r'<polyline [^>]*points="([^"]*)"', chart)
    assert path
    points = [tuple(map(float, pair.split(","))) for pair in path[1].split()]
    (x1, y1), (x2, y2), (x3, y3) = points
    assert x2 - x1 == pytest.approx(x3 - x2, abs=0.2)  # equal factors have equal distances
    assert y1 - y2 == pytest.approx(y2 - y3, abs=0.2)
    assert y3 < y1
    assert ">5.00<" in chart


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([Line("a", [])], "no points"),
        ([Line("a", [(math.inf, 1.0)])], "no points"),
        ([Line("a", [(0.0, 1.0)])], "no points that can be drawn"),
        ([Line("a", [(1.0, -1.0)])], "negative"),
    ],
)
def test_lines_that_cannot_be_drawn(lines: list[Line], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        line_chart("t", lines, x_unit="x", y_unit="y", log_x=True)


def test_bars_that_cannot_be_drawn() -> None:
    with pytest.raises(ValueError, match="do not have 2 values"):
        bar_chart("t", ["a", "b"], [Series("s", [1.0])], unit="s")
    with pytest.raises(ValueError, match="negative"):
        bar_chart("t", ["a"], [Series("s", [-1.0])], unit="s")
    assert read(bar_chart("t", [], [], unit="s")).counts["svg"] == 1


def test_a_line_without_points_keeps_its_color() -> None:
    chart = line_chart("t", [Line("a", []), Line("b", [(1, 1)]), Line("c", [(1, 2)])], x_unit="x", y_unit="y")
    assert "var(--s1)" not in chart
    assert "var(--s2)" in chart
    assert ">a<" not in chart
    assert ">b<" in chart


def test_long_and_wide_names_are_cut_with_the_full_name_as_tooltip() -> None:
    name = "длинное имя " * 20
    chart = bar_chart("t", [name], [Series("速度" * 60, [1.0]), Series("b", [1.0])], unit="s")
    assert "…" in chart
    assert "速度" * 60 in chart  # in the tooltip


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"), (math.nan, "–"), (0.0, "0"), (0.0831, "0.0831"), (0.9996, "1.00"), (4.8, "4.80"), (21.47, "21.5"),
        (99.96, "100"), (1234.5, "1,234"), (-2.0, "-2.00"),
    ],
)  # fmt: skip
def test_numbers(value: float | None, text: str) -> None:
    assert number(value) == text


def test_units() -> None:
    assert [seconds(value) for value in (None, 0.0, 0.0005, 0.9994, 0.9999, 61.2)] == [
        "–", "0 s", "0.500 ms", "999 ms", "1.00 s", "61.2 s",
    ]  # fmt: skip
    assert [size(value) for value in (None, 8.19e8, 1.3e9)] == ["–", "819 MB", "1.30 GB"]


def test_panels_have_their_own_scales_and_common_rows() -> None:
    groups = [Group("first", ["a", "b"]), Group("", ["c"])]
    chart = panel_chart(
        "t",
        groups,
        [Series("x, s", [1.0, 2.0, None]), Series("y, GB", [100.0, 50.0, 0.0])],
        unit="u",
        columns=2,
        colors=[0, 1, 2],
        missing="none",
    )
    found = widths(chart)
    assert found["b, x, s: 2.00"] == pytest.approx(2 * found["a, x, s: 1.00"], abs=0.2)
    assert found["a, y, GB: 100"] == pytest.approx(found["b, x, s: 2.00"], abs=0.2)
    assert "c, x, s: –" not in found
    for text in ("first", "a", "b", "c", "x, s", "y, GB", "none"):
        assert chart.count(f">{text}</text>") == 1
    with pytest.raises(ValueError, match="'x'"):
        panel_chart("t", groups, [Series("x", [1.0])], unit="u", columns=1)
    with pytest.raises(ValueError, match="negative"):
        panel_chart("t", groups, [Series("x", [1.0, -1.0, 0.0])], unit="u", columns=1)


def test_a_chart_becomes_a_whole_svg_file() -> None:
    text = svg_file(bar_chart(HOSTILE, ["a"], [Series("s", [1.0])], unit="s"))
    root = ElementTree.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert HOSTILE in "".join(root.itertext())
    assert "--s1:" in text
    assert "prefers-color-scheme: dark" in text
    with pytest.raises(ValueError, match="no drawing"):
        svg_file(pages.paragraph("text"))
