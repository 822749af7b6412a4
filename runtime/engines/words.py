"""From decoded tokens with times to words with times."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import msgspec

from runtime.results import Word


class Timed(msgspec.Struct, frozen=True):
    """What a token adds to a text (spaces included), its times in seconds, and its log-probability."""

    text: str
    start: float
    end: float
    log_probability: float

    @property
    def spoken(self) -> bool:
        """Whether it has letters or digits: punctuation and spaces take no time of their own."""
        return any(char.isalnum() for char in self.text)


def spell(decode: Callable[[Sequence[int]], str], tokens: Sequence[int]) -> list[str]:
    """What each token adds to the text of all of them: as many strings, which are ``decode(tokens)`` when joined.

    A character that is spread over several tokens is the last one's.

    Args:
        decode: token ids to text. A text's beginning may be without the space that its first token brings, and an
            unfinished character at its end may be replacement characters (U+FFFD).
        tokens: the ids.
    """
    text = decode(tokens)
    pieces: list[str] = []
    begin, base, done = 0, 0, 0  # token and place in the text from which is decoded anew; place that is spelled
    for index in range(len(tokens)):
        here = decode(tokens[begin : index + 1]).rstrip("\ufffd")
        reached = base + _alike(here, text[base:])
        piece = text[done : max(done, reached)]
        pieces.append(piece)
        if piece[:1].isspace() and (word := piece.lstrip()):
            # A word begins, and what was before it need not be decoded again if it reads the same without.
            fresh = decode(tokens[index : index + 1]).rstrip("\ufffd")
            if fresh.lstrip() == word:
                begin, base = index, done + len(piece) - len(fresh)
        done += len(piece)
    if pieces:
        pieces[-1] += text[done:]
    return pieces


def _alike(text: str, other: str) -> int:
    """How many characters two texts begin with alike."""
    pairs = enumerate(zip(text, other, strict=False))
    return next((index for index, (left, right) in pairs if left != right), min(len(text), len(other)))


def words_of(pieces: Sequence[Timed]) -> list[Word]:
    """The words of a text in order; joined by spaces they are the text, up to the width of its spaces.

    A word lasts from the start of its first piece with letters or digits to the end of the last such piece (of all
    pieces, where none has any): a comma is emitted when it is known, which may be well into the pause after it. Its
    confidence is the geometric mean of its tokens' probabilities.
    """
    words: list[list[Timed]] = [[]]
    for piece in pieces:
        # A piece may end a word and begin the next: only its last part goes on, and every part has the piece's times.
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


def _word(pieces: Sequence[Timed]) -> Word:
    timed = [piece for piece in pieces if piece.spoken] or pieces
    return Word(
        text="".join(piece.text for piece in pieces),
        start=timed[0].start,
        end=max(piece.end for piece in timed),
        confidence=math.exp(sum(piece.log_probability for piece in pieces) / len(pieces)),
    )
