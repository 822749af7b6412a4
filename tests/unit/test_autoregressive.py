"""The greedy loop over step functions that are not models."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.decoding.autoregressive import greedy, log_probability, loop_period, loop_start

VOCAB, STOP = 50, 49


def script(tokens: list[int]) -> tuple[np.ndarray, Callable[[int], np.ndarray], list[int]]:
    """First logits and a step function that make greedy decoding emit ``tokens``; what it was fed is recorded."""
    fed: list[int] = []

    def logits(index: int) -> np.ndarray:
        row = np.zeros(VOCAB, np.float32)
        row[tokens[min(index, len(tokens) - 1)]] = 5.0
        return row

    def step(token: int) -> np.ndarray:
        fed.append(token)
        return logits(len(fed))

    return logits(0), step, fed


def test_stops_at_a_stop_id() -> None:
    first, step, fed = script([3, 1, 4, STOP, 5])
    result = greedy(first, step, {STOP}, 100)
    assert (result.tokens, result.finish_reason) == ([3, 1, 4], "stop")
    assert fed == [3, 1, 4]
    assert len(result.log_probabilities) == 4
    expected = math.exp(5) / (math.exp(5) + VOCAB - 1)
    assert result.confidence == pytest.approx(expected, rel=1e-5)


def test_an_empty_text_has_the_stop_ids_confidence() -> None:
    first, step, _ = script([STOP])
    result = greedy(first, step, {STOP}, 100)
    assert result.tokens == []
    assert 0.7 < result.confidence < 0.8


def test_the_budget_is_exact() -> None:
    tokens = list(range(40))
    first, step, fed = script(tokens)
    result = greedy(first, step, {STOP}, 7)
    assert (result.tokens, result.finish_reason) == (tokens[:7], "length")
    assert len(fed) == 6  # the last token's successor is not asked for


def test_a_loop_ends_and_keeps_one_period() -> None:
    first, step, fed = script([1, 2, 3] + [7, 8] * 200)
    result = greedy(first, step, {STOP}, 400)
    assert (result.tokens, result.finish_reason) == ([1, 2, 3, 7, 8], "repetition")
    assert len(fed) < 40


def test_ignoring_stops_gives_exactly_the_asked_length() -> None:
    first, step, _ = script([STOP] * 100)
    result = greedy(first, step, {STOP}, 60, ignore_stop=True)
    assert (len(result.tokens), result.finish_reason) == (60, "length")


@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), st.integers(0, 12))
def test_any_long_repetition_is_a_loop(period: list[int], prefix: int) -> None:
    tokens = [90 + i for i in range(prefix)] + period * 40
    found = loop_period(tokens)
    assert found
    assert len(period) % found == 0
    assert loop_start(tokens, found) == prefix


@given(st.lists(st.integers(0, 9), min_size=1, max_size=20), st.integers(2, 5))
def test_a_few_repeats_of_a_phrase_are_no_loop(phrase: list[int], times: int) -> None:
    """People do say things twice, and count: up to five repeats of a phrase without inner repetition pass."""
    distinct = [100 + index for index in range(len(phrase))]
    assert loop_period([1, 2, *distinct * times]) == 0


def test_log_probability_is_a_log_softmax() -> None:
    logits = np.array([1000.0, 999.0, -5.0], np.float32)
    assert log_probability(logits, 0) == pytest.approx(-math.log1p(math.exp(-1)), rel=1e-5)
    assert log_probability(logits, 2) == pytest.approx(-1005.3133, rel=1e-5)
