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
from tests.hostile.damaged import MAX_BYTES, MAX_SECONDS, problems_of, read_in_process, transcribe
from tests.hostile.files import FORMATS, damaged, good

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


def test_damaged_files_are_read_or_refused() -> None:
    """The first of the files of ``python -m tests.hostile.damaged``, by the reader and the command line."""
    outcomes = list(read_in_process(range(300)))
    assert len(outcomes) == 300
    assert problems_of(outcomes) == []
    # Both outcomes are frequent; otherwise the damage is too small or too large to test anything.
    assert all(sum(entry["outcome"] == kind for entry in outcomes) > 60 for kind in ("read", "refused"))
    assert transcribe(range(300)) == []


def test_reader_of_damaged_files_reports_what_breaks_a_rule() -> None:
    entries = [
        {"seed": 0, "outcome": "raises ValueError: x", "seconds": 0.0, "bytes": 0},
        {"seed": 1, "outcome": "read", "seconds": MAX_SECONDS + 1, "bytes": 0},
        {"seed": 2, "outcome": "refused", "seconds": 0.0, "bytes": MAX_BYTES + 1},
    ]
    assert [problem.split(")")[1] for problem in problems_of(entries)] == [
        ": raises ValueError: x",
        ": takes 11.0 s",
        ": the process has 500 MB",
    ]


def test_a_seed_makes_the_same_file() -> None:
    assert len({damaged(seed).kind for seed in range(300)}) > 150
    assert all(good(format) for format in FORMATS)
    assert [seed for seed in range(0, 300, 7) if damaged(seed) != damaged(seed)] == []
