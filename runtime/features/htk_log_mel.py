"""GigaAM's log-mel spectrogram in numpy: HTK mel scale, no padding at the edges, natural logarithm.

Equals torchaudio's ``MelSpectrogram(center=False)`` with its defaults (periodic Hann window as long as the transform,
power, HTK scale, filters without normalization), clipped, then its logarithm. Source: ``FeatureExtractor`` in the
published ``modeling_gigaam.py``. Runs on the calling thread only, like :mod:`runtime.features.log_mel`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

from runtime.features.log_mel import MelBand, mel_bands, mel_power, periodic_hann

Floats = npt.NDArray[np.float32]

# Bounds of the mel power before the logarithm.
LEAST_POWER, MOST_POWER = np.float32(1e-9), np.float32(1e9)


class HtkLogMelConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The manifest's ``front_end``.

    Attributes:
        kind: of front end.
        sample_rate: Hz.
        n_fft: samples of a frame and of the transform.
        hop_length: samples between the starts of two frames.
        n_mels: number of mel channels.
        min_samples: shorter clips are padded with zeros to this length, and have features of the padding too.
    """

    kind: Literal["htk-log-mel"]
    sample_rate: int
    n_fft: int
    hop_length: int
    n_mels: int
    min_samples: int

    def __post_init__(self) -> None:
        """Check the sizes. ``min_samples`` below ``n_fft`` is refused: a shorter clip would have no frame."""
        if min(self.sample_rate, self.hop_length, self.n_mels) < 1 or not 2 <= self.n_fft <= self.min_samples:
            raise ValueError(
                f"sample_rate {self.sample_rate}, hop_length {self.hop_length}, n_mels {self.n_mels}, "
                f"n_fft {self.n_fft} and min_samples {self.min_samples} make no front end"
            )


def htk_mel_filters(n_mels: int, n_fft: int, sample_rate: int) -> npt.NDArray[np.float64]:
    """Return triangular filters [n_mels, n_fft // 2 + 1] from 0 Hz to half the sample rate, each with a peak of 1.

    The scale is mel = 2595 log10(1 + hertz / 700). Source: S. Young et al., The HTK Book, section 5.4. The lowest
    filters can be narrower than the distance between two bins, and then are zero in all bins.
    """
    top = 2595.0 * np.log10(1.0 + sample_rate / 2 / 700.0)
    edges = 700.0 * (10.0 ** (np.linspace(0.0, top, n_mels + 2) / 2595.0) - 1.0)
    bins = np.linspace(0.0, sample_rate / 2, n_fft // 2 + 1)
    low, center, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (bins - low) / (center - low), (high - bins) / (high - center)
    filters: npt.NDArray[np.float64] = np.maximum(0.0, np.minimum(rising, falling))
    return filters


@lru_cache(maxsize=4)
def _tables(config: HtkLogMelConfig) -> tuple[Floats, list[MelBand]]:
    """Return the periodic Hann window [n_fft] and the filters in bands."""
    filters = htk_mel_filters(config.n_mels, config.n_fft, config.sample_rate)
    return periodic_hann(config.n_fft), mel_bands(filters)


def htk_frame_count(samples: int, config: HtkLogMelConfig) -> int:
    """Return the number of frames of a clip with ``samples`` samples. Only whole frames count: a rest is left out."""
    return (max(samples, config.min_samples) - config.n_fft) // config.hop_length + 1


def htk_log_mel(samples: Floats, config: HtkLogMelConfig) -> Floats:
    """Compute float32 features [n_mels, frames].

    Frame i depends only on the ``n_fft`` samples from sample ``i * hop_length`` on.

    Args:
        samples: mono float32 samples [n] at the config's rate.
        config: the front end.
    """
    window, bands = _tables(config)
    if len(samples) < config.min_samples:
        samples = np.pad(samples, (0, config.min_samples - len(samples)))
    frames = np.lib.stride_tricks.sliding_window_view(samples, config.n_fft)[:: config.hop_length]
    mel = mel_power(frames, window, bands)
    np.log(np.clip(mel, LEAST_POWER, MOST_POWER, out=mel), out=mel)
    return mel
