"""Guards on decoded texts, against the reference's arithmetic."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from runtime.families.whisper.fallback import compression_ratio, is_silence, likeliest_language, probability, repeats


def test_a_loop_compresses_and_speech_does_not() -> None:
    assert not repeats("And so my fellow Americans ask not what your country can do for you.")
    assert not repeats("")
    assert not repeats("no no no")
    assert repeats("thank you for watching " * 10)
    assert repeats("да " * 60)


@given(st.text(max_size=200))
def test_repeating_a_text_never_lowers_its_ratio_much(text: str) -> None:
    assert compression_ratio(text) >= 0
    assert compression_ratio(text * 20) >= compression_ratio(text) * 0.9


@given(st.integers(0, 1000), st.integers(0, 9))
def test_probability_is_a_softmax(seed: int, token: int) -> None:
    logits = (np.random.default_rng(seed).standard_normal(10) * 5).astype(np.float32)
    expected = torch.from_numpy(logits).softmax(0)[token].item()
    assert abs(probability(logits, token) - expected) < 1e-6


def test_silence_is_what_is_likely_silent_and_unlikely_text() -> None:
    assert is_silence(0.7, -1.5)
    assert not is_silence(0.7, -0.5)
    assert not is_silence(0.5, -1.5)


def test_only_languages_count() -> None:
    logits = np.zeros(10, np.float32)
    logits[[2, 5]] = 1.0, 3.0
    logits[9] = 8.0  # some other token
    code, share = likeliest_language(logits, {"en": 2, "de": 5, "ru": 6})
    assert code == "de"
    assert abs(share - np.exp(3) / (np.exp(1) + np.exp(3) + 1)) < 1e-6
