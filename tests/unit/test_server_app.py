"""Tests of routes, response formats and errors over HTTP, with a fake service."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import msgspec
import pytest
from openai.types.audio import TranscriptionVerbose
from starlette.testclient import TestClient

from runtime.errors import AsrError, AudioInvalidError, AudioUnsupportedError, OptionError, ProviderError
from runtime.results import TokenCounts
from runtime.server.errors import AudioTooLong, Busy, Closing, DeadlineExceeded, EngineFailure
from runtime.server.limits import Limits
from runtime.server.openai.replies import token_usage
from runtime.server.settings import Settings
from tests.helpers.fake_service import FakeService, app, segment, transcript
from tests.helpers.http import PATH, error_of, send


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Check that the test leaves no temporary file."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert not list(folder.iterdir())


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
def client(service: FakeService) -> Iterator[TestClient]:
    with TestClient(app(service)) as client:
        yield client


def test_text_and_tokens(client: TestClient, service: FakeService) -> None:
    response = send(client, model="fake", language="en", prompt="Jon", temperature="0")
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert response.json() == {
        "text": "One two three.",
        "usage": {
            "type": "tokens",
            "input_tokens": 40,
            "output_tokens": 5,
            "total_tokens": 45,
            "input_token_details": {"audio_tokens": 26, "text_tokens": 14},
        },
    }
    assert service.calls == [(b"audio", "English", "Jon")]


@pytest.mark.parametrize("stream", ["false", "true"])
def test_a_header_says_how_much_of_a_long_prompt_was_dropped(
    client: TestClient, service: FakeService, stream: str
) -> None:
    assert "x-prompt-tokens-dropped" not in send(client, prompt="Jon", stream=stream).headers
    service.dropped = 17
    assert send(client, prompt="Jon", stream=stream).headers["x-prompt-tokens-dropped"] == "17"


def test_the_model_times_segments_if_it_can(client: TestClient, service: FakeService) -> None:
    for format in ("srt", "vtt", "verbose_json", "json"):
        send(client, response_format=format)
    service.transcriber.capabilities = msgspec.structs.replace(service.transcriber.capabilities, timestamps=True)
    for format in ("srt", "vtt", "verbose_json", "json"):
        send(client, response_format=format)
    assert service.timestamps == [False] * 4 + [True, True, True, False]


def test_empty_fields_count_as_not_given(client: TestClient, service: FakeService) -> None:
    assert send(client, model="", language="", prompt="", temperature="").status_code == 200
    assert service.calls == [(b"audio", None, "")]


def test_a_wrong_method_is_answered_with_the_right_one(client: TestClient) -> None:
    response = client.get("/v1/audio/transcriptions")
    assert (response.status_code, response.headers["allow"]) == (405, "POST")
    assert response.json()["error"]["message"] == "This path does not support this method; use POST."


@pytest.mark.parametrize(
    ("counts", "in_prompt", "inputs", "text"),
    [
        (TokenCounts(audio=26, prompt=40, generated=5), True, 40, 14),  # Qwen3-ASR: audio tokens are part of the prompt
        (TokenCounts(audio=1500, prompt=4, generated=20), False, 1504, 4),  # Whisper: the decoder attends to the audio
        (TokenCounts(audio=32, prompt=0, generated=17), False, 32, 0),  # CTC and transducers: no prompt
    ],
)
def test_token_usage(counts: TokenCounts, in_prompt: bool, inputs: int, text: int) -> None:
    usage = token_usage(msgspec.structs.replace(transcript(), tokens=counts), audio_in_prompt=in_prompt)
    assert usage["input_tokens"] == inputs
    assert usage["total_tokens"] == inputs + counts.generated
    assert usage["input_token_details"] == {"audio_tokens": counts.audio, "text_tokens": text}


@pytest.mark.parametrize(
    ("format", "kind", "body"),
    [
        ("text", "text/plain", "One two three.\n"),
        (
            "srt",
            "application/x-subrip",
            "1\n00:00:00,000 --> 00:00:01,000\nOne two\n\n2\n00:00:01,000 --> 00:00:02,000\nthree.\n",
        ),
        (
            "vtt",
            "text/vtt",
            "WEBVTT\n\n00:00:00.000 --> 00:00:01.000\nOne two\n\n00:00:01.000 --> 00:00:02.000\nthree.\n",
        ),
    ],
)
def test_formats_of_text(client: TestClient, format: str, kind: str, body: str) -> None:
    response = send(client, response_format=format)
    assert response.headers["content-type"] == f"{kind}; charset=utf-8"
    assert response.text == body


def test_verbose_json_matches_the_official_types() -> None:
    service = FakeService("fake", segment("Hello hello hello hello", 0.5, 1.25), segment("", 2.0, 3.0))
    with TestClient(app(service)) as client:
        response = send(client, response_format="verbose_json", **{"timestamp_granularities[]": "segment"})
    body = response.json()
    parsed = TranscriptionVerbose.model_validate(body, strict=True)
    assert (body["task"], parsed.language, parsed.duration) == ("transcribe", "english", 2.5)
    assert body["usage"] == {"type": "duration", "seconds": 2.5}
    assert parsed.segments is not None
    spoken, silent = parsed.segments
    assert (spoken.id, spoken.seek, spoken.start, spoken.end) == (0, 50, 0.5, 1.25)
    assert (spoken.tokens, spoken.temperature, spoken.avg_logprob) == ([7, 8, 9], 0.0, -0.6931)
    assert spoken.compression_ratio > 1
    assert (spoken.no_speech_prob, silent.no_speech_prob, silent.compression_ratio) == (0.0, 1.0, 0.0)


def test_dropped_text_and_the_probability_of_no_speech_are_in_verbose_json() -> None:
    dropped = msgspec.structs.replace(segment("", 2.0, 3.0), no_speech_prob=0.85, dropped_text="Thank you.")
    with TestClient(app(FakeService("fake", segment("Hello", 0.5, 1.25), dropped))) as client:
        body = send(client, response_format="verbose_json").json()
    spoken, silent = TranscriptionVerbose.model_validate(body).segments or []
    assert (silent.text, silent.no_speech_prob, spoken.no_speech_prob) == ("", 0.85, 0.0)
    assert body["segments"][1]["dropped_text"] == "Thank you."
    assert "dropped_text" not in body["segments"][0]
    assert "Thank you" not in body["text"]


def test_no_speech_has_no_language() -> None:
    service = FakeService()
    service.results = ()
    with TestClient(app(service)) as client:
        assert send(client, response_format="verbose_json").json()["language"] == ""


def test_models(client: TestClient, service: FakeService) -> None:
    entry: dict[str, Any] = {
        "id": "fake",
        "object": "model",
        "created": 1_700_000_000,
        "owned_by": "asr-deploy",
        "languages": [{"code": "en", "name": "English"}],
        "capabilities": msgspec.to_builtins(service.transcriber.capabilities),
    }
    assert entry["capabilities"]["context"] is True
    assert client.get("/v1/models").json() == {"object": "list", "data": [entry]}
    assert client.get("/v1/models/fake").json() == entry
    error = error_of(client.get("/v1/models/other"), 404)
    assert error["code"] == "model_not_found"
    assert "'other'" in error["message"]
    assert "fake" in error["message"]


def test_first_model_is_the_default() -> None:
    first, second = FakeService("first"), FakeService("org/second")
    with TestClient(app(first, second)) as client:
        assert send(client).status_code == 200
        assert send(client, model="org/second").status_code == 200
        assert client.get("/v1/models/org/second").json()["id"] == "org/second"
        assert error_of(send(client, model="third"), 404)["param"] == "model"
    assert (len(first.calls), len(second.calls)) == (1, 1)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": "0.5"}, "temperature"),
        ({"language": "Klingon"}, "language"),
        ({"timestamp_granularities[]": "word"}, "timestamp_granularities"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_wrong_fields(client: TestClient, service: FakeService, fields: dict[str, str], param: str) -> None:
    error = error_of(send(client, **fields), 400)
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert not service.calls


def test_no_file(client: TestClient) -> None:
    assert error_of(send(client, file=None, model="fake"), 400)["param"] == "file"
    error_of(client.post(PATH, json={"file": "http://example.org/a.wav"}), 400)


@pytest.mark.parametrize(
    ("raised", "status", "code", "message"),
    [
        (Busy("too many wait", 7), 429, "rate_limit_exceeded", "too many wait"),
        (AudioTooLong("it has 9 hours"), 413, "file_too_large", "it has 9 hours"),
        (DeadlineExceeded("too late"), 504, "deadline_exceeded", "too late"),
        (Closing("it stops"), 503, "service_unavailable", "it stops"),
        (AudioInvalidError("the audio: is empty (0 bytes)"), 400, "invalid_audio", "file: is empty (0 bytes)"),
        (AudioUnsupportedError("the audio: needs PyAV"), 400, "unsupported_format", "file: this server cannot"),
        (OptionError("no context here"), 400, None, "no context here"),
        (EngineFailure(), 500, None, "The server failed to answer this request (request req_"),
        (ProviderError("/srv/secret: broke"), 500, None, "The server failed to answer this request"),
        (AsrError("/srv/secret"), 500, None, "The server failed to answer this request"),
        (ZeroDivisionError("/srv/secret.py"), 500, None, "The server failed to answer this request"),
    ],
)
def test_errors_of_the_service(
    client: TestClient,
    service: FakeService,
    caplog: pytest.LogCaptureFixture,
    raised: Exception,
    status: int,
    code: str | None,
    message: str,
) -> None:
    for stream in ("false", "true"):
        service.error = raised
        caplog.clear()
        response = send(client, stream=stream)
        error = error_of(response, status)
        assert error["code"] == code
        assert error["message"].startswith(message)
        assert response.headers.get("retry-after") == {429: "7", 503: "5"}.get(status)
        failures = [entry for entry in caplog.records if entry.levelno >= logging.ERROR]
        assert bool(failures) == (status == 500)
        assert all(response.headers["x-request-id"] in entry.getMessage() for entry in failures)


def events_of(response: Any) -> list[dict[str, Any]]:
    return [json.loads(block.rpartition("data: ")[2]) for block in response.text.removesuffix("\n\n").split("\n\n")]


def test_events(client: TestClient) -> None:
    response = send(client, stream="true")
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    events = events_of(response)
    assert [event["type"].removeprefix("transcript.text.") for event in events] == [
        "delta",
        "segment",
        "delta",
        "segment",
        "done",
    ]
    deltas = "".join(event["delta"] for event in events if "delta" in event)
    assert deltas == events[-1]["text"] == "One two three."
    assert events[-1]["usage"]["total_tokens"] == 45
    assert events[1] == {
        "type": "transcript.text.segment",
        "id": "seg_0",
        "start": 0.0,
        "end": 1.0,
        "text": "One two",
        "speaker": "",
        "language": "English",
        "decoded_again": None,
    }


def test_failure_during_the_stream_is_an_event(client: TestClient, service: FakeService) -> None:
    for late, kind in (
        (DeadlineExceeded("too late"), "server_error"),
        (EngineFailure(), "server_error"),
        (AudioInvalidError("the audio: is truncated"), "invalid_request_error"),
    ):
        service.late_error = late
        response = send(client, stream="true")
        assert response.status_code == 200
        assert "event: error\ndata: " in response.text
        assert events_of(response)[-1]["error"]["type"] == kind
        assert "Traceback" not in response.text


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/v1/models/", 404),
        ("POST", "/v1/nothing", 404),
        ("GET", PATH, 405),
        ("DELETE", "/v1/models", 405),
        ("GET", "/../../etc/hosts", 404),
    ],
)
def test_other_paths_and_methods(client: TestClient, method: str, path: str, status: int) -> None:
    response = client.request(method, path, content=b"x" * 1000 if method == "POST" else None)
    error_of(response, status)
    assert ("allow" in response.headers) == (status == HTTPStatus.METHOD_NOT_ALLOWED)


def test_segment_without_text_has_no_delta() -> None:
    with TestClient(app(FakeService("fake", segment(""), segment("Yes.")))) as client:
        kinds = [event["type"].rpartition(".")[2] for event in events_of(send(client, stream="true"))]
    assert kinds == ["segment", "delta", "segment", "done"]


def test_unexpected_failure_during_the_stream_closes_the_connection(client: TestClient, service: FakeService) -> None:
    service.late_error = ZeroDivisionError("/srv/secret.py")
    with pytest.raises(ZeroDivisionError):
        send(client, stream="true")


def test_too_large_file(service: FakeService) -> None:
    settings = Settings(limits=Limits(max_upload_bytes=1000))
    with TestClient(app(service, settings=settings)) as client:
        for size in (1001, 3_000_000):
            assert error_of(send(client, file=b"x" * size), 413)["code"] == "file_too_large"
    assert not service.calls
