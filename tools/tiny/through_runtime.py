"""A small checkpoint as it is used: exported, and transcribing through the runtime."""

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
from tools.tiny.dataset import Item
from tools.tiny.evaluate import HeldOut, held_out, is_unheard

Figures = TypeVar("Figures")


@contextmanager
def exported(name: str, checkpoint: Path) -> Iterator[Path]:
    """The artifact in float32 of a checkpoint's folder, for as long as the context lasts."""
    known = CHECKPOINTS[name]
    with tempfile.TemporaryDirectory() as index:
        out = Path(index) / name
        with Report() as report:
            export_artifact(known, locate(known, checkpoint), out, report)
        yield out


def evaluated(
    measure: Callable[[Path, HeldOut, Callable[[Item], bool], int], Figures],
    name: str,
    checkpoint: Path,
    work: Path,
    threads: int,
    fresh: int = 0,
) -> Figures:
    """What ``measure`` finds, given the artifact, the held-out set, which voices are unheard, and the threads."""
    with exported(name, checkpoint) as artifact:
        return measure(artifact, held_out(work / "evaluation", fresh), is_unheard, threads)


def in_order(transcriber: Transcriber, requests: Sequence[Request]) -> list[Transcript]:
    """The transcripts, in the order of ``requests``."""
    outcomes = transcriber.transcribe_many(requests)
    return [outcome.result() for outcome in sorted(outcomes, key=lambda outcome: outcome.index)]


def words_of(transcript: Transcript) -> list[Word]:
    """The words of all segments."""
    return [word for segment in transcript.segments for word in segment.words or []]
