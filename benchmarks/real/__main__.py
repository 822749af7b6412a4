"""``python -m benchmarks.real``: compare all systems on the real recordings and write ``docs/accuracy.md``."""

from __future__ import annotations

import logging
import subprocess
from pathlib import Path
from typing import Annotated

import typer

from benchmarks import report
from benchmarks.children import REPOSITORY, ChildError
from benchmarks.real.run import CHECKPOINT, DATA, THREADS, measure
from benchmarks.real.systems import RECIPES
from runtime.errors import AsrError

PART = "real"
_HELP = """
Compare all recipes, transformers, faster-whisper and whisper.cpp on real recordings, and write docs/accuracy.md.

All systems have the weights of one checkpoint. Artifacts and the other packages' files are made first, if they do not
exist. The systems then take turns, recording by recording. Every result is stored at once, and the same command goes on
after an interrupt.
"""

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command(help=_HELP)
def main(
    checkpoint: Annotated[
        Path, typer.Option(metavar="DIR", help="Whisper base in the layout of CTranslate2, from `make real-model`.")
    ] = CHECKPOINT,
    data: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="Recordings with an index.json, instead of the two folders here; repeatable."),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Use N recordings of each language; the page goes to the work folder."),
    ] = None,
    recipe: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Compare this recipe, instead of all; repeatable.")
    ] = None,
    threads: Annotated[int, typer.Option(metavar="N", min=1, help="Threads of every system.")] = THREADS,
    work: Annotated[Path, typer.Option(metavar="DIR", help="Folder of artifacts and results.")] = (
        REPOSITORY / "build" / "benchmarks"
    ),
    docs: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of the page: docs/, or one in the work folder for a part."),
    ] = None,
) -> None:
    """Measure and write the page, or a preview of it."""
    if unknown := set(recipe or ()) - {*RECIPES}:
        raise typer.BadParameter(f"unknown recipe {', '.join(sorted(unknown))}; known are {', '.join(RECIPES)}")
    try:
        recipes = tuple(each for each in RECIPES if not recipe or each in recipe)
        results = measure(work, checkpoint, data or DATA, limit, recipes, threads)
        if docs is None:
            docs = preview(work / "real" / "preview") if limit or recipe else REPOSITORY / "docs"
        report.store(docs, PART, results)
        report.write_page(docs, report.PAGES["accuracy"])
    except (AsrError, ChildError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    except subprocess.CalledProcessError as error:
        typer.echo(f"error: {' '.join(map(str, error.cmd))} failed with code {error.returncode}", err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        typer.echo("error: interrupted; the same command goes on from here", err=True)
        raise typer.Exit(130) from None
    typer.echo(docs / report.PAGES["accuracy"].text)


def preview(folder: Path) -> Path:
    """Return a folder with a copy of the page, for results that are not those of the documentation."""
    folder.mkdir(parents=True, exist_ok=True)
    page = report.PAGES["accuracy"].text
    (folder / page).write_bytes((REPOSITORY / "docs" / page).read_bytes())
    return folder


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    app()
