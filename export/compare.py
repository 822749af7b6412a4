"""What every family's parity checks need: speech, and a difference that is an error when it is too large."""

from __future__ import annotations

import wave

import numpy as np
import numpy.typing as npt

from export.errors import ParityError
from quantize.speech import samples_folder

Floats = npt.NDArray[np.float32]

RATE = 16_000


def speech(seconds: float) -> Floats:
    """Speech at 16 kHz from the sample recordings, repeated as needed."""
    clips = []
    for path in sorted(samples_folder().glob("*.wav"))[:6]:
        with wave.open(str(path)) as stream:
            clips.append(np.frombuffer(stream.readframes(stream.getnframes()), "<i2").astype(np.float32) / 32768)
    samples = np.concatenate(clips)
    return np.resize(samples, int(seconds * RATE))


def difference(ours: Floats, reference: Floats, what: str, tolerance: float) -> float:
    """The largest absolute difference of two arrays.

    Raises:
        ParityError: their shapes differ, or it is over ``tolerance``; ``what`` says of what.
    """
    if ours.shape != reference.shape:
        raise ParityError(
            f"{what}: the graph gives {list(ours.shape)} where the reference gives {list(reference.shape)}"
        )
    difference = float(np.abs(ours - reference).max())
    if not difference <= tolerance:  # also when it is NaN
        raise ParityError(
            f"{what}: the graph differs from the reference by {difference:.2e}, more than {tolerance:.0e}"
        )
    return difference
