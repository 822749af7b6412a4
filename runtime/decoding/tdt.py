"""Greedy decoding of token-and-duration transducers (TDT) over many clips at once.

Source: H. Xu et al., Efficient Sequence Transduction by Jointly Predicting Tokens and Durations (arXiv 2304.06795). In
each step, a row's joint network takes one encoder frame and the prediction network's state after the last token, and
gives a token and the number of frames to advance. A blank keeps the state and advances at least one frame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from runtime.decoding.frames import FrameHypothesis
from runtime.decoding.probabilities import log_softmax_at
from runtime.results import FinishReason

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


class States(NamedTuple):
    """LSTM states of the prediction network: hidden and cell, each [layers, rows, width] float32."""

    hidden: Floats
    cell: Floats


class Joint(Protocol):
    """Prediction and joint network."""

    def start(self, rows: int) -> States:
        """Return the states before any token."""

    def step(self, tokens: Ints, states: States, frames: Floats) -> tuple[Floats, Floats, States]:
        """Run one step.

        Args:
            tokens: last token ids [rows].
            states: states before these tokens.
            frames: encoder frames [rows, width].

        Returns:
            Token logits [rows, vocab], duration logits [rows, durations], and the states after the tokens.
        """


class TdtRules(msgspec.Struct, frozen=True):
    """Constants of a TDT model.

    ``durations`` are frames by class of the duration output. After ``max_symbols`` tokens without duration at one
    frame, a row advances one frame: NeMo's guard against endless emission.
    """

    blank: int
    durations: tuple[int, ...]
    max_symbols: int


class _Text:
    """A row's growing text."""

    __slots__ = ("ends", "log_probabilities", "starts", "tokens")

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.starts: list[int] = []
        self.ends: list[int] = []
        self.log_probabilities: list[float] = []

    def hypothesis(self, reason: FinishReason) -> FrameHypothesis:
        return FrameHypothesis(self.tokens, self.starts, self.ends, self.log_probabilities, reason)


def greedy_tdt(
    joint: Joint,
    encoded: Sequence[Floats],
    rules: TdtRules,
    *,
    budgets: Sequence[int | None] | None = None,
    is_cancelled: Callable[[int], bool] = lambda _: False,
) -> Iterator[tuple[int, FrameHypothesis]]:
    """Decode clips side by side.

    Args:
        joint: prediction and joint network.
        encoded: encoder frames [frames, width] of each clip.
        rules: constants of the model.
        budgets: largest number of tokens of each clip; None for no limit.
        is_cancelled: called with a clip's index before each step; True drops the clip.

    Yields:
        A clip's index and its hypothesis, in the order in which clips end; ties in input order.
    """
    count = len(encoded)
    limits = list(budgets) if budgets is not None else [None] * count
    lengths = np.array([len(frames) for frames in encoded], np.int64)
    durations = np.array(rules.durations, np.int64)
    texts = [_Text() for _ in range(count)]
    frame = np.zeros(count, np.int64)
    symbols = np.zeros(count, np.int64)  # tokens without duration at the current frame
    tokens = np.full(count, rules.blank, np.int64)
    states = joint.start(count)
    rows = np.arange(count)  # active clips in order; `tokens` and `states` belong to them
    while True:
        ended = frame[rows] >= lengths[rows]
        for row in rows[ended].tolist():
            yield row, texts[row].hypothesis("stop")
        # After the yields: a clip may have been cancelled while its caller ran.
        active = ~(ended | np.array([is_cancelled(row) for row in rows.tolist()], bool))
        if not active.all():
            rows, tokens, states = rows[active], tokens[active], _select(states, active)
        if not len(rows):
            return
        current = np.stack([encoded[row][frame[row]] for row in rows.tolist()])
        logits, duration_logits, next_states = joint.step(tokens, states, current)
        best = logits.argmax(axis=1)
        spans = durations[duration_logits.argmax(axis=1)]
        blank = best == rules.blank
        spans[blank & (spans == 0)] = 1
        emitted = np.flatnonzero(~blank)
        full = []
        log_probabilities = log_softmax_at(logits[emitted], best[emitted]).tolist()
        for index, log_probability in zip(emitted.tolist(), log_probabilities, strict=True):
            row, text = int(rows[index]), texts[rows[index]]
            text.tokens.append(int(best[index]))
            text.starts.append(int(frame[row]))
            text.ends.append(int(frame[row] + spans[index]))
            text.log_probabilities.append(log_probability)
            limit = limits[row]
            if limit is not None and len(text.tokens) >= limit:
                full.append(row)
        symbols[rows] = np.where(spans > 0, 0, symbols[rows] + 1)
        stuck = symbols[rows] >= rules.max_symbols
        frame[rows] += np.where(stuck, 1, spans)
        symbols[rows[stuck]] = 0
        tokens = np.where(blank, tokens, best)
        states = _advance(states, next_states, ~blank)
        for row in full:
            # A text that fills its budget exactly at the end of the audio is complete.
            reason: FinishReason = "stop" if frame[row] >= lengths[row] else "length"
            yield row, texts[row].hypothesis(reason)
        if full:
            remaining = ~np.isin(rows, full)
            rows, tokens, states = rows[remaining], tokens[remaining], _select(states, remaining)


def _select(states: States, rows: npt.NDArray[np.bool_]) -> States:
    return States(states.hidden[:, rows], states.cell[:, rows])


def _advance(before: States, after: States, emitted: npt.NDArray[np.bool_]) -> States:
    """Take the states ``after`` the step for rows that ``emitted`` a token, and the earlier ones for the others."""
    if emitted.all():
        return after
    mask = emitted[None, :, None]
    return States(np.where(mask, after.hidden, before.hidden), np.where(mask, after.cell, before.cell))
