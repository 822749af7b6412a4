"""Greedy decoding over a step function, with a budget and a guard against loops."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
FinishReason = Literal["stop", "length", "repetition"]

# A tail that repeats one period is a loop when it is this long (tokens) and repeats this often. Digits and refrains
# repeat too, but not so long: the official implementation collapses runs of more than 20.
_LOOP_TOKENS = 24
_LOOP_REPEATS = 6
_LONGEST_PERIOD = 24


class Hypothesis(msgspec.Struct, frozen=True):
    """Decoded ids without the stop id, the log-probability of each (and of a stop id that came), and why it ended."""

    tokens: list[int]
    log_probabilities: list[float]
    finish_reason: FinishReason

    @property
    def confidence(self) -> float:
        """Geometric mean of the probabilities, 0..1; 0 when nothing was decoded."""
        if not self.log_probabilities:
            return 0.0
        return float(np.exp(np.mean(self.log_probabilities)))


def greedy(
    logits: Floats, step: Callable[[int], Floats], stop_ids: Collection[int], budget: int, *, ignore_stop: bool = False
) -> Hypothesis:
    """Take the most probable token until a stop id, ``budget`` tokens, or a loop.

    Args:
        logits: [vocab], of the first token.
        step: token → logits [vocab] of the next; called at most ``budget - 1`` times.
        stop_ids: ids that end the text.
        budget: most tokens to decode.
        ignore_stop: decode exactly ``budget`` tokens, whatever they are (to time random weights).

    Returns:
        The hypothesis; of a loop only the first period is kept.
    """
    tokens: list[int] = []
    log_probabilities: list[float] = []
    while True:
        token = int(np.argmax(logits))
        log_probabilities.append(log_probability(logits, token))
        if token in stop_ids and not ignore_stop:
            return Hypothesis(tokens, log_probabilities, "stop")
        tokens.append(token)
        if not ignore_stop and (period := loop_period(tokens)):
            keep = loop_start(tokens, period) + period
            return Hypothesis(tokens[:keep], log_probabilities[:keep], "repetition")
        if len(tokens) >= budget:
            return Hypothesis(tokens, log_probabilities, "length")
        logits = step(token)


def log_probability(logits: Floats, token: int) -> float:
    """Natural logarithm of ``token``'s probability under softmax of ``logits`` [vocab]."""
    peak = logits.max()
    return float(logits[token] - peak - np.log(np.exp(logits - peak).sum()))


def loop_period(tokens: Sequence[int]) -> int:
    """The period in which the tail of ``tokens`` loops, or 0. Shorter periods win."""
    for period in range(1, _LONGEST_PERIOD + 1):
        span = max(_LOOP_TOKENS, period * _LOOP_REPEATS)
        if len(tokens) < span:
            break
        tail = tokens[-span:]
        if tail[period:] == tail[:-period]:
            return period
    return 0


def loop_start(tokens: Sequence[int], period: int) -> int:
    """Where the loop at the end of ``tokens`` begins: the first index from which everything repeats by ``period``."""
    start = len(tokens) - period
    while start > 0 and tokens[start - 1] == tokens[start - 1 + period]:
        start -= 1
    return start
