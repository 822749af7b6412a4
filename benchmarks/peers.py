"""Other packages beside us: onnx-asr and sherpa-onnx, in an environment of their own, over the same weights.

    python -m benchmarks.families prepare      # makes build/peers, as below, and everything else

is ``python -m venv build/peers`` and ``build/peers/bin/pip install --requirement benchmarks/peers.txt``.
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
    """A package that takes a family's graphs in its own form, as ``write`` makes it of an artifact, of some recipes.

    Several peers may share what one ``write`` makes.
    """

    package: str
    kind: str
    write: Callable[[Path, Path], Path]
    recipes: tuple[str, ...]

    def folder(self, artifact: Path) -> Path:
        """The artifact in the package's form, made if it is not there."""
        out = artifact.parent / "peers" / artifact.name
        if not out.exists():
            made = out.with_name(f"{out.name}.new")
            shutil.rmtree(made, ignore_errors=True)
            self.write(artifact, made)
            made.replace(out)
        return out

    def job(self, ask: str, folder: Path, clips: list[Path], new_tokens: int | None, way: str = "") -> dict[str, Any]:
        """What :mod:`benchmarks.peer_child` is to do; ``new_tokens`` of each clip are forced if it can."""
        return {
            "ask": ask,
            "package": self.package,
            "kind": self.kind,
            "folder": str(folder.resolve()),
            "clips": [str(clip.resolve()) for clip in clips],
            "threads": usable_cores(),
            "new_tokens": new_tokens,
            "language": "en" if new_tokens else None,  # where text is forced, no language is looked for either
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
# Why a package is not in the table, by family and package.
REASONS = {
    ("qwen3-asr", "onnx-asr"): "has no Qwen3-ASR.",
    ("qwen3-asr", "sherpa-onnx"): (
        "knows Qwen3-ASR as four graphs of its own exporter, whose decoder hands on caches of a fixed length: ours, "
        "with one buffer for past and present, are others in more than their names."
    ),
    ("whisper", "sherpa-onnx"): (
        "hands its decoder a cache of all 448 positions and an offset into it: ours, which hands on what there is, is "
        "another graph."
    ),
}


def command() -> list[str | Path]:
    """What runs a peer."""
    return module("benchmarks.peer_child", ENVIRONMENT / ("Scripts" if os.name == "nt" else "bin") / "python")


def make_environment() -> None:
    """Install the packages, unless they are there."""
    mark = ENVIRONMENT / "installed.txt"
    if mark.exists() and mark.read_text() == REQUIREMENTS.read_text():
        return
    log.info("making %s", ENVIRONMENT)
    subprocess.run([sys.executable, "-m", "venv", str(ENVIRONMENT)], check=True)
    python = str(command()[0])
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--requirement", str(REQUIREMENTS)], check=True)
    mark.write_text(REQUIREMENTS.read_text())
