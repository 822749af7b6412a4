"""Streams of the small model: their ends are the offline texts, and their cost does not grow."""

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
    """Start, text, tokens and confidence of every segment, to the digit."""
    assert len(finals(events)) == len(expected)
    for final, (piece, result) in zip(finals(events), expected, strict=True):
        assert ends_as_offline(final, piece, result), (final, result)


@pytest.fixture(scope="session")
def hundred(tmp_path_factory: pytest.TempPathFactory) -> Floats:
    """100 utterances that no training saw, with its gains and noises, and 1.2 s between them."""
    folder: Path = tmp_path_factory.mktemp("held-out")
    generate(folder, 100, MAIN_SEED, held_out=HELD_OUT_SHARE, context=0.0)
    corpus, rng = Corpus(folder), np.random.default_rng(MAIN_SEED)
    return joined([augment(corpus.samples(item), rng) for item in corpus.items], 1.2)[0]


@pytest.mark.slow
@pytest.mark.parametrize("piece", [0.02, 0.1, 1.0])
def test_a_hundred_utterances_end_as_they_do_offline(transcriber: Transcriber, hundred: Floats, piece: float) -> None:
    """Text, tokens and confidence, to the digit; and what was stable was never taken back."""
    events = events_of(transcriber, hundred, piece)
    assert_as_offline(events, offline(transcriber.engine, hundred))
    assert all(final.as_offline for final in finals(events))
    assert taken_back(events) == 0
    assert sum(isinstance(event, Partial) for event in events) > 200


@pytest.mark.slow
def test_float32_ends_as_offline_too(float_transcriber: Transcriber, hundred: Floats) -> None:
    events = events_of(float_transcriber, hundred[: 150 * RATE], 0.1)
    assert_as_offline(events, offline(float_transcriber.engine, hundred[: 150 * RATE]))


def test_words_told_early_are_never_taken_back(transcriber: Transcriber, samples: list[dict[str, Any]]) -> None:
    """Where two hypotheses agree at once: they are wrong at times, and stay."""
    audio = joined([load_audio(DATA / sample["file"], RATE) for sample in samples], 0.3)[0]
    session = transcriber.live(live=LiveOptions(interval=0.3, agreeing=1, early=True))
    events: list[Event] = []
    for at in range(0, len(audio), 1600):
        events += session.feed(audio[at : at + 1600])
        for key, result in transcriber.engine.run(session.next_job):
            events += session.take(key, result)
    events += session.finish()
    for key, result in transcriber.engine.run(session.next_job):
        events += session.take(key, result)
    assert session.complete
    assert taken_back(events) == 0
    assert not all(final.as_offline for final in finals(events))
    assert any(event.stable for event in events if isinstance(event, Partial))


def test_a_short_recording_is_what_it_is_as_a_file(transcriber: Transcriber, samples: list[dict[str, Any]]) -> None:
    for sample in samples:
        audio = load_audio(DATA / sample["file"], RATE)
        texts = [final.result.text for final in finals(events_of(transcriber, audio, 0.1))]
        assert texts == [transcriber.transcribe(DATA / sample["file"]).text]


def test_language_and_context_are_those_asked_for(transcriber: Transcriber) -> None:
    audio = load_audio(DATA / "en-1.wav", RATE)
    events = events_of(transcriber, audio, 0.2, language="en", context="Madrid, quiet")
    assert [final.result.language for final in finals(events)] == ["English"]
    assert_as_offline(events, offline(transcriber.engine, audio, SegmentOptions("English", "Madrid, quiet")))
    assert all(event.language == "English" for event in events if isinstance(event, Partial))


def test_other_rates_and_integers_come_in(transcriber: Transcriber) -> None:
    audio = np.repeat((load_audio(DATA / "en-1.wav", RATE) * 32767).astype(np.int16), 3)
    (final,) = finals(events_of(transcriber, audio, 0.1, sample_rate=48_000))  # type: ignore[arg-type]
    assert final.result.text == "It was very quiet in Madrid."


def test_a_chunk_costs_no_more_later_in_a_segment(transcriber: Transcriber, speech: Floats) -> None:
    """Of a segment of 14 s every window is encoded whole once; passes are over what follows the finished window."""
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
            work = LiveSegment(state, final=False, draft=draft)
            jobs = iter([SegmentJob(0, loud[: second * RATE], SegmentOptions(), Timings(), 0.0, live=work)])
            ((_, result),) = engine.run(lambda jobs=jobs: next(jobs, None))  # type: ignore[misc]
            draft = result.tokens
    assert windows[:8] == [100 * second for second in range(1, 9)]
    assert windows.count(800) <= 3  # at 8 s, when the next second has shown its last frames, and if it became louder
    assert max(windows[-3:]) <= 600
    # From the tenth second on the first window's 104 positions are not computed again.
    whole = len(engine.prompt_ids(engine.audio_tokens(14 * RATE), "", None))
    assert passes[-1] <= whole - 104 - 5 + len(draft)
    assert passes[9] < passes[7]


@pytest.mark.slow
def test_hours_hold_no_more_than_minutes(transcriber: Transcriber, speech: Floats) -> None:
    """Half an hour of speech and silence: what is resident does not grow after the first minutes."""
    stream = transcriber.stream(interval=5.0)
    audio, _ = joined([speech], 1.0)
    early, count = 0, 0
    for number in range(30 * 60 // (len(audio) // RATE)):
        for at in range(0, len(audio), RATE):
            count += len(finals(stream.feed(audio[at : at + RATE])))
        if number == 5:
            early = resident_bytes()
    count += len(finals(stream.finish()))
    assert count > 200
    assert resident_bytes() < early + 15e6
