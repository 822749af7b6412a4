"""Whisper's rules on the next token, compared with transformers' logits processors, and its timestamps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import GenerationConfig
from transformers.generation.logits_process import (
    LogitsProcessorList,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
    WhisperTimeStampLogitsProcessor,
)

from runtime.decoding.greedy import Draft, TextJob, greedy_rows
from runtime.families.whisper.timestamps import NextTokenRules, Phrase, TimestampRules, advance, phrases
from tests.helpers.rows import HashedRows

STOP, NO_TIMESTAMPS, VOCAB = 20, 26, 60
FIRST = NO_TIMESTAMPS + 1
RULES = TimestampRules(STOP, NO_TIMESTAMPS)
PROMPT = [21, 22, 23]


def ids(values: list[int]) -> np.ndarray:
    return np.array(values, np.int64)


def reference(
    logits: np.ndarray, tokens: list[int], *, timestamps: bool, max_initial: int | None, begin: list[int]
) -> np.ndarray:
    """Return the logits after transformers' processors, in the order of ``generate``."""
    config = GenerationConfig(eos_token_id=STOP, no_timestamps_token_id=NO_TIMESTAMPS)
    config.max_initial_timestamp_index = max_initial
    processors = LogitsProcessorList(
        [
            SuppressTokensAtBeginLogitsProcessor(begin, begin_index=len(PROMPT)),
            SuppressTokensLogitsProcessor([1, 24, 25]),
        ]
    )
    if timestamps:
        processors.append(WhisperTimeStampLogitsProcessor(config, begin_index=len(PROMPT)))
    processed: np.ndarray = processors(torch.tensor([[*PROMPT, *tokens]]), torch.from_numpy(logits[None].copy()))[
        0
    ].numpy()
    return processed


@given(
    tokens=st.lists(st.integers(0, VOCAB - 1), max_size=8),
    seed=st.integers(0, 10_000),
    spread=st.sampled_from([0.1, 1.0, 6.0]),
    timestamps=st.booleans(),
    max_initial=st.sampled_from([None, 0, 5]),
)
def test_rules_equal_those_of_transformers(
    tokens: list[int], seed: int, spread: float, timestamps: bool, max_initial: int | None
) -> None:
    """After any tokens, valid or not, and for likely and unlikely timestamps."""
    logits = (np.random.default_rng(seed).standard_normal(VOCAB) * spread).astype(np.float32)
    expected = reference(logits, tokens, timestamps=timestamps, max_initial=max_initial, begin=[0, STOP])
    timed = TimestampRules(STOP, NO_TIMESTAMPS, max_initial) if timestamps else None
    NextTokenRules(ids([1, 24, 25]), ids([0, STOP]), timed)(logits, tokens)
    assert np.array_equal(logits, expected)


@given(seed=st.integers(0, 10_000), spread=st.sampled_from([0.5, 2.0, 5.0]))
def test_texts_decoded_with_the_rules_have_times_in_order(seed: int, spread: float) -> None:
    class Rows(HashedRows):
        def _logits(self, row: object, *, blurred: bool = False) -> np.ndarray:
            logits: np.ndarray = np.random.default_rng([seed, *row]).standard_normal(self.vocab).astype(np.float32)  # type: ignore[misc]
            return logits * np.float32(spread)

    rules = NextTokenRules(ids([21, 22, 23, 24, 25]), ids([STOP]), TimestampRules(STOP, NO_TIMESTAMPS, 5))
    jobs = iter([(index, TextJob([21, index], None, 40, rules=rules)) for index in range(3)])
    for _, hypothesis in greedy_rows(Rows(VOCAB), lambda: next(jobs, None), lambda _: (2, 50), [STOP]):
        tokens = hypothesis.tokens
        assert FIRST <= tokens[0] <= FIRST + 5
        times = [token for token in tokens if token >= FIRST]
        assert times == sorted(times)
        assert NO_TIMESTAMPS not in tokens
        for before, token, after in zip(tokens, tokens[1:], tokens[2:], strict=False):
            assert not before >= FIRST <= token or after < FIRST  # never three in a row
        timed = phrases(tokens, RULES, 0.02, 30.0)
        assert [token for phrase in timed for token in phrase.tokens] == [token for token in tokens if token < STOP]


def test_rules_get_the_accepted_tokens_of_a_draft() -> None:
    """A draft is accepted token by token, and the rules apply to each token after the accepted ones."""
    seen: list[list[int]] = []

    def rules(logits: np.ndarray, tokens: Sequence[int]) -> None:
        seen.append(list(tokens))
        logits[:] = -np.inf
        logits[len(tokens)] = 0.0

    jobs = iter([("a", TextJob([9], None, 6, draft=Draft([0, 1, 2, 7]), rules=rules))])
    ((_, hypothesis),) = greedy_rows(HashedRows(12), lambda: next(jobs, None), lambda _: (1, 20), [5])
    assert hypothesis.tokens == [0, 1, 2, 3, 4]
    assert hypothesis.finish_reason == "stop"
    assert seen == [[], [0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3, 4]]


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([], []),
        ([FIRST, FIRST + 10], []),
        ([FIRST, 3, 4, FIRST + 10], [(0.0, 0.2, [3, 4])]),
        ([FIRST + 2, 3, FIRST + 5, FIRST + 7, 4], [(0.04, 0.1, [3]), (0.14, 0.5, [4])]),
        ([3, 4], [(0.0, 0.5, [3, 4])]),
        ([FIRST, 3, FIRST + 30, FIRST + 30, 4], [(0.0, 0.5, [3]), (0.5, 0.5, [4])]),
        ([FIRST + 9, 3, FIRST + 4], [(0.18, 0.18, [3])]),
        ([FIRST, 3, 22, FIRST + 5], [(0.0, 0.1, [3])]),
    ],
    ids=["nothing", "no text", "one", "no end", "no times", "later than the audio", "backwards", "special tokens"],
)
def test_tokens_are_split_into_phrases(tokens: list[int], expected: list[tuple[float, float, list[int]]]) -> None:
    timed = phrases(tokens, RULES, 0.02, 0.5)
    assert [phrase.tokens for phrase in timed] == [text for _, _, text in expected]
    edges = [edge for start, end, _ in expected for edge in (start, end)]
    assert [edge for phrase in timed for edge in (phrase.start, phrase.end)] == pytest.approx(edges)


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([FIRST, 3, 4], (3, 100)),
        ([FIRST, 3, 4, FIRST + 9], (4, 100)),
        ([FIRST, 3, FIRST + 9, FIRST + 11, 4], (4, 18)),
        ([FIRST, 3, FIRST + 9, FIRST + 11, 4, FIRST + 12], (6, 100)),
        ([FIRST, 3, FIRST + 9, FIRST + 9, 4, FIRST + 12, FIRST + 12], (7, 24)),
        ([FIRST, 3, FIRST + 9, FIRST + 9], (4, 18)),
        ([FIRST, FIRST, 3], (2, 1)),
        ([FIRST, 3, FIRST + 30, FIRST + 30, 5], (4, 60)),
        ([3, 4], (2, 100)),
        ([], (0, 100)),
    ],
    ids=[
        "no end",
        "no text after it",
        "cut",
        "no text after the second",
        "cut after the second",
        "cut after the first",
        "no length",
        "after the end",
        "no timestamps",
        "nothing",
    ],
)
def test_start_of_the_next_window(tokens: list[int], expected: tuple[int, int]) -> None:
    used, frames = advance(tokens, RULES, 100, 2)
    assert (used, frames) == expected
    if expected[1] == 60:
        assert advance(tokens, RULES, 40, 2) == (4, 40)  # not after the end of the audio


@given(st.lists(st.integers(0, VOCAB - 1), max_size=30), st.integers(1, 3000))
def test_every_window_advances_at_most_to_its_end(tokens: list[int], frames: int) -> None:
    used, advanced = advance(tokens, RULES, frames, 2)
    assert 0 <= used <= len(tokens)
    assert 1 <= advanced <= frames


@given(st.lists(st.integers(0, VOCAB - 1), max_size=30), st.floats(0.01, 30.0))
def test_phrases_are_in_order_and_within_the_audio(tokens: list[int], duration: float) -> None:
    timed: list[Phrase] = phrases(tokens, RULES, 0.02, duration)
    edges = [edge for phrase in timed for edge in (phrase.start, phrase.end)]
    assert edges == sorted(edges)
    assert all(0 <= edge <= duration for edge in edges)
    assert [token for phrase in timed for token in phrase.tokens] == [token for token in tokens if token < STOP]
