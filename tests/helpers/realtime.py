"""Scripted service and client for tests of ``/v1/realtime``."""

from __future__ import annotations

import asyncio
import base64
import copy
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from openai.types.realtime import RealtimeServerEvent
from pydantic import TypeAdapter
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from runtime import Segment, Transcriber
from runtime.pipeline.events import Event, Final, Partial, Speech
from runtime.server.limits import Limits
from runtime.server.realtime.routes import realtime
from runtime.server.settings import Settings

RATE = 24_000
TRANSCRIPTION = "conversation.item.input_audio_transcription"
OFFICIAL: TypeAdapter[Any] = TypeAdapter(RealtimeServerEvent)


def partial(segment: int, end: float, stable: str, unstable: str, language: str | None = "English") -> Partial:
    return Partial(segment, 0.5, end, stable, unstable, language)


def final(segment: int, start: float, end: float, text: str, language: str | None = "English") -> Final:
    return Final(segment, Segment(start, end, text, language, 0.9, "stop", [1]), as_offline=True)


# Events of an utterance of two seconds, each with the seconds of audio after which it is sent.
UTTERANCE: list[tuple[float, Event]] = [
    (1.0, Speech(0, 0.5)),
    (1.0, partial(0, 1.0, "", "It wa")),
    (2.0, partial(0, 2.0, "It was", " wery")),
    (3.0, final(0, 0.5, 2.25, "It was very quiet.")),
]


class ScriptedStream:
    """Live stream that sends each event of its script after so many seconds of audio, and the rest at its end."""

    def __init__(self, script: list[tuple[float, Event | Exception]], rate: int) -> None:
        self._script, self._rate = list(script), rate
        self._queue: asyncio.Queue[Event | Exception | None] = asyncio.Queue()
        self.fed: list[np.ndarray] = []
        self.closed = threading.Event()
        self.refusal: Exception | None = None
        self.blocked: asyncio.Event | None = None

    @property
    def seconds(self) -> float:
        return sum(map(len, self.fed)) / self._rate

    def _send(self, until: float) -> None:
        while self._script and self._script[0][0] <= until:
            self._queue.put_nowait(self._script.pop(0)[1])

    async def feed(self, samples: np.ndarray) -> None:
        if self.refusal:
            raise self.refusal
        if self.blocked:
            await self.blocked.wait()
        self.fed.append(samples)
        self._send(self.seconds)

    async def finish(self) -> None:
        self._send(float("inf"))
        self._queue.put_nowait(None)

    async def events(self) -> AsyncIterator[Event]:
        while (event := await self._queue.get()) is not None:
            if isinstance(event, Exception):
                raise event
            yield event

    async def close(self) -> None:
        self.closed.set()


class ScriptedService:
    """Service that opens scripted streams one after the other."""

    def __init__(self, transcriber: Transcriber, *scripts: list[tuple[float, Any]]) -> None:
        self.transcriber = transcriber
        self.scripts = list(scripts)
        self.streams: list[ScriptedStream] = []
        self.calls: list[dict[str, Any]] = []
        self.refusal: Exception | None = None
        self.blocks = False
        self.stream_refusal: Exception | None = None

    async def open_stream(self, *, sample_rate: int, **options: Any) -> ScriptedStream:
        if self.refusal:
            raise self.refusal
        self.calls.append({"sample_rate": sample_rate, **options})
        stream = ScriptedStream(self.scripts.pop(0) if self.scripts else [], sample_rate)
        stream.blocked = asyncio.Event() if self.blocks else None
        stream.refusal = self.stream_refusal
        self.streams.append(stream)
        return stream


def make_app(*services: ScriptedService, key: str | None = None, limits: Limits | None = None) -> Starlette:
    app = Starlette(routes=[WebSocketRoute("/v1/realtime", realtime)])
    app.state.services = {f"model-{number}": service for number, service in enumerate(services)}
    app.state.settings = Settings(keys=(key,) if key else (), limits=limits or Limits())
    return app


def pcm(seconds: float, rate: int = RATE) -> str:
    return base64.b64encode(np.zeros(round(seconds * rate), "<i2").tobytes()).decode()


class Client:
    """Client of the realtime protocol over the test client's WebSocket."""

    def __init__(self, socket: Any, browser: TestClient) -> None:
        self.socket, self.browser = socket, browser
        self.created = self.next()

    def send(self, kind: str, **fields: Any) -> None:
        self.socket.send_text(json.dumps({"type": kind, **fields}))

    def append(self, seconds: float, rate: int = RATE) -> None:
        self.send("input_audio_buffer.append", audio=pcm(seconds, rate))

    def commit(self) -> None:
        self.send("input_audio_buffer.commit")

    def update(self, **audio_input: Any) -> dict[str, Any]:
        self.send("session.update", event_id="mine", session={"type": "transcription", "audio": {"input": audio_input}})
        return self.next()

    def next(self) -> dict[str, Any]:
        """Return the next event; check it against OpenAI's types unless it is an extension or of the older API."""
        event: dict[str, Any] = json.loads(self.socket.receive_text())
        assert event["event_id"].startswith("event_")
        if event["type"] not in (f"{TRANSCRIPTION}.partial", "transcription_session.updated"):
            official = copy.deepcopy(event)
            if "session" in event:
                official["session"]["audio"]["input"]["format"].pop("rate", None)  # always 24000 in OpenAI's API
            OFFICIAL.validate_python(official)
        return event

    def until(self, kind: str) -> list[dict[str, Any]]:
        events = [self.next()]
        while events[-1]["type"] != kind:
            events.append(self.next())
        return events

    def closed(self) -> int:
        """Return the close code. The server must send nothing before it."""
        with pytest.raises(WebSocketDisconnect) as end:
            self.socket.receive_text()
        return int(end.value.code)


@contextmanager
def connected(app: Starlette, query: str = "?intent=transcription", **options: Any) -> Iterator[Client]:
    """Connect a client and receive ``session.created``. At the end, disconnect and wait for the server to finish."""
    ended = threading.Event()

    async def tracked(*request: Any) -> None:
        try:
            await app(*request)
        finally:
            ended.set()

    with TestClient(tracked) as browser, browser.websocket_connect(f"/v1/realtime{query}", **options) as socket:
        client = Client(socket, browser)
        yield client
        socket.close(1000)
        assert ended.wait(30)


def run(coroutine: Any) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, 30))


def kinds(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"] for event in events]


def deltas(events: list[dict[str, Any]]) -> str:
    return "".join(event["delta"] for event in events if event["type"] == f"{TRANSCRIPTION}.delta")
