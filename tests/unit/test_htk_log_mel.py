"""Tests of GigaAM's features against the published formulas, with torch's transform and transformers' filters."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.audio_utils import mel_filter_bank

from runtime.features.htk_log_mel import HtkLogMelConfig, htk_frame_count, htk_log_mel, htk_mel_filters

CONFIG = HtkLogMelConfig("htk-log-mel", 16_000, 320, 160, 64, 320)
# The first is the rounding error of the published front end in float32, in bins 90 dB below the loudest. Our features
# are closer to the exact values.
TOLERANCE, EXACT_TOLERANCE = 1e-3, 3e-4


def reference(samples: np.ndarray, dtype: torch.dtype = torch.float32) -> np.ndarray:
    """Compute the log of torchaudio's ``MelSpectrogram(16000, n_fft=320, hop_length=160, n_mels=64, center=False)``.

    Like torchaudio, it calls ``torch.stft`` and multiplies with HTK filters.
    """
    filters = torch.from_numpy(mel_filter_bank(161, 64, 0.0, 8000.0, 16_000, norm=None, mel_scale="htk"))
    window = torch.hann_window(320, dtype=dtype)
    clip = torch.from_numpy(samples).to(dtype)
    spectrum = torch.stft(clip, 320, 160, window=window, center=False, return_complex=True)
    mel = spectrum.abs().pow(2).T @ filters.to(dtype)
    log: np.ndarray = mel.clamp(1e-9, 1e9).log().T.numpy()
    return log


@pytest.mark.parametrize("case", ["speech", "silence", "clipping", "one window", "quiet", "odd length", "dc", "loud"])
def test_features_equal_the_reference(case: str, speech: np.ndarray) -> None:
    clip = {
        "speech": speech[: 20 * 16_000],
        "silence": np.zeros(16_000, np.float32),
        "clipping": np.clip(speech[:48_000] * 50, -1, 1),
        "one window": speech[20_000:20_320],
        "quiet": speech[:32_000] * 1e-4,
        "odd length": speech[:16_123],
        "dc": np.full(16_000, 0.3, np.float32),
        "loud": speech[:16_000] * 1e6,  # above the upper bound
    }[case]
    ours, expected = htk_log_mel(clip, CONFIG), reference(clip)
    assert ours.dtype == np.float32
    assert ours.flags.c_contiguous
    assert ours.shape == expected.shape == (64, htk_frame_count(len(clip), CONFIG))
    assert np.abs(ours - expected).max() <= TOLERANCE
    assert np.abs(ours - reference(clip, torch.float64)).max() <= EXACT_TOLERANCE


def test_filters_equal_the_reference() -> None:
    for bands, size in ((64, 320), (80, 400)):
        expected = mel_filter_bank(size // 2 + 1, bands, 0.0, 8000.0, 16_000, norm=None, mel_scale="htk").T
        np.testing.assert_allclose(htk_mel_filters(bands, size, 16_000), expected, atol=1e-9)


def test_power_is_clipped_to_its_bounds() -> None:
    floor = htk_log_mel(np.zeros(800, np.float32), CONFIG)
    np.testing.assert_allclose(floor, np.log(1e-9), rtol=1e-6)
    tone = np.sin(np.arange(800, dtype=np.float32) * 0.5) * 1e6
    assert htk_log_mel(tone, CONFIG).max() == pytest.approx(np.log(1e9))


def test_short_clip_is_padded_with_zeros(speech: np.ndarray) -> None:
    clip = speech[20_000:20_100]
    expected = reference(np.pad(clip, (0, 220)))
    assert np.abs(htk_log_mel(clip, CONFIG) - expected).max() <= TOLERANCE
    assert htk_log_mel(np.zeros(0, np.float32), CONFIG).shape == (64, 1)


@given(samples=st.integers(0, 3_000))
def test_frame_count_equals_the_number_of_frames(samples: int) -> None:
    assert htk_log_mel(np.zeros(samples, np.float32), CONFIG).shape == (64, htk_frame_count(samples, CONFIG))


@given(frames=st.integers(1, 230), more=st.integers(0, 2_000))
def test_frame_depends_only_on_its_own_samples(frames: int, more: int) -> None:
    """Features of a clip's beginning are those of the whole clip."""
    clip = np.random.default_rng(frames).standard_normal(320 + 160 * (frames - 1) + more).astype(np.float32)
    part, whole = htk_log_mel(clip[: 320 + 160 * (frames - 1)], CONFIG), htk_log_mel(clip, CONFIG)
    assert part.shape[1] == frames
    np.testing.assert_allclose(part, whole[:, :frames], atol=1e-5)


def test_the_input_is_not_changed(speech: np.ndarray) -> None:
    clip = speech[:16_000].copy()
    before = clip.copy()
    htk_log_mel(clip, CONFIG)
    np.testing.assert_array_equal(clip, before)


@pytest.mark.parametrize(
    ("key", "value"), [("n_fft", 1), ("n_fft", 321), ("hop_length", 0), ("n_mels", 0), ("min_samples", 319)]
)
def test_invalid_front_end_is_refused(key: str, value: int) -> None:
    settings = {**msgspec.structs.asdict(CONFIG), key: value}
    with pytest.raises(msgspec.ValidationError, match="make no front end"):
        msgspec.convert(settings, HtkLogMelConfig)
