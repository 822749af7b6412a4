"""Tests of the configuration of realtime sessions and of audio formats."""

from __future__ import annotations

import base64
import copy
import io
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from runtime import Transcriber
from runtime.pipeline.streaming import LiveOptions
from runtime.server.realtime.audio import decode_audio
from runtime.server.realtime.session import (
    EventError,
    SessionConfig,
    as_legacy_session,
    as_session,
    read_legacy_session,
    read_session,
)
from tests.helpers.realtime import (
    RATE,
    TRANSCRIPTION,
    UTTERANCE,
    ScriptedService,
    connected,
    kinds,
    make_app,
)


@pytest.mark.parametrize(
    ("format", "rate", "data"),
    [
        ({"type": "audio/pcm", "rate": 8000}, 8000, np.arange(8000, dtype="<i2").tobytes()),
        ({"type": "audio/pcm", "rate": 48000}, 48000, np.arange(8000, dtype="<i2").tobytes()),
        ({"type": "audio/pcmu"}, 8000, bytes([0x80]) * 100),
        ({"type": "audio/pcma", "rate": 8000}, 8000, bytes([0xAA]) * 100),
    ],
)
def test_audio_formats(transcriber: Transcriber, format: dict[str, Any], rate: int, data: bytes) -> None:
    service = ScriptedService(transcriber)
    with connected(make_app(service)) as client:
        assert client.update(format=format)["session"]["audio"]["input"]["format"]["type"] == format["type"]
        client.send("input_audio_buffer.append", audio=base64.b64encode(data).decode())
        client.commit()
        client.next()
    fed = np.concatenate(service.streams[0].fed)
    assert service.calls[0]["sample_rate"] == rate
    assert fed.dtype == np.int16
    expected = {"audio/pcm": np.arange(8000), "audio/pcmu": np.full(100, 32124), "audio/pcma": np.full(100, 32256)}
    np.testing.assert_array_equal(fed, expected[format["type"]])


@pytest.mark.parametrize(("encoding", "subtype"), [("audio/pcmu", "ULAW"), ("audio/pcma", "ALAW")])
def test_g711_equals_libsndfile(encoding: Any, subtype: str) -> None:
    codes = bytes(range(256))
    expected, _ = soundfile.read(
        io.BytesIO(codes), dtype="int16", format="RAW", subtype=subtype, samplerate=8000, channels=1
    )
    np.testing.assert_array_equal(decode_audio(base64.b64encode(codes).decode(), encoding), expected)


def test_update_only_changes_its_fields(transcriber: Transcriber) -> None:
    service = ScriptedService(transcriber)
    other = ScriptedService(transcriber, UTTERANCE)
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
        # An update during an open segment ends it; the following audio uses the new session.
        client.send(
            "session.update",
            session={"type": "transcription", "audio": {"input": {"transcription": {"language": None}}}},
        )
        events = client.until("session.updated")
        assert f"{TRANSCRIPTION}.completed" in kinds(events)
        client.append(1.0)
        client.commit()
        client.next()
    assert not service.calls
    assert other.calls == [
        {"sample_rate": RATE, "language": language, "context": "Kris", "live": LiveOptions(pause=1.2)}
        for language in ("ru", None)
    ]


def test_open_turn_blocks_changes_of_the_session(transcriber: Transcriber) -> None:
    with connected(make_app(ScriptedService(transcriber))) as client:
        client.update(turn_detection=None)
        client.append(1.0)
        assert client.update(turn_detection=None)["type"] == "session.updated"  # changes nothing
        refused = client.update(transcription={"language": "en"})
        assert refused["error"]["code"] == "session_in_use"
        client.send("input_audio_buffer.clear")
        client.next()
        assert client.update(transcription={"language": "en"})["type"] == "session.updated"


def test_legacy_session(transcriber: Transcriber) -> None:
    service = ScriptedService(transcriber, UTTERANCE)
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
    assert service.calls[0]["sample_rate"] == 8000


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
def test_unsupported_fields_are_named(transcriber: Transcriber, audio_input: dict[str, Any], param: str) -> None:
    with connected(make_app(ScriptedService(transcriber))) as client:
        refused = client.update(**audio_input)
        assert refused["type"] == "error"
        assert refused["error"]["param"] == f"session.audio.input.{param}"
        assert refused["error"]["event_id"] == "mine"
        unchanged = client.update()
        assert unchanged["session"]["audio"] == client.created["session"]["audio"]


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
    with connected(make_app(ScriptedService(transcriber))) as client:
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
def test_any_session_is_read_or_refused(session: Any, legacy: bool) -> None:
    read = read_legacy_session if legacy else read_session
    before, param = SessionConfig("m"), "session"
    original = copy.deepcopy(session)
    try:
        config = read(before, session, ["m"])
    except EventError as error:
        config, param = before, str(error.param)
    assert param.startswith("session")
    assert session == original
    assert 8_000 <= config.rate <= 48_000
    assert config.pause is None or 500 <= config.pause <= 10_000
    # Sending the reported session back changes nothing.
    reported = as_legacy_session(config, "sess") if legacy else as_session(config, "sess")
    del reported["id"], reported["object"]
    assert read(config, reported, ["m"]) == config
