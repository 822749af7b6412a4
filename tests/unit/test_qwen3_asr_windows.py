"""Encoder rows of growing clips."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.families.qwen3_asr.windows import GrowingClip
from runtime.features.log_mel import LogMelConfig, log_mel, log_power

CONFIG = LogMelConfig("whisper-log-mel", 16_000, 400, 160, 128, 8_000)
RATE, WINDOW = 16_000, 800
Floats = np.ndarray


def encode(features: Sequence[Floats]) -> list[Floats]:
    """Encode each window of features [mels, frames] to two rows: the sum of its features, and its width."""
    return [np.array([[each.sum(dtype=np.float64)], [each.shape[1]]], np.float64) for each in features]


def encode_whole(samples: Floats) -> Floats:
    """Return the rows of a clip that is encoded at once."""
    features = log_mel(samples, CONFIG)
    starts = range(0, features.shape[1], WINDOW)
    return np.concatenate(encode([np.ascontiguousarray(features[:, start : start + WINDOW]) for start in starts]))


def speechlike(seconds: float, seed: int) -> Floats:
    """Return noise at 16 kHz whose loudness changes every half second, over some 60 dB."""
    rng = np.random.default_rng(seed)
    count = int(seconds * RATE)
    level = np.repeat(10 ** rng.uniform(-4, -1, count // 8000 + 1), 8000)[:count]
    return (rng.standard_normal(count) * level).astype(np.float32)


@given(st.floats(0.1, 19.9), st.integers(0, 99), st.lists(st.floats(0.1, 19.9), max_size=8))
@settings(max_examples=40, deadline=None)
def test_final_rows_equal_those_of_the_whole_clip(seconds: float, seed: int, stops: list[float]) -> None:
    """Bit by bit, for any growth and any loudness."""
    samples = speechlike(seconds, seed)
    clip = GrowingClip(CONFIG, WINDOW)
    for stop in sorted(stop for stop in stops if stop < seconds):
        clip.encoded(encode(clip.pending(samples[: int(stop * RATE)], final=False)))
    rows = clip.encoded(encode(clip.pending(samples, final=True)))
    assert np.array_equal(rows, encode_whole(samples))


@given(st.floats(0.5, 19.9), st.floats(0.5, 19.9), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_a_clip_that_is_cut_gives_the_rows_of_the_shorter_clip(
    encoded_seconds: float, cut_seconds: float, seed: int
) -> None:
    """A stream may cut long speech earlier than the audio encoded so far, even inside a finished window."""
    samples = speechlike(20.0, seed)
    clip = GrowingClip(CONFIG, WINDOW)
    for end in (encoded_seconds, 20.0):
        clip.encoded(encode(clip.pending(samples[: int(end * RATE)], final=False)))
    cut = samples[: int(cut_seconds * RATE)]
    assert np.array_equal(clip.encoded(encode(clip.pending(cut, final=True))), encode_whole(cut))
    assert clip.unchanged <= clip.finished <= cut_seconds / 8


def test_a_finished_window_is_encoded_once() -> None:
    """The loudest part is at the start, so only the growing window is encoded again."""
    samples = speechlike(19.0, 1)
    samples[:4000] = np.random.default_rng(0).standard_normal(4000)
    clip, counts = GrowingClip(CONFIG, WINDOW), []
    for second in range(1, 20):
        pending = clip.pending(samples[: second * RATE], final=False)
        counts.append([each.shape[1] for each in pending])
        clip.encoded(encode(pending))
    # At 8 s the last frames still overlap the clip's end; one second later they do not.
    assert counts[:8] == [[100 * second] for second in range(1, 9)]
    assert counts[8] == [800, 100]
    assert counts[9:16] == [[100 * second] for second in range(2, 9)]
    assert counts[16:] == [[800, 100], [200], [300]]
    assert (clip.finished, clip.unchanged) == (2, 2)
    assert clip.pending(samples, final=True) == []  # nothing changed since the last call


@pytest.mark.parametrize(("louder", "encoded_again"), [(1.2, False), (100.0, True)])
def test_a_window_is_encoded_again_only_when_the_maximum_rises_enough(louder: float, encoded_again: bool) -> None:
    """The first window has frames far below the maximum: only a much higher maximum changes its features."""
    samples = speechlike(12.0, 2)
    samples[RATE : 2 * RATE] *= 1e-4
    samples[9 * RATE :] = 0
    clip = GrowingClip(CONFIG, WINDOW)
    clip.encoded(encode(clip.pending(samples[: int(8.5 * RATE)], final=False)))
    peak = np.abs(samples[: 8 * RATE]).max()
    samples[10 * RATE : 10 * RATE + 8000] = np.random.default_rng(0).standard_normal(8000) * peak / 3
    before = log_power(samples[: int(8.5 * RATE)], CONFIG).max()
    samples[10 * RATE : 10 * RATE + 8000] *= louder * 10 ** ((before - log_power(samples, CONFIG, 900).max()) / 2)
    pending = clip.pending(samples, final=False)
    assert (len(pending) == 2) == encoded_again
    assert clip.unchanged == (0 if encoded_again else 1)
    clip.encoded(encode(pending))
    assert np.array_equal(clip.encoded(encode(clip.pending(samples, final=True))), encode_whole(samples))


@given(st.integers(8_000, 200_000), st.sampled_from([0, 100, 800]))
@settings(max_examples=30, deadline=None)
def test_log_power_from_a_frame_on_equals_that_of_the_whole(samples: int, first: int) -> None:
    audio = speechlike(samples / RATE + 0.001, samples)[:samples]
    whole = log_power(audio, CONFIG)
    if first < whole.shape[1]:
        assert np.array_equal(log_power(audio, CONFIG, first), whole[:, first:])
