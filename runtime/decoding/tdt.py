"""Greedy decoding of token-and-duration transducers (TDT), many clips in rows that advance by their own durations.

Source: H. Xu et al., Efficient Sequence Transduction by Jointly Predicting Tokens and Durations (arXiv 2304.06795). At
each step a row's joint network sees one encoder frame and the prediction network's state after the last token, and says
a token and how many frames to go on. A blank leaves the state as it is and goes on by one frame at least.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from runtime.decoding.frames import FrameHypothesis
from runtime.results import FinishReason

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


class States(NamedTuple):
    """Of the prediction network, a row each: hidden and cell [layers, rows, width]."""

    hidden: Floats
    cell: Floats


class Joint(Protocol):
    """Prediction and joint network of some rows."""

    def start(self, rows: int) -> States:
        """The state before any token."""

    def step(self, tokens: Ints, states: States, frames: Floats) -> tuple[Floats, Floats, States]:
        """``tokens`` [rows] after ``states``, and encoder ``frames`` [rows, width] → logits of tokens [rows, vocab],
        logits of durations [rows, durations], and the states after the tokens.
        """


class TdtRules(msgspec.Struct, frozen=True):
    """How a model's choices are to be read.

    ``durations`` are frames by the index of the choice. After ``max_symbols`` tokens of one frame that all take no
    time, a row goes on by a frame: NeMo's guard against a model that would stay there for ever.
    """

    blank: int
    durations: tuple[int, ...]
    max_symbols: int


class _Text:
    """A row's text as it grows."""

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
        joint: the networks.
        encoded: encoder frames [frames, width] of each clip.
        rules: of the model.
        budgets: most tokens of each clip; None for as many as there come.
        alive: asked of a clip's place before each step; when it says no, the clip is dropped.

    Yields:
        A clip's place and its hypothesis, in the order in which clips end; of equal ones, the first clip's first.
    """
    count = len(encoded)
    limits = list(budgets) if budgets is not None else [None] * count
    lengths = np.array([len(frames) for frames in encoded], np.int64)
    durations = np.array(rules.durations, np.int64)
    texts = [_Text() for _ in range(count)]
    frame = np.zeros(count, np.int64)
    symbols = np.zeros(count, np.int64)  # without time, at the frame
    tokens = np.full(count, rules.blank, np.int64)
    states = joint.start(count)
    rows = np.arange(count)  # the clips that are going on, in order; tokens and states are theirs
    while True:
        over = frame[rows] >= lengths[rows]
        for row in rows[over].tolist():
            yield row, texts[row].hypothesis("stop")
        # Asked after the yields: whoever waits for a clip may be gone by then.
        stays = ~(over | np.array([is_cancelled(row) for row in rows.tolist()], bool))
        if not stays.all():
            rows, tokens, states = rows[stays], tokens[stays], _select(states, stays)
        if not len(rows):
            return
        now = np.stack([encoded[row][frame[row]] for row in rows.tolist()])
        logits, duration_logits, after = joint.step(tokens, states, now)
        best = logits.argmax(axis=1)
        spans = durations[duration_logits.argmax(axis=1)]
        blank = best == rules.blank
        spans[blank & (spans == 0)] = 1
        emitted = np.flatnonzero(~blank)
        full = []
        for index, log_probability in zip(emitted.tolist(), _log_probabilities(logits, best, emitted), strict=True):
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
        states = _advance(states, after, ~blank)
        for row in full:
            # A budget that the text just fills cuts nothing off where the audio is over with it.
            reason: FinishReason = "stop" if frame[row] >= lengths[row] else "length"
            yield row, texts[row].hypothesis(reason)
        if full:
            left = ~np.isin(rows, full)
            rows, tokens, states = rows[left], tokens[left], _select(states, left)


def _log_probabilities(logits: Floats, best: Ints, rows: Ints) -> list[float]:
    """Log-softmax at the best choices of some rows of ``logits`` [rows, vocab]."""
    if not len(rows):
        return []
    chosen = logits[rows]
    peaks = chosen[np.arange(len(rows)), best[rows]]
    found: list[float] = (-np.log(np.exp(chosen - peaks[:, None]).sum(axis=1))).tolist()
    return found


def _select(states: States, rows: npt.NDArray[np.bool_]) -> States:
    return States(states.hidden[:, rows], states.cell[:, rows])


def _advance(before: States, after: States, moved: npt.NDArray[np.bool_]) -> States:
    """The states after the step: those of rows that have ``moved``, the earlier ones of the others."""
    if moved.all():
        return after
    where = moved[None, :, None]
    return States(np.where(where, after.hidden, before.hidden), np.where(where, after.cell, before.cell))
