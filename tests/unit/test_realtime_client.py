"""Tests of ``/v1/realtime`` with OpenAI's official client over a real server."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import AsyncMock

import numpy as np
import openai
import pytest
import uvicorn
from openai.types.realtime import ConversationItemInputAudioTranscriptionCompletedEvent as Completed
from openai.types.realtime import ConversationItemInputAudioTranscriptionDeltaEvent as Delta
from starlette.applications import Starlette

from runtime import Transcriber
from runtime.server.http.connections import uvicorn_options
from runtime.server.limits import Limits
from tests.helpers.realtime import (
    UTTERANCE,
    ScriptedService,
    ScriptedStream,
    make_app,
    pcm,
    run,
)


@contextmanager
def served(app: Starlette, **defaults: Any) -> Iterator[str]:
    """Run ``app`` with the server's uvicorn options and additional ``defaults``; yield host and port."""
    options: dict[str, Any] = defaults | uvicorn_options(Limits()) | {"lifespan": "off"}
    config = uvicorn.Config(app, port=0, **options)
    server = uvicorn.Server(config)
    socket = config.bind_socket()
    thread = threading.Thread(target=server.run, args=([socket],), daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{socket.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)
        socket.close()


class TestOfficialClient:
    def test_synchronous(self, transcriber: Transcriber) -> None:
        service = ScriptedService(transcriber, UTTERANCE)
        with served(make_app(service, key="secret")) as address:
            client = openai.OpenAI(api_key="secret", base_url=f"http://{address}/v1")
            with client.realtime.connect(extra_query={"intent": "transcription"}) as connection:
                assert connection.recv().type == "session.created"
                connection.session.update(
                    session={
                        "type": "transcription",
                        "audio": {"input": {"transcription": {"model": "model-0", "language": "en"}}},
                    }
                )
                assert connection.recv().type == "session.updated"
                for _ in range(3):
                    connection.input_audio_buffer.append(audio=pcm(1.0))
                sent = ""
                for event in connection:
                    if isinstance(event, Delta):
                        sent += event.delta or ""
                    if isinstance(event, Completed):
                        break
                assert isinstance(event, Completed)
                assert event.transcript == sent == "It was very quiet."
                assert event.usage.type == "duration"
            assert service.streams[0].closed.wait(30)

    def test_asynchronous(self, transcriber: Transcriber) -> None:
        async def scenario(address: str) -> None:
            client = openai.AsyncOpenAI(
                api_key="none", base_url=f"http://{address}/v1", websocket_base_url=f"ws://{address}/v1"
            )
            async with client.realtime.connect(model="model-0") as connection:
                assert (await connection.recv()).type == "session.created"
                await connection.input_audio_buffer.append(audio=pcm(1.0))
                await connection.input_audio_buffer.commit()
                kinds = []
                async for event in connection:
                    kinds.append(event.type)
                    if isinstance(event, Completed):
                        assert event.transcript == "It was very quiet."
                        break
                assert "input_audio_buffer.committed" in kinds

        with served(make_app(ScriptedService(transcriber, UTTERANCE))) as address:
            run(scenario(address))

    def test_fast_client_is_slowed_down_but_not_disconnected(self, transcriber: Transcriber) -> None:
        """While reading is paused, pongs are not read either; this must not end the connection."""

        class SlowStream(ScriptedStream):
            async def feed(self, samples: np.ndarray) -> None:
                await asyncio.sleep(0.04)
                await super().feed(samples)

        service: Any = ScriptedService(transcriber)
        stream = SlowStream([], 24_000)
        service.open_stream = AsyncMock(return_value=stream)
        with served(make_app(service), ws_ping_interval=0.1, ws_ping_timeout=0.2) as address:
            client = openai.OpenAI(api_key="none", base_url=f"http://{address}/v1")
            with client.realtime.connect(extra_query={"intent": "transcription"}) as connection:
                for _ in range(6):
                    connection.input_audio_buffer.append(audio=pcm(16.0))
                connection.input_audio_buffer.commit()
                assert connection.recv().type == "session.created"
                assert connection.recv().type == "error"  # there was no speech to commit
        assert stream.seconds == 6 * 16

    def test_wrong_key(self, transcriber: Transcriber) -> None:
        from websockets.exceptions import InvalidStatus

        with served(make_app(ScriptedService(transcriber), key="secret")) as address:
            client = openai.OpenAI(api_key="wrong", base_url=f"http://{address}/v1")
            with pytest.raises(InvalidStatus) as denied, client.realtime.connect(model="model-0"):
                pass
            assert denied.value.response.status_code == 401
            assert json.loads(denied.value.response.body or b"")["error"]["code"] == "invalid_api_key"

    def test_too_large_frame(self, transcriber: Transcriber) -> None:
        from websockets.exceptions import ConnectionClosedError

        with served(make_app(ScriptedService(transcriber))) as address:
            client = openai.OpenAI(api_key="none", base_url=f"http://{address}/v1")
            with client.realtime.connect(model="model-0") as connection:
                connection.recv()
                connection.input_audio_buffer.append(audio=pcm(60.0))
                with pytest.raises(ConnectionClosedError, match="1009"):
                    connection.recv()
