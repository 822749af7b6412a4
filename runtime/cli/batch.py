"""``batch``: many audio files, into one file of JSON lines or a file each."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from runtime.batch import (
    Engine,
    Job,
    MadeBy,
    Output,
    Summary,
    check_asked,
    find_jobs,
    local_engine,
    open_output,
    options_asked,
    transcribe_jobs,
)
from runtime.batch.ray_engine import WorkerOptions, ray_engine
from runtime.batch.segments import SegmentLog
from runtime.cli.common import (
    BAD_INPUT,
    INTERRUPTED,
    BatchOption,
    DecoderProviderOption,
    EncoderProviderOption,
    MemoryOption,
    ModelOption,
    ProviderOption,
    SegmentOption,
    ThreadsOption,
    TranscriptFormat,
    VadOption,
    guarded,
    parse_bytes,
    warn,
)
from runtime.engines.base import DEFAULT_BATCH
from runtime.engines.batch_plan import describe_plan
from runtime.errors import OptionError
from runtime.model.artifact import Artifact, open_artifact
from runtime.model.manifest import MANIFEST
from runtime.ort.providers import AskedProviders
from runtime.transcriber import Transcriber, default_model

# As many failures are listed at the end; all of them are in the output.
_LISTED = 20


class EngineName(StrEnum):
    """Where the work is done."""

    local = "local"
    ray = "ray"


def batch(
    inputs: Annotated[
        list[str],
        typer.Argument(
            help="Audio files, folders (to their depth), quoted patterns, or manifests: .jsonl with an object a line, "
            "audio and where wanted id, language, context, channel.",
            metavar="INPUT...",
        ),
    ],
    out: Annotated[Path, typer.Option(help="A file NAME.jsonl, a line of JSON a file; or a folder, a file a file.")],
    model: ModelOption = None,
    format: Annotated[TranscriptFormat | None, typer.Option(help="Of the files in a folder. [default: json]")] = None,
    language: Annotated[str, typer.Option(help="English name or code of the language, or auto.")] = "auto",
    context: Annotated[str, typer.Option(help="Hot words or free text that decides between spellings.")] = "",
    provider: ProviderOption = None,
    encoder_provider: EncoderProviderOption = None,
    decoder_provider: DecoderProviderOption = None,
    threads: ThreadsOption = None,
    max_batch: BatchOption = DEFAULT_BATCH,
    memory: MemoryOption = None,
    segment_seconds: SegmentOption = None,
    vad: VadOption = True,
    restart: Annotated[
        bool, typer.Option("--restart", help="Throw away what an earlier run put there instead of going on after it.")
    ] = False,
    engine: Annotated[
        EngineName, typer.Option(help="In this process, or on Ray: here, or on the cluster of RAY_ADDRESS.")
    ] = EngineName.local,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Worker processes on Ray. [default: one a machine]")
    ] = None,
) -> None:
    """Transcribe many files; results appear as they finish, and the same command goes on where it was stopped.

    Files that cannot be transcribed are recorded, listed at the end and tried again by the next run; the exit code is
    then 2.
    """
    with guarded():
        if workers is not None and engine is EngineName.local:
            raise OptionError("--workers is for --engine ray; in this process --threads says how many cores to use")
        jobs = find_jobs(inputs)
        artifact = open_artifact(model if model is not None else default_model(), verify=False)  # the engine verifies
        told = _language(artifact, language)
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
        made_by = MadeBy(
            artifact.manifest.name,
            hashlib.sha256((artifact.path / MANIFEST).read_bytes()).hexdigest(),
            providers.text,
            segment_seconds,
            vad,
            told,
            context,
        )
        distributed = ray_engine(options, workers, told, context) if engine is EngineName.ray else None
        with closing(open_output(out, format, made_by, restart=restart)) as output:
            left = output.pending(jobs)
            summary = Summary(files=len(jobs), skipped=len(jobs) - len(left))
            began = time.perf_counter()
            if left and distributed:
                _work(left, distributed, output, summary)
            elif left:
                transcriber = _open(options, left, told, context)
                with closing(SegmentLog(output.segments_path, restart=restart)) as log:
                    _work(left, local_engine(transcriber, made_by, log), output, summary)
                    log.remove()
        _report(summary, output, time.perf_counter() - began)
    if summary.failures:
        raise typer.Exit(BAD_INPUT)


def _language(artifact: Artifact, language: str) -> str | None:
    """English name of what was given by name or code; what the model does not know is left for it to refuse."""
    wanted = language.strip().lower()
    known = artifact.manifest.languages
    names = {entry.code.lower(): entry.name for entry in known} | {entry.name.lower(): entry.name for entry in known}
    return None if wanted == "auto" else names.get(wanted, language)


def _open(options: WorkerOptions, jobs: list[Job], language: str | None, context: str) -> Transcriber:
    transcriber = options.open()
    check_asked(transcriber, options_asked(jobs, language, context))
    typer.echo(describe_plan(transcriber.plan), err=True)
    return transcriber


def _work(jobs: list[Job], engine: Engine, output: Output, summary: Summary) -> None:
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
            f"error: interrupted; {summary.skipped + summary.done} of {summary.files} files are in {output.path}, "
            "run the same command again to go on",
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
    """A bar over the files on a terminal; nothing in a pipe."""
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
