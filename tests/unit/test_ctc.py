"""Greedy CTC decoding, compared with the collapsing rule and with torch's probabilities."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from runtime.decoding.ctc import greedy_ctc
from runtime.decoding.frames import FrameHypothesis

CLASSES = 4
BLANK = 3
paths = st.lists(st.integers(0, CLASSES - 1), max_size=60)
floats = hnp.arrays(
    np.float32,
    st.tuples(st.integers(0, 40), st.just(CLASSES)),
    elements=st.floats(-30, 30, width=32),
)


def one_hot_logits(path: list[int]) -> np.ndarray:
    """Return logits float32 [frames, classes] whose best classes are ``path``."""
    return np.eye(CLASSES, dtype=np.float32)[np.array(path, np.int64)] * 9


def collapsed(path: list[int]) -> list[int]:
    """Return the tokens of ``path``: repetitions merged, blanks removed."""
    tokens, previous = [], None
    for label in path:
        if label not in (previous, BLANK):
            tokens.append(label)
        previous = label
    return tokens


def spans(hypothesis: FrameHypothesis) -> list[tuple[int, int, int]]:
    """Return token, first frame and end frame of each token."""
    return list(zip(hypothesis.tokens, hypothesis.starts, hypothesis.ends, strict=True))


@given(path=paths)
def test_repetitions_are_merged_and_blanks_removed(path: list[int]) -> None:
    hypothesis = greedy_ctc(one_hot_logits(path), BLANK)
    assert hypothesis.tokens == collapsed(path)
    assert hypothesis.finish_reason == "stop"
    labels = [BLANK] * len(path)
    for token, start, end in spans(hypothesis):
        assert end > start
        labels[start:end] = [token] * (end - start)
    assert labels == path  # tokens cover the frames of their runs, and all other frames are blank


@given(path=paths, times=st.integers(1, 4))
def test_slower_speech_changes_only_the_times(path: list[int], times: int) -> None:
    slow = greedy_ctc(one_hot_logits([label for label in path for _ in range(times)]), BLANK)
    fast = greedy_ctc(one_hot_logits(path), BLANK)
    assert spans(slow) == [(token, start * times, end * times) for token, start, end in spans(fast)]
    assert slow.log_probabilities == fast.log_probabilities


@given(logits=floats)
def test_log_probabilities_are_the_maximum_of_the_log_softmax_in_a_run(logits: np.ndarray) -> None:
    original = logits.copy()
    expected = torch.from_numpy(logits).double().log_softmax(-1).numpy()
    hypothesis = greedy_ctc(logits, BLANK)
    for (token, start, end), log_probability in zip(spans(hypothesis), hypothesis.log_probabilities, strict=True):
        assert log_probability == pytest.approx(expected[start:end, token].max(), abs=1e-5)
        assert log_probability <= 0
    assert 0 <= hypothesis.confidence <= 1
    np.testing.assert_array_equal(logits, original)


@given(path=paths, offset=st.floats(-100, 100, width=32))
def test_normalized_and_raw_logits_give_the_same_result(path: list[int], offset: float) -> None:
    logits = one_hot_logits(path) + np.float32(offset)
    raw = greedy_ctc(logits, BLANK)
    normalized = greedy_ctc(torch.from_numpy(logits).log_softmax(-1).numpy(), BLANK)
    assert spans(raw) == spans(normalized)
    np.testing.assert_allclose(raw.log_probabilities, normalized.log_probabilities, atol=1e-4)


def test_blanks_alone_give_an_empty_hypothesis() -> None:
    for logits in (one_hot_logits([BLANK] * 7), np.zeros((0, CLASSES), np.float32)):
        hypothesis = greedy_ctc(logits, BLANK)
        assert hypothesis == FrameHypothesis([], [], [], [])
        assert hypothesis.confidence == 0


def test_the_first_of_equal_classes_is_chosen() -> None:
    hypothesis = greedy_ctc(np.zeros((2, CLASSES), np.float32), BLANK)
    assert spans(hypothesis) == [(0, 0, 2)]
    assert hypothesis.log_probabilities == pytest.approx([math.log(0.25)])
