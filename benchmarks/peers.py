"""Other packages to compare with: onnx-asr and sherpa-onnx, in their own environment, over the same weights.

``python -m benchmarks.families prepare`` makes the environment ``build/peers`` from ``benchmarks/peers.txt``.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.children import REPOSITORY, module
from benchmarks.peer_graphs import write_gigaam, write_parakeet
from benchmarks.peer_whisper import write_whisper
from runtime.ort.threads import usable_cores

log = logging.getLogger("benchmarks")

ENVIRONMENT = REPOSITORY / "build" / "peers"
REQUIREMENTS = Path(__file__).with_name("peers.txt")


@dataclass(frozen=True, slots=True)
class Peer:
    """Another package for a family: ``write`` converts an artifact of one of ``recipes`` to the form that it reads.

    Packages that read the same form share the same ``write``.
    """

    package: str
    kind: str
    write: Callable[[Path, Path], Path]
    recipes: tuple[str, ...]

    def folder(self, artifact: Path) -> Path:
        """Return the folder of the artifact in the package's form, made if it does not exist."""
        out = artifact.parent / "peers" / artifact.name
        if not out.exists():
            partial = out.with_name(f"{out.name}.new")
            shutil.rmtree(partial, ignore_errors=True)
            self.write(artifact, partial)
            partial.replace(out)
        return out

    def job(self, ask: str, folder: Path, clips: list[Path], new_tokens: int | None, way: str = "") -> dict[str, Any]:
        """Return a job for :mod:`benchmarks.peer_child`; ``new_tokens`` of each clip are forced where possible."""
        return {
            "ask": ask,
            "package": self.package,
            "kind": self.kind,
            "folder": str(folder.resolve()),
            "clips": [str(clip.resolve()) for clip in clips],
            "threads": usable_cores(),
            "new_tokens": new_tokens,
            "language": "en" if new_tokens else None,  # forced text needs no language detection
            "way": way,
        }


PEERS = {
    "whisper": (Peer("onnx-asr", "whisper", write_whisper, ("float32",)),),
    "parakeet-tdt": (
        Peer("onnx-asr", "nemo-conformer-tdt", write_parakeet, ("float32", "int8")),
        Peer("sherpa-onnx", "nemo-conformer-tdt", write_parakeet, ("float32", "int8")),
    ),
    "gigaam-ctc": (
        Peer("onnx-asr", "gigaam-v3-ctc", write_gigaam, ("float32", "int8")),
        Peer("sherpa-onnx", "gigaam-v3-ctc", write_gigaam, ("float32", "int8")),
    ),
}
# Reasons why a package is not in the table, by family and package; they are stored with the results.
REASONS = {
    ("qwen3-asr", "onnx-asr"): "has no Qwen3-ASR.",
    ("qwen3-asr", "sherpa-onnx"): (
        "reads Qwen3-ASR as four graphs of its own exporter, whose decoder outputs caches of a fixed length; our "
        "decoder has one buffer for past and present."
    ),
    ("whisper", "sherpa-onnx"): (
        "passes its decoder a cache of all 448 positions with an offset; our decoder's caches have the length "
        "of the text."
    ),
}


def command() -> list[str | Path]:
    """Return the command that runs the child process of other packages."""
    return module("benchmarks.peer_child", ENVIRONMENT / ("Scripts" if os.name == "nt" else "bin") / "python")


def make_environment() -> None:
    """Install the packages of ``peers.txt`` into ``build/peers``, unless they are installed."""
    mark = ENVIRONMENT / "installed.txt"
    if mark.exists() and mark.read_text() == REQUIREMENTS.read_text():
        return
    log.info("making %s", ENVIRONMENT)
    subprocess.run([sys.executable, "-m", "venv", str(ENVIRONMENT)], check=True)
    python = str(command()[0])
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--requirement", str(REQUIREMENTS)], check=True)
    mark.write_text(REQUIREMENTS.read_text())
