"""How soon a refused client may try again."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable

# Of the last this many that ended, the rate is taken.
_REMEMBERED = 64
# Before enough have ended to know.
_UNKNOWN_SECONDS = 5
_LONGEST_SECONDS = 120
# Those who were refused come back together: by then so much of the queue shall have left.
_ROOM = 0.125


class Throughput:
    """When things ended, and what that says of those that wait."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ends: deque[float] = deque(maxlen=_REMEMBERED)

    def ended(self) -> None:
        """One is done."""
        self._ends.append(self._clock())

    def retry_after(self, waiting: int) -> int:
        """Seconds, 1 to 120, until an eighth of ``waiting`` (at least one) will be done at the recent rate."""
        if len(self._ends) < 2:
            return _UNKNOWN_SECONDS
        each = (self._clock() - self._ends[0]) / len(self._ends)
        return max(1, min(_LONGEST_SECONDS, math.ceil(each * max(1.0, _ROOM * waiting))))
