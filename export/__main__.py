"""``python -m export NAME``: a checkpoint becomes an artifact that the runtime opens."""

from __future__ import annotations

import logging
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from export.checkpoints import CHECKPOINTS, locate, named
from quantize.output_folder import refuse_existing
from quantize.progress import Report, peak_memory
from quantize.recipe import Recipe, load_recipe, shipped
from runtime.errors import AsrError, OptionError

_KNOWN = "; ".join(f"{checkpoint.name}: {checkpoint.summary}" for checkpoint in CHECKPOINTS.values())

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def main(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help=_KNOWN)] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="A local checkpoint folder, of either layout, in place of the named source.")
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="A commit, tag or branch on the hub in place of the pinned commit.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The artifact's folder. [default: artifacts/NAME, or artifacts/NAME-RECIPE]")
    ] = None,
    int8: Annotated[bool, typer.Option("--int8", help="Quantize with the recipe int8.")] = False,
    int4: Annotated[bool, typer.Option("--int4", help="Quantize with the recipe int4.")] = False,
    recipe: Annotated[
        str | None, typer.Option(help=f"Quantize with a recipe: {', '.join(shipped())}, or a .toml file.")
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="Folder of audio to calibrate quantization with. [default: bundled samples]")
    ] = None,
    eval: Annotated[
        Path | None, typer.Option(help="Folder of audio with transcripts on which quantization is evaluated.")
    ] = None,
    reduce_range: Annotated[
        bool, typer.Option("--reduce-range", help="7-bit weights in integer products, for x86 without VNNI.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Keep a quantized result that the gate refuses.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show what the libraries underneath report.")] = False,
    list_models: Annotated[
        bool, typer.Option("--list", help="List the names, what each model is and can do, and do no more.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The list as JSON.")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="The list as the tables of README.md.")] = False,
) -> None:
    """Export a checkpoint to ONNX graphs with tokenizer and manifest, and quantize them if a recipe is given."""
    logging.basicConfig(level=logging.DEBUG if verbose else logging.WARNING, format="%(name)s: %(message)s")
    # Progress bars of the libraries would mix with ours; they write where no terminal is, too.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    began = time.monotonic()
    try:
        if list_models:
            if name is not None or (as_json and as_markdown):
                raise OptionError("--list takes no NAME, and one of --json and --markdown at the most")
            _list(as_json=as_json, as_markdown=as_markdown)
            return
        if as_json or as_markdown:
            raise OptionError("--json and --markdown are for --list; give it too")
        if name is None:
            raise OptionError("no NAME is given; --list shows those there are")
        known = named(name)
        chosen = _recipe(recipe, int8=int8, int4=int4, reduce_range=reduce_range)
        if chosen is None and (calibration or eval or force):
            raise OptionError("--calibration, --eval and --force are for quantization; give a recipe too")
        target = out or Path("artifacts") / (f"{known.name}-{chosen.name}" if chosen else known.name)
        refuse_existing(target)  # before gigabytes are downloaded
        folder = locate(known, checkpoint, revision)
        # These import torch: seconds that a wrong name need not cost.
        from export.families import family_of
        from export.package import export_artifact, export_quantized
        from quantize.package import Plan

        known = known if known.family else replace(known, family=family_of(folder))
        with Report() as report:
            if chosen is None:
                artifact = export_artifact(known, folder, target, report)
            else:
                plan = Plan(chosen, calibration, eval, force)
                artifact = export_quantized(known, folder, plan, target, report)
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
        report.console.print(f"{graph}: at most {result.max_abs_difference:.1e} from the reference")
    report.console.print(f"{artifact.size / 1e6:.1f} MB in {time.monotonic() - began:.0f} s, {peak_memory()}")
    typer.echo(artifact.path)


def _list(*, as_json: bool, as_markdown: bool) -> None:
    from export import catalog

    write = catalog.as_json if as_json else catalog.as_markdown if as_markdown else catalog.as_text
    typer.echo(write(catalog.catalog()).removesuffix("\n"))


def _recipe(name: str | None, *, int8: bool, int4: bool, reduce_range: bool) -> Recipe | None:
    """The one recipe that the options ask for, or None."""
    asked = [each for each, wanted in (("int8", int8), ("int4", int4), (name or "", name is not None)) if wanted]
    if len(asked) > 1:
        raise OptionError(f"{len(asked)} recipes are asked for ({', '.join(asked)}); give one")
    if not asked:
        if reduce_range:
            raise OptionError("--reduce-range is for quantization; give a recipe too")
        return None
    recipe = load_recipe(asked[0])
    return recipe.with_reduced_range() if reduce_range else recipe


if __name__ == "__main__":
    app()
