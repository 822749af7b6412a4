"""Estimate when a refused client should try again."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable

# Number of recent ends from which the rate is computed.
_MAX_ENDS = 64
# Answer before two requests have ended.
_UNKNOWN_SECONDS = 5
_LONGEST_SECONDS = 120
# Refused clients return together: by then this share of the queue should be free.
_FREE_SHARE = 0.125


class Throughput:
    """The rate at which requests end, and the waiting time that follows from it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ends: deque[float] = deque(maxlen=_MAX_ENDS)

    def ended(self) -> None:
        """Note that a request ended now."""
        self._ends.append(self._clock())

    def retry_after(self, waiting: int) -> int:
        """Return the seconds, 1 to 120, until an eighth of ``waiting`` (at least one) ends at the recent rate."""
        if len(self._ends) < 2:
            return _UNKNOWN_SECONDS
        each = (self._clock() - self._ends[0]) / len(self._ends)
        return max(1, min(_LONGEST_SECONDS, math.ceil(each * max(1.0, _FREE_SHARE * waiting))))
