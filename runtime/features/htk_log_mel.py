"""The log-mel spectrogram of GigaAM in numpy: HTK's mel scale, frames that do not reach over the edges, natural log.

It is what torchaudio's ``MelSpectrogram(center=False)`` gives with its defaults (periodic Hann window as long as the
transform, power, HTK scale, filters that are not normalized), then the log within bounds. Source: ``FeatureExtractor``
in the published ``modeling_gigaam.py``. It runs on the calling thread alone, as :mod:`runtime.features.log_mel`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

from runtime.features.log_mel import MelBand, mel_bands, mel_power, periodic_hann

Floats = npt.NDArray[np.float32]

#: Bounds of the mel power before the logarithm.
LEAST_POWER, MOST_POWER = np.float32(1e-9), np.float32(1e9)


class HtkLogMelConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The manifest's ``front_end``. Clips shorter than ``min_samples`` are zero-padded, and the padding counts."""

    kind: Literal["htk-log-mel"]
    sample_rate: int
    n_fft: int
    hop_length: int
    n_mels: int
    min_samples: int

    def __post_init__(self) -> None:
        """A shorter clip than one window would have no frame at all."""
        if min(self.sample_rate, self.hop_length, self.n_mels) < 1 or not 2 <= self.n_fft <= self.min_samples:
            raise ValueError(
                f"sample_rate {self.sample_rate}, hop_length {self.hop_length}, n_mels {self.n_mels}, "
                f"n_fft {self.n_fft} and min_samples {self.min_samples} make no front end"
            )


def htk_mel_filters(n_mels: int, n_fft: int, sample_rate: int) -> npt.NDArray[np.float64]:
    """Triangular filters [n_mels, n_fft // 2 + 1] over 0 Hz to half the sample rate, each with a peak of 1.

    The scale is mel = 2595 log10(1 + hertz / 700). Source: S. Young et al., The HTK Book, section 5.4. The lowest ones
    can be narrower than the distance of two bins, and then have no weight at all.
    """
    top = 2595.0 * np.log10(1.0 + sample_rate / 2 / 700.0)
    edges = 700.0 * (10.0 ** (np.linspace(0.0, top, n_mels + 2) / 2595.0) - 1.0)
    bins = np.linspace(0.0, sample_rate / 2, n_fft // 2 + 1)
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (bins - low) / (centre - low), (high - bins) / (high - centre)
    filters: npt.NDArray[np.float64] = np.maximum(0.0, np.minimum(rising, falling))
    return filters


@lru_cache(maxsize=4)
def _tables(config: HtkLogMelConfig) -> tuple[Floats, list[MelBand]]:
    """(periodic Hann window [n_fft], the filters in bands)."""
    filters = htk_mel_filters(config.n_mels, config.n_fft, config.sample_rate)
    return periodic_hann(config.n_fft), mel_bands(filters)


def htk_frame_count(samples: int, config: HtkLogMelConfig) -> int:
    """Frames of a clip of ``samples`` samples: whole windows alone, so that up to a hop at the end is left out."""
    return (max(samples, config.min_samples) - config.n_fft) // config.hop_length + 1


def htk_log_mel(samples: Floats, config: HtkLogMelConfig) -> Floats:
    """Features [n_mels, frames] of mono float32 ``samples`` at the config's rate.

    Frame i is of the samples from ``i * hop_length`` on, ``n_fft`` of them, and of no others.
    """
    window, bands = _tables(config)
    if len(samples) < config.min_samples:
        samples = np.pad(samples, (0, config.min_samples - len(samples)))
    frames = np.lib.stride_tricks.sliding_window_view(samples, config.n_fft)[:: config.hop_length]
    mel = mel_power(frames, window, bands)
    np.log(np.clip(mel, LEAST_POWER, MOST_POWER, out=mel), out=mel)
    return mel
