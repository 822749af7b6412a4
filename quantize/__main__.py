"""``python -m quantize ARTIFACT --recipe NAME``: an artifact becomes a smaller and faster one."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from quantize.progress import Report, peak_memory
from quantize.recipe import load_recipe, shipped
from runtime.errors import AsrError
from runtime.model.artifact import open_artifact

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def main(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="A folder that `python -m export` wrote.")],
    recipe: Annotated[str, typer.Option(help=f"{', '.join(shipped())}, or a .toml file of your own.")],
    out: Annotated[Path | None, typer.Option(help="The new folder. [default: ARTIFACT-RECIPE]")] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="Folder of audio to measure activations on. [default: bundled samples]")
    ] = None,
    eval: Annotated[
        Path | None, typer.Option(help="Folder of audio with transcripts on which the result is compared.")
    ] = None,
    reduce_range: Annotated[
        bool, typer.Option("--reduce-range", help="7-bit weights in integer products, for x86 without VNNI.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Keep a result that the gate refuses.")] = False,
) -> None:
    """Quantize an artifact by a recipe, and measure what that costs."""
    began = time.monotonic()
    try:
        chosen = load_recipe(recipe)
        if reduce_range:
            chosen = chosen.with_reduced_range()
        parent = open_artifact(artifact)
        from quantize.package import Plan, quantize_artifact  # half a second that a wrong name need not cost

        with Report() as report:
            plan = Plan(chosen, calibration, eval, force)
            target = out or artifact.resolve().parent / f"{artifact.resolve().name}-{chosen.name}"
            made = quantize_artifact(parent, plan, target, report)
    except AsrError as error:
        _fail(str(error))
    except ImportError as error:
        _fail(
            f"quantizing needs the package {error.name!r}, which is not installed: pip install 'asr-deploy[quantize]'"
        )
    except KeyboardInterrupt:
        typer.echo("error: interrupted; nothing was written", err=True)
        raise typer.Exit(130) from None
    report.console.print(f"{made.size / 1e6:.1f} MB in {time.monotonic() - began:.0f} s, {peak_memory()}")
    typer.echo(made.path)


def _fail(sentence: str) -> NoReturn:
    typer.echo(f"error: {sentence}", err=True)
    raise typer.Exit(2) from None


if __name__ == "__main__":
    app()
