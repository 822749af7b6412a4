"""Tests of Whisper's log-mel features against transformers' feature extractors."""

from __future__ import annotations

import numpy as np
import pytest
from transformers import Qwen3ASRFeatureExtractor, WhisperFeatureExtractor
from transformers.audio_utils import mel_filter_bank

from runtime.features import log_mel as log_mel_module
from runtime.features.log_mel import LogMelConfig, log_mel, slaney_mel_filters

CONFIG = LogMelConfig("whisper-log-mel", 16_000, 400, 160, 128, 8_000)
TOLERANCE = 1e-4


def reference(samples: np.ndarray) -> np.ndarray:
    batch = Qwen3ASRFeatureExtractor()([samples], sampling_rate=16_000, padding="longest", n_window=0)
    features: np.ndarray = batch["input_features"][0].numpy()
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


@pytest.mark.parametrize("mels", [80, 128])
@pytest.mark.parametrize("seconds", [0.0, 0.1, 7.003, 30.0])
def test_padded_windows_equal_whispers_extractor(seconds: float, mels: int, speech: np.ndarray) -> None:
    """The reference pads clips with zeros to 30 s first."""
    clip = speech[: int(seconds * 16_000)]
    expected = WhisperFeatureExtractor(feature_size=mels)([clip], sampling_rate=16_000)["input_features"][0]
    ours = log_mel(clip, LogMelConfig("whisper-log-mel", 16_000, 400, 160, mels, 480_000))
    assert ours.shape == expected.shape == (mels, 3000)
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


@pytest.mark.parametrize("gain", [1e-1, 1e-2, 1e-3, 5e-4])
def test_quiet_parts_keep_their_shape(gain: float, rng: np.random.Generator) -> None:
    """Features reach 80 dB below the clip's peak, where a float32 transform is least precise."""
    noise = rng.standard_normal(32_000).astype(np.float32)
    noise[16_000:] *= gain
    ours, expected = log_mel(noise, CONFIG), reference(noise)
    assert (expected[:, 105:] > expected.min()).mean() > 0.3  # compares more than the floor
    assert np.abs(ours - expected).max() <= TOLERANCE


@pytest.mark.parametrize("frames", [127, 128, 129, 256, 300])
def test_blocks_of_frames_join_without_errors(frames: int, rng: np.random.Generator) -> None:
    clip = rng.standard_normal(frames * 160).astype(np.float32)
    assert np.abs(log_mel(clip, CONFIG) - reference(clip)).max() <= TOLERANCE


@pytest.mark.parametrize("bands", [80, 100, 128])
def test_bands_equal_the_filters_and_need_one_thread(bands: int) -> None:
    config = LogMelConfig("whisper-log-mel", 16_000, 400, 160, bands, 8_000)
    _, mel_bands = log_mel_module._tables(config)
    joined = np.zeros((bands, 201))
    for band in mel_bands:
        joined[band.rows, band.bins] += band.weights
        assert band.weights.size * log_mel_module._BLOCK_FRAMES < 2**18
    np.testing.assert_allclose(joined, slaney_mel_filters(bands, 400, 16_000), atol=1e-8)
