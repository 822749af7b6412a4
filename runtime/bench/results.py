"""Results of a benchmark, as they are written to JSON. The schema is versioned: fields are added, never changed."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Literal

import msgspec

from runtime.bench.machine import Machine

SCHEMA_VERSION = 1


class Spread(msgspec.Struct, frozen=True):
    """Median, smallest and largest value of several runs."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the spread of ``values``, at least one."""
        return cls(statistics.median(values), min(values), max(values))


class Tokens(msgspec.Struct, frozen=True):
    """Token counts of all clips of a run. CTC and transducer models have 0 in ``prompt``, ``stepped`` and ``steps``.

    Attributes:
        audio: rows of audio, the encoder's outputs.
        prompt: prompt positions.
        generated: generated tokens, without stop ids.
        stepped: tokens that came from steps, with stop ids; the first token of a text comes from its prefill instead.
        steps: steps of the decoder, each of which gives every active row a token.
    """

    audio: int
    prompt: int
    generated: int
    stepped: int
    steps: int


class Shares(msgspec.Struct, frozen=True):
    """Least possible time over measured time of each stage; 1 is the machine's limit.

    None: the model has no such stage, or it was not measured.
    """

    encode: float | None
    prefill: float | None
    step: float | None


class Configuration(msgspec.Struct, frozen=True, kw_only=True):
    """Measurements of a clip length and a batch size, taken in a process of their own. Times are in seconds.

    Attributes:
        seconds: length of a clip.
        batch: rows of the decoder's batch.
        clips: clips that were transcribed together.
        segments: segments of a clip.
        runs: counted runs.
        tokens: token counts of a run.
        total: time of a run.
        stages: time of each stage, summed over the clips; ``other`` is the rest of ``total``. CTC and transducer
            models have no stage ``prefill``.
        per_token: time of the steps over the tokens that they gave; None for CTC and transducer models.
        step: time of the steps over their number; None for CTC and transducer models.
        first_token: time until a clip's first token, the median over the clips; None if unknown.
        rtf: real-time factor, seconds of work for each second of audio.
        audio_seconds_per_second: seconds of audio for each second of work.
        load: time to open the model.
        peak_bytes: peak resident memory of the process.
        limits: shares of the machine's limits; None if these were not measured.
    """

    seconds: float
    batch: int
    clips: int
    segments: int
    runs: int
    tokens: Tokens
    total: Spread
    stages: dict[str, Spread]
    per_token: Spread | None
    step: Spread | None
    first_token: Spread | None
    rtf: Spread
    audio_seconds_per_second: Spread
    load: float
    peak_bytes: int
    limits: Shares | None = None


class Failure(msgspec.Struct, frozen=True):
    """A configuration that could not be measured, and the reason."""

    seconds: float
    batch: int
    reason: str


class ColdStart(msgspec.Struct, frozen=True):
    """Time from before a process is started until the text of a clip has been read.

    Attributes:
        total: the time in seconds.
        clip_seconds: length of the clip.
        new_tokens: tokens that were forced; None if none were.
        runs: counted starts.
    """

    total: Spread
    clip_seconds: float
    new_tokens: int | None
    runs: int


class Rates(msgspec.Struct, frozen=True):
    """Rates of a machine: bytes read from memory a second, operations a second of float32 and of 8-bit products."""

    memory_bytes: float
    float_operations: float
    integer_operations: float


class Work(msgspec.Struct, frozen=True):
    """Work of a model. Operations are multiplications and additions of matrix products and convolutions.

    The decoder's fields are None for CTC and transducer models.

    Attributes:
        integer_products: whether the model is quantized.
        encoder_operations: operations for a row of audio.
        decoder_operations: operations for a prompt position.
        weight_bytes: weights that a step reads once.
        cache_bytes: keys and values that a step reads for each position of each row.
    """

    integer_products: bool
    encoder_operations: float
    decoder_operations: float | None = None
    weight_bytes: int | None = None
    cache_bytes: int | None = None


class Limits(msgspec.Struct, frozen=True):
    """Highest rates that were measured in a benchmark, and the model's work."""

    rates: Rates
    work: Work


class Model(msgspec.Struct, frozen=True):
    """Model of a benchmark: ``recipe`` is ``float32`` if it is not quantized, ``bytes`` the size of all its files."""

    name: str
    family: str
    recipe: str
    bytes: int


class Settings(msgspec.Struct, frozen=True):
    """Options of a benchmark; ``new_tokens`` is written as on the command line."""

    provider: str
    threads: int
    runs: int
    new_tokens: str | None
    segment_seconds: float | None
    audio: list[str]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """A whole benchmark."""

    kind: Literal["benchmark"] = "benchmark"
    schema_version: int = SCHEMA_VERSION
    machine: Machine
    model: Model
    settings: Settings
    cold_start: ColdStart
    load: Spread | None
    limits: Limits | None
    configurations: list[Configuration]
    failures: list[Failure]
