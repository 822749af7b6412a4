"""The numpy front end against transformers' feature extractor."""

from __future__ import annotations

import numpy as np
import pytest
from transformers import Qwen3ASRFeatureExtractor
from transformers.audio_utils import mel_filter_bank

from runtime.features.log_mel import LogMelConfig, log_mel, slaney_mel_filters

CONFIG = LogMelConfig("whisper-log-mel", 16_000, 400, 160, 128, 8_000)
TOLERANCE = 1e-4


def reference(samples: np.ndarray) -> np.ndarray:
    made = Qwen3ASRFeatureExtractor()([samples], sampling_rate=16_000, padding="longest", n_window=0)
    features: np.ndarray = made["input_features"][0].numpy()
    return features


@pytest.mark.parametrize("case", ["speech", "silence", "clipping", "0.1 s", "one sample", "quiet", "odd length", "dc"])
def test_features_equal_the_reference(case: str, speech: np.ndarray, rng: np.random.Generator) -> None:
    clip = {
        "speech": speech[: 20 * 16_000],
        "silence": np.zeros(16_000, np.float32),
        "clipping": np.clip(speech[:48_000] * 50, -1, 1),
        "0.1 s": speech[20_000:21_600],
        "one sample": np.full(1, 0.5, np.float32),
        "quiet": speech[:32_000] * 1e-4,
        "odd length": speech[:16_123],
        "dc": np.full(16_000, 0.3, np.float32),
    }[case]
    ours = log_mel(clip, CONFIG)
    assert ours.dtype == np.float32
    assert ours.flags.c_contiguous
    expected = reference(clip)
    assert ours.shape == expected.shape
    assert np.abs(ours - expected).max() <= TOLERANCE


def test_filters_equal_the_reference() -> None:
    for bands in (80, 128):
        expected = mel_filter_bank(201, bands, 0.0, 8000.0, 16_000, norm="slaney", mel_scale="slaney").T
        np.testing.assert_allclose(slaney_mel_filters(bands, 400, 16_000), expected, atol=1e-9)


def test_the_input_is_not_changed(speech: np.ndarray) -> None:
    clip = speech[:16_000].copy()
    before = clip.copy()
    log_mel(clip, CONFIG)
    np.testing.assert_array_equal(clip, before)
