"""Time the reader on a minute of WAV, FLAC, MP3 and Opus, beside that of another checkout of this repository.

    git worktree add /tmp/before COMMIT
    python -m benchmarks.decoding --other /tmp/before

Both read the same files, in processes of their own that take turns, so that other load slows both. The table shows the
fastest of several readings, and the ratio of the two.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import numpy as np
import soundfile
import typer

from benchmarks.vad import SECONDS, speech
from tools.make_vad_weights import REPOSITORY

RATE = 16_000
# Rate and channels of a recording for each format: a call, music software, a podcast, a phone.
FORMATS = {
    "WAV": ("WAV", "PCM_16", 48_000, 2),
    "FLAC": ("FLAC", "PCM_16", 48_000, 2),
    "MP3": ("MP3", "MPEG_LAYER_III", 44_100, 2),
    "Opus": ("OGG", "OPUS", 48_000, 1),
}
# Reads each file given; prints the shortest of three times in seconds.
_CHILD = """
import json, sys, time
from runtime.audio import load_audio
times = []
for path in sys.argv[1:]:
    load_audio(path, 16_000)
    best = 1e9
    for _ in range(3):
        began = time.process_time()
        load_audio(path, 16_000)
        best = min(best, time.process_time() - began)
    times.append(best)
print(json.dumps(times))
"""


def write_files(folder: Path) -> list[Path]:
    """Write a minute of speech in each format; return the paths."""
    paths = []
    for name, (container, subtype, rate, channels) in FORMATS.items():
        positions = np.arange(SECONDS * rate) * (RATE / rate)
        mono = np.interp(positions, np.arange(SECONDS * RATE), speech())
        paths.append(folder / f"minute.{name.lower()}")
        soundfile.write(paths[-1], np.stack([mono] * channels, 1), rate, format=container, subtype=subtype)
    return paths


def measure(tree: Path, paths: list[Path]) -> list[float]:
    """Return the seconds of processor time of the reader in ``tree`` for each file."""
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, *map(str, paths)], cwd=tree, capture_output=True, text=True, check=True
    )
    times: list[float] = json.loads(done.stdout)
    return times


def main(
    other: Annotated[Path | None, typer.Option(help="Another checkout of this repository, to compare with.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Processes for each checkout.")] = 5,
) -> None:
    """Print a table of milliseconds of processor time for a minute of audio."""
    trees = [REPOSITORY] if other is None else [REPOSITORY, other]
    with tempfile.TemporaryDirectory() as folder:
        paths = write_files(Path(folder))
        taken = [[measure(tree, paths) for tree in trees] for _ in range(rounds)]
    best = np.min(taken, axis=0) * 1000  # [trees, files]
    sys.stdout.write("| a minute of | milliseconds |" + (" other checkout | ratio |\n" if other else "\n"))
    sys.stdout.write("|---|---|" + ("---|---|\n" if other else "\n"))
    for index, name in enumerate(FORMATS):
        cells = [f"{value:.0f}" for value in best[:, index]]
        cells += [f"{best[0, index] / best[1, index]:.2f}"] if other else []
        sys.stdout.write(f"| {name} | {' | '.join(cells)} |\n")


if __name__ == "__main__":
    typer.run(main)
