"""Mix channels, and scale samples that are not in [-1, 1]: integers, and integers that are stored as floats."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.audio.decoded import Warn
from runtime.errors import AudioInvalidError

Floats = npt.NDArray[np.float32]
Samples = npt.NDArray[Any]

# Channels cancel where their mean has less than this share of the energy that it has for unrelated channels. For two
# channels of equal level that is a correlation below -0.8.
_CANCELLED = 0.2
# Mean square below which channels are silence (-80 dB), whatever they do.
_SILENCE = 1e-8

# Floats up to this magnitude are audio with headroom (24 dB): programs that mix write such files.
_HEADROOM = 16.0
# From here to this, floats that are no integers are samples of 16 bits: resampling overshoots full scale.
_INT16_RANGE = (256.0, 1.25 * 2**15)
# Full scale of integers in floats, by the largest magnitude.
_SCALES = tuple(2.0 ** (bits - 1) for bits in (16, 24, 32))


def mix(samples: Samples, rate: int) -> tuple[Floats, bool]:
    """Return the mean of all channels, and whether some cancelled one another.

    In seconds where channels cancel (one is about the other negated), the loudest channel is returned.

    Args:
        samples: [n, channels].
        rate: Hz.

    Returns:
        Mono samples [n], and whether a channel was taken.
    """
    count, channels = samples.shape
    if channels == 1:
        return np.ascontiguousarray(samples[:, 0], np.float32), False
    if channels == 2:
        mono = samples[:, 0].astype(np.float32)
        mono += samples[:, 1]
        mono *= np.float32(0.5)
    else:
        mono = samples.mean(axis=1, dtype=np.float32)
    cancelled = False
    with np.errstate(over="ignore", invalid="ignore"):  # samples that are not finite are refused later
        for start in range(0, count, max(1, rate)):
            part = samples[start : start + rate]
            of_mean = np.dot(mono[start : start + rate], mono[start : start + rate])
            energies = np.einsum("nc,nc->c", part, part)
            unrelated = energies.sum() / channels**2
            if of_mean < _CANCELLED * unrelated and energies.max() > _SILENCE * len(part):
                mono[start : start + rate] = part[:, int(energies.argmax())]
                cancelled = True
    return mono, cancelled


def cancel_warning(name: str) -> str:
    """Return the warning that a channel was taken instead of the mean."""
    return (
        f"{name}: its channels cancel one another, as if one were the other negated; "
        "the louder channel is transcribed there"
    )


def peak(samples: Samples) -> float:
    """Return the largest magnitude; 0 without samples."""
    return max(float(samples.max()), -float(samples.min())) if samples.size else 0.0


class FloatRange:
    """Scale the blocks of a float recording whose samples are integers, such as a float WAV in the range of int16."""

    def __init__(self, name: str, peak_of_rest: Callable[[], float], warn: Warn) -> None:
        """Prepare for a recording.

        Args:
            name: name of the audio, for messages.
            peak_of_rest: returns the largest magnitude of all blocks that follow.
            warn: called with a message once samples are scaled.
        """
        self._name, self._peak_of_rest, self._warn = name, peak_of_rest, warn
        self._scale: float | None = None

    def apply(self, block: Samples) -> Samples:
        """Return a block, scaled to [-1, 1] if the recording needs it.

        Raises:
            AudioInvalidError: samples exceed [-1, 1] and no integer format is certain.
        """
        if self._scale is None:
            highest = peak(block)
            # 1.0 is full scale, or the noise of silence in integers.
            if not (highest > 1.0 or (highest == 1.0 and _are_integers(block))) or not math.isfinite(highest):
                return block
            self._scale = self._decide(max(highest, self._peak_of_rest()), integers=_are_integers(block))
        return block if self._scale == 1.0 else block / np.float32(self._scale)

    def _decide(self, highest: float, *, integers: bool) -> float:
        if highest <= (1.0 if integers else _HEADROOM) or not math.isfinite(highest):
            return 1.0
        if integers or _INT16_RANGE[0] <= highest <= 1.25 * _SCALES[-1]:
            for scale in _SCALES:
                if highest <= scale * (1.0 if integers else 1.25):
                    self._warn(
                        f"{self._name}: its samples are floats up to {highest:.6g} instead of [-1, 1]; "
                        f"they were divided by {scale:.0f}"
                    )
                    return scale
        raise AudioInvalidError(
            f"{self._name}: its samples are floats up to {highest:.6g}; scale them to [-1, 1], or store integers"
        )


def _are_integers(block: Samples) -> bool:
    with np.errstate(invalid="ignore"):
        return bool(np.all(block == np.rint(block)))


def integer_scale(array: Samples, name: str, warn: Warn) -> tuple[float, float]:
    """Return the zero and the full scale of integers; wide dtypes often hold samples of fewer bits.

    Args:
        array: all samples.
        name: name of the audio, for messages.
        warn: called with a message if the dtype's own range does not apply.

    Raises:
        AudioInvalidError: values of 64 bits exceed 32 bits.
    """
    info = np.iinfo(array.dtype)
    signed = array.dtype.kind == "i"
    zero = 0.0 if signed else (info.max + 1) / 2
    full = float(info.max) + 1.0 - zero
    if info.bits <= 16 or not array.size:
        return zero, full
    lowest, highest = int(array.min()), int(array.max())
    for bits in (16, 32):
        limit = 1 << (bits - 1 if signed else bits)
        if bits < info.bits and highest < limit and lowest >= (-limit if signed else 0):
            warn(f"{name}: its samples are {array.dtype} in the range of {bits} bits; they were scaled by that range")
            return (0.0, float(limit)) if signed else (limit / 2, limit / 2)
    if info.bits == 64:
        raise AudioInvalidError(
            f"{name}: has values from {lowest} to {highest}; give floats in [-1, 1] or integers of 16 or 32 bits"
        )
    return zero, full


def check_live(samples: Floats, name: str) -> None:
    """Check a block of a live stream, whose range cannot be seen in advance.

    Raises:
        AudioInvalidError: samples exceed [-1, 1] by far.
    """
    if (highest := peak(samples)) > _HEADROOM:
        raise AudioInvalidError(
            f"{name}: its samples are floats up to {highest:.6g}; give floats in [-1, 1] or 16-bit integers"
        )
