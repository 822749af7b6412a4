"""Join pieces of speech to windows, for encoders that take as long for a second of audio as for a whole window."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np

from runtime.audio.segmentation import Piece
from runtime.engines.base import Part


@dataclass(frozen=True, slots=True, eq=False)
class Packed(Piece):
    """Consecutive pieces in one array, without the pauses between them.

    ``start`` is that of the first piece, and positions count in the array from there; ``end`` is not one of the audio.

    Attributes:
        parts: the pieces, at least two.
    """

    parts: list[Part] = field(kw_only=True)

    @property
    def extent(self) -> int:
        """Samples from the first part's start to the last part's end, with the pauses."""
        return self.parts[-1].start + self.parts[-1].length - self.start

    def whole_parts(self, start: float, end: float, rate: int) -> int:
        """Return how many parts lie between two times, in seconds from the start of the joined samples."""
        return sum(start * rate <= part.offset and part.offset + part.length <= end * rate for part in self.parts)

    def apart(self, alone: Collection[int]) -> list[Piece]:
        """Divide into stretches that start at ``start`` plus their offset: each part of ``alone``, and what is between.

        Args:
            alone: numbers of parts.
        """
        runs = groupby(enumerate(self.parts), key=lambda each: each[0] if each[0] in alone else -1)
        stretches = []
        for _, group in runs:
            run = [part for _, part in group]
            first, end = run[0].offset, run[-1].offset + run[-1].length
            stretches.append(Piece(self.start + first, self.samples[first:end], self.speech))
        return stretches


def pack(pieces: Iterable[Piece | None], longest: int) -> Iterator[Piece | None]:
    """Join consecutive pieces as long as they have at most ``longest`` samples together; None is passed on at once.

    A piece that no other fits to is unchanged. At most one window is held.

    Args:
        pieces: pieces of speech in order, each with some silence at its ends.
        longest: samples of a window.
    """
    held: list[Piece] = []
    for piece in pieces:
        if piece is None:
            yield None
            continue
        if held and sum(len(each.samples) for each in held) + len(piece.samples) > longest:
            yield _join(held)
            held = []
        held.append(piece)
    if held:
        yield _join(held)


def _join(pieces: list[Piece]) -> Piece:
    if len(pieces) == 1:
        return pieces[0]
    parts, offset = list[Part](), 0
    for piece in pieces:
        parts.append(Part(offset, piece.start, len(piece.samples)))
        offset += len(piece.samples)
    speech = [piece.speech for piece in pieces]
    known = sum(each for each in speech if each is not None) if None not in speech else None
    return Packed(pieces[0].start, np.concatenate([piece.samples for piece in pieces]), known, parts=parts)
