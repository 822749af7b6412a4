"""Audio as it arrives: what a live source is, files played as if they were live, and what other threads hear."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from runtime.audio.reader import AudioReader, Floats
from runtime.errors import AsrError, OptionError

T = TypeVar("T")

LIVE_RATE = 16_000
"""Rate in Hz at which sources give audio where they may choose: what speech models are made for."""

# A piece of a file, in seconds: shorter ones cost more calls than they gain, longer ones are no stream any more.
_SHORTEST_PIECE, _LONGEST_PIECE = 0.01, 10.0


class LiveSource(Protocol):
    """Audio that arrives bit by bit."""

    name: str
    rate: int

    def blocks(self) -> Iterator[npt.NDArray[Any]]:
        """Mono samples [n] at ``rate`` Hz as they come, int16 or float32, none empty; once through.

        Raises:
            AsrError: the audio is damaged, or the device is gone.
        """

    def stop(self) -> None:
        """Take no more in; :meth:`blocks` end after what was heard already. May be called by a signal handler."""

    def close(self) -> None:
        """Let go of files and devices."""


class Inbox(Generic[T]):
    """What one thread hears for another, in order and up to a bound.

    The bound is in whatever unit the sizes of items are given. :meth:`end` takes no lock, so that a signal handler may
    call it whatever the interrupted thread was doing.
    """

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._held = 0
        self._abandoned = False
        self._room = threading.Condition()
        self._items: queue.SimpleQueue[tuple[T, int] | _End] = queue.SimpleQueue()

    def put(self, item: T, size: int) -> bool:
        """Add an item when there is room, and wait until there is; False when nobody will take it any more."""
        with self._room:
            self._room.wait_for(lambda: self._held < self._bound or self._abandoned)
            return self._add(item, size)

    def offer(self, item: T, size: int) -> bool:
        """Add an item if there is room now; False when it is lost."""
        with self._room:
            return self._held < self._bound and self._add(item, size)

    def _add(self, item: T, size: int) -> bool:
        if self._abandoned:
            return False
        self._held += size
        self._items.put((item, size))
        return True

    def end(self, error: AsrError | None = None) -> None:
        """Nothing that comes after this counts; ``error`` says why there is no more, None that it is over."""
        self._items.put(_End(error))

    def abandon(self) -> None:
        """Nobody takes any more: whoever waits for room stops waiting."""
        with self._room:
            self._abandoned = True
            self._room.notify_all()

    def batches(self) -> Iterator[list[T]]:
        """All that is there, as often as something is there, until the end.

        Whoever is slow gets more at once: late audio is worked on together, and the delay does not grow.
        """
        ended = None
        while ended is None:
            entry: tuple[T, int] | _End | None = self._items.get()
            batch: list[T] = []
            taken = 0
            while entry is not None and not isinstance(entry, _End):
                batch.append(entry[0])
                taken += entry[1]
                entry = self._next()
            ended = entry
            with self._room:
                self._held -= taken
                self._room.notify_all()
            if batch:
                yield batch
        if ended.error is not None:
            raise ended.error

    def _next(self) -> tuple[T, int] | _End | None:
        try:
            return self._items.get_nowait()
        except queue.Empty:
            return None


class _End:
    def __init__(self, error: AsrError | None) -> None:
        self.error = error


class FileSource:
    """A file in small pieces, as fast as they are taken or at the pace at which they were spoken."""

    def __init__(
        self,
        reader: AudioReader,
        name: str,
        *,
        piece: float = 0.1,
        realtime: bool = False,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[float], object] | None = None,
    ) -> None:
        """Play ``reader``, which was opened at :data:`LIVE_RATE` and is closed with this.

        Args:
            reader: the opened file.
            name: what errors call it.
            piece: seconds of a piece.
            realtime: give a piece when its last sample would have been spoken, counted from the first call. When
                pieces are due that were not asked for in time, they come as one, as from a microphone.
            clock: seconds that never go back.
            wait: waits so many seconds, or until :meth:`stop`.

        Raises:
            OptionError: a piece is too short or too long.
        """
        if not _SHORTEST_PIECE <= piece <= _LONGEST_PIECE:
            reader.close()
            raise OptionError(
                f"pieces of a file must have {_SHORTEST_PIECE:g} to {_LONGEST_PIECE:g} s, not {piece:g} s"
            )
        self.name, self.rate = name, LIVE_RATE
        self._reader = reader
        self._step = max(1, round(piece * self.rate))
        self._realtime = realtime
        self._clock, self._wait = clock, wait or self._sleep
        self._stopped = False
        self._woken: queue.SimpleQueue[None] = queue.SimpleQueue()  # its put is safe in a signal handler

    def blocks(self) -> Iterator[Floats]:
        """Pieces of the file; see :meth:`LiveSource.blocks`."""
        pieces = _Pieces(self._reader.blocks())
        began, given = self._clock(), 0
        while not self._stopped and len(block := pieces.take(self._step)):
            if self._realtime:
                spoken = began + (given + len(block)) / self.rate
                if not self._waited_until(spoken):
                    return
                late = self._whole_pieces(self._clock() - spoken)
                block = np.concatenate([block, pieces.take(late)]) if late else block
            given += len(block)
            yield block

    def _waited_until(self, moment: float) -> bool:
        """Whether it is that late now; not so when it was stopped before."""
        while not self._stopped and (early := moment - self._clock()) > 0:
            self._wait(early)
        return not self._stopped

    def _whole_pieces(self, seconds: float) -> int:
        """Samples of the pieces that end within ``seconds``."""
        return int(min(seconds, _LONGEST_PIECE) * self.rate) // self._step * self._step

    def _sleep(self, seconds: float) -> None:
        try:
            self._woken.get(timeout=seconds)
        except queue.Empty:
            return

    def stop(self) -> None:
        """See :meth:`LiveSource.stop`."""
        self._stopped = True
        self._woken.put(None)

    def close(self) -> None:
        """See :meth:`LiveSource.close`."""
        self._reader.close()


class _Pieces:
    """Blocks of any length, taken in pieces of other lengths. An error comes when all before it was taken."""

    def __init__(self, blocks: Iterator[Floats]) -> None:
        self._blocks = blocks
        self._rest = np.zeros(0, np.float32)
        self._failure: AsrError | None = None

    def take(self, count: int) -> Floats:
        """The next ``count`` samples; fewer only at the end."""
        parts = [self._rest]
        there = len(self._rest)
        while there < count and (block := self._next()) is not None:
            parts.append(block)
            there += len(block)
        if self._failure is not None and not there:
            raise self._failure
        joined = np.concatenate(parts) if len(parts) > 1 else self._rest
        self._rest = joined[count:]
        return joined[:count]

    def _next(self) -> Floats | None:
        try:
            return next(self._blocks, None)
        except AsrError as error:
            self._failure = error
            return None
