"""The command ``batch``: transcribe many audio files into one file of JSON lines or into a folder."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from runtime.batch import (
    BatchSettings,
    Engine,
    Job,
    Output,
    Summary,
    check_options,
    find_jobs,
    local_engine,
    open_output,
    requested_options,
    transcribe_jobs,
)
from runtime.batch.ray_engine import WorkerOptions, ray_engine
from runtime.batch.segments import SegmentLog
from runtime.cli.common import (
    BAD_INPUT,
    INTERRUPTED,
    BatchOption,
    ContextOption,
    DecoderProviderOption,
    EncoderProviderOption,
    LanguageOption,
    MemoryOption,
    ModelOption,
    ProviderOption,
    SegmentOption,
    ThreadsOption,
    TrackOption,
    TranscriptFormat,
    VadOption,
    guarded,
    parse_bytes,
    warn,
)
from runtime.engines.base import DEFAULT_BATCH
from runtime.engines.batch_plan import describe_plan
from runtime.engines.capabilities import find_in_manifest
from runtime.errors import OptionError
from runtime.model.artifact import Artifact, open_artifact
from runtime.model.bundled import default_model
from runtime.model.manifest import MANIFEST
from runtime.ort.providers import AskedProviders
from runtime.transcriber import Transcriber

# Failures that are listed at the end; all of them are in the output.
_LISTED = 20


class EngineName(StrEnum):
    """Where jobs run."""

    local = "local"
    ray = "ray"


def batch(
    inputs: Annotated[
        list[str],
        typer.Argument(
            help="Audio file, folder (searched with its subfolders), quoted pattern, or manifest: a .jsonl file with "
            "an object in each line, with audio and optionally id, language, context, channel, track.",
            metavar="INPUT...",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            help="Output: a file NAME.jsonl with a line for each audio file, or a folder with a file for each."
        ),
    ],
    model: ModelOption = None,
    format: Annotated[
        TranscriptFormat | None, typer.Option(help="Format of the files in an output folder. [default: json]")
    ] = None,
    language: LanguageOption = "auto",
    context: ContextOption = "",
    track: TrackOption = None,
    provider: ProviderOption = None,
    encoder_provider: EncoderProviderOption = None,
    decoder_provider: DecoderProviderOption = None,
    threads: ThreadsOption = None,
    max_batch: BatchOption = DEFAULT_BATCH,
    memory: MemoryOption = None,
    segment_seconds: SegmentOption = None,
    vad: VadOption = True,
    restart: Annotated[
        bool, typer.Option("--restart", help="Delete the results of an earlier run instead of continuing it.")
    ] = False,
    engine: Annotated[
        EngineName,
        typer.Option(help="Run in this process (local), or on Ray: on this machine or on the cluster of RAY_ADDRESS."),
    ] = EngineName.local,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Worker processes on Ray. [default: one for each machine]")
    ] = None,
) -> None:
    """Transcribe many files and write results as they finish. Run the same command again to continue a stopped batch.

    Files that cannot be transcribed are recorded in the output, listed at the end and tried again by the next run; the
    exit code is then 2.
    """
    with guarded():
        if workers is not None and engine is EngineName.local:
            raise OptionError("--workers is for --engine ray; for --engine local set the cores with --threads")
        jobs = [_with_track(job, track) for job in find_jobs(inputs)]
        artifact = open_artifact(model if model is not None else default_model(), verify=False)  # the engine verifies
        language_name = _language_name(artifact, language)
        providers = AskedProviders.of(provider, encoder_provider, decoder_provider)
        options = WorkerOptions(
            str(model.absolute()) if model is not None else None,
            providers,
            threads,
            max_batch,
            parse_bytes(memory),
            segment_seconds,
            vad,
        )
        settings = BatchSettings(
            artifact.manifest.name,
            hashlib.sha256((artifact.path / MANIFEST).read_bytes()).hexdigest(),
            providers.text,
            segment_seconds,
            vad,
            language_name,
            context,
        )
        distributed = ray_engine(options, workers, language_name, context) if engine is EngineName.ray else None
        with closing(open_output(out, format, settings, restart=restart)) as output:
            pending = output.pending(jobs)
            summary = Summary(files=len(jobs), skipped=len(jobs) - len(pending))
            began = time.perf_counter()
            if pending and distributed:
                _run(pending, distributed, output, summary)
            elif pending:
                transcriber = _open(options, pending, language_name, context)
                with closing(SegmentLog(output.segments_path, restart=restart)) as log:
                    _run(pending, local_engine(transcriber, settings, log), output, summary)
                    log.remove()
        _report(summary, output, time.perf_counter() - began)
    if summary.failures:
        raise typer.Exit(BAD_INPUT)


def _with_track(job: Job, track: int | None) -> Job:
    """Return a job with the track of the batch, unless a manifest sets it."""
    return job if job.track is not None or track is None else msgspec.structs.replace(job, track=track)


def _language_name(artifact: Artifact, language: str) -> str | None:
    """Return the English name of a language given by name or code; None for ``auto``.

    A language that the model does not know is returned unchanged; the model rejects it later.
    """
    if language.strip().lower() == "auto":
        return None
    entry = find_in_manifest(language, artifact.manifest)
    return entry.name if entry else language


def _open(options: WorkerOptions, jobs: list[Job], language: str | None, context: str) -> Transcriber:
    transcriber = options.open()
    check_options(transcriber, requested_options(jobs, language, context))
    typer.echo(describe_plan(transcriber.plan), err=True)
    return transcriber


def _run(jobs: list[Job], engine: Engine, output: Output, summary: Summary) -> None:
    try:
        with _bar(summary) as on_change:
            transcribe_jobs(
                jobs,
                engine,
                output,
                summary,
                on_change=on_change,
                on_transcript=lambda job, transcript: warn(transcript, str(job.audio)),
            )
    except KeyboardInterrupt:
        typer.echo(
            f"error: interrupted; {summary.skipped + summary.done} of {summary.files} files are in {output.path}; "
            "run the same command again to continue",
            err=True,
        )
        raise typer.Exit(INTERRUPTED) from None


def _report(summary: Summary, output: Output, seconds: float) -> None:
    for _, message in summary.failures[:_LISTED]:
        typer.echo(f"error: {message}", err=True)
    if len(summary.failures) > _LISTED:
        typer.echo(f"error: and {len(summary.failures) - _LISTED} more; all are in {output.errors_path}", err=True)
    parts = [f"{summary.done} transcribed"]
    if summary.skipped:
        parts.append(f"{summary.skipped} done before")
    if summary.failures:
        parts.append(f"{len(summary.failures)} failed")
    speed = f"; {summary.audio_seconds:.1f} s of audio in {seconds:.1f} s, {_speed(summary, seconds)}"
    typer.echo(
        f"{summary.files} {'file' if summary.files == 1 else 'files'}: {', '.join(parts)}"
        f"{speed if summary.done else ''}",
        err=True,
    )


def _speed(summary: Summary, seconds: float) -> str:
    return f"{summary.audio_seconds / max(seconds, 1e-9):.1f} audio-seconds per second"


@contextmanager
def _bar(summary: Summary) -> Iterator[Callable[[], object]]:
    """Show a progress bar over the files on standard error if it is a terminal.

    Yields:
        A callback that updates the bar from ``summary``.
    """
    if not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("files, {task.description}"),
        TimeElapsedColumn(),
    )
    began = time.perf_counter()

    def describe() -> str:
        failed = f", {len(summary.failures)} failed" if summary.failures else ""
        return _speed(summary, time.perf_counter() - began) + failed

    with Progress(*columns, console=Console(file=sys.stderr), transient=True) as bar:
        task = bar.add_task(describe(), total=summary.files, completed=summary.finished)
        yield lambda: bar.update(task, completed=summary.finished, description=describe())
