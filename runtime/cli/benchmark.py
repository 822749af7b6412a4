"""The command ``benchmark``: measure a model's speed and memory on this machine."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from runtime.cli.common import (
    BAD_INPUT,
    DecoderProviderOption,
    EncoderProviderOption,
    ModelOption,
    ProviderOption,
    SegmentOption,
    ThreadsOption,
    check_writable,
    guarded,
    write,
)
from runtime.errors import OptionError
from runtime.model.bundled import default_model
from runtime.ort.providers import AskedProviders

if TYPE_CHECKING:
    from runtime.bench.benchmark import Progress


def benchmark(
    model: ModelOption = None,
    audio: Annotated[
        list[Path] | None,
        typer.Option(help="Recording to cut clips from; repeat for several. [default: the bundled samples]"),
    ] = None,
    seconds: Annotated[
        str, typer.Option(help="Clip lengths in seconds, positive numbers separated by commas.")
    ] = "1,5,10,30,60,600",
    batch: Annotated[
        str, typer.Option(help="Batch sizes, segments decoded together: positive whole numbers separated by commas.")
    ] = "1,4,8",
    new_tokens: Annotated[
        str | None,
        typer.Option(
            help="Force N tokens for each clip, or N/s for each second of audio, to time a model with random weights. "
            "[default: the model ends its texts]"
        ),
    ] = None,
    runs: Annotated[int, typer.Option(help="Counted runs of each configuration after a warm-up, at least 1.")] = 5,
    clips: Annotated[
        int | None,
        typer.Option(help="Clips to transcribe together, at least 1. [default: enough to give each row a segment]"),
    ] = None,
    segment_seconds: SegmentOption = None,
    provider: ProviderOption = None,
    encoder_provider: EncoderProviderOption = None,
    decoder_provider: DecoderProviderOption = None,
    threads: ThreadsOption = None,
    json: Annotated[Path | None, typer.Option(help="Write all measurements to this file as JSON.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write an HTML page with charts to this file.")] = None,
) -> None:
    """Measure a model's speed and memory on this machine, and print a table.

    Each pair of clip length and batch size runs in a process of its own. With the default lengths the benchmark takes
    from several minutes to an hour.
    """
    # Imported when the command runs, so that other commands start faster.
    from runtime.bench.benchmark import NewTokens, Plan, parse_counts, parse_numbers, run_benchmark
    from runtime.bench.child import Setup
    from runtime.bench.report import as_page
    from runtime.bench.table import as_table

    with guarded():
        providers = AskedProviders.of(provider, encoder_provider, decoder_provider)
        plan = Plan(
            setup=Setup(str(model if model is not None else default_model()), providers, threads, segment_seconds),
            seconds=parse_numbers("--seconds", seconds),
            batch=parse_counts("--batch", batch),
            runs=_positive("--runs", runs),
            new_tokens=NewTokens.parse(new_tokens) if new_tokens is not None else None,
            clips=_positive("--clips", clips) if clips is not None else None,
            audio=audio or [],
        )
        if threads is not None:
            _positive("--threads", threads)
        if segment_seconds is not None and not segment_seconds > 0:
            raise OptionError(f"--segment-seconds must be positive, not {segment_seconds:g}")
        for path in filter(None, (json, html)):
            check_writable(path)
        if json is not None and html is not None and json.resolve() == html.resolve():
            raise OptionError(f"{json}: --json and --html are the same file; give two")
        with _progress() as progress:
            report = run_benchmark(plan, progress)
        if json:
            write(json, msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
        if html:
            write(html, as_page(report).encode())
    typer.echo(as_table(report))
    if report.failures:
        typer.echo(
            f"error: {len(report.failures)} of {len(report.failures) + len(report.configurations)} "
            "configurations failed",
            err=True,
        )
        raise typer.Exit(BAD_INPUT)


def _positive(option: str, number: int) -> int:
    if number < 1:
        raise OptionError(f"{option} must be at least 1, not {number}")
    return number


@contextmanager
def _progress() -> Iterator[Progress | None]:
    """Show the current measurement on standard error if it is a terminal; otherwise yield None."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console

    with Console(file=sys.stderr).status("benchmark") as status:
        yield lambda done, total, name: status.update(f"measurement {done + 1} of {total}: {name}")
