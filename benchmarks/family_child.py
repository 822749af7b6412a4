"""Child process that runs one of our artifacts, so that its memory is measured alone.

``python -m benchmarks.family_child`` reads a job as one line of JSON. A ``cold`` job transcribes a clip once, answers
with its texts and ends. A ``measure`` job answers with the segmentation when it is ready, then transcribes the clip
once for each further line, and answers each with a :class:`Run`.
"""

from __future__ import annotations

import math
import sys
import time

import msgspec

import runtime.__main__  # noqa: F401  # part of a cold start of the command line
from runtime import Transcriber
from runtime.host.memory import peak_resident_bytes
from runtime.results import Transcript

STAGES = ("segment", "features", "encode", "prefill", "decode")


class Job(msgspec.Struct, frozen=True):
    """A job; ``tokens`` is the forced number for the whole clip, null where it cannot be forced."""

    ask: str
    model: str
    clip: str
    tokens: int | None
    language: str | None


class Run(msgspec.Struct, frozen=True):
    """One run: seconds in total and by stage, tokens, texts, and the peak resident memory so far."""

    total: float
    stages: dict[str, float]
    tokens: int
    segments: int
    texts: list[str]
    resident_bytes: int


def main() -> None:
    """Run the job on the first line of standard input."""
    job = msgspec.json.decode(sys.stdin.readline(), type=Job)
    transcriber = Transcriber.from_artifact(job.model)
    if job.ask == "cold":
        answer({"texts": [_transcribe(transcriber, job, job.tokens).text]})
        return
    # The number of segments is known only after a run: a short one, with one token a segment.
    segments = len(_transcribe(transcriber, job, 1 if job.tokens else None).segments)
    each = job.tokens and budget(job.tokens, segments)
    _transcribe(transcriber, job, each)
    answer({"segment_seconds": transcriber.engine.segment_seconds, "segments": segments})
    for _ in sys.stdin:
        began = time.perf_counter()
        transcript = _transcribe(transcriber, job, each)
        total = time.perf_counter() - began
        answer(
            Run(
                total,
                {stage: getattr(transcript.timings, stage) for stage in STAGES},
                transcript.tokens.generated,
                len(transcript.segments),
                [segment.text for segment in transcript.segments],
                peak_resident_bytes(),
            )
        )


def budget(tokens: int, segments: int) -> int:
    """Return the tokens for each segment, rounded up, so that all segments together have ``tokens``."""
    return math.ceil(tokens / max(1, segments))


def _transcribe(transcriber: Transcriber, job: Job, each: int | None) -> Transcript:
    return transcriber.transcribe(job.clip, job.language, max_new_tokens=each, ignore_stop=each is not None)


def answer(value: object) -> None:
    """Write a line of JSON to standard output."""
    sys.stdout.buffer.write(msgspec.json.encode(value) + b"\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
