"""One of our models in a process of its own, for its memory: ``python -m benchmarks.family_child``.

The first line of standard input is a job in JSON. Asked for ``cold``, it says the text of a clip and ends; asked for
``measure``, it says how the clip is cut when it is ready, and for every further line it transcribes the clip once and
says how that went.
"""

from __future__ import annotations

import math
import sys
import time

import msgspec

import runtime.__main__  # noqa: F401  # a command starts with it, so it belongs to a cold start
from runtime import Transcriber
from runtime.host.memory import peak_resident_bytes
from runtime.results import Transcript

STAGES = ("segment", "features", "encode", "prefill", "decode")


class Job(msgspec.Struct, frozen=True):
    """``tokens`` are forced for all of the clip; null where they come from the frames and cannot be forced."""

    ask: str
    model: str
    clip: str
    tokens: int | None
    language: str | None


class Run(msgspec.Struct, frozen=True):
    """How a run went: seconds in all and by stage, what was heard, and the peak of memory so far."""

    total: float
    stages: dict[str, float]
    tokens: int
    segments: int
    texts: list[str]
    resident_bytes: int


def main() -> None:
    """Do the job."""
    job = msgspec.json.decode(sys.stdin.readline(), type=Job)
    transcriber = Transcriber.from_artifact(job.model)
    if job.ask == "cold":
        say({"texts": [_transcribe(transcriber, job, job.tokens).text]})
        return
    # How the clip is cut is known only once it was: one token a segment tells it.
    segments = len(_transcribe(transcriber, job, 1 if job.tokens else None).segments)
    each = job.tokens and budget(job.tokens, segments)
    _transcribe(transcriber, job, each)
    say({"segment_seconds": transcriber.engine.segment_seconds, "segments": segments})
    for _ in sys.stdin:
        began = time.perf_counter()
        transcript = _transcribe(transcriber, job, each)
        total = time.perf_counter() - began
        say(
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
    """Tokens of each of so many segments, so that all of them together have ``tokens``."""
    return math.ceil(tokens / max(1, segments))


def _transcribe(transcriber: Transcriber, job: Job, each: int | None) -> Transcript:
    return transcriber.transcribe(job.clip, job.language, max_new_tokens=each, ignore_stop=each is not None)


def say(what: object) -> None:
    """A line of JSON on standard output."""
    sys.stdout.buffer.write(msgspec.json.encode(what) + b"\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
