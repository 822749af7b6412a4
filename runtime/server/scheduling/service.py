"""One model as a server offers it: files and live streams from the event loop, decoded together in a thread."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import BinaryIO

from runtime.audio.stream_resampler import StreamResampler
from runtime.pipeline.streaming import DEFAULT_LIVE, LiveOptions
from runtime.results import Transcript
from runtime.server.errors import Busy, Closing
from runtime.server.limits import Limits
from runtime.server.metrics import Metrics
from runtime.server.scheduling.file_results import Results
from runtime.server.scheduling.live_stream import LiveStream
from runtime.server.scheduling.scheduler import Scheduler
from runtime.server.scheduling.stream_ticket import Latency, StreamTicket
from runtime.server.scheduling.throughput import Throughput
from runtime.transcriber import Request, Transcriber

__all__ = ["LiveStream", "Results", "Service"]

# Cutting a second of audio takes about two milliseconds: two threads keep up with hundreds of streams.
_FEEDERS = 2


class Service:
    """One model: its engine in a thread of its own, and everything that waits for it. Used in one event loop.

    Attributes:
        name: what clients call the model.
        transcriber: the model; nobody else may use its engine meanwhile.
        created: when, in Unix seconds.
    """

    def __init__(self, name: str, transcriber: Transcriber, limits: Limits, metrics: Metrics) -> None:
        self.name, self.transcriber = name, transcriber
        self.created = int(time.time())
        self._limits, self._metrics = limits, metrics
        self._scheduler = Scheduler(name, transcriber, metrics, longest=limits.max_audio_seconds)
        self._executor = ThreadPoolExecutor(_FEEDERS, f"asr-feed-{name}")
        self._closing = False
        self._files_done, self._streams_done = Throughput(), Throughput()
        self._streams: set[LiveStream] = set()
        self._opening = 0

    @property
    def ready(self) -> bool:
        """Whether it takes requests."""
        return self._scheduler.running and not self._closing

    async def start(self) -> None:
        """Start its threads."""
        # The first text that grows has the engine try out its passes, which nobody else may use meanwhile.
        await asyncio.to_thread(self.transcriber.engine.live)
        self._scheduler.start()

    async def drain(self, grace: float) -> None:
        """Refuse what is new, finish what was accepted, and end the threads.

        Live streams are finished as if their speakers had been. What is not done after ``grace`` seconds fails with
        :class:`Closing`.
        """
        self._closing = True
        began = time.monotonic()
        try:
            async with asyncio.timeout(grace):
                await asyncio.gather(*(stream.shut() for stream in self._streams), return_exceptions=True)
        except TimeoutError:
            pass  # those that could not even be told are given up below
        left = max(0.0, grace - (time.monotonic() - began))
        await asyncio.to_thread(self._scheduler.wait_idle, left)
        reason = Closing("the server shut down before this was done; send it again")
        await asyncio.to_thread(self._scheduler.stop, reason)
        await asyncio.to_thread(self._executor.shutdown)  # what it still cuts is a second of audio

    async def transcribe(self, source: BinaryIO, *, language: str | None = None, context: str = "") -> Transcript:
        """The whole transcript of an audio file; see :meth:`segments`. Cancelling gives the request up at once."""
        async with aclosing(self.segments(source, language=language, context=context)) as results:
            async for item in results:
                if isinstance(item, Transcript):
                    return item
        raise AssertionError("results end with a transcript or an error")

    def segments(self, source: BinaryIO, *, language: str | None = None, context: str = "") -> Results:
        """Accept an audio file: its segments in order, as soon as each is final, and the transcript last.

        Args:
            source: a seekable binary stream. It must stay open until the results have ended or were closed.
            language: English name or code; None or ``auto`` detects it for each segment.
            context: hot words or free text that decides between spellings.

        Returns:
            An iterator with ``aclose()``, which gives up what is not done. It raises, where they are found,
            DeadlineExceeded, AudioTooLong, Closing, EngineFailure and what :meth:`Transcriber.transcribe` raises.

        Raises:
            Closing, Busy: it was not accepted, at once.
            OptionError: a language or context that the model cannot do, at once too.
        """
        self._check_open()
        if (files := self._scheduler.files) >= self._limits.max_queue:
            raise self._busy(f"{files} requests wait already", self._files_done, files)
        request = Request(source, language, context, name="the audio")
        self.transcriber.check(request)
        return Results(
            lambda deliver: self._scheduler.submit(request, deliver), self._limits.deadline, self._file_ended
        )

    async def open_stream(
        self,
        *,
        language: str | None = None,
        context: str = "",
        sample_rate: int = 16_000,
        live: LiveOptions = DEFAULT_LIVE,
    ) -> LiveStream:
        """Accept a live stream.

        Args:
            language: English name or code; None or ``auto`` detects it for each segment.
            context: hot words or free text.
            sample_rate: of what will be fed, in Hz: at least 8000.
            live: how often there are partials, and what ends a segment.

        Raises:
            Closing, Busy: it was not accepted.
            OptionError: a language, context, rate or option that the model or the server cannot do.
        """
        self._check_open()
        rate = self.transcriber.engine.sample_rate
        incoming = StreamResampler(sample_rate, rate)
        if (streams := len(self._streams) + self._opening) >= self._limits.max_streams:
            raise self._busy(f"{streams} live streams are open already", self._streams_done, streams)
        self._opening += 1
        try:
            session = await asyncio.to_thread(self.transcriber.live, language, context, live)
        finally:
            self._opening -= 1
        self._check_open()
        latency = Latency(self._metrics, self.name)
        audio = self._metrics.audio.labels(self.name, "stream")
        stream = LiveStream(
            lambda deliver, progressed: self._scheduler.attach(
                lambda changed, ended: StreamTicket(
                    session, rate, changed, deliver=deliver, progressed=progressed, ended=ended, latency=latency
                )
            ),
            self._executor,
            incoming,
            sample_rate=sample_rate,
            longest=self._limits.stream_seconds,
            heard=audio.inc,
            ended=self._stream_ended,
        )
        self._streams.add(stream)
        return stream

    def _check_open(self) -> None:
        if not self.ready:
            raise Closing(f"{self.name} is not started, or is shutting down; try again later")

    def _busy(self, what: str, done: Throughput, waiting: int) -> Busy:
        seconds = done.retry_after(waiting)
        busy = Busy(f"{what}, as many as may; try again in {seconds} s", seconds)
        self._metrics.failed(self.name, busy)
        return busy

    def _file_ended(self, outcome: Transcript | BaseException) -> None:
        self._files_done.ended()
        if isinstance(outcome, BaseException):
            self._metrics.failed(self.name, outcome)
        else:
            self._metrics.audio.labels(self.name, "file").inc(outcome.duration)

    def _stream_ended(self, stream: LiveStream, error: BaseException | None) -> None:
        self._streams.discard(stream)
        self._streams_done.ended()
        if error:
            self._metrics.failed(self.name, error)
