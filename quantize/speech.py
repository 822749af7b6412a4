"""Speech that comes along: samples to calibrate and check graphs with, and the small checkpoints' evaluation set."""

from __future__ import annotations

from pathlib import Path

#: Models that the bundled evaluation set is for: those trained on this synthetic speech. On others it says nothing.
EVALUATED = frozenset({"qwen3-asr-tiny"})


def samples_folder() -> Path:
    """The sample recordings (wav) with ``index.json``: beside this module when installed, else in the tests."""
    package = Path(__file__).resolve().parent
    installed = package / "speech"
    return installed if installed.is_dir() else package.parent / "tests" / "data"


def evaluation_folder() -> Path:
    """The held-out recordings of the small checkpoints."""
    return samples_folder() / "evaluation"
