"""The engine interface between families and pipeline, and what every family's engine shares.

An engine is an opened model that turns segments of audio into text, many at a time.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import msgspec
import numpy as np
import numpy.typing as npt
from onnxruntime import InferenceSession

from runtime.engines.batch_plan import BatchPlan
from runtime.engines.capabilities import Capabilities
from runtime.errors import CapabilityError, OptionError
from runtime.model.artifact import Artifact
from runtime.model.validation import contradiction
from runtime.ort.providers import Providers, ProviderSpec
from runtime.ort.session import placement
from runtime.results import DecodedAgain, FinishReason, Task, TimedText, Timings, Word

Floats = npt.NDArray[np.float32]

# Default number of rows: a step of eight rows takes two to three times as long as a step of one.
DEFAULT_BATCH = 8
# Default longest segment in seconds, where the model's own limit is not lower. Measured on a minute of real speech at
# 0.6B (`python -m benchmarks --only speech`): 15 and 20 s are equally fast in rows, 30 s gives fewer rows and longer
# prefills, and 20 s keeps more of a sentence together.
DEFAULT_SEGMENT_SECONDS = 20.0


class EngineOptions(msgspec.Struct, frozen=True):
    """How to open a model.

    ``providers`` are execution providers by graph role; a missing role runs on the CPU. ``threads`` are intra-op
    threads of a session (None: the cores this process may use). ``max_batch`` bounds the rows, ``memory`` the resident
    bytes of this process (None: half of the free memory), ``segment_seconds`` the longest segment (None: the family's
    default).
    """

    providers: dict[str, Providers] = {}
    threads: int | None = None
    max_batch: int = DEFAULT_BATCH
    memory: int | None = None
    segment_seconds: float | None = None

    def providers_for(self, role: str) -> Providers:
        """Return the providers of the graph with ``role`` in order of priority."""
        return self.providers.get(role, (ProviderSpec(),))


class SegmentOptions(msgspec.Struct, frozen=True):
    """Validated options of one segment; :meth:`runtime.transcriber.Transcriber.validate` makes them.

    ``language`` is an English name (None: detect). ``max_new_tokens`` replaces the budget from the segment's length,
    and ``ignore_stop`` decodes exactly that many. ``repetition_penalty`` above 1 guards against loops.
    """

    language: str | None = None
    context: str = ""
    max_new_tokens: int | None = None
    ignore_stop: bool = False
    repetition_penalty: float = 1.0
    timestamps: bool = False
    task: Task = "transcribe"


class LiveState(Protocol):
    """What an engine keeps of a growing segment between its jobs; made by :meth:`Engine.live`."""

    @property
    def settled(self) -> int:
        """Samples at the segment's start whose encoder output no longer changes when audio is added."""


class LiveSegment(msgspec.Struct, frozen=True):
    """Marks a job as part of a live stream.

    ``state`` comes from :meth:`Engine.live`. ``final`` is True when the segment has ended: its text is then the offline
    text of the same audio. ``draft`` is the previous hypothesis; its first ``forced`` tokens stay.
    """

    state: Any
    final: bool
    draft: list[int] = []
    forced: int = 0


def _never() -> bool:
    return False


class Part(msgspec.Struct, frozen=True):
    """A piece of speech in a window that joins several: its first sample there and in the audio, and its length."""

    offset: int
    start: int
    length: int


class SegmentJob(msgspec.Struct, frozen=True):
    """A segment to decode.

    ``key`` identifies it in the results. ``samples`` are mono float32 [n] at the engine's rate. ``timings`` collects
    its stage times, and ``began`` (``time.perf_counter``) is the start of its audio, from which the time to the first
    token counts. ``is_cancelled`` is called between steps: True drops the text, frees its row and gives no result.
    ``features`` replace those computed from ``samples``. ``speech`` are the expected seconds of speech in the
    samples, by voice activity (None: it was not detected). ``parts`` is set when the samples join several pieces of
    speech (:attr:`Engine.window_seconds`).
    """

    key: Any
    samples: Floats
    options: SegmentOptions
    timings: Timings
    began: float
    is_cancelled: Callable[[], bool] = _never
    live: LiveSegment | None = None
    features: Floats | None = None
    speech: float | None = None
    parts: list[Part] = []


class SegmentResult(msgspec.Struct, frozen=True):
    """The decoded text of one segment.

    ``audio_tokens`` are encoder rows, ``prompt_tokens`` prompt positions. ``words`` is None when the model has no word
    times; ``phrases`` are timed parts of the text when timestamps were requested. ``no_speech_prob`` and
    ``dropped_text`` are those of :class:`runtime.results.Segment`.

    ``text_tokens`` are the tokens of text alone, without timestamps and headers. ``stop_log_probability`` is that of
    the stop token that ended the text; None when none did, or when the engine's texts cannot end before the audio
    does. ``head`` is set when the text's last part may be cut: it is decoded again with the audio that follows.

    ``foreign_parts`` are numbers of the job's parts in another language than the others. Nothing was decoded then: a
    text has one language.
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
    no_speech_prob: float | None = None
    dropped_text: str | None = None
    text_tokens: int = 0
    stop_log_probability: float | None = None
    head: Head | None = None
    foreign_parts: list[int] = []


class Head(msgspec.Struct, frozen=True):
    """The part of a text that is complete, maybe none, and the samples that it covers, at least one frame."""

    result: SegmentResult
    samples: int


class Span(msgspec.Struct, frozen=True):
    """A decoded stretch of audio: first sample, number of samples, result, and why it was decoded again, if it was.

    ``parts`` is set when pauses were left out of what was decoded: times in the result then count from the start of the
    joined parts, while ``start`` and ``length`` include the pauses.
    """

    start: int
    length: int
    result: SegmentResult
    decoded_again: DecodedAgain | None
    parts: list[Part] = []


class LongForm(Protocol):
    """One long audio decoded in windows whose ends the model decides."""

    def next_job(self) -> SegmentJob | None:
        """Return the next window; None while one is being decoded, and after the last."""

    def take(self, result: SegmentResult) -> None:
        """Take the result of the window that was being decoded."""

    @property
    def done(self) -> int:
        """Samples that are decoded."""

    @property
    def spans(self) -> list[Span]:
        """Decoded spans so far, in order."""


class Probe(msgspec.Struct, frozen=True):
    """Inputs of one graph for some audio and text, and the outputs to compare.

    ``choice`` names the output whose largest entry along the last axis is a decision (logits), if there is one.
    ``rows`` counts encoder rows of the audio, or positions of a decoder's text.
    """

    role: str
    feeds: dict[str, npt.NDArray[Any]]
    outputs: list[str]
    choice: str | None = None
    rows: int = 0


class Engine(Protocol):
    """An opened model of some family; its class is a :class:`runtime.families.Family`."""

    capabilities: Capabilities
    audio_in_prompt: bool
    """Whether prompt positions include the audio's rows."""
    sample_rate: int
    segment_seconds: float
    window_seconds: float | None
    """Length of the windows into which short pieces of speech are joined; None where a longer window takes longer."""
    plan: BatchPlan

    def transcribe(
        self, samples: Floats, options: SegmentOptions, timings: Timings, speech: float | None = None
    ) -> SegmentResult:
        """Decode one segment: mono float32 [n] at ``sample_rate``, at most ``segment_seconds`` long.

        ``speech``: expected seconds of speech in it (:class:`SegmentJob`).
        """

    def check(self, options: SegmentOptions) -> None:
        """Check the family's own limits, such as the room for a context; capabilities are checked before.

        Raises:
            OptionError: the context is too long for the model, or contains a reserved token.
        """

    def shorten_context(self, options: SegmentOptions) -> tuple[SegmentOptions, int]:
        """Return the options with the last tokens of a context that is too long, and how many tokens were dropped.

        Options with a context that fits are returned unchanged, with 0.
        """

    def run(self, next_job: Callable[[], SegmentJob | None]) -> Iterator[tuple[Any, SegmentResult]]:
        """Decode many segments, ``plan.rows`` of them together.

        Args:
            next_job: called whenever there is room; returns None when there is no job now. It may have more after
                results were yielded; the run ends when nothing is being decoded and it returns None.

        Yields:
            Each job's key and result, in the order in which segments end.
        """

    def live(self) -> LiveState:
        """Return the state of a new growing segment (see :class:`LiveSegment`).

        The first call may take a moment: the engine measures what it needs to know about model and machine.
        """

    def long_form(self, samples: Floats, options: SegmentOptions, timings: Timings) -> LongForm:
        """Start long-form decoding of mono float32 ``samples`` [n] of any length.

        Raises:
            CapabilityError: the family has no long form.
        """

    def read(self, tokens: Sequence[int], language: str | None, *, ended: bool) -> tuple[str | None, str]:
        """Return language and text of decoded ``tokens``; ``ended``: a stop token followed them."""

    def probes(self, samples: Floats, tokens: list[int], options: SegmentOptions) -> list[Probe]:
        """Return the inputs of every graph when ``samples`` are transcribed as ``tokens``.

        Quantization calibrates with them and compares graphs on them.
        """

    def run_probe(self, probe: Probe) -> list[npt.NDArray[Any]]:
        """Run a probe in this engine's own session, on its providers; return the probe's outputs."""

    def placement(self) -> dict[str, dict[str, dict[str, int]]]:
        """Return node counts by graph role, provider and operator: see :func:`runtime.ort.session.placement`."""


class NoLiveState:
    """State of a growing segment for encoders that look at all of it: every frame may change until the end."""

    settled = 0


class BaseEngine(ABC):
    """What the engines of all families share; a family implements the abstract methods and sets ``plan``."""

    capabilities: Capabilities
    audio_in_prompt: bool = False
    window_seconds: float | None = None
    plan: BatchPlan

    def __init__(
        self,
        artifact: Artifact,
        options: EngineOptions,
        *,
        sample_rate: int,
        max_segment_seconds: float,
        default_segment_seconds: float = DEFAULT_SEGMENT_SECONDS,
    ) -> None:
        """Check the segment length before any graph is loaded; the family then sets ``_sessions`` and ``plan``.

        Args:
            artifact: the opened artifact.
            options: how to open it.
            sample_rate: of the audio that the front end takes, in Hz.
            max_segment_seconds: longest segment that the model is made for.
            default_segment_seconds: longest segment unless the options name one.

        Raises:
            OptionError: the options name a longer segment than the model is made for.
        """
        self._artifact, self._manifest = artifact, artifact.manifest
        self._sessions: dict[str, InferenceSession] = {}  # by graph role
        self.sample_rate = sample_rate
        self.segment_seconds = options.segment_seconds or min(default_segment_seconds, max_segment_seconds)
        if self.segment_seconds > max_segment_seconds:
            raise OptionError(
                f"segments of {self.segment_seconds:g} s are too long: this model is made for "
                f"{max_segment_seconds:g} s at most"
            )

    @classmethod
    def capabilities_of(cls, artifact: Artifact) -> Capabilities:  # noqa: ARG003  (a family may look at the manifest)
        """Return what this model can do; by default what the family declares.

        Raises:
            ArtifactInvalidError: the manifest does not fit the family.
        """
        return cls.capabilities

    def _check_parameters(self, entries: Sequence[tuple[str, object, object]]) -> None:
        """Compare manifest entries with graph and tokenizer: (key, value in the manifest, value found).

        Raises:
            ArtifactInvalidError: two values differ.
        """
        for key, declared, actual in entries:
            if declared != actual:
                raise contradiction(self._artifact, f"{key} is {declared}, but graph or tokenizer have {actual}")

    def transcribe(
        self, samples: Floats, options: SegmentOptions, timings: Timings, speech: float | None = None
    ) -> SegmentResult:
        """Decode one segment: mono float32 [n] at ``sample_rate``, at most ``segment_seconds`` long.

        ``speech``: expected seconds of speech in it (:class:`SegmentJob`).
        """
        jobs = iter([SegmentJob(None, samples, options, timings, time.perf_counter(), speech=speech)])
        ((_, result),) = self.run(lambda: next(jobs, None))
        return result

    def check(self, options: SegmentOptions) -> None:
        """Check the family's own limits; by default there are none.

        Raises:
            OptionError: the model has no room for the options.
        """
        del options

    def shorten_context(self, options: SegmentOptions) -> tuple[SegmentOptions, int]:
        """Return the options unchanged: a family whose context has a limit overrides this."""
        return options, 0

    @abstractmethod
    def run(self, next_job: Callable[[], SegmentJob | None]) -> Iterator[tuple[Any, SegmentResult]]:
        """Decode many segments together; see :meth:`Engine.run` for the contract of ``next_job``."""

    def live(self) -> LiveState:
        """Return the state of a new growing segment; by default nothing is kept, and it is decoded anew each time."""
        return NoLiveState()

    def long_form(self, samples: Floats, options: SegmentOptions, timings: Timings) -> LongForm:
        """Refuse: a family with a long form overrides this.

        Raises:
            CapabilityError: always.
        """
        del samples, options, timings
        raise CapabilityError(f"models of the family {self._manifest.family!r} have no long form", "long_form")

    def run_probe(self, probe: Probe) -> list[npt.NDArray[Any]]:
        """Run a probe in this engine's own session; return the probe's outputs."""
        outputs: list[npt.NDArray[Any]] = self._sessions[probe.role].run(probe.outputs, probe.feeds)
        return outputs

    def placement(self) -> dict[str, dict[str, dict[str, int]]]:
        """Return node counts by graph role, provider and operator."""
        return {role: placement(session) for role, session in self._sessions.items()}
