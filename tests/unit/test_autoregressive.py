"""Greedy decoding in rows, with decoders that are not models."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.decoding.autoregressive import Hypothesis, Job, greedy_rows, log_probability, loop_period, loop_start

VOCAB, STOP = 50, 49
NO_AUDIO = np.zeros((0, 4), np.float32)


class Scripts:
    """A decoder whose row emits the script that its prompt names; what rows are fed is recorded by script."""

    def __init__(self, scripts: list[list[int]]) -> None:
        self.scripts = scripts
        self.fed: list[list[int]] = [[] for _ in scripts]
        self.at: dict[int, int] = {}
        self.steps: list[int] = []
        self.opened = (0, 0)

    def _logits(self, script: int) -> np.ndarray:
        row = np.zeros(VOCAB, np.float32)
        tokens = self.scripts[script]
        row[tokens[min(len(self.fed[script]), len(tokens) - 1)]] = 5.0
        return row

    def open_rows(self, rows: int, positions: int) -> None:
        self.opened = (rows, positions)

    def prefill_row(self, row: int, prompt: list[int], audio_embeds: np.ndarray) -> np.ndarray:
        assert 0 <= row < self.opened[0]
        self.at[row] = prompt[0]
        return self._logits(prompt[0])

    def step_rows(self, tokens: dict[int, int]) -> np.ndarray:
        self.steps.append(len(tokens))
        logits = np.full((self.opened[0], VOCAB), np.nan, np.float32)
        for row, token in tokens.items():
            self.fed[self.at[row]].append(token)
            logits[row] = self._logits(self.at[row])
        return logits


def script(tokens: list[int]) -> tuple[Scripts, list[int]]:
    """A decoder that emits ``tokens``, and what it is fed."""
    made = Scripts([tokens])
    return made, made.fed[0]


def greedy(decoder: Scripts, budget: int, *, ignore_stop: bool = False) -> Hypothesis:
    """The only text of a decoder."""
    jobs = [Job([0], NO_AUDIO, budget)]
    ((place, result),) = greedy_rows(decoder, jobs, 1, budget + 1, {STOP}, ignore_stop=ignore_stop)
    assert place == 0
    return result


def test_stops_at_a_stop_id() -> None:
    decoder, fed = script([3, 1, 4, STOP, 5])
    result = greedy(decoder, 100)
    assert (result.tokens, result.finish_reason) == ([3, 1, 4], "stop")
    assert fed == [3, 1, 4]
    assert len(result.log_probabilities) == 4
    expected = math.exp(5) / (math.exp(5) + VOCAB - 1)
    assert result.confidence == pytest.approx(expected, rel=1e-5)


def test_an_empty_text_has_the_stop_ids_confidence() -> None:
    decoder, _ = script([STOP])
    result = greedy(decoder, 100)
    assert result.tokens == []
    assert 0.7 < result.confidence < 0.8


def test_the_budget_is_exact() -> None:
    tokens = list(range(40))
    decoder, fed = script(tokens)
    result = greedy(decoder, 7)
    assert (result.tokens, result.finish_reason) == (tokens[:7], "length")
    assert len(fed) == 6  # the last token's successor is not asked for


def test_a_loop_ends_and_keeps_one_period() -> None:
    decoder, fed = script([1, 2, 3] + [7, 8] * 200)
    result = greedy(decoder, 400)
    assert (result.tokens, result.finish_reason) == ([1, 2, 3, 7, 8], "repetition")
    assert len(fed) < 40


def test_ignoring_stops_gives_exactly_the_asked_length() -> None:
    decoder, _ = script([STOP] * 100)
    result = greedy(decoder, 60, ignore_stop=True)
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


texts = st.lists(st.lists(st.integers(0, 40), max_size=15), min_size=1, max_size=9)


@given(texts, st.integers(1, 5), st.integers(1, 12))
def test_rows_change_nothing_but_the_order(scripts: list[list[int]], rows: int, budget: int) -> None:
    """Every text is what it is alone, whatever else is decoded beside it and however many rows there are."""
    scripts = [[*tokens, STOP] for tokens in scripts]
    jobs = [Job([place], NO_AUDIO, budget) for place in range(len(scripts))]
    found = dict(greedy_rows(Scripts(scripts), jobs, rows, 100, {STOP}))
    assert sorted(found) == list(range(len(scripts)))
    for place, tokens in enumerate(scripts):
        assert found[place] == greedy(Scripts([tokens]), budget)


def test_a_free_row_is_filled_at_once_and_jobs_are_taken_late() -> None:
    scripts = Scripts([[1, 1, 2, 1, 2, 3, STOP], [4, STOP], [5, 6, STOP], [STOP], [7, STOP]])
    taken: list[int] = []

    def jobs() -> Iterator[Job]:
        for place in range(5):
            taken.append(place)
            yield Job([place], NO_AUDIO, 20)

    ended = []
    for place, _ in greedy_rows(scripts, jobs(), 2, 30, {STOP}):
        ended.append(place)
        if len(ended) == 1:
            assert taken == [0, 1]  # the third is made when there is a row for it
    assert ended == [1, 2, 3, 4, 0]
    assert scripts.opened == (2, 30)
    assert scripts.steps == [2, 2, 2, 2, 1, 1]  # both rows work as long as there is work for two


def test_what_no_text_may_contain_is_passed_over() -> None:
    """The next most probable token comes in its place, at the first position and later."""
    scripts = Scripts([[5, 1, 5, STOP]])
    ((_, result),) = greedy_rows(scripts, [Job([0], NO_AUDIO, 10)], 1, 20, {STOP}, never=[5])
    assert result.tokens == [0, 1, 0]
    assert scripts.fed[0] == [0, 1, 0]
