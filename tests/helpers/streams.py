"""Helpers for tests and benchmarks of live streams: join recordings, collect events and check them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from runtime.audio.segmentation import Piece, speech_pieces
from runtime.engines.base import Engine, SegmentOptions, SegmentResult
from runtime.pipeline.events import Event, Final, Partial
from runtime.pipeline.streaming import DEFAULT_LIVE, Stream
from runtime.results import Timings

RATE = 16_000
Floats = npt.NDArray[np.float32]

_NO_OPTIONS = SegmentOptions()


def joined(clips: Sequence[Floats], gap: float) -> tuple[Floats, list[float]]:
    """Join clips with ``gap`` seconds of faint noise after each; return the audio and each clip's start in seconds."""
    noise = np.random.default_rng(0)
    parts: list[Floats] = []
    starts, position = [], 0
    for clip in clips:
        starts.append(position / RATE)
        parts += [clip, (noise.standard_normal(int(gap * RATE)) * 1e-4).astype(np.float32)]
        position += len(clip) + len(parts[-1])
    return np.concatenate(parts), starts


def streamed(stream: Stream, audio: Floats, piece: float) -> list[Event]:
    """Feed ``audio`` in pieces of ``piece`` seconds and return all events."""
    step = int(piece * RATE)
    events = [event for start in range(0, len(audio), step) for event in stream.feed(audio[start : start + step])]
    return [*events, *stream.finish()]


def finals(events: Sequence[Event]) -> list[Final]:
    """Return the final results among ``events``."""
    return [event for event in events if isinstance(event, Final)]


def offline(engine: Engine, audio: Floats, options: SegmentOptions = _NO_OPTIONS) -> list[tuple[Piece, SegmentResult]]:
    """Return each piece that a stream of ``audio`` is cut into, and its result when transcribed alone."""
    pieces = speech_pieces([audio], RATE, engine.segment_seconds, pause=DEFAULT_LIVE.pause, live=True)
    return [(piece, engine.transcribe(piece.samples, options, Timings(), piece.speech)) for piece in pieces]


def ends_as_offline(final: Final, piece: Piece, result: SegmentResult) -> bool:
    """Return whether a segment's start, text, tokens and confidence equal those of the piece alone."""
    segment = final.result
    fields = (segment.start, segment.text, segment.tokens, segment.confidence)
    return fields == (round(piece.start / RATE, 3), result.text, result.tokens, round(result.confidence, 4))


def taken_back(events: Sequence[Event]) -> int:
    """Count the texts of a segment that do not begin with its earlier stable text."""
    stable: dict[int, str] = {}
    count = 0
    for event in events:
        if isinstance(event, Partial | Final):
            text = event.stable if isinstance(event, Partial) else event.result.text
            count += not text.startswith(stable.get(event.segment, ""))
            stable[event.segment] = text
    return count
