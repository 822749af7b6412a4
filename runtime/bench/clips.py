"""Clips of exact lengths, cut from recordings and repeated where those are shorter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

from runtime.audio import load_audio

Floats = npt.NDArray[np.float32]

# The longest sample of each language: 29 s in all. They come along with the wheel; in a clone they are the tests'.
_SAMPLES = ("en-3.wav", "ru-3.wav", "zh-3.wav")


def sample_recordings() -> list[Path]:
    """Recordings that come with the package, for benchmarks without ``--audio``."""
    package = Path(__file__).resolve().parent
    installed = package / "speech"
    folder = installed if installed.is_dir() else package.parent.parent / "tests" / "data"
    return [folder / name for name in _SAMPLES]


def load_recordings(files: Sequence[Path], rate: int, longest: float) -> Floats:
    """Recordings one after the other, mono at ``rate``; those that ``longest`` seconds do not need are not read.

    Raises:
        AudioNotFoundError, AudioInvalidError, AudioUnsupportedError: see :func:`runtime.audio.load_audio`.
    """
    parts: list[Floats] = []
    for file in files:
        parts.append(load_audio(file, rate))
        if sum(map(len, parts)) >= longest * rate:
            break
    return np.concatenate(parts)


def cut(samples: Floats, rate: int, seconds: float) -> Floats:
    """The first ``seconds`` of ``samples``, repeated as often as it takes; at least one sample."""
    return np.resize(samples, max(1, round(seconds * rate)))


def write_clip(path: Path, samples: Floats, rate: int) -> None:
    """Write a clip as 16-bit WAV, as recordings commonly are."""
    soundfile.write(path, samples, rate, subtype="PCM_16")
