"""The command ``providers``: list the execution providers of this machine, or compare them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from runtime.cli.common import ThreadsOption, check_writable, guarded, write
from runtime.cli.describe import describe_machine
from runtime.errors import AudioNotFoundError, OptionError
from runtime.model.bundled import default_model


def providers(
    compare: Annotated[
        list[str] | None,
        typer.Option(
            help="Measure and compare these providers, separated by commas: cpu,openvino or NAME:key=value,...; A+B "
            "uses A and, for the nodes that A does not take, B.",
            metavar="LIST",
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option("--model", help="Folder of the model to run. [default: the bundled model]"),
    ] = None,
    audio: Annotated[
        list[Path] | None,
        typer.Option(help="Audio file to transcribe; repeat for several. [default: bundled samples]", metavar="FILE"),
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the model that runs on the CPU as the reference, such as the float32 parent. "
            "[default: the same model]"
        ),
    ] = None,
    runs: Annotated[int, typer.Option(min=1, help="Counted runs after a warm-up.")] = 3,
    new_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Force this number of tokens for every segment, to time a model with random weights. "
            "[default: the model ends its texts]",
        ),
    ] = None,
    threads: ThreadsOption = None,
    packages: Annotated[
        list[str] | None,
        typer.Option(
            help="Folder of packages that come first on the path of the process of provider NAME: another build of "
            "onnxruntime, installed with pip install --no-deps --target FOLDER. Repeat for several.",
            metavar="NAME=FOLDER",
        ),
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write an HTML page with charts to this file.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write all measurements to this file as JSON.")] = None,
) -> None:
    """List the execution providers of this machine and how to install the others; compare them with --compare.

    --compare measures each provider in a process of its own and compares it with the CPU on the same inputs: speed,
    memory, the nodes that it runs, the difference of its outputs and texts. A listed provider may still fail for lack
    of drivers: `transcribe --provider NAME` reports it.
    """
    if not compare:
        if model or audio or reference or packages or html or json:
            with guarded():
                raise OptionError(
                    "these options go with --compare; name providers there, such as --compare cpu,openvino"
                )
        typer.echo(describe_machine())
        return
    from runtime.bench.clips import sample_recordings
    from runtime.bench.compare import compare as compare_providers
    from runtime.bench.compare_report import as_page, as_text
    from runtime.ort.providers import split_list

    with guarded():
        for target in filter(None, (html, json)):
            check_writable(target)
        for path in audio or ():
            if not path.is_file():
                raise AudioNotFoundError(f"{path}: no such file")
        comparison = compare_providers(
            model or default_model(),
            split_list(compare),
            audio or sample_recordings(),
            reference=reference,
            runs=runs,
            threads=threads,
            new_tokens=new_tokens,
            packages=dict(map(_named_folder, packages or ())),
            on_progress=_print_progress if sys.stderr.isatty() else lambda _: None,
        )
        if json:
            write(json, msgspec.json.format(msgspec.json.encode(comparison), indent=1) + b"\n")
        if html:
            write(html, as_page(comparison).encode())
    typer.echo(as_text(comparison))


def _print_progress(name: str) -> None:
    typer.echo(f"measuring {name}", err=True)


def _named_folder(text: str) -> tuple[str, Path]:
    name, equals, folder = text.partition("=")
    if not equals or not name or not folder:
        raise OptionError(f"--packages {text!r} is not of the form NAME=FOLDER")
    return name.strip(), Path(folder)
