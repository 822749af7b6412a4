"""One measurement in a process of its own, so that its peak of memory is its own: ``python -m runtime.bench.child``.

Reads a :data:`Job` as JSON from standard input and writes its result to standard output.
"""

from __future__ import annotations

import heapq
import importlib
import statistics
import sys
import time
from collections.abc import Sequence

import msgspec

from runtime.bench.limits import measure_rates, measure_work
from runtime.bench.results import Configuration, Spread, Tokens
from runtime.errors import AsrError
from runtime.host.memory import peak_resident_bytes
from runtime.ort.providers import AskedProviders
from runtime.results import Transcript
from runtime.transcriber import Request, Transcriber

_BAD_INPUT = 2
# Timings that are no stage of a run: before it, or by the clock.
_CLOCK = ("load", "first_token", "total")


class Setup(msgspec.Struct, frozen=True):
    """How the model is opened."""

    model: str
    providers: AskedProviders = AskedProviders()
    threads: int | None = None
    segment_seconds: float | None = None


class MeasureJob(msgspec.Struct, frozen=True, tag="measure"):
    """Measure one configuration; ``clips`` null: as many as give each row a segment.

    ``new_tokens`` are forced for each clip, shared by its segments and rounded up to the same number for each.
    """

    setup: Setup
    clip: str
    seconds: float
    batch: int
    runs: int
    new_tokens: int | None = None
    clips: int | None = None


class ColdJob(msgspec.Struct, frozen=True, tag="cold"):
    """Start, transcribe a clip, print its text."""

    setup: Setup
    clip: str
    new_tokens: int | None = None


class WorkJob(msgspec.Struct, frozen=True, tag="work"):
    """Count what the model asks of a machine, over a clip of one segment."""

    model: str
    clip: str


class RatesJob(msgspec.Struct, frozen=True, tag="rates"):
    """Measure what the machine can do."""

    threads: int


Job = MeasureJob | ColdJob | WorkJob | RatesJob


def main() -> int:
    """Do the job on standard input; bad input is one sentence on standard error and exit code 2."""
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=Job)
    try:
        result = _do(job)
    except AsrError as error:
        sys.stderr.write(f"{error}\n")
        return _BAD_INPUT
    sys.stdout.buffer.write(result + b"\n")
    sys.stdout.buffer.flush()
    return 0


def _do(job: Job) -> bytes:
    match job:
        case MeasureJob():
            return msgspec.json.encode(measure(job))
        case ColdJob():
            importlib.import_module("runtime.__main__")  # a command starts with it, so it belongs to a cold start
            (transcript,) = _transcribe(_open(job.setup), job.clip, 1, job.new_tokens)
            return transcript.text.encode()
        case WorkJob():
            return msgspec.json.encode(measure_work(job.model, job.clip))
        case RatesJob():
            return msgspec.json.encode(measure_rates(job.threads))


def measure(job: MeasureJob) -> Configuration:
    """Open the model, warm up, transcribe ``runs`` times."""
    transcriber = _open(job.setup, job.batch)
    # How the clip is cut is known only once it was: one token a segment tells it, where the number is forced.
    (first,) = _transcribe(transcriber, job.clip, 1, 1 if job.new_tokens else None)
    segments = max(1, len(first.segments))
    budget = -(-job.new_tokens // segments) if job.new_tokens else None
    clips = job.clips or -(-job.batch // segments)
    if budget or clips > 1:  # otherwise that was the warm-up
        _transcribe(transcriber, job.clip, clips, budget)
    runs = [_run(transcriber, job, clips, budget) for _ in range(job.runs)]
    names = list(runs[0].stages)
    audio_seconds = job.seconds * clips
    totals = [run.total for run in runs]
    stepped = [run for run in runs if run.tokens.steps]
    return Configuration(
        seconds=job.seconds,
        batch=job.batch,
        clips=clips,
        segments=segments,
        runs=job.runs,
        tokens=runs[0].tokens,
        total=Spread.of(totals),
        stages={name: Spread.of([run.stages[name] for run in runs]) for name in names},
        per_token=_spread([run.stages["decode"] / run.tokens.stepped for run in stepped]),
        step=_spread([run.stages["decode"] / run.tokens.steps for run in stepped]),
        first_token=_spread([run.first_token for run in runs if run.first_token is not None]),
        rtf=Spread.of([total / audio_seconds for total in totals]),
        audio_seconds_per_second=Spread.of([audio_seconds / total for total in totals]),
        load=transcriber.load_seconds,
        peak_bytes=peak_resident_bytes(),
    )


class _Run(msgspec.Struct, frozen=True):
    total: float
    stages: dict[str, float]
    first_token: float | None
    tokens: Tokens


def _run(transcriber: Transcriber, job: MeasureJob, clips: int, budget: int | None) -> _Run:
    began = time.perf_counter()
    transcripts = _transcribe(transcriber, job.clip, clips, budget)
    total = time.perf_counter() - began
    timings = [msgspec.structs.asdict(transcript.timings) for transcript in transcripts]
    stages = {name: sum(each[name] for each in timings) for name in timings[0] if name not in _CLOCK}
    told = [each["first_token"] for each in timings if each["first_token"]]
    stages["other"] = max(0.0, total - sum(stages.values()))
    # Each segment's tokens, and the stop id, which took a step too and is not counted among them.
    counts = [
        len(segment.tokens) + (segment.finish_reason == "stop")
        for transcript in transcripts
        for segment in transcript.segments
    ]
    # A text from the encoder's frames has no prompt and no stop id; a step of its loop may give no token at all.
    if "decoder" not in transcriber.artifact.manifest.graphs:
        counts = []
        del stages["prefill"]
    return _Run(
        total=total,
        stages=stages,
        first_token=statistics.median(told) if told else None,
        tokens=Tokens(
            audio=sum(transcript.tokens.audio for transcript in transcripts),
            prompt=sum(transcript.tokens.prompt for transcript in transcripts),
            generated=sum(transcript.tokens.generated for transcript in transcripts),
            stepped=sum(max(0, count - 1) for count in counts),
            steps=count_steps(counts, job.batch),
        ),
    )


def count_steps(tokens: Sequence[int], rows: int) -> int:
    """Steps in which ``rows`` rows decode texts of so many tokens, in this order; a row that ends takes the next.

    The first token of a text comes from its prefill and so takes no step.
    """
    ends = [0] * rows
    for count in tokens:
        heapq.heapreplace(ends, ends[0] + max(0, count - 1))
    return max(ends)


def _spread(values: Sequence[float]) -> Spread | None:
    return Spread.of(values) if values else None


def _open(setup: Setup, batch: int = 1) -> Transcriber:
    return Transcriber.from_artifact(
        setup.model,
        **msgspec.structs.asdict(setup.providers),
        threads=setup.threads,
        max_batch=batch,
        segment_seconds=setup.segment_seconds,
    )


def _transcribe(transcriber: Transcriber, clip: str, count: int, budget: int | None) -> list[Transcript]:
    """``count`` requests for the same clip, together; ``budget`` tokens are forced for each segment."""
    requests = [Request(clip)] * count
    outcomes = list(transcriber.transcribe_many(requests, max_new_tokens=budget, ignore_stop=budget is not None))
    return [outcome.result() for outcome in sorted(outcomes, key=lambda outcome: outcome.index)]


if __name__ == "__main__":
    sys.exit(main())
