"""Tests of channels that cancel, and of samples outside of [-1, 1]: read with a warning, or refused; never silence."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest

from runtime.audio import from_array, load_audio, open_array, open_audio
from runtime.audio.levels import mix
from runtime.audio.pipe import open_pipe
from runtime.audio.stream_resampler import StreamResampler
from runtime.errors import AudioInvalidError
from tests.helpers.recordings import RATE, encoded, sound, tone


def read(data: bytes, **options: int) -> tuple[np.ndarray, list[str]]:
    warnings: list[str] = []
    with open_audio(io.BytesIO(data), RATE, name="talk", warn=warnings.append, **options) as reader:
        return np.concatenate(list(reader.blocks())), warnings


def convert(array: np.ndarray) -> tuple[np.ndarray, list[str]]:
    warnings: list[str] = []
    with open_array(array, RATE, RATE, warn=warnings.append) as reader:
        return np.concatenate(list(reader.blocks())), warnings


def noise(seed: int, seconds: float = 25.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, round(seconds * RATE)).astype(np.float32)


def test_channels_that_cancel_give_the_louder_one() -> None:
    left, right = noise(1), -0.9 * noise(1)
    samples, warnings = read(sound(np.stack([left, right], 1), "WAV", "FLOAT"))
    np.testing.assert_allclose(samples, left, atol=1e-6)
    assert len(warnings) == 1
    assert "cancel" in warnings[0]
    samples, warnings = read(sound(np.stack([0.8 * left, -left], 1), "FLAC"))
    np.testing.assert_allclose(samples, -left, atol=1e-4)


def test_only_seconds_that_cancel_are_replaced() -> None:
    left = noise(1, 4.0)
    right = left.copy()
    right[2 * RATE : 3 * RATE] *= -1
    samples, cancelled = mix(np.stack([left, right], 1), RATE)
    assert cancelled
    np.testing.assert_allclose(samples, left, atol=1e-6)


@pytest.mark.parametrize(
    "right",
    [
        pytest.param(noise(1), id="equal"),
        pytest.param(noise(2), id="unrelated"),
        pytest.param(np.zeros_like(noise(1)), id="silent"),
        pytest.param(-0.3 * noise(1), id="weak echo"),
    ],
)
def test_other_channels_are_averaged(right: np.ndarray) -> None:
    left = noise(1)
    samples, warnings = read(sound(np.stack([left, right], 1), "WAV", "FLOAT"))
    np.testing.assert_allclose(samples, (left + right) / 2, atol=1e-6)
    assert not warnings


def test_silence_and_many_channels_are_averaged() -> None:
    quiet = np.stack([noise(1), -noise(1)], 1) * 1e-5
    assert not mix(quiet, RATE)[1]
    one_of_six = np.zeros((RATE, 6), np.float32)
    one_of_six[:, 2] = tone(1.0)
    samples, cancelled = mix(one_of_six, RATE)
    assert not cancelled
    np.testing.assert_allclose(samples, tone(1.0) / 6, atol=1e-6)


def test_chosen_channel_needs_no_warning() -> None:
    samples, warnings = read(sound(np.stack([tone(1.0), -tone(1.0)], 1), "WAV"), channel=1)
    np.testing.assert_allclose(samples, -tone(1.0), atol=1e-4)
    assert not warnings


@pytest.mark.parametrize(
    ("scale", "round_"),
    [(32768.0, True), (32768.0, False), (2.0**23, True), (2.0**31, False)],
)
@pytest.mark.parametrize("container", ["WAV", "AIFF", "CAF"])
def test_float_files_of_integers_are_scaled(scale: float, round_: bool, container: str) -> None:
    values = noise(1, 12.0) * scale
    values = np.round(values) if round_ else values
    samples, warnings = read(sound(values.astype(np.float32), container, "FLOAT"))
    np.testing.assert_allclose(samples, noise(1, 12.0), atol=1e-4)
    assert len(warnings) == 1
    assert f"divided by {scale:.0f}" in warnings[0]


def test_float_track_of_integers_is_scaled() -> None:
    samples, warnings = read(encoded(tone(2.0) * 32768, "matroska", "pcm_f32le"))
    np.testing.assert_allclose(samples, tone(2.0), atol=1e-4)
    assert len(warnings) == 1


def test_scale_is_that_of_the_whole_file() -> None:
    """The first block has only the noise of silence."""
    values: np.ndarray = np.concatenate(
        [np.random.default_rng(1).integers(-1, 2, 15 * RATE), np.round(tone(2.0) * 32768)]
    )
    samples, warnings = read(sound(values.astype(np.float32), "WAV", "FLOAT"))
    np.testing.assert_allclose(samples, values / 32768, atol=1e-6)
    assert len(warnings) == 1


@pytest.mark.parametrize("peak", [0.5, 1.0, 1.7, 4.0])
def test_headroom_of_floats_is_unchanged(peak: float) -> None:
    values: np.ndarray = noise(1, 12.0)
    values *= peak / np.abs(values).max()
    samples, warnings = read(sound(values, "WAV", "FLOAT"))
    np.testing.assert_array_equal(samples, values)
    assert not warnings


def test_unknown_range_is_refused() -> None:
    values = noise(1, 2.0)
    values *= 100 / np.abs(values).max()
    with pytest.raises(AudioInvalidError, match=r"up to 100; scale"):
        read(sound(values, "WAV", "FLOAT"))
    with pytest.raises(AudioInvalidError, match="scale"):
        from_array(values, RATE, RATE)


def test_arrays_of_floats_of_integers_are_scaled() -> None:
    samples, warnings = convert(np.round(tone(1.0) * 32767))
    np.testing.assert_allclose(samples, tone(1.0), atol=1e-4)
    assert len(warnings) == 1


@pytest.mark.parametrize(
    ("dtype", "full"),
    [(np.int32, 2**15), (np.int64, 2**15), (np.int64, 2**31), (np.uint32, None)],
)
def test_integers_in_wide_dtypes_are_scaled(dtype: type, full: int | None) -> None:
    values: np.ndarray[Any, Any] = (tone(1.0) * (full or 32767) + (0 if full else 32768)).astype(dtype)
    samples, warnings = convert(values)
    np.testing.assert_allclose(samples, tone(1.0), atol=1e-4)
    assert len(warnings) == 1


def test_integers_of_their_own_range_give_no_warning() -> None:
    for dtype in (np.int8, np.int16, np.int32):
        samples, warnings = convert((tone(1.0) * np.iinfo(dtype).max).astype(dtype))
        np.testing.assert_allclose(samples, tone(1.0), atol=0.02)
        assert not warnings
    with pytest.raises(AudioInvalidError, match="16 or 32 bits"):
        convert((tone(1.0) * 2.0**50).astype(np.int64))


@pytest.mark.parametrize("shape", [(2, RATE), (1, RATE), (6, 4000)])
def test_channels_before_samples_are_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(AudioInvalidError, match=r"give \[n, channels\], for example array.T"):
        from_array(np.zeros(shape, np.float32), RATE, RATE)


def test_live_samples_out_of_range_are_refused() -> None:
    resampler = StreamResampler(RATE, RATE)
    assert len(resampler.take(tone(0.1) * 3)) == RATE // 10
    with pytest.raises(AudioInvalidError, match=r"give floats in \[-1, 1\]"):
        resampler.take(tone(0.1) * 32768)


def test_channels_of_a_piped_wav_that_cancel_give_the_louder_one() -> None:
    warnings: list[str] = []
    data = sound(np.stack([tone(1.0), -tone(1.0)], 1), "WAV")
    source = open_pipe(io.BufferedReader(io.BytesIO(data)), warn=warnings.append)
    samples = np.concatenate(list(source.blocks()))
    np.testing.assert_allclose(samples, tone(1.0), atol=1e-4)
    assert len(warnings) == 1


def test_warnings_are_logged_by_default(caplog: pytest.LogCaptureFixture) -> None:
    load_audio(io.BytesIO(sound(np.stack([tone(1.0), -tone(1.0)], 1), "WAV")), RATE)
    assert "cancel" in caplog.text
