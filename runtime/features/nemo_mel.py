"""NeMo's log-mel features in numpy, as Parakeet was trained with.

Pre-emphasis, centred frames over zeros, power spectrum, Slaney mels, natural logarithm, then each channel to mean 0 and
deviation 1 over the clip. The reference that the tests compare with is transformers' ``ParakeetFeatureExtractor``.
All of it runs on the calling thread (see :mod:`runtime.features.log_mel`).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

from runtime.features.log_mel import MelBand, mel_bands, slaney_mel_filters

Floats = npt.NDArray[np.float32]

# Frames transformed at once: see runtime.features.log_mel.
_BLOCK_FRAMES = 100
# Added to the power of a mel channel before the logarithm, and to its deviation before it is divided by.
_POWER_GUARD = 2.0**-24
_DEVIATION_GUARD = 1e-5


class NemoMelConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The manifest's ``front_end``: sizes in samples, and the factor of the sample before in the pre-emphasis."""

    kind: Literal["nemo-log-mel"]
    sample_rate: int
    n_fft: int
    win_length: int
    hop_length: int
    n_mels: int
    preemphasis: float


def nemo_frame_count(samples: int, config: NemoMelConfig) -> int:
    """Frames of a clip of ``samples`` samples: one for each whole hop, and one of a clip that has none."""
    return max(1, samples // config.hop_length)


def nemo_mel(samples: Floats, config: NemoMelConfig) -> Floats:
    """Features [frames, n_mels] of mono float32 ``samples`` at the config's rate.

    Frame t is centred on sample t · hop_length. The reference's frame after the last hop, which it masks, is left out.
    A clip of one frame has no deviation and gives zeros, as in NeMo; one without samples is a frame of silence.
    Padding changes nothing: the reference normalizes over valid frames alone and zeroes the others.
    """
    window, bands = _tables(config)
    count = nemo_frame_count(len(samples), config)
    half = config.win_length // 2
    # Only the window's samples are transformed: n_fft above win_length makes the spectrum finer, nothing else.
    padded = np.zeros(max(len(samples), count * config.hop_length) + 2 * half, np.float32)
    emphasized = padded[half : half + len(samples)]
    emphasized[:] = samples
    emphasized[1:] -= np.float32(config.preemphasis) * samples[:-1]
    frames = np.lib.stride_tricks.sliding_window_view(padded, config.win_length)[:: config.hop_length][:count]
    mel = np.empty((config.n_mels, count), np.float32)
    for start in range(0, count, _BLOCK_FRAMES):
        block = frames[start : start + _BLOCK_FRAMES]
        spectrum = np.fft.rfft(block * window, config.n_fft)
        power = np.square(spectrum.real)
        power += np.square(spectrum.imag)
        for band in bands:
            np.matmul(band.weights, power[:, band.bins].T, out=mel[band.rows, start : start + len(block)])
    mel += np.float32(_POWER_GUARD)
    np.log(mel, out=mel)
    return _normalized(mel)


def _normalized(mel: Floats) -> Floats:
    """Channels [n_mels, frames] to mean 0 and deviation 1 (of a sample: over frames - 1), as [frames, n_mels].

    Sums are in float64: over a silent clip the mean is then its very value, and the result 0 and not rounding errors
    divided by the guard.
    """
    frames = mel.shape[1]
    centred = mel - mel.mean(axis=1, dtype=np.float64, keepdims=True)
    variance = np.square(centred).sum(axis=1, keepdims=True) / max(1, frames - 1)
    return np.ascontiguousarray((centred / (np.sqrt(variance) + _DEVIATION_GUARD)).T, np.float32)


@lru_cache(maxsize=4)
def _tables(config: NemoMelConfig) -> tuple[Floats, list[MelBand]]:
    """(symmetric Hann window [win_length], the filters in bands)."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(config.win_length) / (config.win_length - 1))
    filters = slaney_mel_filters(config.n_mels, config.n_fft, config.sample_rate)
    return window.astype(np.float32), mel_bands(filters)
