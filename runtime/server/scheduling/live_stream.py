"""A live stream as its client's connection sees it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import Executor
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.audio.stream_resampler import StreamResampler
from runtime.errors import AudioInvalidError
from runtime.pipeline.events import Event, Partial
from runtime.server.errors import AudioTooLong, Closing, GivenUp
from runtime.server.scheduling.file_results import tell
from runtime.server.scheduling.stream_ticket import StreamTicket

# A stream further behind than this takes no more audio until it has caught up.
MOST_BEHIND_SECONDS = 30.0
# Longer audio is fed in parts, so that results can be taken between them.
_PART_SECONDS = 1


class LiveStream:
    """Audio in, events out. Made by :meth:`runtime.server.scheduling.service.Service.open_stream`; used in its event loop.

    :meth:`feed`, :meth:`commit` and :meth:`finish` keep their order when they are called together; one task at a time
    reads :meth:`events`.
    """

    def __init__(
        self,
        attach: Callable[
            [Callable[[list[Event] | BaseException | None], None], Callable[[], None]],
            StreamTicket,
        ],
        executor: Executor,
        incoming: StreamResampler,
        *,
        sample_rate: int,
        longest: float,
        heard: Callable[[float], object],
        ended: Callable[[LiveStream, BaseException | None], None],
    ) -> None:
        """Args:
        attach: hands the stream to the scheduler, given where events go and whom to tell of progress.
        executor: where audio is resampled and cut.
        incoming: what makes the engine's samples of those that are fed.
        sample_rate: of what is fed, in Hz.
        longest: seconds that may be fed.
        heard: told the seconds that were fed.
        ended: told how it ended, once, in the event loop.
        """
        self._loop, self._executor, self._incoming = asyncio.get_running_loop(), executor, incoming
        self._rate, self._longest, self._heard, self._ended = sample_rate, longest, heard, ended
        self._samples = 0
        self._order = asyncio.Lock()
        self._finished = self._shutting = self._over = False
        self._error: BaseException | None = None
        self._waiting: deque[Event] = deque()
        self._wake, self._progress = asyncio.Event(), asyncio.Event()
        self._ticket = attach(
            lambda item: tell(self._loop, self._receive, item),
            lambda: tell(self._loop, self._progress.set),
        )

    async def feed(self, samples: npt.NDArray[Any]) -> None:
        """Mono samples [n] at the stream's rate, int16 or float32. Waits while the stream is too far behind.

        Raises:
            AudioInvalidError: not such samples, or the stream is over already.
            AudioTooLong: longer than a stream may be; nothing of ``samples`` was taken, and the stream can be finished.
            Closing: the server is shutting down; what was fed before is finished.
            BaseException: what the stream failed with.
        """
        array = np.atleast_1d(samples)
        async with self._order:
            self._check()
            if self._samples + array.size > self._longest * self._rate:
                raise AudioTooLong(f"the stream is longer than the {self._longest:g} s that it may have; open another")
            self._samples += array.size
            step = self._rate * _PART_SECONDS
            for start in range(0, len(array), step):
                part = array[start : start + step]
                await self._caught_up()
                await self._loop.run_in_executor(self._executor, self._feed, part)
                self._heard(part.size / self._rate)

    async def commit(self) -> None:
        """End the open segment now. Raises what :meth:`feed` raises."""
        async with self._order:
            self._check()
            await self._loop.run_in_executor(self._executor, self._ticket.commit)

    async def finish(self) -> None:
        """No more audio will come: :meth:`events` end after the last final. Nothing, when that was said already."""
        async with self._order:
            if not self._finished:
                self._finished = True
                await self._loop.run_in_executor(self._executor, self._finish)

    async def events(self) -> AsyncIterator[Event]:
        """What is heard, in order; of several partials of a segment that nobody waited for, the last.

        Raises:
            BaseException: what the stream failed with.
        """
        while True:
            while self._waiting:
                yield self._waiting.popleft()
            if self._over:
                if self._error:
                    raise self._error
                return
            self._wake.clear()
            await self._wake.wait()

    async def close(self) -> None:
        """Give up what is in flight at once; :meth:`events` end. Nothing, when the stream is over already."""
        self._finished = True
        self._ticket.fail(GivenUp())

    def shut(self) -> Coroutine[Any, Any, None]:
        """The server is shutting down: refuse what comes, at once, and finish what came, when it is awaited."""
        self._shutting = True
        self._progress.set()
        return self.finish()

    def _check(self) -> None:
        if self._error:
            raise self._error
        if self._shutting:
            raise Closing("the server is shutting down and takes no more audio; what came is finished")
        if self._finished or self._over:
            raise AudioInvalidError("the stream was finished or closed already; open another")

    async def _caught_up(self) -> None:
        while not (self._over or self._shutting):
            self._progress.clear()
            if self._ticket.behind <= MOST_BEHIND_SECONDS:
                return
            await self._progress.wait()
        self._check()

    def _feed(self, samples: npt.NDArray[Any]) -> None:
        if len(made := self._incoming.take(samples)):
            self._ticket.feed(made)

    def _finish(self) -> None:
        if len(rest := self._incoming.end()):
            self._ticket.feed(rest)
        self._ticket.finish()

    def _receive(self, item: list[Event] | BaseException | None) -> None:
        if self._over:
            return
        if isinstance(item, list):
            for event in item:
                self._append(event)
        else:
            self._over = True
            self._error = None if isinstance(item, GivenUp) else item
            self._progress.set()
            self._ended(self, item)
        self._wake.set()

    def _append(self, event: Event) -> None:
        """Keep an event until it is asked for. Who reads slowly is not told what has changed since."""
        last = self._waiting[-1] if self._waiting else None
        if isinstance(event, Partial) and isinstance(last, Partial) and last.segment == event.segment:
            self._waiting.pop()
        self._waiting.append(event)
