"""Tests of NeMo's features against transformers' ``ParakeetFeatureExtractor``."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import ParakeetFeatureExtractor

from runtime.engines.frame import padded
from runtime.features.log_mel import slaney_mel_filters
from runtime.features.nemo_mel import NemoMelConfig, nemo_frame_count, nemo_mel

CONFIG = NemoMelConfig("nemo-log-mel", 16_000, 512, 400, 160, 128, 0.97)
# On speech, the reference in float32 differs from float64 by up to 1e-4, which a test below shows.
TOLERANCE = 2e-4


def reference(clips: list[np.ndarray], mels: int = 128) -> tuple[np.ndarray, np.ndarray]:
    """Features and numbers of valid frames of a batch."""
    batch = ParakeetFeatureExtractor(feature_size=mels)(clips, sampling_rate=16_000, return_tensors="np")
    return np.asarray(batch["input_features"]), np.asarray(batch["attention_mask"]).sum(-1)


@pytest.mark.parametrize(
    "case", ["speech", "clipping", "0.1 s", "two frames", "quiet", "odd length", "noise", "80 mels"]
)
def test_features_equal_the_reference(case: str, speech: np.ndarray, rng: np.random.Generator) -> None:
    clip = {
        "speech": speech[: 20 * 16_000],
        "clipping": np.clip(speech[:48_000] * 50, -1, 1),
        "0.1 s": speech[20_000:21_600],
        "two frames": speech[20_000:20_320],
        "quiet": speech[:32_000] * 1e-2,
        "odd length": speech[:16_123],
        "noise": rng.standard_normal(30_001).astype(np.float32),
        "80 mels": speech[:32_000],
    }[case]
    config = msgspec.structs.replace(CONFIG, n_mels=80) if case == "80 mels" else CONFIG
    ours = nemo_mel(clip, config)
    assert ours.dtype == np.float32
    assert ours.flags.c_contiguous
    (expected,), (valid,) = reference([clip], config.n_mels)
    assert ours.shape == (valid, config.n_mels) == (nemo_frame_count(len(clip), config), config.n_mels)
    assert np.abs(ours - expected[:valid]).max() <= TOLERANCE


def in_float64(clip: np.ndarray) -> np.ndarray:
    """Compute the features by their definition in float64: [frames, 128]."""
    samples, frames = clip.astype(np.float64), len(clip) // 160
    emphasized = np.concatenate([samples[:1], samples[1:] - 0.97 * samples[:-1]])
    around = np.pad(emphasized, 200)
    window = np.hanning(400)  # symmetric
    power = np.stack([np.abs(np.fft.rfft(around[t * 160 : t * 160 + 400] * window, 512)) ** 2 for t in range(frames)])
    mel = np.log(power @ slaney_mel_filters(128, 512, 16_000).T + 2.0**-24)
    features: np.ndarray = (mel - mel.mean(0)) / (mel.std(0, ddof=1) + 1e-5)
    return features


def test_features_are_closer_to_float64_than_the_reference(speech: np.ndarray) -> None:
    clip = speech[: 20 * 16_000]
    exact, (theirs,) = in_float64(clip), reference([clip])[0]
    error = np.abs(nemo_mel(clip, CONFIG) - exact).max()
    assert error <= 1e-4
    assert error < np.abs(theirs[: len(exact)] - exact).max()


def test_padded_batch_equals_the_reference(speech: np.ndarray) -> None:
    clips = [speech[:48_000], speech[50_000:62_345], speech[70_000:73_000]]
    ours, lengths = padded([nemo_mel(clip, CONFIG) for clip in clips])
    expected, valid = reference(clips)
    assert lengths.tolist() == valid.tolist()
    assert np.abs(ours - expected[:, : ours.shape[1]]).max() <= TOLERANCE
    assert not expected[:, ours.shape[1] :].any()  # the frame after the last hop, which the reference masks


@given(length=st.integers(0, 700), level=st.sampled_from([0.0, 0.25]))
def test_every_length_gives_finite_features(length: int, level: float) -> None:
    features = nemo_mel(np.full(length, level, np.float32), CONFIG)
    assert features.shape == (max(1, length // 160), 128)
    assert np.isfinite(features).all()
    if length < 320 or not level:
        assert not features.any()  # one frame or equal frames: standard deviation 0


@given(length=st.integers(1600, 6000), seed=st.integers(0, 100))
def test_every_length_has_as_many_frames_as_the_reference(length: int, seed: int) -> None:
    clip = np.random.default_rng(seed).standard_normal(length).astype(np.float32)
    (expected,), (valid,) = reference([clip])
    ours = nemo_mel(clip, CONFIG)
    assert len(ours) == valid
    assert_alike(ours, expected[:valid])


def assert_alike(ours: np.ndarray, expected: np.ndarray) -> None:
    """Compare features of noise. A bin may be close to 0 by chance, and its logarithm then depends on rounding."""
    error = np.abs(ours - expected)
    assert np.quantile(error, 0.99) <= 1e-4
    assert error.max() <= 2e-2


@pytest.mark.parametrize("frames", [99, 100, 101, 250])
def test_blocks_of_frames_join_without_errors(frames: int, rng: np.random.Generator) -> None:
    clip = rng.standard_normal(frames * 160).astype(np.float32)
    (expected,), _ = reference([clip])
    assert_alike(nemo_mel(clip, CONFIG), expected[:frames])


def test_the_input_is_not_changed(speech: np.ndarray) -> None:
    clip = speech[:16_000].copy()
    before = clip.copy()
    nemo_mel(clip, CONFIG)
    np.testing.assert_array_equal(clip, before)
