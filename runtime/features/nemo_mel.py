"""NeMo's log-mel features in numpy, with which Parakeet was trained.

Pre-emphasis, centered frames with zeros at the edges, power spectrum, Slaney mel filters, natural logarithm, then each
channel is normalized to mean 0 and standard deviation 1 over the clip. Tests compare it with transformers'
``ParakeetFeatureExtractor``. Runs on the calling thread only, like :mod:`runtime.features.log_mel`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

from runtime.features.log_mel import MelBand, mel_bands, slaney_mel_filters

Floats = npt.NDArray[np.float32]

# Frames transformed at once, so that their samples and spectra stay in the processor's cache.
_BLOCK_FRAMES = 100
# Added to the power of a mel channel before the logarithm, and to its standard deviation before the division.
_POWER_GUARD = 2.0**-24
_DEVIATION_GUARD = 1e-5


class NemoMelConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The manifest's ``front_end``.

    Attributes:
        kind: of front end.
        sample_rate: Hz.
        n_fft: samples of the transform.
        win_length: samples of a frame.
        hop_length: samples between the centers of two frames.
        n_mels: number of mel channels.
        preemphasis: factor of the previous sample, which is subtracted.
    """

    kind: Literal["nemo-log-mel"]
    sample_rate: int
    n_fft: int
    win_length: int
    hop_length: int
    n_mels: int
    preemphasis: float


def nemo_frame_count(samples: int, config: NemoMelConfig) -> int:
    """Return the number of frames of a clip with ``samples`` samples: one for each whole hop, at least 1."""
    return max(1, samples // config.hop_length)


def nemo_mel(samples: Floats, config: NemoMelConfig) -> Floats:
    """Compute float32 features [frames, n_mels].

    Frame t is centered on sample t · hop_length. The reference's frame after the last hop, which it masks, is left out.
    A clip of one frame has standard deviation 0 and gives zeros, as in NeMo; a clip without samples is one frame of
    silence. Padding of a batch does not change features: the reference normalizes over valid frames only and sets the
    others to zero.

    Args:
        samples: mono float32 samples [n] at the config's rate.
        config: the front end.
    """
    window, bands = _tables(config)
    count = nemo_frame_count(len(samples), config)
    half = config.win_length // 2
    # Frames have win_length samples; rfft pads them to n_fft, which only makes the spectrum finer.
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
    """Normalize channels [n_mels, frames] to mean 0 and sample standard deviation 1, and transpose: [frames, n_mels].

    Sums are in float64, so that the mean of a silent clip is exactly its value and the result is 0 instead of rounding
    errors divided by the guard.
    """
    frames = mel.shape[1]
    centered = mel - mel.mean(axis=1, dtype=np.float64, keepdims=True)
    variance = np.square(centered).sum(axis=1, keepdims=True) / max(1, frames - 1)
    return np.ascontiguousarray((centered / (np.sqrt(variance) + _DEVIATION_GUARD)).T, np.float32)


@lru_cache(maxsize=4)
def _tables(config: NemoMelConfig) -> tuple[Floats, list[MelBand]]:
    """Return the symmetric Hann window [win_length] and the filters in bands."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(config.win_length) / (config.win_length - 1))
    filters = slaney_mel_filters(config.n_mels, config.n_fft, config.sample_rate)
    return window.astype(np.float32), mel_bands(filters)
