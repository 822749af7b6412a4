"""Turn decoded tokens with times into words with times."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import msgspec

from runtime.results import Word


class TimedPiece(msgspec.Struct, frozen=True):
    """The text that one token adds (spaces included), its times in seconds, and its log-probability."""

    text: str
    start: float
    end: float
    log_probability: float

    @property
    def is_spoken(self) -> bool:
        """Whether it has letters or digits: punctuation and spaces have no time of their own."""
        return any(char.isalnum() for char in self.text)


def split_pieces(decode: Callable[[Sequence[int]], str], tokens: Sequence[int]) -> list[str]:
    """Return the text that each token adds; joined, the pieces are ``decode(tokens)``.

    A character spread over several tokens belongs to the last of them.

    Args:
        decode: token ids to text. The start of a text may lack the space of its first token, and an unfinished
            character at its end may appear as replacement characters (U+FFFD).
        tokens: token ids.
    """
    text = decode(tokens)
    pieces: list[str] = []
    begin, base, done = 0, 0, 0  # token and text offset from which to decode; text offset that is split
    for index in range(len(tokens)):
        partial = decode(tokens[begin : index + 1]).rstrip("\ufffd")
        reached = base + _common_prefix(partial, text[base:])
        piece = text[done : max(done, reached)]
        pieces.append(piece)
        if piece[:1].isspace() and (word := piece.lstrip()):
            # At the start of a word, stop decoding the tokens before it if the word reads the same without them.
            alone = decode(tokens[index : index + 1]).rstrip("\ufffd")
            if alone.lstrip() == word:
                begin, base = index, done + len(piece) - len(alone)
        done += len(piece)
    if pieces:
        pieces[-1] += text[done:]
    return pieces


def _common_prefix(text: str, other: str) -> int:
    """Return the length of the common prefix of two texts."""
    pairs = enumerate(zip(text, other, strict=False))
    return next((index for index, (left, right) in pairs if left != right), min(len(text), len(other)))


def words_of(pieces: Sequence[TimedPiece]) -> list[Word]:
    """Return the words of a text in order; joined by spaces they are the text, except for the width of its spaces.

    A word lasts from the start of its first piece with letters or digits to the end of its last such piece (of all
    pieces, if none has any): a comma may be emitted well into the pause after it. The confidence of a word is the
    geometric mean of its tokens' probabilities.
    """
    words: list[list[TimedPiece]] = [[]]
    for piece in pieces:
        # A piece may end a word and begin the next one: only its last part continues, and each part has its times.
        parts = piece.text.split()
        if piece.text[:1].isspace() and words[-1]:
            words.append([])
        for index, part in enumerate(parts):
            if index:
                words.append([])
            words[-1].append(msgspec.structs.replace(piece, text=part))
        if parts and piece.text[-1:].isspace():
            words.append([])
    return [_word(word) for word in words if word]


def _word(pieces: Sequence[TimedPiece]) -> Word:
    timed = [piece for piece in pieces if piece.is_spoken] or pieces
    return Word(
        text="".join(piece.text for piece in pieces),
        start=timed[0].start,
        end=max(piece.end for piece in timed),
        confidence=math.exp(sum(piece.log_probability for piece in pieces) / len(pieces)),
    )
