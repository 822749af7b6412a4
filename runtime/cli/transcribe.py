"""``transcribe``: audio files to text on standard output."""

from __future__ import annotations

import sys
from typing import Annotated, Any, BinaryIO

import typer

from runtime.cli.common import (
    BAD_INPUT,
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
    language: Annotated[str, typer.Option(help="English name or code of the language, or auto.")] = "auto",
    context: Annotated[str, typer.Option(help="Hot words or free text that decides between spellings.")] = "",
    format: Annotated[
        TranscriptFormat, typer.Option(help="Text, one line of JSON a file, or a file's segments with their times.")
    ] = TranscriptFormat.txt,
    provider: ProviderOption = None,
    encoder_provider: EncoderProviderOption = None,
    decoder_provider: DecoderProviderOption = None,
    channel: Annotated[
        int | None, typer.Option(help="Use one channel, counted from 0, instead of the mean of all.")
    ] = None,
    timestamps: Annotated[
        bool, typer.Option("--timestamps", help="Let the model time the parts of its text, where it can.")
    ] = False,
    translate: Annotated[
        bool, typer.Option("--translate", help="Write English, whatever is spoken, where the model can.")
    ] = False,
    long_form: Annotated[
        bool,
        typer.Option(
            "--long-form",
            help="Let the model say where each of its windows ends, where it can, instead of cutting at pauses.",
        ),
    ] = False,
    threads: ThreadsOption = None,
    max_batch: BatchOption = DEFAULT_BATCH,
    memory: MemoryOption = None,
    segment_seconds: SegmentOption = None,
    vad: VadOption = True,
) -> None:
    """Turn audio files into text on standard output.

    A file that cannot be transcribed is named on standard error and does not stop the others; the exit code is then 2.
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
        )  # what no file could be asked for is said once
        asked: dict[str, Any] = {
            "language": language,
            "context": context,
            "channel": channel,
            "timestamps": timestamps,
            "task": task,
            "long_form": long_form,
        }
        failed = sum(not _transcribe_one(transcriber, file, files, asked, format) for file in files)
    if failed:
        if len(files) > 1:
            typer.echo(f"error: {failed} of {len(files)} files failed", err=True)
        raise typer.Exit(BAD_INPUT)


def _transcribe_one(
    transcriber: Transcriber,
    file: str,
    files: list[str],
    asked: dict[str, Any],
    format: TranscriptFormat,
) -> bool:
    """Print one file's transcript as ``asked`` for, or on standard error why there is none; False then."""
    try:
        with progress_bar(file) as progress:
            source = _standard_input() if file == "-" else file
            transcript = transcriber.transcribe(source, on_progress=progress, **asked)
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
