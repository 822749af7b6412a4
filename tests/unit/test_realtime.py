"""``/v1/realtime`` with a scripted service: what a client is told, what is refused, and when streams are let go."""

from __future__ import annotations

import asyncio
import base64
import copy
import io
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock

import numpy as np
import openai
import pytest
import soundfile
import uvicorn
from hypothesis import given
from hypothesis import strategies as st
from openai.types.realtime import ConversationItemInputAudioTranscriptionCompletedEvent as Completed
from openai.types.realtime import ConversationItemInputAudioTranscriptionDeltaEvent as Delta
from openai.types.realtime import RealtimeServerEvent
from pydantic import TypeAdapter
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.testclient import TestClient, WebSocketDenialResponse
from starlette.websockets import WebSocketDisconnect

from runtime import Segment, Transcriber
from runtime.engines.capabilities import Capabilities, check_capabilities
from runtime.errors import OptionError
from runtime.families import families_that
from runtime.pipeline.events import Event, Final, Partial, Speech
from runtime.pipeline.join_text import join_texts
from runtime.pipeline.streaming import LiveOptions
from runtime.server.errors import AudioTooLong, Busy, Closing, EngineFailure
from runtime.server.http.connections import uvicorn_options
from runtime.server.limits import Limits
from runtime.server.realtime import connection as realtime_connection
from runtime.server.realtime.audio import decode_audio
from runtime.server.realtime.connection import MAX_CONSECUTIVE_ERRORS, MAX_MESSAGE_BYTES, Connection
from runtime.server.realtime.events import EventTranslator
from runtime.server.realtime.message_queue import MessageQueue
from runtime.server.realtime.routes import realtime
from runtime.server.realtime.session import (
    EventError,
    SessionConfig,
    as_legacy_session,
    as_session,
    read_legacy_session,
    read_session,
)
from runtime.server.settings import Settings

RATE = 24_000
TRANSCRIPTION = "conversation.item.input_audio_transcription"
OFFICIAL: TypeAdapter[Any] = TypeAdapter(RealtimeServerEvent)


def partial(segment: int, end: float, stable: str, unstable: str, language: str | None = "English") -> Partial:
    return Partial(segment, 0.5, end, stable, unstable, language)


def final(segment: int, start: float, end: float, text: str, language: str | None = "English") -> Final:
    return Final(segment, Segment(start, end, text, language, 0.9, "stop", [1]), as_offline=True)


# An utterance of two seconds: what is told after so many seconds, and what only after the end.
UTTERANCE: list[tuple[float, Event]] = [
    (1.0, Speech(0, 0.5)),
    (1.0, partial(0, 1.0, "", "It wa")),
    (2.0, partial(0, 2.0, "It was", " wery")),
    (3.0, final(0, 0.5, 2.25, "It was very quiet.")),
]


class Stream:
    """Tells each event of its script when so much audio was fed, the others when it is finished."""

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

    def _tell(self, until: float) -> None:
        while self._script and self._script[0][0] <= until:
            self._queue.put_nowait(self._script.pop(0)[1])

    async def feed(self, samples: np.ndarray) -> None:
        if self.refusal:
            raise self.refusal
        if self.blocked:
            await self.blocked.wait()
        self.fed.append(samples)
        self._tell(self.seconds)

    async def finish(self) -> None:
        self._tell(float("inf"))
        self._queue.put_nowait(None)

    async def events(self) -> AsyncIterator[Event]:
        while (event := await self._queue.get()) is not None:
            if isinstance(event, Exception):
                raise event
            yield event

    async def close(self) -> None:
        self.closed.set()


class Service:
    """Opens scripted streams, one after the other."""

    def __init__(self, transcriber: Transcriber, *scripts: list[tuple[float, Any]]) -> None:
        self.transcriber = transcriber
        self.scripts = list(scripts)
        self.streams: list[Stream] = []
        self.asked: list[dict[str, Any]] = []
        self.refusal: Exception | None = None
        self.blocks = False
        self.stream_refusal: Exception | None = None

    async def open_stream(self, *, sample_rate: int, **asked: Any) -> Stream:
        if self.refusal:
            raise self.refusal
        self.asked.append({"sample_rate": sample_rate, **asked})
        stream = Stream(self.scripts.pop(0) if self.scripts else [], sample_rate)
        stream.blocked = asyncio.Event() if self.blocks else None
        stream.refusal = self.stream_refusal
        self.streams.append(stream)
        return stream


def make_app(*services: Service, key: str | None = None, limits: Limits | None = None) -> Starlette:
    app = Starlette(routes=[WebSocketRoute("/v1/realtime", realtime)])
    app.state.services = {f"model-{number}": service for number, service in enumerate(services)}
    app.state.settings = Settings(keys=(key,) if key else (), limits=limits or Limits())
    return app


def pcm(seconds: float, rate: int = RATE) -> str:
    return base64.b64encode(np.zeros(round(seconds * rate), "<i2").tobytes()).decode()


class Client:
    """A WebSocket of the test client, in the words of the protocol."""

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
        """The next event, which is one of OpenAI's unless it belongs to an extension or to the older spelling."""
        event: dict[str, Any] = json.loads(self.socket.receive_text())
        assert event["event_id"].startswith("event_")
        if event["type"] not in (f"{TRANSCRIPTION}.partial", "transcription_session.updated"):
            official = copy.deepcopy(event)
            if "session" in event:
                official["session"]["audio"]["input"]["format"].pop("rate", None)  # there it is always 24000
            OFFICIAL.validate_python(official)
        return event

    def until(self, kind: str) -> list[dict[str, Any]]:
        events = [self.next()]
        while events[-1]["type"] != kind:
            events.append(self.next())
        return events

    def closed(self) -> int:
        """The code that the server closes with; nothing else may come before."""
        with pytest.raises(WebSocketDisconnect) as end:
            self.socket.receive_text()
        return int(end.value.code)


@contextmanager
def connected(app: Starlette, query: str = "?intent=transcription", **options: Any) -> Iterator[Client]:
    """A client that has its ``session.created``. It goes away at the end, and the server has noticed that then."""
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


def test_an_utterance_by_voice_activity(transcriber: Transcriber) -> None:
    service = Service(transcriber, UTTERANCE)
    with connected(make_app(service)) as client:
        assert client.created["type"] == "session.created"
        for _ in range(4):
            client.append(1.0)
        events = client.until(f"{TRANSCRIPTION}.completed")
    assert kinds(events) == [
        "input_audio_buffer.speech_started",
        f"{TRANSCRIPTION}.delta",
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.committed",
        "conversation.item.added",
        "conversation.item.done",
        f"{TRANSCRIPTION}.delta",
        f"{TRANSCRIPTION}.completed",
    ]
    started, first, stopped, committed, added, done, last, completed = events
    assert started["audio_start_ms"] == 500
    assert stopped["audio_end_ms"] == 2250
    assert {event["item_id"] for event in (started, first, stopped, committed, last, completed)} == {
        added["item"]["id"]
    }
    assert done["item"] == added["item"]
    assert (first["delta"], last["delta"]) == ("It was", " very quiet.")
    assert completed["transcript"] == "It was very quiet."
    assert completed["usage"] == {"type": "duration", "seconds": 1.75}
    assert completed["languages"] == [{"code": "en"}]
    assert "start" not in completed
    assert service.asked[0]["sample_rate"] == RATE
    assert service.asked[0]["live"] == LiveOptions(pause=0.8)
    assert service.streams[0].closed.is_set()  # the client is gone


def test_partials_are_for_those_who_ask(transcriber: Transcriber) -> None:
    with connected(make_app(Service(transcriber, UTTERANCE)), "?partials=true&model=model-0") as client:
        for _ in range(3):
            client.append(1.0)
        events = client.until(f"{TRANSCRIPTION}.completed")
    told = [event for event in events if event["type"] == f"{TRANSCRIPTION}.partial"]
    assert [(event["stable"], event["unstable"], event["end"]) for event in told] == [
        ("", "It wa", 1.0),
        ("It was", " wery", 2.0),
    ]
    assert (events[-1]["start"], events[-1]["end"], events[-1]["language"]) == (0.5, 2.25, "English")


def test_a_turn_is_one_item_and_ends_with_its_commit(transcriber: Transcriber) -> None:
    first: list[tuple[float, Any]] = [
        (1.0, Speech(0, 0.5)),
        (1.0, partial(0, 1.0, "One", " tw")),
        (2.0, final(0, 0.5, 1.5, "One two.")),
        (2.0, partial(1, 2.0, "Three", " f")),
        (9.0, final(1, 1.6, 2.0, "Three four.", "German")),
    ]
    service = Service(transcriber, first, [])
    with connected(make_app(service), "?partials=true") as client:
        assert client.update(turn_detection=None)["session"]["audio"]["input"]["turn_detection"] is None
        client.append(1.0)
        client.append(1.0)
        before = [client.next() for _ in range(5)]
        client.commit()
        after = client.until(f"{TRANSCRIPTION}.completed")
        client.append(1.0)
        client.commit()
        silent = client.until(f"{TRANSCRIPTION}.completed")
    assert kinds(before) == [f"{TRANSCRIPTION}.{name}" for name in ("delta", "partial", "delta", "delta", "partial")]
    assert (before[4]["stable"], before[4]["unstable"]) == ("One two. Three", " f")
    assert after[0]["type"] == "input_audio_buffer.committed"
    assert after[-1]["transcript"] == "One two. Three four." == deltas(before + after)
    assert (after[-1]["start"], after[-1]["end"], after[-1]["language"]) == (0.0, 2.0, "English")
    assert len({event["item_id"] for event in before}) == 1
    assert silent[-1]["transcript"] == ""
    assert silent[0]["previous_item_id"] == after[0]["item_id"] != silent[0]["item_id"]
    assert silent[-1]["start"] == 2.0
    assert [stream.closed.is_set() for stream in service.streams] == [True, True]


def test_a_commit_ends_the_segment_that_is_open(transcriber: Transcriber) -> None:
    service = Service(transcriber, UTTERANCE, UTTERANCE, [])
    with connected(make_app(service)) as client:
        client.append(1.0)
        client.commit()
        assert client.until(f"{TRANSCRIPTION}.completed")[-1]["transcript"] == "It was very quiet."
        client.append(1.0)
        client.commit()
        second = client.until(f"{TRANSCRIPTION}.completed")
        assert second[0]["audio_start_ms"] == 1500  # of all the audio, not of the stream
        client.commit()
        nothing = client.next()
        client.append(1.0)
        client.commit()
        silence = client.next()
    assert nothing["error"]["code"] == silence["error"]["code"] == "input_audio_buffer_commit_empty"
    assert nothing["error"]["message"] != silence["error"]["message"]


def test_clear_lets_go_of_what_is_open(transcriber: Transcriber) -> None:
    service = Service(transcriber, UTTERANCE, UTTERANCE)
    with connected(make_app(service)) as client:
        client.append(1.0)
        started = client.next()
        client.send("input_audio_buffer.clear")
        assert client.next()["type"] == "input_audio_buffer.cleared"
        assert service.streams[0].closed.is_set()
        client.append(3.0)
        events = client.until(f"{TRANSCRIPTION}.completed")
    assert started["item_id"] not in {event.get("item_id") for event in events}


@pytest.mark.parametrize(
    ("format", "rate", "data"),
    [
        ({"type": "audio/pcm", "rate": 8000}, 8000, np.arange(8000, dtype="<i2").tobytes()),
        ({"type": "audio/pcm", "rate": 48000}, 48000, np.arange(8000, dtype="<i2").tobytes()),
        ({"type": "audio/pcmu"}, 8000, bytes([0x80]) * 100),
        ({"type": "audio/pcma", "rate": 8000}, 8000, bytes([0xAA]) * 100),
    ],
)
def test_formats(transcriber: Transcriber, format: dict[str, Any], rate: int, data: bytes) -> None:
    service = Service(transcriber)
    with connected(make_app(service)) as client:
        assert client.update(format=format)["session"]["audio"]["input"]["format"]["type"] == format["type"]
        client.send("input_audio_buffer.append", audio=base64.b64encode(data).decode())
        client.commit()
        client.next()
    fed = np.concatenate(service.streams[0].fed)
    assert service.asked[0]["sample_rate"] == rate
    assert fed.dtype == np.int16
    expected = {"audio/pcm": np.arange(8000), "audio/pcmu": np.full(100, 32124), "audio/pcma": np.full(100, 32256)}
    np.testing.assert_array_equal(fed, expected[format["type"]])


@pytest.mark.parametrize(("encoding", "subtype"), [("audio/pcmu", "ULAW"), ("audio/pcma", "ALAW")])
def test_g711_is_what_libsndfile_reads(encoding: Any, subtype: str) -> None:
    codes = bytes(range(256))
    expected, _ = soundfile.read(
        io.BytesIO(codes), dtype="int16", format="RAW", subtype=subtype, samplerate=8000, channels=1
    )
    np.testing.assert_array_equal(decode_audio(base64.b64encode(codes).decode(), encoding), expected)


def test_an_update_changes_what_it_mentions(transcriber: Transcriber) -> None:
    service = Service(transcriber)
    other = Service(transcriber, UTTERANCE)
    with connected(make_app(service, other)) as client:
        client.update(transcription={"language": "ru", "prompt": "Kris"}, noise_reduction=None)
        client.update(turn_detection={"type": "server_vad", "silence_duration_ms": 1200, "create_response": False})
        updated = client.update(transcription={"model": "model-1"})
        assert updated["type"] == "session.updated"
        assert updated["session"]["audio"]["input"] == {
            "format": {"type": "audio/pcm", "rate": RATE},
            "noise_reduction": None,
            "transcription": {"model": "model-1", "language": "ru", "prompt": "Kris"},
            "turn_detection": {"type": "server_vad", "silence_duration_ms": 1200},
        }
        client.append(1.0)
        client.next()
        # Once more, while a segment is open: it is ended, and what follows is of the new session.
        client.send(
            "session.update",
            session={"type": "transcription", "audio": {"input": {"transcription": {"language": None}}}},
        )
        events = client.until("session.updated")
        assert f"{TRANSCRIPTION}.completed" in kinds(events)
        client.append(1.0)
        client.commit()
        client.next()
    assert not service.asked
    assert other.asked == [
        {"sample_rate": RATE, "language": language, "context": "Kris", "live": LiveOptions(pause=1.2)}
        for language in ("ru", None)
    ]


def test_a_turn_keeps_its_session(transcriber: Transcriber) -> None:
    with connected(make_app(Service(transcriber))) as client:
        client.update(turn_detection=None)
        client.append(1.0)
        assert client.update(turn_detection=None)["type"] == "session.updated"  # changes nothing
        refused = client.update(transcription={"language": "en"})
        assert refused["error"]["code"] == "session_in_use"
        client.send("input_audio_buffer.clear")
        client.next()
        assert client.update(transcription={"language": "en"})["type"] == "session.updated"


def test_the_older_spelling(transcriber: Transcriber) -> None:
    service = Service(transcriber, UTTERANCE)
    session = {
        "input_audio_format": "g711_ulaw",
        "input_audio_transcription": {"model": "model-0", "language": "en", "prompt": ""},
        "turn_detection": {"type": "server_vad", "silence_duration_ms": 500},
        "input_audio_noise_reduction": None,
        "include": [],
        "modalities": ["text"],
    }
    with connected(make_app(service)) as client:
        client.send("transcription_session.update", session=session)
        updated = client.next()
        assert updated["type"] == "transcription_session.updated"
        assert updated["session"]["input_audio_format"] == "g711_ulaw"
        assert updated["session"]["turn_detection"] == session["turn_detection"]
        client.send("input_audio_buffer.append", audio=base64.b64encode(bytes(24_000)).decode())
        events = kinds(client.until(f"{TRANSCRIPTION}.completed"))
    assert "conversation.item.created" in events
    assert "conversation.item.added" not in events
    assert service.asked[0]["sample_rate"] == 8000


@pytest.mark.parametrize(
    ("audio_input", "param"),
    [
        ({"noise_reduction": {"type": "near_field"}}, "noise_reduction"),
        ({"turn_detection": {"type": "semantic_vad"}}, "turn_detection.type"),
        ({"turn_detection": {"type": "server_vad", "threshold": 0.5}}, "turn_detection.threshold"),
        ({"turn_detection": {"type": "server_vad", "prefix_padding_ms": 300}}, "turn_detection.prefix_padding_ms"),
        ({"turn_detection": {"silence_duration_ms": 499}}, "turn_detection.silence_duration_ms"),
        ({"turn_detection": {"silence_duration_ms": True}}, "turn_detection.silence_duration_ms"),
        ({"turn_detection": {"create_response": True}}, "turn_detection.create_response"),
        ({"turn_detection": 7}, "turn_detection"),
        ({"format": {"type": "audio/opus"}}, "format.type"),
        ({"format": {"type": ["audio/pcm"]}}, "format.type"),
        ({"format": {"type": "audio/pcm", "rate": 7999}}, "format.rate"),
        ({"format": {"type": "audio/pcm", "rate": "24000"}}, "format.rate"),
        ({"format": {"type": "audio/pcmu", "rate": 16000}}, "format.rate"),
        ({"format": {"type": "audio/pcm", "bits": 8}}, "format.bits"),
        ({"transcription": None}, "transcription"),
        ({"transcription": {"model": "whisper-1"}}, "transcription.model"),
        ({"transcription": {"language": "Klingon"}}, "transcription.language"),
        ({"transcription": {"language": ["en"]}}, "transcription.language"),
        ({"transcription": {"prompt": "x" * 20_000}}, "transcription.prompt"),
        ({"transcription": {"prompt": "<|audio_pad|>"}}, "transcription.prompt"),
        ({"transcription": {"keywords": ["Kris"]}}, "transcription.keywords"),
        ({"transcription": {"languages": ["en", "de"]}}, "transcription.languages"),
        ({"transcription": {"delay": "low"}}, "transcription.delay"),
        ({"volume": 11}, "volume"),
    ],
)
def test_what_cannot_be_honoured_is_named(transcriber: Transcriber, audio_input: dict[str, Any], param: str) -> None:
    with connected(make_app(Service(transcriber))) as client:
        refused = client.update(**audio_input)
        assert refused["type"] == "error"
        assert refused["error"]["param"] == f"session.audio.input.{param}"
        assert refused["error"]["event_id"] == "mine"
        kept = client.update()
        assert kept["session"]["audio"] == client.created["session"]["audio"]


@pytest.mark.parametrize(
    ("kind", "session", "param"),
    [
        ("session.update", None, "session"),
        ("session.update", {"type": "realtime"}, "session.type"),
        ("session.update", {"type": "transcription", "audio": []}, "session.audio"),
        ("session.update", {"type": "transcription", "audio": {"output": {"voice": "ash"}}}, "session.audio.output"),
        ("session.update", {"type": "transcription", "include": ["x"]}, "session.include"),
        ("session.update", {"type": "transcription", "tools": [1]}, "session.tools"),
        ("transcription_session.update", {"input_audio_format": "mp3"}, "session.input_audio_format"),
        ("transcription_session.update", {"modalities": ["audio"]}, "session.modalities"),
        (
            "transcription_session.update",
            {"input_audio_transcription": {"language": "xx"}},
            "session.input_audio_transcription.language",
        ),
        (
            "transcription_session.update",
            {"input_audio_noise_reduction": {"type": "far_field"}},
            "session.input_audio_noise_reduction",
        ),
    ],
)
def test_malformed_sessions(transcriber: Transcriber, kind: str, session: Any, param: str) -> None:
    with connected(make_app(Service(transcriber))) as client:
        client.send(kind, session=session)
        assert client.next()["error"]["param"] == param


NAMES = st.one_of(
    st.sampled_from(["type", "audio", "input", "output", "format", "rate", "include", "modalities", "x"]),
    st.sampled_from(["transcription", "model", "language", "prompt", "keywords", "noise_reduction"]),
    st.sampled_from(["turn_detection", "threshold", "silence_duration_ms"]),
    st.sampled_from(["input_audio_format", "input_audio_transcription", "input_audio_noise_reduction"]),
)
VALUES = st.sampled_from(
    [None, True, 0, 800, 24000, -1, 1e300, "", "transcription", "audio/pcm", "pcm16", "server_vad", "m"]
)
SESSIONS = st.recursive(
    VALUES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=6), max_leaves=20
)


@given(SESSIONS, st.booleans())
def test_whatever_a_session_is_it_is_read_or_refused(session: Any, legacy: bool) -> None:
    read = read_legacy_session if legacy else read_session
    before, param = SessionConfig("m"), "session"
    given_twice = copy.deepcopy(session)
    try:
        config = read(before, session, ["m"])
    except EventError as error:
        config, param = before, str(error.param)
    assert param.startswith("session")
    assert session == given_twice
    assert 8_000 <= config.rate <= 48_000
    assert config.pause is None or 500 <= config.pause <= 10_000
    # What is reported can be given back, and changes nothing.
    reported = as_legacy_session(config, "sess") if legacy else as_session(config, "sess")
    del reported["id"], reported["object"]
    assert read(config, reported, ["m"]) == config


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("{", "invalid_json"),
        ("[" * 100_000, "invalid_json"),
        ('{"type": "\\ud800"}', "invalid_json"),
        ("[]", "invalid_event"),
        ('{"type": 1}', "invalid_event"),
        ("{}", "invalid_event"),
        ('{"type": "response.create"}', "unknown_event"),
        ('{"type": "conversation.item.create", "item": {}}', "unknown_event"),
        ('{"type": "input_audio_buffer.append"}', "invalid_audio"),
        ('{"type": "input_audio_buffer.append", "audio": 5}', "invalid_audio"),
        ('{"type": "input_audio_buffer.append", "audio": "AAA*"}', "invalid_audio"),
        ('{"type": "input_audio_buffer.append", "audio": "ÄÄÄÄ"}', "invalid_audio"),
        ('{"type": "input_audio_buffer.append", "audio": "AAAA"}', "invalid_audio"),  # three bytes
    ],
)
def test_an_event_that_cannot_be_handled_changes_nothing(transcriber: Transcriber, message: str, code: str) -> None:
    service = Service(transcriber, UTTERANCE)
    with connected(make_app(service)) as client:
        client.socket.send_text(message)
        refused = client.next()
        assert refused["type"] == "error"
        assert refused["error"]["code"] == code
        client.send("input_audio_buffer.append", audio="")
        client.append(3.0)
        assert client.until(f"{TRANSCRIPTION}.completed")[-1]["transcript"] == "It was very quiet."
    assert service.streams[0].seconds == 3.0


def test_the_event_that_was_wrong_is_named(transcriber: Transcriber) -> None:
    with connected(make_app(Service(transcriber))) as client:
        client.send("response.create", event_id="event_7")
        assert client.next()["error"]["event_id"] == "event_7"
        client.send("response.create", event_id=["event_7"])
        assert client.next()["error"]["event_id"] is None
        client.socket.send_bytes(b"\0\1")
        assert client.next()["error"]["code"] == "invalid_json"


def test_who_goes_on_like_that_is_cut_off(transcriber: Transcriber) -> None:
    with connected(make_app(Service(transcriber))) as client:
        for _ in range(2 * MAX_CONSECUTIVE_ERRORS):  # never that many in a row
            client.send("nonsense")
            client.next()
            client.send("input_audio_buffer.clear")
            client.next()
        for _ in range(MAX_CONSECUTIVE_ERRORS):
            client.send("nonsense")
            assert client.next()["type"] == "error"
        assert client.closed() == 1008


def test_a_huge_message_closes(transcriber: Transcriber) -> None:
    with connected(make_app(Service(transcriber))) as client:
        client.socket.send_text(" " * (MAX_MESSAGE_BYTES + 1))
        assert "pieces" in client.next()["error"]["message"]
        assert client.closed() == 1009


def test_idle_clients_are_let_go(transcriber: Transcriber, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(realtime_connection, "IDLE_SECONDS", 0.01)
    with connected(make_app(Service(transcriber))) as client:
        assert client.next()["error"]["code"] == "idle_timeout"
        assert client.closed() == 1008


def test_what_was_heard_of_an_idle_client_is_told(transcriber: Transcriber, monkeypatch: pytest.MonkeyPatch) -> None:
    with connected(make_app(Service(transcriber, UTTERANCE))) as client:
        client.append(1.0)
        client.next()
        monkeypatch.setattr(realtime_connection, "IDLE_SECONDS", 0.01)
        client.send("input_audio_buffer.append", audio="")  # the next wait is a short one
        events = client.until(f"{TRANSCRIPTION}.completed")
        assert events[0]["error"]["code"] == "idle_timeout"
        assert client.closed() == 1008


@pytest.mark.parametrize("error", [WebSocketDisconnect(1006), None])
def test_who_does_not_read_is_gone(
    transcriber: Transcriber, monkeypatch: pytest.MonkeyPatch, error: Exception | None
) -> None:
    class Deaf:
        async def receive(self) -> Any:
            await asyncio.Event().wait()

        async def send_text(self, text: str) -> None:
            if error:
                raise error
            await asyncio.Event().wait()

    monkeypatch.setattr(realtime_connection, "SEND_SECONDS", 0.01)
    services: Any = {"model-0": Service(transcriber)}
    websocket: Any = Deaf()
    run(Connection(websocket, services, Limits(), model="model-0").run())  # ends, and closes nothing


def test_audio_that_is_too_long_at_once(transcriber: Transcriber) -> None:
    service = Service(transcriber)
    with connected(make_app(service, limits=Limits(stream_seconds=1))) as client:
        client.append(1.5)
        assert client.next()["error"]["code"] == "session_expired"
        assert client.closed() == 1008
    assert not service.streams


def test_a_model_that_takes_no_prompt(transcriber: Transcriber) -> None:
    none = Capabilities(context=False, language=False, language_detection=False)
    mute: Any = SimpleNamespace(
        check=lambda request: check_capabilities(
            ["context"] if request.context else [], none, "parakeet-tdt", families_that
        ),
    )
    with connected(make_app(Service(mute))) as client:
        refused = client.update(transcription={"prompt": "Kris"})
        assert refused["error"]["param"] == "session.audio.input.transcription.prompt"


@pytest.mark.parametrize("by_the_service", [False, True])
def test_a_stream_has_an_end(transcriber: Transcriber, by_the_service: bool) -> None:
    service = Service(transcriber, UTTERANCE)
    with connected(make_app(service, limits=Limits(stream_seconds=100 if by_the_service else 3))) as client:
        client.append(2.0)
        client.until(f"{TRANSCRIPTION}.delta")
        service.streams[0].refusal = AudioTooLong("too long")
        client.append(2.0)
        assert client.next()["error"]["code"] == "session_expired"
        assert client.until(f"{TRANSCRIPTION}.completed")[-1]["transcript"] == "It was very quiet."
        assert client.closed() == 1008


@pytest.mark.parametrize(
    ("refusal", "code", "close"),
    [
        (Busy("all streams are taken; try again in 5 s", 5), "rate_limit_exceeded", 1013),
        (Closing("the server is shutting down"), "server_shutting_down", 1001),
    ],
)
def test_no_stream_to_be_had(transcriber: Transcriber, refusal: Exception, code: str, close: int) -> None:
    service = Service(transcriber)
    service.refusal = refusal
    with connected(make_app(service)) as client:
        client.append(1.0)
        error = client.next()["error"]
        assert (error["code"], error["message"]) == (code, str(refusal))
        assert client.closed() == close


def test_an_option_that_only_the_stream_finds_wrong(transcriber: Transcriber) -> None:
    service = Service(transcriber)
    service.refusal = OptionError("the prompt is too long")
    with connected(make_app(service)) as client:
        client.append(1.0)
        assert client.next()["error"]["message"] == "the prompt is too long"
        client.commit()
        assert client.next()["error"]["code"] == "input_audio_buffer_commit_empty"


@pytest.mark.parametrize("turn", [False, True])
def test_when_the_model_fails_every_open_item_does(transcriber: Transcriber, turn: bool) -> None:
    service = Service(transcriber, [*UTTERANCE[:2], (2.0, EngineFailure())])
    with connected(make_app(service)) as client:
        if turn:
            client.update(turn_detection=None)
        client.append(1.0)
        client.append(1.0)
        events = client.until("error")
        failed = events[-2]
        assert failed["type"] == f"{TRANSCRIPTION}.failed"
        assert failed["error"]["code"] == events[-1]["error"]["code"] == "transcription_failed"
        assert client.closed() == 1011
    assert service.streams[0].closed.is_set()


@pytest.mark.parametrize("turn", [False, True])
def test_a_server_that_drains_tells_the_rest(transcriber: Transcriber, turn: bool) -> None:
    service = Service(transcriber, UTTERANCE)
    with connected(make_app(service)) as client:
        if turn:
            client.update(turn_detection=None)
        client.append(2.0)
        client.until(f"{TRANSCRIPTION}.delta")
        assert client.browser.portal
        service.streams[0].refusal = Closing("the server is shutting down")
        client.append(1.0)
        client.browser.portal.call(service.streams[0].finish)
        assert client.until(f"{TRANSCRIPTION}.completed")[-1]["transcript"] == "It was very quiet."
        assert client.closed() == 1001


def test_a_client_that_goes_away_frees_its_stream_while_it_waits(transcriber: Transcriber) -> None:
    service = Service(transcriber)
    service.blocks = True
    with connected(make_app(service)) as client:
        client.append(1.0)
        client.append(1.0)
        client.send("nonsense")  # is not reached
    assert service.streams[0].closed.is_set()
    assert service.streams[0].seconds == 0


def test_the_inbox_has_bounds() -> None:
    async def scenario() -> None:
        queue = MessageQueue(10)
        await queue.put("x" * 50)  # alone it is taken
        waiting = asyncio.create_task(queue.put(None))
        for _ in range(5):
            await asyncio.sleep(0)
        assert not waiting.done()
        assert await queue.get() == "x" * 50
        await waiting
        assert await queue.get() is None

    run(scenario())


class TestWho:
    @pytest.mark.parametrize(
        "options",
        [
            {"headers": {"Authorization": "Bearer secret"}},
            {"headers": {"Authorization": "bearer  secret", "Origin": "https://elsewhere.example"}},
            {"subprotocols": ["realtime", "openai-insecure-api-key.secret"]},
        ],
    )
    def test_a_key_opens(self, transcriber: Transcriber, options: dict[str, Any]) -> None:
        with connected(make_app(Service(transcriber), key="secret"), **options) as client:
            chosen = "realtime" if "subprotocols" in options else None
            assert client.socket.accepted_subprotocol == chosen

    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"headers": {"Authorization": "Bearer wrong"}},
            {"headers": {"Authorization": "Basic secret"}},
            {"headers": {"Authorization": "Bearer"}},
            {"subprotocols": ["realtime", "openai-insecure-api-key."]},
        ],
    )
    def test_without_one_it_stays_shut(self, transcriber: Transcriber, options: dict[str, Any]) -> None:
        with (
            pytest.raises(WebSocketDenialResponse) as denied,
            connected(make_app(Service(transcriber), key="secret"), **options),
        ):
            pass
        assert denied.value.status_code == 401
        assert denied.value.json()["error"]["code"] == "invalid_api_key"

    @pytest.mark.parametrize("origin", ["http://testserver", "HTTPS://TestServer"])
    def test_the_own_page_may(self, transcriber: Transcriber, origin: str) -> None:
        with connected(make_app(Service(transcriber)), headers={"Origin": origin}):
            pass

    @pytest.mark.parametrize(
        "origin", ["http://elsewhere.example", "null", "", "testserver", "http://testserver:81", "http://["]
    )
    def test_a_foreign_page_may_not(self, transcriber: Transcriber, origin: str) -> None:
        with (
            pytest.raises(WebSocketDenialResponse) as denied,
            connected(make_app(Service(transcriber)), headers={"Origin": origin}),
        ):
            pass
        assert denied.value.status_code == 403

    def test_servers_that_cannot_deny_close(self, transcriber: Transcriber) -> None:
        sent: list[dict[str, Any]] = []

        async def send(message: Any) -> None:
            sent.append(message)

        async def receive() -> Any:
            return {"type": "websocket.connect"}

        scope = {"type": "websocket", "path": "/v1/realtime", "headers": [], "query_string": b"", "subprotocols": []}
        run(make_app(Service(transcriber), key="secret")(scope, receive, send))
        assert sent == [{"type": "websocket.close", "code": 4401, "reason": "invalid_api_key"}]

    @pytest.mark.parametrize(
        ("query", "param"),
        [("?intent=conversation", "intent"), ("?model=gpt", "model"), ("?partials=1", "partials"), ("?a=b", "a")],
    )
    def test_what_the_url_may_ask_for(self, transcriber: Transcriber, query: str, param: str) -> None:
        with connected(make_app(Service(transcriber)), query) as client:
            assert client.created["error"]["param"] == param
            assert client.closed() == 1008


WORDS = st.sampled_from(["It", " was", "你好", "。", "...", ".", ' "quoted"', "'", " ", "(a)", "é", "ไทย", "!"])
TEXTS = st.lists(WORDS, max_size=6).map(lambda words: "".join(words).strip())


@st.composite
def streams(draw: st.DrawFn) -> tuple[list[Event], list[str]]:
    """Segments one after the other, each with partials that keep what is stable; and their texts."""
    events: list[Event] = []
    texts = draw(st.lists(TEXTS, max_size=4))
    for number, text in enumerate(texts):
        if draw(st.booleans()):
            events.append(Speech(number, float(number)))
        indices = sorted(draw(st.lists(st.integers(0, len(text)), max_size=3)))
        events.extend(partial(number, number + 0.5, text[:index], draw(TEXTS)) for index in indices)
        events.append(final(number, float(number), number + 1.0, text, draw(st.sampled_from([None, "English"]))))
    return events, texts


class TestDeltas:
    @given(streams())
    def test_of_every_segment_are_its_transcript(self, stream: tuple[list[Event], list[str]]) -> None:
        events, texts = stream
        items = EventTranslator(partials=True)
        items.start_stream(0.0, turn=False, codes={})
        told: dict[str, str] = {}
        transcripts = []
        for event in events:
            for each in items.translate(event):
                if each["type"] == f"{TRANSCRIPTION}.delta":
                    assert each["delta"]
                    told[each["item_id"]] = told.get(each["item_id"], "") + each["delta"]
                if each["type"] == f"{TRANSCRIPTION}.partial":
                    assert each["stable"] == told.get(each["item_id"], "")
                if each["type"] == f"{TRANSCRIPTION}.completed":
                    assert each["transcript"] == told.pop(each["item_id"], "")
                    transcripts.append(each["transcript"])
        assert transcripts == texts
        assert not told

    @given(streams())
    def test_of_a_turn_are_the_joined_transcript(self, stream: tuple[list[Event], list[str]]) -> None:
        events, texts = stream
        items = EventTranslator(partials=True)
        items.start_stream(0.0, turn=True, codes={})
        whole, told = join_texts(texts), ""
        made = [each for event in events for each in items.translate(event)]
        for each in [*made, *items.commit_turn(), *items.complete_turn(9.0)]:
            if each["type"] == f"{TRANSCRIPTION}.delta":
                told += each["delta"]
                assert whole.startswith(told)
            if each["type"] == f"{TRANSCRIPTION}.partial":
                assert each["stable"] == told
        assert told == whole
        assert each["transcript"] == whole

    def test_texts_in_front_of_an_open_segment_are_told_first(self) -> None:
        items = EventTranslator()
        items.start_stream(0.0, turn=True, codes={})
        assert not items.translate(Speech(0, 0.0))
        assert not items.translate(partial(1, 2.0, "later", ""))
        assert not items.translate(final(1, 1.0, 2.0, "later"))
        assert deltas(items.translate(final(0, 0.0, 1.0, "first"))) == "first later"

    def test_taking_back_is_a_defect(self) -> None:
        items = EventTranslator()
        items.start_stream(0.0, turn=False, codes={})
        items.translate(partial(0, 1.0, "It", ""))
        with pytest.raises(AssertionError):
            items.translate(final(0, 0.0, 1.0, "At"))


@contextmanager
def served(app: Starlette, **defaults: Any) -> Iterator[str]:
    """The app behind a real server, with our options and ``defaults`` beside them; its address without the scheme."""
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
        service = Service(transcriber, UTTERANCE)
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
                told = ""
                for event in connection:
                    if isinstance(event, Delta):
                        told += event.delta or ""
                    if isinstance(event, Completed):
                        break
                assert isinstance(event, Completed)
                assert event.transcript == told == "It was very quiet."
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

        with served(make_app(Service(transcriber, UTTERANCE))) as address:
            run(scenario(address))

    def test_who_sends_faster_than_is_heard_is_slowed_down_and_not_cut_off(self, transcriber: Transcriber) -> None:
        """While nothing is read, the answers to pings lie behind what was sent."""

        class Slow(Stream):
            async def feed(self, samples: np.ndarray) -> None:
                await asyncio.sleep(0.04)
                await super().feed(samples)

        service: Any = Service(transcriber)
        stream = Slow([], 24_000)
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

    def test_a_wrong_key(self, transcriber: Transcriber) -> None:
        from websockets.exceptions import InvalidStatus

        with served(make_app(Service(transcriber), key="secret")) as address:
            client = openai.OpenAI(api_key="wrong", base_url=f"http://{address}/v1")
            with pytest.raises(InvalidStatus) as denied, client.realtime.connect(model="model-0"):
                pass
            assert denied.value.response.status_code == 401
            assert json.loads(denied.value.response.body or b"")["error"]["code"] == "invalid_api_key"

    def test_a_huge_frame(self, transcriber: Transcriber) -> None:
        from websockets.exceptions import ConnectionClosedError

        with served(make_app(Service(transcriber))) as address:
            client = openai.OpenAI(api_key="none", base_url=f"http://{address}/v1")
            with client.realtime.connect(model="model-0") as connection:
                connection.recv()
                connection.input_audio_buffer.append(audio=pcm(60.0))
                with pytest.raises(ConnectionClosedError, match="1009"):
                    connection.recv()
