"""Streams as tests and benchmarks look at them: joined recordings, their events, and what is to hold of these."""

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

_NOTHING_ASKED = SegmentOptions()


def joined(clips: Sequence[Floats], gap: float) -> tuple[Floats, list[float]]:
    """Clips with so many seconds of faint noise behind each, and where each begins, in seconds."""
    noise = np.random.default_rng(0)
    parts: list[Floats] = []
    starts, at = [], 0
    for clip in clips:
        starts.append(at / RATE)
        parts += [clip, (noise.standard_normal(int(gap * RATE)) * 1e-4).astype(np.float32)]
        at += len(clip) + len(parts[-1])
    return np.concatenate(parts), starts


def streamed(stream: Stream, audio: Floats, piece: float) -> list[Event]:
    """All events of ``audio`` that is fed in pieces of so many seconds."""
    step = int(piece * RATE)
    events = [event for at in range(0, len(audio), step) for event in stream.feed(audio[at : at + step])]
    return [*events, *stream.finish()]


def finals(events: Sequence[Event]) -> list[Final]:
    return [event for event in events if isinstance(event, Final)]


def offline(
    engine: Engine, audio: Floats, options: SegmentOptions = _NOTHING_ASKED
) -> list[tuple[Piece, SegmentResult]]:
    """Every piece that a stream of ``audio`` is cut into, and its result alone."""
    pieces = speech_pieces([audio], RATE, engine.segment_seconds, pause=DEFAULT_LIVE.pause, live=True)
    return [(piece, engine.transcribe(piece.samples, options, Timings())) for piece in pieces]


def ends_as_offline(final: Final, piece: Piece, result: SegmentResult) -> bool:
    """Whether a segment's start, text, tokens and confidence are those of the piece alone."""
    given = final.result
    found = (given.start, given.text, given.tokens, given.confidence)
    return found == (round(piece.start / RATE, 3), result.text, result.tokens, round(result.confidence, 4))


def taken_back(events: Sequence[Event]) -> int:
    """How often a later text of a segment does not begin with what was stable."""
    stable: dict[int, str] = {}
    count = 0
    for event in events:
        if isinstance(event, Partial | Final):
            text = event.stable if isinstance(event, Partial) else event.result.text
            count += not text.startswith(stable.get(event.segment, ""))
            stable[event.segment] = text
    return count
