"""Words that differ between two models, and paired intervals of their error rates, against counts made by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from runtime.evaluation import (
    BaselineComparison,
    Utterance,
    bootstrap_interval,
    compare_texts,
    largest_likely_count,
)
from runtime.evaluation.recognition import Evaluation
from runtime.writers import evaluation_as_text

ENGLISH = "English"


def utterances(*references: str, language: str = ENGLISH) -> list[Utterance]:
    return [Utterance(Path(f"{index}.wav"), text, language) for index, text in enumerate(references)]


def test_words_that_differ_by_hand() -> None:
    """Case and punctuation do not count; a substitution, a deletion and an insertion count one each."""
    baseline = ["RED green blue white.", "black brown", "pink gold"]
    texts = ["red, green BLUE white", "black sick", "pink gold lime teal"]
    result = compare_texts(utterances("red green blue white", "black brown", "pink gold"), baseline, texts)
    (row,) = result.languages
    assert (row.language, row.unit, row.utterances, row.baseline_units, row.differing) == (ENGLISH, "words", 3, 8, 3)
    assert (row.differ, row.same) == (3 / 8, 1 / 3)
    assert (row.baseline_rate, row.rate, row.rise) == (0, 3 / 8, 3 / 8)
    assert result.overall.differing == 3


def test_changes_that_cancel_out_in_the_error_rate() -> None:
    """One error is mended and one is made: the rate is the same, and two words differ."""
    result = compare_texts(utterances("red green", "blue white"), ["red grin", "blue white"], ["red green", "blue for"])
    assert (result.overall.rise, result.overall.differing, result.overall.same) == (0, 2, 0)


def test_languages_and_units() -> None:
    """Chinese is compared by characters; rows are sorted by language, and the overall row has both units."""
    russian = utterances("раз два три", language="ru")
    mixed = [*utterances("一二三四", language="zh"), *utterances("red green"), *russian]
    result = compare_texts(mixed, ["一二三四", "red green", "раз два три"], ["一二三", "red green", "раз два"])
    assert [(row.language, row.unit, row.differing, row.baseline_units) for row in result.languages] == [
        ("Chinese", "characters", 1, 4),
        ("English", "words", 0, 2),
        ("Russian", "words", 1, 3),
    ]
    assert (result.overall.language, result.overall.unit) == ("all", "words and characters")
    assert (result.overall.differing, result.overall.baseline_units, result.overall.utterances) == (2, 9, 3)


def test_texts_without_words() -> None:
    """A silent baseline has no share, and references without words have no rate."""
    row = compare_texts(utterances("", ""), ["", ""], ["red green", ""]).overall
    assert (row.baseline_units, row.differing, row.differ, row.differ_low) == (0, 2, None, None)
    assert (row.baseline_rate, row.rate, row.rise, row.rise_low) == (None, None, None, None)


def test_numbers_of_texts_must_agree() -> None:
    with pytest.raises(ValueError, match="zip"):
        compare_texts(utterances("red", "green"), ["red", "green"], ["red"])


def test_paired_interval_is_narrower_than_either_rates() -> None:
    """Both models fail on the same hard utterances; only pairing shows that one of ten words is always lost."""
    hard = ["a b c d e f g h i j", "k l m n o p q r s t"] * 10
    baseline = ["a b c d e f g h i j", "x"] * 10
    texts = ["a b c d e f g h i", "y"] * 10
    row = compare_texts(utterances(*hard), baseline, texts).overall
    assert row.rise == pytest.approx(0.05)
    assert row.rise_low is not None
    assert row.rise_high is not None
    assert 0 < row.rise_low < 0.05 < row.rise_high < 0.1
    low, high = bootstrap_interval(np.array([0, 10] * 10), np.array([10] * 20))
    assert low is not None
    assert high is not None
    assert row.rise_high - row.rise_low < 0.2 * (high - low)


def test_intervals_are_those_of_the_seed_and_of_the_theory() -> None:
    """The mean of 400 differences of ±1 has a standard error of 1/20, and every call gives the same numbers."""
    differences = np.array([1, -1] * 200)
    units = np.ones(400, np.int64)
    low, high = bootstrap_interval(differences, units)
    assert (low, high) == bootstrap_interval(differences, units)
    assert low == pytest.approx(-1.96 / 20, abs=0.012)
    assert high == pytest.approx(1.96 / 20, abs=0.012)


def test_equal_texts_have_an_interval_of_zero() -> None:
    row = compare_texts(utterances("red green", "blue"), ["red", "blue"], ["red", "blue"]).overall
    assert (row.differ_low, row.differ_high, row.rise_low, row.rise_high) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("units", "share", "expected"),
    [
        (0, 0.5, 1),
        (1, 0.0, 1),
        (100, 0.0, 1),
        (10, 0.015, 1),  # P(X > 1) = 0.9 %
        (100, 0.5, 60),  # the binomial's 97.5 % quantile: 60
        (400, 0.015, 11),  # P(X > 10) = 4.2 %, P(X > 11) = 1.9 %
        (3000, 0.015, 58),  # near 45 + 1.96 · 6.66
        (10, 1.0, 10),
        (10, 7.0, 10),
        (0, 1.0, 1),
    ],
)
def test_largest_likely_count(units: int, share: float, expected: int) -> None:
    assert largest_likely_count(units, share) == expected


def test_largest_likely_count_of_many_units() -> None:
    """The sum does not underflow: the quantile is that of the normal distribution."""
    assert largest_likely_count(1_000_000, 0.5) == pytest.approx(500_000 + 1.96 * 500, abs=3)


def test_table_with_a_baseline() -> None:
    said = utterances("red green blue white", "black brown")
    result = compare_texts(said, ["red green blue white", "black brown"], ["red green blue for", "black brown"])
    baseline = BaselineComparison("whisper", "float32", result.languages, result.overall)
    evaluation = Evaluation([], "whisper-int8", "int8", "cpu", "detected", 1.0, 10.0, 0.1, {}, baseline)
    lines = evaluation_as_text(evaluation).splitlines()
    title = lines.index("compared with the baseline whisper, float32:")
    assert [part.strip() for part in lines[title + 2].split("  ") if part.strip()] == [
        "English",
        "words",
        "1 of 6, 16.67%",
        "0.00% to 25.00%",
        "50.0%",
        "0.00%",
        "+16.67",
        "+0.00 to +25.00",
    ]
    assert not [line for line in lines if line.startswith("all ")]  # one language: the same row
    silent = compare_texts(utterances(""), [""], [""])
    evaluation = Evaluation(
        [],
        "m",
        "int8",
        "cpu",
        "detected",
        1.0,
        10.0,
        0.1,
        {},
        BaselineComparison("w", "float32", silent.languages, silent.overall),
    )
    assert "none" in evaluation_as_text(evaluation)
