"""Artifacts to measure: checkpoints are exported once and quantized by recipes, each in its own process."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger("benchmarks")

RECIPES = ("int8", "q8", "mixed", "int4", "int4-small", "fp16")
FLOAT = "float32"


@dataclass(frozen=True, slots=True)
class Run:
    """Duration and peak resident memory of a command."""

    seconds: float
    peak_bytes: int


def run(*arguments: str | Path) -> Run:
    """Run ``python -m ARGUMENTS`` in its own process; standard output is dropped.

    Raises:
        subprocess.CalledProcessError: the command failed.
    """
    command = [sys.executable, "-m", *map(str, arguments)]
    log.info("%s", " ".join(command[1:]))
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return Run(time.monotonic() - began, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024))


def exported(name: str, folder: Path, checkpoint: Path | None = None) -> Path:
    """Return the float32 artifact of a model in ``folder``, exported if it does not exist."""
    out = folder / FLOAT
    if not out.exists():
        run("export", name, "--out", out, *(("--checkpoint", checkpoint) if checkpoint else ()))
    return out


def quantized(parent: Path, recipe: str) -> tuple[Path, Run | None]:
    """Return the artifact of a recipe beside ``parent``, and its :class:`Run`; None if the artifact existed.

    Uses ``--force``, since benchmarks also report what exceeds a recipe's bounds, and ``--no-eval``, since they count
    errors themselves and random weights have no text.
    """
    out = parent.parent / recipe
    if out.exists():
        return out, None
    return out, run("quantize", parent, "--recipe", recipe, "--out", out, "--force", "--no-eval")


def random_weights(size: str, folder: Path) -> Path:
    """Return the float32 artifact of a Qwen3-ASR of the real ``size`` (``0.6b``, ``1.7b``) with random weights."""
    checkpoint = folder / "checkpoint"
    if not (folder / FLOAT).exists() and not checkpoint.exists():
        run("tools.random_checkpoint", f"qwen3-asr-{size}", checkpoint)
    return exported(f"qwen3-asr-{size}", folder, checkpoint)
