"""``providers``: what this machine has, and how the providers compare."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from runtime.cli.common import ThreadsOption, check_writable, guarded, write
from runtime.cli.describe import describe_machine
from runtime.errors import AudioNotFoundError, OptionError
from runtime.transcriber import default_model


def providers(
    compare: Annotated[
        list[str] | None,
        typer.Option(
            help="Measure and compare providers: cpu,openvino or NAME:key=value,...; A+B are two in order of priority.",
            metavar="LIST",
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option("--model", help="The model to compare with. [default: the small model that comes along]"),
    ] = None,
    audio: Annotated[
        list[Path] | None,
        typer.Option(
            help="Audio to transcribe; repeat it for several files. [default: samples that come along]", metavar="FILE"
        ),
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(help="Compare with this model on the CPU, such as the float32 parent. [default: the same model]"),
    ] = None,
    runs: Annotated[int, typer.Option(min=1, help="Counted runs, after one that is not.")] = 3,
    new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Force so many tokens of every segment, to time random weights.")
    ] = None,
    threads: ThreadsOption = None,
    packages: Annotated[
        list[str] | None,
        typer.Option(
            help="A folder of packages that a provider's process finds first: an onnxruntime of another build, from "
            "pip install --no-deps --target FOLDER.",
            metavar="NAME=FOLDER",
        ),
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with pictures to this file.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write all that was measured to this file.")] = None,
) -> None:
    """List the execution providers of this machine and how to get the others, or compare them with --compare.

    Compared is every provider in a process of its own, against the CPU on the same inputs: speed, memory, the nodes
    that it runs, how far its outputs and texts are. Whether a listed provider becomes active also depends on its
    drivers: `transcribe --provider NAME` fails if it does not.
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
            progress=_say if sys.stderr.isatty() else lambda _: None,
        )
        if json:
            write(json, msgspec.json.format(msgspec.json.encode(comparison), indent=1) + b"\n")
        if html:
            write(html, as_page(comparison).encode())
    typer.echo(as_text(comparison))


def _say(name: str) -> None:
    typer.echo(f"measuring {name}", err=True)


def _named_folder(text: str) -> tuple[str, Path]:
    name, equals, folder = text.partition("=")
    if not equals or not name or not folder:
        raise OptionError(f"--packages {text!r} is not of the form NAME=FOLDER")
    return name.strip(), Path(folder)
