"""Who is next: live speech before files, short files before long ones, and nobody never.

Service is seconds of audio that were handed to the engine. Among files the one that had least of it is next (least
attained service, "foreground-background"; Kleinrock, Queueing Systems II, 1976, section 4.6): a short file needs not
be known to be short to pass a long one. Two bounds keep this from starving anybody:

- every :data:`OLDEST_EVERY`-th turn of the files is the oldest one's, whatever it had: each file that is the oldest
  gets at least that share, and so each becomes the oldest and ends;
- while a file waits, live streams get at most :data:`LIVE_AHEAD_SECONDS` and :data:`LIVE_WEIGHT` times what files get.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeVar

OLDEST_EVERY = 8
# Some segments of many streams: what a moment of more speech than usual needs.
LIVE_AHEAD_SECONDS = 60.0
LIVE_WEIGHT = 3.0


class Waiting(Protocol):
    """A file that has something for the engine: seconds that it was given so far, and its place among arrivals."""

    @property
    def attained(self) -> float: ...

    @property
    def arrival(self) -> int: ...


T = TypeVar("T", bound=Waiting)


class Fairness:
    """Decides by what was handed out so far. Not thread-safe."""

    def __init__(self) -> None:
        self._live_ahead = 0.0
        self._turns = 0

    @property
    def files_first(self) -> bool:
        """Whether a file that waits goes before live streams now."""
        return self._live_ahead >= LIVE_AHEAD_SECONDS

    def gave_live(self, seconds: float, *, file_waits: bool) -> None:
        """A live stream's job was handed out, while a file was there or none was."""
        self._live_ahead = min(self._live_ahead + seconds, 2 * LIVE_AHEAD_SECONDS) if file_waits else 0.0

    def gave_file(self, seconds: float) -> None:
        """A file's job was handed out."""
        self._live_ahead = max(0.0, self._live_ahead - LIVE_WEIGHT * seconds)
        self._turns += 1

    def next_file(self, waiting: Iterable[T]) -> T | None:
        """Whose turn it is among the files that wait; None when there is none."""
        if self._turns % OLDEST_EVERY == OLDEST_EVERY - 1:
            return min(waiting, key=lambda each: each.arrival, default=None)
        return min(waiting, key=lambda each: (each.attained, each.arrival), default=None)
