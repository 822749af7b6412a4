"""Whisper's log-mel spectrogram in numpy, as Qwen3-ASR uses it.

All of it runs on the calling thread, so that it can run beside the encoder without taking its cores: numpy's FFT has no
threads, and the products are small enough that OpenBLAS does not wake its own.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

# Frames transformed at once: their windowed samples and spectra stay in the processor's cache. A divisor of an encoder
# window's 800 frames, so that a stream's windows are computed in the blocks of the whole, and are equal bit for bit.
_BLOCK_FRAMES = 100
# Filters applied at once. Neighbours share most of their bins, so a product over the bins of so few is a fifth of the
# work of one over all bins. It also keeps a product under 2**18 multiplications, where OpenBLAS starts using threads:
# 16 filters × 100 frames × at most 67 bins.
_BAND_FILTERS = 16


# Of the features, as log10 of power: what is further below a clip's maximum is cut off.
RANGE = np.float32(8.0)


class LogMelConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The manifest's ``front_end``. Clips shorter than ``min_samples`` are zero-padded, and the padding counts."""

    kind: Literal["whisper-log-mel"]
    sample_rate: int
    n_fft: int
    hop_length: int
    n_mels: int
    min_samples: int


def slaney_mel_filters(n_mels: int, n_fft: int, sample_rate: int) -> npt.NDArray[np.float64]:
    """Triangular filters [n_mels, n_fft // 2 + 1] over 0 Hz to half the sample rate.

    The Slaney scale is linear below 1 kHz (15 mel at 1 kHz) and logarithmic above with 27 mel a factor of 6.4; each
    filter is scaled to unit area (2 over its width in Hz). Source: M. Slaney, Auditory Toolbox (1998).
    """
    step, knee, log_step = 200 / 3, 1000.0, np.log(6.4) / 27

    def to_mel(hertz: float) -> float:
        return float(hertz / step if hertz < knee else knee / step + np.log(hertz / knee) / log_step)

    mels = np.linspace(0.0, to_mel(sample_rate / 2), n_mels + 2)
    edges = np.where(mels < knee / step, mels * step, knee * np.exp(log_step * (mels - knee / step)))
    bins = np.linspace(0.0, sample_rate / 2, n_fft // 2 + 1)
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (bins - low) / (centre - low), (high - bins) / (high - centre)
    filters: npt.NDArray[np.float64] = np.maximum(0.0, np.minimum(rising, falling)) * (2.0 / (high - low))
    return filters


class MelBand(NamedTuple):
    """Neighbouring filters: which rows of the spectrogram they give, the bins they read, weights [rows, bins]."""

    rows: slice
    bins: slice
    weights: Floats


def mel_bands(filters: npt.NDArray[np.float64]) -> list[MelBand]:
    """``filters`` [mels, bins] in bands of neighbours, each with the bins that any of them reads."""
    bands = []
    for start in range(0, len(filters), _BAND_FILTERS):
        rows = slice(start, min(start + _BAND_FILTERS, len(filters)))
        used = np.flatnonzero(filters[rows].any(axis=0))
        bins = slice(used[0], used[-1] + 1) if len(used) else slice(0, 0)
        bands.append(MelBand(rows, bins, np.ascontiguousarray(filters[rows, bins], np.float32)))
    return bands


def periodic_hann(size: int) -> Floats:
    """The window [size] whose next sample would be its first again."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
    return window.astype(np.float32)


def mel_power(frames: Floats, window: Floats, bands: list[MelBand]) -> Floats:
    """Mel power spectrum [mels, frames] of ``frames`` [frames, n_fft] of samples, a view of them or not."""
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
    """(periodic Hann window [n_fft], the filters in bands)."""
    filters = slaney_mel_filters(config.n_mels, config.n_fft, config.sample_rate)
    return periodic_hann(config.n_fft), mel_bands(filters)


def frame_count(samples: int, config: LogMelConfig) -> int:
    """Frames of a clip of ``samples`` samples."""
    return max(samples, config.min_samples) // config.hop_length


def log_mel(samples: Floats, config: LogMelConfig) -> Floats:
    """Features [n_mels, frames] of mono float32 ``samples`` at the config's rate: :func:`log_power`, normalized."""
    mel = log_power(samples, config)
    return normalized(mel, float(mel.max()))


def normalized(mel: Floats, loudest: float) -> Floats:
    """Features of :func:`log_power` [n_mels, frames] in a clip whose maximum is ``loudest``.

    Everything more than :data:`RANGE` below the maximum is raised to that, then (x + 4) / 4.
    """
    made = np.maximum(mel, np.float32(loudest) - RANGE)
    made += 4.0
    made *= 0.25
    return made


def log_power(samples: Floats, config: LogMelConfig, first: int = 0) -> Floats:
    """log10 of the mel power spectrum [n_mels, frames] from frame ``first`` on, not normalized yet.

    Centred frames over a reflected edge, power spectrum, mel, log10 floored at 1e-10. The last, partly empty frame is
    dropped. A frame depends on the ``n_fft`` samples around its centre alone: those that end before the last
    ``n_fft / 2`` samples do not change when more audio follows.

    Args:
        samples: of the clip, from its beginning.
        config: the front end.
        first: a multiple of 100, where blocks of frames begin.
    """
    window, bands = _tables(config)
    if len(samples) < config.min_samples:
        samples = np.pad(samples, (0, config.min_samples - len(samples)))
    half, count = config.n_fft // 2, len(samples) // config.hop_length
    begin = first * config.hop_length - half
    # The reflection at the beginning only where the first frames are wanted.
    padded = np.pad(samples, half, mode="reflect") if begin < 0 else np.pad(samples[begin:], (0, half), mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, config.n_fft)[:: config.hop_length]
    mel = mel_power(frames[: count - first], window, bands)
    np.log10(np.maximum(mel, 1e-10, out=mel), out=mel)
    return mel
