"""``python -m runtime``: transcribe files, and say what a model is."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, BinaryIO, NoReturn

import msgspec
import typer

from runtime.artifact import Manifest, open_artifact
from runtime.errors import AsrError, AudioNotFoundError
from runtime.transcriber import Transcriber, Transcript, default_model
from runtime.writers import as_json, as_text

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
) -> None:
    """Turn audio files into text on standard output.

    A file that cannot be transcribed is named on standard error and does not stop the others; the exit code is then 2.
    """
    try:
        transcriber = Transcriber.from_artifact(model, provider=provider, threads=threads)
        transcriber.resolve_language(language)
        failed = sum(
            not _transcribe_one(transcriber, file, files, language, context, format, channel) for file in files
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
) -> bool:
    """Print one file's transcript, or on standard error why there is none; False then."""
    try:
        with _progress(file) as progress:
            source = _standard_input() if file == "-" else file
            transcript = transcriber.transcribe(source, language, context, channel=channel, progress=progress)
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


def describe(manifest: Manifest, size: int) -> str:
    """The summary that ``info`` prints."""
    source = manifest.source
    languages = [f"{language.name} ({language.code})" for language in manifest.languages]
    lines = {
        "model": f"{manifest.name} ({manifest.family})",
        "source": f"{source.repo}, {f'revision {source.revision}' if source.revision else 'from a folder'}",
        "licence": source.licence,
        "size": f"{size / 1e6:.1f} MB",
        "quantization": manifest.quantization.recipe if manifest.quantization else "none (float32)",
        "languages": f"{len(languages)}: {', '.join(languages)}",
    }
    for role, graph in manifest.graphs.items():
        parity = manifest.parity.get(role)
        checked = (
            f", at most {parity.max_abs_difference:.1e} from the reference in {len(parity.cases)} cases"
            if parity
            else ""
        )
        lines[role] = f"{graph.file}{' with external data' if graph.data else ''}{checked}"
    lines["made with"] = ", ".join(f"{name} {version}" for name, version in manifest.tools.items())
    width = max(map(len, lines))
    return "\n".join(f"{key:<{width}}  {value}" for key, value in lines.items())


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


def _standard_input() -> BinaryIO:
    if sys.stdin is None:
        raise AudioNotFoundError("standard input: is closed")
    return sys.stdin.buffer


@contextmanager
def _progress(name: str) -> Iterator[Callable[[float, float], None] | None]:
    """A bar over the seconds of one file on a terminal; nothing in a pipe, nothing for a single segment."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f} of {task.total:.0f} s"),
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
