"""Text while audio arrives, which ends as the text that the same audio gives offline.

A segment is open from its first speech to a pause. While it is open it is decoded again and again as it grows, and only
what is new is computed: encoder windows that are finished, and keys and values of the prompt up to them, are kept, and
the hypothesis before is verified in one pass as a draft. When it is over it is decoded as it is offline.
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
from runtime.engines.base import Engine, LiveWork, SegmentJob, SegmentOptions, SegmentResult
from runtime.errors import OptionError
from runtime.pipeline.events import Event, Final, Partial, Speech
from runtime.pipeline.join_text import is_unspaced
from runtime.pipeline.scheduler import File
from runtime.pipeline.spans import segment_of
from runtime.results import Timings

Floats = npt.NDArray[np.float32]


class LiveOptions(msgspec.Struct, frozen=True):
    """How a stream is cut and told.

    ``interval`` is the new audio between partial texts, in seconds; ``pause`` the silence that ends a segment;
    ``stable`` whether text of open segments is reported as stable. Without it no text is stable before its segment is
    final. A word is stable when ``agreeing`` hypotheses in a row have it and all before it, and the encoder is done
    with its audio: ``early`` does not wait for that. docs/streaming.md has how late and how often wrong these are.
    """

    interval: float = 1.0
    pause: float = 0.8
    stable: bool = True
    agreeing: int = 3
    early: bool = False


DEFAULT_LIVE = LiveOptions()


@dataclass(slots=True, eq=False)
class _Open:
    """A segment on its way: the hypotheses so far, and what of them is stable."""

    number: int
    start: int
    state: Any
    heard: int  # sample up to which it was decoded, or is being
    hypotheses: deque[list[int]]
    tokens: int = 0  # of the hypothesis, stable ones
    text: str = ""  # the stable text
    most: int | None = None  # tokens that can become stable: behind these the segment may yet be cut
    heard_by: deque[tuple[int, int]] = field(default_factory=deque)  # samples, and tokens of what was said of them

    @property
    def draft(self) -> list[int]:
        return self.hypotheses[-1] if self.hypotheses else []


@dataclass(frozen=True, slots=True)
class _Partial:
    segment: _Open
    end: int
    may_be_cut: bool


@dataclass(frozen=True, slots=True)
class _Final:
    segment: _Open
    file: File
    piece: Piece
    part: int | None = None
    held: bool = False


class LiveSession:
    """One stream, without the engine: what is to be decoded is asked for, results are given back.

    Not for several threads at once. What it holds does not grow with the stream.
    """

    def __init__(self, engine: Engine, options: SegmentOptions, live: LiveOptions = DEFAULT_LIVE) -> None:
        """``options`` are those of every segment; see :meth:`runtime.transcriber.Transcriber.live`, which checks them.

        Raises:
            OptionError: an interval or a pause that cannot be.
        """
        if not 0.1 <= live.interval <= 60:
            raise OptionError(f"an interval of {live.interval:g} s between partial texts is not 0.1 to 60 s")
        if not 1 <= live.agreeing <= 100:
            raise OptionError(f"{live.agreeing} hypotheses cannot be made to agree; give 1 to 100")
        self._engine, self._options, self._live = engine, options, live
        self._rate = engine.sample_rate
        self._cutter = SpeechCutter(self._rate, engine.segment_seconds, pause=live.pause, live=True)
        self._interval = int(live.interval * self._rate)
        self._open: _Open | None = None
        self._segments = 0
        self._samples = 0
        self._finals: deque[SegmentJob] = deque()
        self._closed: deque[tuple[_Open, Piece]] = deque()
        self._waiting: Any = None
        self._finished = False
        self.timings = Timings()
        engine.live()  # what takes a moment is done before audio comes

    @property
    def duration(self) -> float:
        """Seconds of audio so far."""
        return self._samples / self._rate

    @property
    def behind(self) -> float:
        """Seconds of audio that were fed and are not decoded yet, not even once; silence after speech is none."""
        span = self._cutter.open
        first, end = (self._closed[0][0], self._samples) if self._closed else (self._open, span[1] if span else 0)
        return 0.0 if first is None else max(0.0, (end - max(first.heard, first.start)) / self._rate)

    @property
    def complete(self) -> bool:
        """Whether the stream was finished and every segment has its final text."""
        return self._finished and not (self._closed or self._finals or self._waiting)

    def feed(self, samples: Floats) -> list[Event]:
        """Take the next samples: mono, at the engine's rate.

        Raises:
            ValueError: the stream was finished.
        """
        if self._finished:
            raise ValueError("the stream is finished; open another one")
        self._samples += len(samples)
        return self._cut(self._cutter.hear(samples))

    def commit(self) -> list[Event]:
        """End the open segment now, as if a pause had come."""
        return self._cut(self._cutter.close())

    def finish(self) -> list[Event]:
        """There is no more audio: what is open ends."""
        if self._finished:
            return []
        self._finished = True
        return self._cut(self._cutter.end())

    def _cut(self, pieces: Iterable[Piece]) -> list[Event]:
        events: list[Event] = []
        for piece in pieces:
            # A cut that leaves something out may begin a piece later than its first speech.
            segment = self._open or self._begin(piece.start, events)
            self._open = None
            self._closed.append((segment, piece))
        if self._open is None and (span := self._cutter.open):
            self._begin(span[0], events)
        return events

    def _begin(self, start: int, events: list[Event]) -> _Open:
        hypotheses: deque[list[int]] = deque(maxlen=max(2, self._live.agreeing))
        self._open = made = _Open(self._segments, start, self._engine.live(), start, hypotheses)
        self._segments += 1
        events.append(Speech(made.number, round(start / self._rate, 3)))
        return made

    def next_job(self) -> SegmentJob | None:
        """What the engine is to do next; None while it is doing something for this stream, or there is nothing."""
        if self._waiting:
            return None
        job = self._final() or self._partial()
        self._waiting = job.key if job else None
        return job

    def _final(self) -> SegmentJob | None:
        if self._finals:
            return self._finals.popleft()
        if not self._closed:
            return None
        segment, piece = self._closed.popleft()
        file = File(segment.number, self._rate, self.timings, options=self._options)
        job = file.job(file.add(piece))
        work = LiveWork(segment.state, final=True, draft=segment.draft)
        return msgspec.structs.replace(job, key=_Final(segment, file, piece), live=work)

    def _partial(self) -> SegmentJob | None:
        segment, span = self._open, self._cutter.open
        if not segment or not span or span[1] - segment.heard < self._interval:
            return None
        segment.heard = span[1]
        return SegmentJob(
            key=_Partial(segment, span[1], span[1] > self._cutter.settled),
            samples=self._cutter.samples((segment.start, span[1])),
            options=self._options,
            timings=self.timings,
            began=time.perf_counter(),
            live=LiveWork(segment.state, final=False, draft=segment.draft, forced=segment.tokens),
        )

    def take(self, key: Any, result: SegmentResult) -> list[Event]:
        """Take the result of a job; what it tells."""
        self._waiting = None
        if isinstance(key, _Partial):
            return [self._heard(key, result)]
        return self._ended(key, result)

    def _heard(self, key: _Partial, result: SegmentResult) -> Event:
        segment = key.segment
        segment.hypotheses.append(result.tokens)
        if key.may_be_cut and segment.most is None:
            # What the hypothesis before said is of audio that stays; words behind it may go to the next segment.
            segment.most = len(segment.hypotheses[-2]) if len(segment.hypotheses) > 1 else 0
        segment.heard_by.append((key.end - segment.start, len(result.tokens)))
        if self._live.stable and result.finish_reason != "repetition":
            self._settle(segment, result.text)
        text = result.text if result.text.startswith(segment.text) else segment.text
        start, end = round(segment.start / self._rate, 3), round(key.end / self._rate, 3)
        return Partial(segment.number, start, end, segment.text, text[len(segment.text) :], result.language)

    def _settle(self, segment: _Open, text: str) -> None:
        """Let what the last hypotheses agree on be stable, up to the end of a word."""
        last = list(segment.hypotheses)[-self._live.agreeing :]
        if len(last) < self._live.agreeing:
            return
        tokens = segment.draft
        agreed = min(_common(tokens, other) for other in last)
        agreed = agreed if segment.most is None else min(agreed, segment.most)
        if not self._live.early:
            agreed = min(agreed, self._encoded(segment))
        for count in range(agreed, segment.tokens, -1):
            _, begun = self._engine.read(tokens[:count], self._options.language, ended=False)
            if begun.startswith(segment.text) and _is_whole(begun, text):
                segment.tokens, segment.text = count, begun
                return

    @staticmethod
    def _encoded(segment: _Open) -> int:
        """Tokens of the last hypothesis that heard nothing but what the encoder is done with."""
        heard = segment.heard_by
        while len(heard) > 1 and heard[1][0] <= segment.state.settled:
            heard.popleft()
        return heard[0][1] if heard[0][0] <= segment.state.settled else 0

    def _ended(self, key: _Final, result: SegmentResult) -> list[Event]:
        segment, file, stable = key.segment, key.file, key.segment.text
        if key.held:
            # What cannot be forced is left out, and with it the times of words that are not those of the text.
            kept = result.text.startswith(stable)
            told = result if kept else msgspec.structs.replace(result, text=stable, words=None)
            span = msgspec.structs.replace(file.slots[0].span(), result=told)
            return [Final(segment.number, segment_of(span, self._rate), as_offline=False)]
        for job in file.take(0, key.part, result):
            again = replace(key, part=job.key[2])
            self._finals.append(msgspec.structs.replace(job, key=again))
        if not file.slots[0].result:
            return []
        span = file.slots[0].span()
        if span.result.text.startswith(stable):
            return [Final(segment.number, segment_of(span, self._rate), as_offline=True)]
        # The model takes back what was reported stable. It stays, and the rest is decoded after it.
        work = LiveWork(segment.state, final=True, draft=segment.draft[: segment.tokens], forced=segment.tokens)
        job = SegmentJob(
            replace(key, part=None, held=True),
            key.piece.samples,
            self._options,
            self.timings,
            time.perf_counter(),
            live=work,
        )
        self._finals.append(job)
        return []


def _common(tokens: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two texts begin with alike."""
    pairs = enumerate(zip(tokens, other, strict=False))
    return next((index for index, (left, right) in pairs if left != right), min(len(tokens), len(other)))


def _is_whole(begun: str, text: str) -> bool:
    """Whether ``begun`` is the beginning of ``text`` up to the end of a word that is not the last one."""
    rest = text[len(begun) :]
    if not (begun and rest and text.startswith(begun)):
        return False
    return rest[0].isspace() or is_unspaced(rest[0]) or is_unspaced(begun[-1])


class Stream:
    """A :class:`LiveSession` whose engine runs on the calling thread. Not for several threads at once."""

    def __init__(self, engine: Engine, session: LiveSession, sample_rate: int) -> None:
        """``sample_rate`` is that of the audio which will be fed, in Hz."""
        self._engine, self.session = engine, session
        self._incoming = StreamResampler(sample_rate, engine.sample_rate)
        self._failed = False

    def feed(self, samples: npt.NDArray[Any]) -> list[Event]:
        """Take the next samples, mono floats or 16-bit integers, and decode what became possible with them.

        Raises:
            AudioInvalidError: an array of another shape or type.
            ValueError: the stream was finished, or failed before: what the engine raised came through then.
        """
        return self._run(self.session.feed(self._incoming.take(samples)))

    def commit(self) -> list[Event]:
        """End the open segment now, as if a pause had come."""
        return self._run(self.session.commit())

    def finish(self) -> list[Event]:
        """The last events: there is no more audio."""
        if self.session.complete:
            return []
        events = self.session.feed(self._incoming.end())
        return self._run([*events, *self.session.finish()])

    def _run(self, events: list[Event]) -> list[Event]:
        if self._failed:
            raise ValueError("the stream failed before; open another one")
        self._failed = True  # whatever comes through here, an interrupt too, takes a job's result with it
        for key, result in self._engine.run(self.session.next_job):
            events = [*events, *self.session.take(key, result)]
        self._failed = False
        return events
