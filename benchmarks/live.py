"""Streams: final texts against offline ones, delay of stable words, cost of a chunk, memory over hours."""

from __future__ import annotations

import logging
import math
import statistics
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from benchmarks.artifacts import exported, quantized, random_weights
from benchmarks.scale import RATE, TOKENS_A_SECOND, child, recording
from export.compare import speech
from runtime import Transcriber
from runtime.engines.base import SegmentJob, SegmentOptions
from runtime.families.qwen3_asr import windows
from runtime.families.qwen3_asr.engine import LiveText, Qwen3AsrEngine
from runtime.families.qwen3_asr.windows import GrowingClip
from runtime.pipeline.events import Event, Final, Partial
from runtime.pipeline.streaming import DEFAULT_LIVE, LiveOptions, LiveSession, Stream
from runtime.results import Segment
from tests.conftest import ARTIFACT
from tests.helpers.streams import ends_as_offline, finals, joined, offline, streamed, taken_back
from tools.tiny.dataset import Item
from tools.tiny.evaluate import held_out

log = logging.getLogger("benchmarks")

Floats = npt.NDArray[np.float32]

UTTERANCES, GAP = 100, 1.2
PIECES = (0.02, 0.1, 1.0)
# Number of hypotheses that must agree, and whether words are emitted before their encoder window is complete.
STABILITY = ((3, False), (2, False), (2, True), (3, True), (4, True))
RISES = (0.0, 0.3, 1.0, math.inf)
MINUTES = 10
# Last tokens of a forced hypothesis that are decoded again each time, since words at the end of the audio change.
TAIL = 2
HOURS, FIRST_MINUTES = 2, 10


def measure(work: Path) -> dict[str, Any]:
    """Measure the small model over held-out speech, and over two hours of stream."""
    parent = exported("qwen3-asr-tiny", work / "small")
    small, _ = quantized(parent, "int8")
    data = held_out(work / "live")
    return {
        "offline": {
            name: {f"{piece:g}": _against_offline(path, data.items, data.clips, piece) for piece in PIECES}
            for name, path in (("float32", parent), ("int8", small))
        },
        "stability": _stability(small, data.items, data.clips),
        "normalization": _normalization(small, data.clips),
        "hours": child(_HOURS, ARTIFACT, recording(work, 3600 * HOURS), FIRST_MINUTES),
    }


def _against_offline(model: Path, items: list[Item], clips: list[Floats], piece: float) -> dict[str, Any]:
    """Count final segments with the text, tokens and start of offline decoding, and changes of stable text."""
    transcriber = Transcriber.from_artifact(model)
    audio, _ = joined(clips[:UTTERANCES], GAP)
    events = streamed(transcriber.stream(), audio, piece)
    expected = offline(transcriber.engine, audio)
    ends = finals(events)
    assert len(ends) == len(expected)
    results = {
        "utterances": len(items[:UTTERANCES]),
        "segments": len(expected),
        "equal": sum(ends_as_offline(final, *one) for final, one in zip(ends, expected, strict=True)),
        "partials": sum(isinstance(event, Partial) for event in events),
        "taken_back": taken_back(events),
    }
    log.info("%s", results)
    return results


def _stability(model: Path, items: list[Item], clips: list[Floats]) -> dict[str, Any]:
    """Measure by the number of agreeing hypotheses: share and delay of stable text, final texts unlike offline."""
    rows = []
    transcriber = Transcriber.from_artifact(model)
    audio, starts = joined(clips, GAP)
    for agreeing, early in STABILITY:
        session = transcriber.live(live=LiveOptions(agreeing=agreeing, early=early))
        events = streamed(Stream(transcriber.engine, session, RATE), audio, 0.1)
        ends = finals(events)
        stable, late, first = _lateness(events, items, starts)
        rows.append(
            {
                "agreeing": agreeing,
                "early": early,
                "segments": len(ends),
                "not_as_offline": sum(not final.as_offline for final in ends),
                "taken_back": taken_back(events),
                "stable_share": stable,
                "median_seconds": statistics.median(late),
                "p90_seconds": float(np.quantile(late, 0.9)),
                "words": len(late),
                "first_text_seconds": first,
            }
        )
        log.info("%s", rows[-1])
    return {"usual": DEFAULT_LIVE.agreeing, "rows": rows}


def _lateness(events: list[Event], items: list[Item], starts: list[float]) -> tuple[float, list[float], float]:
    """Return the share of characters that were stable before their segment ended, seconds from the start of each spoken
    word until it was stable, and the median seconds from a segment's start to its first text.

    Words are matched by their number in the utterance, in utterances of one segment and in languages with spaces.
    """
    before: dict[int, int] = {}
    first: dict[int, float] = {}
    ends: dict[int, Segment] = {}
    growth: dict[int, list[tuple[int, float]]] = {}
    for event in events:
        if isinstance(event, Partial):
            before[event.segment] = len(event.stable)
            growth.setdefault(event.segment, []).append((len(event.stable.split()), event.end))
            if event.stable + event.unstable:
                first.setdefault(event.segment, event.end - event.start)
        elif isinstance(event, Final):
            ends[event.segment] = event.result
    late = []
    for number, result in ends.items():
        index = max(index for index, start in enumerate(starts) if start <= result.start + 0.5)
        item = items[index]
        if item.language == "zh" or len(item.words) != len(result.text.split()):
            continue
        for word, (begun, _) in enumerate(item.words):
            stable_at = next((end for count, end in growth.get(number, []) if count > word), None)
            if stable_at is not None:
                late.append(stable_at - starts[index] - begun)
    characters = sum(len(result.text) for result in ends.values())
    return sum(before.values()) / characters, late, statistics.median(first.values())


def _normalization(model: Path, clips: list[Floats]) -> dict[str, Any]:
    """Count windows of long segments that are encoded again, and partial texts unlike exact normalization's."""
    transcriber = Transcriber.from_artifact(model)
    audio, _ = joined(clips, 0.3)
    engine = transcriber.engine
    assert isinstance(engine, Qwen3AsrEngine)
    texts: list[list[str]] = []
    results: dict[str, Any] = {}
    made_live = engine.live
    for rise in RISES:
        clips_made: list[GrowingClip] = []

        def live(rise: float = rise, clips_made: list[GrowingClip] = clips_made) -> LiveText:
            state = made_live()
            clip = state.clip
            state.clip = GrowingClip(clip._config, clip._frames, rise)
            clips_made.append(state.clip)
            return state

        engine.live = live  # type: ignore[method-assign]
        events = streamed(transcriber.stream(), audio, 0.1)
        texts.append([each.stable + each.unstable for each in events if isinstance(each, Partial)])
        same = [one == other for one, other in zip(texts[-1], texts[0], strict=True)]
        results[f"{rise:g}"] = {
            "finished": sum(clip.finished for clip in clips_made),
            "again": sum(clip.encoded_again for clip in clips_made),
            "partials": len(same),
            "other_partials": len(same) - sum(same),
        }
        log.info("%g: %s", rise, results[f"{rise:g}"])
    return {"usual": windows.RISE, "rises": results}


class _Forced(LiveSession):
    """A stream of random weights: each hypothesis has three tokens a second, and repeats all but its last tokens."""

    def next_job(self) -> SegmentJob | None:
        job = super().next_job()
        if job is None or job.live is None:
            return job
        count = max(1, round(TOKENS_A_SECOND * len(job.samples) / RATE))
        options = msgspec.structs.replace(job.options, max_new_tokens=count)
        work = msgspec.structs.replace(job.live, forced=max(0, min(count, len(job.live.draft)) - TAIL))
        return msgspec.structs.replace(job, options=options, live=work)


def measure_chunks(work: Path) -> dict[str, Any]:
    """Time each chunk of 1 s over ten minutes, with 0.6B int8 and random weights.

    The same minute is fed ten times; its last second is silent, so that every minute has the same segments.
    """
    model, _ = quantized(random_weights("0.6b", work / "0.6b"), "int8")
    transcriber = Transcriber.from_artifact(model)
    engine, minute = transcriber.engine, np.pad(speech(60 - 1), (0, RATE))
    options = SegmentOptions(max_new_tokens=1, ignore_stop=True)

    def open_stream() -> Stream:
        return Stream(engine, _Forced(engine, options, LiveOptions()), RATE)

    stream = open_stream()
    for at in range(0, 20 * RATE, RATE):  # reads the weights for the first time
        stream.feed(minute[at : at + RATE])
    stream = open_stream()
    durations: list[float] = []
    partials: list[float] = []
    last: list[float] = []
    first = 0.0

    def feed(to: Stream, at: int) -> tuple[float, list[Event]]:
        before = time.perf_counter()
        events = to.feed(minute[at : at + RATE])
        return time.perf_counter() - before, events

    other, begun = open_stream(), []
    for number in range(MINUTES):
        for at in range(0, len(minute), RATE):
            seconds, events = feed(stream, at)
            durations.append(seconds)
            if any(isinstance(event, Final) for event in events):
                last.append(seconds)
            elif any(isinstance(event, Partial) for event in events):
                partials.append(seconds)
                first = first or at / RATE + 1 + seconds
            if number == MINUTES - 1:  # the first minute of another stream, in alternation
                begun.append(feed(other, at)[0])
        log.info("minute %d: %.3f s a chunk", number + 1, statistics.mean(durations[-60:]))
    began = time.perf_counter()
    stream.finish()
    timings = stream.session.timings
    return {
        "seconds": 60 * MINUTES,
        "total": sum(durations) + time.perf_counter() - began,
        "minutes": [statistics.mean(durations[60 * number : 60 * number + 60]) for number in range(MINUTES)],
        "beside": {"first_minute": statistics.mean(begun), "last_minute": statistics.mean(durations[-60:])},
        "first_text": first,
        "partial": _spread(partials),
        "final": _spread(last),
        "timings": {stage: getattr(timings, stage) for stage in ("features", "encode", "prefill", "decode")},
    }


def _spread(seconds: list[float]) -> dict[str, float]:
    return {
        "count": len(seconds),
        "median": statistics.median(seconds),
        "p95": float(np.quantile(seconds, 0.95)),
        "most": max(seconds),
    }


# The small model over hours of audio in chunks of a second; texts have their natural lengths.
_HOURS = """
import json, sys
import soundfile
from runtime import Transcriber
from runtime.pipeline.events import Final, Partial
from runtime.host.memory import resident_bytes
model, path, first = sys.argv[1], sys.argv[2], 60 * int(sys.argv[3])
stream = Transcriber.from_artifact(model).stream()
resident, counts = [], {"partials": 0, "finals": 0}
for block in soundfile.blocks(path, blocksize=16_000, dtype="float32"):
    for event in stream.feed(block):
        counts["partials"] += isinstance(event, Partial)
        counts["finals"] += isinstance(event, Final)
    resident.append(resident_bytes())
stream.finish()
print(json.dumps({"seconds": len(resident), "first": first, "first_bytes": resident[first - 1],
                  "last_bytes": resident[-1], "most_bytes": max(resident), **counts}))
"""
