"""Differences of outputs, tokens and texts from the reference."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.bench.compare_report import as_page, as_text
from runtime.bench.compared import (
    Comparison,
    Difference,
    Measured,
    compare_texts,
    difference,
    edits,
    first_difference,
    worst,
)
from runtime.bench.machine import describe
from runtime.bench.results import Spread

WORDS = st.lists(st.sampled_from("abc"), max_size=6)


def measured(texts: list[str], tokens: list[list[int]]) -> Measured:
    spread = Spread.of([2.0, 1.0, 4.0])
    return Measured(0.1, spread, spread, None, spread, 4.0, 1, {}, {}, texts, tokens, {})


def test_a_spread_has_median_smallest_and_largest() -> None:
    assert Spread.of([2.0, 1.0, 4.0]) == Spread(2.0, 1.0, 4.0)
    assert measured([], []).rtf == 0.5


def test_differences_are_relative_to_the_reference() -> None:
    theirs = np.array([[3.0, 4.0], [0.0, 0.0]], np.float32)
    result = difference(theirs + np.array([[0.0, 0.5], [0.0, 0.5]], np.float32), theirs, choices=True)
    assert result.largest == 0.5
    assert result.relative == pytest.approx(np.sqrt(0.5) / 5)
    assert result.same_choices == 0.5  # of two equal logits the first is chosen; in one row the second is larger
    assert difference(theirs, theirs, choices=False) == Difference(0.0, 0.0, None)
    nothing = np.zeros((2, 2), np.float32)
    assert difference(theirs, nothing, choices=False).relative == 1.0
    assert difference(nothing, nothing, choices=False).relative == 0.0


def test_the_worst_of_each_figure_counts() -> None:
    assert worst([Difference(1, 0.1, 0.9), Difference(0.5, 0.2, 1.0), Difference(0, 0)]) == Difference(1, 0.2, 0.9)
    assert worst([Difference(1, 0.1)]).same_choices is None


def test_the_first_token_that_differs() -> None:
    assert first_difference([1, 2, 3], [1, 2, 3]) is None
    assert first_difference([1, 5, 3], [1, 2, 3]) == 1
    assert first_difference([1, 2], [1, 2, 3]) == 2
    assert first_difference([], [1]) == 0


@given(WORDS, WORDS)
def test_edits_are_a_distance(a: list[str], b: list[str]) -> None:
    assert edits(a, b) == edits(b, a)
    assert (edits(a, b) == 0) == (a == b)
    assert abs(len(a) - len(b)) <= edits(a, b) <= max(len(a), len(b))
    assert edits(a, [*b, "d"]) <= edits(a, b) + 1


def test_texts_are_compared_by_words_and_by_characters_where_there_are_no_spaces() -> None:
    reference = measured(["one two", "我们去"], [[1, 2], [3, 4]])
    outcome = compare_texts("x", measured(["one too", "我门去"], [[1, 9], [3, 4]]), reference)
    assert (outcome.first_difference, outcome.identical) == (1, 1)
    assert outcome.word_errors == pytest.approx(2 / 5)
    assert edits(["one", "two"], ["one", "two", "three"]) == 1
    silent = measured([""], [[]])
    assert compare_texts("x", silent, silent).word_errors is None
    assert compare_texts("x", reference, reference).first_difference is None


def test_a_report_has_the_graphs_that_the_family_has() -> None:
    """A model without a decoder has no prefill; the joint's difference and choices have their own columns."""
    graphs = {"encoder": {"cpu": {"MatMul": 2}}, "decoder_joint": {"cpu": {"MatMul": 1}}}
    differences = {"encoder": Difference(0.1, 0.01, None), "decoder_joint": Difference(0.2, 0.02, 0.75)}
    ours = msgspec.structs.replace(measured(["a"], [[1]]), placement=graphs, differences=differences)
    outcome = compare_texts("cpu", ours, measured(["a"], [[1]]))
    machine = msgspec.to_builtins(describe())
    comparison = Comparison("x", "x on the CPU", ["a.wav"], 4.0, 1, None, machine, [outcome])
    lines = [line.split("  ") for line in as_text(comparison).splitlines()]
    rows = [[cell.strip() for cell in line if cell] for line in lines]
    columns = ["provider", "encoder", "decoder_joint", "same choices"]
    (index,) = (index for index, row in enumerate(rows) if row[:4] == columns)
    assert rows[index + 1][:4] == ["cpu", "1.0e-02", "2.0e-02", "75.0%"]
    (index,) = (index for index, row in enumerate(rows) if row[:4] == ["provider", "load", "encode", "prefill"])
    assert rows[index + 1][3] == "–"
    page = as_page(comparison)
    assert page.count(">prefill<") == 1  # the table's column, and no bar of the picture
    assert ">decoder_joint<" in page
    (index,) = (index for index, row in enumerate(rows) if row[:2] == ["provider", "graph"])
    assert [row[1] for row in rows[index + 1 :]] == list(graphs)
