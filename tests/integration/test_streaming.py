"""Live streams of the small model: final texts equal the offline ones, and cost and memory are bounded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from runtime import Transcriber
from runtime.audio import load_audio
from runtime.engines.base import LiveSegment, SegmentJob, SegmentOptions
from runtime.families.qwen3_asr.engine import Qwen3AsrEngine
from runtime.host.memory import resident_bytes
from runtime.pipeline.events import Event, Partial
from runtime.pipeline.streaming import LiveOptions
from runtime.results import Timings
from tests.conftest import DATA
from tests.helpers.streams import RATE, ends_as_offline, finals, joined, offline, streamed, taken_back
from tools.tiny.dataset import Corpus, generate
from tools.tiny.evaluate import HELD_OUT_SHARE, MAIN_SEED
from tools.tiny.synth import augment

Floats = npt.NDArray[np.float32]


def events_of(transcriber: Transcriber, audio: Floats, piece: float, **options: Any) -> list[Event]:
    return streamed(transcriber.stream(**options), audio, piece)


def assert_as_offline(events: list[Event], expected: list[Any]) -> None:
    """Check that start, text, tokens and confidence of every segment equal the offline ones."""
    assert len(finals(events)) == len(expected)
    for final, (piece, result) in zip(finals(events), expected, strict=True):
        assert ends_as_offline(final, piece, result), (final, result)


@pytest.fixture(scope="session")
def hundred(tmp_path_factory: pytest.TempPathFactory) -> Floats:
    """Join 100 held-out utterances with gains and noises as in training, and 1.2 s between them."""
    folder: Path = tmp_path_factory.mktemp("held-out")
    generate(folder, 100, MAIN_SEED, held_out=HELD_OUT_SHARE, context=0.0)
    corpus, rng = Corpus(folder), np.random.default_rng(MAIN_SEED)
    return joined([augment(corpus.samples(item), rng) for item in corpus.items], 1.2)[0]


@pytest.mark.slow
@pytest.mark.parametrize(("piece", "share"), [(0.02, 0.25), (0.1, 1.0), (1.0, 0.25)])
def test_finals_of_a_hundred_utterances_equal_the_offline_results(
    transcriber: Transcriber, hundred: Floats, piece: float, share: float
) -> None:
    """Text, tokens and confidence are equal, and stable text is never retracted.

    All utterances come in pieces of 100 ms, the first quarter of them in shorter and longer pieces too.
    """
    audio = hundred[: int(share * len(hundred))]
    events = events_of(transcriber, audio, piece)
    assert_as_offline(events, offline(transcriber.engine, audio))
    assert all(final.as_offline for final in finals(events))
    assert taken_back(events) == 0
    assert sum(isinstance(event, Partial) for event in events) > 200 * share


@pytest.mark.slow
def test_float32_finals_equal_the_offline_results(float_transcriber: Transcriber, hundred: Floats) -> None:
    events = events_of(float_transcriber, hundred[: 150 * RATE], 0.1)
    assert_as_offline(events, offline(float_transcriber.engine, hundred[: 150 * RATE]))


@pytest.mark.slow
def test_early_stable_text_is_never_retracted(transcriber: Transcriber, samples: list[dict[str, Any]]) -> None:
    """With one agreeing hypothesis, stable words are sometimes wrong, but do not change."""
    audio = joined([load_audio(DATA / sample["file"], RATE) for sample in samples], 0.3)[0]
    session = transcriber.live(live=LiveOptions(interval=0.3, agreeing=1, early=True))
    events: list[Event] = []
    for start in range(0, len(audio), 1600):
        events += session.feed(audio[start : start + 1600])
        for key, result in transcriber.engine.run(session.next_job):
            events += session.take(key, result)
    events += session.finish()
    for key, result in transcriber.engine.run(session.next_job):
        events += session.take(key, result)
    assert session.complete
    assert taken_back(events) == 0
    assert not all(final.as_offline for final in finals(events))
    assert any(event.stable for event in events if isinstance(event, Partial))


def test_a_streamed_recording_has_the_text_of_the_file(transcriber: Transcriber, samples: list[dict[str, Any]]) -> None:
    for sample in samples:
        audio = load_audio(DATA / sample["file"], RATE)
        texts = [final.result.text for final in finals(events_of(transcriber, audio, 0.1))]
        assert texts == [transcriber.transcribe(DATA / sample["file"]).text]


def test_language_and_context_of_a_stream_are_used(transcriber: Transcriber) -> None:
    audio = load_audio(DATA / "en-1.wav", RATE)
    events = events_of(transcriber, audio, 0.2, language="en", context="Madrid, quiet")
    assert [final.result.language for final in finals(events)] == ["English"]
    assert_as_offline(events, offline(transcriber.engine, audio, SegmentOptions("English", "Madrid, quiet")))
    assert all(event.language == "English" for event in events if isinstance(event, Partial))


def test_int16_audio_at_48_khz_is_accepted(transcriber: Transcriber) -> None:
    audio = np.repeat((load_audio(DATA / "en-1.wav", RATE) * 32767).astype(np.int16), 3)
    (final,) = finals(events_of(transcriber, audio, 0.1, sample_rate=48_000))  # type: ignore[arg-type]
    assert final.result.text == "It was very quiet in Madrid."


def test_the_cost_of_a_chunk_does_not_grow_within_a_segment(transcriber: Transcriber, speech: Floats) -> None:
    """In a segment of 14 s, a full window is encoded at most three times, and passes skip finished windows."""
    engine = transcriber.engine
    assert isinstance(engine, Qwen3AsrEngine)
    windows: list[int] = []
    passes: list[int] = []
    encode, extend = engine._encoder.encode_many, engine._decoder.extend_row

    def counted_encode(features: Any) -> Any:
        windows.extend(each.shape[1] for each in features)
        return encode(features)

    def counted_extend(row: int, ids: Any, *rest: Any, **options: Any) -> Any:
        passes.append(len(ids))
        return extend(row, ids, *rest, **options)

    loud = speech / np.abs(speech).max()
    state, draft = engine.live(), [0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine._encoder, "encode_many", counted_encode)
        patch.setattr(engine._decoder, "extend_row", counted_extend)
        for second in range(1, 15):
            live = LiveSegment(state, final=False, draft=draft)
            jobs = iter([SegmentJob(0, loud[: second * RATE], SegmentOptions(), Timings(), 0.0, live=live)])
            ((_, result),) = engine.run(lambda jobs=jobs: next(jobs, None))  # type: ignore[misc]
            draft = result.tokens
    assert windows[:8] == [100 * second for second in range(1, 9)]
    # Full windows: at 8 s, at 9 s when the last frames are final, and once if the audio becomes louder.
    assert windows.count(800) <= 3
    assert max(windows[-3:]) <= 600
    # From the tenth second on the first window's 104 positions are not computed again.
    prompt_length = len(engine.prompt_ids(engine.audio_tokens(14 * RATE), "", None))
    assert passes[-1] <= prompt_length - 104 - 5 + len(draft)
    assert passes[9] < passes[7]


@pytest.mark.slow
def test_memory_of_a_long_stream_does_not_grow(transcriber: Transcriber, speech: Floats) -> None:
    """In a quarter of an hour of speech and silence, resident memory does not grow after the first minutes."""
    stream = transcriber.stream(interval=5.0)
    audio, _ = joined([speech], 1.0)
    early_bytes, count = 0, 0
    for number in range(15 * 60 // (len(audio) // RATE)):
        for start in range(0, len(audio), RATE):
            count += len(finals(stream.feed(audio[start : start + RATE])))
        if number == 3:
            early_bytes = resident_bytes()
    count += len(finals(stream.finish()))
    assert count > 100
    assert resident_bytes() < early_bytes + 15e6
