"""Live transcription: text while audio arrives, whose final text equals the offline text of the same audio.

A segment is open from its first speech to a pause. While it is open it is decoded repeatedly as it grows, and only new
work is done: finished encoder windows, and keys and values of the prompt up to them, are kept, and the previous
hypothesis is verified as a draft in one pass. When the segment ends it is decoded as offline.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from runtime.audio.segmentation import Piece, SpeechCutter
from runtime.audio.stream_resampler import StreamResampler
from runtime.engines.base import Engine, LiveSegment, SegmentJob, SegmentOptions, SegmentResult
from runtime.errors import OptionError
from runtime.pipeline.audio_file import AudioFile, JobKey
from runtime.pipeline.events import Event, Final, Partial, Speech
from runtime.pipeline.join_text import is_unspaced
from runtime.pipeline.spans import segment_of
from runtime.results import Timings

Floats = npt.NDArray[np.float32]


class LiveOptions(msgspec.Struct, frozen=True):
    """Options of a stream.

    ``interval``: seconds of new audio between partial texts, 0.1 to 60. ``pause``: seconds of silence that end a
    segment. ``stable``: report text of open segments as stable; without it no text is stable before its segment is
    final. A word is stable when ``agreeing`` consecutive hypotheses (1 to 100) contain it and everything before it, and
    the encoder output of its audio is settled; ``early`` does not wait for the latter. docs/streaming.md has latencies
    and error rates of these choices.
    """

    interval: float = 1.0
    pause: float = 0.8
    stable: bool = True
    agreeing: int = 3
    early: bool = False


DEFAULT_LIVE = LiveOptions()


@dataclass(slots=True, eq=False)
class _OpenSegment:
    """An open segment: its hypotheses and their stable part."""

    number: int
    start: int
    state: Any
    decoded_to: int  # sample up to which it is decoded, or is being decoded
    hypotheses: deque[list[int]]
    stable_tokens: int = 0
    stable_text: str = ""
    stable_limit: int | None = None  # largest number of stable tokens: the segment may be cut behind them
    coverage: deque[tuple[int, int]] = field(default_factory=deque)  # (samples, tokens) of earlier hypotheses

    @property
    def draft(self) -> list[int]:
        return self.hypotheses[-1] if self.hypotheses else []


@dataclass(frozen=True, slots=True)
class _PartialKey:
    segment: _OpenSegment
    end: int
    may_be_cut: bool


@dataclass(frozen=True, slots=True)
class _FinalKey:
    segment: _OpenSegment
    file: AudioFile
    piece: Piece
    part: int | None = None
    keeps_stable: bool = False  # decoded after its stable text, which the offline text would have changed


class LiveSession:
    """One stream apart from its engine: a caller fetches jobs and returns their results.

    Not thread-safe. Memory does not grow with the stream's length.
    """

    def __init__(self, engine: Engine, options: SegmentOptions, live: LiveOptions = DEFAULT_LIVE) -> None:
        """Open a session with validated ``options`` for every segment.

        Raises:
            OptionError: ``interval``, ``pause`` or ``agreeing`` out of range.
        """
        if not 0.1 <= live.interval <= 60:
            raise OptionError(f"the interval between partial texts must be 0.1 to 60 s, not {live.interval:g}")
        if not 1 <= live.agreeing <= 100:
            raise OptionError(f"the number of agreeing hypotheses must be 1 to 100, not {live.agreeing}")
        self._engine, self._options, self._live = engine, options, live
        self._rate = engine.sample_rate
        self._cutter = SpeechCutter(self._rate, engine.segment_seconds, pause=live.pause, live=True)
        self._interval = int(live.interval * self._rate)
        self._current: _OpenSegment | None = None
        self._segments = 0
        self._samples = 0
        self._finals: deque[SegmentJob] = deque()
        self._closed: deque[tuple[_OpenSegment, Piece]] = deque()
        self._waiting: Any = None
        self._finished = False
        self.timings = Timings()
        engine.live()  # do the measurement of the first call before audio arrives

    @property
    def duration(self) -> float:
        """Seconds of audio so far."""
        return self._samples / self._rate

    @property
    def behind(self) -> float:
        """Seconds of audio that were fed and are not decoded yet; silence after speech does not count."""
        span = self._cutter.open
        first, end = (self._closed[0][0], self._samples) if self._closed else (self._current, span[1] if span else 0)
        return 0.0 if first is None else max(0.0, (end - max(first.decoded_to, first.start)) / self._rate)

    @property
    def complete(self) -> bool:
        """Whether the stream is finished and every segment has its final text."""
        return self._finished and not (self._closed or self._finals or self._waiting)

    def feed(self, samples: Floats) -> list[Event]:
        """Take the next mono samples [n] float32 at the engine's rate; return new events.

        Raises:
            ValueError: the stream was finished.
        """
        if self._finished:
            raise ValueError("the stream is finished; open another one")
        self._samples += len(samples)
        return self._cut(self._cutter.hear(samples))

    def commit(self) -> list[Event]:
        """End the open segment now, as a pause would; return new events."""
        return self._cut(self._cutter.close())

    def finish(self) -> list[Event]:
        """End the stream and its open segment; return new events."""
        if self._finished:
            return []
        self._finished = True
        return self._cut(self._cutter.end())

    def _cut(self, pieces: Iterable[Piece]) -> list[Event]:
        events: list[Event] = []
        for piece in pieces:
            # A cut that leaves silence out may start a piece later than its first speech.
            segment = self._current or self._begin(piece.start, events)
            self._current = None
            self._closed.append((segment, piece))
        if self._current is None and (span := self._cutter.open):
            self._begin(span[0], events)
        return events

    def _begin(self, start: int, events: list[Event]) -> _OpenSegment:
        hypotheses: deque[list[int]] = deque(maxlen=max(2, self._live.agreeing))
        self._current = opened = _OpenSegment(self._segments, start, self._engine.live(), start, hypotheses)
        self._segments += 1
        events.append(Speech(opened.number, round(start / self._rate, 3)))
        return opened

    def next_job(self) -> SegmentJob | None:
        """Return the next job; None while one is being decoded for this stream, or when there is nothing to decode."""
        if self._waiting:
            return None
        job = self._final_job() or self._partial_job()
        self._waiting = job.key if job else None
        return job

    def _final_job(self) -> SegmentJob | None:
        if self._finals:
            return self._finals.popleft()
        if not self._closed:
            return None
        segment, piece = self._closed.popleft()
        file = AudioFile(segment.number, self._rate, self.timings, options=self._options)
        job = file.job(file.add(piece))
        live = LiveSegment(segment.state, final=True, draft=segment.draft)
        return msgspec.structs.replace(job, key=_FinalKey(segment, file, piece), live=live)

    def _partial_job(self) -> SegmentJob | None:
        segment, span = self._current, self._cutter.open
        if not segment or not span or span[1] - segment.decoded_to < self._interval:
            return None
        segment.decoded_to = span[1]
        return SegmentJob(
            key=_PartialKey(segment, span[1], span[1] > self._cutter.settled),
            samples=self._cutter.samples((segment.start, span[1])),
            options=self._options,
            timings=self.timings,
            began=time.perf_counter(),
            live=LiveSegment(segment.state, final=False, draft=segment.draft, forced=segment.stable_tokens),
            speech=self._cutter.speech((segment.start, span[1])),
        )

    def take(self, key: Any, result: SegmentResult) -> list[Event]:
        """Take the result of a job; return new events."""
        self._waiting = None
        if isinstance(key, _PartialKey):
            return [self._take_partial(key, result)]
        return self._take_final(key, result)

    def _take_partial(self, key: _PartialKey, result: SegmentResult) -> Event:
        segment = key.segment
        segment.hypotheses.append(result.tokens)
        if key.may_be_cut and segment.stable_limit is None:
            # The previous hypothesis covers audio that stays; words behind it may move to the next segment.
            segment.stable_limit = len(segment.hypotheses[-2]) if len(segment.hypotheses) > 1 else 0
        segment.coverage.append((key.end - segment.start, len(result.tokens)))
        if self._live.stable and result.finish_reason != "repetition":
            self._extend_stable(segment, result.text)
        stable = segment.stable_text
        text = result.text if result.text.startswith(stable) else stable
        start, end = round(segment.start / self._rate, 3), round(key.end / self._rate, 3)
        return Partial(segment.number, start, end, stable, text[len(stable) :], result.language)

    def _extend_stable(self, segment: _OpenSegment, text: str) -> None:
        """Extend the stable text by what the last hypotheses agree on, up to the end of a word."""
        last = list(segment.hypotheses)[-self._live.agreeing :]
        if len(last) < self._live.agreeing:
            return
        tokens = segment.draft
        agreed = min(_common_prefix(tokens, other) for other in last)
        agreed = agreed if segment.stable_limit is None else min(agreed, segment.stable_limit)
        if not self._live.early:
            agreed = min(agreed, self._settled_tokens(segment))
        for count in range(agreed, segment.stable_tokens, -1):
            _, prefix = self._engine.read(tokens[:count], self._options.language, ended=False)
            if prefix.startswith(segment.stable_text) and _ends_at_word(prefix, text):
                segment.stable_tokens, segment.stable_text = count, prefix
                return

    @staticmethod
    def _settled_tokens(segment: _OpenSegment) -> int:
        """Return the tokens of the last hypothesis that covers only audio with settled encoder output."""
        coverage = segment.coverage
        while len(coverage) > 1 and coverage[1][0] <= segment.state.settled:
            coverage.popleft()
        return coverage[0][1] if coverage[0][0] <= segment.state.settled else 0

    def _take_final(self, key: _FinalKey, result: SegmentResult) -> list[Event]:
        segment, file, stable = key.segment, key.file, key.segment.stable_text
        if key.keeps_stable:
            # A text that does not continue the stable one is left out, and with it word times of another text.
            continues = result.text.startswith(stable)
            final = result if continues else msgspec.structs.replace(result, text=stable, words=None, dropped_text=None)
            span = msgspec.structs.replace(file.slots[0].span(), result=final)
            return [Final(segment.number, segment_of(span, self._rate), as_offline=False)]
        for job in file.take(JobKey(file, 0, key.part), result):
            self._finals.append(msgspec.structs.replace(job, key=replace(key, part=job.key.part)))
        if not file.slots[0].result:
            return []
        span = file.slots[0].span()
        if span.result.text.startswith(stable):
            return [Final(segment.number, segment_of(span, self._rate), as_offline=True)]
        # The model would change the stable text. It stays, and the rest is decoded after it.
        count = segment.stable_tokens
        job = SegmentJob(
            replace(key, part=None, keeps_stable=True),
            key.piece.samples,
            self._options,
            self.timings,
            time.perf_counter(),
            live=LiveSegment(segment.state, final=True, draft=segment.draft[:count], forced=count),
            speech=key.piece.speech,
        )
        self._finals.append(job)
        return []


def _common_prefix(tokens: Sequence[int], other: Sequence[int]) -> int:
    """Return the length of the common prefix of two texts in tokens."""
    pairs = enumerate(zip(tokens, other, strict=False))
    return next((index for index, (left, right) in pairs if left != right), min(len(tokens), len(other)))


def _ends_at_word(prefix: str, text: str) -> bool:
    """Return whether ``prefix`` starts ``text`` and ends with a word that is not the text's last one."""
    rest = text[len(prefix) :]
    if not (prefix and rest and text.startswith(prefix)):
        return False
    return rest[0].isspace() or is_unspaced(rest[0]) or is_unspaced(prefix[-1])


class Stream:
    """A :class:`LiveSession` with its engine on the calling thread. Not thread-safe."""

    def __init__(self, engine: Engine, session: LiveSession, sample_rate: int) -> None:
        """``sample_rate``: of the samples that will be fed, in Hz."""
        self._engine, self.session = engine, session
        self._incoming = StreamResampler(sample_rate, engine.sample_rate)
        self._failed = False

    def feed(self, samples: npt.NDArray[Any]) -> list[Event]:
        """Take the next mono samples [n], float32 or int16; decode what they complete and return new events.

        Raises:
            AudioInvalidError: an array of another shape or type.
            ValueError: the stream is finished, or an earlier call raised an error.
        """
        return self._run(self.session.feed(self._incoming.take(samples)))

    def commit(self) -> list[Event]:
        """End the open segment now, as a pause would; return new events."""
        return self._run(self.session.commit())

    def finish(self) -> list[Event]:
        """End the stream; return the last events."""
        if self.session.complete:
            return []
        events = self.session.feed(self._incoming.end())
        return self._run([*events, *self.session.finish()])

    def _run(self, events: list[Event]) -> list[Event]:
        if self._failed:
            raise ValueError("the stream failed before; open another one")
        self._failed = True  # any exception below, an interrupt too, loses a job's result
        for key, result in self._engine.run(self.session.next_job):
            events = [*events, *self.session.take(key, result)]
        self._failed = False
        return events
