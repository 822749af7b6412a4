"""What is measured: checkpoints exported once, quantized by every recipe, each in a process of its own."""

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
    """How long a command took, and the most memory it had."""

    seconds: float
    peak_bytes: int


def run(*arguments: str | Path) -> Run:
    """``python -m …`` in a process of its own, with its output where ours goes.

    Raises:
        subprocess.CalledProcessError: it failed.
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
    """The float32 artifact of a model, exported if it is not there."""
    out = folder / FLOAT
    if not out.exists():
        run("export", name, "--out", out, *(("--checkpoint", checkpoint) if checkpoint else ()))
    return out


def quantized(parent: Path, recipe: str) -> tuple[Path, Run | None]:
    """The artifact beside ``parent`` made by a recipe, and how that went; None when it was there already.

    Forced: a benchmark reports what is, also beyond a recipe's bounds.
    """
    out = parent.parent / recipe
    if out.exists():
        return out, None
    return out, run("quantize", parent, "--recipe", recipe, "--out", out, "--force")


def random_weights(size: str, folder: Path) -> Path:
    """The float32 artifact of random weights in the real dimensions."""
    checkpoint = folder / "checkpoint"
    if not (folder / FLOAT).exists() and not checkpoint.exists():
        run("tools.random_checkpoint", f"qwen3-asr-{size}", checkpoint)
    return exported(f"qwen3-asr-{size}", folder, checkpoint)
