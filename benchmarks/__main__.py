"""``python -m benchmarks``: the figures and pictures of ``docs/quantization.md``, ``docs/speed.md``,
``docs/streaming.md``, ``docs/serving.md`` and ``docs/families.md``.

About an hour on two cores and 25 GB of disk, most of it exporting and quantizing random weights of the real sizes.
Artifacts that are there already are not made again, whatever code made them: remove the folder that ``--work`` names to
begin anew.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import (
    accuracy,
    families,
    family_accuracy,
    kernels,
    limits,
    live,
    report,
    scale,
    serving,
    speech,
    speed,
)

REPOSITORY = Path(__file__).resolve().parents[1]

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def main(
    work: Annotated[Path, typer.Option(help="Artifacts and recordings; a second run continues here.")] = REPOSITORY
    / "build"
    / "benchmarks",
    docs: Annotated[Path, typer.Option(help="Where results, tables and pictures go.")] = REPOSITORY / "docs",
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="accuracy, speed, large, kernels (quantization.md), speech, scale, limits (speed.md), live, "
            "chunks (streaming.md), serving (serving.md), families, checkpoints (families.md) or report, in place "
            "of all (repeatable)."
        ),
    ] = None,
) -> None:
    """Measure, and write the tables and the pictures."""
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "accuracy": lambda: accuracy.measure(work),
        "speed": lambda: speed.measure(work),
        "large": lambda: speed.measure_large(work),
        "kernels": kernels.measure,
        "speech": lambda: speech.measure(work),
        "scale": lambda: scale.measure(work),
        "limits": lambda: limits.measure(work),
        "live": lambda: live.measure(work),
        "chunks": lambda: live.measure_chunks(work),
        "serving": serving.measure,
        "families": lambda: families.measure(work),
        "checkpoints": lambda: family_accuracy.measure(work),
    }
    wanted = only or [*parts, "report"]
    if unknown := set(wanted) - {*parts, "report"}:
        raise typer.BadParameter(f"unknown part {', '.join(sorted(unknown))}; known are {', '.join(parts)}, report")
    docs.mkdir(parents=True, exist_ok=True)
    for name, run in parts.items():
        if name in wanted:
            report.store(docs, name, run())
    if "report" in wanted:
        typer.echo(report.write(docs))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    app()
