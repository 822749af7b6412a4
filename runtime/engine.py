"""What a family gives the transcriber: an engine that turns segments of audio into text, many at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from runtime.decoding.autoregressive import FinishReason
from runtime.providers import Providers, ProviderSpec

Floats = npt.NDArray[np.float32]
Task = Literal["transcribe", "translate"]

# Rows that are decoded together unless asked otherwise: a step of eight costs two to three of one.
DEFAULT_BATCH = 8
# Longest segment unless asked otherwise, where the model's own is not shorter. Measured on a minute of real speech at
# 0.6B (`python -m tests.benchmarks --only speech`): limits of 15 and 20 s are equally fast in rows, one of 30 s leaves
# fewer rows and longer prefills; and 20 s keep more of a sentence together.
DEFAULT_SEGMENT_SECONDS = 20.0


class Capabilities(msgspec.Struct, frozen=True):
    """What models of a family, or one of them, can do. Asked for anything else they raise: see :mod:`runtime.asking`.

    What every engine can do is not said: audio of any length, many segments in rows, live streams, a bound on tokens.

    - ``context``: hot words or free text decide between spellings.
    - ``language``: it can be told which of its languages is spoken. A model of a single one may always be told that.
    - ``language_detection``: it says which language it heard.
    - ``words``: every transcript has the times of its words.
    - ``timestamps``: it can time the parts of its text, which then are segments.
    - ``translation``: it can write English whatever is spoken.
    - ``long_form``: it can say itself where a window of long audio ends and the next begins.
    - ``forcing``: its decoder can be given a text to go on from. So what a stream reported as stable stays while the
      rest is decoded again; and the length of a text can be forced, and repetitions be penalized.
    """

    context: bool
    language: bool
    language_detection: bool
    words: bool = False
    timestamps: bool = False
    translation: bool = False
    long_form: bool = False
    forcing: bool = False


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


def _always() -> bool:
    return True


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
    alive: Callable[[], bool] = _always
    live: LiveWork | None = None
    features: Floats | None = None


class TimedText(msgspec.Struct, frozen=True):
    """A part of a segment's text and its tokens; its times in seconds from the segment's beginning."""

    start: float
    end: float
    text: str
    tokens: list[int]


class Word(msgspec.Struct, frozen=True):
    """A word as it stands in the text, punctuation included: times in seconds, confidence 0..1.

    Times are from the segment's first sample in a :class:`SegmentResult`, from that of the audio in a transcript.
    """

    text: str
    start: float
    end: float
    confidence: float


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


class Timings(msgspec.Struct):
    """Seconds spent in each stage, added up over segments.

    What was done for several segments at once is shared out among them. ``segment`` is reading, voice activity and
    cutting. ``first_token`` and ``total`` are times from the beginning to the first token and to the end, by the clock:
    stages overlap, and segments of other audio may be among them.
    """

    load: float = 0.0
    segment: float = 0.0
    features: float = 0.0
    encode: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0
    first_token: float = 0.0
    total: float = 0.0

    def add(self, stage: str, seconds: float) -> None:
        """Add to ``stage``."""
        setattr(self, stage, getattr(self, stage) + seconds)

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Add the block's duration to ``stage``."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, time.perf_counter() - began)


class BatchPlan(msgspec.Struct, frozen=True):
    """How many rows are decoded together, known before the work begins.

    ``rows`` of ``positions`` take up to ``row_bytes`` each, beside ``fixed_bytes`` of the opened model; ``memory`` is
    the budget that they fit into. Rows take memory as texts fill them: what is counted is the most.
    """

    rows: int
    positions: int
    row_bytes: int
    fixed_bytes: int
    memory: int


class Engine(Protocol):
    """A loaded model of some family; its class is a :class:`runtime.families.Family`."""

    capabilities: Capabilities
    sample_rate: int
    segment_seconds: float
    plan: BatchPlan

    def transcribe(self, samples: Floats, options: SegmentOptions, timings: Timings) -> SegmentResult:
        """Text of mono float32 ``samples`` at ``sample_rate``, at most ``segment_seconds`` long."""

    def check(self, options: SegmentOptions) -> None:
        """Find out before the work what cannot be done: see :mod:`runtime.asking`; and that there is no room for it.

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
        """Nodes of every graph by role, provider and operator: see :func:`runtime.session.placement`."""
