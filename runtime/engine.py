"""What a family gives the transcriber: an engine that turns one segment of audio into text."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from runtime.decoding.autoregressive import FinishReason
from runtime.providers import Providers, ProviderSpec

Floats = npt.NDArray[np.float32]


class Capabilities(msgspec.Struct, frozen=True):
    """What a family can do. An option that it cannot do raises; it is never ignored."""

    context: bool
    language: bool
    language_detection: bool


class EngineOptions(msgspec.Struct, frozen=True):
    """How sessions are made: execution providers by a graph's role, the CPU for a role that is not named."""

    providers: dict[str, Providers] = {}
    threads: int | None = None

    def providers_for(self, role: str) -> Providers:
        """Providers of the graph with ``role``, in order of priority."""
        return self.providers.get(role, (ProviderSpec(),))


class SegmentOptions(msgspec.Struct, frozen=True):
    """What is asked of one segment: a language by its English name (None detects it), a context, a forced length."""

    language: str | None = None
    context: str = ""
    max_new_tokens: int | None = None
    ignore_stop: bool = False


class SegmentResult(msgspec.Struct, frozen=True):
    """One segment's text, and the numbers that go with it."""

    text: str
    language: str | None
    tokens: list[int]
    confidence: float
    finish_reason: FinishReason
    audio_tokens: int
    prompt_tokens: int


class Probe(msgspec.Struct, frozen=True):
    """What a graph is fed for some audio and text, and which of its outputs matter.

    ``choice`` names the output whose largest entry along the last axis is a decision (logits), if there is one.
    """

    role: str
    feeds: dict[str, npt.NDArray[Any]]
    outputs: list[str]
    choice: str | None = None


class Timings(msgspec.Struct):
    """Seconds spent in each stage, added up over segments."""

    load: float = 0.0
    features: float = 0.0
    encode: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Add the block's duration to ``stage``."""
        began = time.perf_counter()
        try:
            yield
        finally:
            setattr(self, stage, getattr(self, stage) + time.perf_counter() - began)


class Engine(Protocol):
    """A loaded model of some family."""

    capabilities: Capabilities
    sample_rate: int
    segment_seconds: float

    def transcribe(self, samples: Floats, options: SegmentOptions, timings: Timings) -> SegmentResult:
        """Text of mono float32 ``samples`` at ``sample_rate``, at most ``segment_seconds`` long."""

    def transcribe_many(
        self, segments: Sequence[Floats], options: SegmentOptions, timings: Timings, rows: int
    ) -> Iterator[tuple[int, SegmentResult]]:
        """The same of many segments, ``rows`` of them decoded together: (place in ``segments``, result) as they end."""

    def probes(self, samples: Floats, tokens: list[int], options: SegmentOptions) -> list[Probe]:
        """The inputs of every graph when ``samples`` are transcribed as ``tokens``, whatever the model would say.

        Quantization calibrates with them and compares graphs on them.
        """

    def run(self, probe: Probe) -> list[npt.NDArray[Any]]:
        """The outputs of a probe, of this engine's own session and so of its providers."""

    def placement(self) -> dict[str, dict[str, dict[str, int]]]:
        """Nodes of every graph by role, provider and operator: see :func:`runtime.session.placement`."""
