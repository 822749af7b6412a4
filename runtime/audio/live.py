"""Live audio: the protocol of sources, files played in real time, and a queue between threads."""

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
"""Sampling rate in Hz of sources that can choose it: the rate of speech models."""

# Limits of a piece of a file in seconds: shorter pieces cost more calls than they gain, longer ones are not live audio.
_SHORTEST_PIECE, _LONGEST_PIECE = 0.01, 10.0


class LiveSource(Protocol):
    """Source of audio that arrives over time.

    Attributes:
        name: name of the source, for messages.
        rate: sampling rate in Hz.
    """

    name: str
    rate: int

    def blocks(self) -> Iterator[npt.NDArray[Any]]:
        """Yield mono samples [n] at ``rate`` Hz as they arrive, int16 or float32, never empty. Call it once.

        Raises:
            AsrError: the audio is damaged, or the device was disconnected.
        """

    def stop(self) -> None:
        """Stop recording; :meth:`blocks` ends after the audio received so far. Signal handlers may call it."""

    def close(self) -> None:
        """Close files and devices."""


class Inbox(Generic[T]):
    """Bounded queue of items from one thread for another.

    :meth:`end` takes no lock, so that a signal handler may call it at any time.
    """

    def __init__(self, bound: int) -> None:
        """``bound`` limits the total size of waiting items, in the unit of their sizes."""
        self._bound = bound
        self._size = 0
        self._abandoned = False
        self._room = threading.Condition()
        self._items: queue.SimpleQueue[tuple[T, int] | _End] = queue.SimpleQueue()

    def put(self, item: T, size: int) -> bool:
        """Add an item, after waiting for room if necessary. Returns False if the consumer has abandoned the queue."""
        with self._room:
            self._room.wait_for(lambda: self._size < self._bound or self._abandoned)
            return self._add(item, size)

    def offer(self, item: T, size: int) -> bool:
        """Add an item if there is room now. Returns False if the item was dropped."""
        with self._room:
            return self._size < self._bound and self._add(item, size)

    def _add(self, item: T, size: int) -> bool:
        if self._abandoned:
            return False
        self._size += size
        self._items.put((item, size))
        return True

    def end(self, error: AsrError | None = None) -> None:
        """End the queue; later items are ignored. The consumer raises ``error`` unless it is None."""
        self._items.put(_End(error))

    def abandon(self) -> None:
        """Declare that no more items are taken, and wake producers that wait for room."""
        with self._room:
            self._abandoned = True
            self._room.notify_all()

    def batches(self) -> Iterator[list[T]]:
        """Yield all waiting items whenever there are any, until the end.

        A slow consumer gets more items at once, so that late audio is processed together and the delay does not grow.

        Raises:
            AsrError: the error given to :meth:`end`.
        """
        ended = None
        while ended is None:
            entry: tuple[T, int] | _End | None = self._items.get()
            batch: list[T] = []
            total = 0
            while entry is not None and not isinstance(entry, _End):
                batch.append(entry[0])
                total += entry[1]
                entry = self._next()
            ended = entry
            with self._room:
                self._size -= total
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
    """Mark of the end of a queue."""

    def __init__(self, error: AsrError | None) -> None:
        self.error = error


class FileSource:
    """Audio file in small pieces, as fast as they are consumed or in real time."""

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
        """Play an opened file.

        Args:
            reader: the file, opened at :data:`LIVE_RATE`; :meth:`close` closes it.
            name: name of the file, for messages.
            piece: length of a piece in seconds, 0.01 to 10.
            realtime: yield each piece at the time of its last sample, counted from the first call. Pieces that are late
                are joined into one, as a microphone does.
            clock: monotonic clock in seconds.
            wait: waits for a number of seconds, or until :meth:`stop`.

        Raises:
            OptionError: ``piece`` is out of range.
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
        self._woken: queue.SimpleQueue[None] = queue.SimpleQueue()  # put() is safe in a signal handler

    def blocks(self) -> Iterator[Floats]:
        """Yield the pieces of the file, float32 [n], as :class:`LiveSource` requires.

        Raises:
            AudioInvalidError: the file is damaged or truncated.
        """
        pieces = _Pieces(self._reader.blocks())
        start, count = self._clock(), 0
        while not self._stopped and len(block := pieces.take(self._step)):
            if self._realtime:
                due = start + (count + len(block)) / self.rate
                if not self._wait_until(due):
                    return
                late = self._whole_pieces(self._clock() - due)
                block = np.concatenate([block, pieces.take(late)]) if late else block
            count += len(block)
            yield block

    def _wait_until(self, time: float) -> bool:
        """Wait until ``time`` of the clock. Returns False if the source was stopped."""
        while not self._stopped and (seconds := time - self._clock()) > 0:
            self._wait(seconds)
        return not self._stopped

    def _whole_pieces(self, seconds: float) -> int:
        """Return the number of samples in the whole pieces of the next ``seconds``."""
        return int(min(seconds, _LONGEST_PIECE) * self.rate) // self._step * self._step

    def _sleep(self, seconds: float) -> None:
        try:
            self._woken.get(timeout=seconds)
        except queue.Empty:
            return

    def stop(self) -> None:
        """End :meth:`blocks` at the next piece. Signal handlers may call it."""
        self._stopped = True
        self._woken.put(None)

    def close(self) -> None:
        """Close the file."""
        self._reader.close()


class _Pieces:
    """Blocks of any length, read in pieces of other lengths. An error is raised after all samples before it."""

    def __init__(self, blocks: Iterator[Floats]) -> None:
        self._blocks = blocks
        self._rest = np.zeros(0, np.float32)
        self._failure: AsrError | None = None

    def take(self, count: int) -> Floats:
        """Return the next ``count`` samples, or fewer at the end.

        Raises:
            AsrError: an error of the blocks.
        """
        parts = [self._rest]
        total = len(self._rest)
        while total < count and (block := self._next()) is not None:
            parts.append(block)
            total += len(block)
        if self._failure is not None and not total:
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
