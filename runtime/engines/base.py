"""What a family gives the transcriber: an engine that turns segments of audio into text, many at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from runtime.engines.batch_plan import BatchPlan
from runtime.engines.capabilities import Capabilities
from runtime.ort.providers import Providers, ProviderSpec
from runtime.results import FinishReason, Task, TimedText, Timings, Word

Floats = npt.NDArray[np.float32]

# Rows that are decoded together unless asked otherwise: a step of eight costs two to three of one.
DEFAULT_BATCH = 8
# Longest segment unless asked otherwise, where the model's own is not shorter. Measured on a minute of real speech at
# 0.6B (`python -m benchmarks --only speech`): limits of 15 and 20 s are equally fast in rows, one of 30 s leaves
# fewer rows and longer prefills; and 20 s keep more of a sentence together.
DEFAULT_SEGMENT_SECONDS = 20.0


class EngineOptions(msgspec.Struct, frozen=True):
    """How sessions are made, and how much is decoded together.

    ``providers`` are execution providers by a graph's role, the CPU for a role that is not named. ``max_batch`` bounds
    the rows, ``memory`` the bytes that this process may have resident (None: half of what is free), ``segment_seconds``
    the longest segment (None: what is fastest for the family, :data:`DEFAULT_SEGMENT_SECONDS` or the model's own).
    """

    providers: dict[str, Providers] = {}
    threads: int | None = None
    max_batch: int = DEFAULT_BATCH
    memory: int | None = None
    segment_seconds: float | None = None

    def providers_for(self, role: str) -> Providers:
        """Providers of the graph with ``role``, in order of priority."""
        return self.providers.get(role, (ProviderSpec(),))


class SegmentOptions(msgspec.Struct, frozen=True):
    """What is asked of one segment: a language by its English name (None detects it), a context, a forced length.

    A ``repetition_penalty`` above 1 guards against loops. ``timestamps`` asks for the times of parts of the text,
    ``task`` for the text itself or for English.
    """

    language: str | None = None
    context: str = ""
    max_new_tokens: int | None = None
    ignore_stop: bool = False
    repetition_penalty: float = 1.0
    timestamps: bool = False
    task: Task = "transcribe"


def _never() -> bool:
    return False


class LiveState(Protocol):
    """What an engine keeps of a segment that grows."""

    @property
    def settled(self) -> int:
        """Samples at the segment's beginning with which the encoder is done: more audio changes nothing of them."""


class LiveWork(msgspec.Struct, frozen=True):
    """Of a job: that its segment is still growing, or was until now.

    ``state`` is what :meth:`Engine.live` made for the segment; ``final`` says that it does not grow any more, and its
    text is to be that of the same audio offline. ``draft`` is the hypothesis before; its first ``forced`` tokens stay.
    """

    state: Any
    final: bool
    draft: list[int] = []
    forced: int = 0


class SegmentJob(msgspec.Struct, frozen=True):
    """A segment to transcribe: whose it is, its mono float32 samples, what is asked, and where its times are kept.

    ``began`` is when its audio was begun (``time.perf_counter``): the time to the first token counts from there.
    ``alive`` is asked between steps: when it says no, the text is dropped where it is, its row is free for another, and
    there is no result. ``features`` are those of the samples, where they are not what the samples alone would give.
    """

    key: Any
    samples: Floats
    options: SegmentOptions
    timings: Timings
    began: float
    is_cancelled: Callable[[], bool] = _never
    live: LiveWork | None = None
    features: Floats | None = None


class SegmentResult(msgspec.Struct, frozen=True):
    """One segment's text, and the numbers that go with it.

    ``words`` is None where the model tells no times of words; ``phrases`` are parts of the text with times of their
    own, if they were asked for.
    """

    text: str
    language: str | None
    tokens: list[int]
    confidence: float
    finish_reason: FinishReason
    audio_tokens: int
    prompt_tokens: int
    words: list[Word] | None = None
    phrases: list[TimedText] = []


class Probe(msgspec.Struct, frozen=True):
    """What a graph is fed for some audio and text, and which of its outputs matter.

    ``choice`` names the output whose largest entry along the last axis is a decision (logits), if there is one.
    ``rows`` are those that an encoder gives for the audio, or the positions of a decoder's text.
    """

    role: str
    feeds: dict[str, npt.NDArray[Any]]
    outputs: list[str]
    choice: str | None = None
    rows: int = 0


class Engine(Protocol):
    """A loaded model of some family; its class is a :class:`runtime.families.Family`."""

    capabilities: Capabilities
    sample_rate: int
    segment_seconds: float
    plan: BatchPlan

    def transcribe(self, samples: Floats, options: SegmentOptions, timings: Timings) -> SegmentResult:
        """Text of mono float32 ``samples`` at ``sample_rate``, at most ``segment_seconds`` long."""

    def check(self, options: SegmentOptions) -> None:
        """Find out before the work what cannot be done: see :mod:`runtime.engines.capabilities`; and that there is no room for it.

        Raises:
            OptionError: the model cannot do it; the context is too long for it, or contains what marks the audio.
        """

    def run(self, next_job: Callable[[], SegmentJob | None]) -> Iterator[tuple[Any, SegmentResult]]:
        """Transcribe many segments, ``plan.rows`` of them decoded together.

        Args:
            next_job: asked whenever there is room; None when there is none now. It may have one again after results
                were given; the work is over when nothing is in flight and there is none.

        Yields:
            A job's key and its result, in the order in which segments end.
        """

    def live(self) -> LiveState:
        """What is kept of one segment that grows, between the jobs that decode it: see :class:`LiveWork`.

        The first call may take a moment, for what the model and this machine need to be known for it.
        """

    def read(self, tokens: Sequence[int], language: str | None, *, ended: bool) -> tuple[str | None, str]:
        """Language and text that decoded ``tokens`` say; ``ended`` is whether a stop came after them."""

    def probes(self, samples: Floats, tokens: list[int], options: SegmentOptions) -> list[Probe]:
        """The inputs of every graph when ``samples`` are transcribed as ``tokens``, whatever the model would say.

        Quantization calibrates with them and compares graphs on them.
        """

    def run_probe(self, probe: Probe) -> list[npt.NDArray[Any]]:
        """The outputs of a probe, of this engine's own session and so of its providers."""

    def placement(self) -> dict[str, dict[str, dict[str, int]]]:
        """Nodes of every graph by role, provider and operator: see :func:`runtime.ort.session.placement`."""


class Span(msgspec.Struct, frozen=True):
    """A finished piece: first sample, samples, what was heard, and why it was decoded a second time, if it was."""

    start: int
    length: int
    result: SegmentResult
    decoded_again: FinishReason | None


class LongWork(Protocol):
    """One long audio on its way through an engine, in windows that the model itself says the ends of."""

    def next_job(self) -> SegmentJob | None:
        """The next window, whose key is this object; None while one is on its way, and after the last."""

    def take(self, result: SegmentResult) -> None:
        """What the window that was on its way says."""

    @property
    def done(self) -> int:
        """Samples that are done."""

    @property
    def spans(self) -> list[Span]:
        """What was heard so far, in order."""


class LongFormEngine(Engine, Protocol):
    """An engine whose capabilities have ``long_form``."""

    def long_form(self, samples: Floats, options: SegmentOptions, timings: Timings) -> LongWork:
        """Mono float32 ``samples`` of any length as windows to run."""
