"""Samples as they come in, of any rate and type, as mono float32 at the model's rate."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import soxr

from runtime.errors import AudioInvalidError, OptionError

Floats = npt.NDArray[np.float32]

LOWEST_RATE, HIGHEST_RATE = 8_000, 192_000


class Incoming:
    """Blocks of one stream, in order. What a resampler still holds comes with later blocks."""

    def __init__(self, sample_rate: int, rate: int) -> None:
        """``sample_rate`` is that of the blocks, ``rate`` the one that is wanted, in Hz.

        Raises:
            OptionError: a rate that no speech has.
        """
        if not LOWEST_RATE <= sample_rate <= HIGHEST_RATE:
            raise OptionError(
                f"live audio at {sample_rate} Hz cannot be taken; give {LOWEST_RATE} to {HIGHEST_RATE} samples a second"
            )
        same = sample_rate == rate
        self._resampler = None if same else soxr.ResampleStream(sample_rate, rate, 1, dtype="float32", quality="HQ")

    def take(self, samples: npt.NDArray[Any]) -> Floats:
        """Mono samples [n], floats in [-1, 1] or 16-bit integers → what they complete at the wanted rate.

        Raises:
            AudioInvalidError: another shape or type, or samples that are not finite.
        """
        array = np.asarray(samples)
        if array.ndim != 1 or not (array.dtype.kind == "f" or array.dtype == np.int16):
            raise AudioInvalidError(
                f"live audio: has shape {list(array.shape)} and type {array.dtype}; "
                "give mono samples [n] as floats or 16-bit integers"
            )
        made: Floats = array.astype(np.float32)
        if array.dtype == np.int16:
            made /= 32768
        if not np.isfinite(made).all():
            raise AudioInvalidError("live audio: holds samples that are not finite numbers")
        if self._resampler and len(made):
            made = self._resampler.resample_chunk(made)
        return made

    def end(self) -> Floats:
        """What the resampler still held; it takes nothing more."""
        made: Floats = np.zeros(0, np.float32)
        if self._resampler:
            made, self._resampler = self._resampler.resample_chunk(made, last=True), None
        return made
