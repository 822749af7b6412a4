"""Greedy CTC against the rule itself, and against torch's probabilities."""

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


def sure(path: list[int]) -> np.ndarray:
    """Logits [frames, classes] whose best classes are ``path``."""
    return np.eye(CLASSES, dtype=np.float32)[np.array(path, np.int64)] * 9


def collapsed(path: list[int]) -> list[int]:
    """The rule itself: runs once, without blanks."""
    tokens, before = [], None
    for label in path:
        if label not in (before, BLANK):
            tokens.append(label)
        before = label
    return tokens


def spans(hypothesis: FrameHypothesis) -> list[tuple[int, int, int]]:
    """Tokens, and their frames."""
    return list(zip(hypothesis.tokens, hypothesis.starts, hypothesis.ends, strict=True))


@given(path=paths)
def test_runs_are_joined_and_blanks_left_out(path: list[int]) -> None:
    hypothesis = greedy_ctc(sure(path), BLANK)
    assert hypothesis.tokens == collapsed(path)
    assert hypothesis.finish_reason == "stop"
    drawn = [BLANK] * len(path)
    for token, start, end in spans(hypothesis):
        assert end > start
        drawn[start:end] = [token] * (end - start)
    assert drawn == path  # the frames of tokens are those of their runs, and all others are blank


@given(path=paths, times=st.integers(1, 4))
def test_speaking_slower_changes_times_alone(path: list[int], times: int) -> None:
    slow = greedy_ctc(sure([label for label in path for _ in range(times)]), BLANK)
    quick = greedy_ctc(sure(path), BLANK)
    assert spans(slow) == [(token, start * times, end * times) for token, start, end in spans(quick)]
    assert slow.log_probabilities == quick.log_probabilities


@given(logits=floats)
def test_probabilities_are_those_of_the_softmax_at_the_peak(logits: np.ndarray) -> None:
    before = logits.copy()
    expected = torch.from_numpy(logits).double().log_softmax(-1).numpy()
    hypothesis = greedy_ctc(logits, BLANK)
    for (token, start, end), found in zip(spans(hypothesis), hypothesis.log_probabilities, strict=True):
        assert found == pytest.approx(expected[start:end, token].max(), abs=1e-5)
        assert found <= 0
    assert 0 <= hypothesis.confidence <= 1
    np.testing.assert_array_equal(logits, before)


@given(path=paths, offset=st.floats(-100, 100, width=32))
def test_normalized_or_not_is_the_same(path: list[int], offset: float) -> None:
    logits = sure(path) + np.float32(offset)
    one = greedy_ctc(logits, BLANK)
    other = greedy_ctc(torch.from_numpy(logits).log_softmax(-1).numpy(), BLANK)
    assert spans(one) == spans(other)
    np.testing.assert_allclose(one.log_probabilities, other.log_probabilities, atol=1e-4)


def test_nothing_but_blanks_is_nothing() -> None:
    for logits in (sure([BLANK] * 7), np.zeros((0, CLASSES), np.float32)):
        hypothesis = greedy_ctc(logits, BLANK)
        assert hypothesis == FrameHypothesis([], [], [], [])
        assert hypothesis.confidence == 0


def test_the_first_of_equal_classes_counts() -> None:
    hypothesis = greedy_ctc(np.zeros((2, CLASSES), np.float32), BLANK)
    assert spans(hypothesis) == [(0, 0, 2)]
    assert hypothesis.log_probabilities == pytest.approx([math.log(0.25)])
