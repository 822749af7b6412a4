"""Live streams with any model output: stable text is final, segments end in order, and memory is bounded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.audio.segmentation import speech_pieces
from runtime.engines.base import SegmentJob, SegmentOptions, SegmentResult
from runtime.engines.batch_plan import BatchPlan
from runtime.engines.capabilities import Capabilities
from runtime.errors import OptionError
from runtime.pipeline.events import Event, Final, Partial, Speech
from runtime.pipeline.streaming import LiveOptions, LiveSession, Stream

RATE = 16_000
WORDS = ["one", " two", " three", " four", "，", "五", "六", ".", " seven", " eight"]


class FakeState:
    """Encoder state that settles every two seconds of audio."""

    def __init__(self, engine: ChangingEngine) -> None:
        self.engine = engine

    @property
    def settled(self) -> int:
        return len(self.engine.jobs[-1].samples) // (2 * RATE) * 2 * RATE


class ChangingEngine:
    """An engine whose hypotheses change: each word is random, and changes at random when the audio grows.

    It keeps forced tokens, as engines must.

    Attributes:
        change_rate: probability that a word depends on the length of the audio.
        loops: every result without a repetition penalty is a loop.
        jobs: all jobs that were run.
    """

    capabilities = Capabilities(context=True, language=True, language_detection=True)
    sample_rate = RATE
    segment_seconds = 6.0
    window_seconds: float | None = None

    def __init__(self, seed: int = 0, change_rate: float = 0.3, *, loops: bool = False) -> None:
        self.plan = BatchPlan(2, 100, 1, 1, 1000)
        self.seed, self.change_rate, self.loops = seed, change_rate, loops
        self.states = 0
        self.jobs: list[SegmentJob] = []

    def live(self) -> FakeState:
        self.states += 1
        return FakeState(self)

    def read(self, tokens: Sequence[int], language: str | None, *, ended: bool) -> tuple[str | None, str]:
        return language, "".join(WORDS[token] for token in tokens).strip()

    def hypothesis(self, samples: np.ndarray) -> list[int]:
        """Return two words a second, chosen by their samples, and some also by the length of the audio."""
        tokens = []
        for index in range(len(samples) // (RATE // 2)):
            word = int(abs(samples[index * RATE // 2]) * 1e6)
            random = np.random.default_rng([self.seed, word, len(samples)])
            tokens.append(int(random.integers(len(WORDS))) if random.random() < self.change_rate else word % len(WORDS))
        return tokens

    def transcribe(self, job: SegmentJob) -> SegmentResult:
        tokens = self.hypothesis(job.samples)
        if job.live:
            tokens = [*job.live.draft[: job.live.forced], *tokens[job.live.forced :]]
        looped = self.loops and job.options.repetition_penalty == 1.0
        language, text = self.read(tokens, job.options.language, ended=True)
        reason: Any = "repetition" if looped else "stop"
        return SegmentResult(text, language, tokens, 0.5, reason, 1, 1)

    def run(self, next_job: Callable[[], SegmentJob | None]) -> Iterator[tuple[Any, SegmentResult]]:
        while job := next_job():
            self.jobs.append(job)
            assert next_job() is None, "a stream has one job at a time"
            yield job.key, self.transcribe(job)


def changing_engine(seed: int = 0, change_rate: float = 0.3, *, loops: bool = False) -> Any:
    """Return a :class:`ChangingEngine`, typed as any engine."""
    return ChangingEngine(seed, change_rate, loops=loops)


class LoudnessDetector:
    """A speech detector that treats loud audio as speech."""

    def __init__(self) -> None:
        self.rest = np.zeros(0, np.float32)

    def probabilities(self, samples: np.ndarray) -> np.ndarray:
        audio = np.concatenate([self.rest, samples])
        whole = len(audio) // 512 * 512
        self.rest = audio[whole:]
        speech: np.ndarray = (np.abs(audio[:whole]).reshape(-1, 512).max(axis=1) > 0.01).astype(np.float32)
        return speech

    def finish(self) -> np.ndarray:
        return self.probabilities(np.zeros(-len(self.rest) % 512, np.float32))


@pytest.fixture(autouse=True)
def _loudness_detector(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.audio.segmentation.SpeechDetector", LoudnessDetector)


def audio(spells: list[tuple[float, float]], seed: int = 0) -> np.ndarray:
    """Return audio for ``spells``: pairs of seconds of speech and seconds of silence."""
    rng = np.random.default_rng(seed)
    parts = []
    for loud, quiet in spells:
        parts += [rng.uniform(0.02, 0.3, int(loud * RATE)), np.zeros(int(quiet * RATE))]
    return np.concatenate(parts).astype(np.float32)


def streamed(engine: Any, samples: np.ndarray, step: float, live: LiveOptions = LiveOptions()) -> list[Event]:  # noqa: B008
    stream = Stream(engine, LiveSession(engine, SegmentOptions(), live), RATE)
    size = int(step * RATE)
    events = [event for start in range(0, len(samples), size) for event in stream.feed(samples[start : start + size])]
    events += stream.finish()
    assert stream.session.complete
    assert stream.session.duration == pytest.approx(len(samples) / RATE)
    return events


def finals(events: list[Event]) -> list[Final]:
    return [event for event in events if isinstance(event, Final)]


spells = st.lists(st.tuples(st.floats(0.3, 9.0), st.floats(0.1, 2.0)), min_size=1, max_size=6)


@given(spells, st.integers(0, 1000), st.floats(0, 1), st.sampled_from([0.02, 0.1, 1.0, 7.0]), st.booleans())
@settings(max_examples=60, deadline=None)
def test_stable_text_never_changes(
    speech: list[tuple[float, float]], seed: int, change_rate: float, step: float, loops: bool
) -> None:
    engine = changing_engine(seed, change_rate, loops=loops)
    events = streamed(engine, audio(speech, seed), step)
    stable: dict[int, str] = {}
    ended: list[int] = []
    for event in events:
        if isinstance(event, Speech):
            assert event.segment not in stable
            stable[event.segment] = ""
        elif isinstance(event, Partial):
            assert event.segment not in ended
            assert event.stable.startswith(stable[event.segment])
            stable[event.segment] = event.stable
        else:
            assert event.result.text.startswith(stable[event.segment])
            ended.append(event.segment)
    assert ended == sorted(stable)
    assert ended == list(range(len(ended)))


@given(spells, st.integers(0, 1000), st.sampled_from([0.02, 0.3, 1.0]))
@settings(max_examples=40, deadline=None)
def test_finals_equal_the_pieces_transcribed_alone(speech: list[tuple[float, float]], seed: int, step: float) -> None:
    """Cuts are those of the offline segmentation, and ``as_offline`` is set where the text is the offline text."""
    engine, samples = changing_engine(seed, 0.5), audio(speech, seed)
    pieces = list(speech_pieces([samples], RATE, engine.segment_seconds, LoudnessDetector(), pause=0.8, live=True))
    results = finals(streamed(engine, samples, step))
    assert [final.result.start for final in results] == [round(piece.start / RATE, 3) for piece in pieces]
    for final, piece in zip(results, pieces, strict=True):
        offline = engine.read(engine.hypothesis(piece.samples), None, ended=True)[1]
        assert final.as_offline == (final.result.text == offline)
    without_stable = finals(streamed(engine, samples, step, LiveOptions(stable=False)))
    assert all(final.as_offline for final in without_stable)


@given(spells, st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_the_size_of_fed_blocks_changes_no_segment(speech: list[tuple[float, float]], seed: int) -> None:
    engine, samples = changing_engine(change_rate=0.0), audio(speech, seed)
    segments = [[(each.result.start, each.result.end) for each in finals(streamed(engine, samples, step))]
            for step in (0.013, 0.1, 1.0, 100.0)]  # fmt: skip
    assert all(each == segments[0] for each in segments)


def test_unchanged_words_become_stable_before_the_end() -> None:
    engine = changing_engine(change_rate=0.0)
    events = streamed(engine, audio([(5.5, 1.5)]), 0.1)
    partials = [event for event in events if isinstance(event, Partial)]
    assert [round(partial.end) for partial in partials] == [1, 2, 3, 4, 5]
    assert partials[1].stable == ""
    assert partials[2].stable
    assert all(partial.stable + partial.unstable for partial in partials)
    (final,) = finals(events)
    assert final.as_offline
    assert final.result.text.startswith(partials[-1].stable)
    without_stable = streamed(engine, audio([(5.5, 1.5)]), 0.1, LiveOptions(stable=False))
    assert not any(event.stable for event in without_stable if isinstance(event, Partial))


def test_each_job_has_the_previous_hypothesis_as_its_draft() -> None:
    engine = changing_engine(change_rate=0.0)
    streamed(engine, audio([(3.4, 1.0)]), 0.1)
    jobs = [job.live for job in engine.jobs]
    assert [job.final for job in jobs if job] == [False, False, False, True]
    for previous, job in zip(engine.jobs, jobs[1:], strict=False):
        assert job
        assert job.draft == engine.hypothesis(previous.samples)
    assert len({job.state for job in jobs if job}) == 1


def test_late_partials_are_skipped() -> None:
    session = LiveSession(changing_engine(), SegmentOptions())
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


def test_a_commit_ends_the_segment_and_the_next_starts_after_it() -> None:
    engine = changing_engine(change_rate=0.0)
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


def test_long_speech_is_cut_at_the_longest_segment() -> None:
    engine = changing_engine(change_rate=0.0)
    events = streamed(engine, audio([(30.0, 0)]), 0.1)
    results = finals(events)
    assert len(results) >= 5
    assert all(final.result.end - final.result.start <= engine.segment_seconds for final in results)
    # Stable text ends before the earliest position at which the segment may be cut.
    for final in results[:-1]:
        stable = [event.stable for event in events if isinstance(event, Partial) and event.segment == final.segment]
        assert final.result.text.startswith(stable[-1])
        assert final.as_offline


def test_silence_gives_no_events_and_is_not_stored() -> None:
    engine = changing_engine()
    session = LiveSession(engine, SegmentOptions())
    for _ in range(600):
        assert session.feed(np.zeros(RATE, np.float32)) == []
        assert session.next_job() is None
    assert len(session._cutter._tail._buffer) < 5 * RATE
    assert session.finish() == []
    assert session.complete


def test_silence_does_not_count_as_behind() -> None:
    """Otherwise a stream with a long pause would wait for an idle engine."""
    engine = changing_engine(change_rate=0.0)
    session = LiveSession(engine, SegmentOptions(), LiveOptions(pause=40.0))
    events = session.feed(audio([(2.0, 35.0)]))
    for key, result in engine.run(session.next_job):
        events += session.take(key, result)
    assert isinstance(events[-1], Partial)
    assert session.behind < 0.5


def test_every_job_has_its_expected_seconds_of_speech() -> None:
    engine = changing_engine(change_rate=0.0)
    samples = audio([(3.2, 1.6), (0.64, 2.0)])
    streamed(engine, samples, 0.1)
    partials = [job.speech for job in engine.jobs if job.live and not job.live.final]
    assert partials == [0.992, 1.984, 2.976, 0.64]  # whole frames of 32 ms after every second
    pieces = speech_pieces([samples], RATE, 6.0, pause=0.8, live=True)
    assert [job.speech for job in engine.jobs if job.live and job.live.final] == [piece.speech for piece in pieces]
    assert [job.speech for job in engine.jobs if job.live and job.live.final] == [3.2, 0.64]


def test_looped_text_is_decoded_again_in_parts() -> None:
    engine = changing_engine(change_rate=0.0, loops=True)
    (final,) = finals(streamed(engine, audio([(5.0, 1.5)]), 0.1))
    first, *parts = engine.jobs[-3:]
    assert [part.speech for part in parts] == [first.speech] * 2
    assert first.speech == 5.024  # whole frames
    assert final.result.decoded_again == "repetition"
    assert final.result.finish_reason == "stop"


@pytest.mark.parametrize(
    ("live", "fact"),
    [
        (LiveOptions(interval=0.0), r"interval .*0\.1 to 60 s"),
        (LiveOptions(pause=0.2), r"pause .*0\.5 to 60 s"),
        (LiveOptions(pause=float("nan")), "not nan"),
        (LiveOptions(pause=float("inf")), "not inf"),
    ],
)
def test_invalid_live_options_are_refused(live: LiveOptions, fact: str) -> None:
    with pytest.raises(OptionError, match=fact):
        LiveSession(changing_engine(), SegmentOptions(), live)


@pytest.mark.parametrize("rate", [RATE, 8_000])
def test_a_finished_stream_accepts_no_audio(rate: int) -> None:
    stream = Stream(changing_engine(), LiveSession(changing_engine(), SegmentOptions()), rate)
    stream.feed(np.zeros(100, np.float32))
    assert stream.finish() == stream.finish() == stream.commit() == []
    with pytest.raises(ValueError, match="finished"):
        stream.feed(np.zeros(100, np.float32))


def test_a_failed_stream_raises_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise it would wait for the lost job, and its text would be missing without an error."""
    engine = changing_engine(change_rate=0.0)
    stream = Stream(engine, LiveSession(engine, SegmentOptions()), RATE)

    def fail(_: SegmentJob) -> SegmentResult:
        raise MemoryError

    monkeypatch.setattr(engine, "transcribe", fail)
    with pytest.raises(MemoryError):
        stream.feed(audio([(2.0, 0.1)]))
    monkeypatch.undo()
    with pytest.raises(ValueError, match="failed"):
        stream.feed(audio([(0.5, 0.1)]))
    with pytest.raises(ValueError, match="failed"):
        stream.finish()
