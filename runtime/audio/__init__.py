"""Read audio of any container, rate and channel count as blocks of mono float32 samples at the model's rate."""

from __future__ import annotations

from runtime.audio.containers.formats import AUDIO_SUFFIXES
from runtime.audio.reader import (
    BLOCK_SECONDS,
    AudioReader,
    Floats,
    Source,
    from_array,
    load_audio,
    open_array,
    open_audio,
)

__all__ = [
    "AUDIO_SUFFIXES",
    "BLOCK_SECONDS",
    "AudioReader",
    "Floats",
    "Source",
    "from_array",
    "load_audio",
    "open_array",
    "open_audio",
]
