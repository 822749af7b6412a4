"""Errors of word times: matching of words, and figures."""

from __future__ import annotations

import math

import pytest

from runtime.results import Word
from tools.tiny.word_times import start_errors, summary

MARKS = [(0.10, "Включи"), (0.50, "свет"), (0.90, "в"), (1.00, "кухне")]


def words(*pairs: tuple[float, str]) -> list[Word]:
    return [Word(text, start, start + 0.1, 1.0) for start, text in pairs]


def test_equal_words_are_compared_without_case_and_punctuation() -> None:
    recognized = words((0.12, "включи"), (0.48, "Свет"), (0.92, "в"), (1.00, "кухне."))
    assert start_errors(recognized, MARKS) == pytest.approx([0.02, -0.02, 0.02, 0.0])


def test_wrong_missing_and_added_words_do_not_shift_others() -> None:
    recognized = words((0.1, "включи"), (0.2, "же"), (0.54, "цвет"), (1.04, "кухне"))
    assert start_errors(recognized, MARKS) == pytest.approx([0.0, 0.04])
    assert start_errors([], MARKS) == []


def test_repeated_words_are_compared_in_order() -> None:
    marks = [(0.0, "да"), (1.0, "нет"), (2.0, "да")]
    assert start_errors(words((1.1, "нет"), (2.2, "да")), marks) == pytest.approx([0.1, 0.2])


def test_only_the_first_part_of_a_word_has_a_time() -> None:
    """``10:45`` is one word of a text and two marks; a mark may also be two words of a text."""
    recognized = words((0.0, "в"), (0.52, "10:45."), (2.0, "часов"))
    assert start_errors(recognized, [(0.0, "в"), (0.5, "10"), (0.9, "45"), (2.1, "часов")]) == pytest.approx(
        [0.0, 0.02, -0.1]
    )
    assert start_errors(words((1.0, "o'clock"), (2.0, "half")), [(1.0, "o'clock"), (1.9, "half-past")]) == (
        pytest.approx([0.0, 0.1])
    )


def test_figures_over_utterances() -> None:
    recognized = words((0.12, "включи"), (0.42, "свет"), (1.3, "кухне"))
    other = words((3.0, "совсем"))
    figures = summary([(recognized, MARKS), (other, [(0.0, "ничего")]), ([], [(0.0, "—")])])
    assert (figures.spoken, figures.matched) == (5, 3)
    assert figures.mean == pytest.approx((0.02 + 0.08 + 0.3) / 3)
    assert figures.median == pytest.approx(0.08)
    assert figures.bias == pytest.approx((0.02 - 0.08 + 0.3) / 3)
    assert figures.near == pytest.approx(2 / 3)
    assert figures.sentence() == (
        "133 ms in the mean, 80 ms in the median, +80 ms with the sign, 66.7% at most 80 ms off (3 of 5 words)"
    )


def test_figures_without_matches_are_nan() -> None:
    figures = summary([(words((0.0, "да")), [(0.0, "нет")])])
    assert (figures.spoken, figures.matched) == (1, 0)
    assert all(math.isnan(value) for value in (figures.mean, figures.median, figures.bias, figures.near))
