"""Random weights in the real dimensions: ``python -m tools.random_checkpoint NAME DIR``.

``NAME`` is one of ``python -m export``, whose ``--checkpoint DIR`` takes the folder. For time, memory and size only, as
the text is noise.
"""

from __future__ import annotations

import sys
from pathlib import Path

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


def main(name: str, out: Path) -> None:
    """Write the checkpoint called ``name`` as the folder ``out``."""
    if name not in WRITERS:
        raise SystemExit(f"unknown model {name!r}; known are {', '.join(WRITERS)}")
    WRITERS[name](name, out)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
