"""Tests of connections to ``/v1/realtime`` with a scripted service: events, errors and limits."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.websockets import WebSocketDisconnect

from runtime import Transcriber
from runtime.errors import CapabilityError, OptionError
from runtime.pipeline.events import Speech
from runtime.pipeline.streaming import LiveOptions
from runtime.server.errors import AudioTooLong, Busy, Closing, EngineFailure
from runtime.server.limits import MAX_MESSAGE_BYTES, Limits
from runtime.server.realtime import connection as realtime_connection
from runtime.server.realtime.connection import MAX_CONSECUTIVE_ERRORS, Connection
from runtime.server.realtime.message_queue import MessageQueue
from runtime.transcriber import Request
from tests.helpers.realtime import (
    RATE,
    TRANSCRIPTION,
    UTTERANCE,
    ScriptedService,
    connected,
    deltas,
    final,
    kinds,
    make_app,
    partial,
    run,
)


def test_utterance_with_voice_activity_detection(transcriber: Transcriber) -> None:
    service = ScriptedService(transcriber, UTTERANCE)
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
    assert service.calls[0]["sample_rate"] == RATE
    assert service.calls[0]["live"] == LiveOptions(pause=0.8)
    assert service.streams[0].closed.is_set()  # the client has disconnected


def test_partials_are_optional(transcriber: Transcriber) -> None:
    with connected(make_app(ScriptedService(transcriber, UTTERANCE)), "?partials=true&model=model-0") as client:
        for _ in range(3):
            client.append(1.0)
        events = client.until(f"{TRANSCRIPTION}.completed")
    partials = [event for event in events if event["type"] == f"{TRANSCRIPTION}.partial"]
    assert [(event["stable"], event["unstable"], event["end"]) for event in partials] == [
        ("", "It wa", 1.0),
        ("It was", " wery", 2.0),
    ]
    assert (events[-1]["start"], events[-1]["end"], events[-1]["language"]) == (0.5, 2.25, "English")


def test_turn_is_one_item(transcriber: Transcriber) -> None:
    first: list[tuple[float, Any]] = [
        (1.0, Speech(0, 0.5)),
        (1.0, partial(0, 1.0, "One", " tw")),
        (2.0, final(0, 0.5, 1.5, "One two.")),
        (2.0, partial(1, 2.0, "Three", " f")),
        (9.0, final(1, 1.6, 2.0, "Three four.", "German")),
    ]
    service = ScriptedService(transcriber, first, [])
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


def test_commit_ends_the_open_segment(transcriber: Transcriber) -> None:
    service = ScriptedService(transcriber, UTTERANCE, UTTERANCE, [])
    with connected(make_app(service)) as client:
        client.append(1.0)
        client.commit()
        assert client.until(f"{TRANSCRIPTION}.completed")[-1]["transcript"] == "It was very quiet."
        client.append(1.0)
        client.commit()
        second = client.until(f"{TRANSCRIPTION}.completed")
        assert second[0]["audio_start_ms"] == 1500  # time in the connection's audio, not in the stream
        client.commit()
        nothing = client.next()
        client.append(1.0)
        client.commit()
        silence = client.next()
    assert nothing["error"]["code"] == silence["error"]["code"] == "input_audio_buffer_commit_empty"
    assert nothing["error"]["message"] != silence["error"]["message"]


def test_clear_cancels_the_open_segment(transcriber: Transcriber) -> None:
    service = ScriptedService(transcriber, UTTERANCE, UTTERANCE)
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
def test_invalid_event_changes_nothing(transcriber: Transcriber, message: str, code: str) -> None:
    service = ScriptedService(transcriber, UTTERANCE)
    with connected(make_app(service)) as client:
        client.socket.send_text(message)
        refused = client.next()
        assert refused["type"] == "error"
        assert refused["error"]["code"] == code
        client.send("input_audio_buffer.append", audio="")
        client.append(3.0)
        assert client.until(f"{TRANSCRIPTION}.completed")[-1]["transcript"] == "It was very quiet."
    assert service.streams[0].seconds == 3.0


def test_error_has_the_id_of_the_event(transcriber: Transcriber) -> None:
    with connected(make_app(ScriptedService(transcriber))) as client:
        client.send("response.create", event_id="event_7")
        assert client.next()["error"]["event_id"] == "event_7"
        client.send("response.create", event_id=["event_7"])
        assert client.next()["error"]["event_id"] is None
        client.socket.send_bytes(b"\0\1")
        assert client.next()["error"]["code"] == "invalid_json"


def test_consecutive_errors_close_the_connection(transcriber: Transcriber) -> None:
    with connected(make_app(ScriptedService(transcriber))) as client:
        for _ in range(2 * MAX_CONSECUTIVE_ERRORS):  # never consecutive
            client.send("nonsense")
            client.next()
            client.send("input_audio_buffer.clear")
            client.next()
        for _ in range(MAX_CONSECUTIVE_ERRORS):
            client.send("nonsense")
            assert client.next()["type"] == "error"
        assert client.closed() == 1008


def test_too_large_message_closes_the_connection(transcriber: Transcriber) -> None:
    with connected(make_app(ScriptedService(transcriber))) as client:
        client.socket.send_text(" " * (MAX_MESSAGE_BYTES + 1))
        assert "pieces" in client.next()["error"]["message"]
        assert client.closed() == 1009


def test_idle_client_is_disconnected(transcriber: Transcriber, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(realtime_connection, "IDLE_SECONDS", 0.01)
    with connected(make_app(ScriptedService(transcriber))) as client:
        assert client.next()["error"]["code"] == "idle_timeout"
        assert client.closed() == 1008


def test_idle_client_gets_the_text_of_its_audio(transcriber: Transcriber, monkeypatch: pytest.MonkeyPatch) -> None:
    with connected(make_app(ScriptedService(transcriber, UTTERANCE))) as client:
        client.append(1.0)
        client.next()
        monkeypatch.setattr(realtime_connection, "IDLE_SECONDS", 0.01)
        client.send("input_audio_buffer.append", audio="")  # the next timeout is short
        events = client.until(f"{TRANSCRIPTION}.completed")
        assert events[0]["error"]["code"] == "idle_timeout"
        assert client.closed() == 1008


@pytest.mark.parametrize("error", [WebSocketDisconnect(1006), None])
def test_client_that_does_not_read_is_disconnected(
    transcriber: Transcriber, monkeypatch: pytest.MonkeyPatch, error: Exception | None
) -> None:
    class UnreadSocket:
        async def receive(self) -> Any:
            await asyncio.Event().wait()

        async def send_text(self, text: str) -> None:
            if error:
                raise error
            await asyncio.Event().wait()

    monkeypatch.setattr(realtime_connection, "SEND_SECONDS", 0.01)
    services: Any = {"model-0": ScriptedService(transcriber)}
    websocket: Any = UnreadSocket()
    run(Connection(websocket, services, Limits(), model="model-0").run())  # returns without closing the WebSocket


def test_too_long_audio_in_one_message(transcriber: Transcriber) -> None:
    service = ScriptedService(transcriber)
    with connected(make_app(service, limits=Limits(stream_seconds=1))) as client:
        client.append(1.5)
        assert client.next()["error"]["code"] == "session_expired"
        assert client.closed() == 1008
    assert not service.streams


def test_model_without_prompts() -> None:
    def check(request: Request, **_: bool) -> None:
        if request.context:
            raise CapabilityError("context is not supported by this model", "context")

    transcriber: Any = SimpleNamespace(validate=check)
    with connected(make_app(ScriptedService(transcriber))) as client:
        refused = client.update(transcription={"prompt": "Kris"})
        assert refused["error"]["param"] == "session.audio.input.transcription.prompt"


def test_a_prompt_that_is_too_long_says_how_many_tokens_it_lost(transcriber: Transcriber) -> None:
    with connected(make_app(ScriptedService(transcriber))) as client:
        assert "prompt_tokens_dropped" not in client.update(transcription={"prompt": "Kris"})
        answer = client.update(transcription={"prompt": "word " * 3_200})
        assert (answer["type"], answer["prompt_tokens_dropped"] > 1_000) == ("session.updated", True)


@pytest.mark.parametrize("by_the_service", [False, True])
def test_stream_has_a_limit(transcriber: Transcriber, by_the_service: bool) -> None:
    service = ScriptedService(transcriber, UTTERANCE)
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
def test_stream_cannot_be_opened(transcriber: Transcriber, refusal: Exception, code: str, close: int) -> None:
    service = ScriptedService(transcriber)
    service.refusal = refusal
    with connected(make_app(service)) as client:
        client.append(1.0)
        error = client.next()["error"]
        assert (error["code"], error["message"]) == (code, str(refusal))
        assert client.closed() == close


def test_option_refused_by_the_stream(transcriber: Transcriber) -> None:
    service = ScriptedService(transcriber)
    service.refusal = OptionError("the prompt is too long")
    with connected(make_app(service)) as client:
        client.append(1.0)
        assert client.next()["error"]["message"] == "the prompt is too long"
        client.commit()
        assert client.next()["error"]["code"] == "input_audio_buffer_commit_empty"


@pytest.mark.parametrize("turn", [False, True])
def test_engine_failure_fails_all_open_items(transcriber: Transcriber, turn: bool) -> None:
    service = ScriptedService(transcriber, [*UTTERANCE[:2], (2.0, EngineFailure())])
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
def test_shutdown_sends_the_rest_of_the_text(transcriber: Transcriber, turn: bool) -> None:
    service = ScriptedService(transcriber, UTTERANCE)
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


def test_disconnect_closes_a_blocked_stream(transcriber: Transcriber) -> None:
    service = ScriptedService(transcriber)
    service.blocks = True
    with connected(make_app(service)) as client:
        client.append(1.0)
        client.append(1.0)
        client.send("nonsense")  # is not handled
    assert service.streams[0].closed.is_set()
    assert service.streams[0].seconds == 0


def test_message_queue_is_bounded() -> None:
    async def scenario() -> None:
        queue = MessageQueue(10)
        await queue.put("x" * 50)  # an empty queue accepts any message
        waiting = asyncio.create_task(queue.put(None))
        for _ in range(5):
            await asyncio.sleep(0)
        assert not waiting.done()
        assert await queue.get() == "x" * 50
        await waiting
        assert await queue.get() is None

    run(scenario())
