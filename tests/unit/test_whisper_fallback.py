"""Checks of decoded texts: loops, silence and language probabilities."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from runtime.families.whisper.fallback import (
    SHORT_SPEECH_SECONDS,
    compression_ratio,
    is_silence,
    likeliest_language,
    probability,
    repeats,
)


def test_loops_are_found_by_compression() -> None:
    assert not repeats("And so my fellow Americans ask not what your country can do for you.")
    assert not repeats("")
    assert not repeats("no no no")
    assert repeats("thank you for watching " * 10)
    assert repeats("да " * 60)


@given(st.text(max_size=200))
def test_repeating_a_text_does_not_lower_its_compression_ratio(text: str) -> None:
    assert compression_ratio(text) >= 0
    assert compression_ratio(text * 20) >= compression_ratio(text) * 0.9


@given(st.integers(0, 1000), st.integers(0, 9))
def test_probability_is_a_softmax(seed: int, token: int) -> None:
    logits = (np.random.default_rng(seed).standard_normal(10) * 5).astype(np.float32)
    expected = torch.from_numpy(logits).softmax(0)[token].item()
    assert abs(probability(logits, token) - expected) < 1e-6


def test_silence_needs_high_no_speech_probability_and_low_log_probability() -> None:
    assert is_silence(0.7, -1.5)
    assert not is_silence(0.7, -0.5)
    assert not is_silence(0.5, -1.5)


def test_little_speech_needs_no_low_log_probability() -> None:
    assert is_silence(0.7, -0.5, SHORT_SPEECH_SECONDS - 0.01)
    assert not is_silence(0.7, -0.5, SHORT_SPEECH_SECONDS)
    assert not is_silence(0.5, -1.5, 0.0)
    assert is_silence(0.7, -1.5, 5.0)


def test_only_language_tokens_are_compared() -> None:
    logits = np.zeros(10, np.float32)
    logits[[2, 5]] = 1.0, 3.0
    logits[9] = 8.0  # not a language token
    code, language_probability = likeliest_language(logits, {"en": 2, "de": 5, "ru": 6})
    assert code == "de"
    assert abs(language_probability - np.exp(3) / (np.exp(1) + np.exp(3) + 1)) < 1e-6
