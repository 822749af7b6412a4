"""``python -m tools.random_checkpoint NAME DIR``: write a checkpoint of the real dimensions with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tools.random_checkpoint import gigaam, parakeet, qwen3_asr, whisper

WRITERS = {
    "qwen3-asr-0.6b": qwen3_asr.write,
    "qwen3-asr-1.7b": qwen3_asr.write,
    "whisper-large-v3-turbo": whisper.write,
    "parakeet-tdt-0.6b-v3": parakeet.write,
    "parakeet-ctc-1.1b": parakeet.write,
    "gigaam-v3-ctc": gigaam.write,
    "gigaam-v3-e2e-ctc": gigaam.write,
}


def main(
    name: Annotated[str, typer.Argument(help=f"One of {', '.join(WRITERS)}.")],
    out: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write to.")],
) -> None:
    """Write a checkpoint of the real dimensions with random weights.

    It serves to measure time, memory and size: its text is noise. `python -m export NAME --checkpoint DIR` exports it.
    """
    if name not in WRITERS:
        raise SystemExit(f"unknown model {name!r}; known are {', '.join(WRITERS)}")
    WRITERS[name](name, out)


if __name__ == "__main__":
    typer.run(main)
