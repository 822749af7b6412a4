"""Cuts cover the audio, stay under the limit, and fall where it is quiet; joining follows the script."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.segmentation import cut_points, join_texts

RATE = 1000


@given(st.integers(0, 90_000), st.floats(1.0, 30.0), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_spans_cover_everything_in_order(count: int, longest: float, seed: int) -> None:
    samples = np.random.default_rng(seed).standard_normal(count).astype(np.float32)
    spans = cut_points(samples, RATE, longest)
    assert spans[0][0] == 0
    assert spans[-1][1] == count
    assert all(end == start for (_, end), (start, _) in pairwise(spans))
    assert all(end - start <= int(longest * RATE) for start, end in spans)
    assert all(end - start >= int(longest * RATE) // 2 for start, end in spans[:-1])


def test_cuts_fall_into_pauses(rng: np.random.Generator) -> None:
    rate = 16_000
    samples = rng.standard_normal(40 * rate).astype(np.float32)
    pauses = [(7.4, 7.9), (14.0, 14.4), (22.6, 23.1), (29.5, 30.0), (36.2, 36.6)]
    for start, end in pauses:
        samples[int(start * rate) : int(end * rate)] *= 0.01
    for _, end in cut_points(samples, rate, 10.0)[:-1]:
        assert any(start < end / rate < stop for start, stop in pauses)


@pytest.mark.parametrize(
    ("texts", "joined"),
    [
        (["Hello there.", "How are you?"], "Hello there. How are you?"),
        (["你好。", "今天很热。"], "你好。今天很热。"),
        (["今天", "OK", "很热"], "今天 OK 很热"),
        (["สวัสดี", "ครับ"], "สวัสดีครับ"),
        (["안녕", "하세요"], "안녕 하세요"),
        (["", "  ", "One.", "", "Two."], "One. Two."),
        ([], ""),
    ],
)
def test_joining(texts: list[str], joined: str) -> None:
    assert join_texts(texts) == joined
