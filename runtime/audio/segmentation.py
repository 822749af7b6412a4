"""Cutting long audio at pauses, as it is read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from runtime.audio.vad import FRAME_SAMPLES, SAMPLE_RATE, SpeechDetector
from runtime.errors import OptionError

__all__ = ["Detector", "Piece", "fixed_pieces", "speech_pieces", "split_piece"]

Floats = npt.NDArray[np.float32]
Span = tuple[int, int]

# A frame holds speech from this probability on. Lower than the 0.5 that is usual: what is lost here no model brings
# back, and a piece too many costs little. On clear speech frames score above 0.9, in pauses below 0.1.
SPEECH_PROBABILITY = 0.3
# A pause as long as this ends a piece, and is left out but for the margins. Shorter ones stay: half a sentence alone is
# harder to recognize than a second of silence is to encode.
PAUSE_SECONDS = 1.5
# What may be asked for instead, at most: audio is held until a piece ends.
LONGEST_PAUSE_SECONDS = 60.0
# Kept of the silence on both sides of speech. The detector finds an onset up to 130 ms late.
MARGIN_SECONDS = 0.25
# Silence up to this at the beginning and at the end of an audio stays: cutting it saves next to nothing, and so a short
# recording is transcribed as it is.
EDGE_SECONDS = 1.0

# The detector goes on hearing speech for about this long after it ended: a pause is so much longer than its frames.
_LAG_SECONDS = 0.1
# Frames of a pause between words. With the lag that is more than the closure of a consonant (under 150 ms) lasts.
_CLEAR_PAUSE_SECONDS = 0.12
# Of pauses longer than this one is as good as another, and their place decides.
_DEEP_PAUSE_SECONDS = 1.0
# What the best place is worth, as a part of the deepest pause.
_PLACE_WEIGHT = 0.5
# Without a pause, one part more is worth a place this much quieter (6 dB).
_MUCH_QUIETER = 0.25

# Where no pause is known, loudness is measured over 20 ms and judged over 300 ms: a pause between words, not a closed
# consonant.
_LOUDNESS_SECONDS = 0.02
_LOUDNESS_FRAMES = 15

# A piece that is cut while audio arrives ends behind this part of its length. What was heard before stays in it, and so
# its text can be called stable.
_LIVE_PLACE = 0.75

# Audio that comes in one block is cut in parts of this length, so that no more of it is copied at once.
_PART_SECONDS = 10


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """A contiguous span of an audio: index of its first sample, and mono samples [n] of its own."""

    start: int
    samples: Floats

    @property
    def end(self) -> int:
        """Index after its last sample."""
        return self.start + len(self.samples)


class Detector(Protocol):
    """What tells speech from silence; :class:`runtime.audio.vad.SpeechDetector` is one."""

    def probabilities(self, samples: Floats) -> Floats:
        """Probability of speech of each frame of 512 samples that ``samples`` complete."""

    def finish(self) -> Floats:
        """The same of the last, unfinished frame, if there is one."""


def speech_pieces(
    blocks: Iterable[Floats],
    rate: int,
    longest: float,
    detector: Detector | None = None,
    *,
    pause: float = PAUSE_SECONDS,
    live: bool = False,
) -> Iterator[Piece]:
    """The speech of an audio in pieces of at most ``longest`` seconds, in order, each as soon as it is final.

    A pause of ``pause`` seconds ends a piece and is left out. Speech that goes on for longer than ``longest`` is cut at
    its deepest pauses into pieces of similar length. Every frame that the detector takes for speech is in a piece, with
    up to 250 ms before and after; audio without speech gives no pieces. What is held of the audio is the last two
    ``longest`` and a block.

    Args:
        blocks: consecutive mono samples, of any lengths.
        rate: their rate in Hz; the detector knows 16 kHz.
        longest: of a piece, in seconds.
        detector: a fresh one; by default one is made.
        pause: seconds without speech that end a piece, at least twice the margin.
        live: cut as :class:`SpeechCutter` does while audio arrives, without waiting for a second ``longest``.

    Raises:
        OptionError: another rate, or a length that is not positive.
    """
    return _pieces(SpeechCutter(rate, longest, detector, pause=pause, live=live), blocks)


def _pieces(cutter: SpeechCutter, blocks: Iterable[Floats]) -> Iterator[Piece]:
    for block in blocks:
        yield from cutter.hear(block)
    yield from cutter.end()


def fixed_pieces(blocks: Iterable[Floats], rate: int, longest: float) -> Iterator[Piece]:
    """All of an audio in pieces of at most ``longest`` seconds, cut at quiet places, without voice activity.

    Audio of ``longest`` seconds or less is one piece; longer audio is cut into pieces of similar length. Holds as much
    as :func:`speech_pieces`.

    Raises:
        OptionError: a length that is not positive.
    """
    return _fixed(blocks, rate, _limit(longest, rate))


def split_piece(piece: Piece, rate: int, *, parts: int | None = None, longest: float | None = None) -> list[Piece]:
    """``piece`` cut at its quietest places: into ``parts`` of similar length, or into parts of at most ``longest``.

    Fewer than ``parts`` come of a piece with fewer samples.

    Raises:
        OptionError: neither or both are given, or one is not positive.
    """
    if (parts is None) == (longest is None) or (parts is not None and parts < 1):
        raise OptionError("give the number of parts, at least 1, or the longest part")
    tail = _Tail(rate, piece.start)
    tail.append(piece.samples)
    if longest is not None:
        return [tail.piece(span) for span in _divide(tail, (piece.start, piece.end), _limit(longest, rate), [])]
    made, start = [], piece.start
    for left in range(min(parts or 1, len(piece.samples)), 1, -1):
        share = (piece.end - start) / left
        last = min(start + int(1.5 * share), piece.end - left + 1)
        end, _ = tail.quietest((start + math.ceil(share / 2), last))
        made.append(tail.piece((start, end)))
        start = end
    return [*made, tail.piece((start, piece.end))]


def _limit(longest: float, rate: int) -> int:
    if not longest * rate >= 1 or math.isinf(longest):
        raise OptionError(f"audio cannot be cut into segments of {longest} seconds; give a positive number")
    return int(longest * rate)


class _Tail:
    """The samples that are not decided yet, addressed by their index in the audio."""

    def __init__(self, rate: int, start: int = 0) -> None:
        self.rate = rate
        self.start = self.end = start
        self._buffer = np.zeros(0, np.float32)
        self._first = 0  # place of ``start`` in the buffer

    def append(self, block: Floats) -> None:
        used, kept = self.end - self.start, self._buffer
        if self._first + used + len(block) > len(kept):
            # Twice what is needed, so that audio in small blocks is not copied with each of them.
            self._buffer = np.empty(2 * (used + len(block)), np.float32)
            self._buffer[:used] = kept[self._first : self._first + used]
            self._first = 0
        self._buffer[self._first + used : self._first + used + len(block)] = block
        self.end += len(block)

    def drop(self, before: int) -> None:
        before = min(max(before, self.start), self.end)
        self._first += before - self.start
        self.start = before

    def _view(self, start: int, end: int) -> Floats:
        offset = self._first - self.start
        return self._buffer[start + offset : end + offset]

    def piece(self, span: Span) -> Piece:
        start, end = span
        return Piece(start, self._view(start, end).copy())

    def quietest(self, window: Span) -> tuple[int, float]:
        """The middle of the quietest 300 ms between two indices, and how loud they are (mean energy of 20 ms)."""
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


def _divide(tail: _Tail, span: Span, limit: int, pauses: Sequence[Span]) -> Iterator[Span]:
    """``span`` in parts of similar length and at most ``limit``, cut at ``pauses`` where there are any.

    As few parts as the limit allows; one more where those could only be cut at a worse place.
    """
    start, end = span
    while end - start > limit:
        fewest = -(-(end - start) // limit)
        choices = [_window((start, end), count, limit) for count in (fewest, fewest + 1)]
        ahead = [pause for pause in pauses if pause[0] > start]
        for window, share in choices:
            if found := _best_pause(ahead, window, start + share, tail.rate):
                left, right = _cut_in(tail, found, window)
                break
        else:
            (left, loud), (other, quiet) = (tail.quietest(window) for window, _ in choices)
            left = right = other if quiet < loud * _MUCH_QUIETER else left
        yield start, left
        start = right
    yield start, end


def _window(span: Span, count: int, limit: int) -> tuple[Span, float]:
    """Where the first of ``count`` parts may end, and its share.

    What it leaves, the other parts can hold; and no part becomes much longer than another.
    """
    start, end = span
    share = (end - start) / count
    first = max(end - start - (count - 1) * limit, math.ceil(share / 2))
    return (start + first, start + min(limit, int(1.5 * share))), share


def _best_pause(pauses: Sequence[Span], window: Span, wanted: float, rate: int) -> Span | None:
    """The clear pause to cut at whose middle can lie in ``window``: long, and near the ``wanted`` index."""
    first, last = window
    reach = max(1.0, wanted - first, last - wanted)

    def worth(pause: Span) -> float:
        depth = min((pause[1] - pause[0]) / rate, _DEEP_PAUSE_SECONDS) / _DEEP_PAUSE_SECONDS
        return depth - _PLACE_WEIGHT * abs(_middle(pause, window) - wanted) / reach

    clear = int(_CLEAR_PAUSE_SECONDS * rate)
    within = (pause for pause in pauses if pause[1] > first and pause[0] < last and pause[1] - pause[0] >= clear)
    return max(within, key=worth, default=None)


def _middle(pause: Span, window: Span) -> int:
    return min(max(sum(pause) // 2, window[0]), window[1])


def _cut_in(tail: _Tail, pause: Span, window: Span) -> Span:
    """End of the part before and start of the part after: the same, unless the pause is longer than two margins."""
    margin = int(MARGIN_SECONDS * tail.rate)
    if pause[1] - pause[0] > 2 * margin:
        middle = _middle(pause, window)
        return min(pause[0] + margin, middle), max(pause[1] - margin, middle)
    index, _ = tail.quietest((max(tail.start, pause[0] - int(_LAG_SECONDS * tail.rate)), pause[1]))
    index = min(max(index, window[0]), window[1])
    return index, index


def _fixed(blocks: Iterable[Floats], rate: int, limit: int) -> Iterator[Piece]:
    tail = _Tail(rate)
    for block in blocks:
        for part in _parts(block, rate):
            tail.append(part)
            # Two limits ahead, so that what is left can still be divided into pieces of similar length.
            while tail.end - tail.start >= 2 * limit:
                left, _ = tail.quietest(_early_window(tail.start, limit))
                yield tail.piece((tail.start, left))
                tail.drop(left)
    if tail.end > tail.start:
        for span in _divide(tail, (tail.start, tail.end), limit, []):
            yield tail.piece(span)


def _early_window(start: int, limit: int) -> Span:
    """Where a piece ends while more than another one follows it."""
    return start + -(-limit // 2), start + limit


def _parts(block: Floats, rate: int) -> Iterator[Floats]:
    size = max(1, _PART_SECONDS * rate)
    for start in range(0, len(block), size):
        yield block[start : start + size]


class SpeechCutter:
    """:func:`speech_pieces` as audio arrives. It decides frame by frame: in what blocks audio comes does not matter.

    Speech that goes on is cut when twice the longest piece is there, so that the place can be chosen with what follows
    in view. With ``live`` it is cut when the longest piece is there, at its latest deep pause: no piece is ever longer,
    and so its text need not wait.
    """

    def __init__(
        self,
        rate: int,
        longest: float,
        detector: Detector | None = None,
        *,
        pause: float = PAUSE_SECONDS,
        live: bool = False,
    ) -> None:
        """See :func:`speech_pieces`."""
        if rate != SAMPLE_RATE:
            raise OptionError(
                f"voice activity is detected at {SAMPLE_RATE} Hz, not at {rate}; turn it off for this model"
            )
        least, most = 2 * MARGIN_SECONDS, LONGEST_PAUSE_SECONDS
        if not least <= pause <= most:
            raise OptionError(f"a pause must last {least:g} to {most:g} s to end a piece, not {pause:g}")
        self._limit = _limit(longest, rate)
        self._pause_frames = math.ceil(pause * rate / FRAME_SAMPLES)
        self._detector = detector or SpeechDetector()
        self._margin, self._edge = int(MARGIN_SECONDS * SAMPLE_RATE), int(EDGE_SECONDS * SAMPLE_RATE)
        # A piece ends a margin after its last frame of speech.
        self._live = live
        self._most = self._limit - self._margin - FRAME_SAMPLES if live else 2 * self._limit
        if self._most < FRAME_SAMPLES:
            raise OptionError(f"speech cannot be cut into pieces of {longest} seconds as it arrives; give at least 0.5")
        self._tail = _Tail(SAMPLE_RATE)
        self._frame = 0  # index of the next one
        self._start: int | None = None  # of the piece to come, once there is speech in it
        self._last = 0  # frame with speech
        self._pauses: list[Span] = []  # between speech, since the start
        self._over = 0  # sample after the last piece

    def hear(self, block: Floats) -> Iterator[Piece]:
        """The pieces that ``block`` completes; iterate to the end."""
        for part in _parts(block, SAMPLE_RATE):
            self._tail.append(part)
            yield from self._hear(self._detector.probabilities(part))
            self._tail.drop(self._frame * FRAME_SAMPLES - self._edge if self._start is None else self._start)

    def end(self) -> Iterator[Piece]:
        """The last pieces: there is no more audio."""
        yield from self._hear(self._detector.finish())
        yield from self.close()

    def close(self) -> Iterator[Piece]:
        """End the piece that is open with what was heard of it; more may follow."""
        rest = self._tail.end - (self._last + 1) * FRAME_SAMPLES
        yield from self._close(min(self._margin, rest) if self._start is None or rest > self._edge else rest)

    @property
    def open(self) -> Span | None:
        """Of a piece that is not over: its first sample, and the end of what it has so far, a margin included."""
        if self._start is None:
            return None
        return self._start, min(self._tail.end, (self._last + 1) * FRAME_SAMPLES + self._margin)

    @property
    def settled(self) -> int:
        """With ``live``: the sample before which the open piece will not be cut; the last piece's end if none is."""
        return self._over if self._start is None else self._start + self._earliest

    @property
    def _earliest(self) -> int:
        return int(_LIVE_PLACE * self._most)

    def samples(self, span: Span) -> Floats:
        """A copy of samples that are still held: those from the start of the open piece on are."""
        return self._tail.piece(span).samples

    def _hear(self, probabilities: Floats) -> Iterator[Piece]:
        for speech in (probabilities >= SPEECH_PROBABILITY).tolist():
            if speech:
                yield from self._speak()
            elif self._frame - self._last >= self._pause_frames:
                yield from self._close(self._margin)
            self._frame += 1

    def _speak(self) -> Iterator[Piece]:
        """A frame of speech: it begins a piece, ends a pause, or is two limits after the start of one."""
        begin = self._frame * FRAME_SAMPLES
        if self._start is None:
            self._start = max(self._over, begin - self._margin if begin > self._edge else 0)
            self._pauses = []
        elif self._frame > self._last + 1:
            self._pauses.append(((self._last + 1) * FRAME_SAMPLES, begin))
        self._last = self._frame
        while begin - self._start >= self._most:  # a pause may have been longer than a piece
            left, right = self._cut_early(self._start)
            yield self._tail.piece((self._start, left))
            self._start, self._over = right, left
            self._pauses = [pause for pause in self._pauses if pause[0] > right]

    def _cut_early(self, start: int) -> Span:
        """In the later half of what may be a piece if there is a pause, or else at the last one before it."""
        late = (start + self._earliest, start + self._most) if self._live else _early_window(start, self._limit)
        soon = (start + -(-self._limit // 8), late[0])
        for window in (late,) if self._live else (late, soon):
            if pause := _best_pause(self._pauses, window, window[1], SAMPLE_RATE):
                return _cut_in(self._tail, pause, window)
        index, _ = self._tail.quietest(late)
        return index, index

    def _close(self, margin: int) -> Iterator[Piece]:
        """The speech so far is over: nothing more belongs to it but ``margin`` samples."""
        if self._start is None:
            return
        end = (self._last + 1) * FRAME_SAMPLES + margin
        if self._live:
            end = min(end, self._start + self._limit)
        for span in _divide(self._tail, (self._start, end), self._limit, self._pauses):
            yield self._tail.piece(span)
        self._start, self._over = None, end
