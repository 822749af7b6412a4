"""Command line of the exporter: ``python -m export NAME``."""

from __future__ import annotations

import logging
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from export.checkpoints import CHECKPOINTS, find_checkpoint, locate
from quantize.output_folder import refuse_existing
from quantize.progress import Report, peak_memory
from quantize.recipe import Recipe, load_recipe, shipped
from runtime.cli.command import Command
from runtime.errors import AsrError, OptionError

_NAMES = "; ".join(f"{checkpoint.name}: {checkpoint.summary}" for checkpoint in CHECKPOINTS.values())

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command(cls=Command)
def main(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help=f"Model to export, or its repo id on the hub. {_NAMES}")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Local checkpoint folder, or .pt file, to read instead of downloading.")
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Commit, tag or branch on the hub to use instead of the pinned commit.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Artifact folder to write. [default: artifacts/NAME, or artifacts/NAME-RECIPE]")
    ] = None,
    int8: Annotated[bool, typer.Option("--int8", help="Quantize with the recipe int8.")] = False,
    int4: Annotated[bool, typer.Option("--int4", help="Quantize with the recipe int4.")] = False,
    recipe: Annotated[
        str | None, typer.Option(help=f"Quantize with a recipe: {', '.join(shipped())}, or a .toml file.")
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="Folder of audio for calibration. [default: bundled recordings]")
    ] = None,
    eval: Annotated[
        Path | None,
        typer.Option(
            help="Folder of audio and transcripts to evaluate the quantized model on. [default: bundled recordings in "
            "the model's languages]"
        ),
    ] = None,
    no_eval: Annotated[
        bool, typer.Option("--no-eval", help="Compare graphs of the quantized model alone, without evaluation audio.")
    ] = False,
    reduce_range: Annotated[
        bool,
        typer.Option("--reduce-range", help="Use 7-bit weights in integer matrix products, for x86 CPUs without VNNI."),
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Write the quantized model even if it fails the gate.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show log messages of the libraries.")] = False,
    list_models: Annotated[
        bool, typer.Option("--list", help="List the models with their families' capabilities, and exit.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --list: print JSON.")] = False,
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="With --list: print the tables of README.md.")
    ] = False,
) -> None:
    """Export a checkpoint to an artifact: ONNX graphs, tokenizer and manifest. Quantize it if a recipe is given."""
    logging.basicConfig(level=logging.DEBUG if verbose else logging.WARNING, format="%(name)s: %(message)s")
    # The libraries' progress bars would interfere with ours, and they are also written where there is no terminal.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    start = time.monotonic()
    try:
        if list_models:
            if name is not None or (as_json and as_markdown):
                raise OptionError("--list takes no NAME, and at most one of --json and --markdown")
            _print_list(as_json=as_json, as_markdown=as_markdown)
            return
        if as_json or as_markdown:
            raise OptionError("--json and --markdown need --list; add it")
        if name is None:
            raise OptionError("no NAME is given; --list shows the names")
        model = find_checkpoint(name)
        selected = _select_recipe(recipe, int8=int8, int4=int4, reduce_range=reduce_range)
        if selected is None and (calibration or eval or no_eval or force):
            raise OptionError("--calibration, --eval, --no-eval and --force are for quantization; give a recipe too")
        target = out or Path("artifacts") / (f"{model.name}-{selected.name}" if selected else model.name)
        refuse_existing(target)  # before the download
        folder = locate(model, checkpoint, revision)
        # These import torch, which takes seconds; errors above are reported without it.
        from export.families import family_of
        from export.package import export_artifact, export_quantized
        from quantize.package import Plan

        model = model if model.family else replace(model, family=family_of(folder))
        with Report() as report:
            if selected is None:
                artifact = export_artifact(model, folder, target, report)
            else:
                plan = Plan(selected, calibration, eval, force, graphs_only=no_eval)
                artifact = export_quantized(model, folder, plan, target, report)
    except AsrError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    except ImportError as error:
        typer.echo(
            f"error: exporting needs the package {error.name!r}, which is not installed: "
            "pip install 'asr-deploy[export]'",
            err=True,
        )
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        typer.echo("error: interrupted; nothing was written", err=True)
        raise typer.Exit(130) from None
    for graph, result in artifact.manifest.parity.items():
        report.console.print(f"{graph}: {result.summary}")
    report.console.print(f"{artifact.size / 1e6:.1f} MB in {time.monotonic() - start:.0f} s, {peak_memory()}")
    typer.echo(artifact.path)


def _print_list(*, as_json: bool, as_markdown: bool) -> None:
    from export import catalog

    write = catalog.as_json if as_json else catalog.as_markdown if as_markdown else catalog.as_text
    typer.echo(write(catalog.catalog()).removesuffix("\n"))


def _select_recipe(name: str | None, *, int8: bool, int4: bool, reduce_range: bool) -> Recipe | None:
    """Load the recipe that the options select, or return None.

    Raises:
        OptionError: the options select several recipes.
        OptionError: ``reduce_range`` is set without a recipe.
    """
    options = (("int8", int8), ("int4", int4), (name or "", name is not None))
    names = [each for each, is_set in options if is_set]
    if len(names) > 1:
        raise OptionError(f"{len(names)} recipes are given ({', '.join(names)}); give one")
    if not names:
        if reduce_range:
            raise OptionError("--reduce-range is for quantization; give a recipe too")
        return None
    recipe = load_recipe(names[0])
    return recipe.with_reduced_range() if reduce_range else recipe
