"""What the commands share: options, errors as one sentence, progress on a terminal, files written whole."""

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
    """What is written to standard output."""

    txt = "txt"
    json = "json"


class TranscriptFormat(StrEnum):
    """What a transcript is written as: the keys of :data:`runtime.writers.FORMATS`."""

    txt = "txt"
    json = "json"
    srt = "srt"
    vtt = "vtt"
    tsv = "tsv"


ModelOption = Annotated[
    Path | None, typer.Option("--model", help="The model's folder. [default: the small model that comes along]")
]
ThreadsOption = Annotated[
    int | None, typer.Option("--threads", help="Threads. [default: the cores this process may use]")
]
ProviderOption = Annotated[
    list[str] | None,
    typer.Option(
        "--provider",
        help="Execution provider: NAME or NAME:key=value,...; repeat it for several, in order of priority. "
        "[default: cpu]",
        metavar="NAME[:KEY=VALUE,...]",
    ),
]
EncoderProviderOption = Annotated[
    list[str] | None,
    typer.Option("--encoder-provider", help="The same for the encoder alone.", metavar="NAME[:KEY=VALUE,...]"),
]
DecoderProviderOption = Annotated[
    list[str] | None,
    typer.Option("--decoder-provider", help="The same for the decoder alone.", metavar="NAME[:KEY=VALUE,...]"),
]
BatchOption = Annotated[int, typer.Option("--max-batch", help="Most segments that are decoded together.")]
MemoryOption = Annotated[
    str | None,
    typer.Option(
        "--memory",
        help="What this process may have resident, such as 2GB: bounds the batch. [default: half of what is left]",
    ),
]
SegmentOption = Annotated[
    float | None, typer.Option("--segment-seconds", help="Longest segment. [default: what is fastest, 30 at most]")
]
VadOption = Annotated[
    bool, typer.Option("--vad/--no-vad", help="Look for speech and send nothing else to the model, or send everything.")
]


@contextmanager
def guarded() -> Iterator[None]:
    """Our errors become one sentence and exit code 2, an interrupt exit code 130; nothing else is caught."""
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
    """Bytes of a size such as 512MB, 2 GB, 1.5GiB or a plain number; None of None.

    Raises:
        OptionError: it is no size, or less than a byte.
    """
    if text is None:
        return None
    match = _BYTES.fullmatch(text.strip())
    size = 0
    if match:
        number, unit, binary = match.groups()
        size = int(float(number) * (1024 if binary else 1000) ** ("KMGT".index(unit.upper()) + 1 if unit else 0))
    if size < 1:
        raise OptionError(f"{text!r} is no size in bytes; write it like 512MB, 2GB or 1.5GiB")
    return size


_INCOMPLETE = {
    "length": "its token budget ended before the text did",
    "repetition": "the model repeated itself; the loop was cut",
}


def segment_warning(segment: Segment, file: str) -> str | None:
    """What to say of a segment whose text may be incomplete: a budget that ran out, a loop that was cut."""
    where = f"warning: {file}: {segment.start:.1f}-{segment.end:.1f} s"
    again = "; decoded again in shorter pieces" if segment.decoded_again else ""
    if segment.finish_reason in _INCOMPLETE:
        return f"{where}: {_INCOMPLETE[segment.finish_reason]}{again}"
    if segment.decoded_again:
        return f"{where}: {_INCOMPLETE[segment.decoded_again]}{again}, which ended well"
    return None


def warn(transcript: Transcript, file: str) -> None:
    """Say which texts may be incomplete."""
    for segment in transcript.segments:
        if message := segment_warning(segment, file):
            typer.echo(message, err=True)


def write(path: Path, data: bytes) -> None:
    """Write a whole file or none.

    Raises:
        OptionError: it cannot be written.
    """
    try:
        write_atomically(path, data)
    except OSError as error:
        raise OptionError(f"{path}: cannot be written ({error.strerror}); give another file") from None


def check_writable(path: Path) -> None:
    """Find out before the work that :func:`write` could not put a file there.

    Raises:
        OptionError: it is a folder, or its folder does not exist or is not ours to write to.
    """
    if path.is_dir() or not path.parent.is_dir():
        raise OptionError(f"{path}: cannot be written; give a file in a folder that exists")
    if not os.access(path.parent, os.W_OK):
        raise OptionError(f"{path}: cannot be written; this user may not write to its folder")


@contextmanager
def progress_bar(name: str, unit: str = "s") -> Iterator[Callable[[float, float], None] | None]:
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
