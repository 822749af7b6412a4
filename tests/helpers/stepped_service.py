"""A service with a stepped engine, and helpers to use it in a test's event loop."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import numpy as np

from runtime.pipeline.events import Event
from runtime.server.limits import Limits
from runtime.server.metrics import Metrics
from runtime.server.scheduling.service import LiveStream, Service
from runtime.transcriber import Request, ValidatedRequest
from tests.helpers.stepped_engine import RATE, WAIT, FakeTranscriber, SteppedEngine


def validated(service: Service, source: io.BytesIO, **options: Any) -> ValidatedRequest:
    """Return the request for ``source`` as the service takes it."""
    return service.transcriber.validate(Request(source, name="the audio", **options))


def run(test: Coroutine[Any, Any, None]) -> None:
    """Run ``test`` in an event loop, for at most twice :data:`WAIT` seconds; check that all its threads have ended."""
    before = set(threading.enumerate())

    async def limited() -> None:
        async with asyncio.timeout(2 * WAIT):
            await test

    try:
        asyncio.run(limited())
    finally:
        remaining = {thread.name for thread in set(threading.enumerate()) - before}
        assert not remaining


@asynccontextmanager
async def serving(
    engine: SteppedEngine,
    limits: Limits | None = None,
    metrics: Metrics | None = None,
) -> AsyncIterator[Service]:
    """Start a service with ``engine``; at the end, allow all steps and drain it."""
    service = Service("m", FakeTranscriber(engine), limits or Limits(), metrics or Metrics())
    await service.start()
    try:
        yield service
    finally:
        engine.allow(10**9)
        await service.drain(WAIT)
        assert not service.ready


async def wait_engine(engine: SteppedEngine, predicate: Callable[[], bool]) -> None:
    """Wait until ``predicate`` is true; it is checked after each action of the engine."""
    await asyncio.to_thread(engine.wait, predicate)


async def collect(stream: LiveStream) -> list[Event]:
    """Return all events of ``stream``; wait until it ends."""
    return [event async for event in stream.events()]


def constant_audio(value: int, seconds: float, rate: int = 8 * RATE) -> np.ndarray:
    """Return float32 samples at ``rate`` Hz that all are ``value`` / 1000."""
    return np.full(round(seconds * rate), value / 1000, np.float32)
