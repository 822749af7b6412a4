"""Tests of the server with the tracked model, the official client and a server process."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openai
import pytest
import soundfile
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from runtime import Transcriber
from runtime.server.app import make_app
from runtime.server.limits import Limits
from runtime.server.metrics import Metrics
from runtime.server.scheduling.service import Service
from runtime.server.settings import Settings
from tests.conftest import ARTIFACT, DATA, REPOSITORY
from tests.helpers.fake_service import Running, running, until

KEY = "test-key"
MODEL = "qwen3-asr-tiny-int8"


@contextmanager
def serving(**limits: Any) -> Iterator[Running]:
    settings = Settings(keys=(KEY,), limits=Limits(**limits))
    metrics = Metrics()
    service = Service(MODEL, Transcriber.from_artifact(ARTIFACT), settings.limits, metrics)
    with running(make_app({MODEL: service}, settings, metrics), settings) as server:
        yield server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Server shared by all tests that do not change it; its temporary folder must be empty at the end."""
    folder = tmp_path_factory.mktemp("uploads")
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        with serving(max_upload_bytes=3_000_000) as running_server:
            yield running_server
        assert not list(folder.iterdir())
    finally:
        tempfile.tempdir = before


@pytest.fixture
def client(server: Running) -> Iterator[openai.OpenAI]:
    with official(server) as client:
        yield client


def official(server: Running, key: str = KEY) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0)


def test_a_change_of_the_audio_is_told(client: openai.OpenAI) -> None:
    """The channels of this file cancel one another; the server says that it took one of them."""
    samples, rate = soundfile.read(DATA / "en-1.wav", dtype="float32")
    file = io.BytesIO()
    soundfile.write(file, np.stack([samples, -samples], 1), rate, format="WAV", subtype="PCM_16")
    for format in ("json", "verbose_json"):
        body = client.audio.transcriptions.with_raw_response.create(
            model=MODEL, file=("opposite.wav", file.getvalue()), response_format=format
        ).http_response.json()
        (warning,) = body["warnings"]
        assert warning.startswith("the audio: its channels cancel one another")
        assert body["text"]
    plain = client.audio.transcriptions.with_raw_response.create(model=MODEL, file=DATA / "en-1.wav")
    assert "warnings" not in plain.http_response.json()


def message_of(error: openai.APIStatusError) -> str:
    """Check that an error response has no internals of the server, and return its message."""
    for internal in ("Traceback", "/srv", "/tmp", ".py", "standard input", "Spooled", "Error("):
        assert internal not in error.response.text
    assert error.response.headers["x-request-id"] == error.request_id
    body: dict[str, str] = error.response.json()["error"]
    return body["message"]


def test_concurrent_requests_get_their_own_texts(client: openai.OpenAI, samples: list[dict[str, Any]]) -> None:
    easy = [sample for sample in samples if sample["file"].endswith(("-1.wav", "-2.wav"))] * 2

    def transcribe(sample: dict[str, Any]) -> str:
        return client.audio.transcriptions.create(file=DATA / sample["file"], model=MODEL).text

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(transcribe, easy)) == [sample["text"] for sample in easy]


def test_json_and_its_usage(client: openai.OpenAI, transcriber: Transcriber) -> None:
    answer = client.audio.transcriptions.create(file=DATA / "en-1.wav", model=MODEL, response_format="json")
    offline = transcriber.transcribe(DATA / "en-1.wav")
    assert answer.text == offline.text
    assert answer.usage is not None
    assert answer.usage.type == "tokens"
    assert answer.usage.input_tokens == offline.tokens.prompt
    assert answer.usage.output_tokens == offline.tokens.generated


def test_text_and_subtitles(client: openai.OpenAI, samples: list[dict[str, Any]]) -> None:
    expected = samples[0]["text"]
    answers = {
        format: client.audio.transcriptions.create(
            file=DATA / "en-1.wav",
            model=MODEL,
            response_format=format,
        )
        for format in ("text", "srt", "vtt")
    }
    assert answers["text"] == expected + "\n"
    assert re.fullmatch(rf"1\n00:00:0\d,\d+ --> 00:00:0\d,\d+\n{re.escape(expected)}\n", answers["srt"])
    assert answers["vtt"].startswith("WEBVTT\n\n00:00:0")


def test_verbose_json(client: openai.OpenAI, transcriber: Transcriber) -> None:
    answer = client.audio.transcriptions.create(
        file=DATA / "ru-1.wav", model=MODEL, response_format="verbose_json", timestamp_granularities=["segment"]
    )
    offline = transcriber.transcribe(DATA / "ru-1.wav")
    assert (answer.text, answer.language, answer.duration) == (offline.text, "russian", offline.duration)
    assert answer.segments is not None
    (segment,) = answer.segments
    (expected,) = offline.segments
    assert (segment.start, segment.end, segment.text, segment.tokens) == (
        expected.start,
        expected.end,
        expected.text,
        expected.tokens,
    )


def test_events(client: openai.OpenAI, samples: list[dict[str, Any]]) -> None:
    stream = client.audio.transcriptions.create(file=DATA / "zh-1.wav", model=MODEL, stream=True)
    events = list(stream)
    deltas = [event.delta for event in events if event.type == "transcript.text.delta"]
    assert events[-1].type == "transcript.text.done"
    expected = next(sample["text"] for sample in samples if sample["file"] == "zh-1.wav")
    assert "".join(deltas) == events[-1].text == expected
    assert events[-1].usage is not None
    assert [event.id for event in events if event.type == "transcript.text.segment"] == ["seg_0"]


def test_deltas_of_long_audio_are_the_whole_text(
    client: openai.OpenAI, transcriber: Transcriber, speech: npt.NDArray[np.float32], tmp_path: Path
) -> None:
    file = tmp_path / "long.flac"
    soundfile.write(file, speech, 16_000)
    events = list(client.audio.transcriptions.create(file=file, model=MODEL, stream=True))
    deltas = [event.delta for event in events if event.type == "transcript.text.delta"]
    assert len(deltas) > 1
    done = events[-1]
    assert done.type == "transcript.text.done"
    assert "".join(deltas) == done.text


def test_prompt_and_language(client: openai.OpenAI, samples: list[dict[str, Any]]) -> None:
    hinted = next(sample for sample in samples if sample.get("context"))
    answer = client.audio.transcriptions.create(
        file=DATA / hinted["file"], model=MODEL, prompt=hinted["context"], language=hinted["language"]
    )
    assert answer.text == hinted["text"]
    with pytest.raises(openai.BadRequestError) as refused:
        client.audio.transcriptions.create(file=DATA / "en-1.wav", model=MODEL, language="Inglish")
    assert "did you mean English (en)" in message_of(refused.value)
    assert refused.value.param == "language"


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).object == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("whisper-1")
    with pytest.raises(openai.NotFoundError) as refused:
        client.audio.transcriptions.create(file=DATA / "en-1.wav", model="whisper-1")
    message = message_of(refused.value)
    assert "whisper-1" in message
    assert MODEL in message


def test_wrong_key(server: Running) -> None:
    with official(server, "wrong") as client, pytest.raises(openai.AuthenticationError) as refused:
        client.audio.transcriptions.create(file=DATA / "en-1.wav", model=MODEL)
    assert refused.value.code == "invalid_api_key"


def test_unsupported_options(client: openai.OpenAI) -> None:
    for options in (
        {"temperature": 0.5},
        {"timestamp_granularities": ["word"], "response_format": "verbose_json"},
        {"include": ["logprobs"]},
        {"chunking_strategy": {"type": "server_vad", "threshold": 0.9}},
        {"keywords": ["Sara"]},
    ):
        with pytest.raises(openai.BadRequestError) as refused:
            client.audio.transcriptions.create(file=DATA / "en-1.wav", model=MODEL, **options)
        assert refused.value.param == next(iter(options))
        assert message_of(refused.value)
    accepted: Any
    for accepted in ("auto", {"type": "server_vad"}):
        client.audio.transcriptions.create(
            file=DATA / "en-1.wav",
            model=MODEL,
            chunking_strategy=accepted,
        )


def zipped() -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("../../../etc/cron.d/x", b"\0" * 1_000_000)
    return archive.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.wav", b""),
        ("../../../../etc/passwd", b"no audio"),
        ("/dev/zero", b"RIFF\xff\xff\xff\x7fWAVEfmt "),
        ("bomb.zip", zipped()),
        ("C:\\boot.wav\0.txt", b"\0" * 5_000),
        ("truncated.wav", (DATA / "en-1.wav").read_bytes()[:9_000]),
        ("list.m3u8", b"#EXTM3U\nhttp://127.0.0.1/secret\nfile:///etc/passwd\n"),
        ("talk.mp4", b"\0\0\0\x18ftypmp42" + b"\0" * 500),
    ],
)
def test_files_that_are_not_audio(client: openai.OpenAI, name: str, content: bytes) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as refused:
            client.audio.transcriptions.create(file=(name, content), model=MODEL, stream=stream)
        assert message_of(refused.value).startswith("file: ")
        assert refused.value.param == "file"
        assert "passwd" not in refused.value.response.text


def test_too_large(client: openai.OpenAI) -> None:
    for size in (3_000_001, 30_000_000):
        with pytest.raises(openai.APIStatusError) as refused:
            client.audio.transcriptions.create(file=("a.wav", b"x" * size), model=MODEL)
        assert refused.value.status_code == 413
        assert "3 MB" in message_of(refused.value)


def test_limits_of_audio_and_queue(speech: npt.NDArray[np.float32], tmp_path: Path) -> None:
    long = tmp_path / "long.wav"
    soundfile.write(long, speech, 16_000)
    with serving(max_audio_seconds=5) as server, official(server) as client:
        with pytest.raises(openai.APIStatusError) as refused:
            client.audio.transcriptions.create(file=long, model=MODEL)
        assert refused.value.status_code == 413
        assert message_of(refused.value)
    with serving(max_queue=1) as server, official(server) as client, ThreadPoolExecutor(1) as pool:
        accepted = pool.submit(client.audio.transcriptions.create, file=long, model=MODEL)
        until(lambda: 'asr_queue_requests{model="qwen3-asr-tiny-int8"} 1.0' in metrics_of(server))
        with pytest.raises(openai.RateLimitError) as busy:
            client.audio.transcriptions.create(file=DATA / "en-1.wav", model=MODEL)
        assert int(busy.value.response.headers["retry-after"]) >= 1
        assert message_of(busy.value)
        assert accepted.result(60).text


def metrics_of(server: Running) -> str:
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=20) as answer:
        text: str = answer.read().decode()
    return text


def test_disconnect_frees_all_resources(server: Running, speech: npt.NDArray[np.float32], tmp_path: Path) -> None:
    file = tmp_path / "long.wav"
    soundfile.write(file, speech, 16_000)
    content = file.read_bytes()
    head = (
        f"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
        f"Content-Type: multipart/form-data; boundary=edge\r\nContent-Length: {len(content) + 90}\r\n\r\n"
        '--edge\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    ).encode()
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(head + content + b"\r\n--edge--\r\n" + b" " * 90)
        until(lambda: 'asr_rows_in_use{model="qwen3-asr-tiny-int8"} 0.0' not in metrics_of(server))
    idle = ('asr_rows_in_use{model="qwen3-asr-tiny-int8"} 0.0', 'asr_queue_requests{model="qwen3-asr-tiny-int8"} 0.0')
    until(lambda: all(line in metrics_of(server) for line in idle))
    until(lambda: 'status="499"' in metrics_of(server))


def test_web_socket(server: Running) -> None:
    address = f"ws://127.0.0.1:{server.port}/v1/realtime?model={MODEL}"
    with connect(address, additional_headers={"Authorization": f"Bearer {KEY}"}) as socket_:
        assert json.loads(socket_.recv(timeout=20))["type"] == "session.created"
    with pytest.raises(InvalidStatus) as refused, connect(address):
        pass
    assert refused.value.response.status_code == 401
    assert refused.value.response.headers["x-request-id"].startswith("req_")
    until(lambda: 'endpoint="/v1/realtime",model="",status="101"' in metrics_of(server))
    until(lambda: 'endpoint="/v1/realtime",model="",status="40' in metrics_of(server))


def test_page_is_served_without_a_key(server: Running) -> None:
    with urllib.request.urlopen(server.url, timeout=20) as answer:
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert answer.headers.get_all("x-content-type-options") == ["nosniff"]


@contextmanager
def process(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run ``python -m runtime serve`` on a free port; yield the process and its URL."""
    command = [sys.executable, "-m", "runtime", "serve", "--port", "0", "--model", str(ARTIFACT), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "ASR_DEPLOY_API_KEYS": KEY}
    with subprocess.Popen(command, cwd=REPOSITORY, env=environment, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            ready = server.stderr.readline()
            match = re.fullmatch(r"(http://127\.0\.0\.1:\d+) serves qwen3-asr-tiny-int8\n", ready)
            assert match, ready
            yield server, match[1]
        finally:
            server.kill()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_finishes_accepted_requests(
    number: signal.Signals, speech: npt.NDArray[np.float32], tmp_path: Path
) -> None:
    file = tmp_path / "long.wav"
    soundfile.write(file, speech, 16_000)
    with process("--log-format", "json") as (server, url), ThreadPoolExecutor(1) as pool:
        with openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as client:
            accepted = pool.submit(client.audio.transcriptions.create, file=file, model=MODEL)
            with urllib.request.urlopen(f"{url}/ready", timeout=20) as ready:
                assert json.load(ready) == {"status": "ready"}
            until(lambda: " 1.0" in _line(url, "asr_queue_requests"))
            server.send_signal(number)
            assert accepted.result(60).text
        _, log = server.communicate(timeout=60)
    assert server.returncode == 0
    (line,) = [json.loads(line) for line in log.splitlines()]
    assert (line["status"], line["path"], line["model"]) == (200, "/v1/audio/transcriptions", MODEL)
    assert line["audio_seconds"] == pytest.approx(len(speech) / 16_000, abs=0.001)
    assert "text" not in line


def _line(url: str, metric: str) -> str:
    with urllib.request.urlopen(f"{url}/metrics", timeout=20) as answer:
        return "".join(line for line in answer.read().decode().splitlines() if line.startswith(metric))


@pytest.mark.slow
def test_second_signal_stops_at_once(speech: npt.NDArray[np.float32], tmp_path: Path) -> None:
    file = tmp_path / "hour.flac"
    soundfile.write(file, np.tile(speech, 40), 16_000)
    with (
        process("--grace", "1000") as (server, url),
        openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        accepted = pool.submit(client.audio.transcriptions.create, file=file, model=MODEL)
        until(lambda: " 1.0" in _line(url, "asr_queue_requests"))
        server.send_signal(signal.SIGTERM)
        until(lambda: _refuses(url))
        assert not accepted.done()
        server.send_signal(signal.SIGTERM)
        assert server.wait(20) == -signal.SIGTERM
        with pytest.raises(openai.APIConnectionError):
            accepted.result(20)


def _refuses(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/ready", timeout=20) as answer:
            return bool(answer.status != 200)
    except OSError:
        return True
