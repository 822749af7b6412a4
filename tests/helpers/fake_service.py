"""Fake service without a model, and a server in a thread, for tests of the HTTP layer."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

from starlette.applications import Starlette

from runtime.engines.base import SegmentOptions
from runtime.engines.capabilities import Capabilities
from runtime.errors import CapabilityError, OptionError
from runtime.results import Segment, Timings, TokenCounts, Transcript
from runtime.server.app import make_app
from runtime.server.metrics import Metrics
from runtime.server.scheduling.service import Service
from runtime.server.serve import Server, bind, url
from runtime.server.settings import Settings
from runtime.transcriber import Request, ValidatedRequest


def segment(text: str, start: float = 0.0, end: float = 1.0) -> Segment:
    return Segment(start, end, text, "English", 0.5, "stop", [7, 8, 9])


def transcript(*segments: Segment) -> Transcript:
    return Transcript(
        text=" ".join(each.text for each in segments if each.text),
        language="English" if segments else None,
        duration=2.5,
        segments=list(segments),
        timings=Timings(),
        tokens=TokenCounts(audio=26, prompt=40, generated=5),
        model="fake",
        provider="cpu",
        versions={},
    )


class FakeService:
    """Service with scripted results.

    Attributes:
        results: segments returned for every file.
        error: raised instead of a result.
        late_error: raised after the segments of a stream.
        dropped: tokens that every prompt loses because it is too long.
        timestamps: whether each validated request wants the model's own times.
        calls: content of the file, language and context of each call.
        entered: set when a transcription has started.
        cancelled: set when a transcription was cancelled.
        release: if set, transcriptions and draining wait for it.
        drained: grace period of the call of ``drain``.
    """

    def __init__(self, name: str = "fake", *segments: Segment) -> None:
        self.name, self.created, self.ready = name, 1_700_000_000, False
        self.results = segments or (segment("One two"), segment("three.", 1.0, 2.0))
        self.error: Exception | None = None
        self.late_error: Exception | None = None
        self.dropped, self.timestamps = 0, list[bool]()
        self.calls: list[tuple[bytes, str | None, str]] = []
        self.entered, self.cancelled = threading.Event(), threading.Event()
        self.release: asyncio.Event | None = None
        self.transcriber = SimpleNamespace(
            validate=self._validate,
            audio_in_prompt=True,
            capabilities=Capabilities(context=True, language=True, language_detection=True),
            artifact=SimpleNamespace(
                manifest=SimpleNamespace(languages=[SimpleNamespace(code="en", name="English")]),
            ),
        )
        self.drained: float | None = None

    def _validate(self, request: Request, **options: bool) -> ValidatedRequest:
        if options.get("words"):
            raise CapabilityError("times of words are not supported", "words")
        if request.language not in (None, "en", "English"):
            raise OptionError(f"unknown language {request.language!r}", "language")
        self.timestamps.append(request.timestamps)
        options_of_segments = SegmentOptions("English" if request.language else None, request.context)
        return ValidatedRequest(request, options_of_segments, self.dropped if options["shorten_context"] else 0)

    def check_capacity(self) -> None:
        pass

    async def start(self) -> None:
        self.ready = True

    async def drain(self, grace: float) -> None:
        self.ready, self.drained = False, grace
        if self.release:
            await self.release.wait()

    async def transcribe(self, request: ValidatedRequest) -> Transcript:
        source: Any = request.request.source
        self.calls.append((source.read(), request.options.language, request.options.context))
        self.entered.set()
        try:
            if self.release:
                await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        if self.error:
            raise self.error
        return transcript(*self.results)

    async def segments(self, request: ValidatedRequest) -> AsyncIterator[Segment | Transcript]:
        whole = await self.transcribe(request)
        for each in whole.segments:
            yield each
        if self.late_error:
            raise self.late_error
        yield whole


def as_services(*services: FakeService) -> Mapping[str, Service]:
    return {service.name: cast(Service, service) for service in services}


def app(*services: FakeService, settings: Settings | None = None, metrics: Metrics | None = None) -> Starlette:
    return make_app(as_services(*services), settings or Settings(), metrics or Metrics())


class Running:
    """Server that runs in a thread."""

    def __init__(self, server: Server, address: str, port: int, thread: threading.Thread) -> None:
        self.server, self.url, self.port, self.thread = server, address, port, thread
        self.loop: Any = None

    def call(self, function: Any, *arguments: Any) -> None:
        """Schedule a call in the server's event loop."""
        self.loop.call_soon_threadsafe(function, *arguments)

    def stop(self) -> None:
        self.server.should_exit = True


@contextmanager
def running(application: Starlette, settings: Settings | None = None) -> Iterator[Running]:
    """Run ``application`` on a free port of this machine."""
    listening = threading.Event()
    bound = bind("127.0.0.1", 0)
    server = Server(application, settings or Settings(), listening.set)

    async def serve() -> None:
        instance.loop = asyncio.get_running_loop()
        await server.serve(sockets=[bound])

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    instance = Running(server, url(bound, "127.0.0.1"), bound.getsockname()[1], thread)
    thread.start()
    try:
        assert listening.wait(30), "the server did not start"
        yield instance
    finally:
        instance.stop()
        thread.join(30)
        assert not thread.is_alive(), "the server did not stop"


def until(condition: Any, seconds: float = 20.0) -> None:
    """Wait until ``condition()`` is true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"condition not met within {seconds:g} s"
        time.sleep(0.01)
