"""A fake engine that decodes one second of audio per step, when a test allows the step, and its fake transcriber."""

from __future__ import annotations

import io
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any
from unittest.mock import patch

import numpy as np
import soundfile

from runtime.engines.base import EngineOptions, LongForm, Probe, SegmentJob, SegmentOptions, SegmentResult
from runtime.engines.batch_plan import BatchPlan
from runtime.engines.capabilities import Capabilities
from runtime.model.artifact import open_artifact
from runtime.pipeline.events import Event, Final, Partial, Speech
from runtime.pipeline.streaming import LiveOptions
from runtime.results import Segment, Timings
from runtime.transcriber import Transcriber
from tests.conftest import ARTIFACT
from tests.helpers.long_form import FixedWindows

RATE = 1000
WAIT = 20.0  # seconds before a hanging test fails


@dataclass
class Row:
    """A job in the decoder's batch, and its remaining steps."""

    job: SegmentJob
    steps_left: int


def value_of(samples: np.ndarray) -> int:
    """Return the number that :func:`wav` wrote into all samples."""
    return round(float(samples[len(samples) // 2]) * 1000)


class SteppedEngine:
    """Collects jobs, starts them in rows and steps, as the real engine does.

    The text of a segment is its value and its length, such as ``7:2.5``.

    Attributes:
        started: value and seconds of each segment, in the order in which they start.
        groups: the steps made before each group of jobs was collected, and the group's audio in seconds.
        steps: number of steps made.
        errors: the error to raise when a segment with this value starts.
        run_error: the error to raise at the start of :meth:`run`.
        rows: the rows that are being decoded.
    """

    capabilities = Capabilities(context=True, language=True, language_detection=True)
    audio_in_prompt = False
    sample_rate = RATE
    segment_seconds = 20.0
    window_seconds: float | None = None

    def __init__(self, rows: int = 2, *, automatic: bool = False) -> None:
        """``automatic``: every step is allowed."""
        self.plan = BatchPlan(rows, 100, 1, 1, 1000)
        self.changed = threading.Condition()
        self.started: list[tuple[int, float]] = []
        self.groups: list[tuple[int, float]] = []
        self.steps = 0
        self.errors: dict[int, BaseException] = {}
        self.run_error: BaseException | None = None
        self.rows: list[Row] = []
        self.long_forms = 0
        self._allowed = 10**9 if automatic else 0

    def allow(self, steps: int = 1) -> None:
        """Allow ``steps`` more steps."""
        with self.changed:
            self._allowed += steps
            self.changed.notify_all()

    def wait(self, predicate: Callable[[], bool]) -> None:
        """Wait until ``predicate`` is true; it is checked after each action of the engine."""
        with self.changed:
            assert self.changed.wait_for(predicate, WAIT), "the engine did not reach the expected state"

    def wait_rows(self, rows: int) -> None:
        """Wait until ``rows`` rows are being decoded."""
        self.wait(lambda: len(self.rows) == rows)

    def step(self, steps: int = 1) -> None:
        """Allow ``steps`` steps, and wait until they are made."""
        for _ in range(steps):
            with self.changed:
                target = self.steps + 1
                self._allowed += 1
                self.changed.notify_all()
                assert self.changed.wait_for(lambda: self.steps >= target, WAIT)  # noqa: B023 (called in this iteration)

    def live(self) -> Any:
        """Return None: fake sessions have no state in the engine."""

    def read(self, tokens: Any, language: str | None, *, ended: bool) -> tuple[str | None, str]:
        raise AssertionError

    def long_form(self, samples: np.ndarray, options: SegmentOptions, timings: Timings) -> LongForm:
        self.long_forms += 1
        return FixedWindows(samples, options, timings, 3 * RATE)

    def check(self, options: SegmentOptions) -> None: ...

    def transcribe(self, samples: np.ndarray, options: SegmentOptions, timings: Timings) -> SegmentResult:
        raise AssertionError

    def shorten_context(self, options: SegmentOptions) -> tuple[SegmentOptions, int]:
        raise AssertionError

    def placement(self) -> dict[str, dict[str, dict[str, int]]]:
        raise AssertionError

    def run_probe(self, probe: Probe) -> list[Any]:
        raise AssertionError

    def probes(self, samples: np.ndarray, tokens: list[int], options: SegmentOptions) -> list[Probe]:
        raise AssertionError

    def run(self, next_job: Callable[[], SegmentJob | None]) -> Iterator[tuple[Any, SegmentResult]]:
        if self.run_error:
            raise self.run_error
        ready: deque[SegmentJob] = deque()
        rows: list[Row] = []
        with self.changed:
            self.rows = rows
        while True:
            while len(rows) < self.plan.rows:
                if not ready:
                    ready.extend(islice(iter(next_job, None), self.plan.rows))
                    if ready:
                        self.groups.append((self.steps, sum(len(job.samples) for job in ready) / RATE))
                if not ready:
                    break
                job = ready.popleft()
                if job.is_cancelled():
                    continue
                with self.changed:
                    self.started.append((value_of(job.samples), len(job.samples) / RATE))
                    rows.append(Row(job, max(1, round(len(job.samples) / RATE))))
                    self.changed.notify_all()
                if (error := self.errors.get(value_of(job.samples))) is not None:
                    raise error
            with self.changed:
                rows[:] = [row for row in rows if not row.job.is_cancelled()]
                self.changed.notify_all()
                if not rows:
                    return
                # The real engine steps on its own; here a cancelled job must not wait until a step is allowed.
                while not self._allowed and not any(row.job.is_cancelled() for row in rows):
                    self.changed.wait(0.01)
                if not self._allowed:
                    rows[:] = [row for row in rows if not row.job.is_cancelled()]
                    continue
                self._allowed -= 1
                self.steps += 1
                for row in rows:
                    row.steps_left -= 1
                ended = [row for row in rows if not row.steps_left]
                rows[:] = [row for row in rows if row.steps_left]
                self.changed.notify_all()
            for row in ended:
                yield row.job.key, result(row.job)


def result(job: SegmentJob) -> SegmentResult:
    """Return the result of a job. Values over 500 loop without a penalty, so they are decoded again in parts."""
    value, seconds = value_of(job.samples), len(job.samples) / RATE
    looped = value > 500 and job.options.repetition_penalty == 1.0
    return SegmentResult(
        text=f"{value}:{seconds:g}",
        language=job.options.language or "English",
        tokens=[value],
        confidence=0.5,
        finish_reason="repetition" if looped else "stop",
        audio_tokens=1,
        prompt_tokens=2,
    )


def wav(value: int, seconds: float) -> io.BytesIO:
    """Return a WAV file of ``seconds`` at :data:`RATE` whose samples all are ``value`` / 1000."""
    file = io.BytesIO()
    soundfile.write(file, np.full(round(seconds * RATE), value / 1000, np.float32), RATE, format="WAV", subtype="FLOAT")
    file.seek(0)
    return file


class FakeSession:
    """A live session that treats all audio as speech: each feed gives a partial, each commit a final."""

    def __init__(self) -> None:
        self.complete = False
        self.duration = self.behind = 0.0
        self.feed_error: Exception | None = None
        self._open: list[np.ndarray] = []
        self._start = 0.0
        self._segment = 0
        self._finals: deque[tuple[int, float, np.ndarray]] = deque()
        self._partial = self._in_flight = self._finished = False

    def feed(self, samples: np.ndarray) -> list[Event]:
        if self.feed_error:
            raise self.feed_error
        events: list[Event] = [] if self._open else [Speech(self._segment, self._start)]
        self._open.append(samples)
        self.duration += len(samples) / RATE
        self.behind += len(samples) / RATE
        self._partial = True
        return events

    def commit(self) -> list[Event]:
        if self._open:
            self._finals.append((self._segment, self._start, np.concatenate(self._open)))
            self._segment, self._start, self._open, self._partial = self._segment + 1, self.duration, [], False
        return []

    def finish(self) -> list[Event]:
        self.commit()
        self._finished = True
        self.complete = not (self._finals or self._in_flight)
        return []

    def next_job(self) -> SegmentJob | None:
        assert not self._in_flight
        if self._finals:
            segment, start, samples = self._finals.popleft()
            key: Any = (segment, start, True, len(samples))
        elif self._partial:
            samples = np.concatenate(self._open)
            self._partial, key = False, (self._segment, self._start, False, len(samples))
        else:
            return None
        self._in_flight = True
        self.behind = max(0.0, self.duration - key[1] - len(samples) / RATE)
        return SegmentJob(key, samples, SegmentOptions(), Timings(), 0.0)

    def take(self, key: Any, result: SegmentResult) -> list[Event]:
        self._in_flight = False
        index, start, final, samples = key
        end = start + samples / RATE
        self.complete = self._finished and not self._finals
        if not final:
            return [Partial(index, start, end, "", result.text, result.language)]
        segment = Segment(start, end, result.text, result.language, result.confidence, "stop", result.tokens)
        return [Final(index, segment, as_offline=True)]


class FakeTranscriber(Transcriber):
    """A transcriber with a :class:`SteppedEngine` and :class:`FakeSession` objects."""

    def __init__(self, engine: SteppedEngine, *, vad: bool = False) -> None:
        with patch("runtime.transcriber.make_engine", lambda *_: engine):
            super().__init__(open_artifact(ARTIFACT), EngineOptions(), vad=vad)
        self.sessions: list[FakeSession] = []

    def live(
        self,
        language: str | None = None,
        context: str = "",
        live: LiveOptions = LiveOptions(),  # noqa: B008
        *,
        shorten_context: bool = False,
    ) -> Any:
        self.resolve_language(language)
        self.sessions.append(FakeSession())
        return self.sessions[-1]
