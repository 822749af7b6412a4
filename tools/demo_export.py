"""Transcribe the sample recordings and print the texts beside the references: ``python -m tools.demo [MODEL]``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from runtime import Transcriber

DATA = Path(__file__).resolve().parents[1] / "tests" / "data"


def main(
    model: Annotated[Path | None, typer.Argument(help="Folder of an artifact; the bundled model by default.")] = None,
) -> None:
    """Transcribe every sample with its context, and print a table of references and results."""
    transcriber = Transcriber.from_artifact(model)
    table = Table(
        "file",
        "reference",
        "transcript",
        "language",
        title=f"{transcriber.artifact.manifest.name} on the CPU, without torch",
    )
    audio_seconds = seconds = 0.0
    exact = 0
    samples = json.loads((DATA / "index.json").read_text(encoding="utf-8"))
    for sample in samples:
        transcript = transcriber.transcribe(DATA / sample["file"], context=sample["context"])
        timings = transcript.timings
        seconds += timings.features + timings.encode + timings.prefill + timings.decode
        audio_seconds += transcript.duration
        exact += transcript.text == sample["text"]
        table.add_row(sample["file"], sample["text"], transcript.text, transcript.language)
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table)
    console.print(f"{exact} of {len(samples)} texts are exact; {audio_seconds:.0f} s of audio in {seconds:.2f} s")


if __name__ == "__main__":
    typer.run(main)
