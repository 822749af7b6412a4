"""Measure all systems on the real recordings: the part ``real`` of ``python -m benchmarks``."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.children import REPOSITORY
from benchmarks.real.figures import data_figures, figures
from benchmarks.real.systems import RECIPES, ReportError, prepare
from benchmarks.real.turns import Store, describe, load_recordings, run
from runtime.host.files import sha256_file

log = logging.getLogger("benchmarks")

THREADS = 2
#: What `make real-model` leaves.
CHECKPOINT = REPOSITORY / "build" / "checkpoints" / "whisper-base-ctranslate2"
#: The recordings of the tests, and those of benchmarks alone.
DATA = (REPOSITORY / "tests" / "data" / "real", REPOSITORY / "benchmarks" / "data" / "real")


def measure(
    work: Path,
    checkpoint: Path = CHECKPOINT,
    data: Sequence[Path] = DATA,
    limit: int | None = None,
    recipes: tuple[str, ...] = RECIPES,
    threads: int = THREADS,
) -> dict[str, Any]:
    """Return recordings, versions and the figures of all systems.

    Args:
        work: folder of the benchmarks; everything of this part is in its folder ``real``.
        checkpoint: folder of Whisper base in the layout of CTranslate2.
        data: folders of recordings.
        limit: use the first recordings of each language only.
        recipes: recipes of this project to compare.
        threads: threads of every system.

    Raises:
        ReportError: the checkpoint is missing or of another layout, or ``work`` has results of another run.
        AsrError: checkpoint or recordings cannot be read.
        ChildError: a system failed.
        subprocess.CalledProcessError: exporting, quantizing or installing failed.
    """
    if not (checkpoint / "model.bin").is_file():
        raise ReportError(
            f"{checkpoint}: has no model.bin; run `make real-model`, or give its folder with --checkpoint"
        )
    folder = work / "real"
    folder.mkdir(parents=True, exist_ok=True)
    recordings = load_recordings(data, folder / "clips", limit)
    log.info("%d recordings", len(recordings))
    systems = prepare(folder, checkpoint, recipes, threads)
    digest = sha256_file(checkpoint / "model.bin")
    name = "results.jsonl" if limit is None else f"results-{limit}.jsonl"
    store = Store(folder / name, describe(systems, recordings, digest))
    run(systems, recordings, store)
    return {
        "checkpoint": digest,
        "threads": threads,
        "limit": limit,
        "recordings": data_figures(recordings),
        "versions": dict(sorted(store.versions.items())),
        "systems": figures(systems, recordings, store.results),
    }
