"""Live streams of a service: events, limits, back pressure, failures and release of memory."""

from __future__ import annotations

import asyncio
import gc
import io
import weakref
from pathlib import Path

import numpy as np
import pytest

from runtime.audio import load_audio
from runtime.errors import AudioInvalidError, OptionError
from runtime.pipeline.events import Event, Final, Partial, Speech
from runtime.pipeline.streaming import LiveOptions
from runtime.server.errors import AudioTooLong, EngineFailure
from runtime.server.limits import Limits
from runtime.server.metrics import Metrics
from runtime.server.scheduling.live_stream import MOST_BEHIND_SECONDS
from runtime.server.scheduling.service import LiveStream, Service
from runtime.transcriber import Transcriber
from tests.conftest import ARTIFACT
from tests.helpers.stepped_engine import RATE, WAIT, FakeTranscriber, SteppedEngine, wav
from tests.helpers.stepped_service import collect, constant_audio, run, serving, validated, wait_engine

DATA = Path(__file__).parent.parent / "data"


@pytest.mark.parametrize("rate", [RATE * 8, RATE * 16])
def test_events_end_with_the_last_final(rate: int) -> None:
    async def test() -> None:
        engine, metrics = SteppedEngine(automatic=True), Metrics()
        async with serving(engine, metrics=metrics) as service:
            stream = await service.open_stream(language="ru", sample_rate=rate)
            reader = asyncio.ensure_future(collect(stream))
            for _ in range(3):
                await stream.feed(constant_audio(7, 2.5, rate))
            await stream.commit()
            await stream.feed((constant_audio(9, 4, rate) * 32768).astype(np.int16))
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
                await stream.feed(constant_audio(1, 1, rate))
            with pytest.raises(AudioInvalidError, match="finished"):
                await stream.commit()
            registry = metrics.registry
            assert registry.get_sample_value("asr_audio_seconds_total", {"model": "m", "kind": "stream"}) == 11.5
            assert registry.get_sample_value("asr_streams", {"model": "m"}) == 0
            assert registry.get_sample_value("asr_final_seconds_count", {"model": "m"}) == 2
            assert registry.get_sample_value("asr_first_partial_seconds_count", {"model": "m"}) == 2

    run(test())


def test_length_rate_and_samples_are_checked() -> None:
    async def test() -> None:
        async with serving(SteppedEngine(automatic=True), Limits(stream_seconds=5)) as service:
            with pytest.raises(OptionError, match="7999"):
                await service.open_stream(sample_rate=7999)
            stream = await service.open_stream(sample_rate=8000)
            for invalid in (np.zeros((2, 2), np.float32), np.zeros(3, np.int32), np.array([0.0, np.nan], np.float32)):
                with pytest.raises(AudioInvalidError):
                    await stream.feed(invalid)
            await stream.feed(constant_audio(1, 4))
            with pytest.raises(AudioTooLong, match="5 s"):
                await stream.feed(constant_audio(1, 2))
            await stream.finish()
            final = (await collect(stream))[-1]
            assert isinstance(final, Final)  # the audio before the limit is transcribed

    run(test())


def test_feeding_waits_when_a_stream_is_far_behind_and_closing_frees_the_row() -> None:
    async def test() -> None:
        engine = SteppedEngine(rows=1)
        async with serving(engine) as service:
            stream = await service.open_stream(sample_rate=8000)
            await stream.feed(constant_audio(1, 1))
            await wait_engine(engine, lambda: len(engine.rows) == 1)
            await stream.feed(constant_audio(1, MOST_BEHIND_SECONDS + 1))  # at its end, the stream is too far behind
            feeding = asyncio.ensure_future(stream.feed(constant_audio(1, 1)))
            await asyncio.wait({feeding}, timeout=0.1)
            assert not feeding.done()
            engine.allow(1)  # the first partial is done, and the next one covers all audio
            await feeding
            await stream.feed(constant_audio(1, MOST_BEHIND_SECONDS - 2))
            blocked = asyncio.ensure_future(stream.feed(constant_audio(1, 10)))
            await asyncio.wait({blocked}, timeout=0.1)
            await wait_engine(engine, lambda: len(engine.rows) == 1)
            await stream.close()
            await wait_engine(engine, lambda: not engine.rows)
            with pytest.raises(AudioInvalidError):
                await blocked
            assert isinstance(service.transcriber, FakeTranscriber)
            (session,) = service.transcriber.sessions
            assert session.duration < 33 + MOST_BEHIND_SECONDS + 2  # of 71 seconds
            assert all(isinstance(event, Speech | Partial) for event in await collect(stream))

    run(test())


def test_a_stream_fails_when_the_engine_fails() -> None:
    async def test() -> None:
        engine = SteppedEngine(automatic=True)
        engine.errors[13] = RuntimeError("out of memory at 0x1234")
        async with serving(engine) as service:
            stream = await service.open_stream(sample_rate=8000)
            await stream.feed(constant_audio(13, 1))
            with pytest.raises(EngineFailure) as failure:
                await collect(stream)
            assert "0x" not in str(failure.value)
            with pytest.raises(EngineFailure):
                await stream.feed(constant_audio(13, 1))
            assert (await service.transcribe(validated(service, wav(1, 1)))).text == "1:1"

    run(test())


def test_an_ended_stream_is_freed_without_garbage_collection() -> None:
    """Its audio takes much memory, and collections are rare in a server."""

    async def test() -> None:
        engine = SteppedEngine(automatic=True)
        async with serving(engine) as service:
            for end in (LiveStream.finish, LiveStream.close):
                stream = await service.open_stream(sample_rate=8000)
                await stream.feed(constant_audio(4, 2))
                await end(stream)
                await collect(stream)
                reference = weakref.ref(stream)
                del stream
                async with asyncio.timeout(WAIT):
                    while reference():  # the engine's thread may still hold it for a moment
                        await asyncio.sleep(0.01)

    gc.disable()
    try:
        run(test())
    finally:
        gc.enable()


def test_slow_readers_get_no_outdated_partials() -> None:
    async def test() -> None:
        async with serving(SteppedEngine(automatic=True)) as service:
            stream = await service.open_stream(sample_rate=8000)
            for _ in range(20):
                await stream.feed(constant_audio(1, 0.5))
            await stream.finish()
            async with asyncio.timeout(WAIT):
                while service._scheduler.streams:
                    await asyncio.sleep(0.001)
            events = await collect(stream)
            kinds = [type(event) for event in events]
            assert kinds in ([Speech, Partial, Final], [Speech, Final])
            assert events[-1].result.text == "1:10"  # type: ignore[union-attr]

    run(test())


def test_concurrent_streams_and_files_get_the_texts_of_single_runs() -> None:
    """Run two streams in pieces of 100 ms beside four files, with the small model."""

    async def stream_events(service: Service, name: str) -> list[Event]:
        audio = load_audio(DATA / name, 16_000)
        stream = await service.open_stream(live=LiveOptions(interval=0.5))
        reader = asyncio.ensure_future(collect(stream))
        for start in range(0, len(audio), 1600):
            await stream.feed(audio[start : start + 1600])
        await stream.finish()
        return await reader

    async def test() -> None:
        offline = Transcriber.from_artifact(ARTIFACT)
        service = Service("tiny", Transcriber.from_artifact(ARTIFACT, max_batch=3), Limits(), Metrics())
        await service.start()
        try:
            files = [f"{language}-{number}.wav" for language in ("en", "zh") for number in (1, 2)]
            stream_names = ["en-3.wav", "ru-1.wav"]
            streams = [asyncio.ensure_future(stream_events(service, name)) for name in stream_names]
            sources = [io.BytesIO((DATA / name).read_bytes()) for name in files]
            transcripts = await asyncio.gather(*(service.transcribe(validated(service, source)) for source in sources))
            events = [await each for each in streams]
            for name, transcript in zip(files, transcripts, strict=True):
                assert transcript.text == offline.transcribe(DATA / name).text
            for name, streamed in zip(stream_names, events, strict=True):
                finals = [event for event in streamed if isinstance(event, Final)]
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
