"""Export a small checkpoint and transcribe with the runtime, as users do."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from export.checkpoints import CHECKPOINTS, locate
from export.package import export_artifact
from quantize.progress import Report
from runtime import Request, Transcriber
from runtime.results import Transcript, Word
from tools.tiny.evaluate import HeldOut, held_out

Figures = TypeVar("Figures")


@contextmanager
def exported(name: str, checkpoint: Path) -> Iterator[Path]:
    """Yield the float32 artifact of a checkpoint's folder; it is deleted at the end."""
    known = CHECKPOINTS[name]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / name
        with Report() as report:
            export_artifact(known, locate(known, checkpoint), out, report)
        yield out


def evaluated(
    measure: Callable[[Path, HeldOut, int], Figures],
    name: str,
    checkpoint: Path,
    work: Path,
    threads: int,
    fresh: int = 0,
) -> Figures:
    """Return the result of ``measure`` for the exported artifact, a held-out set and the number of threads."""
    with exported(name, checkpoint) as artifact:
        return measure(artifact, held_out(work / "evaluation", fresh), threads)


def in_order(transcriber: Transcriber, requests: Sequence[Request]) -> list[Transcript]:
    """Return the transcripts in the order of ``requests``."""
    outcomes = transcriber.transcribe_many(requests)
    return [outcome.result() for outcome in sorted(outcomes, key=lambda outcome: outcome.index)]


def words_of(transcript: Transcript) -> list[Word]:
    """Return the words of all segments."""
    return [word for segment in transcript.segments for word in segment.words or []]
