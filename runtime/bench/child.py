"""Take one measurement in a process of its own: ``python -m runtime.bench.child``.

Reads a :data:`Job` as JSON from standard input and writes its result as JSON to standard output. Each job has a
process of its own so that the peak memory it reports is that of this job alone.
"""

from __future__ import annotations

import heapq
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import msgspec

from runtime.bench.limits import measure_rates, measure_work
from runtime.bench.results import Configuration, Spread, Tokens
from runtime.errors import AsrError
from runtime.host.memory import peak_resident_bytes
from runtime.ort.providers import AskedProviders
from runtime.results import Transcript
from runtime.transcriber import Request, Transcriber

_BAD_INPUT = 2
# Fields of Timings that are not stages of a run: `load` is before it, the other two are clock times within it.
_NOT_STAGES = ("load", "first_token", "total")


class Setup(msgspec.Struct, frozen=True):
    """Options with which the model is opened, as in :meth:`runtime.Transcriber.from_artifact`."""

    model: str
    providers: AskedProviders = AskedProviders()
    threads: int | None = None
    segment_seconds: float | None = None


class MeasureJob(msgspec.Struct, frozen=True, tag="measure"):
    """Measure one configuration.

    Attributes:
        setup: how to open the model.
        clip: path of the audio file.
        seconds: length of the clip.
        batch: rows of the decoder's batch.
        runs: counted runs, after a warm-up.
        new_tokens: tokens to force for each clip, divided among its segments and rounded up; None forces none.
        clips: clips to transcribe together; None: as many as give each row a segment.
    """

    setup: Setup
    clip: str
    seconds: float
    batch: int
    runs: int
    new_tokens: int | None = None
    clips: int | None = None


class ColdJob(msgspec.Struct, frozen=True, tag="cold"):
    """Open the model, transcribe a clip and write its text. Run by :mod:`runtime.cli.cold_start`."""

    setup: Setup
    clip: str
    new_tokens: int | None = None


class WorkJob(msgspec.Struct, frozen=True, tag="work"):
    """Count the operations and bytes that the model needs for a clip of one segment."""

    model: str
    clip: str


class RatesJob(msgspec.Struct, frozen=True, tag="rates"):
    """Measure the machine's memory bandwidth and its rates of matrix products."""

    threads: int


Job = MeasureJob | WorkJob | RatesJob


def main() -> int:
    """Run the job on standard input.

    Returns:
        0, or 2 after one sentence on standard error.
    """
    return run_on_stdin(_run_job)


def run_on_stdin(run: Callable[[bytes], bytes]) -> int:
    """Pass standard input to ``run`` and write its result, with a line feed, to standard output.

    Returns:
        0, or 2 if ``run`` raises an :class:`AsrError`, whose message goes to standard error.
    """
    data = sys.stdin.buffer.read()
    try:
        result = run(data)
    except AsrError as error:
        sys.stderr.write(f"{error}\n")
        return _BAD_INPUT
    sys.stdout.buffer.write(result + b"\n")
    sys.stdout.buffer.flush()
    return 0


def _run_job(data: bytes) -> bytes:
    job: Job = msgspec.json.decode(data, type=Job)
    match job:
        case MeasureJob():
            return msgspec.json.encode(measure(job))
        case WorkJob():
            return msgspec.json.encode(measure_work(job.model, job.clip))
        case RatesJob():
            return msgspec.json.encode(measure_rates(job.threads))


def measure(job: MeasureJob) -> Configuration:
    """Open the model, warm up, and transcribe ``job.runs`` times."""
    transcriber = open_transcriber(job.setup, job.batch)
    # The number of segments is known only after a run. Where tokens are forced, one token a segment is enough for it.
    (first,) = transcribe_clip(transcriber, job.clip, 1, 1 if job.new_tokens else None)
    segments = max(1, len(first.segments))
    max_tokens = -(-job.new_tokens // segments) if job.new_tokens else None
    clips = job.clips or -(-job.batch // segments)
    if max_tokens or clips > 1:  # otherwise the run above was the warm-up
        transcribe_clip(transcriber, job.clip, clips, max_tokens)
    runs = [_measure_run(transcriber, job, clips, max_tokens) for _ in range(job.runs)]
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
    """Times of one run in seconds, and its token counts."""

    total: float
    stages: dict[str, float]
    first_token: float | None
    tokens: Tokens


def _measure_run(transcriber: Transcriber, job: MeasureJob, clips: int, max_tokens: int | None) -> _Run:
    began = time.perf_counter()
    transcripts = transcribe_clip(transcriber, job.clip, clips, max_tokens)
    total = time.perf_counter() - began
    timings = [msgspec.structs.asdict(transcript.timings) for transcript in transcripts]
    stages = {name: sum(times[name] for times in timings) for name in timings[0] if name not in _NOT_STAGES}
    first_tokens = [times["first_token"] for times in timings if times["first_token"]]
    stages["other"] = max(0.0, total - sum(stages.values()))
    # Tokens of each segment plus its stop id, which takes a step too but is not in `tokens`.
    counts = [
        len(segment.tokens) + (segment.finish_reason == "stop")
        for transcript in transcripts
        for segment in transcript.segments
    ]
    # CTC and transducer models have no prompt and no stop id, and a step of their loop may give no token at all.
    if not transcriber.capabilities.forcing:  # the text comes from encoder frames
        counts = []
        del stages["prefill"]
    return _Run(
        total=total,
        stages=stages,
        first_token=statistics.median(first_tokens) if first_tokens else None,
        tokens=Tokens(
            audio=sum(transcript.tokens.audio for transcript in transcripts),
            prompt=sum(transcript.tokens.prompt for transcript in transcripts),
            generated=sum(transcript.tokens.generated for transcript in transcripts),
            stepped=sum(max(0, count - 1) for count in counts),
            steps=count_steps(counts, job.batch),
        ),
    )


def count_steps(tokens: Sequence[int], rows: int) -> int:
    """Count the decoder steps for texts of the given token counts, decoded in this order.

    A row that ends takes the next text. The first token of a text comes from its prefill and takes no step.

    Args:
        tokens: tokens of each text, its stop id among them.
        rows: rows of the decoder's batch.

    Returns:
        Steps until the last row ends.
    """
    ends = [0] * rows
    for count in tokens:
        heapq.heapreplace(ends, ends[0] + max(0, count - 1))
    return max(ends)


def _spread(values: Sequence[float]) -> Spread | None:
    return Spread.of(values) if values else None


def open_transcriber(setup: Setup, batch: int = 1) -> Transcriber:
    """Open the model of ``setup`` with ``batch`` rows."""
    return Transcriber.from_artifact(
        setup.model,
        **msgspec.structs.asdict(setup.providers),
        threads=setup.threads,
        max_batch=batch,
        segment_seconds=setup.segment_seconds,
    )


def transcribe_clip(transcriber: Transcriber, clip: str, count: int, max_tokens: int | None) -> list[Transcript]:
    """Transcribe the same clip ``count`` times in one call.

    Args:
        transcriber: the model.
        clip: path of the audio file.
        count: number of requests.
        max_tokens: tokens to force for each segment; None ends texts where the model does.

    Returns:
        ``count`` transcripts.

    Raises:
        AsrError: the clip cannot be read or transcribed.
    """
    requests = [Request(clip)] * count
    outcomes = list(
        transcriber.transcribe_many(requests, max_new_tokens=max_tokens, ignore_stop=max_tokens is not None)
    )
    return [outcome.result() for outcome in sorted(outcomes, key=lambda outcome: outcome.index)]


if __name__ == "__main__":
    sys.exit(main())
