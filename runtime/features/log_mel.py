"""Whisper's log-mel spectrogram in numpy, as Qwen3-ASR uses it."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

# Frames transformed at once: their windowed samples and spectra stay in the processor's cache.
_BLOCK_FRAMES = 256


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


@lru_cache(maxsize=4)
def _tables(config: LogMelConfig) -> tuple[Floats, Floats]:
    """(periodic Hann window [n_fft], mel filters transposed [bins, n_mels])."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(config.n_fft) / config.n_fft)
    filters = slaney_mel_filters(config.n_mels, config.n_fft, config.sample_rate)
    return window.astype(np.float32), np.ascontiguousarray(filters.T, np.float32)


def frame_count(samples: int, config: LogMelConfig) -> int:
    """Frames of a clip of ``samples`` samples."""
    return max(samples, config.min_samples) // config.hop_length


def log_mel(samples: Floats, config: LogMelConfig) -> Floats:
    """Features [n_mels, frames] of mono float32 ``samples`` at the config's rate.

    Centred frames over a reflected edge, power spectrum, mel, log10 floored at 1e-10, everything more than 8 below the
    clip's maximum raised to that, then (x + 4) / 4. The last, partly empty frame is dropped.
    """
    window, filters = _tables(config)
    if len(samples) < config.min_samples:
        samples = np.pad(samples, (0, config.min_samples - len(samples)))
    padded = np.pad(samples, config.n_fft // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, config.n_fft)[:: config.hop_length]
    frames = frames[: len(samples) // config.hop_length]
    mel = np.empty((len(frames), config.n_mels), np.float32)
    for start in range(0, len(frames), _BLOCK_FRAMES):
        spectrum = np.fft.rfft(frames[start : start + _BLOCK_FRAMES] * window)
        mel[start : start + _BLOCK_FRAMES] = (spectrum.real**2 + spectrum.imag**2) @ filters
    np.log10(np.maximum(mel, 1e-10, out=mel), out=mel)
    np.maximum(mel, mel.max() - 8.0, out=mel)
    mel += 4.0
    mel /= 4.0
    return np.ascontiguousarray(mel.T)
