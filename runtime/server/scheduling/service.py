"""One served model: takes files and live streams from the event loop and decodes them together in a thread."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing

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
from runtime.transcriber import Transcriber, ValidatedRequest

__all__ = ["LiveStream", "Results", "Service"]

# Cutting a second of audio takes about two milliseconds: two threads keep up with hundreds of streams.
_FEEDERS = 2


class Service:
    """One served model: its engine's thread and all requests for it. Used in one event loop.

    Attributes:
        name: name of the model for clients.
        transcriber: the model; nothing else may use its engine.
        created: time of creation in Unix seconds.
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
        """Whether it accepts requests."""
        return self._scheduler.running and not self._closing

    async def start(self) -> None:
        """Start its threads."""
        # The engine's first live state measures its passes; no other job may run meanwhile.
        await asyncio.to_thread(self.transcriber.engine.live)
        self._scheduler.start()

    async def drain(self, grace: float) -> None:
        """Refuse new requests, finish accepted ones, and end the threads.

        Live streams are finished as if their audio had ended. Requests that are not complete after ``grace`` seconds
        fail with :class:`Closing`.
        """
        self._closing = True
        began = time.monotonic()
        try:
            async with asyncio.timeout(grace):
                await asyncio.gather(*(stream.shut() for stream in self._streams), return_exceptions=True)
        except TimeoutError:
            pass  # streams that could not be finished are cancelled below
        left = max(0.0, grace - (time.monotonic() - began))
        await asyncio.to_thread(self._scheduler.wait_idle, left)
        reason = Closing("the server shut down before the request was complete; send it again")
        await asyncio.to_thread(self._scheduler.stop, reason)
        await asyncio.to_thread(self._executor.shutdown)  # at most one second of audio is still being cut

    async def transcribe(self, request: ValidatedRequest) -> Transcript:
        """Return the transcript of an audio file; arguments and errors are those of :meth:`segments`.

        Cancelling the task cancels the request at once.
        """
        async with aclosing(self.segments(request)) as results:
            async for item in results:
                if isinstance(item, Transcript):
                    return item
        raise AssertionError("results end with a transcript or an error")

    def check_capacity(self) -> None:
        """Check whether another file is accepted now.

        Raises:
            Closing: the service is shutting down.
            Busy: the queue is full.
        """
        self._check_open()
        if (files := self._scheduler.files) >= self._limits.max_queue:
            raise self._busy(f"{files} requests are waiting", self._files_done, files)

    def segments(self, request: ValidatedRequest) -> Results:
        """Accept an audio file; return its segments in order, each as soon as it is final, and last its transcript.

        Args:
            request: made by this model's :meth:`Transcriber.validate`. Its source is a seekable binary stream, which
                must stay open until the results have ended or are closed.

        Returns:
            An iterator whose ``aclose()`` cancels the rest. While it is read it can raise DeadlineExceeded,
            AudioTooLong, Closing, EngineFailure and the errors of :meth:`Transcriber.transcribe`.

        Raises:
            Closing: the service is shutting down.
            Busy: the queue is full.
        """
        self.check_capacity()
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
            context: hot words or free text; one that is too long keeps its last tokens.
            sample_rate: of the samples that will be fed, in Hz, at least 8000.
            live: interval of partial texts, pause that ends a segment.

        Raises:
            Closing: the service is shutting down.
            Busy: as many streams are open as allowed.
            OptionError: a language, context, rate or option that the model or the server cannot do.
        """
        self._check_open()
        rate = self.transcriber.engine.sample_rate
        incoming = StreamResampler(sample_rate, rate)
        if (streams := len(self._streams) + self._opening) >= self._limits.max_streams:
            raise self._busy(f"{streams} live streams are open", self._streams_done, streams)
        self._opening += 1
        try:
            session = await asyncio.to_thread(self.transcriber.live, language, context, live, shorten_context=True)
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
            on_audio=audio.inc,
            ended=self._stream_ended,
        )
        self._streams.add(stream)
        return stream

    def _check_open(self) -> None:
        if not self.ready:
            raise Closing(f"{self.name} is not started, or is shutting down; try again later")

    def _busy(self, what: str, done: Throughput, waiting: int) -> Busy:
        seconds = done.retry_after(waiting)
        busy = Busy(f"{what}, which is the limit; try again in {seconds} s", seconds)
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
