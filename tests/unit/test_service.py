"""A model as the server's event loop sees it: what is accepted, refused, given up and finished."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from runtime.audio import load_audio
from runtime.errors import AudioInvalidError, OptionError
from runtime.pipeline.events import Event, Final, Partial, Speech
from runtime.pipeline.streaming import LiveOptions
from runtime.results import Segment, Transcript
from runtime.server.errors import AudioTooLong, Busy, Closing, DeadlineExceeded, EngineFailure
from runtime.server.limits import Limits
from runtime.server.metrics import Metrics
from runtime.server.scheduling.live_stream import MOST_BEHIND_SECONDS
from runtime.server.scheduling.service import LiveStream, Service
from runtime.transcriber import Request, Transcriber, ValidatedRequest
from tests.helpers.stepped_engine import RATE, WAIT, FakeTranscriber, SteppedEngine, wav

DATA = Path(__file__).parent.parent / "data"


def validated(service: Service, source: io.BytesIO, **options: Any) -> ValidatedRequest:
    return service.transcriber.validate(Request(source, name="the audio", **options))


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    left = {thread.name for thread in set(threading.enumerate()) - before}
    assert not left


def run(test: Coroutine[Any, Any, None]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(2 * WAIT):
            await test

    asyncio.run(limited())


@asynccontextmanager
async def serving(
    engine: SteppedEngine,
    limits: Limits | None = None,
    metrics: Metrics | None = None,
) -> AsyncIterator[Service]:
    service = Service("m", FakeTranscriber(engine), limits or Limits(), metrics or Metrics())
    await service.start()
    try:
        yield service
    finally:
        engine.let(10**9)
        await service.drain(WAIT)
        assert not service.ready


async def until(engine: SteppedEngine, true: Callable[[], bool]) -> None:
    await asyncio.to_thread(engine.wait, true)


async def collected(stream: LiveStream) -> list[Event]:
    return [event async for event in stream.events()]


def speech(value: int, seconds: float, rate: int = 8 * RATE) -> np.ndarray:
    return np.full(round(seconds * rate), value / 1000, np.float32)


def test_a_file_is_transcribed_as_offline() -> None:
    async def test() -> None:
        metrics = Metrics()
        async with serving(SteppedEngine(free=True), metrics=metrics) as service:
            assert service.ready
            answers = await asyncio.gather(
                *(
                    service.transcribe(validated(service, wav(value, seconds)))
                    for value, seconds in [(1, 100), (2, 3), (503, 50)]
                )
            )
            offline = FakeTranscriber(SteppedEngine(free=True))
            for answer, (value, seconds) in zip(answers, [(1, 100), (2, 3), (503, 50)], strict=True):
                expected = offline.transcribe(wav(value, seconds))
                assert msgspec.structs.replace(answer, timings=expected.timings) == expected
                assert answer.timings.total > 0
            received = [
                item async for item in service.segments(validated(service, wav(1, 100), language="ru", context="Names"))
            ]
            assert received[:-1] == received[-1].segments  # type: ignore[union-attr]
            assert {each.language for each in received} == {"Russian"}
        labels = {"model": "m", "kind": "file"}
        assert metrics.registry.get_sample_value("asr_audio_seconds_total", labels) == 253.0
        batches = metrics.registry.get_sample_value("asr_batch_size_count", {"model": "m"})
        assert batches == len(engine_of(service).begun)

    run(test())


def fake_of(service: Service) -> FakeTranscriber:
    assert isinstance(service.transcriber, FakeTranscriber)
    return service.transcriber


def engine_of(service: Service) -> SteppedEngine:
    engine = service.transcriber.engine
    assert isinstance(engine, SteppedEngine)
    return engine


def test_too_many_are_refused_and_may_come_back() -> None:
    async def test() -> None:
        engine, metrics = SteppedEngine(), Metrics()
        async with serving(engine, Limits(max_queue=2, max_streams=1), metrics) as service:
            accepted = [asyncio.ensure_future(service.transcribe(validated(service, wav(1, 5)))) for _ in range(2)]
            await until(engine, lambda: len(engine.rows) > 0)
            assert metrics.registry.get_sample_value("asr_queue_requests", {"model": "m"}) == 2
            with pytest.raises(Busy, match="2 requests are waiting") as refused:
                service.segments(validated(service, wav(1, 5)))
            assert refused.value.retry_after >= 1
            stream = await service.open_stream(sample_rate=8000)
            with pytest.raises(Busy, match="1 live streams"):
                await service.open_stream()
            await stream.close()
            await stream.close()
            assert await collected(stream) == []
            engine.let(10**9)
            assert [(await each).text for each in accepted] == ["1:5", "1:5"]
            assert (await service.transcribe(validated(service, wav(3, 5)))).text == "3:5"
            await (await service.open_stream(sample_rate=8000)).close()
            labels = {"model": "m", "reason": "Busy"}
            assert metrics.registry.get_sample_value("asr_failures_total", labels) == 2

    run(test())


def test_what_is_wrong_is_said() -> None:
    async def test() -> None:
        async with serving(SteppedEngine(free=True), Limits(max_audio_seconds=10)) as service:
            with pytest.raises(OptionError, match="unknown language"):
                service.segments(validated(service, wav(1, 5), language="Klingon"))
            with pytest.raises(OptionError, match="unknown language"):
                await service.open_stream(language="Klingon")
            with pytest.raises(AudioTooLong, match="the audio: is longer than the 10 s"):
                await service.transcribe(validated(service, wav(1, 11)))
            with pytest.raises(AudioInvalidError, match=r"^the audio: is empty"):
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
            with pytest.raises(DeadlineExceeded, match=r"within 0\.01 s"):
                await anext(late)
            await until(engine, lambda: not engine.rows)

    run(test())


def test_a_client_who_goes_away_frees_the_row_for_the_next() -> None:
    async def test() -> None:
        engine, metrics = SteppedEngine(rows=1), Metrics()
        async with serving(engine, metrics=metrics) as service:
            source = wav(1, 15)
            leaving = asyncio.ensure_future(service.transcribe(validated(service, source)))
            await until(engine, lambda: len(engine.rows) == 1)
            waiting = asyncio.ensure_future(service.transcribe(validated(service, wav(2, 1))))
            leaving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await leaving
            source.close()
            await until(engine, lambda: any(value == 2 for value, _ in engine.begun))
            reading = service.segments(validated(service, wav(3, 100)))
            engine.let(10**9)
            first = await anext(reading)
            assert isinstance(first, Segment)
            await reading.aclose()  # in the middle
            assert (await waiting).text == "2:1"
            labels = {"model": "m", "reason": "GivenUp"}
        assert metrics.registry.get_sample_value("asr_failures_total", labels) == 2

    run(test())


def test_draining_finishes_what_was_accepted_and_refuses_the_rest() -> None:
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
        await stream.feed(speech(4, 2))
        heard = asyncio.ensure_future(collected(stream))
        await until(engine, lambda: len(engine.rows) > 0)
        draining = asyncio.ensure_future(service.drain(WAIT))
        while service.ready:
            await asyncio.sleep(0)
        with pytest.raises(Closing):
            service.segments(validated(service, wav(1, 1)))
        with pytest.raises(Closing):
            await service.open_stream()
        with pytest.raises(Closing):
            await stream.feed(speech(4, 1))
        engine.let(10**9)
        for value, each in zip((1, 2, 3), accepted, strict=True):
            assert (await each).segments[0].text.startswith(f"{value}:")
        events = await heard
        assert isinstance(events[-1], Final)
        assert events[-1].result.text == "4:2"
        await draining

    run(test())


def test_draining_gives_up_after_its_grace() -> None:
    async def test() -> None:
        engine = SteppedEngine()
        service = Service("m", FakeTranscriber(engine), Limits(), Metrics())
        await service.start()
        waiting = asyncio.ensure_future(service.transcribe(validated(service, wav(1, 30))))
        stream = await service.open_stream(sample_rate=8000)
        await stream.feed(speech(4, 2))
        await until(engine, lambda: len(engine.rows) > 0)
        await service.drain(0.01)
        with pytest.raises(Closing):
            await waiting
        with pytest.raises(Closing):
            await collected(stream)
        await service.drain(0.01)  # twice is once

    run(test())


@pytest.mark.parametrize("rate", [RATE * 8, RATE * 16])
def test_a_stream_gives_events_until_its_last_final(rate: int) -> None:
    async def test() -> None:
        engine, metrics = SteppedEngine(free=True), Metrics()
        async with serving(engine, metrics=metrics) as service:
            stream = await service.open_stream(language="ru", sample_rate=rate)
            reader = asyncio.ensure_future(collected(stream))
            for _ in range(3):
                await stream.feed(speech(7, 2.5, rate))
            await stream.commit()
            await stream.feed((speech(9, 4, rate) * 32768).astype(np.int16))
            await stream.finish()
            await stream.finish()
            events = await reader
            finals = [event for event in events if isinstance(event, Final)]
            assert [final.segment for final in finals] == [0, 1]
            texts = [final.result.text.split(":") for final in finals]
            assert [value for value, _ in texts] == ["7", "9"]
            assert sum(float(seconds) for _, seconds in texts) == pytest.approx(11.5)
            assert [event.segment for event in events if isinstance(event, Speech)] == [0, 1]
            assert any(isinstance(event, Partial) for event in events)
            with pytest.raises(AudioInvalidError, match="finished"):
                await stream.feed(speech(1, 1, rate))
            with pytest.raises(AudioInvalidError, match="finished"):
                await stream.commit()
            registry = metrics.registry
            assert registry.get_sample_value("asr_audio_seconds_total", {"model": "m", "kind": "stream"}) == 11.5
            assert registry.get_sample_value("asr_streams", {"model": "m"}) == 0
            assert registry.get_sample_value("asr_final_seconds_count", {"model": "m"}) == 2
            assert registry.get_sample_value("asr_first_partial_seconds_count", {"model": "m"}) == 2

    run(test())


def test_a_stream_has_a_length_a_rate_and_samples() -> None:
    async def test() -> None:
        async with serving(SteppedEngine(free=True), Limits(stream_seconds=5)) as service:
            with pytest.raises(OptionError, match="samples a second"):
                await service.open_stream(sample_rate=7999)
            stream = await service.open_stream(sample_rate=8000)
            for wrong in (np.zeros((2, 2), np.float32), np.zeros(3, np.int32), np.array([0.0, np.nan], np.float32)):
                with pytest.raises(AudioInvalidError):
                    await stream.feed(wrong)
            await stream.feed(speech(1, 4))
            with pytest.raises(AudioTooLong, match="longer than the 5 s"):
                await stream.feed(speech(1, 2))
            await stream.finish()
            final = (await collected(stream))[-1]
            assert isinstance(final, Final)  # what was fed is not lost

    run(test())


def test_a_stream_that_is_far_behind_waits_and_closing_it_frees_the_row() -> None:
    async def test() -> None:
        engine = SteppedEngine(rows=1)
        async with serving(engine) as service:
            stream = await service.open_stream(sample_rate=8000)
            await stream.feed(speech(1, 1))
            await until(engine, lambda: len(engine.rows) == 1)
            await stream.feed(speech(1, MOST_BEHIND_SECONDS + 1))  # with the last of it, it is too far behind
            feeding = asyncio.ensure_future(stream.feed(speech(1, 1)))
            await asyncio.wait({feeding}, timeout=0.1)
            assert not feeding.done()
            engine.let(1)  # the first partial is done, and the next one hears all of it
            await feeding
            await stream.feed(speech(1, MOST_BEHIND_SECONDS - 2))
            stuck = asyncio.ensure_future(stream.feed(speech(1, 10)))
            await asyncio.wait({stuck}, timeout=0.1)
            await until(engine, lambda: len(engine.rows) == 1)
            await stream.close()
            await until(engine, lambda: not engine.rows)
            with pytest.raises(AudioInvalidError):
                await stuck
            (session,) = fake_of(service).sessions
            assert session.duration < 33 + MOST_BEHIND_SECONDS + 2  # of 71 seconds
            assert all(isinstance(event, Speech | Partial) for event in await collected(stream))

    run(test())


def test_a_stream_fails_with_the_engine() -> None:
    async def test() -> None:
        engine = SteppedEngine(free=True)
        engine.breaks[13] = RuntimeError("out of memory at 0x1234")
        async with serving(engine) as service:
            stream = await service.open_stream(sample_rate=8000)
            await stream.feed(speech(13, 1))
            with pytest.raises(EngineFailure) as failure:
                await collected(stream)
            assert "0x" not in str(failure.value)
            with pytest.raises(EngineFailure):
                await stream.feed(speech(13, 1))
            assert (await service.transcribe(validated(service, wav(1, 1)))).text == "1:1"

    run(test())


def test_a_stream_that_ended_is_gone_without_garbage_collection() -> None:
    """Its audio is much, and collections are rare in a server."""

    async def test() -> None:
        engine = SteppedEngine(free=True)
        async with serving(engine) as service:
            for way in (LiveStream.finish, LiveStream.close):
                stream = await service.open_stream(sample_rate=8000)
                await stream.feed(speech(4, 2))
                await way(stream)
                await collected(stream)
                left = weakref.ref(stream)
                del stream
                async with asyncio.timeout(WAIT):
                    while left():  # the engine's thread may still be at its end
                        await asyncio.sleep(0.01)

    gc.disable()
    try:
        run(test())
    finally:
        gc.enable()


def test_slow_readers_are_not_told_what_has_changed_since() -> None:
    async def test() -> None:
        async with serving(SteppedEngine(free=True)) as service:
            stream = await service.open_stream(sample_rate=8000)
            for _ in range(20):
                await stream.feed(speech(1, 0.5))
            await stream.finish()
            async with asyncio.timeout(WAIT):
                while service._scheduler.streams:
                    await asyncio.sleep(0.001)
            events = await collected(stream)
            kinds = [type(event) for event in events]
            assert kinds in ([Speech, Partial, Final], [Speech, Final])
            assert events[-1].result.text == "1:10"  # type: ignore[union-attr]

    run(test())


def test_limits_must_be_positive() -> None:
    with pytest.raises(OptionError, match="max_queue must be positive"):
        Limits(max_queue=0)
    with pytest.raises(OptionError, match="deadline"):
        Limits(deadline=float("nan"))


def test_metrics_are_in_prometheus_format() -> None:
    metrics = Metrics()
    metrics.answered("m", "transcriptions", 200, 0.3)
    text = metrics.exposition().decode()
    assert 'asr_requests_total{endpoint="transcriptions",model="m",status="200"} 1.0' in text
    assert 'asr_request_seconds_count{endpoint="transcriptions",model="m"} 1.0' in text


def test_twelve_clients_at_once_get_the_texts_that_they_get_alone() -> None:
    """The bundled model: every recording, all together, in rows of four."""

    async def test() -> None:
        offline = Transcriber.from_artifact()
        service = Service("tiny", Transcriber.from_artifact(max_batch=4), Limits(), Metrics())
        names = [each["file"] for each in json.loads((DATA / "index.json").read_text())][:12]
        await service.start()
        try:
            sources = [io.BytesIO((DATA / name).read_bytes()) for name in names]
            answers = await asyncio.gather(*(service.transcribe(validated(service, source)) for source in sources))
            for name, source, answer in zip(names, sources, answers, strict=True):
                expected = offline.transcribe(DATA / name)
                assert isinstance(answer, Transcript)
                assert (answer.text, answer.duration, answer.language) == (
                    expected.text,
                    expected.duration,
                    expected.language,
                )
                assert [each.tokens for each in answer.segments] == [each.tokens for each in expected.segments]
                assert not source.closed  # it is the client's
        finally:
            await service.drain(WAIT)

    run(test())


def test_streams_and_files_at_once_get_the_texts_that_they_get_alone() -> None:
    """The bundled model: two speakers, in pieces of 100 ms, beside four files."""

    async def heard(service: Service, name: str) -> list[Event]:
        audio = load_audio(DATA / name, 16_000)
        stream = await service.open_stream(live=LiveOptions(interval=0.5))
        reader = asyncio.ensure_future(collected(stream))
        for start in range(0, len(audio), 1600):
            await stream.feed(audio[start : start + 1600])
        await stream.finish()
        return await reader

    async def test() -> None:
        offline = Transcriber.from_artifact()
        service = Service("tiny", Transcriber.from_artifact(max_batch=3), Limits(), Metrics())
        await service.start()
        try:
            files = [f"{language}-{number}.wav" for language in ("en", "zh") for number in (1, 2)]
            spoken = ["en-3.wav", "ru-1.wav"]
            listening = [asyncio.ensure_future(heard(service, name)) for name in spoken]
            sources = [io.BytesIO((DATA / name).read_bytes()) for name in files]
            answers = await asyncio.gather(*(service.transcribe(validated(service, source)) for source in sources))
            events = [await each for each in listening]
            for name, answer in zip(files, answers, strict=True):
                assert answer.text == offline.transcribe(DATA / name).text
            for name, received in zip(spoken, events, strict=True):
                finals = [event for event in received if isinstance(event, Final)]
                alone = offline.stream(interval=0.5)
                expected = [*alone.feed(load_audio(DATA / name, 16_000)), *alone.finish()]
                assert [final.result for final in finals] == [
                    event.result for event in expected if isinstance(event, Final)
                ]
                assert all(final.as_offline for final in finals)
                assert finals
        finally:
            await service.drain(WAIT)

    run(test())
