"""Tests of ``--track`` and of warnings about audio, from the reader to the command line and the server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from starlette.testclient import TestClient
from typer.testing import CliRunner

from runtime import Request, Transcriber
from runtime.__main__ import app
from runtime.errors import OptionError
from runtime.server.app import make_app
from runtime.server.limits import Limits
from runtime.server.metrics import Metrics
from runtime.server.scheduling.service import Service
from runtime.server.settings import Settings
from tests.conftest import ARTIFACT, DATA
from tests.helpers.http import error_of, send
from tests.helpers.recordings import RATE, tracks

pytestmark = pytest.mark.usefixtures("small_default")


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def clips() -> list[np.ndarray]:
    return [soundfile.read(DATA / f"en-{number}.wav", dtype="float32")[0] for number in (1, 2)]


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory, clips: list[np.ndarray]) -> Path:
    """Return a container with two tracks of speech; the second begins at 5 s."""
    path = tmp_path_factory.mktemp("tracks") / "talk.mkv"
    path.write_bytes(tracks([(clips[0], 0.0), (clips[1], 5.0)], "matroska", "flac"))
    return path


def test_track_is_transcribed_at_its_times(
    video: Path, transcriber: Transcriber, samples: list[dict[str, Any]]
) -> None:
    assert soundfile.info(DATA / "en-1.wav").samplerate == RATE
    first = transcriber.transcribe(video)
    assert first.text == samples[0]["text"]
    second = transcriber.transcribe(video, track=1)
    assert second.text == samples[1]["text"]
    assert second.segments[0].start >= 4.7
    assert second.duration == pytest.approx(5.0 + soundfile.info(DATA / "en-2.wav").duration, abs=0.01)
    (outcome,) = transcriber.transcribe_many([Request(video, track=1)])
    assert outcome.result().text == second.text
    with pytest.raises(OptionError, match="an array has no tracks"):
        transcriber.transcribe(np.zeros(RATE, np.float32), sample_rate=RATE, track=0)


def test_commands_take_a_track(video: Path, samples: list[dict[str, Any]], tmp_path: Path) -> None:
    texts = [sample["text"] for sample in samples]
    result = run("transcribe", video, "--track", "1")
    assert (result.exit_code, result.stdout) == (0, texts[1] + "\n")
    result = run("transcribe", video, "--track", "2")
    assert result.exit_code == 2
    assert result.stderr == f"error: {video}: has no audio track 2; it has 0 (eng), 1 (deu)\n"
    result = run("stream", video, "--track", "1")
    assert texts[1] in result.stdout
    result = run("stream", "-", "--track", "1")
    assert (result.exit_code, "--track is for files" in result.stderr) == (2, True)

    manifest = tmp_path / "list.jsonl"
    entries = [{"audio": str(video), "id": "a"}, {"audio": str(video), "id": "b", "track": 0}]
    manifest.write_text("\n".join(map(json.dumps, entries)))
    result = run("batch", manifest, "--out", tmp_path / "out.jsonl", "--track", "1")
    assert result.exit_code == 0, result.stderr
    lines = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert {line["id"]: (line["text"], line["batch"]["track"]) for line in lines} == {
        "a": (texts[1], 1),
        "b": (texts[0], 0),
    }
    result = run("batch", manifest, "--out", tmp_path / "out.jsonl")
    assert result.exit_code == 2
    assert "track" in result.stderr


def test_channels_that_cancel_are_transcribed_with_a_warning(
    clips: list[np.ndarray], samples: list[dict[str, Any]], tmp_path: Path
) -> None:
    path = tmp_path / "inverted.wav"
    soundfile.write(path, np.stack([clips[0], -clips[0]], 1), RATE)
    result = run("transcribe", path)
    assert (result.exit_code, result.stdout) == (0, samples[0]["text"] + "\n")
    assert result.stderr.startswith(f"warning: {path}: its channels cancel one another")
    assert result.stderr.count("\n") == 1
    result = run("transcribe", path, "--format", "json")
    assert len(json.loads(result.stdout)["warnings"]) == 1
    result = run("stream", path)
    assert samples[0]["text"] in result.stdout
    assert "warning: " in result.stderr


def test_server_takes_a_track(video: Path, samples: list[dict[str, Any]]) -> None:
    settings, metrics = Settings(limits=Limits()), Metrics()
    service = Service("tiny", Transcriber.from_artifact(ARTIFACT), settings.limits, metrics)
    with TestClient(make_app({"tiny": service}, settings, metrics)) as client:
        response = send(client, file=video.read_bytes(), track="1")
        assert (response.status_code, response.json()["text"]) == (200, samples[1]["text"])
        error = error_of(send(client, file=video.read_bytes(), track="7"), 400)
        assert error["param"] == "track"
        assert "it has 0 (eng), 1 (deu)" in error["message"]
        assert error_of(send(client, file=video.read_bytes(), track="one"), 400)["param"] == "track"
