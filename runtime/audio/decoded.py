"""What decoders return, and the limits of its pieces."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy.typing as npt

BLOCK_SECONDS = 10
# Maximum size of a block, for headers with a wrong rate or number of channels: 64 MB of float32.
_BLOCK_VALUES = 1 << 24

Warn = Callable[[str], object]
"""Called with a message about audio that was changed to be read: the name of the audio, and what was done."""


class Piece(NamedTuple):
    """Consecutive samples.

    Attributes:
        samples: [n, channels], floats in [-1, 1].
        rate: Hz. It and the number of channels can change within a file.
    """

    samples: npt.NDArray[Any]
    rate: int


@dataclass(frozen=True, slots=True)
class DecodedAudio:
    """Output of a decoder.

    Attributes:
        name: name of the audio, for messages.
        channels: number of channels at the beginning.
        duration: seconds that the headers declare, or None.
        pieces: at most ten seconds each.
    """

    name: str
    channels: int
    duration: float | None
    pieces: Iterator[Piece]


def block_frames(rate: int, channels: int) -> int:
    """Return the number of frames of a block: ten seconds, or fewer for a very high rate or number of channels."""
    return max(1, min(rate * BLOCK_SECONDS, _BLOCK_VALUES // max(1, channels)))
