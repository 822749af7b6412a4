"""The server under load, with the small model: many clients at once, batching, and hostile requests."""

from __future__ import annotations

import asyncio
import base64
import io
import logging
import random
import statistics
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import soundfile
from prometheus_client.parser import text_string_to_metric_families
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from runtime import Transcriber
from tests import hostile
from tests.conftest import ARTIFACT, DATA
from tests.helpers.load_client import Answer, Connection, Lost, ServerProcess, request, serving, transcription

log = logging.getLogger("benchmarks")

Floats = npt.NDArray[np.float32]

RATE = 16_000
CLIENTS, STREAMS, SECONDS = 200, 8, 120.0
# Larger than the number of clients, each of which has one request at a time.
QUEUE = 256
# First reading of memory; further ones follow at half of the time and at the end.
EARLY_SECONDS = 20.0
TIMEOUT = 60.0
PIECE_SECONDS = 0.2

BATCH_CLIENTS, BATCH_ROWS, BATCH_REQUESTS, ROUNDS = 16, (1, 16), 384, 3
LANGUAGES = ("en", "ru", "zh")

HOSTILE_REQUESTS, HOSTILE_AT_ONCE = 1000, 48
# Measured over 6,000 requests: memory grew during the first 3,000 only.
HOSTILE_WARM_UP = 3000


def measure(_work: Path) -> dict[str, Any]:
    """Measure all parts; takes about seven minutes."""
    return {"clients": clients(), "batching": batching(), "hostile": against_hostile()}


class Clip(msgspec.Struct, frozen=True):
    """A recording as a request, and the text of the transcriber alone. ``samples`` are int16 at 16 kHz."""

    name: str
    request: bytes
    text: str
    seconds: float
    tokens: int
    samples: npt.NDArray[np.int16]


def _clip(transcriber: Transcriber, name: str, data: bytes) -> Clip:
    transcript = transcriber.transcribe(io.BytesIO(data))
    samples, _ = soundfile.read(io.BytesIO(data), dtype="int16")
    return Clip(name, transcription(data), transcript.text, transcript.duration, transcript.tokens.generated, samples)


def recordings() -> list[Clip]:
    """Return all sample recordings."""
    transcriber = Transcriber.from_artifact(ARTIFACT)
    files = [*sorted(DATA.glob("*.wav")), *sorted((DATA / "evaluation").glob("*.ogg"))]
    return [_clip(transcriber, path.name, path.read_bytes()) for path in files]


class Tally:
    """Outcomes of requests: latencies of right answers in seconds, and counts of the others."""

    def __init__(self) -> None:
        self.latencies: list[float] = []
        self.audio_seconds = 0.0
        self.outcomes: Counter[str] = Counter()

    def note(self, clip: Clip, answer: Answer, seconds: float) -> None:
        """Count an answer that took ``seconds``."""
        if answer.status != 200:
            self.outcomes["refused" if answer.status == 429 else "lost" if answer.status >= 500 else "wrong"] += 1
            log.warning("%s: %d %s", clip.name, answer.status, answer.body[:300])
        elif (text := msgspec.json.decode(answer.body)["text"]) != clip.text:
            self.outcomes["wrong"] += 1
            log.warning("%s: %r, not %r", clip.name, text, clip.text)
        else:
            self.outcomes["right"] += 1
            self.latencies.append(seconds)
            self.audio_seconds += clip.seconds

    def lost(self, clip: Clip, error: BaseException) -> None:
        """Count a request without an answer."""
        self.outcomes["lost"] += 1
        log.warning("%s: %s", clip.name, error)

    def results(self, seconds: float) -> dict[str, Any]:
        """Return counts, latencies, and rates over ``seconds``."""
        counts = {name: self.outcomes[name] for name in ("right", "lost", "wrong", "refused")}
        spread = {f"p{part}": float(np.quantile(self.latencies or [0.0], part / 100)) for part in (50, 95, 99)}
        return {
            "requests": self.outcomes.total(),
            **counts,
            "latency": spread,
            "requests_a_second": len(self.latencies) / seconds,
            "audio_seconds_a_second": self.audio_seconds / seconds,
        }


async def post(connection: Connection, clip: Clip, tally: Tally) -> None:
    """Send one request and count its outcome."""
    began = time.perf_counter()
    try:
        tally.note(clip, await connection.exchange(clip.request, TIMEOUT), time.perf_counter() - began)
    except Lost as error:
        tally.lost(clip, error)


def clients(count: int = CLIENTS, streams: int = STREAMS, seconds: float = SECONDS) -> dict[str, Any]:
    """Run clients that send one recording after the other, and live streams at the same time; check every text."""
    clips = recordings()
    with serving("--max-queue", QUEUE) as server:
        results = asyncio.run(_clients(server, clips, count, streams, seconds))
    log.info("%s", results)
    return results


async def _clients(
    server: ServerProcess, clips: list[Clip], count: int, streams: int, seconds: float
) -> dict[str, Any]:
    files, live = Tally(), Tally()
    began = time.perf_counter()
    cpu = server.cpu_seconds

    async def client(number: int) -> None:
        chosen = random.Random(number)
        async with Connection(server.port) as connection:
            while time.perf_counter() - began < seconds:
                await post(connection, chosen.choice(clips), files)

    resident: list[int] = []

    async def watch() -> None:
        for at in (min(EARLY_SECONDS, seconds / 6), seconds / 2, seconds):
            await asyncio.sleep(began + at - time.perf_counter())
            resident.append(server.resident_bytes)

    speakers = (_speaker(server.port, clips, number, began + seconds, live) for number in range(streams))
    await asyncio.gather(watch(), *map(client, range(count)), *speakers)
    took = time.perf_counter() - began
    return {
        "clients": count,
        "streams": streams,
        "seconds": took,
        "files": files.results(took),
        "live": live.results(took),
        "resident_bytes": dict(zip(("early", "half", "last"), resident, strict=True)),
        "server_cores": (server.cpu_seconds - cpu) / took,
        "batch_size": await _batch_size(server.port),
    }


async def _speaker(port: int, clips: list[Clip], number: int, until: float, tally: Tally) -> None:
    """Run a live stream that sends one recording after the other at the speed of speech."""
    chosen = random.Random(number)
    clip = clips[0]
    try:
        async with connect(f"ws://127.0.0.1:{port}/v1/realtime?intent=transcription", compression=None) as websocket:
            pcm = {"format": {"type": "audio/pcm", "rate": RATE}, "turn_detection": None}
            session = {"type": "transcription", "audio": {"input": pcm}}
            await websocket.send(msgspec.json.encode({"type": "session.update", "session": session}).decode())
            while time.perf_counter() < until:
                clip = chosen.choice(clips)
                await _speak(websocket, clip, tally)
    except (OSError, Lost, TimeoutError, WebSocketException) as error:
        tally.lost(clip, error)


async def _speak(websocket: ClientConnection, clip: Clip, tally: Tally) -> None:
    """Send a recording in real time, commit it, and wait for its text."""
    piece = int(PIECE_SECONDS * RATE)
    due = time.perf_counter()
    for start in range(0, len(clip.samples), piece):
        audio = base64.b64encode(clip.samples[start : start + piece].tobytes()).decode()
        await websocket.send(f'{{"type":"input_audio_buffer.append","audio":"{audio}"}}')
        due += PIECE_SECONDS
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
    await websocket.send('{"type":"input_audio_buffer.commit"}')
    began = time.perf_counter()
    async with asyncio.timeout(TIMEOUT):
        while True:
            event = msgspec.json.decode(await websocket.recv())
            if event["type"] == "error":
                raise Lost(event["error"]["message"])
            if event["type"] == "conversation.item.input_audio_transcription.completed":
                text = msgspec.json.encode({"text": event["transcript"]})
                tally.note(clip, Answer(200, text), time.perf_counter() - began)
                return


async def _batch_size(port: int) -> dict[str, float]:
    """Return the mean number of segments decoded together, and the share of segments that ended with seven others."""
    async with Connection(port) as connection:
        page = await connection.exchange(request("GET", "/metrics", {}), TIMEOUT)
    values = {
        (sample.name, sample.labels.get("le")): sample.value
        for family in text_string_to_metric_families(page.body.decode())
        for sample in family.samples
        if family.name == "asr_batch_size"
    }
    count = values["asr_batch_size_count", None]
    return {
        "mean": values["asr_batch_size_sum", None] / count,
        "eight_or_more": 1 - values["asr_batch_size_bucket", "6.0"] / count,
    }


def joined() -> list[Clip]:
    """Return clips of 11 to 13 s, one segment each: two recordings of a language joined, the longest one last."""
    transcriber = Transcriber.from_artifact(ARTIFACT)
    clips = []
    for language in LANGUAGES:
        for first in (1, 2):
            names = [f"{language}-{number}.wav" for number in (first, 3)]
            samples = np.concatenate([soundfile.read(DATA / name, dtype="int16")[0] for name in names])
            file = io.BytesIO()
            soundfile.write(file, samples, RATE, format="WAV")
            clips.append(_clip(transcriber, " + ".join(names), file.getvalue()))
    return clips


def batching(rounds: int = ROUNDS, requests: int = BATCH_REQUESTS) -> dict[str, Any]:
    """Send the same requests from 16 clients to a server with one row and to one with 16 rows, in turns."""
    clips = joined()
    rows: dict[int, list[dict[str, Any]]] = {count: [] for count in BATCH_ROWS}
    for number in range(rounds):
        for count in BATCH_ROWS if number % 2 else reversed(BATCH_ROWS):
            with serving("--max-batch", count, "--max-queue", QUEUE) as server:
                asyncio.run(_throughput(server, clips, 2 * BATCH_CLIENTS))  # warm-up
                rows[count].append(asyncio.run(_throughput(server, clips, requests)))
            log.info("%d rows: %s", count, rows[count][-1])
    rates = {
        str(count): statistics.median(run["audio_seconds_a_second"] for run in runs) for count, runs in rows.items()
    }
    alone, together = (rates[str(count)] for count in BATCH_ROWS)
    return {
        "batch_clients": BATCH_CLIENTS,
        "requests": requests,
        "rounds": rounds,
        "clip_seconds": [clip.seconds for clip in clips],
        "clip_tokens": [clip.tokens for clip in clips],
        "audio_seconds_a_second": rates,
        "cpu_seconds_a_request": {
            str(count): statistics.median(run["cpu_seconds"] for run in runs) / requests for count, runs in rows.items()
        },
        "ratio": together / alone,
        "runs": {str(count): runs for count, runs in rows.items()},
    }


async def _throughput(server: ServerProcess, clips: list[Clip], requests: int) -> dict[str, Any]:
    tally = Tally()
    left = iter(range(requests))
    cpu, began = server.cpu_seconds, time.perf_counter()

    async def client() -> None:
        async with Connection(server.port) as connection:
            for number in left:
                await post(connection, clips[number % len(clips)], tally)

    await asyncio.gather(*(client() for _ in range(BATCH_CLIENTS)))
    took = time.perf_counter() - began
    return tally.results(took) | {"seconds": took, "cpu_seconds": server.cpu_seconds - cpu}


def against_hostile(requests: int = HOSTILE_REQUESTS, warm_up: int = HOSTILE_WARM_UP) -> dict[str, Any]:
    """Send every kind of hostile request in turn, and measure what they leave behind in the server."""
    with serving(*hostile.OPTIONS, environment=hostile.ENVIRONMENT) as server:
        results = asyncio.run(_hostile(server, requests, warm_up))
    log.info("%s", results)
    return results


async def _hostile(server: ServerProcess, requests: int, warm_up: int) -> dict[str, Any]:
    clip = _clip(Transcriber.from_artifact(ARTIFACT), "en-1.wav", (DATA / "en-1.wav").read_bytes())
    good = transcription((DATA / "en-1.wav").read_bytes(), hostile.WITH_KEY)
    await hostile.attack(server.port, warm_up, HOSTILE_AT_ONCE, seed=1)
    async with Connection(server.port) as connection:
        for _ in range(20):
            await connection.exchange(good, TIMEOUT)
    await _quiet(server)
    resident, files, temporary = server.resident_bytes, server.open_files, server.temporary_files
    began = time.perf_counter()
    outcomes = await hostile.attack(server.port, requests, HOSTILE_AT_ONCE, seed=2)
    took = time.perf_counter() - began
    await _quiet(server, files)
    grown = {
        "resident_bytes": server.resident_bytes - resident,
        "open_files": server.open_files - files,
        "temporary_files": len(set(server.temporary_files) - set(temporary)),
    }
    async with Connection(server.port) as connection:
        answer = await connection.exchange(good, TIMEOUT)
    for kind, outcome in outcomes:
        if not outcome.refused:
            log.warning("%s: %s", kind, outcome)
    return {
        "requests": len(outcomes),
        "warm_up": warm_up,
        "kinds": len(hostile.KINDS),
        "seconds": took,
        "outcomes": dict(sorted(Counter(outcome.name for _, outcome in outcomes).items())),
        "not_refused": dict(Counter(kind for kind, outcome in outcomes if not outcome.refused)),
        "closed": dict(sorted(Counter(kind for kind, outcome in outcomes if outcome.name == "closed").items())),
        "resident_before_bytes": resident,
        "grown": grown,
        "good_request": answer.status == 200 and msgspec.json.decode(answer.body)["text"] == clip.text,
    }


async def _quiet(server: ServerProcess, files: int = 0) -> None:
    """Wait until the server has closed the files of former requests, for a minute at most."""
    with suppress(TimeoutError):
        async with asyncio.timeout(60):
            before = -1
            while (now := server.open_files) > files and now != before:
                before = now
                await asyncio.sleep(1.0)
