"""Headless Chromium, an ASGI application on a free port, and a scripted server."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import uvicorn
from playwright.sync_api import Browser, sync_playwright
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp
from starlette.websockets import WebSocket

from runtime.server.http import page

NAMES = ("chromium", "chromium-browser", "google-chrome")
PATIENCE = 30  # seconds until a wait fails the test
AUDIBLE = 1000  # of 32768: louder samples are speech, not background noise


def chromium_path() -> str:
    """Return the path of the installed browser. Without one the test fails; it is not skipped."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.fail(f"none of {', '.join(NAMES)} is installed: run `make chromium`", pytrace=False)
    return path


@contextmanager
def chromium(recording: Path) -> Iterator[Browser]:
    """Launch a browser whose microphone plays ``recording`` once, followed by silence."""
    path = chromium_path()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path,
            args=[
                "--no-sandbox",
                "--use-fake-device-for-media-stream",
                "--use-fake-ui-for-media-stream",
                f"--use-file-for-fake-audio-capture={recording}%noloop",
            ],
        )
        try:
            yield browser
        finally:
            browser.close()


class _Server(uvicorn.Server):
    """Server that signals when it listens."""

    def __init__(self, app: ASGIApp) -> None:
        super().__init__(uvicorn.Config(app, port=0, log_level="warning", timeout_graceful_shutdown=1))
        self.listening = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()


@contextmanager
def serving(app: ASGIApp) -> Iterator[str]:
    """Run ``app`` in a thread and yield its URL."""
    server = _Server(app)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        assert server.listening.wait(PATIENCE), "the server did not start"
        host, port = server.servers[0].sockets[0].getsockname()[:2]
        yield f"http://{host}:{port}"
    finally:
        server.should_exit = True
        thread.join(PATIENCE)


class ScriptedServer:
    """Server with the interface of the real one; the test scripts its events and inspects what it received."""

    def __init__(self) -> None:
        self.key: str | None = None
        english, chinese = {"code": "en", "name": "English"}, {"code": "zh", "name": "Chinese"}
        self.models: list[dict[str, Any]] = [
            {"id": "small", "languages": [english, chinese]},
            {"id": "large", "languages": [english]},
            {"id": "plain", "languages": [english], "capabilities": {"language": False, "context": False}},
        ]
        self.before: list[dict[str, Any]] = []  # events sent at once; live: with the first sound
        self.after: list[dict[str, Any]] = []  # events sent after `go_on` is set; live: after the commit
        self.refusal: Response | None = None  # instead of events
        self.hang_up = False  # live: with the first sound
        self.go_on = threading.Event()
        self.gone = threading.Event()  # the client disconnected: before the end, or at the end of live audio
        self.fields: dict[str, str] = {}
        self.upload: tuple[str, bytes] = ("", b"")
        self.session: dict[str, Any] = {}
        self.query: dict[str, str] = {}
        self.protocols: list[str] = []
        self.received: list[npt.NDArray[np.int16]] = []
        self.app = Starlette(
            routes=[
                *page.routes(),
                Route("/v1/models", self._models),
                Route("/v1/audio/transcriptions", self._transcriptions, methods=["POST"]),
                WebSocketRoute("/v1/realtime", self._realtime),
            ]
        )

    def _unauthorized(self, request: Request) -> Response | None:
        if self.key is None or request.headers.get("authorization") == f"Bearer {self.key}":
            return None
        return JSONResponse({"error": {"message": "This API key is not known."}}, 401)

    async def _models(self, request: Request) -> Response:
        return self._unauthorized(request) or JSONResponse({"object": "list", "data": self.models})

    async def _transcriptions(self, request: Request) -> Response:
        async with request.form() as form:
            self.fields = {key: value for key, value in form.items() if isinstance(value, str)}
            file = form["file"]
            assert isinstance(file, UploadFile)
            self.upload = (file.filename or "", await file.read())
        refusal = self._unauthorized(request) or self.refusal
        return refusal or StreamingResponse(self._events(request), media_type="text/event-stream")

    async def _events(self, request: Request) -> AsyncIterator[bytes]:
        for event in self.before:
            yield _event(event)
        try:
            while not self.go_on.is_set() and not await request.is_disconnected():
                await asyncio.sleep(0.01)
        finally:  # on a disconnect, either this loop ends or Starlette cancels it
            if not self.go_on.is_set():
                self.gone.set()
        for event in self.after:
            yield _event(event)

    async def _realtime(self, websocket: WebSocket) -> None:
        self.protocols = websocket.scope["subprotocols"]
        self.query = dict(websocket.query_params)
        if self.key is not None and f"openai-insecure-api-key.{self.key}" not in self.protocols:
            await websocket.close()
            return
        await websocket.accept(subprotocol="realtime")
        spoke = False
        async for text in websocket.iter_text():
            event = json.loads(text)
            if event["type"] == "session.update":
                self.session = event["session"]
            elif event["type"] == "input_audio_buffer.append":
                self.received.append(np.frombuffer(base64.b64decode(event["audio"]), "<i2"))
                if not spoke and np.abs(self.received[-1].astype(int)).max() > AUDIBLE:
                    spoke = True
                    for answer in self.before:
                        await websocket.send_json(answer)
                    if self.hang_up:
                        await websocket.close(1012)
                        return
            elif event["type"] == "input_audio_buffer.commit":
                for answer in self.after:
                    await websocket.send_json(answer)
            elif event["type"] == "input_audio_buffer.clear":
                await websocket.send_json({"type": "input_audio_buffer.cleared"})
        self.gone.set()


def _event(event: dict[str, Any]) -> bytes:
    """Return the bytes of a server-sent event."""
    return f"event: {event['type']}\ndata: {json.dumps(event, ensure_ascii=False)}\n\n".encode()
