"""Tests that live audio over the official client gives the same text as the file, with the tracked model."""

from __future__ import annotations

import asyncio
import base64
import io
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import openai
import pytest
import soundfile
import soxr
import uvicorn
from openai.resources.realtime.realtime import RealtimeConnection
from openai.types.realtime import ConversationItemInputAudioTranscriptionCompletedEvent as Completed
from openai.types.realtime import ConversationItemInputAudioTranscriptionDeltaEvent as Delta
from openai.types.realtime import RealtimeErrorEvent
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from websockets.exceptions import ConnectionClosedError, ConnectionClosedOK

from runtime import Transcriber
from runtime.server.limits import MAX_MESSAGE_BYTES, Limits
from runtime.server.metrics import Metrics
from runtime.server.realtime.routes import realtime
from runtime.server.scheduling.service import Service
from runtime.server.settings import Settings
from tests.conftest import ARTIFACT, DATA

RATE = 24_000
FILES = ["en-1.wav", "en-2.wav", "ru-1.wav", "zh-1.wav"]

Samples = npt.NDArray[np.int16]


def recording(file: str) -> Samples:
    """Return a sample recording as 16-bit samples at 24 kHz."""
    samples, rate = soundfile.read(DATA / file, dtype="float32")
    resampled: npt.NDArray[np.float32] = soxr.resample(samples, rate, RATE)
    return np.clip(np.round(resampled * 32_768), -32_768, 32_767).astype(np.int16)


@contextmanager
def serving() -> Iterator[Starlette]:
    """Run a service behind the endpoint. The application's state has its event loop and address."""
    service = Service("tiny", Transcriber.from_artifact(ARTIFACT), Limits(max_streams=4), Metrics())

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await service.start()
        app.state.loop = asyncio.get_running_loop()
        yield
        await service.drain(30)

    application = Starlette(routes=[WebSocketRoute("/v1/realtime", realtime)], lifespan=lifespan)
    application.state.services = {"tiny": service}
    application.state.settings = Settings()
    config = uvicorn.Config(application, port=0, log_config=None, ws_max_size=MAX_MESSAGE_BYTES)
    server, socket = uvicorn.Server(config), config.bind_socket()
    socket.listen()  # so that clients that connect early wait for the server
    application.state.address = f"http://127.0.0.1:{socket.getsockname()[1]}/v1"
    thread = threading.Thread(target=server.run, args=([socket],), daemon=True)
    thread.start()
    try:
        yield application
    finally:
        server.should_exit = True
        thread.join(60)
        socket.close()


@pytest.fixture(scope="module")
def app() -> Iterator[Starlette]:
    with serving() as app:
        yield app


@contextmanager
def connected(app: Starlette, **audio_input: Any) -> Iterator[RealtimeConnection]:
    client = openai.OpenAI(api_key="none", base_url=app.state.address)
    with client.realtime.connect(model="tiny", extra_query={"intent": "transcription"}) as connection:
        assert connection.recv().type == "session.created"
        if audio_input:
            session: Any = {"type": "transcription", "audio": {"input": audio_input}}
            connection.session.update(session=session)
            assert connection.recv().type == "session.updated"
        yield connection


def send(connection: RealtimeConnection, samples: Samples, piece: float = 0.1) -> None:
    size = round(piece * RATE)
    for start in range(0, len(samples), size):
        data = samples[start : start + size].astype("<i2").tobytes()
        connection.input_audio_buffer.append(audio=base64.b64encode(data).decode())


def transcripts_of(connection: RealtimeConnection, items: int = 1) -> list[str]:
    """Receive the transcripts of ``items`` items and check that their deltas match."""
    deltas: dict[str, str] = {}
    transcripts: list[str] = []
    for event in connection:
        assert not isinstance(event, RealtimeErrorEvent), event
        if isinstance(event, Delta):
            deltas[event.item_id] = deltas.get(event.item_id, "") + (event.delta or "")
        if isinstance(event, Completed):
            assert deltas.pop(event.item_id, "") == event.transcript
            transcripts.append(event.transcript)
            if len(transcripts) == items:
                break
    assert not deltas
    return transcripts


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("turn", [False, True])
def test_item_has_the_text_of_the_file(app: Starlette, transcriber: Transcriber, file: str, turn: bool) -> None:
    samples = recording(file)
    expected = transcriber.transcribe(samples, sample_rate=RATE)
    assert len(expected.segments) == 1
    with connected(app, **({"turn_detection": None} if turn else {})) as connection:
        send(connection, samples)
        connection.input_audio_buffer.commit()
        assert transcripts_of(connection) == [expected.text]


def test_pauses_end_items(app: Starlette, transcriber: Transcriber) -> None:
    recordings = [recording(file) for file in FILES]
    expected = [transcriber.transcribe(samples, sample_rate=RATE).text for samples in recordings]
    silence = np.zeros(3 * RATE, np.int16)
    with connected(app) as connection:
        for samples in recordings:
            send(connection, np.concatenate([samples, silence]), 0.5)
        assert transcripts_of(connection, len(FILES)) == expected


def test_language_and_prompt(app: Starlette, transcriber: Transcriber, samples: Any) -> None:
    sample = next(each for each in samples if each["context"])
    audio = recording(sample["file"])
    language, context = sample["language"], sample["context"]
    expected = transcriber.transcribe(audio, language, context, sample_rate=RATE).text
    with connected(app, transcription={"language": language, "prompt": context}) as connection:
        send(connection, audio)
        connection.input_audio_buffer.commit()
        assert transcripts_of(connection) == [expected]


def test_telephone_audio(app: Starlette, transcriber: Transcriber) -> None:
    samples, rate = soundfile.read(DATA / FILES[0], dtype="float32")
    narrow = soxr.resample(samples, rate, 8_000)
    buffer = io.BytesIO()
    soundfile.write(buffer, narrow, 8_000, format="RAW", subtype="ULAW")
    codes = buffer.getvalue()
    decoded, _ = soundfile.read(
        io.BytesIO(codes), dtype="int16", format="RAW", subtype="ULAW", samplerate=8_000, channels=1
    )
    expected = transcriber.transcribe(decoded, sample_rate=8_000).text
    with connected(app, format={"type": "audio/pcmu"}) as connection:
        connection.input_audio_buffer.append(audio=base64.b64encode(codes).decode())
        connection.input_audio_buffer.commit()
        assert transcripts_of(connection) == [expected]


def test_concurrent_clients_get_their_own_texts(app: Starlette, transcriber: Transcriber) -> None:
    expected = [transcriber.transcribe(recording(file), sample_rate=RATE).text for file in FILES]
    texts: dict[str, list[str]] = {}

    def talk(file: str) -> None:
        with connected(app) as connection:
            send(connection, recording(file))
            connection.input_audio_buffer.commit()
            texts[file] = transcripts_of(connection)

    threads = [threading.Thread(target=talk, args=(file,)) for file in FILES]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert texts == {file: [text] for file, text in zip(FILES, expected, strict=True)}


def test_stream_limit(app: Starlette) -> None:
    with connected(app) as a, connected(app) as b, connected(app) as c, connected(app) as d, connected(app) as late:
        for each in (a, b, c, d):
            send(each, recording(FILES[0]), 3.0)
            each.recv()  # the stream is open
        send(late, recording(FILES[0]), 3.0)
        event = late.recv()
        assert isinstance(event, RealtimeErrorEvent)
        assert event.error.code == "rate_limit_exceeded"
        with pytest.raises(ConnectionClosedError, match="1013"):
            late.recv()


def test_shutdown_sends_the_rest_of_the_text(transcriber: Transcriber) -> None:
    samples = recording(FILES[0])
    expected = transcriber.transcribe(samples, sample_rate=RATE).text
    with serving() as app, connected(app) as connection:
        send(connection, samples, 3.0)
        connection.session.update(session={"type": "transcription"})
        while connection.recv().type != "session.updated":  # then the audio before it was processed
            pass
        asyncio.run_coroutine_threadsafe(app.state.services["tiny"].drain(30), app.state.loop)
        assert transcripts_of(connection) == [expected]
        with pytest.raises(ConnectionClosedOK, match="1001"):
            connection.recv()
