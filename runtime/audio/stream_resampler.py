"""Convert blocks of a live stream to mono float32 samples at the model's rate."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import soxr

from runtime.audio.levels import check_live
from runtime.errors import AudioInvalidError, OptionError

Floats = npt.NDArray[np.float32]

# Sampling rates of live audio in Hz.
LOWEST_RATE, HIGHEST_RATE = 8_000, 192_000


class StreamResampler:
    """Convert and resample the blocks of one stream, in order. The resampler delays some samples to later blocks."""

    def __init__(self, sample_rate: int, rate: int) -> None:
        """Prepare for a stream.

        Args:
            sample_rate: sampling rate of the blocks in Hz, 8000 to 192000.
            rate: sampling rate of the result in Hz.

        Raises:
            OptionError: ``sample_rate`` is out of range.
        """
        if not LOWEST_RATE <= sample_rate <= HIGHEST_RATE:
            raise OptionError(
                f"live audio at {sample_rate} Hz is not supported; "
                f"give {LOWEST_RATE} to {HIGHEST_RATE} samples a second"
            )
        same = sample_rate == rate
        self._resampler = None if same else soxr.ResampleStream(sample_rate, rate, 1, dtype="float32", quality="HQ")

    def take(self, samples: npt.NDArray[Any]) -> Floats:
        """Convert the next block and return the samples that are complete.

        Args:
            samples: mono samples [n], floats in [-1, 1] or int16.

        Returns:
            Float32 samples [m] at the result's rate.

        Raises:
            AudioInvalidError: the array has another shape or dtype.
            AudioInvalidError: samples are not finite, or far outside of [-1, 1].
        """
        array = np.asarray(samples)
        if array.ndim != 1 or not (array.dtype.kind == "f" or array.dtype == np.int16):
            raise AudioInvalidError(
                f"live audio: has shape {list(array.shape)} and type {array.dtype}; "
                "give mono samples [n] as floats or 16-bit integers"
            )
        converted: Floats = array.astype(np.float32)
        if array.dtype == np.int16:
            converted /= 32768
        if not np.isfinite(converted).all():
            raise AudioInvalidError("live audio: holds samples that are not finite numbers")
        if array.dtype.kind == "f":
            check_live(converted, "live audio")
        if self._resampler and len(converted):
            converted = self._resampler.resample_chunk(converted)
        return converted

    def end(self) -> Floats:
        """Return the delayed samples [m]. Call nothing after it."""
        rest: Floats = np.zeros(0, np.float32)
        if self._resampler:
            rest, self._resampler = self._resampler.resample_chunk(rest, last=True), None
        return rest
