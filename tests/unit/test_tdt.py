"""Greedy decoding of token-and-duration transducers, compared with a decoder of single rows."""

from __future__ import annotations

import math
from itertools import count

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.decoding.frames import FrameHypothesis
from runtime.decoding.tdt import Ints, States, TdtRules, greedy_tdt

VOCABULARY, WIDTH = 6, 3
BLANK = VOCABULARY - 1
RULES = TdtRules(BLANK, (0, 1, 2, 3, 4), 4)


class RandomJoint:
    """A joint whose random logits depend on token, state and frame; the state is a hash of the earlier tokens."""

    def __init__(self, seed: int, *, blanks: float = 1.0, stay: float = 0.0) -> None:
        self.seed, self._blanks, self._stay = seed, blanks, stay
        self.rows: list[int] = []

    def start(self, rows: int) -> States:
        return States(np.zeros((2, rows, 1), np.float32), np.zeros((2, rows, 1), np.float32))

    def one(self, token: int, state: tuple[float, float], frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        key = (self.seed, token, int(state[0] * 997), int(state[1] * 991), int(frame[0]), int(frame[1]))
        rng = np.random.default_rng([abs(part) for part in key])
        logits, durations = rng.normal(size=VOCABULARY), rng.normal(size=len(RULES.durations))
        logits[BLANK] += self._blanks
        durations[0] += self._stay
        return logits.astype(np.float32), durations.astype(np.float32)

    @staticmethod
    def after(token: int, state: tuple[float, float]) -> tuple[float, float]:
        return (state[0] * 7 + token + 1) % 101, (state[1] * 3 + 2 * token + 1) % 103

    def step(self, tokens: Ints, states: States, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray, States]:
        assert tokens.dtype == np.int64
        assert frames.shape == (len(tokens), WIDTH)
        assert states.hidden.shape == states.cell.shape == (2, len(tokens), 1)
        self.rows.append(len(tokens))
        outputs = []
        hidden, cell = states.hidden.copy(), states.cell.copy()
        for row, token in enumerate(tokens.tolist()):
            state = (float(states.hidden[0, row, 0]), float(states.cell[1, row, 0]))
            outputs.append(self.one(token, state, frames[row]))
            hidden[:, row], cell[:, row] = self.after(token, state)
        return np.stack([each[0] for each in outputs]), np.stack([each[1] for each in outputs]), States(hidden, cell)


def one_row(
    joint: RandomJoint, frames: np.ndarray, rules: TdtRules = RULES, budget: int | None = None
) -> FrameHypothesis:
    """Decode one clip with the published algorithm."""
    tokens: list[int] = []
    starts, ends, logs = [], [], []
    last, state = rules.blank, (0.0, 0.0)
    frame = symbols = 0
    while frame < len(frames):
        logits, durations = joint.one(last, state, frames[frame])
        token, duration = int(np.argmax(logits)), rules.durations[int(np.argmax(durations))]
        if token == rules.blank:
            frame, symbols = frame + max(1, duration), 0
            continue
        tokens.append(token)
        starts.append(frame)
        ends.append(frame + duration)
        logs.append(float(logits[token]) - math.log(sum(math.exp(float(each)) for each in logits)))
        state, last = joint.after(last, state), token
        symbols = 0 if duration else symbols + 1
        frame += duration
        if symbols == rules.max_symbols:
            frame, symbols = frame + 1, 0
        if len(tokens) == budget:
            return FrameHypothesis(tokens, starts, ends, logs, "stop" if frame >= len(frames) else "length")
    return FrameHypothesis(tokens, starts, ends, logs)


def clips(seed: int, lengths: list[int]) -> list[np.ndarray]:
    """Return random encoder frames float32 [frames, WIDTH] for each length."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 50, (length, WIDTH)).astype(np.float32) for length in lengths]


def assert_equal(actual: FrameHypothesis, expected: FrameHypothesis) -> None:
    assert (actual.tokens, actual.starts, actual.ends) == (expected.tokens, expected.starts, expected.ends)
    assert actual.finish_reason == expected.finish_reason
    assert actual.log_probabilities == pytest.approx(expected.log_probabilities, abs=1e-5)


@given(
    seed=st.integers(0, 10_000),
    lengths=st.lists(st.integers(0, 25), max_size=5),
    blanks=st.sampled_from([-9.0, 0.0, 1.5]),
    stay=st.sampled_from([-9.0, 0.0, 2.0]),
    budget=st.sampled_from([None, 1, 4]),
)
def test_rows_decoded_together_equal_single_rows(
    seed: int, lengths: list[int], blanks: float, stay: float, budget: int | None
) -> None:
    joint, encoded = RandomJoint(seed, blanks=blanks, stay=stay), clips(seed, lengths)
    results = dict(greedy_tdt(joint, encoded, RULES, budgets=[budget] * len(lengths)))
    assert sorted(results) == list(range(len(lengths)))
    for index, frames in enumerate(encoded):
        assert_equal(results[index], one_row(joint, frames, budget=budget))


def test_max_symbols_bounds_the_tokens_of_a_frame() -> None:
    joint = RandomJoint(1, blanks=-99.0, stay=99.0)
    ((_, hypothesis),) = greedy_tdt(joint, clips(1, [5]), RULES)
    assert hypothesis.starts == [frame for frame in range(5) for _ in range(RULES.max_symbols)]
    assert hypothesis.ends == hypothesis.starts
    assert len(joint.rows) == 5 * RULES.max_symbols


def test_a_blank_with_duration_zero_advances_by_one_frame() -> None:
    joint = RandomJoint(1, blanks=99.0, stay=99.0)
    ((_, hypothesis),) = greedy_tdt(joint, clips(1, [7]), RULES)
    assert hypothesis == FrameHypothesis([], [], [], [])
    assert hypothesis.confidence == 0.0
    assert len(joint.rows) == 7


def test_finished_rows_are_not_computed() -> None:
    joint = RandomJoint(3, blanks=99.0, stay=99.0)
    order = [index for index, _ in greedy_tdt(joint, clips(3, [9, 2, 5]), RULES)]
    assert order == [1, 2, 0]
    assert joint.rows == [3] * 2 + [2] * 3 + [1] * 4


def test_cancelled_rows_are_dropped() -> None:
    joint, checks = RandomJoint(3, blanks=99.0, stay=99.0), count()
    results = dict(
        greedy_tdt(joint, clips(3, [9, 9]), RULES, is_cancelled=lambda index: index != 1 and next(checks) >= 3)
    )
    assert list(results) == [1]
    assert joint.rows == [2] * 3 + [1] * 6


def test_durations_are_used_by_value() -> None:
    rules = TdtRules(BLANK, (1, 2, 4, 6, 8), 4)
    for seed in range(20):
        joint, (frames,) = RandomJoint(seed), clips(seed, [40])
        ((_, hypothesis),) = greedy_tdt(joint, [frames], rules)
        assert_equal(hypothesis, one_row(joint, frames, rules))


def test_a_hypothesis_is_limited_to_a_number_of_tokens() -> None:
    whole = FrameHypothesis([1, 2, 3], [0, 1, 2], [1, 2, 3], [-0.5, -1.5, -4.0])
    assert whole.limited_to(None) is whole
    assert whole.limited_to(3) is whole
    assert whole.limited_to(2) == FrameHypothesis([1, 2], [0, 1], [1, 2], [-0.5, -1.5], "length")
    assert whole.confidence == pytest.approx(math.exp(-2))
