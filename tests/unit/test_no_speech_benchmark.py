"""The measurement of texts without speech: cuts of speech, words that were said, and the table."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.no_speech import Clip, Measured, Row, short_cuts, speech_bounds, tables, words_said
from tests.helpers.no_speech import MAKERS, RATE, sound


def row(text: str, *, no_speech: float = 0.0, confidence: float = 0.9, dropped: bool = False) -> Row:
    return Row(0.0, 1.0, 0.1, 0.2, 0.9, no_speech, confidence, 1.0, text, dropped)


def test_short_cuts_are_the_first_and_the_last_of_the_speech() -> None:
    audio = np.concatenate([np.zeros(RATE), np.full(2 * RATE, 0.5), np.full(2 * RATE, -0.25), np.zeros(RATE)])
    assert speech_bounds(audio) == (RATE, 5 * RATE)
    cuts = short_cuts(audio.astype(np.float32), 0.3, seed=1)
    for name, level in (("first", 0.5), ("last", -0.25)):
        assert np.isclose(cuts[name], level, atol=1e-3).sum() == pytest.approx(0.3 * RATE, abs=1)
        assert len(cuts[name]) == pytest.approx(2.35 * RATE, abs=1)


def test_words_said_ignore_case_punctuation_and_order() -> None:
    assert words_said("Yes, yes. No!", "no yes") == 2
    assert words_said("Спасибо.", "большое спасибо") == 1
    assert words_said("Thank you.", "") == 0


def test_the_table_counts_texts_by_rule_and_dropped_words() -> None:
    clip = Clip("films", "a", "yes thank them", 0.8)
    measured = [
        Measured(clip, [row("Yes."), row("Thank you.", no_speech=0.8, confidence=0.6, dropped=True)]),
        Measured(clip, [row("you", no_speech=0.8, confidence=0.1, dropped=True)]),
        Measured(Clip("sounds", "b", ""), []),
    ]
    lines = tables(measured).splitlines()
    assert "| films (stream, 0.8 s) | 3 | 2 | 1 | 1 of 2 |" in lines
    assert "| sounds (file) | 0 | 0 | 0 | 0 of 0 |" in lines


@pytest.mark.parametrize("name", MAKERS)
def test_sounds_depend_on_their_seed_alone(name: str) -> None:
    first, again, other = (sound(name, 1.0, seed) for seed in (0, 0, 1))
    assert first.shape == (RATE,)
    assert first.dtype == np.float32
    assert np.abs(first).max() <= 1
    assert np.array_equal(first, again)
    assert name == "digital silence" or not np.array_equal(first, other)
