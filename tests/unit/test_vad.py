"""Voice activity: scores of the published model, independence of blocks, threads and loudness, damaged weights."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load

from runtime.audio.vad import CONTEXT_SAMPLES, FRAME_SAMPLES, SpeechDetector, read_weights, weights_file
from runtime.errors import ArtifactInvalidError, ArtifactNotFoundError
from tests.conftest import DATA, REPOSITORY


@pytest.fixture(scope="module")
def recording() -> np.ndarray:
    return np.asarray(soundfile.read(DATA / "en-2.wav", dtype="float32")[0])


def probabilities(samples: np.ndarray) -> np.ndarray:
    detector = SpeechDetector()
    return np.concatenate([detector.probabilities(samples), detector.finish()])


def test_scores_equal_those_of_the_published_graph() -> None:
    """tools/make_vad_weights.py scored the clip with Silero's ONNX graph; both compute in float32."""
    path = REPOSITORY / "tests" / "references" / "silero_vad" / "en-2.json"
    reference = json.loads(path.read_text(encoding="utf-8"))
    samples = np.asarray(soundfile.read(REPOSITORY / reference["audio"], dtype="float32")[0])
    expected = np.array(reference["scores"])
    padded = np.concatenate([np.zeros(CONTEXT_SAMPLES, np.float32), samples])
    frames = np.lib.stride_tricks.sliding_window_view(padded, CONTEXT_SAMPLES + FRAME_SAMPLES)[::FRAME_SAMPLES]
    assert len(expected) == len(frames) == len(samples) // FRAME_SAMPLES
    assert expected.min() < 0.05  # pauses and speech
    assert expected.max() > 0.95
    detector = SpeechDetector()
    np.testing.assert_allclose(SpeechDetector().score(frames), expected, atol=1e-4)
    one_by_one = [detector.score(frames[index : index + 1])[0] for index in range(len(frames))]
    np.testing.assert_allclose(one_by_one, expected, atol=1e-4)


@given(st.lists(st.integers(0, 5000), max_size=30))
@settings(max_examples=25)
def test_scores_do_not_depend_on_block_lengths(sizes: list[int]) -> None:
    samples = np.asarray(soundfile.read(DATA / "zh-1.wav", dtype="float32")[0])
    detector = SpeechDetector()
    cuts = np.minimum(np.cumsum(sizes, dtype=int), len(samples))
    parts = [detector.probabilities(part) for part in np.split(samples, cuts)]
    result = np.concatenate([*parts, detector.finish()])
    assert len(result) == -(-len(samples) // FRAME_SAMPLES)
    np.testing.assert_allclose(result, probabilities(samples), atol=1e-4)


def test_detectors_are_independent(recording: np.ndarray) -> None:
    """Scores files alternately in one thread, and at once in several threads."""
    other = recording[::-1].copy()
    first, second = SpeechDetector(), SpeechDetector()
    mixed = [
        (first.probabilities(a), second.probabilities(b))
        for a, b in zip(*(np.array_split(samples, 20) for samples in (recording, other)), strict=True)
    ]
    for parts, samples in zip(zip(*mixed, strict=True), (recording, other), strict=True):
        np.testing.assert_allclose(np.concatenate(parts), probabilities(samples)[: sum(map(len, parts))], atol=1e-4)
    with ThreadPoolExecutor(4) as pool:
        for scores in pool.map(probabilities, [recording] * 8):
            np.testing.assert_array_equal(scores, probabilities(recording))


def test_silence_noise_and_tones_are_not_speech(rng: np.random.Generator) -> None:
    time = np.arange(16_000 * 3) / 16_000
    for samples in (
        np.zeros(48_000),
        0.1 * rng.standard_normal(48_000),
        0.001 * rng.standard_normal(48_000),
        0.5 * np.sin(2 * np.pi * 50 * time),
        0.5 * np.sin(2 * np.pi * 1000 * time),
    ):
        assert probabilities(samples.astype(np.float32)).max() < 0.3


@pytest.mark.parametrize("gain", [0.1, 0.01, 0.001, 32768.0])
def test_loudness_makes_little_difference(recording: np.ndarray, gain: float) -> None:
    """Includes samples that were not scaled to [-1, 1]."""
    usual, other = (probabilities((recording * by).astype(np.float32)) >= 0.3 for by in (1.0, gain))
    assert np.mean(usual == other) > 0.95


def test_huge_sample_gives_finite_scores(recording: np.ndarray) -> None:
    samples = recording.copy()
    samples[5000] = 3e38
    assert np.isfinite(probabilities(samples)).all()


def test_number_of_scores_of_short_audio() -> None:
    assert len(probabilities(np.zeros(0, np.float32))) == 0
    assert len(probabilities(np.zeros(1, np.float32))) == 1
    assert len(probabilities(np.zeros(FRAME_SAMPLES, np.float32))) == 1


def test_weights_are_a_safetensors_file() -> None:
    ours, theirs = read_weights(weights_file()), load(weights_file().read_bytes())
    assert ours.keys() == theirs.keys()
    for name, values in theirs.items():
        np.testing.assert_array_equal(ours[name], values)


def test_damaged_and_missing_weights(tmp_path: Path) -> None:
    data = bytearray(weights_file().read_bytes())
    data[-1] ^= 1
    (tmp_path / "damaged").write_bytes(data)
    with pytest.raises(ArtifactInvalidError, match=r"voice activity weights are damaged \(sha256 .*; install"):
        read_weights(tmp_path / "damaged")
    with pytest.raises(ArtifactNotFoundError, match="voice activity weights are missing; install"):
        read_weights(tmp_path / "missing")
