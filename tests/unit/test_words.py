"""Word times from token times."""

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
def test_joined_pieces_are_the_text(tokens: list[int]) -> None:
    pieces = split_pieces(decode, tokens)
    assert len(pieces) == len(tokens)
    assert "".join(pieces) == decode(tokens)


def test_a_character_of_several_tokens_belongs_to_the_last_token() -> None:
    assert split_pieces(decode, ids("▁a", "<0xC3>", "<0xA9>", "b", "▁the")) == ["a", "", "é", "b", " the"]
    assert split_pieces(decode, ids("▁a", "<0xE2>")) == ["a", "\ufffd"]
    assert split_pieces(decode, []) == []


def test_only_the_growing_word_is_decoded_again() -> None:
    """The cost of a text is linear in its length, not quadratic."""
    lengths = []

    def counted(tokens: Sequence[int]) -> str:
        lengths.append(len(tokens))
        return decode(tokens)

    text = ids("▁a", "b", "▁the", "c") * 50
    assert "".join(split_pieces(counted, text)) == decode(text)
    assert sorted(lengths)[-2] <= 4  # only one call decodes the whole text


@given(
    st.lists(
        st.tuples(st.text(alphabet="ab é,.'\u3000漢", max_size=4), st.integers(0, 5), st.integers(0, 3)), max_size=12
    )
)
def test_words_are_those_of_the_text_in_order(timed_texts: list[tuple[str, int, int]]) -> None:
    pieces, now = [], 0.0
    for text, wait, length in timed_texts:
        now += wait
        pieces.append(TimedPiece(text, now, now + length, -0.1))
    words = words_of(pieces)
    assert [word.text for word in words] == "".join(text for text, _, _ in timed_texts).split()
    for word in words:
        assert word.start <= word.end
        assert word.confidence == pytest.approx(0.9048, abs=1e-4)
    assert sorted(words, key=lambda word: word.start) == words


def test_punctuation_takes_no_time_unless_it_stands_alone() -> None:
    pieces = [
        TimedPiece("¿", 0.0, 0.1, 0.0),
        TimedPiece("Qué", 0.5, 0.7, -1.0),
        TimedPiece("?", 3.0, 3.4, -2.0),
        TimedPiece(" ", 3.5, 3.6, 0.0),
        TimedPiece("-", 4.0, 4.2, 0.0),
        TimedPiece(" a b", 5.0, 6.0, 0.0),
    ]
    words = [(word.text, word.start, word.end) for word in words_of(pieces)]
    assert words == [("¿Qué?", 0.5, 0.7), ("-", 4.0, 4.2), ("a", 5.0, 6.0), ("b", 5.0, 6.0)]
    assert words_of(pieces)[0].confidence == pytest.approx(0.3679, abs=1e-4)  # the mean of three logarithms is -1
    assert words_of([]) == []
