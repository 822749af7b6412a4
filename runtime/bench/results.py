"""What a benchmark finds, as it is written to JSON. The schema is versioned: fields are added, never changed."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Literal

import msgspec

from runtime.bench.machine import Machine

SCHEMA_VERSION = 1


class Spread(msgspec.Struct, frozen=True):
    """Median, smallest and largest of several runs."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of at least one value."""
        return cls(statistics.median(values), min(values), max(values))


class Tokens(msgspec.Struct, frozen=True):
    """Of all clips of a run: rows of audio, prompt positions, generated tokens without stop ids, steps of the decoder.

    A step gives each of the rows in flight a token, ``stepped`` in all, stop ids among them; the first token of a
    text comes from its prefill. A model whose text comes from the encoder's frames has no prompt and no such steps:
    0 of them.
    """

    audio: int
    prompt: int
    generated: int
    stepped: int
    steps: int


class Shares(msgspec.Struct, frozen=True):
    """How near a stage is to the machine's limit: least possible time over measured time, 1 is the limit itself.

    Null: there is no such stage, or nothing was measured of it.
    """

    encode: float | None
    prefill: float | None
    step: float | None


class Configuration(msgspec.Struct, frozen=True, kw_only=True):
    """A clip's length and a batch size, measured in a process of their own. Times are seconds.

    ``clips`` clips of ``seconds`` were transcribed together, each cut into ``segments``, at most ``batch`` of all
    these decoded at a time. ``stages`` are sums over the clips, ``other`` what of ``total`` is none of them.
    ``per_token`` is the time of the steps over the tokens that they gave, ``step`` over the steps; both null, and no
    stage ``prefill``, for a model whose text comes from the encoder's frames. ``first_token`` is
    the median over the clips of the time until the clip's first token, null where it is not known. ``load`` is how
    long opening the model took, ``peak_bytes`` the process's peak resident memory.
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
    """A configuration that could not be measured, and why."""

    seconds: float
    batch: int
    reason: str


class ColdStart(msgspec.Struct, frozen=True):
    """From before a process is started until its text of a clip has been read; ``new_tokens`` null: not forced."""

    total: Spread
    clip_seconds: float
    new_tokens: int | None
    runs: int


class Rates(msgspec.Struct, frozen=True):
    """What a machine can do in a second: bytes read from memory, operations of float32 and of 8-bit products."""

    memory_bytes: float
    float_operations: float
    integer_operations: float


class Work(msgspec.Struct, frozen=True):
    """What a model asks of a machine.

    Operations are multiplications and additions of matrix products: ``encoder_operations`` for a row of audio,
    ``decoder_operations`` for a prompt position. A step reads ``weight_bytes`` once, and ``cache_bytes`` for every
    position of every row. ``integer_products``: weights or activations are quantized. What is the decoder's is null
    for a model without one: its text comes from the encoder's frames.
    """

    integer_products: bool
    encoder_operations: float
    decoder_operations: float | None = None
    weight_bytes: int | None = None
    cache_bytes: int | None = None


class Limits(msgspec.Struct, frozen=True):
    """The best rates that were seen in the course of a benchmark, and the model's work."""

    rates: Rates
    work: Work


class Model(msgspec.Struct, frozen=True):
    """What was measured: ``recipe`` is ``float32`` for a model that is not quantized, ``bytes`` all of its files."""

    name: str
    family: str
    recipe: str
    bytes: int


class Settings(msgspec.Struct, frozen=True):
    """What was asked for; ``new_tokens`` as on the command line."""

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
