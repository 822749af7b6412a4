"""The loop of a batch: jobs through an engine into an output."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing

import msgspec

from runtime.batch.inputs import Job
from runtime.batch.journal import MadeBy
from runtime.batch.output import Output, made_for
from runtime.batch.segments import SegmentLog
from runtime.engines.base import Span
from runtime.errors import OptionError
from runtime.results import Transcript
from runtime.transcriber import Request, Transcriber


class Result(msgspec.Struct, frozen=True):
    """What became of the job at ``place``: a transcript, or why there is none."""

    index: int
    transcript: Transcript | None
    error: str | None = None


Seconds = Callable[[float], object]
Engine = Callable[[Sequence[Job], Seconds], Generator[Result, None, None]]
"""Gives the results of jobs as they finish, in any order; calls back with seconds of audio that were transcribed."""


class Summary(msgspec.Struct):
    """How far a batch is. ``audio_seconds`` counts what is decoded, and what is being decoded as segments end."""

    files: int
    skipped: int
    done: int = 0
    audio_seconds: float = 0.0
    failures: list[tuple[Job, str]] = []

    @property
    def finished(self) -> int:
        """Files with a result, of this run and earlier ones, and files that failed."""
        return self.skipped + self.done + len(self.failures)


def transcribe_jobs(
    jobs: Sequence[Job],
    engine: Engine,
    output: Output,
    summary: Summary,
    *,
    on_change: Callable[[], object],
    on_transcript: Callable[[Job, Transcript], object],
) -> None:
    """Run every job and keep its result as soon as it is there.

    Args:
        jobs: what is to be done.
        engine: gives the results.
        output: keeps them.
        summary: is brought up to date on the way, so that it holds after an interrupt too.
        on_change: called when the summary changed.
        on_transcript: called with every transcript that was kept.

    Raises:
        AsrError: from the engine or the output as a whole; a job's own error is kept and stops nothing.
    """

    def heard(seconds: float) -> None:
        summary.audio_seconds += seconds
        on_change()

    with closing(engine(jobs, heard)) as results:
        for result in results:
            job = jobs[result.index]
            if result.transcript is None:
                message = result.error or f"{job.audio}: failed"
                output.fail(job, message)
                summary.failures.append((job, message))
            else:
                output.add(job, result.transcript)
                summary.done += 1
                on_transcript(job, result.transcript)
            on_change()


def requests(
    jobs: Sequence[Job], language: str | None, context: str, known: Callable[[Job], Sequence[Span]] = lambda _: ()
) -> Iterator[Request]:
    """Jobs as the transcriber takes them; what a job does not say is that of the whole batch."""
    for job in jobs:
        yield Request(
            job.audio,
            language if job.language is None else job.language,
            context if job.context is None else job.context,
            channel=job.channel,
            known=known(job),
        )


class Asked(msgspec.Struct, frozen=True):
    """An option that a batch asks for, and the input that did so first; "" is the whole batch."""

    where: str
    language: str | None = None
    context: str = ""


def check_asked(transcriber: Transcriber, asked: Sequence[Asked]) -> None:
    """Find out before the work that the model can do what is asked for.

    Raises:
        OptionError: it cannot; the message says where that was asked for.
    """
    for each in asked:
        try:
            transcriber.check(Request("", each.language, each.context))
        except OptionError as error:
            raise OptionError(f"{each.where}: {error}" if each.where else str(error)) from None


def options_asked(jobs: Sequence[Job], language: str | None, context: str) -> list[Asked]:
    """Every language once, and one context of those there are; ``language`` and ``context`` are the whole batch's."""
    languages = {job.language: job.where for job in reversed(jobs) if job.language is not None}
    if language is not None:
        languages[language] = ""
    asked = [Asked(where, name) for name, where in languages.items()]
    if context:
        return [*asked, Asked("", context=context)]
    first = next((job for job in jobs if job.context), None)
    return [*asked, Asked(first.where, context=first.context or "")] if first else asked


def local_engine(transcriber: Transcriber, made_by: MadeBy, log: SegmentLog) -> Engine:
    """An engine in this process. ``log`` keeps the segments of files that are not finished, and has earlier ones."""

    def run(jobs: Sequence[Job], heard: Seconds) -> Generator[Result, None, None]:
        made = [made_for(job, made_by) for job in jobs]
        indices = {id(job): index for index, job in enumerate(jobs)}
        asked = requests(jobs, made_by.language, made_by.context, lambda job: log.known(job, made[indices[id(job)]]))
        for outcome in transcriber.transcribe_many(
            asked, on_progress=heard, on_segment=lambda index, span: log.add(jobs[index], made[index], span)
        ):
            yield Result(outcome.index, outcome.transcript, str(outcome.error) if outcome.error else None)

    return run
