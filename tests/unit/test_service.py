"""A model's service in the server's event loop: accepted, refused, cancelled and drained requests."""

from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path

import msgspec
import pytest

from runtime.errors import AudioInvalidError, OptionError
from runtime.pipeline.events import Final
from runtime.results import Segment, Transcript
from runtime.server.errors import AudioTooLong, Busy, Closing, DeadlineExceeded
from runtime.server.limits import Limits
from runtime.server.metrics import Metrics
from runtime.server.scheduling.service import Service
from runtime.transcriber import Transcriber
from tests.conftest import ARTIFACT
from tests.helpers.stepped_engine import WAIT, FakeTranscriber, SteppedEngine, wav
from tests.helpers.stepped_service import collect, constant_audio, run, serving, validated, wait_engine

DATA = Path(__file__).parent.parent / "data"


def test_a_file_gets_the_offline_transcript() -> None:
    async def test() -> None:
        metrics = Metrics()
        async with serving(SteppedEngine(automatic=True), metrics=metrics) as service:
            assert service.ready
            transcripts = await asyncio.gather(
                *(
                    service.transcribe(validated(service, wav(value, seconds)))
                    for value, seconds in [(1, 100), (2, 3), (503, 50)]
                )
            )
            offline = FakeTranscriber(SteppedEngine(automatic=True))
            for transcript, (value, seconds) in zip(transcripts, [(1, 100), (2, 3), (503, 50)], strict=True):
                expected = offline.transcribe(wav(value, seconds))
                assert msgspec.structs.replace(transcript, timings=expected.timings) == expected
                assert transcript.timings.total > 0
            results = [
                item async for item in service.segments(validated(service, wav(1, 100), language="ru", context="Names"))
            ]
            assert results[:-1] == results[-1].segments  # type: ignore[union-attr]
            assert {each.language for each in results} == {"Russian"}
        labels = {"model": "m", "kind": "file"}
        assert metrics.registry.get_sample_value("asr_audio_seconds_total", labels) == 253.0
        batches = metrics.registry.get_sample_value("asr_batch_size_count", {"model": "m"})
        assert batches == len(engine_of(service).started)

    run(test())


def engine_of(service: Service) -> SteppedEngine:
    engine = service.transcriber.engine
    assert isinstance(engine, SteppedEngine)
    return engine


def test_requests_above_the_limits_are_refused_until_others_end() -> None:
    async def test() -> None:
        engine, metrics = SteppedEngine(), Metrics()
        async with serving(engine, Limits(max_queue=2, max_streams=1), metrics) as service:
            accepted = [asyncio.ensure_future(service.transcribe(validated(service, wav(1, 5)))) for _ in range(2)]
            await wait_engine(engine, lambda: len(engine.rows) > 0)
            assert metrics.registry.get_sample_value("asr_queue_requests", {"model": "m"}) == 2
            with pytest.raises(Busy, match="2 requests") as refusal:
                service.segments(validated(service, wav(1, 5)))
            assert refusal.value.retry_after >= 1
            stream = await service.open_stream(sample_rate=8000)
            with pytest.raises(Busy, match="1 live stream"):
                await service.open_stream()
            await stream.close()
            await stream.close()
            assert await collect(stream) == []
            engine.allow(10**9)
            assert [(await each).text for each in accepted] == ["1:5", "1:5"]
            assert (await service.transcribe(validated(service, wav(3, 5)))).text == "3:5"
            await (await service.open_stream(sample_rate=8000)).close()
            labels = {"model": "m", "reason": "Busy"}
            assert metrics.registry.get_sample_value("asr_failures_total", labels) == 2

    run(test())


def test_invalid_requests_are_refused() -> None:
    async def test() -> None:
        async with serving(SteppedEngine(automatic=True), Limits(max_audio_seconds=10)) as service:
            with pytest.raises(OptionError, match="Klingon"):
                service.segments(validated(service, wav(1, 5), language="Klingon"))
            with pytest.raises(OptionError, match="Klingon"):
                await service.open_stream(language="Klingon")
            with pytest.raises(AudioTooLong, match=r"the audio: .*10 s"):
                await service.transcribe(validated(service, wav(1, 11)))
            with pytest.raises(AudioInvalidError, match=r"^the audio: .*empty"):
                await service.transcribe(validated(service, io.BytesIO()))
            results = service.segments(validated(service, io.BytesIO(b"nothing")))
            with pytest.raises(AudioInvalidError):
                await anext(results)
            with pytest.raises(StopAsyncIteration):
                await anext(results)

    run(test())


def test_a_deadline_frees_the_row() -> None:
    async def test() -> None:
        engine = SteppedEngine(rows=1)
        async with serving(engine, Limits(deadline=0.01)) as service:
            late = service.segments(validated(service, wav(1, 15)))
            with pytest.raises(DeadlineExceeded, match=r"0\.01 s"):
                await anext(late)
            await wait_engine(engine, lambda: not engine.rows)

    run(test())


def test_a_cancelled_request_frees_its_row() -> None:
    async def test() -> None:
        engine, metrics = SteppedEngine(rows=1), Metrics()
        async with serving(engine, metrics=metrics) as service:
            source = wav(1, 15)
            cancelled = asyncio.ensure_future(service.transcribe(validated(service, source)))
            await wait_engine(engine, lambda: len(engine.rows) == 1)
            waiting = asyncio.ensure_future(service.transcribe(validated(service, wav(2, 1))))
            cancelled.cancel()
            with pytest.raises(asyncio.CancelledError):
                await cancelled
            source.close()
            await wait_engine(engine, lambda: any(value == 2 for value, _ in engine.started))
            results = service.segments(validated(service, wav(3, 100)))
            engine.allow(10**9)
            first = await anext(results)
            assert isinstance(first, Segment)
            await results.aclose()  # before its end
            assert (await waiting).text == "2:1"
            labels = {"model": "m", "reason": "GivenUp"}
        assert metrics.registry.get_sample_value("asr_failures_total", labels) == 2

    run(test())


def test_draining_finishes_accepted_requests_and_refuses_new_ones() -> None:
    async def test() -> None:
        engine = SteppedEngine(rows=2)
        service = Service("m", FakeTranscriber(engine), Limits(), Metrics())
        with pytest.raises(Closing):
            service.segments(validated(service, wav(1, 1)))
        await service.start()
        accepted = [
            asyncio.ensure_future(service.transcribe(validated(service, wav(value, 30)))) for value in (1, 2, 3)
        ]
        stream = await service.open_stream(sample_rate=8000)
        await stream.feed(constant_audio(4, 2))
        reader = asyncio.ensure_future(collect(stream))
        await wait_engine(engine, lambda: len(engine.rows) > 0)
        draining = asyncio.ensure_future(service.drain(WAIT))
        while service.ready:
            await asyncio.sleep(0)
        with pytest.raises(Closing):
            service.segments(validated(service, wav(1, 1)))
        with pytest.raises(Closing):
            await service.open_stream()
        with pytest.raises(Closing):
            await stream.feed(constant_audio(4, 1))
        engine.allow(10**9)
        for value, each in zip((1, 2, 3), accepted, strict=True):
            assert (await each).segments[0].text.startswith(f"{value}:")
        events = await reader
        assert isinstance(events[-1], Final)
        assert events[-1].result.text == "4:2"
        await draining

    run(test())


def test_draining_fails_requests_after_the_grace_period() -> None:
    async def test() -> None:
        engine = SteppedEngine()
        service = Service("m", FakeTranscriber(engine), Limits(), Metrics())
        await service.start()
        waiting = asyncio.ensure_future(service.transcribe(validated(service, wav(1, 30))))
        stream = await service.open_stream(sample_rate=8000)
        await stream.feed(constant_audio(4, 2))
        await wait_engine(engine, lambda: len(engine.rows) > 0)
        await service.drain(0.01)
        with pytest.raises(Closing):
            await waiting
        with pytest.raises(Closing):
            await collect(stream)
        await service.drain(0.01)  # the second call does nothing

    run(test())


def test_limits_must_be_positive() -> None:
    with pytest.raises(OptionError, match="max_queue"):
        Limits(max_queue=0)
    with pytest.raises(OptionError, match="deadline"):
        Limits(deadline=float("nan"))


def test_metrics_are_in_prometheus_format() -> None:
    metrics = Metrics()
    metrics.answered("m", "transcriptions", 200, 0.3)
    text = metrics.exposition().decode()
    assert 'asr_requests_total{endpoint="transcriptions",model="m",status="200"} 1.0' in text
    assert 'asr_request_seconds_count{endpoint="transcriptions",model="m"} 1.0' in text


def test_twelve_concurrent_files_get_the_texts_of_single_runs() -> None:
    """Transcribe all recordings at once with the small model and four rows."""

    async def test() -> None:
        offline = Transcriber.from_artifact(ARTIFACT)
        service = Service("tiny", Transcriber.from_artifact(ARTIFACT, max_batch=4), Limits(), Metrics())
        names = [each["file"] for each in json.loads((DATA / "index.json").read_text())][:12]
        await service.start()
        try:
            sources = [io.BytesIO((DATA / name).read_bytes()) for name in names]
            transcripts = await asyncio.gather(*(service.transcribe(validated(service, source)) for source in sources))
            for name, source, transcript in zip(names, sources, transcripts, strict=True):
                expected = offline.transcribe(DATA / name)
                assert isinstance(transcript, Transcript)
                assert (transcript.text, transcript.duration, transcript.language) == (
                    expected.text,
                    expected.duration,
                    expected.language,
                )
                assert [each.tokens for each in transcript.segments] == [each.tokens for each in expected.segments]
                assert not source.closed  # the client closes it
        finally:
            await service.drain(WAIT)

    run(test())
