"""Make clips of exact lengths from recordings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

from runtime.audio import load_audio

Floats = npt.NDArray[np.float32]

# The longest sample of each language, 29 s in all. The wheel contains them; in a clone they are the tests' data.
_SAMPLES = ("en-3.wav", "ru-3.wav", "zh-3.wav")


def sample_recordings() -> list[Path]:
    """Return the paths of the bundled recordings, for benchmarks without ``--audio``."""
    package = Path(__file__).resolve().parent
    installed = package / "speech"
    folder = installed if installed.is_dir() else package.parent.parent / "tests" / "data"
    return [folder / name for name in _SAMPLES]


def load_recordings(files: Sequence[Path], rate: int, seconds: float) -> Floats:
    """Load recordings and join them, until there are ``seconds`` seconds.

    Args:
        files: audio files, at least one. Files after ``seconds`` is reached are not read.
        rate: sample rate of the result in Hz.
        seconds: length that is enough.

    Returns:
        Mono samples, float32 [samples]; fewer than ``seconds`` if the files are shorter.

    Raises:
        AudioNotFoundError: a file does not exist.
        AudioInvalidError: a file cannot be decoded.
        AudioUnsupportedError: a file's container needs an optional package.
    """
    parts: list[Floats] = []
    for file in files:
        parts.append(load_audio(file, rate))
        if sum(map(len, parts)) >= seconds * rate:
            break
    return np.concatenate(parts)


def cut(samples: Floats, rate: int, seconds: float) -> Floats:
    """Return the first ``seconds`` seconds of ``samples``, repeated if they are shorter; at least one sample."""
    return np.resize(samples, max(1, round(seconds * rate)))


def write_clip(path: Path, samples: Floats, rate: int) -> None:
    """Write float32 samples as a 16-bit PCM WAV file, the usual format of recordings."""
    soundfile.write(path, samples, rate, subtype="PCM_16")
