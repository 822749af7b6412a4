"""Tests that every kind of hostile request is refused and leaves nothing behind."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import msgspec
import pytest

from runtime import Transcriber
from runtime.server.app import make_app
from runtime.server.limits import Limits
from runtime.server.metrics import Metrics
from runtime.server.scheduling.service import Service
from runtime.server.settings import Settings
from tests import hostile
from tests.conftest import ARTIFACT, DATA
from tests.helpers.fake_service import Running, running, until
from tests.helpers.load_client import Connection, transcription

MODEL = "qwen3-asr-tiny-int8"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    """Server with short timeouts and ``tmp_path`` as its temporary folder."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    limits = Limits(
        max_upload_bytes=hostile.MAX_UPLOAD_BYTES,
        max_audio_seconds=hostile.MAX_AUDIO_SECONDS,
        header_timeout=1.0,
        body_timeout=1.0,
    )
    settings, metrics = Settings(keys=(hostile.KEY,), limits=limits), Metrics()
    service = Service(MODEL, Transcriber.from_artifact(ARTIFACT), limits, metrics)
    with running(make_app({MODEL: service}, settings, metrics), settings) as instance:
        yield instance


@pytest.mark.slow
def test_every_kind_is_refused(server: Running, tmp_path: Path, transcriber: Transcriber) -> None:
    outcomes = asyncio.run(hostile.attack(server.port, len(hostile.KINDS), at_once=24))
    assert {kind: outcome for kind, outcome in outcomes if not outcome.refused} == {}
    # There is no response only if the client has closed the connection.
    assert {kind for kind, outcome in outcomes if outcome.name == "closed"} <= hostile.ENDED_BY_CLIENT
    until(lambda: not server.server.server_state.connections)
    assert not list(tmp_path.iterdir())

    async def good() -> tuple[int, str]:
        audio = (DATA / "en-1.wav").read_bytes()
        async with Connection(server.port) as connection:
            answer = await connection.exchange(transcription(audio, hostile.WITH_KEY), 60)
        return answer.status, msgspec.json.decode(answer.body)["text"]

    assert asyncio.run(good()) == (200, transcriber.transcribe(DATA / "en-1.wav").text)


def test_a_seed_gives_the_same_requests() -> None:
    first = {kind: make(Random(7)) for kind, make in hostile.KINDS.items()}
    time.sleep(1.1)  # some formats contain the time in seconds
    assert [kind for kind, make in hostile.KINDS.items() if make(Random(7)) != first[kind]] == []


@pytest.mark.parametrize(
    ("outcome", "refused"),
    [
        (hostile.Outcome("answered", (400, 404)), True),
        (hostile.Outcome("answered", (400, 200)), False),
        (hostile.Outcome("answered", (500,)), False),
        (hostile.Outcome("hangs"), False),
        (hostile.Outcome("websocket", code=1009), True),
        (hostile.Outcome("websocket", code=1000), False),
        (hostile.Outcome("websocket", code=1011), False),
    ],
)
def test_refused_outcomes(outcome: hostile.Outcome, refused: bool) -> None:
    assert outcome.refused is refused
