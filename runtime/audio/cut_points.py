"""Choose where to cut audio: at pauses between words, or at the quietest point where no pause is known."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Span = tuple[int, int]
"""Index of the first sample, and index after the last one."""

# Silence included on both sides of speech. The detector reports an onset up to 130 ms late.
MARGIN_SECONDS = 0.25

# The detector reports speech for about this long after it ended: a pause is longer than its frames by this time.
_LAG_SECONDS = 0.1
# Minimum length of the frames of a pause between words. With the lag, it is longer than the closure of a consonant
# (under 150 ms).
_CLEAR_PAUSE_SECONDS = 0.12
# Longer pauses are rated like one of this length, so that their position decides.
_DEEP_PAUSE_SECONDS = 1.0
# Weight of the position of a pause relative to its length.
_POSITION_WEIGHT = 0.5
# Without a pause, an additional part is accepted if its cut has at most this share of the energy (6 dB less).
_MUCH_QUIETER = 0.25

# Where no pause is known, energy is measured in frames of 20 ms and averaged over 300 ms, to find a pause between words
# instead of a closed consonant.
_LOUDNESS_SECONDS = 0.02
_LOUDNESS_FRAMES = 15


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """Contiguous span of the audio.

    Attributes:
        start: index of its first sample in the audio.
        samples: a copy of its mono samples [n].
        speech: expected seconds of speech in it; None if voice activity was not detected.
    """

    start: int
    samples: Floats
    speech: float | None = None

    @property
    def end(self) -> int:
        """Index after its last sample in the audio."""
        return self.start + len(self.samples)


class SampleBuffer:
    """Buffer of the samples that are not in a final piece yet, addressed by their index in the audio.

    Attributes:
        rate: sampling rate in Hz.
        start: index of the first sample.
        end: index after the last sample.
    """

    def __init__(self, rate: int, start: int = 0) -> None:
        self.rate = rate
        self.start = self.end = start
        self._buffer = np.zeros(0, np.float32)
        self._first = 0  # position of ``start`` in the buffer

    def append(self, block: Floats) -> None:
        """Add the samples [n] that follow."""
        used, old = self.end - self.start, self._buffer
        if self._first + used + len(block) > len(old):
            # Twice the necessary size, so that small blocks do not cause a copy each.
            self._buffer = np.empty(2 * (used + len(block)), np.float32)
            self._buffer[:used] = old[self._first : self._first + used]
            self._first = 0
        self._buffer[self._first + used : self._first + used + len(block)] = block
        self.end += len(block)

    def drop(self, before: int) -> None:
        """Release the samples before an index."""
        before = min(max(before, self.start), self.end)
        self._first += before - self.start
        self.start = before

    def _view(self, start: int, end: int) -> Floats:
        offset = self._first - self.start
        return self._buffer[start + offset : end + offset]

    def piece(self, span: Span) -> Piece:
        """Copy a span.

        Raises:
            ValueError: the span is not in the buffer.
        """
        start, end = span
        if not self.start <= start <= end <= self.end:
            raise ValueError(f"samples {start} to {end} are not held, only {self.start} to {self.end}")
        return Piece(start, self._view(start, end).copy())

    def quietest(self, window: Span) -> tuple[int, float]:
        """Return the middle of the quietest 300 ms of a span, and their mean energy in 20 ms."""
        start, end = window
        frame = max(1, int(_LOUDNESS_SECONDS * self.rate))
        energy = np.square(self._view(start, end), dtype=np.float64)
        frames = energy[: len(energy) // frame * frame].reshape(-1, frame).sum(axis=1)
        if not len(frames):
            return (start + end) // 2, math.inf
        width = min(_LOUDNESS_FRAMES, len(frames))
        loudness = np.convolve(frames, np.full(width, 1 / width), mode="valid")
        index = int(np.argmin(loudness))
        return start + index * frame + width * frame // 2, float(loudness[index])


def divide(buffer: SampleBuffer, span: Span, limit: int, pauses: Sequence[Span]) -> Iterator[Span]:
    """Cut ``span`` into parts of similar length of at most ``limit`` samples, at ``pauses`` where there are any.

    Makes as few parts as the limit allows, or one more if that allows a better cut.
    """
    start, end = span
    while end - start > limit:
        fewest = -(-(end - start) // limit)
        choices = [_window((start, end), count, limit) for count in (fewest, fewest + 1)]
        ahead = [pause for pause in pauses if pause[0] > start]
        for window, share in choices:
            if pause := best_pause(ahead, window, start + share, buffer.rate):
                left, right = cut_in(buffer, pause, window)
                break
        else:
            (left, loud), (other, quiet) = (buffer.quietest(window) for window, _ in choices)
            left = right = other if quiet < loud * _MUCH_QUIETER else left
        yield start, left
        start = right
    yield start, end


def _window(span: Span, count: int, limit: int) -> tuple[Span, float]:
    """Return the span where the first of ``count`` parts may end, and its share of the length.

    The other parts can hold the rest, and no part becomes much longer than another.
    """
    start, end = span
    share = (end - start) / count
    first = max(end - start - (count - 1) * limit, math.ceil(share / 2))
    return (start + first, start + min(limit, int(1.5 * share))), share


def best_pause(pauses: Sequence[Span], window: Span, target: float, rate: int) -> Span | None:
    """Return the best pause that overlaps ``window``: long, and near the ``target`` index. None if there is none."""
    first, last = window
    reach = max(1.0, target - first, last - target)

    def score(pause: Span) -> float:
        depth = min((pause[1] - pause[0]) / rate, _DEEP_PAUSE_SECONDS) / _DEEP_PAUSE_SECONDS
        return depth - _POSITION_WEIGHT * abs(_middle(pause, window) - target) / reach

    clear = int(_CLEAR_PAUSE_SECONDS * rate)
    within = (pause for pause in pauses if pause[1] > first and pause[0] < last and pause[1] - pause[0] >= clear)
    return max(within, key=score, default=None)


def _middle(pause: Span, window: Span) -> int:
    """Return the middle of a pause, limited to ``window``."""
    return min(max(sum(pause) // 2, window[0]), window[1])


def cut_in(buffer: SampleBuffer, pause: Span, window: Span) -> Span:
    """Return the end of the part before and the start of the part after: equal unless the pause exceeds two margins."""
    margin = int(MARGIN_SECONDS * buffer.rate)
    if pause[1] - pause[0] > 2 * margin:
        middle = _middle(pause, window)
        return min(pause[0] + margin, middle), max(pause[1] - margin, middle)
    index, _ = buffer.quietest((max(buffer.start, pause[0] - int(_LAG_SECONDS * buffer.rate)), pause[1]))
    index = min(max(index, window[0]), window[1])
    return index, index
