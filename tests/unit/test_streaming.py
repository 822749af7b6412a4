"""A stream's promises hold whatever the model says: what is stable stays, segments end in order, nothing piles up."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.audio.segmentation import speech_pieces
from runtime.audio.stream_resampler import StreamResampler
from runtime.engines.base import SegmentJob, SegmentOptions, SegmentResult
from runtime.engines.batch_plan import BatchPlan
from runtime.engines.capabilities import Capabilities
from runtime.errors import AudioInvalidError, OptionError
from runtime.pipeline.events import Event, Final, Partial, Speech
from runtime.pipeline.streaming import LiveOptions, LiveSession, Stream

RATE = 16_000
WORDS = ["one", " two", " three", " four", "，", "五", "六", ".", " seven", " eight"]


class State:
    """The encoder is done with every two seconds."""

    def __init__(self, engine: Fickle) -> None:
        self.engine = engine

    @property
    def settled(self) -> int:
        return len(self.engine.jobs[-1].samples) // (2 * RATE) * 2 * RATE


class Fickle:
    """An engine whose words change their minds: the word at each place is random, and so is when it changes.

    ``whim`` is how often a word changes with the length of the audio. It keeps forced tokens, as engines must.
    """

    capabilities = Capabilities(context=True, language=True, language_detection=True)
    sample_rate = RATE
    segment_seconds = 6.0

    def __init__(self, seed: int = 0, whim: float = 0.3, *, loops: bool = False) -> None:
        self.plan = BatchPlan(2, 100, 1, 1, 1000)
        self.seed, self.whim, self.loops = seed, whim, loops
        self.states = 0
        self.jobs: list[SegmentJob] = []

    def live(self) -> State:
        self.states += 1
        return State(self)

    def read(self, tokens: Sequence[int], language: str | None, *, ended: bool) -> tuple[str | None, str]:
        return language, "".join(WORDS[token] for token in tokens).strip()

    def said(self, samples: np.ndarray) -> list[int]:
        """Two words a second, chosen by the loudness of their audio; some again by the length of all of it."""
        made = []
        for index in range(len(samples) // (RATE // 2)):
            word = int(abs(samples[index * RATE // 2]) * 1e6)
            random = np.random.default_rng([self.seed, word, len(samples)])
            made.append(int(random.integers(len(WORDS))) if random.random() < self.whim else word % len(WORDS))
        return made

    def transcribe(self, job: SegmentJob) -> SegmentResult:
        tokens = self.said(job.samples)
        if job.live:
            tokens = [*job.live.draft[: job.live.forced], *tokens[job.live.forced :]]
        looped = self.loops and job.options.repetition_penalty == 1.0
        language, text = self.read(tokens, job.options.language, ended=True)
        reason: Any = "repetition" if looped else "stop"
        return SegmentResult(text, language, tokens, 0.5, reason, 1, 1)

    def run(self, next_job: Callable[[], SegmentJob | None]) -> Iterator[tuple[Any, SegmentResult]]:
        while job := next_job():
            self.jobs.append(job)
            assert next_job() is None, "one job of a stream at a time"
            yield job.key, self.transcribe(job)


def fickle(seed: int = 0, whim: float = 0.3, *, loops: bool = False) -> Any:
    """One, as an engine."""
    return Fickle(seed, whim, loops=loops)


class Loud:
    """A detector for which what is loud is speech."""

    def __init__(self) -> None:
        self.rest = np.zeros(0, np.float32)

    def probabilities(self, samples: np.ndarray) -> np.ndarray:
        heard = np.concatenate([self.rest, samples])
        whole = len(heard) // 512 * 512
        self.rest = heard[whole:]
        made: np.ndarray = (np.abs(heard[:whole]).reshape(-1, 512).max(axis=1) > 0.01).astype(np.float32)
        return made

    def finish(self) -> np.ndarray:
        return self.probabilities(np.zeros(-len(self.rest) % 512, np.float32))


@pytest.fixture(autouse=True)
def _loud(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.audio.segmentation.SpeechDetector", Loud)


def audio(spells: list[tuple[float, float]], seed: int = 0) -> np.ndarray:
    """(seconds of speech, of silence) one after the other."""
    rng = np.random.default_rng(seed)
    parts = []
    for loud, quiet in spells:
        parts += [rng.uniform(0.02, 0.3, int(loud * RATE)), np.zeros(int(quiet * RATE))]
    return np.concatenate(parts).astype(np.float32)


def streamed(engine: Any, samples: np.ndarray, step: float, live: LiveOptions = LiveOptions()) -> list[Event]:  # noqa: B008
    stream = Stream(engine, LiveSession(engine, SegmentOptions(), live), RATE)
    size = int(step * RATE)
    events = [event for at in range(0, len(samples), size) for event in stream.feed(samples[at : at + size])]
    events += stream.finish()
    assert stream.session.complete
    assert stream.session.duration == pytest.approx(len(samples) / RATE)
    return events


def finals(events: list[Event]) -> list[Final]:
    return [event for event in events if isinstance(event, Final)]


spells = st.lists(st.tuples(st.floats(0.3, 9.0), st.floats(0.1, 2.0)), min_size=1, max_size=6)


@given(spells, st.integers(0, 1000), st.floats(0, 1), st.sampled_from([0.02, 0.1, 1.0, 7.0]), st.booleans())
@settings(max_examples=60, deadline=None)
def test_what_is_stable_stays(
    speech: list[tuple[float, float]], seed: int, whim: float, step: float, loops: bool
) -> None:
    engine = fickle(seed, whim, loops=loops)
    events = streamed(engine, audio(speech, seed), step)
    stable: dict[int, str] = {}
    over: list[int] = []
    for event in events:
        if isinstance(event, Speech):
            assert event.segment not in stable
            stable[event.segment] = ""
        elif isinstance(event, Partial):
            assert event.segment not in over
            assert event.stable.startswith(stable[event.segment])
            stable[event.segment] = event.stable
        else:
            assert event.result.text.startswith(stable[event.segment])
            over.append(event.segment)
    assert over == sorted(stable)
    assert over == list(range(len(over)))


@given(spells, st.integers(0, 1000), st.sampled_from([0.02, 0.3, 1.0]))
@settings(max_examples=40, deadline=None)
def test_finals_are_what_the_pieces_give_alone(speech: list[tuple[float, float]], seed: int, step: float) -> None:
    """Same audio, same cuts: the text of every final that is said to be as offline is the offline one."""
    engine, samples = fickle(seed, 0.5), audio(speech, seed)
    pieces = list(speech_pieces([samples], RATE, engine.segment_seconds, Loud(), pause=0.8, live=True))
    given = finals(streamed(engine, samples, step))
    assert [final.result.start for final in given] == [round(piece.start / RATE, 3) for piece in pieces]
    for final, piece in zip(given, pieces, strict=True):
        offline = engine.read(engine.said(piece.samples), None, ended=True)[1]
        assert final.as_offline == (final.result.text == offline)
    plain = finals(streamed(engine, samples, step, LiveOptions(stable=False)))
    assert all(final.as_offline for final in plain)


@given(spells, st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_in_what_pieces_audio_comes_changes_no_segment(speech: list[tuple[float, float]], seed: int) -> None:
    engine, samples = fickle(whim=0.0), audio(speech, seed)
    made = [[(each.result.start, each.result.end) for each in finals(streamed(engine, samples, step))]
            for step in (0.013, 0.1, 1.0, 100.0)]  # fmt: skip
    assert all(each == made[0] for each in made)


def test_words_that_hold_become_stable_before_the_end() -> None:
    engine = fickle(whim=0.0)
    events = streamed(engine, audio([(5.5, 1.5)]), 0.1)
    partials = [event for event in events if isinstance(event, Partial)]
    assert [round(partial.end) for partial in partials] == [1, 2, 3, 4, 5]
    assert partials[1].stable == ""
    assert partials[2].stable
    assert all(partial.stable + partial.unstable for partial in partials)
    (final,) = finals(events)
    assert final.as_offline
    assert final.result.text.startswith(partials[-1].stable)
    none = streamed(engine, audio([(5.5, 1.5)]), 0.1, LiveOptions(stable=False))
    assert not any(event.stable for event in none if isinstance(event, Partial))


def test_each_job_has_the_hypothesis_before_as_its_draft() -> None:
    engine = fickle(whim=0.0)
    streamed(engine, audio([(3.4, 1.0)]), 0.1)
    jobs = [job.live for job in engine.jobs]
    assert [job.final for job in jobs if job] == [False, False, False, True]
    for before, job in zip(engine.jobs, jobs[1:], strict=False):
        assert job
        assert job.draft == engine.said(before.samples)
    assert len({job.state for job in jobs if job}) == 1


def test_partials_that_are_late_are_skipped() -> None:
    session = LiveSession(fickle(), SegmentOptions())
    session.feed(audio([(1.5, 0)]))
    job = session.next_job()
    assert job
    session.feed(audio([(3.0, 0)]))
    assert session.next_job() is None
    assert session.behind > 2
    session.take(job.key, SegmentResult("one", None, [0], 1.0, "stop", 1, 1))
    late = session.next_job()
    assert late
    assert len(late.samples) > 4 * RATE


def test_a_commit_ends_the_segment_and_the_next_begins_behind_it() -> None:
    engine = fickle(whim=0.0)
    stream = Stream(engine, LiveSession(engine, SegmentOptions()), RATE)
    assert stream.commit() == []
    assert isinstance(stream.feed(audio([(2.0, 0)]))[0], Speech)
    (first,) = finals(stream.commit())
    events = stream.feed(audio([(2.0, 0)]))
    (second,) = finals([*events, *stream.finish()])
    assert first.result.end <= second.result.start
    assert second.result.end == pytest.approx(4.0, abs=0.05)
    assert stream.finish() == []
    with pytest.raises(ValueError, match="finished"):
        stream.feed(audio([(1.0, 0)]))


def test_speech_that_goes_on_is_cut_at_the_longest_segment() -> None:
    engine = fickle(whim=0.0)
    events = streamed(engine, audio([(30.0, 0)]), 0.1)
    given = finals(events)
    assert len(given) >= 5
    assert all(final.result.end - final.result.start <= engine.segment_seconds for final in given)
    # What is stable in a segment was heard before the earliest place where it may be cut.
    for final in given[:-1]:
        stable = [event.stable for event in events if isinstance(event, Partial) and event.segment == final.segment]
        assert final.result.text.startswith(stable[-1])
        assert final.as_offline


def test_silence_gives_nothing_and_holds_nothing() -> None:
    engine = fickle()
    session = LiveSession(engine, SegmentOptions())
    for _ in range(600):
        assert session.feed(np.zeros(RATE, np.float32)) == []
        assert session.next_job() is None
    assert len(session._cutter._tail._buffer) < 5 * RATE
    assert session.finish() == []
    assert session.complete


def test_silence_is_not_behind() -> None:
    """Else a stream with a long pause would wait for the engine, which has nothing to do."""
    engine = fickle(whim=0.0)
    session = LiveSession(engine, SegmentOptions(), LiveOptions(pause=40.0))
    events = session.feed(audio([(2.0, 35.0)]))
    for key, result in engine.run(session.next_job):
        events += session.take(key, result)
    assert isinstance(events[-1], Partial)
    assert session.behind < 0.5


def test_looped_text_is_decoded_again_in_parts() -> None:
    engine = fickle(whim=0.0, loops=True)
    (final,) = finals(streamed(engine, audio([(5.0, 1.5)]), 0.1))
    assert final.result.decoded_again == "repetition"
    assert final.result.finish_reason == "stop"


@pytest.mark.parametrize(
    ("live", "said"),
    [
        (LiveOptions(interval=0.0), "interval .* 0.1 to 60 s"),
        (LiveOptions(pause=0.2), "pause must last 0.5 to 60 s"),
        (LiveOptions(pause=float("nan")), "not nan"),
        (LiveOptions(pause=float("inf")), "not inf"),
    ],
)
def test_options_that_cannot_be(live: LiveOptions, said: str) -> None:
    with pytest.raises(OptionError, match=said):
        LiveSession(fickle(), SegmentOptions(), live)


@pytest.mark.parametrize("rate", [8_000, 16_000, 24_000, 44_100, 48_000])
def test_any_rate_comes_in_as_the_models(rate: int) -> None:
    tone = np.sin(2 * np.pi * 440 * np.arange(rate) / rate)
    incoming = StreamResampler(rate, RATE)
    integers = [(part * 32767).astype(np.int16) for part in np.array_split(tone, 37)]
    heard = np.concatenate([*(incoming.take(part) for part in integers), incoming.end()])
    assert heard.dtype == np.float32
    assert len(heard) == pytest.approx(RATE, abs=2)
    wanted = np.sin(2 * np.pi * 440 * np.arange(len(heard)) / RATE)
    assert np.abs(heard - wanted)[500:-500].max() < 0.01


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        (np.zeros((2, 10), np.float32), "shape"),
        (np.zeros(10, np.int32), "int32"),
        (np.array([0.0, np.nan]), "not finite"),
    ],
)
def test_samples_that_are_none(samples: np.ndarray, said: str) -> None:
    with pytest.raises(AudioInvalidError, match=said):
        StreamResampler(RATE, RATE).take(samples)


@pytest.mark.parametrize("rate", [RATE, 8_000])
def test_a_stream_that_was_finished_takes_nothing_more(rate: int) -> None:
    stream = Stream(fickle(), LiveSession(fickle(), SegmentOptions()), rate)
    stream.feed(np.zeros(100, np.float32))
    assert stream.finish() == stream.finish() == stream.commit() == []
    with pytest.raises(ValueError, match="the stream is finished"):
        stream.feed(np.zeros(100, np.float32))


def test_a_stream_that_failed_does_not_seem_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The job that was lost would be waited for, and texts would be missing in silence."""
    engine = fickle(whim=0.0)
    stream = Stream(engine, LiveSession(engine, SegmentOptions()), RATE)

    def fail(_: SegmentJob) -> SegmentResult:
        raise MemoryError

    monkeypatch.setattr(engine, "transcribe", fail)
    with pytest.raises(MemoryError):
        stream.feed(audio([(2.0, 0.1)]))
    monkeypatch.undo()
    with pytest.raises(ValueError, match="failed before"):
        stream.feed(audio([(0.5, 0.1)]))
    with pytest.raises(ValueError, match="failed before"):
        stream.finish()


def test_a_rate_that_no_speech_has() -> None:
    with pytest.raises(OptionError, match="4000 Hz"):
        StreamResampler(4_000, RATE)
