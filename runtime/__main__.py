"""``python -m runtime``: transcribe files, say what a model is, measure its error rate."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, BinaryIO, NoReturn

import msgspec
import typer

from runtime.artifact import open_artifact, write_atomically
from runtime.description import describe, describe_machine
from runtime.errors import AsrError, AudioNotFoundError, OptionError
from runtime.evaluation import check_packages, load_utterances, recognize, summarize
from runtime.transcriber import Transcriber, Transcript, default_model
from runtime.writers import as_json, as_text, evaluation_as_json, evaluation_as_text, hypotheses_as_json_lines

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="Speech recognition with ONNX Runtime.",
)

BAD_INPUT = 2


class OutputFormat(StrEnum):
    """What is written to standard output."""

    txt = "txt"
    json = "json"


@app.command()
def transcribe(
    files: Annotated[list[str], typer.Argument(help="Audio files; - is standard input.", metavar="FILE...")],
    model: Annotated[
        Path | None, typer.Option(help="The model's folder. [default: the small model that comes along]")
    ] = None,
    language: Annotated[str, typer.Option(help="English name or code of the language, or auto.")] = "auto",
    context: Annotated[str, typer.Option(help="Hot words or free text that decides between spellings.")] = "",
    format: Annotated[OutputFormat, typer.Option(help="Text, or one line of JSON a file.")] = OutputFormat.txt,
    provider: Annotated[str, typer.Option(help="Execution provider: NAME or NAME:key=value,...")] = "cpu",
    channel: Annotated[
        int | None, typer.Option(help="Use one channel, counted from 0, instead of the mean of all.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads. [default: the cores this process may use]")] = None,
    max_batch: Annotated[
        int, typer.Option(min=1, help="Segments of a long file that are decoded together: faster, for more memory.")
    ] = 1,
) -> None:
    """Turn audio files into text on standard output.

    A file that cannot be transcribed is named on standard error and does not stop the others; the exit code is then 2.
    """
    try:
        transcriber = Transcriber.from_artifact(model, provider=provider, threads=threads)
        transcriber.resolve_language(language)
        failed = sum(
            not _transcribe_one(transcriber, file, files, language, context, format, channel, max_batch)
            for file in files
        )
    except AsrError as error:
        _fail(error)
    except KeyboardInterrupt:
        typer.echo("error: interrupted", err=True)
        raise typer.Exit(130) from None
    if failed:
        if len(files) > 1:
            typer.echo(f"error: {failed} of {len(files)} files failed", err=True)
        raise typer.Exit(BAD_INPUT)


def _transcribe_one(
    transcriber: Transcriber,
    file: str,
    files: list[str],
    language: str,
    context: str,
    format: OutputFormat,
    channel: int | None,
    max_batch: int,
) -> bool:
    """Print one file's transcript, or on standard error why there is none; False then."""
    try:
        with _progress(file) as progress:
            source = _standard_input() if file == "-" else file
            transcript = transcriber.transcribe(
                source, language, context, channel=channel, max_batch=max_batch, progress=progress
            )
    except AsrError as error:
        typer.echo(f"error: {error}", err=True)
        return False
    typer.echo(_render(transcript, file, format, several=len(files) > 1))
    _warn(transcript, file)
    return True


@app.command()
def info(
    model: Annotated[
        Path | None, typer.Argument(help="The model's folder. [default: the small model that comes along]")
    ] = None,
    format: Annotated[OutputFormat, typer.Option(help="A summary, or the manifest as JSON.")] = OutputFormat.txt,
) -> None:
    """Say what a model is: where it came from, what it can do, what was checked."""
    try:
        artifact = open_artifact(model if model is not None else default_model())
    except AsrError as error:
        _fail(error)
    if format is OutputFormat.json:
        typer.echo(msgspec.json.encode(artifact.manifest))
    else:
        typer.echo(describe(artifact.manifest, artifact.size))


@app.command()
def providers() -> None:
    """List the execution providers that this onnxruntime was built with, and how to get the others.

    Whether one becomes active also depends on its drivers: `transcribe --provider NAME` fails if it does not.
    """
    typer.echo(describe_machine())


@app.command()
def evaluate(
    data: Annotated[
        Path,
        typer.Option(help="Folder with an index.json, a LibriSpeech tree, or audio with a .txt beside each file."),
    ],
    model: Annotated[
        Path | None, typer.Option(help="The model's folder. [default: the small model that comes along]")
    ] = None,
    language: Annotated[
        str | None, typer.Option(help="English name or code of the language of utterances that do not say theirs.")
    ] = None,
    force_language: Annotated[
        bool, typer.Option("--force-language", help="Tell the model the language too; it detects it otherwise.")
    ] = False,
    provider: Annotated[str, typer.Option(help="Execution provider: NAME or NAME:key=value,...")] = "cpu",
    threads: Annotated[int | None, typer.Option(help="Threads. [default: the cores this process may use]")] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first so many utterances.")] = None,
    format: Annotated[OutputFormat, typer.Option(help="A table, or one line of JSON.")] = OutputFormat.txt,
    hypotheses: Annotated[
        Path | None, typer.Option(help="Write what was said and heard to this file, one line of JSON an utterance.")
    ] = None,
) -> None:
    """Measure a model's word or character error rate on recordings with reference texts.

    Needs the extra packages of asr-deploy[evaluate].
    """
    try:
        check_packages()
        if limit is not None and limit < 1:
            raise OptionError(f"limit must be at least 1, not {limit}")
        if hypotheses and (hypotheses.is_dir() or not hypotheses.parent.is_dir()):
            raise OptionError(f"{hypotheses}: cannot be written; give a file in a folder that exists")
        utterances = load_utterances(data, language)[:limit]
        transcriber = Transcriber.from_artifact(model, provider=provider, threads=threads)
        with _progress(str(data), unit="utterances") as progress:
            transcripts = recognize(transcriber, utterances, own_language=force_language, progress=progress)
        evaluation = summarize(transcriber, utterances, transcripts, told=force_language)
        if hypotheses:
            _write(hypotheses, hypotheses_as_json_lines(data, utterances, transcripts).encode())
    except AsrError as error:
        _fail(error)
    except KeyboardInterrupt:
        typer.echo("error: interrupted", err=True)
        raise typer.Exit(130) from None
    typer.echo(evaluation_as_json(evaluation) if format is OutputFormat.json else evaluation_as_text(evaluation))
    for utterance, transcript in zip(utterances, transcripts, strict=True):
        _warn(transcript, str(utterance.audio))


def _render(transcript: Transcript, file: str, format: OutputFormat, *, several: bool) -> str:
    if format is OutputFormat.json:
        return as_json(transcript, file=file)
    return f"{file}: {as_text(transcript)}" if several else as_text(transcript)


def _warn(transcript: Transcript, file: str) -> None:
    """Say when a text may be incomplete: a budget that ran out, a loop that was cut."""
    reasons = {
        "length": "its token budget ended before the text did",
        "repetition": "the model repeated itself; the loop was cut",
    }
    for segment in transcript.segments:
        if segment.finish_reason in reasons:
            typer.echo(
                f"warning: {file}: {segment.start:.1f}-{segment.end:.1f} s: {reasons[segment.finish_reason]}", err=True
            )


def _write(path: Path, data: bytes) -> None:
    try:
        write_atomically(path, data)
    except OSError as error:
        raise OptionError(f"{path}: cannot be written ({error.strerror}); give another file") from None


def _standard_input() -> BinaryIO:
    if sys.stdin is None:
        raise AudioNotFoundError("standard input: is closed")
    return sys.stdin.buffer


@contextmanager
def _progress(name: str, unit: str = "s") -> Iterator[Callable[[float, float], None] | None]:
    """A bar over what is done of ``name`` on a terminal; nothing in a pipe, nothing for a single step."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f} of {task.total:.0f} " + unit),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(file=sys.stderr), transient=True) as bar:
        task = bar.add_task(Path(name).name, total=0.0, visible=False)
        yield lambda done, total: bar.update(task, completed=done, total=total, visible=done < total, refresh=True)


def _fail(error: AsrError) -> NoReturn:
    typer.echo(f"error: {error}", err=True)
    raise typer.Exit(BAD_INPUT) from None


if __name__ == "__main__":
    app()
