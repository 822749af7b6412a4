"""The order of service: live streams first, then files by least attained service.

Among files, the one that has received the least engine time goes first ("foreground-background"; Kleinrock, Queueing
Systems II, 1976, section 4.6): a short file passes a long one without its length being known. Two bounds prevent
starvation:

- every :data:`OLDEST_EVERY`-th turn of the files belongs to the oldest one: the oldest file gets at least that share,
  so every file becomes the oldest at some time, and ends;
- while a file waits, live streams get at most :data:`LIVE_AHEAD_SECONDS` plus :data:`LIVE_WEIGHT` times the seconds
  that files get.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeVar

OLDEST_EVERY = 8
# Some segments of many streams: enough for a moment of more speech than usual.
LIVE_AHEAD_SECONDS = 60.0
LIVE_WEIGHT = 3.0


class Waiting(Protocol):
    """A file that has a job for the engine."""

    @property
    def attained(self) -> float:
        """Seconds of its audio that the engine has received."""

    @property
    def arrival(self) -> int:
        """Number in the order of arrival."""


T = TypeVar("T", bound=Waiting)


class Fairness:
    """Choose by the seconds of audio handed out so far. Not thread-safe."""

    def __init__(self) -> None:
        self._live_ahead = 0.0
        self._turns = 0

    @property
    def files_first(self) -> bool:
        """Whether a waiting file goes before live streams now."""
        return self._live_ahead >= LIVE_AHEAD_SECONDS

    def gave_live(self, seconds: float, *, file_waits: bool) -> None:
        """Charge a live stream's job of ``seconds``, given while a file waited or not."""
        self._live_ahead = min(self._live_ahead + seconds, 2 * LIVE_AHEAD_SECONDS) if file_waits else 0.0

    def gave_file(self, seconds: float) -> None:
        """Charge a file's job of ``seconds``."""
        self._live_ahead = max(0.0, self._live_ahead - LIVE_WEIGHT * seconds)
        self._turns += 1

    def next_file(self, waiting: Iterable[T]) -> T | None:
        """Return the file whose turn it is among those that wait; None when there is none."""
        if self._turns % OLDEST_EVERY == OLDEST_EVERY - 1:
            return min(waiting, key=lambda file: file.arrival, default=None)
        return min(waiting, key=lambda file: (file.attained, file.arrival), default=None)
