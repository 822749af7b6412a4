"""Repetition guards: find loops at the end of a text, and penalize repeated tokens."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

# Penalty for texts that are decoded again because they were cut off or looped: enough to leave a loop, and a last
# resort only, because it also makes rightly repeated words less likely.
REPETITION_PENALTY = 1.1

# A tail that repeats one period is a loop when it has this many tokens and repetitions. Digits and refrains repeat too,
# but less often: Qwen's official implementation collapses runs of more than 20.
_LOOP_TOKENS = 24
_LOOP_REPEATS = 6
_LONGEST_PERIOD = 24


def penalize(logits: Floats, tokens: Collection[int], penalty: float) -> Floats:
    """Return a copy of ``logits`` [vocab] in which ``tokens`` are less likely.

    Positive logits are divided by ``penalty``, negative ones multiplied (Keskar et al., CTRL, arXiv 1909.05858,
    section 4.1).
    """
    penalized = logits.copy()
    ids = np.fromiter(set(tokens), np.int64)
    repeated = penalized[ids]
    penalized[ids] = np.where(repeated > 0, repeated / penalty, repeated * penalty)
    return penalized


def loop_period(tokens: Sequence[int]) -> int:
    """Return the shortest period in which the tail of ``tokens`` loops; 0 when it does not."""
    for period in range(1, _LONGEST_PERIOD + 1):
        span = max(_LOOP_TOKENS, period * _LOOP_REPEATS)
        if len(tokens) < span:
            break
        tail = tokens[-span:]
        if tail[period:] == tail[:-period]:
            return period
    return 0


def loop_start(tokens: Sequence[int], period: int) -> int:
    """Return the first index from which ``tokens`` repeat with ``period`` to their end."""
    start = len(tokens) - period
    while start > 0 and tokens[start - 1] == tokens[start - 1 + period]:
        start -= 1
    return start
