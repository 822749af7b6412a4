"""Print what a model hears in the sample recordings beside what was said: ``python -m tools.demo [MODEL]``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from runtime import Transcriber

DATA = Path(__file__).resolve().parents[1] / "tests" / "data"


def main() -> None:
    """Transcribe every sample with its context."""
    transcriber = Transcriber.from_artifact(sys.argv[1] if len(sys.argv) > 1 else None)
    table = Table(
        "file", "said", "heard", "language", title=f"{transcriber.artifact.manifest.name} on the CPU, no torch"
    )
    seconds = spent = 0.0
    right = 0
    samples = json.loads((DATA / "index.json").read_text(encoding="utf-8"))
    for sample in samples:
        transcript = transcriber.transcribe(DATA / sample["file"], context=sample["context"])
        timings = transcript.timings
        spent += timings.features + timings.encode + timings.prefill + timings.decode
        seconds += transcript.duration
        right += transcript.text == sample["text"]
        table.add_row(sample["file"], sample["text"], transcript.text, transcript.language)
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table)
    console.print(f"{right} of {len(samples)} equal to the letter; {seconds:.0f} s of audio in {spent:.2f} s")


if __name__ == "__main__":
    main()
