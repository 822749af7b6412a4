"""The command ``transcribe``: transcribe audio files to standard output."""

from __future__ import annotations

import sys
from typing import Annotated, Any, BinaryIO

import typer

from runtime.cli.common import (
    BAD_INPUT,
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
    progress_bar,
    warn,
)
from runtime.engines.base import DEFAULT_BATCH
from runtime.errors import AsrError, AudioNotFoundError, OptionError
from runtime.results import Task, Transcript
from runtime.transcriber import Request, Transcriber
from runtime.writers import FORMATS, as_json


def transcribe(
    files: Annotated[list[str], typer.Argument(help="Audio files; - is standard input.", metavar="FILE...")],
    model: ModelOption = None,
    language: LanguageOption = "auto",
    context: ContextOption = "",
    format: Annotated[
        TranscriptFormat,
        typer.Option(help="Text, one line of JSON for each file, or the segments of a single file with their times."),
    ] = TranscriptFormat.txt,
    provider: ProviderOption = None,
    encoder_provider: EncoderProviderOption = None,
    decoder_provider: DecoderProviderOption = None,
    channel: Annotated[
        int | None, typer.Option(help="Transcribe this channel, counted from 0. [default: the mean of all channels]")
    ] = None,
    track: TrackOption = None,
    timestamps: Annotated[
        bool,
        typer.Option("--timestamps", help="Split the text into parts with times from the model, if it can time them."),
    ] = False,
    translate: Annotated[
        bool,
        typer.Option("--translate", help="Translate speech in any language to English, if the model can translate."),
    ] = False,
    long_form: Annotated[
        bool,
        typer.Option(
            "--long-form",
            help="Let the model decide where each of its windows ends, instead of cutting at pauses, if it can.",
        ),
    ] = False,
    threads: ThreadsOption = None,
    max_batch: BatchOption = DEFAULT_BATCH,
    memory: MemoryOption = None,
    segment_seconds: SegmentOption = None,
    vad: VadOption = True,
) -> None:
    """Transcribe audio files and print the text.

    A file that cannot be transcribed is reported on standard error and does not stop the others; the exit code is then
    2.
    """
    with guarded():
        if len(files) > 1 and format not in (TranscriptFormat.txt, TranscriptFormat.json):
            raise OptionError(f"{format} is for one file at a time; `batch --format {format}` writes one for each")
        transcriber = Transcriber.from_artifact(
            model,
            provider=provider or "cpu",
            encoder_provider=encoder_provider,
            decoder_provider=decoder_provider,
            threads=threads,
            max_batch=max_batch,
            memory=parse_bytes(memory),
            segment_seconds=segment_seconds,
            vad=vad,
        )
        task: Task = "translate" if translate else "transcribe"
        transcriber.check(
            Request("", language, context, timestamps=timestamps, task=task, long_form=long_form)
        )  # before the first file, so that an option that the model lacks is reported once
        options: dict[str, Any] = {
            "language": language,
            "context": context,
            "channel": channel,
            "track": track,
            "timestamps": timestamps,
            "task": task,
            "long_form": long_form,
        }
        failed = sum(not _transcribe_one(transcriber, file, files, options, format) for file in files)
    if failed:
        if len(files) > 1:
            typer.echo(f"error: {failed} of {len(files)} files failed", err=True)
        raise typer.Exit(BAD_INPUT)


def _transcribe_one(
    transcriber: Transcriber,
    file: str,
    files: list[str],
    options: dict[str, Any],
    format: TranscriptFormat,
) -> bool:
    """Print the transcript of one file, or an error on standard error.

    Returns:
        Whether the file was transcribed.
    """
    try:
        with progress_bar(file) as progress:
            source = _standard_input() if file == "-" else file
            transcript = transcriber.transcribe(source, on_progress=progress, **options)
    except AsrError as error:
        typer.echo(f"error: {error}", err=True)
        return False
    typer.echo(_render(transcript, file, format, several=len(files) > 1))
    warn(transcript, file)
    return True


def _render(transcript: Transcript, file: str, format: TranscriptFormat, *, several: bool) -> str:
    if format is TranscriptFormat.json:
        return as_json(transcript, file=file)
    text = FORMATS[format](transcript).removesuffix("\n")
    return f"{file}: {text}" if several else text


def _standard_input() -> BinaryIO:
    if sys.stdin is None:
        raise AudioNotFoundError("standard input: is closed")
    return sys.stdin.buffer
