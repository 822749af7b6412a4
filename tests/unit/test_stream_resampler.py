"""Resampling of live audio, and checks of its samples."""

from __future__ import annotations

import numpy as np
import pytest

from runtime.audio.stream_resampler import StreamResampler
from runtime.errors import AudioInvalidError, OptionError

RATE = 16_000


@pytest.mark.parametrize("rate", [8_000, 16_000, 24_000, 44_100, 48_000])
def test_every_rate_is_resampled_to_the_model_rate(rate: int) -> None:
    tone = np.sin(2 * np.pi * 440 * np.arange(rate) / rate)
    resampler = StreamResampler(rate, RATE)
    integers = [(part * 32767).astype(np.int16) for part in np.array_split(tone, 37)]
    resampled = np.concatenate([*(resampler.take(part) for part in integers), resampler.end()])
    assert resampled.dtype == np.float32
    assert len(resampled) == pytest.approx(RATE, abs=2)
    expected = np.sin(2 * np.pi * 440 * np.arange(len(resampled)) / RATE)
    assert np.abs(resampled - expected)[500:-500].max() < 0.01


@pytest.mark.parametrize(
    ("samples", "fact"),
    [
        (np.zeros((2, 10), np.float32), "shape"),
        (np.zeros(10, np.int32), "int32"),
        (np.array([0.0, np.nan]), "not finite"),
    ],
)
def test_invalid_samples_are_refused(samples: np.ndarray, fact: str) -> None:
    with pytest.raises(AudioInvalidError, match=fact):
        StreamResampler(RATE, RATE).take(samples)


def test_a_rate_below_8000_hz_is_refused() -> None:
    with pytest.raises(OptionError, match=r"4000 Hz.*8000"):
        StreamResampler(4_000, RATE)
