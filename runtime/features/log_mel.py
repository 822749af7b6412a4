"""Whisper's log-mel spectrogram in numpy, which Qwen3-ASR uses too, and parts shared with other front ends.

Everything runs on the calling thread, so that it can run beside the encoder without taking its cores: numpy's FFT uses
one thread, and the matrix products are small enough that OpenBLAS uses one thread.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

# Frames transformed at once: their windowed samples and spectra stay in the processor's cache. It divides the 800
# frames of an encoder window, so that the windows of a stream are computed in the same blocks as the whole clip and are
# equal bit for bit.
_BLOCK_FRAMES = 100
# Filters applied at once. Neighbors share most of their bins, so that a product over the bins of 16 filters is a fifth
# of the work of a product over all bins. It also keeps a product under 2**18 multiplications, from which on OpenBLAS
# uses threads: 16 filters × 100 frames × at most 67 bins.
_BAND_FILTERS = 16

# Dynamic range of the features in log10 of power: lower values are raised to this distance from the clip's maximum.
RANGE = np.float32(8.0)


class LogMelConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The manifest's ``front_end``.

    Attributes:
        kind: of front end.
        sample_rate: Hz.
        n_fft: samples of a frame and of the transform.
        hop_length: samples between the centers of two frames.
        n_mels: number of mel channels.
        min_samples: shorter clips are padded with zeros to this length, and have features of the padding too.
    """

    kind: Literal["whisper-log-mel"]
    sample_rate: int
    n_fft: int
    hop_length: int
    n_mels: int
    min_samples: int


def slaney_mel_filters(n_mels: int, n_fft: int, sample_rate: int) -> npt.NDArray[np.float64]:
    """Return triangular filters [n_mels, n_fft // 2 + 1] from 0 Hz to half the sample rate.

    The Slaney scale is linear below 1 kHz (15 mel at 1 kHz) and logarithmic above (27 mel for a factor of 6.4). Each
    filter is scaled to unit area (2 divided by its width in Hz). Source: M. Slaney, Auditory Toolbox (1998).
    """
    step, knee, log_step = 200 / 3, 1000.0, np.log(6.4) / 27

    def to_mel(hertz: float) -> float:
        return float(hertz / step if hertz < knee else knee / step + np.log(hertz / knee) / log_step)

    mels = np.linspace(0.0, to_mel(sample_rate / 2), n_mels + 2)
    edges = np.where(mels < knee / step, mels * step, knee * np.exp(log_step * (mels - knee / step)))
    bins = np.linspace(0.0, sample_rate / 2, n_fft // 2 + 1)
    low, center, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (bins - low) / (center - low), (high - bins) / (high - center)
    filters: npt.NDArray[np.float64] = np.maximum(0.0, np.minimum(rising, falling)) * (2.0 / (high - low))
    return filters


class MelBand(NamedTuple):
    """Neighboring mel filters.

    Attributes:
        rows: mel channels that they compute.
        bins: bins of the spectrum that they read.
        weights: [rows, bins].
    """

    rows: slice
    bins: slice
    weights: Floats


def mel_bands(filters: npt.NDArray[np.float64]) -> list[MelBand]:
    """Split ``filters`` [mels, bins] into bands of neighbors, each with the bins that any of its filters reads."""
    bands = []
    for start in range(0, len(filters), _BAND_FILTERS):
        rows = slice(start, min(start + _BAND_FILTERS, len(filters)))
        used = np.flatnonzero(filters[rows].any(axis=0))
        bins = slice(used[0], used[-1] + 1) if len(used) else slice(0, 0)
        bands.append(MelBand(rows, bins, np.ascontiguousarray(filters[rows, bins], np.float32)))
    return bands


def periodic_hann(size: int) -> Floats:
    """Return the periodic Hann window [size], float32."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
    return window.astype(np.float32)


def mel_power(frames: Floats, window: Floats, bands: list[MelBand]) -> Floats:
    """Compute the mel power spectrum [mels, frames].

    Args:
        frames: samples [frames, n_fft]; may be a view with overlapping rows.
        window: [n_fft].
        bands: mel filters in bands.
    """
    mel = np.empty((bands[-1].rows.stop, len(frames)), np.float32)
    windowed = np.empty((_BLOCK_FRAMES, len(window)), np.float32)
    for start in range(0, len(frames), _BLOCK_FRAMES):
        block = frames[start : start + _BLOCK_FRAMES]
        spectrum = np.fft.rfft(np.multiply(block, window, out=windowed[: len(block)]))
        power = np.square(spectrum.real)
        power += np.square(spectrum.imag)
        for band in bands:
            np.matmul(band.weights, power[:, band.bins].T, out=mel[band.rows, start : start + len(block)])
    return mel


@lru_cache(maxsize=4)
def _tables(config: LogMelConfig) -> tuple[Floats, list[MelBand]]:
    """Return the periodic Hann window [n_fft] and the filters in bands."""
    filters = slaney_mel_filters(config.n_mels, config.n_fft, config.sample_rate)
    return periodic_hann(config.n_fft), mel_bands(filters)


def frame_count(samples: int, config: LogMelConfig) -> int:
    """Return the number of frames of a clip with ``samples`` samples."""
    return max(samples, config.min_samples) // config.hop_length


def log_mel(samples: Floats, config: LogMelConfig) -> Floats:
    """Compute float32 features [n_mels, frames] of a whole clip.

    Args:
        samples: mono float32 samples [n] at the config's rate.
        config: the front end.
    """
    mel = log_power(samples, config)
    return normalized(mel, float(mel.max()))


def normalized(mel: Floats, loudest: float) -> Floats:
    """Normalize log power to features [n_mels, frames]: (max(x, ``loudest`` - :data:`RANGE`) + 4) / 4.

    Args:
        mel: result of :func:`log_power` [n_mels, frames].
        loudest: maximum of the log power of the whole clip.
    """
    features = np.maximum(mel, np.float32(loudest) - RANGE)
    features += 4.0
    features *= 0.25
    return features


def log_power(samples: Floats, config: LogMelConfig, first: int = 0) -> Floats:
    """Compute log10 of the mel power spectrum [n_mels, frames] from frame ``first`` on, without normalization.

    Frames are centered, with reflection at the edges; the power is at least 1e-10. The last frame, which is partly
    padding, is dropped. A frame depends only on the ``n_fft`` samples around its center, so that frames whose samples
    end ``n_fft / 2`` samples before the end of the clip do not change when more audio follows.

    Args:
        samples: mono float32 samples [n] of the clip from its beginning, at the config's rate.
        config: the front end.
        first: index of the first frame, a multiple of 100, so that blocks of frames are those of the whole clip.
    """
    window, bands = _tables(config)
    if len(samples) < config.min_samples:
        samples = np.pad(samples, (0, config.min_samples - len(samples)))
    half, count = config.n_fft // 2, len(samples) // config.hop_length
    begin = first * config.hop_length - half
    # Reflect at the beginning only if the first frames are computed.
    padded = np.pad(samples, half, mode="reflect") if begin < 0 else np.pad(samples[begin:], (0, half), mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, config.n_fft)[:: config.hop_length]
    mel = mel_power(frames[: count - first], window, bands)
    np.log10(np.maximum(mel, 1e-10, out=mel), out=mel)
    return mel
