"""``python -m benchmarks.real.long FILE``: time and memory of all systems on one longer recording, in turns."""

from __future__ import annotations

import logging
import statistics
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import jiwer
import numpy as np
import typer

from benchmarks.children import REPOSITORY, Child, ChildError
from benchmarks.markdown import table
from benchmarks.real.child import RATE
from benchmarks.real.run import CHECKPOINT, THREADS
from benchmarks.real.systems import System, batched, prepare
from benchmarks.stamp import measured, stamp
from runtime.audio import load_audio
from runtime.errors import AsrError
from runtime.evaluation.metrics import normalize

ROWS = 8


def chosen(systems: Sequence[System]) -> list[System]:
    """Return the systems that are made for long audio: no transformers, no five beams, no uncut audio."""
    ours = [each for each in systems if each.package == "asr-deploy" and not each.name.endswith("not cut")]
    return [*ours, *batched(systems, ROWS), *(each for each in systems if each.package == "whisper.cpp")]


def rounds(systems: Sequence[System], clip: Path, language: str, count: int) -> dict[str, list[dict[str, Any]]]:
    """Return the answers of each system. Each runs in a process of its own, one at a time, anew in each round."""
    answers: dict[str, list[dict[str, Any]]] = {system.name: [] for system in systems}
    turn = {"clip": str(clip), "language": language}
    for number in range(count):
        for system in systems:
            with Child(system.command, system.job | {"warm_up": turn}) as child:
                child.answer()
                answers[system.name].append(child.ask(turn))
            typer.echo(f"{number + 1} of {count}: {system.name} {answers[system.name][-1]['seconds']:.2f} s", err=True)
    return answers


def rows_of(answers: dict[str, list[dict[str, Any]]], reference: str) -> list[list[str]]:
    """Return a row of the table for each system: median, range, peak memory, word errors."""
    rows = []
    for name, of_system in answers.items():
        seconds = [answer["seconds"] for answer in of_system]
        found = jiwer.process_words(reference, normalize(of_system[-1]["text"], "English"))
        errors = found.substitutions + found.deletions + found.insertions
        rows.append(
            [
                name,
                f"{statistics.median(seconds):.2f} s",
                f"{min(seconds):.2f} to {max(seconds):.2f}",
                f"{max(answer['peak_bytes'] for answer in of_system) / 1e6:.0f} MB",
                f"{errors} of {len(reference.split())}",
            ]
        )
    return rows


def main(
    recording: Annotated[Path, typer.Argument(metavar="FILE", help="English audio, with its text in FILE.txt.")],
    checkpoint: Annotated[
        Path, typer.Option(metavar="DIR", help="Whisper base in the layout of CTranslate2, from `make real-model`.")
    ] = CHECKPOINT,
    work: Annotated[Path, typer.Option(metavar="DIR", help="Folder of artifacts and of the other packages' files.")] = (
        REPOSITORY / "build" / "benchmarks" / "real"
    ),
    count: Annotated[int, typer.Option("--rounds", min=1, help="Runs of each system.")] = 5,
    threads: Annotated[int, typer.Option(min=1, help="Threads of every system.")] = THREADS,
) -> None:
    """Print a table of time, peak memory and word errors."""
    try:
        text = recording.with_suffix(".txt").read_text(encoding="utf-8")
        samples = load_audio(recording, RATE)
        systems = chosen(prepare(work, checkpoint, ("int8",), threads))
        with tempfile.TemporaryDirectory() as folder:
            clip = Path(folder) / "clip.npy"
            np.save(clip, samples)
            answers = rounds(systems, clip, "en", count)
    except (AsrError, ChildError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    except subprocess.CalledProcessError as error:
        typer.echo(f"error: {' '.join(map(str, error.cmd))} failed with code {error.returncode}", err=True)
        raise typer.Exit(2) from None
    head = ["", "median", "range, s", "peak memory", "word errors"]
    typer.echo(table(head, rows_of(answers, normalize(text, "English"))))
    typer.echo(f"\n{len(samples) / RATE:.0f} s of audio, {threads} threads, {count} rounds. {measured(stamp())}")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    typer.run(main)
