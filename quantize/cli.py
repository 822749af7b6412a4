"""Command line of ``python -m quantize ARTIFACT --recipe NAME``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from quantize.progress import Report, peak_memory
from quantize.recipe import load_recipe, shipped
from runtime.cli.command import Command
from runtime.errors import AsrError
from runtime.model.artifact import open_artifact

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command(cls=Command)
def main(
    artifact: Annotated[
        Path, typer.Argument(metavar="ARTIFACT", help="Artifact folder written by `python -m export`.")
    ],
    recipe: Annotated[
        str, typer.Option(help=f"Bundled recipe ({', '.join(shipped())}) or path of a .toml recipe file.")
    ],
    out: Annotated[Path | None, typer.Option(help="Output folder; must not exist. [default: ARTIFACT-RECIPE]")] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="Folder of audio files for calibration. [default: bundled recordings]")
    ] = None,
    eval: Annotated[
        Path | None,
        typer.Option(
            help="Folder of audio with transcripts for comparing the result with ARTIFACT. [default: bundled "
            "recordings in the model's languages]"
        ),
    ] = None,
    no_eval: Annotated[
        bool, typer.Option("--no-eval", help="Compare graphs alone, without transcribing evaluation audio.")
    ] = False,
    reduce_range: Annotated[
        bool, typer.Option("--reduce-range", help="Use 7-bit weights in integer products, for x86 without VNNI.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Keep the result even if it exceeds the bounds of the recipe.")
    ] = False,
) -> None:
    """Quantize an artifact by a recipe and measure the loss of accuracy."""
    start = time.monotonic()
    try:
        loaded_recipe = load_recipe(recipe)
        if reduce_range:
            loaded_recipe = loaded_recipe.with_reduced_range()
        parent = open_artifact(artifact)
        # Importing this takes half a second, so wrong arguments are reported first.
        from quantize.package import Plan, quantize_artifact

        with Report() as report:
            plan = Plan(loaded_recipe, calibration, eval, force, graphs_only=no_eval)
            target = out or artifact.resolve().parent / f"{artifact.resolve().name}-{loaded_recipe.name}"
            result = quantize_artifact(parent, plan, target, report)
    except AsrError as error:
        _fail(str(error))
    except ModuleNotFoundError as error:
        _fail(
            f"quantizing needs the package {error.name!r}, which is not installed: pip install 'asr-deploy[quantize]'"
        )
    except KeyboardInterrupt:
        typer.echo("error: interrupted; nothing was written", err=True)
        raise typer.Exit(130) from None
    report.console.print(f"{result.size / 1e6:.1f} MB in {time.monotonic() - start:.0f} s, {peak_memory()}")
    typer.echo(result.path)


def _fail(message: str) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(2) from None
