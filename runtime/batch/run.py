"""Run the jobs of a batch through an engine and store their results in an output."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing

import msgspec

from runtime.batch.inputs import Job
from runtime.batch.journal import BatchSettings
from runtime.batch.output import Output, UnusableNameError, settings_of
from runtime.batch.segments import SegmentLog
from runtime.engines.base import Span
from runtime.errors import OptionError
from runtime.results import Transcript
from runtime.transcriber import Request, Transcriber


class Result(msgspec.Struct, frozen=True):
    """Result of one job. One of ``transcript`` and ``error`` is set; ``index`` is the job's position."""

    index: int
    transcript: Transcript | None
    error: str | None = None


OnProgress = Callable[[float], object]
"""Called with the seconds of audio that were transcribed since the last call."""
Engine = Callable[[Sequence[Job], OnProgress], Generator[Result, None, None]]
"""Yields the results of jobs as they finish, in any order."""


class Summary(msgspec.Struct):
    """Progress of a batch.

    Attributes:
        files: files in all.
        skipped: files that an earlier run finished.
        done: files that this run transcribed.
        audio_seconds: audio that this run decoded, including the finished segments of unfinished files.
        failures: jobs that failed, with the error messages.
    """

    files: int
    skipped: int
    done: int = 0
    audio_seconds: float = 0.0
    failures: list[tuple[Job, str]] = []

    @property
    def finished(self) -> int:
        """Number of files with a transcript or an error, from this run or an earlier one."""
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
    """Run all jobs and store each result as soon as it is finished.

    Args:
        jobs: jobs to run.
        engine: yields the results.
        output: stores them.
        summary: updated after each result, so that it is right after an interrupt too.
        on_change: called when the summary has changed.
        on_transcript: called with each job and transcript that was stored.

    Raises:
        AsrError: the engine or the output failed as a whole. The error of a single job is stored and stops nothing.
    """

    def on_progress(seconds: float) -> None:
        summary.audio_seconds += seconds
        on_change()

    with closing(engine(jobs, on_progress)) as results:
        for result in results:
            job, message = jobs[result.index], result.error
            if result.transcript is not None:
                try:
                    output.add(job, result.transcript)
                except UnusableNameError as error:
                    message = str(error)
                else:
                    summary.done += 1
                    on_transcript(job, result.transcript)
                    on_change()
                    continue
            message = message or f"{job.audio}: failed"
            output.fail(job, message)
            summary.failures.append((job, message))
            on_change()


def requests(
    jobs: Sequence[Job], language: str | None, context: str, known: Callable[[Job], Sequence[Span]] = lambda _: ()
) -> Iterator[Request]:
    """Turn jobs into requests.

    Args:
        jobs: the jobs.
        language: language of jobs that set none; None: detected.
        context: context of jobs that set none.
        known: returns the segments of a job that are already transcribed.
    """
    for job in jobs:
        yield Request(
            job.audio,
            language if job.language is None else job.language,
            context if job.context is None else job.context,
            channel=job.channel,
            track=job.track,
            known=known(job),
        )


class RequestedOption(msgspec.Struct, frozen=True):
    """A language or a context of a batch; ``where`` is the first input that sets it, "" for the whole batch."""

    where: str
    language: str | None = None
    context: str = ""


def check_options(transcriber: Transcriber, options: Sequence[RequestedOption]) -> None:
    """Check, before the first file, that the model supports ``options``.

    Raises:
        OptionError: it does not; the message has the input that sets the option.
    """
    for option in options:
        try:
            transcriber.check(Request("", option.language, option.context))
        except OptionError as error:
            raise OptionError(f"{option.where}: {error}" if option.where else str(error)) from None


def requested_options(jobs: Sequence[Job], language: str | None, context: str) -> list[RequestedOption]:
    """List each language of a batch once, and one context if there is any.

    Args:
        jobs: the jobs.
        language: language of the whole batch, or None.
        context: context of the whole batch, or "".
    """
    languages = {job.language: job.where for job in reversed(jobs) if job.language is not None}
    if language is not None:
        languages[language] = ""
    options = [RequestedOption(where, name) for name, where in languages.items()]
    if context:
        return [*options, RequestedOption("", context=context)]
    first = next((job for job in jobs if job.context), None)
    return [*options, RequestedOption(first.where, context=first.context or "")] if first else options


def local_engine(transcriber: Transcriber, settings: BatchSettings, log: SegmentLog) -> Engine:
    """Return an engine that runs in this process.

    Args:
        transcriber: the model.
        settings: settings of the batch.
        log: stores the finished segments of unfinished files; segments of an earlier run are not decoded again.
    """

    def run(jobs: Sequence[Job], on_progress: OnProgress) -> Generator[Result, None, None]:
        settings_by_index = [settings_of(job, settings) for job in jobs]
        indices = {id(job): index for index, job in enumerate(jobs)}

        def known(job: Job) -> Sequence[Span]:
            return log.known(job, settings_by_index[indices[id(job)]])

        def store(index: int, span: Span) -> None:
            log.add(jobs[index], settings_by_index[index], span)

        for outcome in transcriber.transcribe_many(
            requests(jobs, settings.language, settings.context, known), on_progress=on_progress, on_segment=store
        ):
            yield Result(outcome.index, outcome.transcript, str(outcome.error) if outcome.error else None)

    return run
