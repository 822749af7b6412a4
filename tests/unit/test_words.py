"""Words with times from tokens with times."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.engines.words import TimedPiece, split_pieces, words_of
from tests.helpers.parakeet_checkpoint import BLANK, tokenizer

TOKENIZER = tokenizer()


def decode(tokens: Sequence[int]) -> str:
    text: str = TOKENIZER.decode(list(tokens), skip_special_tokens=True)
    return text


def ids(*pieces: str) -> list[int]:
    vocabulary = TOKENIZER.get_vocab()
    return [vocabulary[piece] for piece in pieces]


@given(st.lists(st.integers(0, BLANK), max_size=30))
def test_what_tokens_add_is_the_text(tokens: list[int]) -> None:
    pieces = split_pieces(decode, tokens)
    assert len(pieces) == len(tokens)
    assert "".join(pieces) == decode(tokens)


def test_a_character_of_several_tokens_is_the_last_ones() -> None:
    assert split_pieces(decode, ids("▁a", "<0xC3>", "<0xA9>", "b", "▁the")) == ["a", "", "é", "b", " the"]
    assert split_pieces(decode, ids("▁a", "<0xE2>")) == ["a", "\ufffd"]
    assert split_pieces(decode, []) == []


def test_only_the_word_that_grows_is_decoded_again() -> None:
    """A long text costs what its words cost, not the square of its length."""
    longest = []

    def watched(tokens: Sequence[int]) -> str:
        longest.append(len(tokens))
        return decode(tokens)

    text = ids("▁a", "b", "▁the", "c") * 50
    assert "".join(split_pieces(watched, text)) == decode(text)
    assert sorted(longest)[-2] <= 4  # all of it once


@given(
    st.lists(
        st.tuples(st.text(alphabet="ab é,.'\u3000漢", max_size=4), st.integers(0, 5), st.integers(0, 3)), max_size=12
    )
)
def test_words_are_the_text_in_order(said: list[tuple[str, int, int]]) -> None:
    pieces, now = [], 0.0
    for text, wait, length in said:
        now += wait
        pieces.append(TimedPiece(text, now, now + length, -0.1))
    words = words_of(pieces)
    assert [word.text for word in words] == "".join(text for text, _, _ in said).split()
    for word in words:
        assert word.start <= word.end
        assert word.confidence == pytest.approx(0.9048, abs=1e-4)
    assert sorted(words, key=lambda word: word.start) == words


def test_punctuation_takes_no_time_and_a_mark_alone_does() -> None:
    pieces = [
        TimedPiece("¿", 0.0, 0.1, 0.0),
        TimedPiece("Qué", 0.5, 0.7, -1.0),
        TimedPiece("?", 3.0, 3.4, -2.0),
        TimedPiece(" ", 3.5, 3.6, 0.0),
        TimedPiece("-", 4.0, 4.2, 0.0),
        TimedPiece(" a b", 5.0, 6.0, 0.0),
    ]
    found = [(word.text, word.start, word.end) for word in words_of(pieces)]
    assert found == [("¿Qué?", 0.5, 0.7), ("-", 4.0, 4.2), ("a", 5.0, 6.0), ("b", 5.0, 6.0)]
    assert words_of(pieces)[0].confidence == pytest.approx(0.3679, abs=1e-4)  # the mean of three logarithms is -1
    assert words_of([]) == []
