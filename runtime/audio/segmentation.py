"""Cut long audio at pauses into pieces that a model can process, while it is read."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Iterator
from typing import Protocol

from runtime.audio.cut_points import MARGIN_SECONDS, Floats, Piece, SampleBuffer, Span, best_pause, cut_in, divide
from runtime.audio.vad import FRAME_SAMPLES, SAMPLE_RATE, SpeechDetector
from runtime.errors import OptionError

__all__ = ["Detector", "Piece", "fixed_pieces", "speech_pieces", "split_piece"]

# Minimum probability of a frame with speech. Lower than the usual 0.5: speech that is left out here is lost for the
# model, and an additional piece costs little. Frames of clear speech score above 0.9, pauses below 0.1.
SPEECH_PROBABILITY = 0.3
# A pause of this length ends a piece and is left out, except for the margins. Shorter pauses stay: recognizing half a
# sentence on its own is harder than encoding a second of silence.
PAUSE_SECONDS = 1.5
# Maximum of the option: audio is held until a piece ends.
LONGEST_PAUSE_SECONDS = 60.0
# Silence of at most this length at the beginning and the end of the audio is included: cutting it saves next to
# nothing, and a short recording is transcribed unchanged.
EDGE_SECONDS = 1.0

# A piece that is cut while audio arrives ends after this share of the maximum length. Audio before that point certainly
# belongs to the piece, so that its text can be called stable.
_EARLIEST_LIVE_CUT = 0.75

# Long blocks are processed in parts of this length, to limit the memory for copies.
_PART_SECONDS = 10


class Detector(Protocol):
    """Voice activity detector, such as :class:`runtime.audio.vad.SpeechDetector`."""

    def probabilities(self, samples: Floats) -> Floats:
        """Return the probability of speech, 0..1, of each frame of 512 samples that ``samples`` complete."""

    def finish(self) -> Floats:
        """Return the probability of the last, incomplete frame [1], or [0] if there is none."""


def speech_pieces(
    blocks: Iterable[Floats],
    rate: int,
    longest: float,
    detector: Detector | None = None,
    *,
    pause: float = PAUSE_SECONDS,
    live: bool = False,
) -> Iterator[Piece]:
    """Yield the speech of the audio in pieces of at most ``longest`` seconds, in order, each as soon as it is final.

    A pause of ``pause`` seconds ends a piece and is left out. Longer speech than ``longest`` is cut at its longest
    pauses into pieces of similar length. Every frame with speech is in a piece, with up to 250 ms before and after it.
    Audio without speech gives no pieces. At most the last ``2 * longest`` seconds and a block are held in memory.

    Args:
        blocks: consecutive mono samples [n] of any length.
        rate: sampling rate in Hz; must be 16000.
        longest: maximum length of a piece in seconds.
        detector: a new detector; :class:`runtime.audio.vad.SpeechDetector` if None.
        pause: seconds without speech that end a piece, 0.5 to 60.
        live: cut with :class:`SpeechCutter`'s rules for live audio, which need no second ``longest`` of audio.

    Raises:
        OptionError: the rate is not 16000 Hz.
        OptionError: ``longest`` is not positive.
        OptionError: ``pause`` is out of range.
    """
    return _pieces(SpeechCutter(rate, longest, detector, pause=pause, live=live), blocks)


def _pieces(cutter: SpeechCutter, blocks: Iterable[Floats]) -> Iterator[Piece]:
    for block in blocks:
        yield from cutter.hear(block)
    yield from cutter.end()


def fixed_pieces(blocks: Iterable[Floats], rate: int, longest: float) -> Iterator[Piece]:
    """Yield all of the audio in pieces of at most ``longest`` seconds, cut at quiet points, without voice activity.

    Audio of at most ``longest`` seconds is one piece; longer audio is cut into pieces of similar length. At most the
    last ``2 * longest`` seconds and a block are held in memory.

    Args:
        blocks: consecutive mono samples [n] of any length.
        rate: sampling rate in Hz.
        longest: maximum length of a piece in seconds.

    Raises:
        OptionError: ``longest`` is not positive.
    """
    return _fixed(blocks, rate, _limit(longest, rate))


def split_piece(piece: Piece, rate: int, *, parts: int | None = None, longest: float | None = None) -> list[Piece]:
    """Cut ``piece`` at its quietest points, into ``parts`` of similar length or into parts of at most ``longest``.

    Args:
        piece: the piece.
        rate: sampling rate in Hz.
        parts: number of parts; a piece with fewer samples has one part for each sample.
        longest: maximum length of a part in seconds.

    Raises:
        OptionError: not exactly one of ``parts`` and ``longest`` is given.
        OptionError: the given one is not positive.
    """
    if (parts is None) == (longest is None) or (parts is not None and parts < 1):
        raise OptionError("give either the number of parts, at least 1, or the maximum length of a part")
    tail = SampleBuffer(rate, piece.start)
    tail.append(piece.samples)
    if longest is not None:
        return [tail.piece(span) for span in divide(tail, (piece.start, piece.end), _limit(longest, rate), [])]
    results, start = [], piece.start
    for remaining in range(min(parts or 1, len(piece.samples)), 1, -1):
        share = (piece.end - start) / remaining
        last = min(start + int(1.5 * share), piece.end - remaining + 1)
        end, _ = tail.quietest((start + math.ceil(share / 2), last))
        results.append(tail.piece((start, end)))
        start = end
    return [*results, tail.piece((start, piece.end))]


def _limit(longest: float, rate: int) -> int:
    """Return ``longest`` in samples; raise OptionError unless it is positive and finite."""
    if not longest * rate >= 1 or math.isinf(longest):
        raise OptionError(f"audio cannot be cut into segments of {longest} seconds; give a positive number")
    return int(longest * rate)


def _fixed(blocks: Iterable[Floats], rate: int, limit: int) -> Iterator[Piece]:
    tail = SampleBuffer(rate)
    for block in blocks:
        for part in _parts(block, rate):
            tail.append(part)
            # Wait for two limits, so that the rest can still be divided into pieces of similar length.
            while tail.end - tail.start >= 2 * limit:
                left, _ = tail.quietest(_early_window(tail.start, limit))
                yield tail.piece((tail.start, left))
                tail.drop(left)
    if tail.end > tail.start:
        for span in divide(tail, (tail.start, tail.end), limit, []):
            yield tail.piece(span)


def _early_window(start: int, limit: int) -> Span:
    """Return the span where a piece may end that is followed by more than another piece."""
    return start + -(-limit // 2), start + limit


def _parts(block: Floats, rate: int) -> Iterator[Floats]:
    """Split a long block."""
    size = max(1, _PART_SECONDS * rate)
    for start in range(0, len(block), size):
        yield block[start : start + size]


class SpeechCutter:
    """Cut audio that arrives in blocks into pieces of speech, by the rules of :func:`speech_pieces`.

    It decides frame by frame, so that the lengths of blocks do not change the pieces. Continuous speech is cut when
    twice the maximum length has arrived, so that the audio after the cut is taken into account. With ``live`` it is cut
    when the maximum length has arrived, at the last long pause, so that text of a piece is available sooner.
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
        """Prepare for a stream.

        Args:
            rate: sampling rate in Hz; must be 16000.
            longest: maximum length of a piece in seconds.
            detector: a new detector; :class:`runtime.audio.vad.SpeechDetector` if None.
            pause: seconds without speech that end a piece, 0.5 to 60.
            live: cut as soon as the maximum length has arrived.

        Raises:
            OptionError: the rate is not 16000 Hz.
            OptionError: ``longest`` is not positive, or below about 0.5 with ``live``.
            OptionError: ``pause`` is out of range.
        """
        if rate != SAMPLE_RATE:
            raise OptionError(
                f"voice activity is detected at {SAMPLE_RATE} Hz, not at {rate}; turn it off for this model"
            )
        shortest_pause, longest_pause = 2 * MARGIN_SECONDS, LONGEST_PAUSE_SECONDS
        if not shortest_pause <= pause <= longest_pause:
            raise OptionError(
                f"a pause must last {shortest_pause:g} to {longest_pause:g} s to end a piece, not {pause:g}"
            )
        self._limit = _limit(longest, rate)
        self._pause_frames = math.ceil(pause * rate / FRAME_SAMPLES)
        self._detector = detector or SpeechDetector()
        self._margin, self._edge = int(MARGIN_SECONDS * SAMPLE_RATE), int(EDGE_SECONDS * SAMPLE_RATE)
        self._live = live
        # Samples of an open piece from which on it is cut. A piece ends a margin after its last frame of speech.
        self._cut_length = self._limit - self._margin - FRAME_SAMPLES if live else 2 * self._limit
        if self._cut_length < FRAME_SAMPLES:
            raise OptionError(f"speech cannot be cut into pieces of {longest} seconds as it arrives; give at least 0.5")
        self._tail = SampleBuffer(SAMPLE_RATE)
        self._frame = 0  # index of the next frame
        self._start: int | None = None  # first sample of the open piece, if there is one
        self._last = 0  # index of the last frame with speech
        self._pauses: list[Span] = []  # pauses in the open piece
        self._heard: list[tuple[int, float]] = []  # index and probability of the open piece's frames with speech
        self._end = 0  # index after the last piece

    def hear(self, block: Floats) -> Iterator[Piece]:
        """Yield the pieces that ``block`` [n] completes. Iterate to the end."""
        for part in _parts(block, SAMPLE_RATE):
            self._tail.append(part)
            yield from self._advance(self._detector.probabilities(part))
            self._tail.drop(self._frame * FRAME_SAMPLES - self._edge if self._start is None else self._start)

    def end(self) -> Iterator[Piece]:
        """Yield the last pieces at the end of the audio."""
        yield from self._advance(self._detector.finish())
        yield from self.close()

    def close(self) -> Iterator[Piece]:
        """End the open piece with the audio so far and yield it; more audio may follow."""
        rest = self._tail.end - (self._last + 1) * FRAME_SAMPLES
        yield from self._close(min(self._margin, rest) if self._start is None or rest > self._edge else rest)

    @property
    def open(self) -> Span | None:
        """First sample of the open piece, and the end of its audio so far, with margin; None if no piece is open."""
        if self._start is None:
            return None
        return self._start, min(self._tail.end, (self._last + 1) * FRAME_SAMPLES + self._margin)

    @property
    def settled(self) -> int:
        """With ``live``: index before which the open piece will not be cut; the last piece's end if none is open."""
        return self._end if self._start is None else self._start + self._earliest

    @property
    def _earliest(self) -> int:
        """Minimum length in samples of a piece that is cut while audio arrives."""
        return int(_EARLIEST_LIVE_CUT * self._cut_length)

    def samples(self, span: Span) -> Floats:
        """Copy samples that are still held, which are those from the start of the open piece on."""
        return self._tail.piece(span).samples

    def speech(self, span: Span) -> float:
        """Return the expected seconds of speech in a span of the open piece, to the millisecond.

        The sum of the probabilities of the frames with speech that start in the span, each for the length of a frame.
        """
        first, last = (bisect.bisect_left(self._heard, (-(-index // FRAME_SAMPLES), 0.0)) for index in span)
        frames = sum(probability for _, probability in self._heard[first:last])
        return round(frames * FRAME_SAMPLES / SAMPLE_RATE, 3)

    def _piece(self, span: Span) -> Piece:
        return Piece(span[0], self._tail.piece(span).samples, self.speech(span))

    def _advance(self, probabilities: Floats) -> Iterator[Piece]:
        """Process frames by their probabilities of speech."""
        for probability in probabilities.tolist():
            if probability >= SPEECH_PROBABILITY:
                self._heard.append((self._frame, probability))
                yield from self._on_speech()
            elif self._frame - self._last >= self._pause_frames:
                yield from self._close(self._margin)
            self._frame += 1

    def _on_speech(self) -> Iterator[Piece]:
        """Process a frame with speech: begin a piece, end a pause, or cut a piece that is too long."""
        begin = self._frame * FRAME_SAMPLES
        if self._start is None:
            self._start = max(self._end, begin - self._margin if begin > self._edge else 0)
            self._pauses = []
        elif self._frame > self._last + 1:
            self._pauses.append(((self._last + 1) * FRAME_SAMPLES, begin))
        self._last = self._frame
        while begin - self._start >= self._cut_length:  # more than once if a pause was longer than a piece
            left, right = self._cut_early(self._start)
            yield self._piece((self._start, left))
            self._start, self._end = right, left
            self._pauses = [pause for pause in self._pauses if pause[0] > right]
            del self._heard[: bisect.bisect_left(self._heard, (left // FRAME_SAMPLES, 0.0))]

    def _cut_early(self, start: int) -> Span:
        """Return the end of the open piece and the start of the next one.

        Cuts at a pause in the later half of a piece, else at an earlier pause (not with ``live``), else at the quietest
        point of the later half.
        """
        late = (start + self._earliest, start + self._cut_length) if self._live else _early_window(start, self._limit)
        early = (start + -(-self._limit // 8), late[0])
        for window in (late,) if self._live else (late, early):
            if pause := best_pause(self._pauses, window, window[1], SAMPLE_RATE):
                return cut_in(self._tail, pause, window)
        index, _ = self._tail.quietest(late)
        return index, index

    def _close(self, margin: int) -> Iterator[Piece]:
        """End the open piece ``margin`` samples after its last speech and yield it, cut to the maximum length."""
        if self._start is None:
            return
        end = (self._last + 1) * FRAME_SAMPLES + margin
        if self._live:
            end = min(end, self._start + self._limit)
        for span in divide(self._tail, (self._start, end), self._limit, self._pauses):
            yield self._piece(span)
        self._start, self._end = None, end
        self._heard = []
