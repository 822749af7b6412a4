"""Decode a segment's text completely: what a loop, a used-up budget or an early end left out is decoded again."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace

import msgspec

from runtime.audio.segmentation import Piece, split_piece
from runtime.audio.speech import clear_speech
from runtime.audio.vad import SAMPLE_RATE
from runtime.decoding.loops import REPETITION_PENALTY
from runtime.decoding.short_text import FEW_TOKENS, SURE_MARGIN, has_more, is_short, stop_margin
from runtime.engines.base import Part, SegmentOptions, SegmentResult
from runtime.pipeline.packing import Packed
from runtime.pipeline.spans import join_results, shift_times
from runtime.results import DecodedAgain

log = logging.getLogger(__name__)

# A stretch is decoded again in parts of at most this share of its length. A little more than half, so that two parts
# need not be cut exactly at the middle.
_PART_SHARE = 0.6
_SHORTEST_PART = 2.0
# The rest of a text with timestamps is decoded when it has this much clear speech: four frames, a short word.
_SHORTEST_REST = 0.128
# A phrase of this length that covers whole pieces on both sides of a pause has no useful times. Phrases of 306
# recordings joined to minutes take 9.7 s at most.
_LONGEST_PHRASE = 15.0
# Clear speech that timestamps may leave out. Whisper places them a second off at times, but not two.
_LONGEST_GAP = 2.0


@dataclass(slots=True, eq=False)
class Stretch:
    """Audio that is decoded as one job, or whose result is that of its parts."""

    piece: Piece
    parent: Stretch | None = None
    decoded_again: DecodedAgain | None = None
    first: SegmentResult | None = None
    """What the first decoding gave, to be kept unless the parts have more."""
    rest_only: bool = False
    """The last part is the rest behind the first result; otherwise the parts replace it."""
    parts: list[Stretch] = field(default_factory=list)
    result: SegmentResult | None = None
    guarded: bool = False
    """Decoded with a repetition penalty, because its segment was cut off or looped."""


@dataclass(slots=True, eq=False)
class SegmentInProgress:
    """A segment on its way through the engine: its whole stretch, and the stretches of what is decoded again."""

    piece: Piece
    options: SegmentOptions
    rate: int
    stretches: list[Stretch] = field(default_factory=list)
    whole: Stretch = field(init=False)

    def __post_init__(self) -> None:
        self.whole = Stretch(self.piece)

    @property
    def decoded_again(self) -> DecodedAgain | None:
        """Why the segment, or a part of it, was decoded again; the first reason."""
        return next((each.decoded_again for each in [self.whole, *self.stretches] if each.decoded_again), None)

    @property
    def parts(self) -> list[Part]:
        """The pieces of speech that the segment joins; empty if it is a single one."""
        return self.piece.parts if isinstance(self.piece, Packed) else []

    def job(self, part: int | None) -> tuple[Piece, SegmentOptions]:
        """Return the audio and the options of the whole segment (None) or of a stretch."""
        stretch = self.whole if part is None else self.stretches[part]
        options = self.options
        if self.parts:  # times tell which piece a text belongs to
            options = msgspec.structs.replace(options, timestamps=True)
        if stretch.guarded:
            options = msgspec.structs.replace(options, repetition_penalty=REPETITION_PENALTY)
        return stretch.piece, options

    def take(self, part: int | None, result: SegmentResult) -> list[int]:
        """Take the result of the whole segment (None) or of a stretch; return the indices of stretches to decode.

        The segment is complete when ``whole.result`` is set.
        """
        stretch = self.whole if part is None else self.stretches[part]
        if self.options.max_new_tokens:
            self._resolve(stretch, result)
            return []
        for decide in (self._by_language, self._without_times, self._after_loop, self._rest, self._after_early_end):
            if indices := decide(stretch, result):
                return indices
        self._resolve(stretch, result)
        return []

    def _by_language(self, stretch: Stretch, result: SegmentResult) -> list[int]:
        """Decode the pieces of a window that are in another language each alone, and those between them together."""
        if not result.foreign_parts or not isinstance(stretch.piece, Packed):
            return []
        stretch.parts = [Stretch(piece, stretch) for piece in stretch.piece.apart(result.foreign_parts)]
        return self._add(stretch.parts)

    def _without_times(self, stretch: Stretch, result: SegmentResult) -> list[int]:
        """Decode the pieces of a window each alone if the times do not tell them apart."""
        piece = stretch.piece
        if not isinstance(piece, Packed) or not any(
            phrase.end - phrase.start > _LONGEST_PHRASE and piece.whole_parts(phrase.start, phrase.end, self.rate) > 1
            for phrase in result.phrases
        ):
            return []
        stretch.parts = [Stretch(each, stretch) for each in piece.apart(range(len(piece.parts)))]
        return self._add(stretch.parts)

    def _after_loop(self, stretch: Stretch, result: SegmentResult) -> list[int]:
        """Decode a text that was cut off or looped once again, in parts and with a repetition penalty."""
        if result.finish_reason == "stop" or stretch.guarded:
            return []
        stretch.decoded_again = result.finish_reason
        return self._divide(stretch, guarded=True)

    def _rest(self, stretch: Stretch, result: SegmentResult) -> list[int]:
        """Decode what follows the last complete part of a text with timestamps, if there is speech."""
        if not (result.head and result.head.result.text) or self.rate != SAMPLE_RATE:
            return []
        piece, samples = stretch.piece, result.head.samples
        if samples >= len(piece.samples) or clear_speech(piece.samples, samples) < _SHORTEST_REST:
            return []
        head = Stretch(Piece(piece.start, piece.samples[:samples]), stretch, result=result.head.result)
        rest = Stretch(
            Piece(piece.start + samples, piece.samples[samples:], piece.speech), stretch, guarded=stretch.guarded
        )
        stretch.first, stretch.rest_only, stretch.parts = result, True, [head, rest]
        return self._add([rest])

    def _after_early_end(self, stretch: Stretch, result: SegmentResult) -> list[int]:
        """Decode a text that is too short for its speech again, in parts; each part's language is asked again."""
        if not (self._is_short(stretch.piece, result) or self._has_a_gap(stretch.piece, result)):
            return []
        stretch.decoded_again, stretch.first = "short", result
        where = stretch.piece.start / self.rate
        log.info("%.1f s: %r is too short for its speech and is decoded again in parts", where, result.text)
        return self._divide(stretch, guarded=stretch.guarded)

    def _is_short(self, piece: Piece, result: SegmentResult) -> bool:
        log_probability = result.stop_log_probability
        if self.rate != SAMPLE_RATE or log_probability is None or (not result.text and result.language is None):
            return False  # another rate than the detector's; an engine that cannot stop early; a verdict of no speech
        margin = stop_margin(log_probability)
        phrases = result.phrases
        if phrases and all(len(each.tokens) >= FEW_TOKENS * (each.end - each.start) for each in phrases):
            # The times say where the text ends, so its stop says nothing about that. It is less certain with times: the
            # alternative is another time, not another word.
            margin = SURE_MARGIN
        if not is_short(result.text_tokens, len(piece.samples) / self.rate, margin):
            return False  # not even if all of it were speech: saves the detector
        return is_short(result.text_tokens, clear_speech(piece.samples), margin)

    def _has_a_gap(self, piece: Piece, result: SegmentResult) -> bool:
        """Return whether timestamps leave out speech: between the phrases, before the first or after the last one."""
        if not result.phrases or self.rate != SAMPLE_RATE:
            return False
        starts = [phrase.start for phrase in result.phrases] + [len(piece.samples) / self.rate]
        ends = [0.0] + [phrase.end for phrase in result.phrases]
        return any(
            start - end >= _LONGEST_GAP
            and clear_speech(piece.samples, int(end * self.rate), int(start * self.rate)) >= _LONGEST_GAP
            for end, start in zip(ends, starts, strict=True)
        )

    def _divide(self, stretch: Stretch, *, guarded: bool) -> list[int]:
        longest = max(_SHORTEST_PART, _PART_SHARE * len(stretch.piece.samples) / self.rate)
        pieces = split_piece(stretch.piece, self.rate, longest=longest)
        # Speech of the whole: a part with little of it is not taken for silence.
        parts = [replace(piece, speech=stretch.piece.speech) for piece in pieces]
        stretch.parts = [Stretch(piece, stretch, guarded=guarded) for piece in parts]
        return self._add(stretch.parts)

    def _add(self, stretches: list[Stretch]) -> list[int]:
        indices = range(len(self.stretches), len(self.stretches) + len(stretches))
        self.stretches += stretches
        return list(indices)

    def _resolve(self, stretch: Stretch, result: SegmentResult) -> None:
        """Store a final result, and that of every stretch above it that is complete with it."""
        stretch.result = msgspec.structs.replace(result, head=None)
        parent = stretch.parent
        if parent is None or not all(part.result for part in parent.parts):
            return
        joined = join_results(
            [
                shift_times(part.result, (part.piece.start - parent.piece.start) / self.rate)
                for part in parent.parts
                if part.result
            ]
        )
        parent.parts = []
        self._resolve(parent, joined if _is_better(parent, joined, stretch) else parent.first or joined)


def _is_better(parent: Stretch, joined: SegmentResult, last: Stretch) -> bool:
    """Return whether the parts' joined result replaces the first result."""
    if parent.first is None:
        return True
    if parent.rest_only:
        return bool(last.result and last.result.text)
    return joined.finish_reason == "stop" and has_more(joined.text_tokens, parent.first.text_tokens)
