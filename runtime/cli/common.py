"""Parts that the commands share: options, error handling, progress bars, output files."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from runtime.errors import AsrError, OptionError
from runtime.host.files import write_atomically
from runtime.results import Segment, Transcript

BAD_INPUT = 2
INTERRUPTED = 130


class OutputFormat(StrEnum):
    """Format of standard output."""

    txt = "txt"
    json = "json"


class TranscriptFormat(StrEnum):
    """Format of a transcript: the keys of :data:`runtime.writers.FORMATS`."""

    txt = "txt"
    json = "json"
    srt = "srt"
    vtt = "vtt"
    tsv = "tsv"


ModelOption = Annotated[Path | None, typer.Option("--model", help="Folder of the model. [default: the bundled model]")]
LanguageOption = Annotated[
    str,
    typer.Option(
        "--language", help="Language of the speech: name, ISO 639 code or locale such as pt-BR, or auto to detect it."
    ),
]
ContextOption = Annotated[
    str, typer.Option("--context", help="Free text or a list of words that guides the spelling of names and terms.")
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        "--threads", help="Threads of each model graph, at least 1. [default: the cores this process may use]"
    ),
]
ProviderOption = Annotated[
    list[str] | None,
    typer.Option(
        "--provider",
        help="Execution provider: NAME or NAME:key=value,...; repeat for several, in order of priority. "
        "`providers` lists them. [default: cpu]",
        metavar="NAME[:KEY=VALUE,...]",
    ),
]
EncoderProviderOption = Annotated[
    list[str] | None,
    typer.Option(
        "--encoder-provider",
        help="Execution provider of the encoder. [default: that of --provider]",
        metavar="NAME[:KEY=VALUE,...]",
    ),
]
DecoderProviderOption = Annotated[
    list[str] | None,
    typer.Option(
        "--decoder-provider",
        help="Execution provider of the decoder. [default: that of --provider]",
        metavar="NAME[:KEY=VALUE,...]",
    ),
]
BatchOption = Annotated[
    int, typer.Option("--max-batch", help="Decode at most this many segments together, at least 1.")
]
MemoryOption = Annotated[
    str | None,
    typer.Option(
        "--memory",
        help="Limit of resident memory, such as 512MB, 2GB or 1.5GiB; it bounds the batch. "
        "[default: half of the free memory]",
    ),
]
SegmentOption = Annotated[
    float | None,
    typer.Option(
        "--segment-seconds",
        help="Longest segment in seconds, from 1 to the limit of the model. "
        "[default: the fastest length of the model, at most 30]",
    ),
]
TrackOption = Annotated[
    int | None,
    typer.Option(
        "--track", min=0, help="Audio track of a container, counted from 0. [default: the track marked as default]"
    ),
]
VadOption = Annotated[
    bool,
    typer.Option("--vad/--no-vad", help="Send only detected speech to the model, or send all audio."),
]


@contextmanager
def guarded() -> Iterator[None]:
    """Turn an :class:`AsrError` into one sentence and exit code 2, and an interrupt into exit code 130.

    Other exceptions pass unchanged.

    Raises:
        typer.Exit: the block raised an :class:`AsrError` or was interrupted.
    """
    try:
        yield
    except AsrError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(BAD_INPUT) from None
    except KeyboardInterrupt:
        typer.echo("error: interrupted", err=True)
        raise typer.Exit(INTERRUPTED) from None


_BYTES = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(?:([KMGT])(i?))?B?", re.IGNORECASE)


def parse_bytes(text: str | None) -> int | None:
    """Parse a size such as ``512MB``, ``2 GB``, ``1.5GiB`` or a plain number.

    Returns:
        Bytes, at least 1; None for None.

    Raises:
        OptionError: the text is not a size, or is less than 1 byte.
    """
    if text is None:
        return None
    match = _BYTES.fullmatch(text.strip())
    size = 0
    if match:
        number, unit, binary = match.groups()
        size = int(float(number) * (1024 if binary else 1000) ** ("KMGT".index(unit.upper()) + 1 if unit else 0))
    if size < 1:
        raise OptionError(f"{text!r} is not a size in bytes; write it like 512MB, 2GB or 1.5GiB")
    return size


_INCOMPLETE = {
    "length": "its token budget ended before the text did",
    "repetition": "the model repeated itself; the loop was cut",
    "short": "its text was short for its speech",
}


def segment_warning(segment: Segment, file: str) -> str | None:
    """Return a warning if the text of ``segment`` may be incomplete, else None.

    A text may be incomplete when its token budget ended, a repetition was cut, or it was short for its speech.
    """
    where = f"warning: {file}: {segment.start:.1f}-{segment.end:.1f} s"
    retried = "; decoded again in shorter pieces" if segment.decoded_again else ""
    if segment.finish_reason in _INCOMPLETE:
        return f"{where}: {_INCOMPLETE[segment.finish_reason]}{retried}"
    if segment.decoded_again == "short":  # it ended well before, too
        return f"{where}: {_INCOMPLETE[segment.decoded_again]}{retried}"
    if segment.decoded_again:
        return f"{where}: {_INCOMPLETE[segment.decoded_again]}{retried}, which ended well"
    return None


def warn(transcript: Transcript, file: str) -> None:
    """Print warnings about the audio, and about each segment whose text may be incomplete, to standard error."""
    for text in transcript.warnings:
        typer.echo(f"warning: {text}", err=True)
    for segment in transcript.segments:
        if message := segment_warning(segment, file):
            typer.echo(message, err=True)


def write(path: Path, data: bytes) -> None:
    """Write a file atomically.

    Raises:
        OptionError: the file cannot be written.
    """
    try:
        write_atomically(path, data)
    except OSError as error:
        raise OptionError(f"{path}: cannot be written ({error.strerror}); give another file") from None


def check_writable(path: Path) -> None:
    """Check, before long work, that :func:`write` can create ``path``.

    Raises:
        OptionError: ``path`` is a folder.
        OptionError: the folder of ``path`` does not exist.
        OptionError: this user may not write to the folder of ``path``, or not enter one above it.
    """
    try:
        fits = not path.is_dir() and path.parent.is_dir()
    except OSError as error:  # a folder above may not be entered
        raise OptionError(f"{path}: cannot be written ({error.strerror}); give another file") from None
    if not fits:
        raise OptionError(f"{path}: cannot be written; give a file in a folder that exists")
    if not os.access(path.parent, os.W_OK):
        raise OptionError(f"{path}: cannot be written; this user may not write to its folder")


@contextmanager
def progress_bar(name: str, unit: str = "s") -> Iterator[Callable[[float, float], None] | None]:
    """Show a progress bar on standard error if it is a terminal.

    Yields:
        A callback for (done, total), which shows the bar when there is more than one step; None without a terminal.
    """
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
