"""``python -m benchmarks``: measure the figures of ``docs``, write its tables and pictures, check them."""

from __future__ import annotations

import logging
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import report
from benchmarks.check import violations

REPOSITORY = Path(__file__).resolve().parents[1]

#: What measures each part: a module of this package and its function, which takes the work folder.
PARTS = {
    "accuracy": ("accuracy", "measure"),
    "speed": ("speed", "measure"),
    "large": ("speed", "measure_large"),
    "kernels": ("kernels", "measure"),
    "speech": ("speech", "measure"),
    "scale": ("scale", "measure"),
    "limits": ("limits", "measure"),
    "live": ("live", "measure"),
    "chunks": ("live", "measure_chunks"),
    "serving": ("serving", "measure"),
    "families": ("families", "measure"),
    "checkpoints": ("family_accuracy", "measure"),
    "real": ("real.run", "measure"),
}
_HELP = """
Measure, and write the tables and pictures of docs/.

All parts take about three and a half hours on two cores and 25 GB of disk, most of it for exporting and quantizing
random weights of the real sizes. Artifacts in the work folder are reused even if the code has changed since: remove the
folder to start anew.

Parts by page:

\b
quantization.md   accuracy, speed, large, kernels
speed.md          speech, scale, limits
streaming.md      live, chunks
serving.md        serving
families.md       families, checkpoints
accuracy.md       real

Other commands:

\b
python -m benchmarks.real               accuracy.md alone, with options: other weights, recordings, recipes
python -m benchmarks.families prepare   artifacts and other packages' environment for the part families
python -m benchmarks.fidelity           docs/fidelity.md: real weights and recordings against transformers
python -m benchmarks.live_recordings    docs/streaming.md: streams of real recordings with real weights
python -m benchmarks.four_bits          table of docs/quantization.md on 4 bits, part by part
python -m benchmarks.vad                voice activity detection: numpy against ONNX Runtime
python -m benchmarks.no_speech          what tells sounds from speech, and texts dropped by mistake
"""

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command(help=_HELP)
def main(
    work: Annotated[Path, typer.Option(help="Folder for artifacts and recordings; a second run continues there.")] = (
        REPOSITORY / "build" / "benchmarks"
    ),
    docs: Annotated[Path, typer.Option(help="Folder of results, pages and pictures.")] = REPOSITORY / "docs",
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="PART", help="Measure this part, or `report` to write pages only; repeatable."),
    ] = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Measure nothing; verify that pages and pictures match the stored results and that the results keep "
            "their bounds. Exits with 1 and one line for each violation.",
        ),
    ] = False,
) -> None:
    """Measure parts and write the pages, or check what is stored."""
    if check:
        lines = violations(docs)
        for line in lines:
            typer.echo(line, err=True)
        raise typer.Exit(1 if lines else 0)
    chosen = only or [*PARTS, "report"]
    if unknown := set(chosen) - {*PARTS, "report"}:
        raise typer.BadParameter(f"unknown part {', '.join(sorted(unknown))}; known are {', '.join(PARTS)}, report")
    docs.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        if part in chosen:
            report.store(docs, part, measure(part, work))
    if "report" in chosen:
        typer.echo(report.write(docs))


def measure(part: str, work: Path) -> dict[str, Any]:
    """Run the measurement of a part; its module is imported here, since some need torch."""
    module, function = PARTS[part]
    results: dict[str, Any] = getattr(import_module(f"benchmarks.{module}"), function)(work)
    return results


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    app()
